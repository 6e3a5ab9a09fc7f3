"""What an attrs class of options declares: keys, types, choices, limits and sentences.

Read from the class alone, so that checking, listing and the printed reference cannot differ. The
rules for such classes are in `options.py`; this module refuses to know any value.
"""

from __future__ import annotations

import ast
import enum
import inspect
import itertools
import operator
import textwrap
import types
import typing
from collections.abc import Callable, Collection, Mapping
from typing import Any

import attrs

LISTED_MAX = 24
"""Choices that a sentence names one by one."""


@attrs.frozen
class OptionInfo:
    """One option, for generated documentation."""

    name: str
    type: str
    """As an operator would say it: `string`, `whole number`, `list of strings`."""
    required: bool
    default: Any
    """None when required."""
    doc: str = ""
    unit: str = ""
    choices: tuple[str, ...] = ()
    limits: str = ""
    """Such as `0 to 5`; empty without limits."""
    secret: bool = False


def describe_options(cls: type[Any]) -> list[OptionInfo]:
    """Return what `cls` declares, in the order of declaration."""
    hints = typing.get_type_hints(cls)
    infos: list[OptionInfo] = []
    for key, field in fields_of(cls).items():
        hint, optional = without_none(hints[field.name])
        required = field.default is attrs.NOTHING
        words = type_words(hint) + (" or none" if optional else "")
        infos.append(
            OptionInfo(
                name=key,
                type=words,
                required=required,
                default=None if required else plain(_default(field)),
                doc=doc_of(cls, field),
                unit=unit_of(field),
                choices=tuple(map(str, choices_of(hint, field))),
                limits=limits_of(field),
                secret=bool(field.metadata.get("secret")),
            )
        )
    return infos


def fields_of(cls: type[Any]) -> dict[str, attrs.Attribute[Any]]:
    """Return the fields that may be configured, by key."""
    return {_key(field): field for field in attrs.fields(cls) if field.init}


def _key(field: attrs.Attribute[Any]) -> str:
    """Return the key of a field: its name, without the underscore that keeps `class_` legal."""
    return field.name.strip("_")


def _default(field: attrs.Attribute[Any]) -> Any:
    default: Any = field.default
    # A factory that needs the instance depends on the other values: there is no one default.
    if isinstance(default, attrs.Factory):  # type: ignore[arg-type]
        return None if default.takes_self else default.factory()
    return default


def unit_of(field: attrs.Attribute[Any]) -> str:
    """Return the unit of a number, from metadata or from a name such as `timeout_s`."""
    if "unit" in field.metadata:
        return str(field.metadata["unit"])
    words = field.name.split("_")
    return next((unit for unit in ("bytes", "s") if unit in words[1:]), "")


def without_none(hint: Any) -> tuple[Any, bool]:
    """Return the type beside None, and whether None was there."""
    if typing.get_origin(hint) in {typing.Union, types.UnionType}:
        rest = [part for part in typing.get_args(hint) if part is not types.NoneType]
        assert len(rest) == 1, f"an option is one type or None, not {hint}"
        return rest[0], True
    return hint, False


def choices_of(hint: Any, field: attrs.Attribute[Any]) -> list[Any]:
    """Return the values there are, from type, metadata or validator; empty if any will do."""
    if typing.get_origin(hint) is typing.Literal:
        return list(typing.get_args(hint))
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return [member.value for member in hint]
    if "choices" in field.metadata:
        return list(field.metadata["choices"])
    for validator in _validators(field):
        if hasattr(validator, "options"):
            return list(validator.options)
    return []


def listed(choices: Collection[Any], quote: str = "") -> str:
    """Return choices for a sentence: all of them, or where there are many the first and the last."""
    words = [f"{quote}{choice}{quote}" for choice in choices]
    if len(words) > LISTED_MAX:
        words = [*words[:2], "…", words[-1]]
    return ", ".join(words)


HOLDS: Mapping[str, Callable[[float, float], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
}
"""Whether a value holds to a bound, by the sign that attrs' validators carry."""


def bounds_of(field: attrs.Attribute[Any]) -> list[tuple[str, float]]:
    """Return the limits of a number as comparison and bound, from metadata and validators."""
    named = {">=": field.metadata.get("min"), "<=": field.metadata.get("max")}
    bounds: list[tuple[str, float]] = [
        (sign, bound) for sign, bound in named.items() if bound is not None
    ]
    for validator in _validators(field):
        sign = getattr(validator, "compare_op", None)
        if isinstance(sign, str) and sign in HOLDS:
            bounds.append((sign, validator.bound))
    return bounds


def _validators(field: attrs.Attribute[Any]) -> list[Any]:
    """Return the field's validators one by one, out of `and_` and `optional`."""
    pending, found = [field.validator], []
    while pending:
        validator: Any = pending.pop()
        inner = getattr(validator, "_validators", None) or getattr(validator, "validator", None)
        if inner is None:
            found.append(validator)
        else:
            pending.extend(inner if isinstance(inner, tuple) else (inner,))
    return found


def limits_of(field: attrs.Attribute[Any]) -> str:
    """Return the limits of a number in words: `0 to 5`, `more than 0`; empty without limits."""
    bounds = dict(sorted(bounds_of(field)))
    if bounds.keys() == {">=", "<="}:
        return f"{_number(bounds['>='])} to {_number(bounds['<='])}"
    words = {">=": "at least", "<=": "at most", ">": "more than", "<": "less than"}
    return " and ".join(f"{words[sign]} {_number(bound)}" for sign, bound in bounds.items())


def _number(value: float) -> str:
    return f"{value:,}".replace(",", " ") if isinstance(value, int) else f"{value:g}"


def doc_of(cls: type[Any], field: attrs.Attribute[Any]) -> str:
    """Return what a field's metadata, or the string under it, says of it; as a sentence."""
    text = field.metadata.get("doc") or _strings_under_fields(cls).get(field.name, "")
    text = " ".join(text.split())
    return text if not text or text.endswith((".", "?", "!")) else f"{text}."


def _strings_under_fields(cls: type[Any]) -> Mapping[str, str]:
    """Return the documentation that stands under each field in the source of `cls`."""
    found: dict[str, str] = {}
    for each in reversed(cls.__mro__[:-1]):
        try:
            tree = ast.parse(textwrap.dedent(inspect.getsource(each)))
        except (OSError, TypeError, SyntaxError):
            continue  # Without its source a class has only its metadata.
        body = tree.body[0].body if isinstance(tree.body[0], ast.ClassDef) else []
        for above, below in itertools.pairwise(body):
            match above, below:
                case (
                    ast.AnnAssign(target=ast.Name(id=name)),
                    ast.Expr(value=ast.Constant(value=str(text))),
                ):
                    found[name] = inspect.cleandoc(text)
    return found


_WORDS = {str: "string", int: "whole number", float: "number", bool: "boolean"}


def type_words(hint: Any) -> str:
    """Return what an operator would call the type; a type that no option has is a bug."""
    origin = typing.get_origin(hint) or hint
    if origin in _WORDS:
        return _WORDS[origin]
    if origin is typing.Literal or (isinstance(origin, type) and issubclass(origin, enum.Enum)):
        return "string"
    if origin in {list, tuple}:
        return "list of strings"
    assert isinstance(origin, type), f"{hint} is not a type of an option"
    assert issubclass(origin, Mapping), f"{hint} is not a type of an option"
    return "table of strings"


def plain(value: Any) -> Any:
    """Return an option's value as JSON has it."""
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, tuple):
        return list(value)
    return dict(value) if isinstance(value, Mapping) else value
