"""Targets for what comes over the network: 5703, NBD from both ends, NVMe/TCP from both ends."""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Callable
from typing import Any, cast

from plugins.transport_nvmeof.tests.machines import Target
from plugins.transport_tcp.tests.tcp_wire import Wire, forged

from holdfast.cli.nbd_client import NbdClient
from holdfast.errors import HoldfastError, RemoteProtocolError
from holdfast.messages import Extent, Reply, Request, RequestKind, pack_extents
from holdfast.node.nbd.handshake import ExportInfo, ExportQuestion, Handshake, ListQuestion, Phase
from holdfast.node.nbd.protocol import Rep
from holdfast.node.nbd.transmission import Transmission
from holdfast.sockets import Counters
from holdfast.units import MIB
from holdfast_transport_nvmeof.authentication import (
    ControllerAuthentication,
    HostAuthentication,
    receive_command,
    send_command,
)
from holdfast_transport_nvmeof.commands import Command
from holdfast_transport_nvmeof.dhchap import Group, Hash, Secret
from holdfast_transport_nvmeof.frames import message_of
from holdfast_transport_nvmeof.host import HostQueue
from holdfast_transport_nvmeof.host_stream import HostStream
from holdfast_transport_nvmeof.initiator import _on_blocks
from holdfast_transport_nvmeof.pdu import Framing, PduError
from holdfast_transport_nvmeof.stream import Stream
from holdfast_transport_nvmeof.target_stream import TargetStream
from holdfast_transport_tcp.decoder import ENTRY_BYTES

SIZE = 64 * MIB
_COMPRESSIONS = ("none", "lz4", "zstd")


def frames(data: bytes) -> None:
    """A link's bytes as they are; the first byte chooses the compression that was agreed on."""
    wire = Wire(_COMPRESSIONS[data[0] % 3] if data else "none")
    try:
        wire.feed(data[1:])
    except RemoteProtocolError:
        return


_FORGED = struct.Struct(">BBBBHIQQ")
"""Type, table entries, compression, spare, count, plain length, epoch, first."""


def frames_forged(data: bytes) -> None:
    """Frames whose checksums are right: what is behind them is reached only so."""
    if len(data) < _FORGED.size:
        return
    kind, entries, packed, _, count, plain, epoch, first = _FORGED.unpack_from(data)
    body = data[_FORGED.size :]
    size = ENTRY_BYTES.get(kind, 0) * count if entries % 2 else entries
    table = min(size, len(body))
    wire = Wire(_COMPRESSIONS[packed % 3])
    is_plain = packed % 3 == 0 or entries % 4 == 3
    frame = forged(
        kind,
        body,
        stored_as=0 if is_plain else packed % 3,
        epoch=epoch,
        first=first,
        count=count,
        plain=None if is_plain else plain,
        table=table,
    )
    try:
        wire.feed(frame)
    except RemoteProtocolError:
        return


def nbd_handshake(data: bytes) -> None:
    """A client's side of the negotiation, and what it sends when it is through."""
    handshake = Handshake()
    try:
        for at in range(0, len(data), 4096):
            handshake.receive(data[at : at + 4096])
            while (question := handshake.next_event()) is not None:
                if isinstance(question, ListQuestion):
                    handshake.answer_list(["a", "b"])
                elif isinstance(question, ExportQuestion) and len(question.name) % 2:
                    handshake.answer_export(ExportInfo(question.name, SIZE, read_only=False))
                else:
                    handshake.refuse(Rep.ERR_UNKNOWN, "There is none.")
            handshake.data_to_send()
            if handshake.phase in {Phase.CHOSEN, Phase.CLOSED}:
                break
    except RemoteProtocolError:
        return
    if handshake.phase is Phase.CHOSEN:
        transmission(handshake.rest, structured=handshake.structured)


def transmission(data: bytes, *, structured: bool) -> None:
    """Feed a client's requests to the machine and answer them."""
    machine = Transmission(
        number=1,
        size_bytes=SIZE,
        writable=True,
        structured=structured,
        base_allocation=structured,
        inflight_bytes_max=MIB,
        inflight_requests_max=16,
    )
    view, position = memoryview(data), 0
    try:
        while True:
            taken = machine.parse(view, position, len(view))
            requests, machine.requests = machine.requests, []
            machine.answer([_reply(request) for request in requests])
            machine.output.clear()
            if taken == position and not requests:
                return
            position = taken
    except RemoteProtocolError:
        return


def _reply(request: Request) -> Reply:
    if request.offset % 3 == 1:
        return Reply(request.id, 5)
    if request.kind == RequestKind.READ:
        return Reply(request.id, 0, bytes(request.length))
    if request.kind == RequestKind.EXTENTS:
        return Reply(request.id, 0, pack_extents([Extent(request.length, is_hole=True)]))
    return Reply(request.id, 0)


