"""Whether an I/O command may be carried out, and if not, the status that says why.

Everything that a command can get wrong by itself, or that path, volume and reservation forbid; checked in
the order in which a host learns most from the answer. Nothing is changed here.

Source: NVM Command Set Specification 1.0, section 3; Base Specification 2.0, section 8.1 (ANA).
"""

from __future__ import annotations

from holdfast.units import SECTOR_BYTES
from holdfast_transport_nvmeof.commands import (
    DSM_RANGE,
    FUSE_MASK,
    NSID_ALL,
    PSDT_MASK,
    PSDT_SGL,
    Command,
    IoOpcode,
    SglType,
)
from holdfast_transport_nvmeof.controller import Controller
from holdfast_transport_nvmeof.identify import TRANSFER_BYTES_MAX
from holdfast_transport_nvmeof.namespace import NSID, Namespace
from holdfast_transport_nvmeof.status import Status

PAGE_BYTES = 4096
"""Most that a command with a list of ranges or keys may carry."""
CHANGING = frozenset({IoOpcode.WRITE, IoOpcode.WRITE_ZEROES, IoOpcode.DATASET_MANAGEMENT})
"""Commands that change what is read."""
_RESERVING = frozenset(
    {
        IoOpcode.RESERVATION_REGISTER,
        IoOpcode.RESERVATION_ACQUIRE,
        IoOpcode.RESERVATION_RELEASE,
        IoOpcode.RESERVATION_REPORT,
    }
)
_ON_BLOCKS = frozenset({IoOpcode.READ, IoOpcode.WRITE, IoOpcode.COMPARE, IoOpcode.WRITE_ZEROES})


def judge(command: Command, space: Namespace, controller: Controller) -> tuple[int, int]:
    """Return why a command may not be carried out, or 0, and how many bytes it transfers."""
    opcode = command.opcode
    if command.flags & FUSE_MASK or command.flags & PSDT_MASK != PSDT_SGL:
        return Status.INVALID_FIELD_IN_COMMAND, 0
    if opcode not in IoOpcode._value2member_map_ or opcode == IoOpcode.FABRICS:
        return Status.INVALID_COMMAND_OPCODE, 0
    if not controller.is_ready:
        return Status.COMMAND_SEQUENCE_ERROR, 0
    if command.nsid != NSID and not (opcode == IoOpcode.FLUSH and command.nsid == NSID_ALL):
        return Status.INVALID_NAMESPACE_OR_FORMAT, 0
    if not space.is_accessible:
        return Status.ASYMMETRIC_ACCESS_INACCESSIBLE, 0
    if opcode in _RESERVING:
        if not space.offers_reservations:
            return Status.INVALID_COMMAND_OPCODE, 0
    elif space.reservations is not None and opcode != IoOpcode.FLUSH:
        if not space.reservations.allows(controller.host_id, writes=opcode in CHANGING):
            return Status.RESERVATION_CONFLICT, 0
    if opcode in CHANGING and not space.is_writable:
        return Status.NAMESPACE_IS_WRITE_PROTECTED, 0
    return judge_transfer(command, space)


def judge_transfer(command: Command, space: Namespace) -> tuple[int, int]:
    """Return what is wrong with the range or the data of a command, or 0, and the data's bytes."""
    opcode, length = command.opcode, 0
    if opcode in _ON_BLOCKS:
        blocks = (command.cdw12 & 0xFFFF) + 1
        if (command.cdw10 | command.cdw11 << 32) + blocks > space.blocks:
            return Status.LBA_OUT_OF_RANGE, 0
        if opcode == IoOpcode.WRITE_ZEROES:
            return 0, 0
        length = blocks * SECTOR_BYTES
        if length > TRANSFER_BYTES_MAX:
            return Status.INVALID_FIELD_IN_COMMAND, 0
    elif opcode == IoOpcode.DATASET_MANAGEMENT:
        length = ((command.cdw10 & 0xFF) + 1) * DSM_RANGE.size
    elif opcode in {IoOpcode.RESERVATION_REGISTER, IoOpcode.RESERVATION_ACQUIRE}:
        length = 16
    elif opcode == IoOpcode.RESERVATION_RELEASE:
        length = 8
    if not length:
        return 0, 0
    if opcode not in _ON_BLOCKS and length < command.sgl_length <= PAGE_BYTES:
        length = command.sgl_length  # Linux sends a whole page of ranges, however few count.
    if command.sgl_length != length:
        return Status.DATA_SGL_LENGTH_INVALID, 0
    allowed = {SglType.TRANSPORT_DATA_BLOCK}
    if opcode != IoOpcode.READ:
        allowed.add(SglType.DATA_BLOCK_OFFSET)
    if command.sgl_type not in allowed:
        return Status.SGL_DESCRIPTOR_TYPE_INVALID, 0
    return 0, length
