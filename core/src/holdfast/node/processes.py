"""Whether a process lives, and how to end it; knows Linux's /proc and nothing of clusters.

A process id in a file is a rumour: the process may be gone, a zombie whose parent never asks
(some containers' process 1), or another program that got the same number. So a process counts as
ours only when its command line names what we started it with.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

_PR_SET_PDEATHSIG = 1
"""Source: linux/prctl.h."""
POLL_S = 0.02
"""How often a wait looks; a node takes some tenths of a second to start or stop."""


def is_alive(pid: int, *, argument: str = "") -> bool:
    """Return whether `pid` runs and is no zombie, and has `argument` on its command line."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        # The state is the first field after the name, which stands in brackets and may hold any.
        fields = stat.rpartition(")")[2].split()
        # The first thread is a zombie while others, of which it knows the number, still end; until
        # the last of them has, files and ports are not free. Source: proc_pid_stat(5), num_threads.
        if fields[0] in {"Z", "X"} and int(fields[17]) <= 1:
            return False
        arguments = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except (OSError, IndexError):
        return False
    return not argument or os.fsencode(argument) in arguments


def read_pid(path: Path, *, argument: str = "") -> int | None:
    """Return the process id in the file `path` when that process lives, else None."""
    try:
        pid = int(path.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None
    return pid if pid > 0 and is_alive(pid, argument=argument) else None


def write_pid(path: Path) -> None:
    """Put this process's id into `path`, so that readers see all of it or nothing."""
    partial = path.with_name(f"{path.name}.{os.getpid()}")
    partial.write_text(f"{os.getpid()}\n", encoding="ascii")
    partial.replace(path)


def end_with_parent(parent: int) -> None:
    """Have the kernel kill this process when `parent`, which started it, ends in whatever way."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    if os.getppid() != parent:  # It has ended before that.
        sys.exit(1)


def send(pid: int, what: signal.Signals) -> None:
    """Send a signal; a process that has just gone is no error."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, what)


def ask_for_stacks(pid: int) -> bool:
    """Have a node's processes say in its log what their threads and tasks are at.

    Returns:
        Whether `pid` takes the signal by now; it would end one that is only starting.
    """
    with contextlib.suppress(OSError):
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii")
        for child in children.split():
            ask_for_stacks(int(child))
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    caught = next((int(t[7:], 16) for t in status.splitlines() if t.startswith("SigCgt:")), 0)
    if not caught >> (signal.SIGUSR1 - 1) & 1:
        return False
    send(pid, signal.SIGUSR1)
    return True


def wait_until(condition: Callable[[], bool], timeout_s: float) -> bool:
    """Return whether `condition` came true within `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() >= deadline:
            return False
        time.sleep(POLL_S)
    return True


def wait_gone(pids: Iterable[int], timeout_s: float) -> list[int]:
    """Wait for processes to end, reaping those that are ours; return those that still live."""
    left = list(pids)

    def all_gone() -> bool:
        for pid in left:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)
        left[:] = [pid for pid in left if is_alive(pid)]
        return not left

    wait_until(all_gone, timeout_s)
    return left
