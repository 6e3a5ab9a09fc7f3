"""One worker of a node: keeps its share of the copies, and serves what is passed on to it.

It is a node in all that concerns its volumes: links, heartbeats, sessions, disks, their history. It
listens to nothing, has no lease of its own in the state store, and ends with the process that
started it.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import pickle
import socket
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

from holdfast.errors import HoldfastError
from holdfast.interfaces.frontend import PassingFrontend, PassingFrontendDriver
from holdfast.interfaces.passing import Passed
from holdfast.interfaces.state import StateStore
from holdfast.kernel.config import Config
from holdfast.model import worker_of
from holdfast.node.channel import PACKET_BYTES_MAX, Channel
from holdfast.node.control import serve_control
from holdfast.node.control_errors import to_json
from holdfast.node.daemon import Node, settle_heap
from holdfast.node.processes import end_with_parent
from holdfast.node.running import run, set_up_logging
from holdfast.node.service import Json
from holdfast.node.service_impl import Service
from holdfast.node.transports import Transports
from holdfast.node.workers import Start, worker_control
from holdfast.units import VolumeId

_log = logging.getLogger("holdfast.node")


class WorkerNode(Node):
    """The worker's part of a node."""

    def __init__(
        self,
        start: Start,
        own: socket.socket,
        config: Config,
        store: StateStore,
        transports: Transports,
    ) -> None:
        """Wire the rooms together; `own` leads to the process that listens."""
        self._start = start
        super().__init__(config, store, transports, process=start.process, worker=start.index)
        self._own = own
        self._channel: Channel | None = None

    def keeps(self, volume: VolumeId) -> bool:
        """Whether a volume falls to this worker."""
        return worker_of(volume, self.config.node.workers) == self._start.index

    def _scrubs_file(self) -> str:
        return f"scrubs-{self._start.index}.json"

    def _on_nodes(self) -> None:
        # The process that listens tells the observers of nodes, once for all.
        self.hosting.on_nodes()
        self._reseat()

    # -- from the process that listens -------------------------------------------------------------

    def _on_value(self, value: dict[str, Any], fd: int | None) -> None:
        if fd is None:
            self.request_stop(handover=value["handover"])
        else:
            self.tasks.spawn(self._adopt(Passed(fd, value["passed"]), value))

    async def _adopt(self, passed: Passed, value: dict[str, Any]) -> None:
        with contextlib.suppress(OSError):  # It went on its way here.
            if "transport" in value:
                await self.transports.adopt(value["transport"], passed, self._accept)
            else:
                frontend = self.frontends[value["frontend"]]
                assert isinstance(frontend, PassingFrontend)
                await frontend.adopt(passed)

    def _pass_client(self, frontend: str, volume: VolumeId, pass_on: Callable[[], Passed]) -> bool:
        if self.keeps(volume):
            return False
        # It was refused its first choice here and has made another.
        passed = pass_on()
        index = worker_of(volume, self.config.node.workers)
        value = {"passed": dict(passed.state), "frontend": frontend, "worker": index}
        assert self._channel is not None
        self._channel.send(value, passed.fd)
        return True

    def _on_closed(self) -> None:
        _log.error("The process that started worker %d has ended.", self._start.index)
        os._exit(1)

    # -- life --------------------------------------------------------------------------------------

    async def run(self) -> int:
        """Run until stopped; return the exit code."""
        async with contextlib.AsyncExitStack() as stack:
            await self.directory.prime()
            self.tasks.spawn(self.directory.run())
            self.tasks.spawn(self.observing.run(self.hosting.pumps))
            await self._open_frontends(stack)
            self._channel = Channel(self._own, self._on_value, self._on_closed)
            stack.callback(self._channel.close)
            await self._open_copies(stack)
            control = worker_control(self.control_path(), self._start.index)
            async with serve_control(_WorkerService(self), control):
                settle_heap()
                self.ready = True
                _log.info("Worker %d of node %s is ready.", self._start.index, self.name)
                self._channel.send({"ready": True})
                await self.stopping.wait()
                self.ready = False
                await self._end_copies()
                await self.tasks.aclose()
        return 0 if self.failure is None else 70

    async def _open_frontends(self, stack: contextlib.AsyncExitStack) -> None:
        for name, chosen in self.config.frontends.items():
            if isinstance(chosen.driver, PassingFrontendDriver):
                frontend = chosen.driver.open_adopting(chosen.options, self.consumer)
                frontend.pass_to = partial(self._pass_client, name)
                self.frontends[name] = frontend
                stack.push_async_callback(frontend.aclose)


class _WorkerService(Service):
    """What the process that listens asks of a worker."""

    async def node(self) -> Json:
        """Describe this worker."""
        hosting = self._node.hosting
        return {
            "pid": os.getpid(),
            "ready": self._node.ready,
            "copies": len(hosting.pumps),
            "orphans": {str(path): why for path, why in hosting.orphans.items()},
        }


def main() -> int:
    """Run the worker that the parent describes through the socket named on the command line."""
    own = socket.socket(fileno=int(sys.argv[2]))
    # What the parent has written itself; nobody else has this socket.
    start: Start = pickle.loads(own.recv(PACKET_BYTES_MAX))  # noqa: S301
    end_with_parent(start.parent)
    set_up_logging(start.config)
    try:
        return run(start.config, partial(WorkerNode, start, own))
    except HoldfastError as error:
        sys.stderr.write(json.dumps(to_json(error)) + "\n")
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
