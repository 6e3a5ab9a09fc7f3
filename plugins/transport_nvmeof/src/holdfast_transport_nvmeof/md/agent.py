"""The agent of one node: looks, plans, carries out, until there is nothing left to do.

It wakes every ten seconds, when a block device comes or goes, and when the cluster changes a volume.
Everything it knows it reads from the kernel and from the store, so one that is started anew adopts what
the one before it has left running, and nothing ends when the daemon does.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any

import attrs

from holdfast.errors import HoldfastError, StateConflictError, StateError
from holdfast.interfaces.policy import Policy
from holdfast.interfaces.state import StateStore
from holdfast.units import NodeName
from holdfast_transport_nvmeof.kernel import slices
from holdfast_transport_nvmeof.kernel.fabrics import Host, found_controllers, plan_imports
from holdfast_transport_nvmeof.kernel.steps import Connect, Step, StepError, carry_out, shell
from holdfast_transport_nvmeof.kernel.target import plan_target
from holdfast_transport_nvmeof.md import machine
from holdfast_transport_nvmeof.md.consuming import imports, plan_consuming, uses
from holdfast_transport_nvmeof.md.draining import plan_draining
from holdfast_transport_nvmeof.md.members import User
from holdfast_transport_nvmeof.md.model import (
    MdNode,
    MdStatus,
    MdVolume,
    host_of,
    host_prefix,
    subsystem_prefix,
)
from holdfast_transport_nvmeof.md.observed import Observed
from holdfast_transport_nvmeof.md.options import MdOptions
from holdfast_transport_nvmeof.md.plan import Plan
from holdfast_transport_nvmeof.md.providing import Home, exports, plan_providing
from holdfast_transport_nvmeof.md.status import status_of

VOLUMES, NODES = "md/volume/", "md/node/"
ROUNDS_MAX = 200
"""Plans carried out in one go before the agent waits for the next wake-up, come what may."""
SETTLE_S = 0.2
"""Events of devices come in swarms; this long they are collected."""
_log = logging.getLogger("holdfast.md")

Note = Callable[[MdVolume, str, str], None]
"""Volume, kind, sentence: one event for people."""


@attrs.frozen
class Around:
    """What the agent is told by the node that it runs in."""

    name: NodeName
    cluster: str
    store: StateStore
    policy_of: Callable[[MdVolume], Policy]
    alive: Callable[[], frozenset[NodeName]]
    note: Note
    cordoned: Callable[[], frozenset[NodeName]] = frozenset
    draining: Callable[[], bool] = bool
    """Whether this node is to give its members and its volumes to others."""


class Agent:
    """The md replicator on one node."""

    def __init__(self, around: Around, options: MdOptions) -> None:
        """Do nothing yet; `run` does."""
        self.around = around
        self.options = options
        self.me = around.name
        nqn, id_ = host_of(around.cluster, around.name)
        self.host = Host(nqn, id_, options.from_address)
        self.home = Home(around.cluster, self.me, options.ports, options.files)
        self.user = User(around.cluster, self.me, options.mount, rdma=bool(options.rdma_address))
        self.seen: Observed | None = None
        self.volumes: dict[str, tuple[MdVolume, int]] = {}
        """By name, with the version in the store."""
        self.nodes: dict[NodeName, MdNode] = {}
        self.busy: set[str] = set()
        self.errors: dict[str, str] = {}
        """What last failed, by volume name; empty for a success since."""
        self.steps_done = 0
        self._failed_ports: dict[str, int] = {}
        self._told: set[str] = set()
        self._wake = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._lock = asyncio.Lock()

    # -- life --------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Work until cancelled; arrays, exports and imports stay as they are."""
        self._spawn(self._watch_store())
        self._spawn(self._watch_devices())
        try:
            while True:
                await self.reconcile()
                # Not `wait_for`: before Python 3.12 it forgets a cancellation that comes with it.
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self.options.interval_s):
                        await self._wake.wait()
                        await asyncio.sleep(SETTLE_S)
                self._wake.clear()
        finally:
            await self.aclose()

    async def aclose(self) -> None:
        """End what runs in the background."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def wake(self) -> None:
        """Look now."""
        self._wake.set()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _watch_store(self) -> None:
        while True:
            try:
                async with self.around.store.watch(VOLUMES) as changes:
                    async for _ in changes:
                        self.wake()
            except StateError as error:
                self._tell(f"The state store: {error.message}")
                await asyncio.sleep(0.5)

    async def _watch_devices(self) -> None:
        try:
            async for line in machine.block_events():
                _log.debug("Device: %s", line)
                self.wake()
        except (StepError, ImportError, OSError) as error:
            self._tell(f"Devices are looked at every {self.options.interval_s:g} s only: {error}")

    def _tell(self, sentence: str) -> None:
        """Log a sentence once."""
        if sentence not in self._told:
            self._told.add(sentence)
            _log.warning("%s", sentence)

    # -- one go ------------------------------------------------------------------------------------

    async def reconcile(self) -> None:
        """Do what there is to do; errors are told and tried again at the next wake-up."""
        async with self._lock:
            self.errors.clear()
            try:
                for _ in range(ROUNDS_MAX):
                    if not await self._round():
                        break
                await self._report()
            except StateConflictError:
                self.wake()
            except HoldfastError as error:
                self._tell(f"{error.message} {error.hint}".rstrip())
            except Exception:  # noqa: BLE001 - volumes of lockstep must not suffer from it.
                _log.exception("The md replicator met an error that it did not expect.")

    async def _round(self) -> bool:
        """Look anew and carry out one plan of each volume; return whether anything was done."""
        await self._read_store()
        lacking = next(machine.lacks(self.options), None)
        if lacking is not None:
            await self._publish(Observed(0.0), " ".join(lacking))
            return False
        self.seen = seen = await machine.look(self.options, self.host)
        await self._publish(seen, "")
        volumes = [volume for volume, _ in self.volumes.values()]
        done = await self._carry_out_target(volumes, seen)
        done |= await self._carry_out_imports(volumes, seen)
        if done:
            return True
        able = self.around.alive() - self.around.cordoned()
        takers = {name: node for name, node in self.nodes.items() if name in able}
        for volume, version in list(self.volumes.values()):
            if volume.name in self.errors:
                continue
            plan = plan_providing(volume, self.home, seen, takers, self.busy)
            if plan is None:
                policy = self.around.policy_of(volume)
                plan = plan_consuming(volume, self.user, seen, takers, policy)
            if plan is None and self.around.draining():
                plan = plan_draining(volume, self.me, takers, seen.now)
            if plan is not None:
                done |= await self._carry_out(volume, version, plan)
        return done

    async def _read_store(self) -> None:
        self.volumes = {}
        for entry in await self.around.store.list(VOLUMES):
            try:
                volume = MdVolume.from_bytes(entry.value)
            except HoldfastError as error:
                self._tell(f"{entry.key}: {error.message}")
                continue
            self.volumes[volume.name] = (volume, entry.version)
        self.nodes = {}
        for entry in await self.around.store.list(NODES):
            with contextlib.suppress(HoldfastError):
                node = MdNode.from_bytes(entry.value)
                self.nodes[node.name] = node

    async def _publish(self, seen: Observed, lacking: str) -> None:
        """Tell the other nodes how to reach this one, and what room it has."""
        free = [(drive.free_bytes, drive.sector_bytes) for drive in seen.drives if drive.free_bytes]
        if self.options.files and not lacking:
            room = await asyncio.to_thread(_room, self.options.files)
            free += [(room // 8, 0)] * 8
        node = MdNode(
            self.me, self.host.nqn, tuple(map(str, self.home.ports)),
            rdma=bool(self.options.rdma_address), free=tuple(free), lacks=lacking,
        )  # fmt: skip
        if self.nodes.get(self.me) == node:
            return
        key = f"{NODES}{self.me}"
        entry = await self.around.store.get(key)
        version = None if entry is None else entry.version
        await self.around.store.compare_and_set(key, node.to_bytes(), version)
        self.nodes[self.me] = node

    async def _carry_out_target(self, volumes: list[MdVolume], seen: Observed) -> bool:
        cluster = self.around.cluster
        steps = plan_target(
            exports(volumes, self.home, seen),
            seen.target,
            prefix=subsystem_prefix(cluster, self.me),
            host_prefix=host_prefix(cluster),
        )
        return await self._try("exports", steps)

    async def _carry_out_imports(self, volumes: list[MdVolume], seen: Observed) -> bool:
        failed = frozenset(port for port, count in self._failed_ports.items() if count % 2)
        drops, connects = plan_imports(
            imports(volumes, self.user, seen, failed),
            seen.controllers,
            self.host,
            timeouts=self.options.timeouts,
            queues=self.options.queues,
        )
        done = await self._try("imports", drops)
        results = await asyncio.gather(*(self._connect(each) for each in connects))
        return done or any(results)

    async def _connect(self, step: Connect) -> bool:
        """Try to connect, and wait for the device; a failure is tried again at the next wake-up."""
        words = dict(part.partition("=")[::2] for part in step.options.split(","))
        port = f"{words['transport']}://{words['traddr']}:{words['trsvcid']}"
        if f"connect {words['nqn']}" in self.errors:
            return False
        try:
            await self._do([step])
            async with asyncio.timeout(5.0):
                while not self._arrived(words["nqn"]):  # noqa: ASYNC110 - sysfs tells nobody.
                    await asyncio.sleep(0.02)
        except (StepError, TimeoutError) as error:
            self._failed_ports[port] = self._failed_ports.get(port, 0) + 1
            self.errors[f"connect {words['nqn']}"] = str(error)
            _log.debug("%s", error)
            return False
        return True

    def _arrived(self, nqn: str) -> bool:
        found = found_controllers(self.host.nqn)
        return any(each.nqn == nqn and each.device for each in found)

    async def _try(self, what: str, steps: list[Step]) -> bool:
        if not steps or what in self.errors:
            return False
        try:
            await self._do(steps)
        except StepError as error:
            self.errors[what] = error.message
            self._tell(error.message)
            return False
        return True

    async def _do(self, steps: list[Step]) -> None:
        for step in steps:
            _log.info("%s%s", "would run: " if self.options.dry_run else "", shell(step))
        if self.options.dry_run:
            raise StepError("Nothing is done: dry_run = true.")
        self.steps_done += len(steps)
        await carry_out(steps)

    # -- plans -------------------------------------------------------------------------------------

    async def _carry_out(self, volume: MdVolume, version: int, plan: Plan) -> bool:
        if plan.claim is not None and not self.options.dry_run:
            await self._write(plan.claim, version)
            self._note(plan.claim, plan)
            return True
        if plan.background:
            self.busy.add(plan.background)
            self._spawn(self._long(volume, plan))
            return True
        try:
            if plan.check is not None:
                await slices.check_removable(plan.check)
            await self._do(list(plan.steps))
        except StepError as error:
            self.errors[volume.name] = error.message
            self._tell(f"{volume.name}: {error.message}")
            if plan.on_failure is not None and not self.options.dry_run:
                await self._write(plan.on_failure, version)
            return False
        if plan.ends:
            await self._end(volume, version)
        elif plan.after is not None:
            await self._write(plan.after, version)
        self._note(volume, plan)
        return bool(plan.steps or plan.after or plan.ends)

    async def _long(self, volume: MdVolume, plan: Plan) -> None:
        try:
            await self._do(list(plan.steps))
            self._note(volume, plan)
        except StepError as error:
            self._tell(f"{volume.name}: {error.message}")
            await asyncio.sleep(self.options.interval_s)
        finally:
            self.busy.discard(plan.background)
            self.wake()

    def _note(self, volume: MdVolume, plan: Plan) -> None:
        if not plan.quiet:
            self.around.note(volume, plan.kind, plan.why)

    async def _write(self, volume: MdVolume, version: int) -> None:
        key = f"{VOLUMES}{volume.name}"
        entry = await self.around.store.compare_and_set(key, volume.to_bytes(), version)
        assert entry is not None
        self.volumes[volume.name] = (volume, entry.version)

    async def _end(self, volume: MdVolume, version: int) -> None:
        store = self.around.store
        await store.compare_and_set(f"{VOLUMES}{volume.name}", None, version)
        name = await store.get(f"name/{volume.name}")
        if name is not None and name.value == volume.id.encode():
            await store.compare_and_set(name.key, None, name.version)
        self.volumes.pop(volume.name, None)

    async def _report(self) -> None:
        """Write what this node sees of the volumes that it uses, when that has changed."""
        if self.seen is None:
            return
        for volume, version in list(self.volumes.values()):
            if not uses(volume, self.me):
                continue
            error = self.errors.get(volume.name, "")
            status: MdStatus = status_of(volume, self.seen, error)
            if attrs.evolve(status, at=0.0) != attrs.evolve(volume.status, at=0.0):
                await self._write(attrs.evolve(volume, status=status), version)
                if status.sync:
                    self._spawn(self._soon())

    async def _soon(self) -> None:
        """Follow a sync more closely than the interval does."""
        await asyncio.sleep(1.0)
        self.wake()


def _room(folder: str) -> int:
    import shutil  # noqa: PLC0415

    Path(folder).mkdir(parents=True, exist_ok=True)
    return max(shutil.disk_usage(folder).free - (1 << 30), 0)


def by_name(volumes: Mapping[str, tuple[MdVolume, int]]) -> list[MdVolume]:
    """Return volumes in the order of their names."""
    return [volumes[name][0] for name in sorted(volumes)]
