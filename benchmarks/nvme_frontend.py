"""The NVMe/TCP frontend beside the NBD frontend: the same volume in memory, the same loads, user space.

    python benchmarks/nvme_frontend.py [--seconds 2] [--rounds 3]

Both are driven by the same loop over one connection: a burst of requests made beforehand is sent, and
as many bytes as its answers have are awaited. So the client costs both alike, and next to nothing.
Prints requests per second (medians of the rounds, in turn) and the server's processor time for each.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import socket
import statistics
import struct
import subprocess
import sys
import time
from pathlib import Path

import attrs
import uvloop

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from tests.harness.nbd import NbdConnection  # noqa: E402

from holdfast.node.nbd import NbdFrontendDriver, NbdOptions  # noqa: E402
from holdfast.sockets import split_address  # noqa: E402
from holdfast.testing.memory_volume import MemoryVolumeProvider  # noqa: E402
from holdfast.units import MIB  # noqa: E402
from holdfast_transport_nvmeof import NvmeTcpFrontendDriver, NvmeTcpOptions  # noqa: E402
from holdfast_transport_nvmeof.commands import Command, IoOpcode, SglType  # noqa: E402
from holdfast_transport_nvmeof.fabrics import Connect, Property, property_set  # noqa: E402
from holdfast_transport_nvmeof.host import Finished, HostQueue  # noqa: E402
from holdfast_transport_nvmeof.initiator import CC_READY  # noqa: E402
from holdfast_transport_nvmeof.namespace import nqn_of  # noqa: E402
from holdfast_transport_nvmeof.pdu import PduType  # noqa: E402

SIZE = 256 * MIB
GOAL = 0.7
_NBD_REQUEST = struct.Struct(">IHHQQI")


@attrs.frozen
class Load:
    """What one burst consists of."""

    writes: bool
    block: int
    depth: int

    def __str__(self) -> str:
        """Return it as the table's first column."""
        return f"{'write' if self.writes else 'read'} {self.block >> 10}k depth {self.depth}"


LOADS = [
    Load(writes, *rest) for rest in ((4096, 1), (4096, 32), (65536, 8)) for writes in (True, False)
]


@attrs.frozen
class Burst:
    """Requests made beforehand, and how long their answers are together."""

    socket: socket.socket
    requests: bytes
    answer_bytes: int


def nbd(address: str, load: Load) -> Burst:
    """Return a burst of NBD requests on a fresh connection; its replies are simple ones."""
    connection = NbdConnection(f"nbd://{address}/db")
    requests = b"".join(
        _NBD_REQUEST.pack(0x25609513, 0, int(load.writes), n, n * 524288, load.block)
        + (bytes(load.block) if load.writes else b"")
        for n in range(load.depth)
    )
    answer = 16 + (0 if load.writes else load.block)
    return Burst(connection._socket, requests, answer * load.depth)  # noqa: SLF001 - bytes as they are.


def nvme(address: str, load: Load) -> Burst:
    """Return a burst of NVMe commands on a fresh I/O queue."""
    identity = Connect(nqn_of("db"), "nqn.2014-08.org.nvmexpress:bench", bytes(16))
    admin = HostQueue()
    admin_socket = _opened(address)
    cntlid = _asked(admin, admin_socket, identity.command(0), identity.data()).dw0 & 0xFFFF
    _asked(admin, admin_socket, property_set(0, Property.CC, CC_READY))
    _kept.append(admin_socket)
    queue, own = HostQueue(), _opened(address)
    identity = attrs.evolve(identity, cntlid=cntlid, qid=1, entries=128)
    _asked(queue, own, identity.command(0), identity.data())
    requests = bytearray()
    for n in range(load.depth):
        lba, blocks = n * 1024, load.block // 512
        opcode, sgl = IoOpcode.READ, SglType.TRANSPORT_DATA_BLOCK
        if load.writes:
            opcode, sgl = IoOpcode.WRITE, SglType.DATA_BLOCK_OFFSET
        sqe = Command(opcode, 0x40, n, 1, 0, 0, 0, load.block, sgl, lba, 0, blocks - 1)
        data = bytes(load.block) if load.writes else b""
        requests += b"".join(queue.framing.pdu(PduType.CAPSULE_CMD, 0, sqe.pack(), data))
    answer = 24 + (0 if load.writes else load.block)
    return Burst(own, bytes(requests), answer * load.depth)


