"""The workers of a node: started, watched, replaced, stopped by the process that listens.

A worker that dies is replaced at once, and its successor takes the copies up as a restarted node
does; the others do not notice. No two processes ever have a copy open: a worker is replaced when the
kernel says that it is gone, and all processes of a node hold its lock (`Locks`), so that a
later start waits for the last of them.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import pickle
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import attrs

from holdfast.errors import ConflictError, HoldfastError, UnavailableError
from holdfast.interfaces.passing import Passed
from holdfast.kernel.config import Config
from holdfast.node.channel import Channel
from holdfast.node.control_client import ControlClient
from holdfast.node.data_directories import unusable
from holdfast.node.processes import ask_for_stacks

START_TIMEOUT_S = 30.0
RESTART_S = (0.0, 0.5, 1.0, 2.0, 5.0)
"""Before a worker is started again: at once, then later the oftener it died young."""
YOUNG_S = 10.0
STOP_TIMEOUT_S = 11.0
"""A worker's own patience with its copies, and a little."""
STACKS_S = 0.2
"""For a worker that is about to be killed to say what it is at."""
LOCK_TIMEOUT_S = 5.0
"""How long a start waits for the processes of the one before to be gone; killed ones are at once."""
_log = logging.getLogger("holdfast.node")


@attrs.frozen
class Start:
    """What a worker is told at its start."""

    config: Config
    """That of the node as it was started; the file may have been edited since."""
    index: int
    process: str
    parent: int
    """Process id of who started it."""


