"""`[replicator.md]`: what an operator says of a node's part in md volumes."""

from __future__ import annotations

import attrs

from holdfast_transport_nvmeof.kernel.fabrics import Timeouts
from holdfast_transport_nvmeof.kernel.target import RDMA_PORT, TCP_PORT, Port


@attrs.frozen
class MdOptions:
    """`[replicator.md]`: volumes kept equal by Linux MD over NVMe-oF."""

    drives: tuple[str, ...] = ()
    """Patterns of the drives that may be divided, such as "/dev/disk/by-id/nvme-*"; a drive must have
    a GPT, or nothing at all."""
    files: str = attrs.field(default="", metadata={"path": True})
    """A folder for members as files, where there are no drives; empty: no files."""
    address: str = ""
    """The IP address at which this node exports over TCP; empty: not at all."""
    port: int = attrs.field(default=TCP_PORT, metadata={"min": 1, "max": 65535})
    """The TCP port of the exports."""
    rdma_address: str = ""
    """The IP address at which this node exports over RDMA; empty: not at all. Nodes that both have
    one use RDMA."""
    rdma_port: int = attrs.field(default=RDMA_PORT, metadata={"min": 1, "max": 65535})
    """The RDMA port of the exports."""
    from_address: str = ""
    """The IP address to import from; empty lets routing choose."""
    mount: str = attrs.field(default="", metadata={"path": True})
    """Volumes used on this node are mounted below this folder; empty leaves mounting to others."""
    keep_alive_s: int = attrs.field(default=1, metadata={"min": 1, "unit": "s"})
    """How soon a silent target is noticed."""
    fast_io_fail_s: int = attrs.field(default=1, metadata={"min": 0, "unit": "s"})
    """How soon requests to it fail after that, so that MD goes on without it."""
    controller_loss_s: int = attrs.field(default=3, metadata={"min": 1, "unit": "s"})
    """How soon its device is removed."""
    reconnect_s: int = attrs.field(default=1, metadata={"min": 1, "unit": "s"})
    """How often the kernel tries to reach it again until then."""
    queues: int = attrs.field(default=16, metadata={"min": 1, "max": 128})
    """I/O queues of each import, at most one per processor."""
    interval_s: float = attrs.field(default=10.0, metadata={"min": 0.1, "unit": "s"})
    """How often everything is looked at, beside when the kernel or the cluster tell of a change."""
    dry_run: bool = False
    """Only log the commands that would be run."""

    @property
    def timeouts(self) -> Timeouts:
        """The timeouts of imports."""
        return Timeouts(
            self.keep_alive_s, self.fast_io_fail_s, self.controller_loss_s, self.reconnect_s
        )

    @property
    def ports(self) -> tuple[Port, ...]:
        """Where this node exports."""
        found = []
        if self.rdma_address:
            found.append(Port("rdma", self.rdma_address, str(self.rdma_port)))
        if self.address:
            found.append(Port("tcp", self.address, str(self.port)))
        return tuple(found)