_kept: list[socket.socket] = []
"""Admin queues, which must live as long as their I/O queues."""


def _opened(address: str) -> socket.socket:
    opened = socket.create_connection(split_address(address), timeout=30)
    opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return opened


def _asked(queue: HostQueue, own: socket.socket, command: Command, data: bytes = b"") -> Finished:
    """Send a command and wait for its completion."""
    queue.submit(command, None, data=data)
    received = b""
    while not queue.finished:
        output, queue.output = queue.output, []
        own.sendall(b"".join(output))
        received += own.recv(1 << 16)
        received = received[queue.parse(memoryview(received), 0, len(received)) :]
        if queue.output:
            own.sendall(b"".join(queue.output))
            queue.output = []
    (finished,), queue.finished = queue.finished, []
    assert not finished.status, finished
    return finished


def drive(burst: Burst, load: Load, seconds: float) -> float:
    """Repeat a burst and return requests per second."""
    room = memoryview(bytearray(1 << 20))
    begun, done = time.perf_counter(), 0
    while (took := time.perf_counter() - begun) < seconds:
        burst.socket.sendall(burst.requests)
        left = burst.answer_bytes
        while left:
            left -= burst.socket.recv_into(room, min(left, len(room)))
        done += load.depth
    return done / took


async def _serve() -> None:
    provider = MemoryVolumeProvider(answers_at_once=True)
    provider.add("db", SIZE)
    nbd_frontend = await NbdFrontendDriver.open(NbdOptions(listen="127.0.0.1:0"), provider)
    options = NvmeTcpOptions(listen="127.0.0.1:0", discovery_listen="")
    nvme_frontend = await NvmeTcpFrontendDriver.open(options, provider)
    print(nbd_frontend.address, nvme_frontend.address, flush=True)
    await asyncio.to_thread(sys.stdin.read)
    await nvme_frontend.aclose()
    await nbd_frontend.aclose()


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.serve:
        uvloop.run(_serve())
        return
    for load in LOADS:
        rates: dict[str, list[float]] = {"nbd": [], "nvme": []}
        cpu_us: dict[str, list[float]] = {"nbd": [], "nvme": []}
        with subprocess.Popen(
            [sys.executable, __file__, "--serve"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        ) as server:
            assert server.stdout is not None
            addresses = server.stdout.readline().split()
            for _ in range(chosen.rounds):
                for (name, make), address in zip(
                    (("nbd", nbd), ("nvme", nvme)), addresses, strict=True
                ):
                    burst = make(address, load)
                    drive(burst, load, 0.1)
                    before = _cpu_s(server.pid)
                    rate = drive(burst, load, chosen.seconds)
                    cpu_us[name].append(
                        (_cpu_s(server.pid) - before) / (rate * chosen.seconds) * 1e6
                    )
                    rates[name].append(rate)
                    burst.socket.close()
                    while _kept:
                        _kept.pop().close()
            server.communicate("")
        ours, theirs = statistics.median(rates["nvme"]), statistics.median(rates["nbd"])
        cpu = {name: statistics.median(values) for name, values in cpu_us.items()}
        print(
            f"{load!s:20} nvme {ours:8,.0f}/s  nbd {theirs:8,.0f}/s  ratio {ours / theirs:4.2f}"
            f" ({'reached' if ours >= GOAL * theirs else 'MISSED'})"
            f"  server cpu us {cpu['nvme']:5.1f} and {cpu['nbd']:5.1f},"
            f" {cpu['nbd'] / cpu['nvme']:4.2f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