def lock_data(paths: Sequence[str]) -> list[int]:
    """Return descriptors that say that the data directories are this node's, in all its processes.

    Raises:
        ConfigError: One cannot be written.
        ConflictError: Another node's processes have one, and did not end in `LOCK_TIMEOUT_S`.
    """
    fds = []
    give_up = time.monotonic() + LOCK_TIMEOUT_S
    for path in paths:
        try:
            fd = os.open(Path(path) / "node.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise unusable(Path(path), error) from error
        fds.append(fd)
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if time.monotonic() > give_up:
                    raise ConflictError(
                        f"The data directory {path} is in use by another node.",
                        hint="Stop that node, or give this one its own under [node] data.",
                    ) from error
                time.sleep(0.02)
            else:
                break
    return fds


def worker_control(control: Path, index: int) -> Path:
    """Return the control socket of a worker, where the node's own is `control`."""
    return control.with_suffix(f".w{index}")


@attrs.define(eq=False)
class _Worker:
    index: int
    process: str = ""
    child: subprocess.Popen[bytes] | None = None
    channel: Channel | None = None
    is_ready: bool = False
    changed: asyncio.Event = attrs.field(factory=asyncio.Event)
    """Set when it became ready or has ended."""
    started_at: float = 0.0
    deaths: int = 0


class Workers:
    """All workers of one node."""

    def __init__(
        self,
        config: Config,
        locks: Sequence[int],
        control: Path,
        on_process: Callable[[], Awaitable[None]],
    ) -> None:
        """Prepare; `start` starts them.

        Args:
            config: The node's.
            locks: The descriptors that every process of the node is to hold.
            control: The node's own control socket; those of the workers stand beside it.
            on_process: Has the state store say which processes the node has, before a worker of a
                new name begins.
        """
        self._config = config
        self._locks = tuple(locks)
        self._control = control
        self._on_process = on_process
        self._is_stopping = False
        self._all = [_Worker(index, uuid.uuid4().hex) for index in range(config.node.workers)]

    # -- asking ------------------------------------------------------------------------------------

    @property
    def processes(self) -> tuple[str, ...]:
        """The names of their processes, in their order."""
        return tuple(worker.process for worker in self._all)

    def describe(self) -> list[dict[str, Any]]:
        """Return what there is to say of each."""
        return [
            {
                "pid": None if w.child is None else w.child.pid,
                "ready": w.is_ready,
                "restarts": w.deaths,
            }
            for w in self._all
        ]

    def client(self, index: int, *, timeout_s: float) -> ControlClient:
        """Return who asks a worker."""
        name = f"{self._config.node.name}, worker {index},"
        hint = "It is replaced at once if it has ended; try again in a moment."
        path = worker_control(self._control, index)
        return ControlClient(path, node=name, hint=hint, timeout_s=timeout_s)

    def pass_on(self, index: int, passed: Passed, **what: str) -> None:
        """Pass a connection to a worker; one that cannot take it now is left to connect again."""
        channel = self._all[index].channel
        if channel is None:
            os.close(passed.fd)
        else:
            channel.send({"passed": dict(passed.state), **what}, passed.fd)

    # -- life --------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Start all; return when they serve.

        Raises:
            UnavailableError: One has ended instead, or takes too long; its error is in the log.
        """
        for worker in self._all:
            self._launch(worker)
        give_up = asyncio.get_running_loop().time() + START_TIMEOUT_S
        for worker in self._all:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(give_up):
                    await worker.changed.wait()
            if not worker.is_ready:
                raise UnavailableError(
                    f"Worker {worker.index} of node {self._config.node.name} does not start.",
                    hint="The lines before this one in the log say why.",
                )

    async def watch(self) -> None:
        """Replace workers that die, until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            for worker in self._all:
                tasks.create_task(self._watch(worker))

    async def _watch(self, worker: _Worker) -> None:
        while True:
            await worker.changed.wait()
            worker.changed.clear()
            if worker.channel is not None:
                continue
            assert worker.child is not None
            if self._is_stopping:
                return
            worker.child.kill()  # Should it only have hung up.
            code = await asyncio.to_thread(worker.child.wait)
            is_young = time.monotonic() - worker.started_at < YOUNG_S
            pause_s = RESTART_S[min(worker.deaths, len(RESTART_S) - 1)] if is_young else 0.0
            worker.deaths += 1
            _log.error(
                "Worker %d has ended (%s); another one takes its volumes over.",
                worker.index,
                f"signal {-code}" if code < 0 else f"exit code {code}",
            )
            await asyncio.sleep(pause_s)
            worker.process = uuid.uuid4().hex
            # Sessions of a process that the node does not name are taken for dead.
            with contextlib.suppress(HoldfastError):
                await self._on_process()
            if not self._is_stopping:
                self._launch(worker)

    def _launch(self, worker: _Worker) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            worker.child = subprocess.Popen(
                [
                    *(sys.executable, "-P", "-m", "holdfast.node.worker"),
                    *(f"{self._config.node.name}/{worker.index}", str(theirs.fileno())),
                ],
                stdin=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(), *self._locks),
                start_new_session=True,  # Ctrl-C is for the node, which then stops its workers.
            )
        start = Start(self._config, worker.index, worker.process, os.getpid())
        ours.send(pickle.dumps(start))
        worker.is_ready = False
        worker.started_at = time.monotonic()

        def on_value(value: dict[str, Any], fd: int | None) -> None:
            if fd is not None:
                # A client that has chosen a volume of another worker.
                index = int(value.pop("worker"))
                self.pass_on(index, Passed(fd, value.pop("passed")), **value)
                return
            worker.is_ready = True
            worker.changed.set()

        def on_closed() -> None:
            worker.channel, worker.is_ready = None, False
            worker.changed.set()

        worker.channel = Channel(ours, on_value, on_closed)

    async def stop(self, *, handover: bool) -> None:
        """Stop all in order; end those that do not."""
        self._is_stopping = True
        for worker in self._all:
            if worker.channel is not None:
                worker.channel.send({"handover": handover})
        give_up = asyncio.get_running_loop().time() + STOP_TIMEOUT_S
        for worker in self._all:
            child = worker.child
            if child is None:
                continue
            left_s = max(0.0, give_up - asyncio.get_running_loop().time())
            with contextlib.suppress(subprocess.TimeoutExpired):
                await asyncio.to_thread(child.wait, left_s)
            if child.poll() is None and ask_for_stacks(child.pid):
                _log.error("Worker %d does not stop and is killed.", worker.index)
                await asyncio.sleep(STACKS_S)
            child.kill()
            await asyncio.to_thread(child.wait)
            if worker.channel is not None:
                worker.channel.close()
                worker.channel = None
