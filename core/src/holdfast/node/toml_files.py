"""TOML files as plain dicts: read, laid over each other, written; knows no key by name.

The standard library reads TOML but does not write it, and what has to be written here is a page of
strings, numbers and tables.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from holdfast.errors import ConfigError

Settings = dict[str, Any]


def read_toml(path: Path) -> Settings:
    """Return the TOML in `path`.

    Raises:
        ConfigError: It cannot be read or is not TOML; names the line.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}.") from error
    except ValueError as error:
        raise ConfigError(f"{path} is not TOML: {error}.") from error


def toml_text(settings: Mapping[str, Any]) -> str:
    """Return `settings` as TOML: strings, numbers, booleans, arrays of those, and tables."""
    return "\n".join(_table((), settings)).strip() + "\n"


def _table(path: tuple[str, ...], table: Mapping[str, Any]) -> list[str]:
    plain = {key: value for key, value in table.items() if not isinstance(value, Mapping)}
    lines = [f"[{'.'.join(map(_key, path))}]"] if path and (plain or not table) else []
    # JSON's strings, numbers and arrays are TOML's as well.
    lines += [f"{_key(k)} = {json.dumps(v, ensure_ascii=False)}" for k, v in plain.items()]
    if lines:
        lines.append("")
    for key, value in table.items():
        if isinstance(value, Mapping):
            lines += _table((*path, key), value)
    return lines


def _key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else json.dumps(key)


def write_atomically(path: Path, text: str) -> None:
    """Put `text` into `path`, so that a reader or a crash sees the old or the new."""
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def leaves(settings: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Yield the dotted paths of all values that are no tables."""
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


def merged(first: Mapping[str, Any], over: Mapping[str, Any]) -> Settings:
    """Return `first` with `over` laid over it, table by table."""
    result = dict(first)
    for key, value in over.items():
        below = result.get(key)
        both = isinstance(below, Mapping) and isinstance(value, Mapping)
        result[key] = merged(below, value) if both and isinstance(below, Mapping) else value
    return result
