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

_FAST_RESPONSE = struct.Struct("<BBBBIIIHHHH")
_FAST_DATA = struct.Struct("<BBBBIHHII4x")
_FAST_DATA_BYTES = _FAST_DATA.size
assert (_FAST_RESPONSE.size, _FAST_DATA_BYTES) == (24, 24)


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

    def on_command(self) -> None:
        """Count a command that was taken out of the submission queue."""
        if self.has_flow_control:
            self.sqhd = (self.sqhd + 1) % self.entries

    def succeed(self, cid: int) -> None:
        """Send a completion that says nothing but success."""
        if self.framing.header_digest:
            self.complete(cid)
        else:
            response = (5, 0, 24, 0, 24, 0, 0, self.sqhd, self.qid, cid, 0)
            self.output.append(_FAST_RESPONSE.pack(*response))

    def complete(self, cid: int, status: int = 0, dw0: int = 0, dw1: int = 0) -> None:
        """Send a completion; `status` is a `Status` or `ConnectStatus`."""
        if status:
            self.errors_sent += 1
        fields = RESPONSE.pack(dw0, dw1, self.sqhd, self.qid, cid, field_of(status) << 1)
        self.output += self.framing.pdu(PduType.CAPSULE_RESP, 0, fields)

    def send_data(self, cid: int, data: Payload) -> None:
        """Send what a command reads, with success in the same PDU where the host allows that."""
        framing, length = self.framing, len(data)
        flags = PduFlag.LAST_PDU if self.has_flow_control else PduFlag.LAST_PDU | PduFlag.SUCCESS
        if framing.header_digest or framing.data_digest or framing.alignment_out > 8:
            fields = DATA.pack(cid, 0, 0, length)
            self.output += framing.pdu(PduType.C2H_DATA, flags, fields, data)
        else:
            head = (7, flags, 24, 24, 24 + length, cid, 0, 0, length)
            self.output += (_FAST_DATA.pack(*head), data)
        if self.has_flow_control:
            self.complete(cid)

    def ask_for_data(self, cid: int, length: int) -> None:
        """Send an R2T for all of a command's data; the CID is its transfer tag."""
        self.output += self.framing.pdu(PduType.R2T, 0, DATA.pack(cid, cid, 0, length))
