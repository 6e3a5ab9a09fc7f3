"""Several md nodes on one kernel: drives of null_blk, one agent per node, one store for all.

Every node exports at a port of its own and imports under a host NQN of its own, so what passes between
two nodes passes through the kernel's NVMe/TCP (or RDMA) target and initiator, as it would between machines.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import subprocess
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import attrs

from holdfast.interfaces.policy import Policy
from holdfast.interfaces.state import StateStore
from holdfast.kernel import registry
from holdfast.units import MIB, NodeName
from holdfast_transport_nvmeof.kernel.target import CONFIGFS
from holdfast_transport_nvmeof.md.agent import NODES, VOLUMES, Agent, Around
from holdfast_transport_nvmeof.md.model import DATA_OFFSET_BYTES, MdNode, MdVolume
from holdfast_transport_nvmeof.md.options import MdOptions
from holdfast_transport_nvmeof.md.placing import first_members

NULLB = Path("/sys/kernel/config/nullb")
BLOCK = 4096
PATIENCE_S = 400.0


def policy(name: str, **options: object) -> Policy:
    driver = registry.load("policy", name)
    made: Policy = driver(driver.Options(**options))
    return made


def missing() -> str | None:
    """Return what this machine lacks for these tests, or None."""
    if os.geteuid() != 0:
        return "arrays need root"
    if not NULLB.exists():
        return "the kernel has no null_blk with configfs"
    for path in ("/dev/nvme-fabrics", CONFIGFS, "/proc/mdstat"):
        if not Path(path).exists():
            return f"{path} is not there; load nvme-tcp, nvmet-tcp, raid1 and raid10"
    return None


def make_drive(name: str, size_mib: int) -> str:
    """Make a drive that keeps its data in memory; returns its path."""
    home = NULLB / name
    home.mkdir()
    for key, value in (
        ("size", size_mib), ("blocksize", BLOCK), ("memory_backed", 1), ("discard", 1),
        ("queue_mode", 2), ("submit_queues", 1), ("power", 1),
    ):  # fmt: skip
        (home / key).write_text(str(value))
    path = Path("/dev", name)
    if not path.exists():  # Older kernels number them.
        path = Path(f"/dev/nullb{(home / 'index').read_text().strip()}")
    return str(path)


def remove_drive(name: str) -> None:
    (NULLB / name / "power").write_text("0")
    (NULLB / name).rmdir()


@attrs.define
class Lab:
    """The nodes, and what the tests do to them."""

    store: StateStore
    agents: dict[str, Agent] = attrs.field(factory=dict)
    down: set[str] = attrs.field(factory=set)
    events: list[str] = attrs.field(factory=list)
    drives: list[str] = attrs.field(factory=list)
    policy: Policy = attrs.field(factory=lambda: policy("alwayson"))

    def add_node(
        self,
        name: str,
        *,
        drives: int = 1,
        size_mib: int = 100,
        transport: str = "tcp",
        **options: object,
    ) -> None:
        paths = []
        for index in range(drives):
            drive = f"{name}{index}"
            paths.append(make_drive(drive, size_mib))
            self.drives.append(drive)
        port = 4500 + len(self.agents)
        # One kernel plays all machines, and an emulated one may stop for a second.
        base = MdOptions(
            drives=tuple(paths), address="127.0.0.1", port=port, queues=1, keep_alive_s=5,
            interval_s=0.5,
        )  # fmt: skip
        if transport == "rdma":
            base = attrs.evolve(base, address="", rdma_address="10.0.2.15", rdma_port=port + 100)
        chosen = attrs.evolve(base, **options)  # type: ignore[arg-type]
        around = Around(
            NodeName(name), "lab", self.store, lambda _: self.policy,
            lambda: frozenset(NodeName(n) for n in self.agents if n not in self.down),
            lambda volume, kind, sentence: self.events.append(f"{volume.name} {kind}: {sentence}"),
        )  # fmt: skip
        self.agents[name] = Agent(around, chosen)

    def restart(self, name: str) -> None:
        """A daemon that begins anew knows nothing but what it finds."""
        old = self.agents[name]
        self.agents[name] = Agent(old.around, old.options)

    async def volume(self, name: str) -> MdVolume:
        entry = await self.store.get(f"{VOLUMES}{name}")
        assert entry is not None
        return MdVolume.from_bytes(entry.value)

    async def change(self, name: str, change: Callable[[MdVolume], MdVolume]) -> None:
        entry = await self.store.get(f"{VOLUMES}{name}")
        assert entry is not None
        changed = change(MdVolume.from_bytes(entry.value))
        await self.store.compare_and_set(entry.key, changed.to_bytes(), entry.version)

    async def round(self) -> None:
        for name, agent in list(self.agents.items()):
            if name not in self.down:
                await agent.reconcile()

    async def create(self, name: str, size_mib: int, **fields: object) -> str:
        """Make a volume and return its device once all its members are in sync."""
        await self.round()
        nodes = {}
        for entry in await self.store.list(NODES):
            node = MdNode.from_bytes(entry.value)
            nodes[node.name] = node
        volume = MdVolume(uuid.uuid4().hex, name, size_mib * MIB, **fields)  # type: ignore[arg-type]
        volume = first_members(volume, nodes, time.time())
        await self.store.compare_and_set(f"{VOLUMES}{name}", volume.to_bytes(), None)
        await self.until(name, lambda v: v.status.mdstate in {"active", "clean"} and quiet(v))
        return (await self.volume(name)).status.device

    async def until(
        self, name: str, holds: Callable[[MdVolume], bool], *, told: list[MdVolume] | None = None
    ) -> MdVolume:
        """Let the nodes work until the volume's record is as it should be."""
        give_up = time.monotonic() + PATIENCE_S
        while True:
            await self.round()
            volume = await self.volume(name)
            if told is not None:
                told.append(volume)
            if holds(volume):
                return volume
            assert time.monotonic() < give_up, (
                volume, self.events, {n: a.errors for n, a in self.agents.items()},
                dmesg(),
            )  # fmt: skip
            await asyncio.sleep(0.1)

    async def until_gone(self, name: str) -> None:
        give_up = time.monotonic() + PATIENCE_S
        while await self.store.get(f"{VOLUMES}{name}") is not None:
            assert time.monotonic() < give_up, await self.volume(name)
            await self.round()

    def transports(self) -> set[str]:
        """What the imports of all nodes go over."""
        paths = Path("/sys/class/nvme").glob("nvme*/transport")
        return {path.read_text().strip() for path in paths}

    def mismatches(self, device: str) -> int:
        """Let MD compare the members; returns the sectors that differ."""
        home = Path("/sys/block", device.removeprefix("/dev/"), "md")
        (home / "sync_action").write_text("check")
        subprocess.run(["mdadm", "--wait", device], check=False)
        return int((home / "mismatch_cnt").read_text())

    def verify_members(self, shadow: Shadow) -> None:
        """Look for what was written in every slice there is, behind MD's back."""
        for name, agent in self.agents.items():
            assert agent.seen is not None
            for each in agent.seen.slices.values() if name not in self.down else ():
                shadow.verify_member(each.path)

    def cut(self, name: str) -> None:
        """The node's machine is gone: nobody reaches its exports, and its agent does nothing."""
        self.down.add(name)
        for number in self.agents[name].home.ports:
            for link in Path(CONFIGFS, "ports", str(number.number), "subsystems").glob("*"):
                link.unlink()

    def back(self, name: str) -> None:
        self.down.discard(name)

    async def close(self) -> None:
        """Undo everything."""
        for agent in self.agents.values():
            await agent.aclose()
        await asyncio.to_thread(clear)
        for name in self.drives:
            remove_drive(name)


