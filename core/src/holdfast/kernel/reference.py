"""The configuration reference, printed from what the sections and the installed drivers declare.

`docs/configuration.md` is this module's output, and a test compares the two.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any

from holdfast.errors import DriverError
from holdfast.kernel import registry
from holdfast.kernel.config import DEFAULT_DRIVERS, DEFAULT_FRONTENDS, FURTHER
from holdfast.kernel.schema import OptionInfo, describe_options, listed
from holdfast.kernel.sections import SECTIONS
from holdfast.units import KIB, format_size

KINDS: tuple[str, ...] = ("state", "transport", "frontend", "replicator", "policy")
"""The kinds of driver that have sections, in the order of the reference."""

_INTRODUCTION = """\
# Configuration

A node reads one TOML file: `holdfast node run --config n1.toml`. `holdfast config check` says
whether a file is right, and `holdfast config show` prints every value in force with the line that
it comes from. What is unknown, of the wrong type or impossible is refused, with file, line, key,
value and the nearest right spelling. File names count from the file's own folder. Sizes in bytes
may be written as `"512MiB"` or `"512M"`; `"512MB"` is 512,000,000 bytes.

This page is generated from the options that the code declares; do not edit it.
"""


def installed_options() -> list[tuple[str, str, type[Any]]]:
    """Return kind, name and options class of every working driver that has a section."""
    found = []
    for kind in KINDS:
        for name in registry.names(kind):
            try:
                cls = getattr(registry.load(kind, name), "Options", None)
            except DriverError:
                continue  # `holdfast plugin list` says why; it has no options to print.
            if cls is not None:
                found.append((kind, name, cls))
    return found


def render_reference(drivers: Iterable[tuple[str, str, type[Any]]]) -> str:
    """Return the reference as Markdown.

    Args:
        drivers: Kind, name and options class of each driver, as `installed_options` returns them.
    """
    parts = [_INTRODUCTION]
    parts.extend(_section(name, cls, "") for name, cls in SECTIONS.items())
    listed = list(drivers)
    for kind in KINDS:
        of_kind = [(name, cls) for each, name, cls in listed if each == kind]
        if kind in DEFAULT_DRIVERS:
            parts.append(_choice(kind, [name for name, _ in of_kind]))
        for name, cls in of_kind:
            enabled = name in DEFAULT_FRONTENDS
            parts.append(_section(f"{kind}.{name}", cls, _NOTES.get(kind, ""), enabled=enabled))
    return "\n".join(parts)


_NOTES = {
    "policy": "What volumes with this policy get unless they say otherwise.\n\n",
    "frontend": "",
    "replicator": "Runs on this node once the section is there; `lockstep` needs none.\n\n",
}

_ALSO = (
    f"| `{FURTHER}` | list of strings | `[]` | Further transports that this node runs, for volumes"
    " that choose them. |\n"
)


def _choice(kind: str, names: list[str]) -> str:
    listed = ", ".join(f"`{name}`" for name in names)
    return (
        f"## `[{kind}]`\n\n| key | type | default | |\n|---|---|---|---|\n"
        f'| `driver` | string | `"{DEFAULT_DRIVERS[kind]}"` | Which {kind} driver is used.'
        f" Installed: {listed}. |\n" + (_ALSO if kind == "transport" else "")
    )


def _section(name: str, cls: type[Any], note: str, *, enabled: bool = False) -> str:
    lines = [f"## `[{name}]`\n", f"{note}| key | type | default | |", "|---|---|---|---|"]
    if name.startswith("frontend."):
        words = "true" if enabled else "true, once the section is there"
        lines.append(f"| `enabled` | boolean | {words} | Whether the frontend runs. |")
    lines.extend(map(_row, describe_options(cls)))
    if len(lines) == 3:
        return f"## `[{name}]`\n\n{note}No options.\n"
    return "\n".join(lines) + "\n"


def _row(info: OptionInfo) -> str:
    default = "required" if info.required else _default(info)
    about = " ".join(_about(info)).replace("|", "\\|")
    return f"| `{info.name}` | {info.type} | {default} | {about} |"


def _default(info: OptionInfo) -> str:
    if info.default is None:
        return "none"
    shown = f"`{json.dumps(info.default, ensure_ascii=False)}`"
    if info.unit == "bytes" and isinstance(info.default, int) and info.default >= KIB:
        return f"{shown} ({format_size(info.default)})"
    return f"{shown} {info.unit}".rstrip()


def _about(info: OptionInfo) -> Iterator[str]:
    if info.doc:
        yield info.doc
    if info.choices:
        yield f"One of {listed(info.choices, '`')}."
    if info.limits:
        yield f"{info.limits[0].upper()}{info.limits[1:]}."
    if info.secret:
        yield "Never shown."
