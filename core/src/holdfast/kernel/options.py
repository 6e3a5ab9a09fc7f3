"""Options: attrs classes that declare what may be configured, and the strict way to fill them.

Every section of the configuration and every driver's `Options` is an attrs class. A field's type
says what a value must be: `str`, `int`, `float`, `bool`, `list[str]` or `tuple[str, ...]`,
`dict[str, str]` or `Mapping[str, str]`, an `enum.Enum`, a `Literal`, or one of these or None. Its
metadata says the rest, each key optional:

- `doc`: a sentence for the reference;
- `unit`: `s` or `bytes`, if the name does not say it as `timeout_s` and `frame_bytes_max` do; a
  whole number of bytes may also be written as `"512MiB"`;
- `choices`: the values there are;
- `min` and `max`: inclusive limits of a number;
- `path`: True if it is a file name, which then counts from the configuration file's folder;
- `secret`: True if no listing may show it.

The string under a field serves as `doc` too, and attrs' own validators `in_`, `ge`, `le`, `gt` and
`lt` as choices and limits. Whatever else must hold, other validators say. This module does not know
which sections there are.
"""

from __future__ import annotations

import contextlib
import difflib
import enum
import math
import re
import typing
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import attrs

from holdfast.errors import ConfigError, UsageError
from holdfast.kernel.schema import (
    HOLDS,
    bounds_of,
    choices_of,
    doc_of,
    fields_of,
    limits_of,
    listed,
    plain,
    type_words,
    unit_of,
    without_none,
)
from holdfast.units import parse_size

T = TypeVar("T")

_HIDDEN = "(hidden)"


@attrs.frozen
class Where:
    """Where a value was written, so that an error can say it."""

    source: str
    """A file name, or `--set`."""
    path: str = ""
    """Keys from the root, joined by dots."""
    lines: Mapping[str, int] = attrs.field(factory=dict, repr=False)
    """Key path to line, for the whole source; may be empty."""
    folder: str = ""
    """What relative file names count from; empty leaves them relative."""

    def key(self, name: str) -> Where:
        """Return the place of `name` under this one."""
        return attrs.evolve(self, path=f"{self.path}.{name}" if self.path else name)

    @property
    def origin(self) -> str:
        """The source, with the line of this key or of the table that it would stand in."""
        path = self.path
        while path not in self.lines and path:
            path = path.rpartition(".")[0]
        return f"{self.source}:{self.lines[path]}" if path else self.source

    def __str__(self) -> str:
        """Return `n1.toml:12: transport.tcp.port`."""
        return f"{self.origin}: {self.path}" if self.path else self.origin


def options_from_mapping(cls: type[T], mapping: Mapping[str, Any], *, where: Where | str) -> T:
    """Return a `cls` filled from `mapping`; what is missing takes its default.

    Args:
        cls: An attrs class as this module describes.
        mapping: Keys to values as TOML or JSON has them; nothing is converted but whole numbers to
            floats, size strings to bytes, and words to enums.
        where: The place of the mapping, for errors.

    Raises:
        ConfigError: An unknown key, a wrong type, an impossible value or a missing key; names the
            place, the value, and the nearest right spelling.
    """
    place = where if isinstance(where, Where) else Where(where)
    values = _checked_values(cls, mapping, place)
    for key, field in fields_of(cls).items():
        if key not in values and field.default is attrs.NOTHING:
            raise ConfigError(f"{place.key(key)} is missing.", hint=doc_of(cls, field))
    arguments = {
        field.alias or field.name: values[key]
        for key, field in fields_of(cls).items()
        if key in values
    }
    try:
        return cls(**arguments)
    except (ValueError, TypeError) as error:
        # attrs' own validators begin with the field's name, and put objects behind their sentence.
        sentence = str(error.args[0]) if error.args else str(error)
        culprit = re.match(r"'(\w+)'", sentence)
        at = place.key(culprit[1]) if culprit and culprit[1] in fields_of(cls) else place
        raise ConfigError(f"{at}: {sentence.rstrip('.')}.") from error


def checked_mapping(
    cls: type[Any], mapping: Mapping[str, Any], *, where: Where | str
) -> dict[str, Any]:
    """Return `mapping`, checked key by key, for values that others will be added to.

    Raises:
        ConfigError: As `options_from_mapping`, except that no key is missed.
    """
    place = where if isinstance(where, Where) else Where(where)
    return {key: plain(value) for key, value in _checked_values(cls, mapping, place).items()}


def options_from_strings(
    cls: type[T], mapping: Mapping[str, Any], *, where: Where | str = "--set"
) -> T:
    """Return a `cls` filled from words as typed on a command line, such as `{"grace_s": "4"}`.

    Lists are written `a,b`, dicts `k=v,k=v`, booleans `true` or `false`, and nothing `none`. Values
    that are no strings are taken as they are, so that JSON may be mixed in.

    Raises:
        ConfigError: As `options_from_mapping`.
    """
    place = where if isinstance(where, Where) else Where(where)
    fields = fields_of(cls)
    hints = typing.get_type_hints(cls)
    values: dict[str, Any] = {}
    for key, text in mapping.items():
        if key not in fields:
            raise unknown_key(key, fields, place)
        field = fields[key]
        values[key] = (
            _from_text(text, hints[field.name], place.key(key)) if isinstance(text, str) else text
        )
    return options_from_mapping(cls, values, where=place)


