"""Machines that lose power: every process gone at one moment, and with it whatever no flush covered."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Protocol

import attrs
from tests.harness.cluster import RunningCluster
from tests.harness.disks import LoopDisk

from holdfast.local.copy.superblock import SuperblockFile
from holdfast.node.processes import send, wait_gone


class Power(Protocol):
    """Machines whose power can be cut."""

    def cut(self, nodes: Sequence[str]) -> None:
        """Cut the power of all these machines at one moment."""
        ...

    def boot(self, node: str) -> None:
        """Switch a machine that has lost power on again, and with it its node."""
        ...

    def image(self, node: str) -> Path:
        """Return what a machine's disk holds."""
        ...


@contextmanager
def powered_cluster(folder: Path, *, nodes: int, machines: int) -> Iterator[PoweredCluster]:
    """Start a cluster of which the first `machines` nodes have a disk whose power can be cut."""
    with ExitStack() as stack:
        disks: dict[str, LoopDisk] = {}

        def prepare(cluster: RunningCluster) -> None:
            for node in cluster.names[:machines]:
                disk = LoopDisk(folder / f"{node}.img", cluster.node(node).data)
                disks[node] = stack.enter_context(disk)

        cluster = RunningCluster(folder / "cluster", nodes=nodes, prepare=prepare)
        stack.enter_context(cluster)
        yield PoweredCluster(cluster, disks)


@attrs.frozen
class PoweredCluster:
    """A cluster and the disks of its machines."""

    cluster: RunningCluster
    disks: Mapping[str, LoopDisk]

    def cut(self, nodes: Sequence[str]) -> None:
        """Cut the power of all these machines at one moment."""
        pids = [self.cluster.pid(node) for node in nodes]
        # Nobody sees a disk fail: first the processors stand still, then the disks.
        for pid in pids:
            send(pid, signal.SIGSTOP)
        for node in nodes:
            self.disks[node].cut_power()
        for pid in pids:
            send(pid, signal.SIGKILL)
        assert not wait_gone(pids, 10)

    def image(self, node: str) -> Path:
        """Return what a machine's disk holds."""
        return self.disks[node].image

    def boot(self, node: str) -> None:
        """Start a machine that has lost power, and its node."""
        self.disks[node].power_on()
        boot_anew(self.cluster, node)
        self.cluster.start(node)


def boot_anew(cluster: RunningCluster, node: str) -> None:
    """Make the copies of a node look as if the machine had been started since."""
    for path in cluster.node(node).data.glob("copies/*/superblock"):
        fd = os.open(path, os.O_RDWR)
        try:
            file, _ = SuperblockFile.open(fd, path)
            file.save(attrs.evolve(file.current, boot="the boot before"))
        finally:
            os.close(fd)
