"""Who may import whom, and that what is listed in several places is the same in all of them.

Sources are parsed, never imported, so a module that breaks the rules cannot hide behind an error.
"""

from __future__ import annotations

import ast
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
CORE = ROOT / "core/src/holdfast"
MEMBERS = [ROOT / "core", *sorted(path.parent for path in ROOT.glob("plugins/*/pyproject.toml"))]

VALUES = {"units", "errors", "model", "messages"}
INWARD = VALUES | {"compiled", "interfaces", "sync"}
ROOMS = {
    "units": set(),
    "errors": set(),
    "model": {"units", "errors"},
    "messages": {"units", "errors", "model"},
    "compiled": set(),
    "op_table": {"compiled", "messages"},
    "interfaces": VALUES,
    "sync": VALUES | {"compiled", "interfaces"},
    "kernel": INWARD,
    "local": INWARD | {"cold"},
    "testing": INWARD,
    "slab": {"units"},
    "cold": set(),
    "heap": set(),
    "sockets": {"units", "interfaces"},
    "node": INWARD | {"kernel", "local", "slab", "sockets", "__version__"},
    # The facade of those who embed Holdfast.
    "api": INWARD | {"kernel", "local", "node"},
    "cli": INWARD | {"kernel", "local", "node", "testing", "api", "__version__"},
    "__init__": VALUES | {"api"},
    "__main__": {"cli"},
}
"""Each room of the core, and the rooms that it may import."""

SANS_IO = {
    *("__future__", "abc", "array", "bisect", "collections", "contextlib", "enum", "errno"),
    *("functools", "hashlib", "heapq", "itertools", "json", "math", "operator", "re", "struct"),
    *("types", "typing", "attrs", "blake3", "holdfast"),
}
"""What rooms without I/O may import. No socket, file, clock, dice, thread or event loop is here."""

PLUGINS_MAY_NOT = ("holdfast.kernel", "holdfast.local", "holdfast.node", "holdfast.cli")


def imported(path: Path) -> Iterator[str]:
    """Yield the dotted name of every module, or name in a module, that a file imports."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def project(member: Path) -> dict[str, Any]:
    content: dict[str, Any] = tomllib.loads((member / "pyproject.toml").read_text())
    return content


def sources(folder: Path) -> list[Path]:
    found = sorted(folder.rglob("*.py"))
    assert found, folder
    return found


def room_of(path: Path) -> str:
    return path.relative_to(CORE).parts[0].removesuffix(".py")


def test_every_room_of_the_core_is_known() -> None:
    assert {room_of(path) for path in sources(CORE)} == ROOMS.keys()


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_what_lies_further_in(room: str) -> None:
    for path in sources(CORE):
        if room_of(path) != room:
            continue
        for name in imported(path):
            parts = name.split(".")
            if parts[0] == "holdfast" and len(parts) > 1 and parts[1] != room:
                assert parts[1] in ROOMS[room], f"{path.relative_to(ROOT)} imports {name}"


@pytest.mark.parametrize("room", ["sync", "interfaces"])
def test_rooms_without_io_import_nothing_that_waits_reads_a_clock_or_rolls_dice(room: str) -> None:
    for path in sources(CORE / room):
        foreign = {name.split(".")[0] for name in imported(path)} - SANS_IO
        assert not foreign, f"{path.relative_to(ROOT)} imports {foreign}"


def test_the_group_protocol_neither_opens_files_nor_waits() -> None:
    for path in sources(CORE / "sync"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            where = f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 0)}"
            assert not isinstance(node, ast.AsyncFunctionDef | ast.Await), f"{where} waits"
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id not in {"open", "print", "input"}, f"{where} does I/O"


def test_the_core_imports_no_plugin() -> None:
    for path in sources(CORE):
        for name in imported(path):
            assert not name.startswith("holdfast_"), f"{path.relative_to(ROOT)} imports {name}"


@pytest.mark.parametrize("plugin", MEMBERS[1:], ids=lambda path: path.name)
def test_a_plugin_imports_the_core_and_itself_only(plugin: Path) -> None:
    own = f"holdfast_{plugin.name}"
    for path in sources(plugin / "src"):
        for name in imported(path):
            where = f"{path.relative_to(ROOT)} imports {name}"
            if name.startswith("holdfast"):
                assert name.split(".")[0] in {"holdfast", own}, where
                assert not name.startswith(PLUGINS_MAY_NOT), where


def test_the_import_rules_see_what_they_forbid(tmp_path: Path) -> None:
    planted = tmp_path / "planted.py"
    planted.write_text("def f():\n    from holdfast.cli import app\n    import socket\n")
    names = list(imported(planted))
    assert names == ["holdfast.cli.app", "socket"]
    assert "cli" not in ROOMS["sync"]
    assert "socket" not in SANS_IO


def test_the_root_lists_are_the_folders() -> None:
    root = project(ROOT)
    folders = [str(member.relative_to(ROOT)) for member in MEMBERS]
    names = [project(member)["project"]["name"] for member in MEMBERS]
    pairs = sorted(zip(names, folders, strict=True))
    dependencies = sorted(root["project"]["dependencies"])
    assert dependencies == sorted(f"{name} @ {{root:uri}}/{folder}" for name, folder in pairs)
    assert sorted(root["tool"]["uv"]["sources"]) == sorted(names)
    packages = {f"{folder}/src" for folder in folders}
    pythonpath = set(root["tool"]["pytest"]["ini_options"]["pythonpath"])
    assert packages <= pythonpath
    assert not {path for path in pythonpath - packages if path.endswith("src")}
    assert packages <= set(root["tool"]["mypy"]["mypy_path"])
    requirements = (ROOT / "tests/requirements.txt").read_text().splitlines()
    editable = {line.split()[1].split("[")[0] for line in requirements if line.startswith("-e")}
    assert editable == {f"./{folder}" for folder in folders}


def test_every_distribution_has_the_same_version_and_python() -> None:
    projects = [project(member)["project"] for member in (ROOT, *MEMBERS)]
    assert len({each["version"] for each in projects}) == 1
    assert len({each["requires-python"] for each in projects}) == 1


@pytest.mark.parametrize("member", MEMBERS, ids=lambda path: path.name)
def test_a_member_is_complete(member: Path) -> None:
    table = project(member)["project"]
    package = "holdfast" if member.name == "core" else f"holdfast_{member.name}"
    expected = "holdfast-core" if member.name == "core" else package.replace("_", "-")
    assert table["name"] == expected
    assert (member / "README.md").is_file()
    assert (member / "src" / package / "py.typed").is_file()
    assert list((member / "tests").glob("test_*.py"))
    if member.name != "core":
        major, minor, _ = project(ROOT / "core")["project"]["version"].split(".")
        wanted = f"holdfast-core>={major}.{minor},<{major}.{int(minor) + 1}"
        assert wanted in table["dependencies"]


def test_every_driver_that_is_declared_loads_under_its_name() -> None:
    from holdfast.kernel import registry

    declared = {
        (group.removeprefix("holdfast."), name)
        for member in MEMBERS
        for group, points in project(member)["project"].get("entry-points", {}).items()
        for name in points
    }
    assert {kind for kind, _ in declared} <= set(registry.KINDS)
    infos = {(info.kind, info.name): info for info in registry.list_drivers()}
    for kind, name in sorted(declared):
        info = infos[kind, name]
        assert info.status is registry.DriverStatus.OK, info
        if kind != "hooks":
            assert registry.load(kind, name).name == name