def clear() -> None:
    for folder in Path("/sys/block").glob("md*"):
        quietly("umount", f"/dev/{folder.name}")
        quietly("mdadm", "--stop", f"/dev/{folder.name}")
    for path in Path("/sys/class/nvme").glob("nvme*/delete_controller"):
        path.write_text("1")
    for pattern in ("ports/*/subsystems/*", "subsystems/*/allowed_hosts/*"):
        for link in Path(CONFIGFS).glob(pattern):
            link.unlink()
    for pattern in ("subsystems/*/namespaces/*", "subsystems/*", "ports/*", "hosts/*"):
        for folder in Path(CONFIGFS).glob(pattern):
            folder.rmdir()


def quietly(*argv: str) -> None:
    subprocess.run(argv, capture_output=True, check=False)


@contextlib.contextmanager
def roomy(folder: Path) -> Iterator[Path]:
    """Give a folder the room that nodes want to keep free, whatever the guest's memory."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4g", "tmpfs", str(folder)], check=True)
    try:
        yield folder
    finally:
        clear()
        quietly("umount", "--lazy", str(folder))


def dmesg() -> str:
    done = subprocess.run(["dmesg"], capture_output=True, text=True, check=False)
    return Path("/proc/mdstat").read_text() + "\n".join(done.stdout.splitlines()[-25:])


def quiet(volume: MdVolume) -> bool:
    return all(m.state.value == "synced" and not m.replaces for m in volume.members)


def in_sync_on(volume: MdVolume, node: str) -> bool:
    return all(m.state.value == "synced" for m in volume.members if m.node == node)


@contextlib.asynccontextmanager
async def lab() -> AsyncIterator[Lab]:
    store = await registry.load("state", "memory").open(
        registry.load("state", "memory").Options(name=uuid.uuid4().hex)
    )
    made = Lab(store)
    try:
        yield made
    finally:
        await made.close()
        await store.aclose()


@attrs.define
class Shadow:
    """Random blocks written to a device, and what they were."""

    device: str
    size: int
    dice: random.Random = attrs.field(factory=lambda: random.Random(7))
    blocks: dict[int, bytes] = attrs.field(factory=dict)

    def write(self, count: int, *, within: int | None = None) -> None:
        handle = os.open(self.device, os.O_WRONLY)
        try:
            for _ in range(count):
                at = self.dice.randrange((within or self.size) // BLOCK) * BLOCK
                data = self.dice.randbytes(BLOCK)
                os.pwrite(handle, data, at)
                self.blocks[at] = data
            os.fsync(handle)
        finally:
            os.close(handle)

    def verify(self) -> None:
        Path("/proc/sys/vm/drop_caches").write_text("3")
        handle = os.open(self.device, os.O_RDONLY)
        try:
            for at, data in self.blocks.items():
                assert os.pread(handle, BLOCK, at) == data, (self.device, at)
        finally:
            os.close(handle)

    def verify_member(self, path: str) -> None:
        """Every block is on one member of a RAID1 too."""
        Path("/proc/sys/vm/drop_caches").write_text("3")
        handle = os.open(path, os.O_RDONLY)
        try:
            for at, data in self.blocks.items():
                assert os.pread(handle, BLOCK, DATA_OFFSET_BYTES + at) == data, (path, at)
        finally:
            os.close(handle)


def run(test: Callable[[Lab], Awaitable[None]]) -> None:
    """Run an async test in a lab of its own."""

    async def inside() -> None:
        async with lab() as made:
            await test(made)

    asyncio.run(inside())
