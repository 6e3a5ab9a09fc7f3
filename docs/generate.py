"""Writes the pages of the documentation that come from the code.

    python docs/generate.py            writes them
    python docs/generate.py --check    exits with 1 when a page is not what the code says

A page is a function that returns its text; a test runs the check.
"""

from __future__ import annotations

import difflib
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

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


def main(arguments: list[str]) -> int:
    """Write all pages, or with `--check` compare them; return the exit code."""
    check = "--check" in arguments
    stale = False
    for name, make in PAGES.items():
        path, text = DOCS / name, make().rstrip() + "\n"
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
