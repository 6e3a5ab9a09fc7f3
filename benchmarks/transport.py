"""Measures a transport alone: two processes over loopback, no disk, no replication logic.

One process sends batches as a primary does, the other answers each wake-up with one cumulative
acknowledgement as a copy does. Run it on an otherwise idle machine:

    python benchmarks/transport.py --seconds 3
    python benchmarks/transport.py --transport nvme-tcp
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

import attrs
import uvloop

from holdfast.errors import HoldfastError
from holdfast.interfaces.transport import Link, Transport
from holdfast.messages import Ack, Batch, Hello, Message, Op, OpKind, PeerHello
from holdfast.units import KIB, MIB, Epoch, NodeName
from holdfast.units import Sequence as Place
from holdfast_transport_nvmeof import NvmeTcpTransportDriver
from holdfast_transport_tcp import TcpTransportDriver

EPOCH = Epoch(1)


@attrs.frozen
class Load:
    """What is kept in flight."""

    name: str
    op_bytes: int
    ops_per_batch: int
    batches_in_flight: int

    @property
    def is_latency(self) -> bool:
        """Whether the time of one round trip is what matters."""
        return self.ops_per_batch == self.batches_in_flight == 1 and self.op_bytes <= 4 * KIB


LOADS = (
    Load("16 x 4 KiB", 4 * KIB, 16, 4),
    Load("64 KiB", 64 * KIB, 1, 8),
    Load("1 MiB", MIB, 1, 4),
    Load("4 KiB depth 1", 4 * KIB, 1, 1),
)


class Answerer:
    """The copy's end: one acknowledgement for each wake-up."""

    def __init__(self, link: Link) -> None:
        self._link = link

    def on_messages(self, messages: Sequence[Message]) -> None:
        """Acknowledge the last batch."""
        batch = messages[-1]
        assert isinstance(batch, Batch)
        last = Place(batch.first + len(batch.ops) - 1)
        self._link.send([Ack(EPOCH, last, Place(0))])

    def on_lost(self, error: HoldfastError) -> None:
        """Wait for the next sender."""


class Sender:
    """The primary's end: keeps a load in flight until the time is over."""

    def __init__(self, load: Load, payloads: list[bytes], seconds: float) -> None:
        self._load = load
        self._payloads = payloads
        self._seconds = seconds
        self._next = 1
        self._sent_at: dict[int, float] = {}
        self._turn = 0
        self.link: Link | None = None
        self.latencies_s: list[float] = []
        self.applied = 0
        self.begun_at = 0.0
        self.done: asyncio.Future[float] = asyncio.get_running_loop().create_future()

    def begin(self, link: Link) -> None:
        """Fill the window."""
        self.link = link
        self.begun_at = time.perf_counter()
        for _ in range(self._load.batches_in_flight):
            self._send_batch()

    def _send_batch(self) -> None:
        assert self.link is not None
        size, count = self._load.op_bytes, self._load.ops_per_batch
        payloads, turn = self._payloads, self._turn
        ops = [
            Op(OpKind.WRITE, (turn + i) * size, size, payloads[(turn + i) % len(payloads)])
            for i in range(count)
        ]
        self._turn += count
        first = Place(self._next)
        self._next += count
        self._sent_at[self._next - 1] = time.perf_counter()
        self.link.send([Batch(EPOCH, first, Place(self.applied), ops)])

    def on_messages(self, messages: Sequence[Message]) -> None:
        """Refill the window by what was acknowledged."""
        now = time.perf_counter()
        ack = messages[-1]
        assert isinstance(ack, Ack)
        while self.applied < ack.applied:
            self.applied += self._load.ops_per_batch
            self.latencies_s.append(now - self._sent_at.pop(self.applied))
            if now - self.begun_at < self._seconds:
                self._send_batch()
        if not self._sent_at and not self.done.done():
            self.done.set_result(now - self.begun_at)

    def on_lost(self, error: HoldfastError) -> None:
        """Fail the run."""
        if not self.done.done():
            self.done.set_exception(error)


DRIVERS: dict[str, Any] = {"tcp": TcpTransportDriver, "nvme-tcp": NvmeTcpTransportDriver}
COMPRESSIONS = ["none", "lz4", "zstd"]
"""What `tcp` offers."""


async def _open(driver: str, compression: str, node: str) -> Transport:
    chosen = DRIVERS[driver]
    more = {"compression": compression} if driver == "tcp" else {}
    opened: Transport = await chosen.open(chosen.Options(port=0, **more), "bench", node)
    return opened


async def _answer(driver: str, compression: str) -> None:
    transport = await _open(driver, compression, "copy")

    def accept(link: Link, _hello: Hello) -> Answerer:
        return Answerer(link)

    listener = await transport.listen(accept)
    print(listener.address, flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    await transport.aclose()


def _payloads(size: int, data: str) -> list[bytes]:
    """Return 16 payloads: random bytes, half random and half zeros, or words."""
    rng = random.Random(7)
    words = [
        bytes(rng.choices(b"abcdefghijklmnopqrstuvwxyz", k=rng.randint(2, 9))) for _ in range(4000)
    ]

    def one() -> bytes:
        if data == "random":
            return rng.randbytes(size)
        if data == "half":
            return b"".join(rng.randbytes(256) + bytes(256) for _ in range(size // 512))
        return b" ".join(rng.choices(words, k=size // 4))[:size].ljust(size)

    return [one() for _ in range(16)]


async def _send(driver: str, address: str, compression: str, data: str, seconds: float) -> None:
    for load in LOADS:
        transport = await _open(driver, compression, "primary")
        sender = Sender(load, _payloads(load.op_bytes, data), seconds)
        link = await transport.connect(
            address, PeerHello("bench", NodeName("primary"), "s"), sender
        )
        cpu = time.process_time()
        sender.begin(link)
        took_s = await sender.done
        cpu = time.process_time() - cpu
        counted = transport.metrics()
        ratio = counted["bytes_wire_sent"] / counted["bytes_plain_sent"]
        p50_us = statistics.median(sender.latencies_s) * 1e6
        print(
            f"{compression:5} {data:7} {load.name:14} {sender.applied / took_s:9,.0f} ops/s "
            f"{sender.applied * load.op_bytes / took_s / 1e6:8,.0f} MB/s  p50 {p50_us:8,.0f} us  "
            f"wire/plain {ratio:5.2f}  sender cpu {cpu / took_s:4.0%}",
            flush=True,
        )
        await transport.aclose()


def main() -> None:
    """Run every load with every compression, or the one that was asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--transport", default="tcp", choices=sorted(DRIVERS))
    parser.add_argument("--compression", action="append", choices=COMPRESSIONS)
    parser.add_argument("--data", action="append", choices=["random", "half", "text"])
    parser.add_argument("--answer", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    driver: str = arguments.transport
    if arguments.answer:
        uvloop.run(_answer(driver, arguments.answer))
        return
    every = COMPRESSIONS if driver == "tcp" else COMPRESSIONS[:1]
    for compression in arguments.compression or every:
        with subprocess.Popen(
            [sys.executable, __file__, "--transport", driver, "--answer", compression],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        ) as answerer:
            assert answerer.stdout is not None
            address = answerer.stdout.readline().strip()
            for data in arguments.data or ["random", "half"]:
                uvloop.run(_send(driver, address, compression, data, arguments.seconds))
            answerer.communicate("")


if __name__ == "__main__":
    main()
