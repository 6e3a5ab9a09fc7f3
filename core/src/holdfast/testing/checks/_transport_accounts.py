"""What a transport counts, and what it does with bytes of strangers."""

from __future__ import annotations

import random

import anyio

from holdfast.interfaces.transport import Link, LinkHandler
from holdfast.messages import Hello
from holdfast.testing.checks import CheckFailedError, expect
from holdfast.testing.checks._transport_bench import (
    HELLO,
    Subject,
    bench,
    pattern,
    settle,
    write,
)
from holdfast.units import MIB

METRICS = (
    "frames_sent",
    "bytes_plain_sent",
    "bytes_wire_sent",
    "frames_received",
    "bytes_plain_received",
    "bytes_wire_received",
    "frames_stored",
)

_STRANGERS = (
    b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200),
    bytes(4096),
    b"\xff" * 4096,
    random.Random(11).randbytes(65536),
)


async def check_unsent_bytes_tell_of_a_receiver_that_stalls(subject: Subject) -> None:
    """They grow with what is sent while nobody reads, and fall to nothing when it has been read."""
    async with bench(subject) as b:
        pair = await b.pair()
        expect(pair.near.unsent_bytes == 0, "An idle link counts unsent bytes.")
        block = random.Random(1).randbytes(MIB)
        seen = []
        for i in range(1, 65):
            # No await here: the receiver has no chance to read.
            pair.near.send([write(i, block)])
            seen.append(pair.near.unsent_bytes)
        expect(seen == sorted(seen), "Unsent bytes fell while nobody was reading.")
        expect(seen[-1] >= 32 * MIB, f"64 MiB are on their way, {seen[-1]} bytes count as unsent.")
        expect(seen[-1] <= 66 * MIB, "Unsent bytes count more than was sent.")
        await pair.at_far.until(lambda: len(pair.at_far.ops) == 64, "the arrival of 64 MiB")
        await b.until(lambda: pair.near.unsent_bytes == 0, "the fall of unsent bytes to zero")


async def check_metrics_count_frames_and_bytes(subject: Subject) -> None:
    """Both ends count the same traffic, plain and on the wire."""
    async with bench(subject) as b:
        got = b.recorder()
        far, listener = await b.listening(lambda _link, _hello: got)
        near = await b.node("a")
        link = await near.connect(listener.address, HELLO, b.recorder())
        for transport in (near, far):
            lacking = [name for name in METRICS if name not in transport.metrics()]
            expect(not lacking, f"The metrics lack {', '.join(lacking)}.")
        before = dict(near.metrics())
        sent = 0
        for i in range(1, 33):
            link.send([write(i, bytes(65536))])
            sent += 65536
        await got.until(lambda: len(got.ops) == 32, "arrival")
        here, there = near.metrics(), far.metrics()
        grown = {name: here[name] - before[name] for name in METRICS}
        expect(grown["frames_sent"] >= 1, "Sent frames are not counted.")
        expect(there["frames_received"] >= 1, "Received frames are not counted.")
        expect(grown["bytes_plain_sent"] >= sent, "Plain bytes sent are not counted.")
        expect(there["bytes_plain_received"] >= sent, "Plain bytes received are not counted.")
        expect(grown["bytes_wire_sent"] > 0, "Bytes on the wire are not counted.")
        await b.until(
            lambda: far.metrics()["bytes_wire_received"] >= grown["bytes_wire_sent"],
            "the arrival of as many bytes on the wire as were sent",
        )
        smaller = grown["bytes_wire_sent"] < grown["bytes_plain_sent"] / 2
        declared = subject.capabilities.compresses
        expect(
            smaller == declared,
            f"Compression is declared as {declared}; zeros took {grown['bytes_wire_sent']} bytes "
            f"on the wire for {grown['bytes_plain_sent']}.",
        )


async def check_strangers_are_cut_off_and_change_nothing(subject: Subject) -> None:
    """Bytes of another protocol close their connection; links that stand do not notice."""
    async with bench(subject) as b:
        seen: list[Hello] = []
        got = b.recorder()

        def accept(_link: Link, hello: Hello) -> LinkHandler:
            seen.append(hello)
            return got

        _, listener = await b.listening(accept)
        node = await b.node("a")
        link = await node.connect(listener.address, HELLO, b.recorder())
        await b.until(lambda: len(seen) == 1, "the acceptance of a link")
        for number, stranger in enumerate(_STRANGERS, 1):
            await _intrude(subject, listener.address, stranger)
            link.send([write(number, pattern(number, 4096))])
            await got.until(lambda n=number: len(got.ops) == n, "arrival beside a stranger")  # type: ignore[misc]
        await settle()
        expect(len(seen) == 1, "accept was called for a stranger.")


async def _intrude(subject: Subject, address: str, greeting: bytes) -> None:
    """Send `greeting` over a bare connection and wait until the other side has closed it."""
    host, _, port = address.rpartition(":")
    if not subject.capabilities.byte_stream:
        expect(not port.isdecimal(), "An address that no stranger can reach looks like host:port.")
        return
    with anyio.move_on_after(subject.patience_s):
        async with await anyio.connect_tcp(host.strip("[]"), int(port)) as stream:
            try:
                await stream.send(greeting)
                while True:
                    await stream.receive()
            except (anyio.EndOfStream, anyio.BrokenResourceError):
                return
    raise CheckFailedError(f"A connection that began with {greeting[:16]!r} was not closed.")
