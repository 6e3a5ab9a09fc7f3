"""Runs one node from its configuration file: the same for a terminal and for a supervisor."""

from __future__ import annotations

import logging
from pathlib import Path

from holdfast.errors import UnavailableError, UsageError
from holdfast.kernel.config import load_config
from holdfast.node.processes import read_pid, write_pid
from holdfast.node.running import run_node, set_up_logging

_log = logging.getLogger("holdfast.node")


def launch(config: Path, pid_file: Path | None) -> int:
    """Run the node that `config` describes until it is told to stop; return its exit code.

    Args:
        config: The TOML file.
        pid_file: Where the process id stands while the node runs; None: nowhere.

    Raises:
        HoldfastError: It cannot start; says why.
    """
    if not __debug__:
        raise UsageError(
            "Python runs without its checks, some of which guard the data.",
            hint="Start the node without -O, and without PYTHONOPTIMIZE in its environment.",
        )
    loaded = load_config(config)
    set_up_logging(loaded)
    if pid_file is None:
        return run_node(loaded)
    if pid_file.exists() and read_pid(pid_file, argument=str(config)) is None:
        _log.warning("The process before this one was killed, or its machine went down.")
    try:
        write_pid(pid_file)
    except OSError as error:
        raise UnavailableError(
            f"The process id cannot be written to {pid_file}: {error.strerror}.",
            hint="Make room there, or choose another file with --pid-file.",
        ) from error
    try:
        return run_node(loaded)
    finally:
        pid_file.unlink(missing_ok=True)