def options_to_mapping(options: Any, *, secrets: bool = True) -> dict[str, Any]:
    """Return the values in `options` as JSON has them; the inverse of `options_from_mapping`.

    Args:
        options: An instance of an attrs class as this module describes.
        secrets: False puts `(hidden)` in place of what is secret.
    """
    return {
        key: _HIDDEN
        if field.metadata.get("secret") and not secrets
        else plain(getattr(options, field.name))
        for key, field in fields_of(type(options)).items()
    }


@contextlib.contextmanager
def asked_for() -> Iterator[None]:
    """Make what is wrong with options a `UsageError`: they stand in a request and in no file."""
    try:
        yield
    except ConfigError as error:
        raise UsageError(error.message, hint=error.hint) from error


def unknown_key(key: str, known: Collection[str], where: Where) -> ConfigError:
    """Return the error for a key that `where` does not have, with the nearest right spelling."""
    # Hyphens for underscores are the commonest slip, and too short a word for difflib's threshold.
    nearest = difflib.get_close_matches(key.replace("-", "_"), known, n=1)
    if nearest:
        hint = f"Did you mean {nearest[0]!r}?"
    elif known:
        hint = f"It may be one of {', '.join(sorted(known))}."
    else:
        hint = "Nothing can be configured here."
    return ConfigError(f"{where.key(key)} is not a known option.", hint=hint)


def _checked_values(cls: type[Any], mapping: Mapping[str, Any], where: Where) -> dict[str, Any]:
    fields = fields_of(cls)
    hints = typing.get_type_hints(cls)
    for key in mapping:
        if key not in fields:
            raise unknown_key(key, fields, where)
    return {
        key: _checked(value, hints[fields[key].name], fields[key], where.key(key))
        for key, value in mapping.items()
    }


def _checked(value: Any, hint: Any, field: attrs.Attribute[Any], where: Where) -> Any:
    """Return `value` as `hint` and `field` want it, or raise `ConfigError`."""
    hint, optional = without_none(hint)
    if value is None and optional:
        return None
    result = _typed(value, hint, field, where)
    choices = choices_of(hint, field)
    if choices and not isinstance(result, enum.Enum) and result not in choices:
        raise _not_a_choice(value, choices, where)
    if type(result) in {int, float}:
        if not all(HOLDS[sign](result, bound) for sign, bound in bounds_of(field)):
            raise ConfigError(f"{where} is {_shown(value, field)}; it must be {limits_of(field)}.")
    elif field.metadata.get("path") and where.folder:
        return _rooted(result, where.folder)
    return result


def _typed(value: Any, hint: Any, field: attrs.Attribute[Any], where: Where) -> Any:
    origin = typing.get_origin(hint) or hint
    if isinstance(origin, type) and issubclass(origin, enum.Enum):
        choices = [member.value for member in origin]
        if value in choices:
            return origin(value)
        raise _not_a_choice(value, choices, where)
    if origin is typing.Literal:
        return value  # The caller compares it with the choices.
    if origin is int and unit_of(field) == "bytes" and isinstance(value, str):
        try:
            return parse_size(value)
        except ValueError as error:
            raise ConfigError(f"{where}: {error}.") from error
    if origin in {str, bool, int}:
        if type(value) is origin:
            return value
    elif origin is float:
        if type(value) in {int, float} and math.isfinite(value):
            return float(value)
    elif origin in {list, tuple}:
        if isinstance(value, list | tuple) and all(isinstance(item, str) for item in value):
            return origin(value)
    elif isinstance(value, Mapping) and all(
        isinstance(word, str) for pair in value.items() for word in pair
    ):
        return dict(value)
    wanted = {"boolean": "true or false"}.get(type_words(hint), f"a {type_words(hint)}")
    raise ConfigError(f"{where} is {_shown(value, field)}; it must be {wanted}.")


def _from_text(text: str, hint: Any, where: Where) -> Any:
    """Return what `text` says, as TOML would have had it; leave what it cannot to `_checked`."""
    hint, optional = without_none(hint)
    if optional and text.lower() in {"none", "null", ""}:
        return None
    origin = typing.get_origin(hint) or hint
    if origin is bool:
        return {
            "true": True,
            "yes": True,
            "on": True,
            "false": False,
            "no": False,
            "off": False,
        }.get(text.lower(), text)
    if origin in {int, float}:
        try:
            return origin(text)
        except ValueError:
            return text
    words = [word.strip() for word in text.split(",") if word.strip()]
    if origin in {list, tuple}:
        return words
    if origin is dict or (isinstance(origin, type) and issubclass(origin, Mapping)):
        for word in words:
            if "=" not in word:
                raise ConfigError(
                    f"{where}: {word!r} has no '='.", hint="Write key=value,key=value."
                )
        return {key.strip(): value.strip() for key, _, value in (w.partition("=") for w in words)}
    return text


def _not_a_choice(value: Any, choices: Collection[Any], where: Where) -> ConfigError:
    nearest = difflib.get_close_matches(str(value), list(map(str, choices)), n=1)
    guess = f"Did you mean {nearest[0]!r}? " if nearest else ""
    return ConfigError(
        f"{where} is {value!r}, which is not a choice.",
        hint=f"{guess}It may be one of {listed(choices)}.",
    )


def _rooted(value: Any, folder: str) -> Any:
    if isinstance(value, str):
        return str(Path(folder, value)) if value else value
    return type(value)(_rooted(item, folder) for item in value)


def _shown(value: Any, field: attrs.Attribute[Any]) -> str:
    if field.metadata.get("secret"):
        return _HIDDEN
    # As TOML writes it, for that is what the operator has before the eyes.
    return str(value).lower() if isinstance(value, bool) else repr(value)
