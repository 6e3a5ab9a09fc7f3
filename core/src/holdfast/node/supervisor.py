"""Starts and stops the node processes of a local cluster; keeps nothing in memory between calls.

What runs is found out afresh each time from process ids and control sockets, so any command may
follow any other, from any terminal, after any crash.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

import attrs

from holdfast.errors import HoldfastError, UnavailableError
from holdfast.node.control_errors import from_json
from holdfast.node.local_cluster import LocalNode, check_ports, names_text
from holdfast.node.processes import (
    POLL_S,
    ask_for_stacks,
    is_alive,
    send,
    wait_gone,
    wait_until,
)

START_TIMEOUT_S = 120.0
"""Generous: a node starts in half a second, but on a busy machine it took more than 30 s, and to end
it then makes things worse. One that fails ends by itself and is told at once."""
STOP_TIMEOUT_S = 15.0
"""For a clean stop: hand primaries over, flush, close."""
TERM_TIMEOUT_S = 5.0
"""For a process that ignored the control API, after SIGTERM."""
STACKS_TIMEOUT_S = 1.0
"""For a process that is about to be killed to say what it is at."""


@attrs.frozen
class Stopped:
    """How a node ended."""

    name: str
    pid: int
    how: str
    """`clean`, `terminated` (it took SIGTERM) or `killed`."""


def start(nodes: Sequence[LocalNode]) -> list[str]:
    """Start those of `nodes` that do not run, all at once; return the names of those started.

    Returns when every one of `nodes` serves. When one of them fails, those started by this call are
    stopped again.

    Raises:
        ConflictError: Another program has a port.
        UnavailableError: A node did not become ready in `START_TIMEOUT_S`.
        HoldfastError: What the node itself gave as the reason.
    """
    starting = [node for node in nodes if node.pid is None]
    for node in starting:
        check_ports(node)
    launched: list[_Launch] = []
    try:
        launched.extend(_launch(node) for node in starting)
        _wait_ready(nodes, launched)
    except BaseException:
        for launch in launched:
            send(launch.process.pid, signal.SIGTERM)
        left = {launch.process.pid: launch.node for launch in launched}
        for pid in wait_gone(left, TERM_TIMEOUT_S):
            _tell_of_kill(left[pid], pid)
            send(pid, signal.SIGKILL)
        raise
    finally:
        for launch in launched:
            # They outlive this program on purpose; this tells Popen not to complain.
            launch.process.returncode = 0
    return [node.name for node in starting]


def stop(
    nodes: Sequence[LocalNode],
    *,
    handover: bool,
    on_stopped: Callable[[Stopped], None] | None = None,
) -> list[Stopped]:
    """Stop those of `nodes` that run, all at once; return how each ended.

    First by the control API, then by SIGTERM, last by SIGKILL.

    Args:
        nodes: Which.
        handover: Let primaries move to other nodes first; False when the whole cluster goes down.
        on_stopped: Told of each as soon as it has ended.
    """
    left = {pid: node for node in nodes if (pid := node.pid) is not None}
    stopped: list[Stopped] = []

    def gone(alive: Sequence[int], how: str) -> None:
        for pid in [pid for pid in left if pid not in alive]:
            outcome = Stopped(name=left.pop(pid).name, pid=pid, how=how)
            stopped.append(outcome)
            if on_stopped is not None:
                on_stopped(outcome)

    asked = []
    for pid, node in left.items():
        with contextlib.suppress(HoldfastError):
            node.client().stop(handover=handover, timeout_s=2)
            asked.append(pid)
    if asked:
        wait_gone(asked, STOP_TIMEOUT_S)
        gone([pid for pid in left if is_alive(pid)], "clean")
    for what, timeout_s, how in (
        (signal.SIGTERM, TERM_TIMEOUT_S, "terminated"),
        (signal.SIGKILL, TERM_TIMEOUT_S, "killed"),
    ):
        for pid, node in left.items():
            if what is signal.SIGKILL:
                _tell_of_kill(node, pid)
            send(pid, what)
            # One that was stopped (SIGSTOP) takes a signal only once it goes on.
            send(pid, signal.SIGCONT)
        gone(wait_gone(left, timeout_s), how)
    return sorted(stopped, key=lambda outcome: outcome.name)


def _tell_of_kill(node: LocalNode, pid: int) -> None:
    """Put into a node's log what it was at when it was killed, which it cannot say afterwards."""
    with contextlib.suppress(OSError):
        if ask_for_stacks(pid):
            sizes = [node.log.stat().st_size]

            def has_told() -> bool:
                sizes.append(node.log.stat().st_size)
                return sizes[0] < sizes[-2] == sizes[-1]

            wait_until(has_told, STACKS_TIMEOUT_S)
        event = (
            f"Process {pid} of node {node.name} is killed: neither an order nor SIGTERM ended it."
        )
        line = {"timestamp": datetime.now(UTC).isoformat(), "level": "error", "event": event}
        with node.log.open("a", encoding="utf-8") as log:
            log.write(json.dumps(line) + "\n")


