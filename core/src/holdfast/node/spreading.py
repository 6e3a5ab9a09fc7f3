"""A node whose copies its workers keep: it listens, holds the lease, and answers for all of them.

It opens no copy and passes no request of a consumer. What comes to its listeners goes to the worker
that keeps the volume, as soon as the handshake has told which that is; what is asked of its control
API is answered from the store's picture, or asked of the worker.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial
from typing import Any, cast

import attrs

from holdfast.errors import ConfigError, HoldfastError
from holdfast.interfaces.frontend import PassingFrontend
from holdfast.interfaces.passing import Passed
from holdfast.interfaces.state import StateStore
from holdfast.interfaces.transport import Accept, Link, LinkHandler, PassingLink
from holdfast.kernel.config import Config
from holdfast.messages import Hello, PeerHello
from holdfast.model import VolumeSpec, worker_of
from holdfast.node.control_client import TIMEOUT_S, ControlClient
from holdfast.node.daemon import Node
from holdfast.node.other_nodes import ANSWER_S
from holdfast.node.service import Json, NodeService, Sample
from holdfast.node.service_impl import Service
from holdfast.node.transports import Transports
from holdfast.node.verifying import lines_of
from holdfast.node.workers import Workers
from holdfast.units import NodeName, VolumeId

ASK_S = 2 * ANSWER_S + 1
"""How long a worker may take to say how its volumes are, before the store's picture has to do.

