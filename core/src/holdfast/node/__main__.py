"""`python -m holdfast.node --config FILE`: `holdfast node run` without the command line around it.

What `holdfast up` starts. A node that lives for months should not carry a dozen megabytes of
argument parsing, nor spend a tenth of a second on importing it. Errors are one JSON line, for the
supervisor.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from holdfast.errors import HoldfastError
from holdfast.node.control_errors import to_json
from holdfast.node.launch import launch


def main() -> int:
    """Run the node named on the command line and return its exit code."""
    parser = argparse.ArgumentParser(prog="python -m holdfast.node", description=__doc__)
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--pid-file", type=Path)
    words = parser.parse_args()
    try:
        return launch(words.config, words.pid_file)
    except HoldfastError as error:
        sys.stderr.write(json.dumps(to_json(error)) + "\n")
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
