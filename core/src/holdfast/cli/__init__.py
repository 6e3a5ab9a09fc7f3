"""The command line; all text that people read is in this package.

Only `main` is imported from outside, and it imports the rest when called: a node started by
`holdfast node run` must not carry tables and progress bars in its memory.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the `holdfast` command and exit with its code; never shows a traceback."""
    from holdfast.cli.app import run

    sys.exit(run(sys.argv[1:] if arguments is None else list(arguments)))