@attrs.frozen
class _Launch:
    node: LocalNode
    process: subprocess.Popen[bytes]
    log_from: int
    """Where this run's part of the log begins."""


def _launch(node: LocalNode) -> _Launch:
    with node.log.open("ab") as log:
        # -P: the folder that the node runs in is not a place to import from.
        program = [sys.executable, "-P", "-m", "holdfast.node", "--config", str(node.config)]
        process = subprocess.Popen(
            [*program, "--pid-file", str(node.pid_file)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=node.dir,
            start_new_session=True,  # Ctrl-C in our terminal is not for the nodes.
            env=os.environ | {"PYTHONUNBUFFERED": "1"},
        )
        return _Launch(node=node, process=process, log_from=log.tell())


def _wait_ready(nodes: Sequence[LocalNode], launched: Sequence[_Launch]) -> None:
    by_name = {launch.node.name: launch for launch in launched}
    waiting = list(nodes)
    deadline = time.monotonic() + START_TIMEOUT_S
    while True:
        waiting = [node for node in waiting if not _is_ready(node)]
        if not waiting:
            return
        for node in waiting:
            launch = by_name.get(node.name)
            if launch is not None and launch.process.poll() is not None:
                raise _failure(launch)
        if time.monotonic() > deadline:
            for node in waiting:
                if (pid := node.pid) is not None:
                    ask_for_stacks(pid)
            raise UnavailableError(
                f"Not ready within {START_TIMEOUT_S:g} s: {names_text([n.name for n in waiting])}.",
                hint=f"See the log {waiting[0].log}.",
            )
        time.sleep(POLL_S)


def _is_ready(node: LocalNode) -> bool:
    if not node.control.exists():
        return False
    try:
        return bool(node.client().node(timeout_s=2).get("ready", True))
    except UnavailableError:
        return False


def _failure(launch: _Launch) -> HoldfastError:
    """Return why a node ended, from the last error in its log."""
    last = ""
    for line, item in _log_lines(launch):
        if isinstance(item, dict) and isinstance(item.get("error"), dict):
            error = from_json(item)
            error.message = f"Node {launch.node.name} does not start: {error.message}"
            return error
        last = str(item.get("event", line)) if isinstance(item, dict) else line
    code = launch.process.returncode
    return UnavailableError(
        f"Node {launch.node.name} ended with exit code {code} before it was ready: "
        f"{last or 'its log says nothing'}",
        hint=f"See the log {launch.node.log}.",
    )


def _log_lines(launch: _Launch) -> Iterator[tuple[str, Any]]:
    with launch.node.log.open(encoding="utf-8", errors="replace") as log:
        log.seek(launch.log_from)
        for text in log:
            line = text.strip()
            if line:
                try:
                    yield line, json.loads(line)
                except ValueError:
                    yield line, None