def nbd_requests(data: bytes) -> None:
    """A client's requests; the first byte says whether replies are structured."""
    transmission(data[1:], structured=bool(data[:1] and data[0] % 2))


class _Told:
    """A socket from which a fixed text comes."""

    def __init__(self, data: bytes) -> None:
        self._rest = memoryview(data)

    def recv_into(self, view: memoryview) -> int:
        part = self._rest[: len(view)]
        view[: len(part)] = part
        self._rest = self._rest[len(part) :]
        return len(part)

    def sendall(self, data: bytes) -> None:
        """Drop it."""

    def sendmsg(self, parts: list[bytes]) -> int:
        return sum(map(len, parts))

    def settimeout(self, timeout: float | None) -> None:
        """Nothing waits."""

    def close(self) -> None:
        """Nothing is open."""


def nbd_client(data: bytes) -> None:
    """A server's side, from the greeting to the answers of a read, a write and a block status."""
    client = NbdClient.__new__(NbdClient)
    client.uri, client.size_bytes = "nbd://fuzz/v", 0
    client._flags, client._has_extents, client._cookie = 0, False, 0
    client._read_data, client._read_bytes = {}, {}
    client._socket = cast("socket.socket", _Told(data))
    for work in _client_work(client):
        try:
            work()
        except HoldfastError:
            return


def _client_work(client: NbdClient) -> list[Callable[[], Any]]:
    def read() -> None:
        assert len(client.read(4096, 512)) == 512

    return [
        lambda: client._negotiate("v"),
        read,
        lambda: client.write(0, b"x" * 512),
        lambda: client.extents(0, 8192),
    ]


def nvme_target(data: bytes) -> None:
    """A host's PDUs; the first byte chooses queue and digests."""
    kind = data[0] if data else 0
    target = Target(qid=kind & 1, digests=kind >> 1 & 3)
    try:
        target.feed(data[1:])
    except PduError:
        return


def nvme_host(data: bytes) -> None:
    """A controller's PDUs to a host that has a read and a write under way."""
    queue = HostQueue(digests=data[0] & 3 if data else 0)
    view, position = memoryview(data)[1:], 0
    queue.submit(_command(2), "read", reads=4096)
    queue.submit(_command(1), "write", data=bytes(8192))
    try:
        while True:
            taken = queue.parse(view, position, len(view))
            queue.output.clear()
            if taken == position:
                return
            position = taken
    except (PduError, HoldfastError):
        return


def nvme_authentication(data: bytes) -> None:
    """Messages of DH-HMAC-CHAP, each after its length, to a controller or to a host."""
    messages, rest = [], data[1:]
    while len(rest) >= 2:
        stop = 2 + int.from_bytes(rest[:2], "little")
        messages.append(rest[2:stop])
        rest = rest[stop:]
    # Powers would take longer than all the rest.
    ends, secret, kinds = ("host", "subsystem"), Secret(bytes(32)), (tuple(Hash), (Group.NULL,))
    if data[:1] < b"\x80":
        controller = ControllerAuthentication(*ends, secret, secret, *kinds, draw=bytes)
        for message in messages:
            controller.send(send_command(len(message)), message)
            controller.receive(receive_command()._replace(sgl_length=4096, sgl_type=0x5A))
        return
    host = HostAuthentication(*ends, secret, secret, *kinds, draw=lambda n: b"\1" * n)
    host.negotiate()
    with contextlib.suppress(RemoteProtocolError):
        for message, take in zip(messages, (host.on_challenge, host.on_success1), strict=False):
            take(message)


def _command(opcode: int) -> Command:
    return _on_blocks(opcode, 0, 4096)


def _stream(stream: Stream, data: bytes) -> None:
    messages: list[Any] = []
    view, position = memoryview(data), 0
    try:
        while True:
            taken = stream.parse(view, position, len(view), messages)
            stream.take_output()
            if taken == position:
                return
            position = taken
    except (PduError, HoldfastError):
        return


def _framing(data: bytes) -> Framing:
    kind = data[0] if data else 0
    return Framing({}, header_digest=bool(kind & 1), data_digest=bool(kind & 2))


def nvme_stream_target(data: bytes) -> None:
    """What a primary sends to a replica over NVMe/TCP."""
    _stream(TargetStream(_framing(data), Counters()), data[1:])


def nvme_stream_host(data: bytes) -> None:
    """What a replica sends to a primary over NVMe/TCP."""
    _stream(HostStream(_framing(data), Counters()), data[1:])


def nvme_messages(data: bytes) -> None:
    """The frames in which messages travel through commands."""
    try:
        message_of(memoryview(data))
    except RemoteProtocolError:
        return
