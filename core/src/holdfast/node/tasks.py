"""The tasks of one owner: none is lost, none fails unseen, all end with it.

`asyncio.TaskGroup` would cancel its owner from within; a node and a program that uses volumes both
have an orderly end instead, which they reach by themselves.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

CANCEL_AGAIN_S = 1.0


class Tasks:
    """Runs coroutines on the running loop until they end or `aclose` ends them."""

    def __init__(self, on_failure: Callable[[BaseException], None]) -> None:
        """Begin without any; `on_failure` is told the exception of every task that raises one."""
        self._on_failure = on_failure
        self._tasks: set[asyncio.Task[None]] = set()

    def spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        """Run a coroutine; the set keeps it alive, as the loop itself would not."""
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._on_done)

    async def aclose(self) -> None:
        """Cancel what runs and wait until it has ended."""
        # Whoever closes may be one of them.
        tasks = self._tasks - {asyncio.current_task()}
        while tasks:
            for task in tasks:
                task.cancel()
            # Again and again: a driver's code may have lost the first cancellation on its way.
            _, tasks = await asyncio.wait(tasks, timeout=CANCEL_AGAIN_S)

    def _on_done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._on_failure(error)
