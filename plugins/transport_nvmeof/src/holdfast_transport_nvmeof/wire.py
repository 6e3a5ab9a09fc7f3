"""The target's writing end of one queue: completions, data for the host, terminations.

Beside `pdu.py`, which knows bytes, this knows what every answer of a queue has in common: queue id, queue
head, digests, the success flag.

Source: NVM Express TCP Transport Specification 1.0, sections 3.3 and 3.6.2.
"""

from __future__ import annotations

import struct

import attrs

from holdfast.messages import Payload
from holdfast_transport_nvmeof.pdu import DATA, RESPONSE, Framing, PduFlag, PduType
from holdfast_transport_nvmeof.status import field_of

SUCCESS = struct.Struct("<QQII")
"""A completion of nothing but success: common header, dwords 0 and 1, SQHD and SQID, CID and status."""
SUCCESS_HEAD = PduType.CAPSULE_RESP | 24 << 16 | 24 << 32
_DATA = struct.Struct("<IIIIII")
"""Type to PDO, PLEN, CCCID, offset, length, reserved."""
_DATA_HEAD = PduType.C2H_DATA | 24 << 16 | 24 << 24
_LAST, _LAST_WITH_SUCCESS = int(PduFlag.LAST_PDU), int(PduFlag.LAST_PDU | PduFlag.SUCCESS)
assert (SUCCESS.size, _DATA.size) == (24, 24)


@attrs.define(eq=False)
class Wire:
    """What one queue has to send, and how it says it."""

    framing: Framing
    output: list[Payload] = attrs.field(factory=list)
    """What is to be sent; the caller takes the list away."""
    qid: int = 0
    entries: int = 1
    """Of the submission queue."""
    has_flow_control: bool = False
    """Whether SQHD is told, and no response may be left out."""
    sqhd: int = 0
    errors_sent: int = 0
    last_error: tuple[int, int] = (0, 0)
    """CID and status of the command that failed last."""

    is_bare: bool = False
    """Whether PDUs are sent without digests and padding."""
    commands_taken: int = 0

    def begin(self, qid: int, entries: int, *, has_flow_control: bool) -> None:
        """Become the queue that a Connect has asked for; that was its first command."""
        framing = self.framing
        self.qid, self.entries, self.has_flow_control = qid, entries, has_flow_control
        self.sqhd = int(has_flow_control)
        self.is_bare = not framing.header_digest and not framing.data_digest
        self.is_bare &= framing.alignment_out <= 8

    def on_commands(self, count: int) -> None:
        """Count commands that were taken out of the submission queue."""
        self.commands_taken += count
        if self.has_flow_control:
            self.sqhd = (self.sqhd + count) % self.entries

    def complete(self, cid: int, status: int = 0, dw0: int = 0, dw1: int = 0) -> None:
        """Send a completion; `status` is a `Status` or `ConnectStatus`."""
        if status:
            self.errors_sent += 1
            self.last_error = (cid, status)
        fields = RESPONSE.pack(dw0, dw1, self.sqhd, self.qid, cid, field_of(status) << 1)
        self.output += self.framing.pdu(PduType.CAPSULE_RESP, 0, fields)

    def send_data(self, cid: int, data: Payload) -> None:
        """Send what a command reads, with success in the same PDU where the host allows that."""
        length = len(data)
        flags = _LAST if self.has_flow_control else _LAST_WITH_SUCCESS
        if self.is_bare:
            head = _DATA.pack(_DATA_HEAD | flags << 8, 24 + length, cid, 0, length, 0)
            self.output += (head, data)
        else:
            fields = DATA.pack(cid, 0, 0, length)
            self.output += self.framing.pdu(PduType.C2H_DATA, flags, fields, data)
        if self.has_flow_control:
            self.complete(cid)

    def ask_for_data(self, cid: int, length: int) -> None:
        """Send an R2T for all of a command's data; the CID is its transfer tag."""
        self.output += self.framing.pdu(PduType.R2T, 0, DATA.pack(cid, cid, 0, length))
