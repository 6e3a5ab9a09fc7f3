"""Read TOML and remember the line of every key, which `tomllib` forgets.

A statement of TOML ends at a line's end, and until then what there is of it does not parse. So
lines are gathered until `tomllib` accepts them: its grammar decides, and this module has none of
its own.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping
from typing import Any

from holdfast.errors import ConfigError


def parse(text: str, source: str) -> tuple[dict[str, Any], Mapping[str, int]]:
    """Return the content of `text`, and the line of each table and key by dotted path.

    Args:
        text: TOML.
        source: The file's name, for errors.

    Raises:
        ConfigError: It is not TOML; names the line.
    """
    try:
        content = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{source} is not valid TOML: {error}.") from error
    except RecursionError:
        raise ConfigError(f"{source} is nested too deeply to be a configuration.") from None
    return content, _lines(text)


def _lines(text: str) -> dict[str, int]:
    lines: dict[str, int] = {}
    table = ""
    for number, statement, content in _statements(text):
        is_header = statement.lstrip().startswith("[")
        for path in _paths(content, "" if is_header else table):
            lines.setdefault(path, number)
            if is_header:
                table = path  # The last path of a header is the deepest.
    return lines


def _statements(text: str) -> Iterator[tuple[int, str, dict[str, Any]]]:
    """Yield first line, text and content of each statement of a valid TOML text."""
    begun, gathered = 0, ""
    for number, line in enumerate(text.splitlines(keepends=True), start=1):
        begun = begun if gathered else number
        gathered += line
        try:
            content = tomllib.loads(gathered)
        except tomllib.TOMLDecodeError:
            continue
        yield begun, gathered, content
        gathered = ""


def _paths(content: Any, above: str) -> Iterator[str]:
    """Yield the dotted path of every key in `content`, a table before what is in it."""
    if not isinstance(content, dict):
        return
    for key, value in content.items():
        path = f"{above}.{key}" if above else key
        yield path
        yield from _paths(value[-1] if isinstance(value, list) and value else value, path)
