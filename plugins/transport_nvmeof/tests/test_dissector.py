"""What goes over the wire, as Wireshark's dissector reads it: both ends of both drivers.

A proxy between the ends keeps the bytes; they are put into a capture file, so that neither root nor an
interface is needed. Needs tshark.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import struct
import subprocess
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import attrs
import pytest

from holdfast.messages import Ack, Batch, Hello, Op, OpKind
from holdfast.sockets import split_address
from holdfast.testing.checks._transport_bench import HELLO, Recorder
from holdfast.testing.checks.transport import EXAMPLES
from holdfast.testing.memory_volume import MemoryVolumeProvider
from holdfast.units import MIB, Epoch, Sequence
from holdfast_transport_nvmeof import (
    Digests,
    NvmeTcpFrontendDriver,
    NvmeTcpOptions,
    NvmeTcpTransportDriver,
    NvmeTcpTransportOptions,
)
from holdfast_transport_nvmeof.initiator import NvmeTcpHost
from holdfast_transport_nvmeof.link import NvmeLink
from holdfast_transport_nvmeof.namespace import nqn_of

pytestmark = pytest.mark.anyio
PORT = 4420
"""What the capture says, whatever ports are really used: the one that the dissector knows."""
SEGMENT_BYTES = 32_000
DEADLINE_S = 30.0


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def tshark() -> str:
    found = shutil.which("tshark")
    if found is None:
        if os.environ.get("CI", "").lower() in {"1", "true", "yes"}:
            pytest.fail("tshark is not installed.", pytrace=False)
        pytest.skip("tshark is not installed.")
    return found


@attrs.define
class Tape:
    """Everything that passed, in order: (connection, from the host, bytes)."""

    passed: list[tuple[int, bool, bytes]] = attrs.field(factory=list)
    connections: int = 0

    @asynccontextmanager
    async def between(self, address: str) -> AsyncIterator[str]:
        """Give an address that leads to `address`, and keep what goes over it."""
        far = split_address(address)
        tasks: set[asyncio.Task[None]] = set()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            self.connections += 1
            number = self.connections
            far_reader, far_writer = await asyncio.open_connection(*far)
            for source, sink, outward in ((reader, far_writer, True), (far_reader, writer, False)):
                tasks.add(asyncio.create_task(self._carry(source, sink, number, outward=outward)))

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        try:
            yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        finally:
            server.close()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _carry(
        self,
        source: asyncio.StreamReader,
        sink: asyncio.StreamWriter,
        number: int,
        *,
        outward: bool,
    ) -> None:
        try:
            while data := await source.read(1 << 20):
                self.passed.append((number, outward, data))
                sink.write(data)
                await sink.drain()
        except ConnectionError:
            pass
        finally:
            sink.close()

    def save(self, path: Path) -> None:
        """Write a capture file of raw IPv4 packets."""
        records = [struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 1 << 18, 101)]
        sent: dict[tuple[int, bool], int] = {}
        for number, outward, data in self.passed:
            for start in range(0, len(data), SEGMENT_BYTES):
                piece = data[start : start + SEGMENT_BYTES]
                own, other = sent.get((number, outward), 1), sent.get((number, not outward), 1)
                sent[number, outward] = own + len(piece)
                ports = (50_000 + number, PORT) if outward else (PORT, 50_000 + number)
                tcp = struct.pack(">HHIIBBHHH", *ports, own, other, 5 << 4, 0x18, 65535, 0, 0)
                ends = (b"\x0a\0\0\1", b"\x0a\0\0\2")
                ip = struct.pack(
                    ">BBHHHBBH4s4s", 0x45, 0, 40 + len(piece), 0, 0, 64, 6, 0,
                    *(ends if outward else ends[::-1]),
                )  # fmt: skip
                packet = ip + tcp + piece
                when = len(records)
                records.append(struct.pack("<IIII", when, 0, len(packet), len(packet)) + packet)
        path.write_bytes(b"".join(records))


def dissected(tshark: str, path: Path) -> Counter[int]:
    """Return how many PDUs of each type the dissector found; fails where it found something wrong."""
    run = [tshark, "-r", str(path), "-d", f"tcp.port=={PORT},nvme-tcp"]
    wrong = "_ws.malformed || _ws.expert.severity >= 6291456"
    told = subprocess.run(
        [*run, "-Y", wrong, "-V"], capture_output=True, text=True, check=True, timeout=120
    )
    assert not told.stdout, told.stdout[:4000]
    fields = subprocess.run(
        [*run, "-T", "fields", "-e", "nvme-tcp.type"],
        capture_output=True, text=True, check=True, timeout=120,
    )  # fmt: skip
    kinds = fields.stdout.replace("\n", ",").split(",")
    return Counter(int(kind, 0) for kind in kinds if kind)


@pytest.mark.parametrize("digests", [0, 3])
async def test_the_dissector_finds_nothing_wrong_with_the_frontend(
    tshark: str, tmp_path: Path, digests: int
) -> None:
    provider, tape = MemoryVolumeProvider(), Tape()
    provider.add("db", 16 * MIB)
    options = NvmeTcpOptions(listen="127.0.0.1:0", discovery_listen="")
    frontend = await NvmeTcpFrontendDriver.open(options, provider)
    try:
        async with tape.between(frontend.address) as address:
            host = await NvmeTcpHost.connect(
                *split_address(address), nqn_of("db"), queues=2, digests=digests
            )
            await host.identify(1)
            await host.log_page(0x0C, 52)
            await host.write(0, bytes(4096))
            await host.write(8192, bytes(MIB), fua=True)
            await host.read(0, 65536)
            await host.write_zeroes(4096, 4096)
            await host.discard(0, 65536)
            await host.compare(0, bytes(512))
            await host.flush()
            await host.aclose()
    finally:
        await frontend.aclose()
    tape.save(tmp_path / "frontend.pcap")
    found = dissected(tshark, tmp_path / "frontend.pcap")
    # ICReq, ICResp, commands, responses, H2CData, C2HData, R2T.
    assert {0, 1, 4, 5, 6, 7, 9} <= found.keys(), found
    assert found[0] == found[1] == 3


@pytest.mark.parametrize("digests", [Digests.NONE, Digests.BOTH])
async def test_the_dissector_finds_nothing_wrong_with_the_transport(
    tshark: str, tmp_path: Path, digests: Digests
) -> None:
    options = NvmeTcpTransportOptions(port=0, digests=digests)
    near = await NvmeTcpTransportDriver.open(options, "kit", "a")
    far = await NvmeTcpTransportDriver.open(options, "kit", "b")
    tape, at_near, at_far = Tape(), Recorder(DEADLINE_S), Recorder(DEADLINE_S)
    accepted: list[NvmeLink] = []

    def accept(link: NvmeLink, _hello: Hello) -> Recorder:
        accepted.append(link)
        return at_far

    try:
        listener = await far.listen(accept)  # type: ignore[arg-type]
        async with tape.between(listener.address) as address:
            link = await near.connect(address, HELLO, at_near)
            ops = [Op(OpKind.WRITE, n * 4096, 4096, bytes([n]) * 4096) for n in range(16)]
            link.send([Batch(Epoch(1), Sequence(1), Sequence(0), [*ops, Op(OpKind.FLUSH, 0, 0)])])
            link.send(EXAMPLES)
            await at_far.until(lambda: len(at_far.messages) > len(EXAMPLES), "arrival")
            accepted[0].send([Ack(Epoch(1), Sequence(17), Sequence(17)), *EXAMPLES])
            await at_near.until(lambda: len(at_near.messages) > len(EXAMPLES), "the answers")
            link.close()
            with anyio.fail_after(DEADLINE_S):
                while near.metrics()["connections_open"]:  # noqa: ASYNC110 - gives no notice.
                    await anyio.sleep(0.01)
    finally:
        await near.aclose()
        await far.aclose()
    tape.save(tmp_path / "transport.pcap")
    found = dissected(tshark, tmp_path / "transport.pcap")
    assert found[0] == found[1] == 2, "an admin queue and an I/O queue"
    assert found[4] > 40
    assert found[7] > 30