It may itself have to ask a frozen primary, and then the one that took over."""


def check_spreads(config: Config) -> None:
    """Raise `ConfigError` where something configured needs the node to be one process."""
    if config.replicators:
        name = next(iter(config.replicators))
        raise ConfigError(
            f"node.workers is {config.node.workers}, but the replicator {name} runs in one process.",
            hint=f"Set node.workers = 1, or take [replicator.{name}] out.",
        )
    if getattr(config.state.driver, "IS_IN_PROCESS", False):
        raise ConfigError(
            f"node.workers is {config.node.workers}, but the state store {config.state.name} is "
            "known to one process only.",
            hint="Set node.workers = 1, or choose another [state] driver, such as sqlite.",
        )


class SpreadNode(Node):
    """The process of a node that listens, beside its workers."""

    def __init__(
        self, config: Config, store: StateStore, transports: Transports, *, locks: Sequence[int]
    ) -> None:
        """Wire the rooms together; `locks` are the descriptors that keep the data directories ours.

        Raises:
            ConfigError: A transport cannot pass links on.
        """
        super().__init__(config, store, transports)
        for name in transports.unable_to_pass():
            raise ConfigError(
                f"node.workers is {config.node.workers}, but the transport {name} cannot pass its "
                "links on to another process.",
                hint="Set node.workers = 1, or use the transport tcp alone.",
            )
        self.workers = Workers(config, locks, self.control_path(), self._publish_workers)

    def keeps(self, _volume: VolumeId) -> bool:
        """The workers do."""
        return False

    def worker_of(self, volume: VolumeId) -> int:
        """Return which worker keeps a volume."""
        return worker_of(volume, self.config.node.workers)

    def _workers(self) -> tuple[str, ...]:
        return self.workers.processes

    def _promised_bytes(self) -> int:
        here = [v for v, (r, _) in self.directory.groups.items() if r.on_node(self.name)]
        specs = self.directory.specs
        return sum(specs[volume].size_bytes for volume in here if volume in specs)

    async def _publish_workers(self) -> None:
        await self._publish(self.record.address, session=self.process)

    # -- links and clients -------------------------------------------------------------------------

    def _accept_for(self, transport: str) -> Accept:
        return partial(self._pass_link, transport)

    def _pass_link(self, transport: str, link: Link, hello: Hello) -> LinkHandler | None:
        assert isinstance(link, PassingLink)
        index = hello.to_worker if isinstance(hello, PeerHello) else self.worker_of(hello.volume)
        if not 0 <= index < self.config.node.workers:
            link.close("no such worker")
            return None
        self.workers.pass_on(index, link.pass_on(), transport=transport)
        return None

    def _pass_client(self, frontend: str, volume: VolumeId, pass_on: Callable[[], Passed]) -> bool:
        self.workers.pass_on(self.worker_of(volume), pass_on(), frontend=frontend)
        return True

    # -- life --------------------------------------------------------------------------------------

    async def _open_copies(self, stack: contextlib.AsyncExitStack) -> None:
        stack.push_async_callback(self.workers.stop, handover=False)
        await self.workers.start()
        self.tasks.spawn(self.workers.watch())

    async def _open_frontends(self, stack: contextlib.AsyncExitStack) -> None:
        await super()._open_frontends(stack)
        for name, frontend in self.frontends.items():
            if isinstance(frontend, PassingFrontend):
                frontend.pass_to = partial(self._pass_client, name)

    async def _service(self, stack: contextlib.AsyncExitStack) -> NodeService:
        return SpreadService(self)

    async def _end_copies(self) -> None:
        await self.workers.stop(handover=self.handover)
        await super()._end_copies()


class SpreadService(Service):
    """Answers for a node by its workers, and by the store's picture while one is silent."""

    def __init__(self, node: SpreadNode) -> None:
        """Answer for `node`."""
        super().__init__(node)
        self._spread = node

    async def _client_of_volume(self, name: str, timeout_s: float) -> ControlClient:
        spec = await self._spread.directory.find(name)
        index = self._spread.worker_of(spec.id)
        return self._spread.workers.client(index, timeout_s=timeout_s)

    async def _asked(self, name: str, call: str) -> Json:
        """Return what the volume's worker says of it; raises when it is silent."""
        client = await self._client_of_volume(name, ASK_S)
        return cast("Json", await asyncio.to_thread(getattr(client, call), name))

    async def _ordered(self, name: str, call: str, *arguments: Any, **options: Any) -> Json:
        """Have the volume's worker do something."""
        client = await self._client_of_volume(name, TIMEOUT_S)
        order = partial(getattr(client, call), name, *arguments, **options)
        return cast("Json", await asyncio.to_thread(order))

    async def _told(self, call: str) -> list[Any]:
        """Return what the workers that answer say."""
        told = []
        for index in range(self._spread.config.node.workers):
            client = self._spread.workers.client(index, timeout_s=ASK_S)
            with contextlib.suppress(HoldfastError):
                told.append(await asyncio.to_thread(getattr(client, call)))
        return told

    # -- the node ----------------------------------------------------------------------------------

    async def node(self) -> Json:
        """Describe this node."""
        own = await super().node()
        workers = await self._told("node")
        own["workers"] = self._spread.workers.describe()
        own["copies"] = sum(worker["copies"] for worker in workers)
        for worker in workers:
            own["orphans"] |= worker["orphans"]
        return own

    async def metrics(self) -> Sequence[Sample]:
        """Return the metrics of all processes: what several of them count is summed."""
        summed: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}
        told: list[Any] = [[attrs.astuple(sample) for sample in await super().metrics()]]
        for samples in told + await self._told("samples"):
            for name, value, labels in samples:
                key = name, tuple(sorted(labels.items()))
                summed[key] = summed.get(key, 0.0) + value
        return [Sample(name, value, dict(labels)) for (name, labels), value in summed.items()]

    # -- volumes -----------------------------------------------------------------------------------

    async def _status(self, spec: VolumeSpec) -> Json:
        try:
            return await self._asked(spec.name, "volume")
        except HoldfastError:
            return await super()._status(spec)

    async def own_volume(self, name: str) -> Json:
        """Return the status as this node sees it."""
        return await self._asked(name, "own_volume")

    async def explain(self, name: str) -> Json:
        """Explain a volume's state."""
        try:
            return await self._asked(name, "explain")
        except HoldfastError:
            return await super().explain(name)

    async def own_explain(self, name: str) -> Json:
        """Explain a volume's state by what this node knows."""
        return await self._asked(name, "own_explain")

    async def promote(self, name: str, node: NodeName, *, force: bool = False) -> Json:
        """Hand the primary over to an in-sync copy."""
        return await self._ordered(name, "promote", node, force=force)

    async def move(self, name: str, source: NodeName, target: NodeName) -> Json:
        """Begin to move a copy."""
        return await self._ordered(name, "move", source, target)

    async def evict(self, name: str, node: NodeName) -> Json:
        """Take a node's copy out of the group for good."""
        return await self._ordered(name, "evict", node)

    async def events(self, name: str, *, follow: bool) -> AsyncIterator[Json]:
        """Yield what happened to a volume."""
        async for line in self._lines_of(name, "events", follow=follow):
            yield line

    async def verify(self, name: str) -> AsyncIterator[Json]:
        """Compare all in-sync copies."""
        async for line in self._lines_of(name, "verify"):
            yield line

    async def scrub(self, name: str) -> AsyncIterator[Json]:
        """Compare and repair all in-sync copies."""
        async for line in self._lines_of(name, "scrub"):
            yield line

    async def _lines_of(self, name: str, call: str, **options: Any) -> AsyncIterator[Json]:
        client = await self._client_of_volume(name, TIMEOUT_S)
        async for line in lines_of(partial(getattr(client, call), name, **options)):
            yield line
