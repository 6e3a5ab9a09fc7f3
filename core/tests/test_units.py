"""Sizes as people write them."""

import pytest

from holdfast.units import nearest_sizes, parse_size


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        ("4096", 4096),
        ("4096B", 4096),
        ("3GiB", 3 << 30),
        ("3Gi", 3 << 30),
        ("3G", 3 << 30),
        ("3g", 3 << 30),
        ("3GB", 3 * 10**9),
        ("3 gb", 3 * 10**9),
        ("64kb", 64_000),
        ("64K", 64 << 10),
        ("512MB", 512 * 10**6),
        ("2TB", 2 * 10**12),
        ("4.1GB", 4_100_000_000),
        ("1.5TiB", 3 << 39),
        (" 0.5 MiB ", 1 << 19),
    ],
)
def test_decimal_units_are_decimal_and_binary_ones_binary(text: str, size_bytes: int) -> None:
    assert parse_size(text) == size_bytes


@pytest.mark.parametrize("text", ["", "GB", "-1GiB", "5i", "5iB", "1GiBB", "1..5G", "1e3", "٣GiB"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a size; write for example"):
        parse_size(text)


def test_the_nearest_sizes_are_told_so_that_they_can_be_typed() -> None:
    def near(size_bytes: int) -> str:
        return nearest_sizes(size_bytes, multiple=512, least=4096, most=1 << 40)

    assert near(100 * 10**6) == "97656KiB or 100000256"
    assert near((3 << 20) - 1) == "3145216 or 3MiB"
    assert near(0) == "4KiB"
    assert near(1 << 50) == "1TiB"
    for word in near(100 * 10**6).split(" or "):
        assert parse_size(word) % 512 == 0
