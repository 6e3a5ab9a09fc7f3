"""What a process is doing when it says nothing: the stacks of its threads and tasks, in its log.

A node that others take for dead may be ended, stopped, waiting for a disk on its event loop, or turning
for ever; from outside all of that is silence. So a thread looks twice a second whether the loop has
turned and says once what holds it, and SIGUSR1 has the process say what every thread and task is at.
The threads are told by Python's `faulthandler`, which needs neither the loop nor the interpreter's
lock; a crash in foreign code is told the same way. It knows nothing of nodes and their volumes.
"""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import logging
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

LOOK_S = 0.5
"""How often the thread looks, and the loop shows that it turns."""
STALL_S = 2.0
"""A loop that has not turned for so long is told of: as long as a lease, after which others take the
node for lost."""
FRAMES_MAX = 12
"""Of a stack that is told in one line, the innermost first."""
_SIGNAL = signal.SIGUSR1
_log = logging.getLogger("holdfast.stacks")


class LoopWatch:
    """Tells when a loop stands still, once each time, and when it turns again."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, warn: Callable[..., None] = _log.warning
    ) -> None:
        """Begin to watch `loop`, in whose thread this is called."""
        self._loop = loop
        self._warn = warn
        self._ident = threading.get_ident()
        self._turned_at = time.monotonic()
        self._ended = threading.Event()
        self._turn()
        self._thread = threading.Thread(target=self._run, name="holdfast-stacks", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Watch no longer. Idempotent; in the loop's thread."""
        self._ended.set()
        self._timer.cancel()
        self._thread.join()

    def _turn(self) -> None:
        self._turned_at = time.monotonic()
        self._timer = self._loop.call_later(LOOK_S, self._turn)

    def _run(self) -> None:
        stalled_at: float | None = None
        looked_at = time.monotonic()
        while not self._ended.wait(LOOK_S):
            now, turned_at = time.monotonic(), self._turned_at
            if now - looked_at > STALL_S:
                # This thread had nothing to wait for; so whatever kept it away is outside.
                self._warn(
                    "The process did not run for %.1f s: it was stopped, or its machine was busy.",
                    now - looked_at,
                )
                self._ended.wait(LOOK_S)  # The loop has its turn before it is judged.
                now, turned_at = time.monotonic(), self._turned_at
            looked_at = now
            if stalled_at is not None and turned_at > stalled_at:
                self._warn("The event loop turns again after %.1f s.", turned_at - stalled_at)
                stalled_at = None
            elif stalled_at is None and now - turned_at > STALL_S:
                stalled_at = turned_at
                frame = sys._current_frames().get(self._ident)  # noqa: SLF001 - there is no other way.
                self._warn(
                    "The event loop has not turned for %.1f s; it is at %s.",
                    now - turned_at,
                    " < ".join(_places(frame)),
                )


@contextlib.contextmanager
def telling() -> Iterator[None]:
    """While this lasts, the log says when the running loop stands still, and everything at SIGUSR1.

    Behind it SIGUSR1 still tells the threads, for a process may hang while it ends.
    """
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(_SIGNAL, _tell_tasks, loop)
    faulthandler.register(_SIGNAL, chain=True)  # After the loop's own, which it calls.
    watch = LoopWatch(loop)
    try:
        yield
    finally:
        watch.close()
        faulthandler.unregister(_SIGNAL)
        loop.remove_signal_handler(_SIGNAL)
        faulthandler.register(_SIGNAL)


def _tell_tasks(loop: asyncio.AbstractEventLoop) -> None:
    tasks = asyncio.all_tasks(loop)
    for task in tasks:
        places = " > ".join(_awaited(task.get_coro()))
        _log.warning("%s is at %s.", task.get_name(), places)
    _log.warning("The event loop turns and has %d tasks.", len(tasks))


def _places(frame: FrameType | None) -> Iterator[str]:
    """Yield where a thread is, the innermost call first."""
    for _ in range(FRAMES_MAX):
        if frame is None:
            return
        yield _place(frame)
        frame = frame.f_back


def _awaited(awaited: Any) -> Iterator[str]:
    """Yield where a task is, its own coroutine first, then what each awaits."""
    for _ in range(FRAMES_MAX):
        for kind, below in (("cr", "await"), ("gi", "yieldfrom"), ("ag", "await")):
            frame = getattr(awaited, f"{kind}_frame", None)
            if frame is not None:
                yield _place(frame)
                awaited = getattr(awaited, f"{kind}_{below}")
                break
        else:
            return


def _place(frame: FrameType) -> str:
    code = frame.f_code
    return f"{Path(code.co_filename).name}:{frame.f_lineno} {code.co_qualname}"
