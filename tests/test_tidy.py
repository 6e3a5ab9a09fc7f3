"""The house rules that no tool checks: lengths, leftovers, docstrings, words, dead modules.

A limit may be passed with a reason in one of the tables below; a reason that is no longer needed is a
failure too, so the tables only hold what is true.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("core", "plugins", "tests", "docs", "benchmarks")
TEXTS = [
    *(ROOT / name for name in ("pyproject.toml", "conftest.py", "README.md")),
    *sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")),
    *sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.md")),
    *sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.toml")),
]
PYTHON = [path for path in TEXTS if path.suffix == ".py"]
SOURCES = [path for path in PYTHON if {"src", "tests"} & {*path.relative_to(ROOT).parts} == {"src"}]

LINE_CHARACTERS_MAX = 110
"""The formatter breaks code at 100; a sentence may need a word more than that."""
MODULE_LINES_MAX = 450
FUNCTION_LINES_MAX = 70

LONG_MODULES: Mapping[str, str] = {
    "core/src/holdfast/messages.py": "One list of all messages; no logic.",
    "core/src/holdfast/sync/events.py": "One list of all events and effects; no logic.",
    "core/src/holdfast/testing/simulation/node.py": "A node carries out every effect.",
    "core/src/holdfast/testing/simulation/pump.py": "A pump carries out every effect.",
}
"""Path to the reason why it stays in one piece."""
LONG_FUNCTIONS: Mapping[str, str] = {}
"""`path:name` to the reason why it stays in one piece."""

# Put together so that this file does not find itself.
MARKERS = re.compile(r"\b(" + "|".join(["TO" + "DO", "FIX" + "ME", "X" * 3, "HA" + "CK"]) + r")\b")
SYNONYMS = re.compile(r"\b(mas" + "ter|sla" + r"ve|lea" + r"der)s?\b", re.IGNORECASE)
"""Other people's words for what is called primary and replica here."""
PLACES = re.compile(r"(?<![\w.])/(?:root|home/\w+|work|opt/\w*venv)/")
"""Folders of one machine or another."""


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def lines_of(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines()


def test_the_rules_have_something_to_look_at() -> None:
    assert len(SOURCES) > 50
    assert len(PYTHON) > len(SOURCES) + 20


def test_no_line_runs_off_the_page() -> None:
    long = [
        f"{name_of(path)}:{number} has {len(line)} characters"
        for path in PYTHON
        for number, line in enumerate(lines_of(path), start=1)
        # What a tool is told at the end of a line cannot stand anywhere else.
        if len(line.partition("  # type: ignore")[0]) > LINE_CHARACTERS_MAX
    ]
    assert not long, "\n".join(long)


@pytest.mark.parametrize("pattern", [MARKERS, PLACES], ids=["markers", "places"])
def test_nothing_is_left_over(pattern: re.Pattern[str]) -> None:
    found = [
        f"{name_of(path)}:{number}: {line.strip()}"
        for path in TEXTS
        for number, line in enumerate(lines_of(path), start=1)
        if pattern.search(line)
    ]
    assert not found, "\n".join(found)


def test_one_idea_has_one_word() -> None:
    found = [
        f"{name_of(path)}:{number}: {line.strip()}"
        for path in SOURCES
        for number, line in enumerate(lines_of(path), start=1)
        if SYNONYMS.search(line)
    ]
    assert not found, "\n".join(found)


def test_modules_are_short_or_say_why_not() -> None:
    long = {
        name_of(path): len(lines_of(path))
        for path in SOURCES
        if len(lines_of(path)) > MODULE_LINES_MAX
    }
    assert long.keys() == LONG_MODULES.keys(), long


def functions(path: Path) -> dict[str, int]:
    """Return the lines of each function of a file without its docstring, by `path:name`."""
    found = {}
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            first, last = node.lineno, node.end_lineno or node.lineno
            lines = last - first + 1
            if ast.get_docstring(node) is not None:
                text = node.body[0]
                lines -= (text.end_lineno or text.lineno) - text.lineno + 1
            found[f"{name_of(path)}:{node.name}"] = lines
    return found


def test_functions_are_short_or_say_why_not() -> None:
    long = {
        name: lines
        for path in PYTHON
        for name, lines in functions(path).items()
        if lines > FUNCTION_LINES_MAX
    }
    assert long.keys() == LONG_FUNCTIONS.keys(), long


def test_every_reason_is_one() -> None:
    for reason in (*LONG_MODULES.values(), *LONG_FUNCTIONS.values()):
        assert reason.endswith(".")


def test_every_public_module_says_what_it_is_for() -> None:
    silent = [
        name_of(path)
        for path in SOURCES
        if not ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    ]
    assert not silent


def test_no_module_is_dead() -> None:
    everything = "\n".join(path.read_text(encoding="utf-8") for path in TEXTS)
    dead = []
    for path in SOURCES:
        package = path.parts[path.parts.index("src") + 1 :]
        module = ".".join(package).removesuffix(".py")
        if path.stem in {"__init__", "__main__"} or "packaging" in path.parts:
            continue
        above, _, last = module.rpartition(".")
        by_name = re.escape(module) + r"\b"
        from_package = rf"from {re.escape(above)} import (?:\([^)]*|[^\n]*)\b{last}\b"
        if not re.search(f"{by_name}|{from_package}", everything):
            dead.append(module)
    assert not dead
