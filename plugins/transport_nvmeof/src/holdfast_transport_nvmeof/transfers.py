"""Data that one queue's target has asked for by R2T, put together from H2CData PDUs.

It knows which command the data is for and what was wrong with a piece of it, not what commands do.

Source: NVM Express TCP Transport Specification 1.0, sections 3.3.2 (command data) and 3.6.2.
"""

from __future__ import annotations

import attrs

from holdfast.messages import Payload
from holdfast_transport_nvmeof.commands import Command
from holdfast_transport_nvmeof.pdu import (
    COMMON,
    DATA,
    FatalErrorStatus,
    Offset,
    Pdu,
    PduError,
    PduFlag,
)

DAMAGED = -1
"""Takes the place of the opcode of a command whose data had a wrong digest."""


@attrs.define
class Transfer:
    """A command whose data was asked for."""

    command: Command
    length: int
    received: int = 0
    data: Payload = b""
    """Data that comes in one PDU is not copied."""


@attrs.define
class Transfers:
    """What one queue has asked for; the transfer tag is the CID, as a command has one R2T at most."""

    _open: dict[int, Transfer] = attrs.field(factory=dict)

    def begin(self, command: Command, length: int) -> None:
        """Expect `length` bytes for a command."""
        self._open[command.cid] = Transfer(command, length)

    def take(self, view: memoryview, pdu: Pdu) -> Transfer | None:
        """Take a piece; return the transfer when that was the last one.

        Raises:
            PduError: It is no piece of what was asked for, or not the next one.
        """
        cid, tag, offset, length = DATA.unpack_from(view, pdu.start + COMMON.size)
        transfer = self._open.get(tag)
        bad = FatalErrorStatus.INVALID_PDU_HEADER_FIELD
        if transfer is None:
            raise PduError(f"H2CData came with TTAG {tag}.", bad, Offset.TTAG)
        if cid != transfer.command.cid:
            raise PduError(f"H2CData came with CCCID {cid}.", bad, Offset.CCCID)
        if length != pdu.data_end - pdu.data_start:
            raise PduError(f"H2CData came with DATAL {length}.", bad, Offset.DATAL)
        stop = offset + length
        if offset != transfer.received or stop > transfer.length:
            raise PduError(
                f"H2CData came with DATAO {offset}.",
                FatalErrorStatus.DATA_TRANSFER_OUT_OF_RANGE,
                Offset.DATAO,
            )
        if bool(pdu.flags & PduFlag.LAST_PDU) != (stop == transfer.length):
            raise PduError("H2CData has LAST_PDU where it is not last.", bad, Offset.FLAGS)
        if not pdu.is_data_intact:
            # The command fails when its data is through; until then the rest still comes.
            transfer.command = transfer.command._replace(opcode=DAMAGED)
        transfer.received = stop
        if length == transfer.length:
            transfer.data = view[pdu.data_start : pdu.data_end]
        else:
            if not isinstance(transfer.data, bytearray):
                transfer.data = bytearray(transfer.length)
            transfer.data[offset:stop] = view[pdu.data_start : pdu.data_end]
        if stop < transfer.length:
            return None
        return self._open.pop(tag)
