"""The rare messages as compact JSON, checked field by field against their annotations.

A message is cold when it is sent a few times in a link's life or a few times a second; there JSON is
worth more to the person with a packet capture than the microseconds that it costs. Nothing from a
peer becomes a message before each field has exactly the type that the class declares.

Binary fields travel as base64, tuples as arrays. Integers are limited to 64 bits.
"""

from __future__ import annotations

import base64
import json
import types
from collections.abc import Callable
from typing import Any, Union, get_args, get_origin, get_type_hints

import attrs

Check = Callable[[Any], Any]
"""Takes a decoded JSON value, returns the field's value, raises `ValueError`."""

_INT_LIMIT = 1 << 64


class ColdCodec:
    """Turns the messages of one class into JSON and back."""

    def __init__(self, cls: type[Any]) -> None:
        """Derive the checks from the class.

        Args:
            cls: A frozen attrs class whose fields are strings, integers, booleans, floats, bytes,
                tuples of those, or None.
        """
        self._cls = cls
        hints = get_type_hints(cls)
        self._checks: dict[str, Check] = {f.name: _check(hints[f.name]) for f in attrs.fields(cls)}

    def encode(self, message: Any) -> bytes:
        """Return the JSON of `message`; raises `ValueError` for text that is not Unicode."""
        fields = {name: _plain(getattr(message, name)) for name in self._checks}
        return json.dumps(fields, separators=(",", ":"), ensure_ascii=False).encode()

    def decode(self, raw: bytes) -> Any:
        """Return the message in `raw`; raises `ValueError` when it is not exactly one."""
        try:
            fields = json.loads(raw, parse_constant=_no_constant)
        except RecursionError:
            raise ValueError("JSON nested too deeply") from None
        if not isinstance(fields, dict) or fields.keys() != self._checks.keys():
            raise ValueError(f"the fields are not those of {self._cls.__name__}")
        return self._cls(**{name: check(fields[name]) for name, check in self._checks.items()})


def _plain(value: Any) -> Any:
    if isinstance(value, bytes | bytearray | memoryview):
        return base64.b64encode(value).decode()
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return value


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not a number of JSON")


def _check(hint: Any) -> Check:
    """Return the check for an annotation."""
    while hasattr(hint, "__supertype__"):
        hint = hint.__supertype__
    simple: dict[Any, Check] = {str: _str, int: _int, bool: _bool, float: _float, bytes: _bytes}
    if hint in simple:
        return simple[hint]
    arguments = get_args(hint)
    if get_origin(hint) in {types.UnionType, Union}:
        (inner,) = [_check(a) for a in arguments if a is not types.NoneType]
        return lambda value: None if value is None else inner(value)
    assert get_origin(hint) is tuple, f"no check for {hint}"
    if arguments[-1] is Ellipsis:
        return _list_of(_check(arguments[0]))
    return _tuple_of(tuple(_check(a) for a in arguments))


def _list_of(item: Check) -> Check:
    def check(value: Any) -> tuple[Any, ...]:
        if not isinstance(value, list):
            raise ValueError("an array was expected")  # noqa: TRY004 - one error type here.
        return tuple(map(item, value))

    return check


def _tuple_of(items: tuple[Check, ...]) -> Check:
    def check(value: Any) -> tuple[Any, ...]:
        if not isinstance(value, list) or len(value) != len(items):
            raise ValueError(f"an array of {len(items)} was expected")
        return tuple(one(part) for one, part in zip(items, value, strict=True))

    return check


def _str(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError("a string was expected")  # noqa: TRY004
    value.encode()  # A lone surrogate would break whoever logs it; it is a ValueError here.
    return value


def _int(value: Any) -> int:
    if type(value) is not int or not -_INT_LIMIT < value < _INT_LIMIT:
        raise ValueError("an integer of 64 bits was expected")
    return value


def _bool(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError("true or false was expected")  # noqa: TRY004
    return value


def _float(value: Any) -> float:
    if type(value) is int:
        return float(_int(value))
    if not isinstance(value, float) or value in {float("inf"), float("-inf")}:
        raise ValueError("a number was expected")
    return value


def _bytes(value: Any) -> bytes:
    return base64.b64decode(_str(value), validate=True)
