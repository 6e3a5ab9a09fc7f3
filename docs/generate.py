"""Writes the pages of the documentation that come from the code, and the parts of others that do.

    python docs/generate.py            writes them
    python docs/generate.py --check    exits with 1 when a page is not what the code says

A page is a function that returns its text, or a hand-written file with markers around what
`parts.py` fills in; a test runs the check.
"""

from __future__ import annotations

import difflib
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import parts

DOCS = Path(__file__).parent


def _cli() -> str:
    from holdfast.cli.reference import render_reference

    return render_reference()


def _configuration() -> str:
    from holdfast.kernel.reference import installed_options, render_reference

    return render_reference(installed_options())


PAGES: Mapping[str, Callable[[], str]] = {
    "cli.md": _cli,
    "configuration.md": _configuration,
}


def _texts() -> Iterator[tuple[str, str]]:
    for name, make in PAGES.items():
        yield name, make()
    for path in parts.pages():
        yield path.name, parts.filled(path.read_text(encoding="utf-8"))


def main(arguments: list[str]) -> int:
    """Write all pages, or with `--check` compare them; return the exit code."""
    check = "--check" in arguments
    stale = False
    for name, made in _texts():
        path, text = DOCS / name, made.rstrip() + "\n"
        old = path.read_text(encoding="utf-8") if path.exists() else ""
        if old == text:
            continue
        if not check:
            path.write_text(text, encoding="utf-8")
            sys.stdout.write(f"wrote {path}\n")
            continue
        stale = True
        there, here = f"{name} as it is", f"{name} as the code says"
        diff = difflib.unified_diff(old.splitlines(), text.splitlines(), there, here, lineterm="")
        sys.stderr.write("\n".join(list(diff)[:40]) + "\n")
    if stale:
        sys.stderr.write("Run `python docs/generate.py`.\n")
    return int(stale)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
