from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Any, Literal

import attrs
import pytest
from attrs.validators import and_, ge, in_, le, lt, optional
from hypothesis import given
from hypothesis import strategies as st

from holdfast.errors import ConfigError
from holdfast.kernel.options import (
    Where,
    checked_mapping,
    options_from_mapping,
    options_from_strings,
    options_to_mapping,
)
from holdfast.kernel.schema import OptionInfo, describe_options, listed

WHERE = Where("n1.toml", "transport.x", {"transport.x.port": 7, "transport.x": 5})


class Speed(enum.Enum):
    SLOW = "slow"
    FAST = "fast"


@attrs.frozen
class Options:
    port: int = attrs.field(validator=and_(ge(1), le(65535)))
    """Where to listen"""
    host: str = "localhost"
    ratio: float = attrs.field(default=0.5, validator=lt(1))
    on: bool = False
    names: list[str] = attrs.field(factory=list)
    pair: tuple[str, ...] = ()
    labels: dict[str, str] = attrs.field(factory=dict)
    more: Mapping[str, str] = attrs.field(factory=dict)
    speed: Speed = Speed.SLOW
    colour: Literal["red", "green"] = "red"
    shape: str = attrs.field(default="round", validator=in_(("round", "square")))
    size: str = attrs.field(default="s", metadata={"choices": ("s", "m"), "doc": "Fits all."})
    buffer_bytes: int = 4096
    wait_s: float | None = attrs.field(default=None, validator=optional(ge(0)))
    files: tuple[str, ...] = attrs.field(default=(), metadata={"path": True})
    token: str = attrs.field(default="", metadata={"secret": True})


def read(**values: Any) -> Options:
    return options_from_mapping(Options, {"port": 1} | values, where=WHERE)


def test_what_is_missing_takes_its_default() -> None:
    assert read() == Options(port=1)


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("ratio", 0, 0.0),
        ("names", ["a", "b"], ["a", "b"]),
        ("pair", ["a", "b"], ("a", "b")),
        ("labels", {"zone": "z1"}, {"zone": "z1"}),
        ("more", {"zone": "z1"}, {"zone": "z1"}),
        ("speed", "fast", Speed.FAST),
        ("colour", "green", "green"),
        ("buffer_bytes", "512MiB", 512 << 20),
        ("wait_s", None, None),
        ("wait_s", 3, 3.0),
    ],
)
def test_values_take_the_type_that_is_declared(key: str, value: Any, expected: Any) -> None:
    result = getattr(read(**{key: value}), key)
    assert result == expected
    assert type(result) is type(expected)


