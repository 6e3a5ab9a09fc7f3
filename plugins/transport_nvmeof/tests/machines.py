"""A target's and a host's machines, joined by hand: what tests without sockets share."""

from __future__ import annotations

from holdfast.messages import Payload, Reply, Request, RequestKind
from holdfast.units import KIB, MIB, VolumeId
from holdfast_transport_nvmeof.controller import Controller
from holdfast_transport_nvmeof.fabrics import Connect
from holdfast_transport_nvmeof.identify import ControllerFacts, ControllerType
from holdfast_transport_nvmeof.io_commands import QueueLimits
from holdfast_transport_nvmeof.namespace import Namespace, nqn_of
from holdfast_transport_nvmeof.pdu import PduType, ic_pdu
from holdfast_transport_nvmeof.queue import TargetQueue

SIZE = 4 * MIB
HOST = "nqn.2014-08.org.nvmexpress:uuid:11111111-2222-3333-4444-555555555555"
HOST_ID = bytes(range(16))
LIMITS = QueueLimits(in_capsule_bytes=64 * KIB, h2c_bytes_max=MIB, inflight_bytes_max=2 * MIB)


def joined(parts: list[Payload]) -> bytes:
    return b"".join(map(bytes, parts))


def make_controller(*, cntlid: int = 7, is_ready: bool = True) -> Controller:
    space = Namespace(nqn_of("db"), VolumeId(f"{1:032x}"), SIZE)
    facts = ControllerFacts(
        cntlid=cntlid,
        kind=ControllerType.IO,
        subsystem=space.nqn,
        serial=space.serial,
        entries_max=128,
        in_capsule_bytes=LIMITS.in_capsule_bytes,
    )
    controller = Controller(facts, HOST, HOST_ID, queues_max=16, namespace=space)
    if is_ready:
        controller.cc, controller.csts = 0x460001, 1
    return controller


class Target:
    """A target's queue, its controller, and a volume in memory."""

    def __init__(self, *, qid: int = 1, digests: int = 0, flow_control: bool = False) -> None:
        self.queue = TargetQueue(LIMITS)
        self.controller = make_controller()
        self.memory = bytearray(SIZE)
        self.asked: list[Request] = []
        self.is_held = False
        self._received = b""
        self.feed(ic_pdu(PduType.IC_REQ, alignment=4, digests=digests, maximum=0))
        connect = Connect(
            nqn_of("db"), HOST, HOST_ID, cntlid=7, qid=qid, sq_flow_control=flow_control
        )
        framing = self.queue.wire.framing
        parts = framing.pdu(PduType.CAPSULE_CMD, 0, connect.command(1).pack(), connect.data())
        self.feed(joined(parts))
        assert self.queue.question == connect
        self.queue.accept(self.controller, 1 if qid else 0)
        self.hello = joined(self.queue.take_output())

    def feed(self, data: bytes) -> None:
        """Receive bytes; whole PDUs are taken, requests carried out unless held."""
        data = self._received + data
        position = self.queue.parse(memoryview(data), 0, len(data))
        self._received = data[position:]
        while requests := self.queue.take_requests():
            self.asked += requests
            if not self.is_held:
                self.queue.answer([self.serve(request) for request in requests])

    def serve(self, request: Request) -> Reply:
        number, kind, _, offset, length, data = request
        if kind == RequestKind.WRITE:
            self.memory[offset : offset + length] = data
        elif kind in {RequestKind.ZERO, RequestKind.DISCARD}:
            self.memory[offset : offset + length] = bytes(length)
        elif kind == RequestKind.READ:
            return Reply(number, 0, bytes(self.memory[offset : offset + length]))
        return Reply(number, 0)
