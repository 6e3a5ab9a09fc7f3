from __future__ import annotations

import mmap

import pytest
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast.errors import UsageError
from holdfast.sync.bitmap import Bitmap
from holdfast.sync.hashlist import (
    FANOUT,
    HASH_BYTES,
    LEVEL_MAX,
    ZERO_HASH,
    HashBuffer,
    HashList,
    chunk_hash,
    nodes_at,
    parse_key,
    top_level,
)
from holdfast.units import CHUNK_BYTES

KEY = bytes(range(32))


def make(chunks: int, buffer: HashBuffer | None = None) -> HashList:
    buffer = bytearray(chunks * HASH_BYTES) if buffer is None else buffer
    return HashList(buffer, Bitmap(chunks), chunks=chunks, key=KEY)


def some_hash(seed: int) -> bytes:
    return blake3(seed.to_bytes(8, "little")).digest(HASH_BYTES) if seed else ZERO_HASH


def plain_node(hashes: dict[int, bytes], level: int, index: int) -> bytes:
    """The definition of the tree, written down as plainly as it can be."""
    if level == 0:
        return hashes.get(index, ZERO_HASH)
    children = b"".join(
        plain_node(hashes, level - 1, i) for i in range(index * FANOUT, (index + 1) * FANOUT)
    )
    return blake3(children, key=KEY).digest(HASH_BYTES) if any(children) else ZERO_HASH


def test_a_chunk_of_zeros_has_the_zero_hash_and_no_other_has() -> None:
    assert chunk_hash(bytes(CHUNK_BYTES), KEY) == ZERO_HASH
    data = bytes(CHUNK_BYTES - 1) + b"\1"
    assert chunk_hash(data, KEY) == blake3(data, key=KEY).digest(16)


def test_a_short_last_chunk_is_hashed_as_padded_with_zeros() -> None:
    assert chunk_hash(b"x" * 512, KEY) == chunk_hash(b"x" * 512 + bytes(CHUNK_BYTES - 512), KEY)
    assert chunk_hash(memoryview(bytes(512)), KEY) == ZERO_HASH


def test_another_key_gives_another_hash() -> None:
    assert chunk_hash(b"x" * 512, KEY) != chunk_hash(b"x" * 512, bytes(32))


def test_a_key_that_is_none_is_refused() -> None:
    assert parse_key("00" * 32) == bytes(32)
    for wrong in ("", "00" * 31, "zz" * 32):
        with pytest.raises(UsageError, match="64 hexadecimal"):
            parse_key(wrong)


def test_counts_of_nodes() -> None:
    assert [top_level(n) for n in (1, 2, 256, 257, 65536, 65537, 1 << 24)] == [0, 1, 1, 2, 2, 3, 3]
    assert nodes_at(1, 257) == 2


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 700),
    st.lists(
        st.one_of(
            st.tuples(st.just("put"), st.integers(0, 699), st.integers(0, 5)),
            st.tuples(st.just("ask"), st.integers(0, 699), st.integers(0, LEVEL_MAX - 1)),
            st.tuples(st.just("grow"), st.integers(0, 300), st.just(0)),
        ),
        max_size=30,
    ),
)
def test_the_cached_tree_is_the_plain_tree(chunks: int, steps: list[tuple[str, int, int]]) -> None:
    tree = make(chunks)
    plain: dict[int, bytes] = {}
    for step, number, detail in steps:
        if step == "put":
            tree.put(number % tree.chunks, some_hash(detail))
            plain[number % tree.chunks] = some_hash(detail)
        elif step == "ask":
            level = min(detail, 2)
            index = number >> (8 * level)
            assert tree.nodes(level, [index]) == plain_node(plain, level, index)
        else:
            grown = tree.chunks + number
            buffer = bytearray(b"".join(plain.get(i, ZERO_HASH) for i in range(grown)))
            tree.resize(buffer, grown)
    assert tree.nodes(2, [0]) == plain_node(plain, 2, 0)


def test_one_changed_chunk_changes_the_path_to_the_root_and_nothing_else() -> None:
    tree = make(1000)
    for chunk in range(0, 1000, 7):
        tree.put(chunk, some_hash(chunk + 1))
    before = tree.nodes(1, range(4)), tree.nodes(2, [0])
    tree.put(300, some_hash(99))
    after = tree.nodes(1, range(4)), tree.nodes(2, [0])
    assert after[1] != before[1]
    assert [i for i in range(4) if after[0][i * 16 :][:16] != before[0][i * 16 :][:16]] == [1]


def test_putting_makes_fresh_and_stale_ones_are_found_below_a_node() -> None:
    tree = make(1000)
    tree.stale.set_range(250, 10)
    tree.stale.set_range(900, 1)
    assert list(tree.stale_below(1, 0)) == [(250, 6)]
    assert list(tree.stale_below(2, 0)) == [(250, 10), (900, 1)]
    tree.put_run(250, some_hash(1) * 10)
    assert list(tree.stale) == [900]


def test_trees_over_volumes_of_different_size_agree_where_the_rest_is_zeros() -> None:
    small, large = make(3), make(70_000)
    for tree in (small, large):
        tree.put(2, some_hash(7))
    for level in range(LEVEL_MAX + 1):
        assert small.nodes(level, [0, 1]) == large.nodes(level, [0, 1])
    assert small.nodes(0, [2, 3, 1 << 29]) == some_hash(7) + ZERO_HASH * 2


def test_an_unchanged_value_is_not_written_so_that_holes_stay() -> None:
    class Recording(bytearray):
        def __setitem__(self, where: object, value: object) -> None:
            raise AssertionError("written")

    tree = make(10, Recording(160))
    tree.stale.set_range(4)
    tree.put(4, ZERO_HASH)
    assert not tree.stale.any()


def test_an_mmap_serves_as_buffer() -> None:
    with mmap.mmap(-1, 4096) as memory:
        tree = make(256, memory)
        tree.put(255, some_hash(3))
        assert memory[-16:] == some_hash(3)
        assert tree.nodes(1, [0]) == plain_node({255: some_hash(3)}, 1, 0)


def test_a_quarter_of_a_terabyte_of_nothing_costs_one_look_per_group() -> None:
    tree = make(1 << 22, mmap.mmap(-1, 1 << 26))
    assert tree.nodes(3, [0]) == ZERO_HASH