@pytest.mark.parametrize(
    ("key", "value", "sentence"),
    [
        ("port", True, "transport.x.port is true; it must be a whole number."),
        ("port", 1.0, "is 1.0; it must be a whole number."),
        ("port", "80", "is '80'; it must be a whole number."),
        ("port", 0, "n1.toml:7: transport.x.port is 0; it must be 1 to 65 535."),
        ("host", 3, "must be a string"),
        ("ratio", True, "must be a number"),
        ("ratio", float("nan"), "must be a number"),
        ("ratio", float("inf"), "must be a number"),
        ("ratio", 1.5, "it must be less than 1."),
        ("on", 1, "is 1; it must be true or false."),
        ("names", "a", "must be a list of strings"),
        ("names", ["a", 1], "must be a list of strings"),
        ("labels", {"a": 1}, "must be a table of strings"),
        ("labels", [], "must be a table of strings"),
        ("speed", "fats", "Did you mean 'fast'? It may be one of slow, fast."),
        ("speed", 1, "is not a choice"),
        ("colour", "gren", "Did you mean 'green'?"),
        ("shape", "sqare", "Did you mean 'square'? It may be one of round, square."),
        ("size", "xl", "It may be one of s, m."),
        ("buffer_bytes", "lots", "'lots' is not a size"),
        ("wait_s", -1, "it must be at least 0."),
        ("prot", 80, "transport.x.prot is not a known option. Did you mean 'port'?"),
        ("buffer-bytes", 80, "Did you mean 'buffer_bytes'?"),
        ("zzz", 80, "It may be one of buffer_bytes, colour"),
        ("token", 80, "transport.x.token is (hidden); it must be a string."),
    ],
)
def test_what_is_wrong_is_refused_with_place_value_and_remedy(
    key: str, value: Any, sentence: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        read(**{key: value})
    assert sentence in str(caught.value)
    assert str(caught.value).startswith("n1.toml:")


def test_a_missing_key_is_told_with_what_it_is_for_and_where_it_belongs() -> None:
    with pytest.raises(ConfigError) as caught:
        options_from_mapping(Options, {}, where="--set")
    assert str(caught.value) == "--set: port is missing. Where to listen."
    with pytest.raises(ConfigError, match=r"^n1\.toml:5: t\.port"):
        options_from_mapping(Options, {}, where=Where("n1.toml", "t", {"t": 5}))


def test_a_validator_of_ones_own_is_told_as_a_sentence() -> None:
    @attrs.frozen
    class Range:
        low: int = 0
        high: int = 1

        def __attrs_post_init__(self) -> None:
            if self.low > self.high:
                raise ValueError("'low' is above high")

    with pytest.raises(ConfigError) as caught:
        options_from_mapping(Range, {"low": 2}, where=Where("f", "r"))
    assert str(caught.value) == "f: r.low: 'low' is above high."


def test_relative_file_names_count_from_the_files_folder() -> None:
    where = Where("n1.toml", folder="/etc/holdfast")
    options = options_from_mapping(Options, {"port": 1, "files": ["a", "/b"]}, where=where)
    assert options.files == ("/etc/holdfast/a", "/b")


def test_a_part_of_the_options_can_be_checked_alone() -> None:
    assert checked_mapping(Options, {"speed": "fast"}, where=WHERE) == {"speed": "fast"}
    with pytest.raises(ConfigError, match="Did you mean 'speed'"):
        checked_mapping(Options, {"spede": "fast"}, where=WHERE)


@pytest.mark.parametrize(
    ("key", "text", "expected"),
    [
        ("port", "80", 80),
        ("ratio", "0.25", 0.25),
        ("on", "yes", True),
        ("on", "False", False),
        ("names", "a, b,", ["a", "b"]),
        ("labels", "zone=z1, rack=r2", {"zone": "z1", "rack": "r2"}),
        ("speed", "fast", Speed.FAST),
        ("buffer_bytes", "4KiB", 4096),
        ("buffer_bytes", "4096", 4096),
        ("wait_s", "none", None),
        ("wait_s", "2", 2.0),
        ("wait_s", 2.5, 2.5),
        ("host", "none", "none"),
    ],
)
def test_words_of_a_command_line_take_the_type_that_is_declared(
    key: str, text: Any, expected: Any
) -> None:
    options = options_from_strings(Options, {"port": "1"} | {key: text})
    assert getattr(options, key) == expected


@pytest.mark.parametrize(
    ("key", "text", "sentence"),
    [
        ("port", "many", "--set: port is 'many'; it must be a whole number."),
        ("on", "maybe", "it must be true or false"),
        ("labels", "zone", "'zone' has no '='"),
        ("prot", "1", "Did you mean 'port'?"),
    ],
)
def test_words_that_make_no_sense_are_refused(key: str, text: str, sentence: str) -> None:
    with pytest.raises(ConfigError) as caught:
        options_from_strings(Options, {"port": "1"} | {key: text})
    assert sentence in str(caught.value)


def test_secrets_are_hidden_from_listings_only() -> None:
    options = read(token="t0p")  # noqa: S106 - a token for a test.
    assert options_to_mapping(options)["token"] == "t0p"  # noqa: S105
    assert options_to_mapping(options, secrets=False)["token"] == "(hidden)"  # noqa: S105


@given(
    st.builds(
        Options,
        port=st.integers(1, 65535),
        host=st.text(),
        ratio=st.floats(max_value=0.9, allow_nan=False, allow_infinity=False),
        on=st.booleans(),
        names=st.lists(st.text()),
        pair=st.lists(st.text()).map(tuple),
        labels=st.dictionaries(st.text(), st.text()),
        speed=st.sampled_from(Speed),
        wait_s=st.none() | st.floats(0, 1e9),
    )
)
def test_options_survive_the_way_through_json(options: Options) -> None:
    assert options_from_mapping(Options, options_to_mapping(options), where=WHERE) == options


def test_a_class_describes_itself() -> None:
    infos = {info.name: info for info in describe_options(Options)}
    assert list(infos) == [field.name for field in attrs.fields(Options)]
    assert infos["port"] == OptionInfo(
        "port", "whole number", True, None, doc="Where to listen.", limits="1 to 65 535"
    )
    assert infos["wait_s"] == OptionInfo(
        "wait_s", "number or none", False, None, unit="s", limits="at least 0"
    )
    assert infos["buffer_bytes"].unit == "bytes"
    assert infos["speed"].default == "slow"
    assert infos["speed"].choices == ("slow", "fast")
    assert infos["size"].doc == "Fits all."
    assert infos["token"].secret


def test_many_choices_are_named_by_the_first_and_the_last() -> None:
    assert listed(["a", "b"], "`") == "`a`, `b`"
    assert listed(range(1, 129)) == "1, 2, …, 128"
