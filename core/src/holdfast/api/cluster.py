"""A cluster for a program: what a node's frontends have, without a node.

It opens the state store and a transport, keeps a picture of the cluster, and hands out volumes. It
starts nothing and changes nothing that was declared; that is the control API's part.
"""

from __future__ import annotations

import asyncio
import os
import uuid
from collections.abc import Sequence
from contextlib import AsyncExitStack, ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self
from weakref import WeakSet

import attrs
from anyio.from_thread import BlockingPortal, start_blocking_portal

from holdfast.api.volume import BlockingVolume, Volume
from holdfast.errors import UsageError
from holdfast.kernel.config import load_consumer_config
from holdfast.model import VolumeSpec
from holdfast.node.consumer import Consumer
from holdfast.node.local_cluster import LocalCluster, default_dir
from holdfast.node.tasks import Tasks
from holdfast.units import NodeName


@attrs.define(eq=False)
class Cluster:
    """A cluster to use volumes of, open while in its `async with` block.

    Its place in the cluster is a name of its own, `api-` and twelve digits, so a volume that it has
    open for writing is its alone like any consumer's (R11).
    """

    config: Path
    """The file that names cluster, state store and transport."""
    name: NodeName = attrs.field(
        init=False, factory=lambda: NodeName(f"api-{uuid.uuid4().hex[:12]}")
    )
    _stack: AsyncExitStack = attrs.field(factory=AsyncExitStack, init=False, repr=False)
    _consumer: Consumer | None = attrs.field(default=None, init=False, repr=False)
    _volumes: WeakSet[Volume] = attrs.field(factory=WeakSet, init=False, repr=False)
    _failure: BaseException | None = attrs.field(default=None, init=False, repr=False)

    @classmethod
    def open(cls, where: str | Path | None = None) -> Self:
        """Return the cluster at `where`, to be entered with `async with`; opens nothing yet.

        Args:
            where: A configuration file, of which `[cluster]`, `[state]` and `[transport]` count, or
                the folder of a local cluster. None: the local cluster that the command line would
                take, `HOLDFAST_DIR` or the one below the user's state directory.

        Raises:
            NotFoundError: The folder holds no cluster.
        """
        path = Path(where or os.environ.get("HOLDFAST_DIR") or default_dir()).expanduser()
        return cls(LocalCluster.open(path).nodes[0].config if path.is_dir() else path)

    async def __aenter__(self) -> Self:
        """Open the state store and look at the cluster.

        Raises:
            ConfigError: The configuration cannot be used.
            StateError: The state store does not answer.
        """
        config = await asyncio.to_thread(load_consumer_config, self.config)
        async with AsyncExitStack() as stack:
            store = await config.state.driver.open(config.state.options)
            stack.push_async_callback(store.aclose)
            transport = await config.transport.driver.open(
                config.transport.options, config.cluster.name, self.name
            )
            stack.push_async_callback(transport.aclose)
            tasks = Tasks(self._fail)
            stack.push_async_callback(tasks.aclose)
            consumer = Consumer(
                name=self.name,
                cluster=config.cluster.name,
                process=uuid.uuid4().hex,
                store=store,
                transport=transport,
                spawn=tasks.spawn,
                # An outage of the store is waited out, and volumes go on meanwhile (R9).
                on_store_error=lambda _: None,
            )
            await consumer.directory.prime()
            tasks.spawn(consumer.directory.run(leases=False))
            self._consumer = consumer
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close what is open, volumes first."""
        for volume in list(self._volumes):
            await volume.__aexit__(None, None, None)
        self._consumer = None
        await self._stack.aclose()
        if self._failure is not None and error is None:
            raise self._failure

    def volume(self, name: str, *, read_only: bool = False, force: bool = False) -> Volume:
        """Return the volume `name`, to be entered with `async with`.

        Args:
            name: As the volume was named when it was made.
            read_only: Stand beside a writer instead of being one.
            force: Take the volume over from whoever has it open for writing.
        """
        volume = Volume(self._opened(), name, read_only=read_only, force=force)
        self._volumes.add(volume)
        return volume

    async def volumes(self) -> Sequence[str]:
        """Return the names of all volumes, sorted."""
        return await self._opened().names()

    async def describe(self, name: str) -> VolumeSpec:
        """Return what was declared of a volume; raises `NotFoundError` with the nearest name."""
        return await self._opened().describe(name)

    def _opened(self) -> Consumer:
        if self._consumer is None:
            raise UsageError("The cluster is not open.", hint="Use it inside its `async with`.")
        return self._consumer

    def _fail(self, error: BaseException) -> None:
        """Something unforeseen: what waits for an answer must not wait for ever."""
        self._failure = error
        for volume in list(self._volumes):
            volume._end(f"an error ended it: {error}")  # noqa: SLF001 - they are one.


@attrs.define(eq=False)
class BlockingCluster:
    """The same for scripts without an event loop; it runs one in a thread while it is open."""

    _cluster: Cluster
    _stack: ExitStack = attrs.field(factory=ExitStack, init=False, repr=False)
    _portal: BlockingPortal | None = attrs.field(default=None, init=False, repr=False)

    @classmethod
    def open(cls, where: str | Path | None = None) -> Self:
        """As `Cluster.open`, to be entered with `with`."""
        return cls(Cluster.open(where))

    def __enter__(self) -> Self:
        """Open the cluster; raises what `Cluster.__aenter__` raises."""
        with ExitStack() as stack:
            portal = stack.enter_context(
                start_blocking_portal(backend_options={"use_uvloop": True})
            )
            stack.enter_context(portal.wrap_async_context_manager(self._cluster))
            self._portal = portal
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close what is open, volumes first."""
        self._portal = None
        self._stack.__exit__(kind, error, traceback)

    def volume(self, name: str, *, read_only: bool = False, force: bool = False) -> BlockingVolume:
        """As `Cluster.volume`, to be entered with `with`."""
        return BlockingVolume(
            self._cluster._opened(),  # noqa: SLF001 - the two are one thing with two faces.
            name,
            read_only=read_only,
            force=force,
            portal=self._running(),
        )

    def volumes(self) -> Sequence[str]:
        """As `Cluster.volumes`."""
        return self._running().call(self._cluster.volumes)

    def describe(self, name: str) -> VolumeSpec:
        """As `Cluster.describe`."""
        return self._running().call(self._cluster.describe, name)

    def _running(self) -> BlockingPortal:
        if self._portal is None:
            raise UsageError("The cluster is not open.", hint="Use it inside its `with`.")
        return self._portal
