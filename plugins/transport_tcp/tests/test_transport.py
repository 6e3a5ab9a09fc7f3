"""What only this transport promises: its handshake, its limits and its deadlines, over real sockets."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import anyio
import attrs
import pytest
from plugins.transport_tcp.tests.tcp_wire import decoded, encoded, forged

from holdfast import messages as m
from holdfast.errors import (
    RefusedError,
    RemoteProtocolError,
    UnavailableError,
    UsageError,
)
from holdfast.interfaces.passing import Passed
from holdfast.interfaces.transport import Link, Listener, PassingLink, PassingTransport
from holdfast.testing.checks._transport_bench import HELLO, Recorder, write
from holdfast.units import MIB, Epoch, Sequence
from holdfast_transport_tcp import TcpOptions, TcpTransport, TcpTransportDriver
from holdfast_transport_tcp.layout import HELLO_BYTES_MAX, PREFACE_BYTES_MAX, FrameType
from holdfast_transport_tcp.preface import Preface, Welcome

pytestmark = pytest.mark.anyio
PATIENCE_S = 10.0
PREFACE = encoded([Preface("kit", "stranger", ("none",), ())])


@pytest.fixture(params=[False, True], ids=["asyncio", "uvloop"])
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    return "asyncio", {"use_uvloop": request.param}


@attrs.define
class Node:
    """A listening node and what came to it."""

    transport: TcpTransport
    listener: Listener = attrs.field(init=False)
    links: list[Link] = attrs.field(factory=list)
    recorders: list[Recorder] = attrs.field(factory=list)

    def accept(self, link: Link, hello: m.Hello) -> Recorder:
        recorder = Recorder(PATIENCE_S)
        recorder.hello = hello
        self.links.append(link)
        self.recorders.append(recorder)
        return recorder

    @property
    def address(self) -> tuple[str, int]:
        host, _, port = self.listener.address.rpartition(":")
        return host.strip("[]"), int(port)

    async def until(self, holds: Callable[[], bool]) -> None:
        with anyio.fail_after(PATIENCE_S):
            while not holds():  # noqa: ASYNC110 - counters give no notice.
                await anyio.sleep(0.001)


@asynccontextmanager
async def node(name: str = "b", **options: Any) -> AsyncIterator[Node]:
    transport = await TcpTransportDriver.open(TcpOptions(**{"port": 0, **options}), "kit", name)
    found = Node(transport)
    try:
        found.listener = await transport.listen(found.accept)
        yield found
    finally:
        await transport.aclose()


@asynccontextmanager
async def client(**options: Any) -> AsyncIterator[TcpTransport]:
    transport = await TcpTransportDriver.open(TcpOptions(**{"port": 0, **options}), "kit", "a")
    try:
        yield transport
    finally:
        await transport.aclose()


async def drained(stream: anyio.abc.ByteStream) -> bytes:
    """Return everything until the other side closes."""
    got = b""
    with anyio.fail_after(PATIENCE_S):
        while True:
            try:
                got += await stream.receive()
            except (anyio.EndOfStream, anyio.BrokenResourceError):
                return got


@pytest.mark.parametrize(
    ("near", "far", "chosen"),
    [
        ("lz4", "lz4", "lz4"),
        ("zstd", "zstd", "zstd"),
        ("zstd", "lz4", "lz4"),
        ("lz4", "zstd", "lz4"),
        ("none", "zstd", "none"),
        ("lz4", "none", "none"),
    ],
)
async def test_two_nodes_use_the_weaker_compression(near: str, far: str, chosen: str) -> None:
    async with node(compression=far) as b, client(compression=near) as a:
        link = await a.connect(b.listener.address, HELLO, Recorder(PATIENCE_S))
        link.send([write(1, b"holdfast" * 4096)])
        await b.until(lambda: bool(b.recorders and b.recorders[0].ops))
        assert b.recorders[0].ops[0].data == b"holdfast" * 4096
        assert (a.metrics()["bytes_wire_sent"] < 8192) == (chosen != "none")


async def test_a_peer_of_another_version_is_told_so() -> None:
    async with node() as b, await anyio.connect_tcp(*b.address) as stream:
        await stream.send(forged(FrameType.PREFACE, b"unknown form", version=2))
        (welcome,) = decoded(await drained(stream))
        assert isinstance(welcome, Welcome)
        assert welcome.refused == "wrong-version"
        assert "version 1, not 2" in welcome.sentence


async def test_a_listener_of_another_version_is_a_refusal() -> None:
    async def serve(stream: anyio.abc.SocketStream) -> None:
        async with stream:
            await stream.receive()
            await stream.send(forged(FrameType.WELCOME, b"another form", version=9))
            await drained(stream)

    async with fake_listener(serve) as address, client() as a:
        with pytest.raises(RefusedError, match="version 9"):
            await a.connect(address, HELLO, Recorder(PATIENCE_S))


@asynccontextmanager
async def fake_listener(serve: Callable[[Any], Any]) -> AsyncIterator[str]:
    async with (
        await anyio.create_tcp_listener(local_host="127.0.0.1") as listener,
        anyio.create_task_group() as tasks,
    ):
        tasks.start_soon(listener.serve, serve)
        port = listener.extra(anyio.abc.SocketAttribute.local_port)  # noqa: S610 - not Django's.
        yield f"127.0.0.1:{port}"
        tasks.cancel_scope.cancel()


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        bytes(100),
        encoded([m.PeerHello("kit", "b", "s")]),  # type: ignore[arg-type]
        encoded([Welcome("kit", "b", "zstd", (), "", "")]),
        encoded([Welcome("kit", "b", "none", (), "", ""), Welcome("kit", "b", "none", (), "", "")]),
    ],
)
async def test_a_listener_that_answers_nonsense_is_a_protocol_error(answer: bytes) -> None:
    async def serve(stream: anyio.abc.SocketStream) -> None:
        async with stream:
            await stream.receive()
            await stream.send(answer)
            await drained(stream)

    async with fake_listener(serve) as address, client() as a:
        handler = Recorder(PATIENCE_S)
        with pytest.raises(RemoteProtocolError):
            await a.connect(address, HELLO, handler)
        assert handler.errors == []


async def test_a_listener_that_says_nothing_is_given_up_in_time() -> None:
    async def serve(stream: anyio.abc.SocketStream) -> None:
        async with stream:
            await drained(stream)

    async with fake_listener(serve) as address, client(connect_timeout_s=0.05) as a:
        with pytest.raises(UnavailableError, match="did not answer"):
            await a.connect(address, HELLO, Recorder(PATIENCE_S))
        assert a.metrics()["connections_open"] == 0 or await _closed(a)


async def _closed(a: TcpTransport) -> bool:
    with anyio.fail_after(PATIENCE_S):
        while a.metrics()["connections_open"]:  # noqa: ASYNC110
            await anyio.sleep(0.001)
    return True


@pytest.mark.parametrize(
    "greeting", [b"", PREFACE[:20], PREFACE], ids=["silent", "half", "no hello"]
)
async def test_a_stranger_that_does_not_finish_its_handshake_is_cut_off(greeting: bytes) -> None:
    async with (
        node(connect_timeout_s=0.05) as b,
        await anyio.connect_tcp(*b.address) as stream,
    ):
        if greeting:
            await stream.send(greeting)
        await drained(stream)
        assert b.recorders == []
        await b.until(lambda: b.transport.metrics()["connections_open"] == 0)


@pytest.mark.parametrize(
    "greeting",
    [
        encoded([HELLO]),
        PREFACE + encoded([HELLO]),
        PREFACE + PREFACE,
        forged(FrameType.PREFACE, bytes(PREFACE_BYTES_MAX + 1)),
    ],
    ids=["hello first", "hello too soon", "twice", "huge"],
)
async def test_a_handshake_out_of_order_is_cut_off(greeting: bytes) -> None:
    async with node() as b, await anyio.connect_tcp(*b.address) as stream:
        await stream.send(greeting)
        assert await drained(stream) == b""
        assert b.recorders == []
        assert b.transport.metrics()["protocol_errors"] == 1


@pytest.mark.parametrize(
    "first",
    [
        encoded([write(1, bytes(512))]),
        encoded([Welcome("kit", "b", "none", (), "", "")]),
        forged(FrameType.ATTACH, stored=HELLO_BYTES_MAX + 1, plain=HELLO_BYTES_MAX + 1),
        bytes(100),
    ],
    ids=["batch", "welcome", "huge", "zeros"],
)
async def test_a_link_that_does_not_open_with_a_hello_is_cut_off(first: bytes) -> None:
    async with node() as b, await anyio.connect_tcp(*b.address) as stream:
        await stream.send(PREFACE)
        (welcome,) = decoded(await stream.receive())
        assert welcome.compression == "none"
        await stream.send(first)
        await drained(stream)
        assert b.recorders == []


async def test_rubbish_on_an_open_link_is_told_to_its_handler_after_what_came_before() -> None:
    async with node() as b, await anyio.connect_tcp(*b.address) as stream:
        await stream.send(PREFACE)
        await stream.receive()
        batch = encoded([write(1, b"good" * 128)])
        await stream.send(encoded([HELLO]) + batch + b"\x00" * 60)
        await drained(stream)
        (recorder,) = b.recorders
        assert [op.data for op in recorder.ops] == [b"good" * 128]
        assert [type(e) for e in recorder.errors] == [RemoteProtocolError]


async def test_a_connection_cut_in_the_middle_of_a_frame_says_so() -> None:
    async with node() as b:
        async with await anyio.connect_tcp(*b.address) as stream:
            await stream.send(PREFACE)
            await stream.receive()
            await stream.send(encoded([HELLO]) + encoded([write(1, bytes(4096))])[:1000])
        await b.until(lambda: bool(b.recorders))
        error = await b.recorders[0].until_lost()
        assert isinstance(error, UnavailableError)
        assert "middle of a frame" in str(error)
        assert b.recorders[0].messages == []


async def test_half_open_connections_are_limited() -> None:
    async with node(half_open_max=2) as b, client() as a, AsyncExitStack() as stack:
        for count in (1, 2):
            await stack.enter_async_context(await anyio.connect_tcp(*b.address))
            await b.until(lambda n=count: b.transport.metrics()["connections_open"] == n)  # type: ignore[misc]
        with pytest.raises(RefusedError, match="handshake"):
            await a.connect(b.listener.address, HELLO, Recorder(PATIENCE_S))
        await stack.aclose()
        await b.until(lambda: b.transport.metrics()["connections_open"] == 0)
        await a.connect(b.listener.address, HELLO, Recorder(PATIENCE_S))


@pytest.mark.parametrize("limit", ["connections_max", "connections_per_node_max"])
async def test_connections_are_limited_and_make_room_when_they_end(limit: str) -> None:
    options: dict[str, Any] = {limit: 2}
    async with node(**options) as b, client() as a:
        links = [await a.connect(b.listener.address, HELLO, Recorder(PATIENCE_S)) for _ in "12"]
        await b.until(lambda: len(b.recorders) == 2)
        with pytest.raises(RefusedError, match="2 connections"):
            await a.connect(b.listener.address, HELLO, Recorder(PATIENCE_S))
        assert b.transport.metrics()["connections_refused"] == 1
        links[0].abort()
        await b.recorders[0].until_lost()
        await b.until(lambda: b.transport.metrics()["connections_open"] == 1)
        await a.connect(b.listener.address, HELLO, Recorder(PATIENCE_S))


async def test_a_closed_link_whose_peer_does_not_read_is_cut_off() -> None:
    async with node(close_timeout_s=0.05) as b, await anyio.connect_tcp(*b.address) as stream:
        await stream.send(PREFACE)
        await stream.receive()
        await stream.send(encoded([HELLO]))
        await b.until(lambda: bool(b.links))
        b.links[0].send([write(i, bytes(MIB)) for i in range(1, 65)])
        b.links[0].close("done")
        await b.until(lambda: b.transport.metrics()["connections_open"] == 0)
        assert b.recorders[0].errors == []


async def test_a_port_that_is_taken_is_an_error_that_names_it() -> None:
    async with node() as b:
        port = b.address[1]
        taken = await TcpTransportDriver.open(TcpOptions(port=port), "kit", "c")
        with pytest.raises(UnavailableError, match=f"127.0.0.1:{port}") as caught:
            await taken.listen(b.accept)
        assert "ss -ltnp" in caught.value.hint


async def test_an_address_that_is_none_of_this_machine_is_an_error() -> None:
    for where in ("192.0.2.1", "no such host"):
        transport = await TcpTransportDriver.open(TcpOptions(listen=where, port=0), "kit", "c")
        with pytest.raises(UnavailableError, match=where):
            await transport.listen(lambda _link, _hello: None)


@pytest.mark.parametrize("address", ["", "host", "host:", ":5703", "host:99999", "host:-1"])
async def test_what_is_no_address_is_a_usage_error(address: str) -> None:
    async with client() as a:
        with pytest.raises(UsageError, match="host:port"):
            await a.connect(address, HELLO, Recorder(PATIENCE_S))


@pytest.mark.skipif(not socket.has_ipv6, reason="Python was built without IPv6")
async def test_links_run_over_ipv6() -> None:
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            pass
    except OSError:
        pytest.skip("this machine has no IPv6 loopback")
    async with node(listen="::1") as b, client() as a:
        assert b.listener.address.startswith("[::1]:")
        link = await a.connect(b.listener.address, HELLO, Recorder(PATIENCE_S))
        await b.until(lambda: len(b.recorders) == 1)
        assert link.peer.startswith("b@[::1]:")


async def test_small_frames_are_sent_at_once_and_dead_peers_noticed() -> None:
    async with node(keepalive_s=7) as b, client() as a:
        link = await a.connect(b.listener.address, HELLO, Recorder(PATIENCE_S))
        await b.until(lambda: len(b.links) == 1)
        for end in (link, b.links[0]):
            own = end._transport.get_extra_info("socket")  # type: ignore[attr-defined]
            assert own.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            assert own.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        own = b.links[0]._transport.get_extra_info("socket")  # type: ignore[attr-defined]
        assert own.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 7
        assert own.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 21_000


async def test_a_connect_that_is_cancelled_leaves_nothing_behind() -> None:
    async def serve(stream: anyio.abc.SocketStream) -> None:
        async with stream:
            await drained(stream)

    async with fake_listener(serve) as address, client() as a:
        with anyio.move_on_after(0.05) as scope:
            await a.connect(address, HELLO, Recorder(PATIENCE_S))
        assert scope.cancelled_caught
        assert await _closed(a)


def test_every_option_is_explained() -> None:
    for field in attrs.fields(TcpOptions):
        assert field.metadata["doc"].endswith("."), field.name


@pytest.mark.parametrize(
    "options",
    [{"port": 70000}, {"compression": "gzip"}, {"frame_bytes_max": 1}, {"keepalive_s": 0}],
)
def test_impossible_options_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        TcpOptions(**options)


@pytest.mark.parametrize("compression", ["lz4", "none"])
async def test_a_link_goes_on_in_another_process_with_all_that_has_arrived(
    compression: str,
) -> None:
    passed: list[Passed] = []

    def pass_on(link: Link, _hello: m.Hello) -> None:
        assert isinstance(link, PassingLink)
        passed.append(link.pass_on())

    async with (
        node(compression=compression) as b,
        client(compression=compression) as worker,
        client(compression=compression) as a,
    ):
        listener = await b.transport.listen(pass_on)
        theirs = Recorder(PATIENCE_S)
        link = await a.connect(listener.address, HELLO, theirs)
        # In one piece with the first message, or a part of it, as the network likes.
        link.send([write(1, b"holdfast" * 4096), m.Ack(Epoch(1), Sequence(1), Sequence(0))])
        await b.until(lambda: bool(passed))
        assert isinstance(worker, PassingTransport)
        await worker.adopt(passed[0], b.accept)
        await b.until(lambda: bool(b.recorders) and len(b.recorders[0].messages) == 2)
        assert b.recorders[0].hello == HELLO
        assert b.recorders[0].ops[0].data == b"holdfast" * 4096
        assert b.links[0].peer.startswith("a@")
        b.links[0].send([m.Ack(Epoch(2), Sequence(2), Sequence(0))])
        await b.until(lambda: len(theirs.messages) == 1)
        await b.until(lambda: b.transport.metrics()["connections_open"] == 0)
        assert worker.metrics()["connections_open"] == 1
        assert not theirs.errors
