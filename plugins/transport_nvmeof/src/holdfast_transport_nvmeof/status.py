"""Every status code of the commands that this package speaks, by the name its specification gives it.

A value is what stands in a completion: status code type in bits 10:8, status code in bits 7:0. Whether
the host may try again (the Do Not Retry bit) is beside it: a host with several paths decides by it.

Source: NVM Express Base Specification 2.0, section 3.3.3.2.1 (figures 94 to 99); NVM Command Set 1.0,
section 3.1; NVMe over Fabrics, figure "Command Specific Status Values".
"""

from __future__ import annotations

import enum
import errno

DO_NOT_RETRY = 1 << 14
"""In the status field once its phase bit is shifted out."""
MORE = 1 << 13
"""The error log says more."""
STATUS_MASK = 0x7FF


class Status(enum.IntEnum):
    """Status code type << 8 | status code."""

    # Generic command status.
    SUCCESSFUL_COMPLETION = 0x000
    INVALID_COMMAND_OPCODE = 0x001
    INVALID_FIELD_IN_COMMAND = 0x002
    COMMAND_ID_CONFLICT = 0x003
    DATA_TRANSFER_ERROR = 0x004
    COMMANDS_ABORTED_DUE_TO_POWER_LOSS_NOTIFICATION = 0x005
    INTERNAL_ERROR = 0x006
    COMMAND_ABORT_REQUESTED = 0x007
    COMMAND_ABORTED_DUE_TO_SQ_DELETION = 0x008
    COMMAND_ABORTED_DUE_TO_FAILED_FUSED_COMMAND = 0x009
    COMMAND_ABORTED_DUE_TO_MISSING_FUSED_COMMAND = 0x00A
    INVALID_NAMESPACE_OR_FORMAT = 0x00B
    COMMAND_SEQUENCE_ERROR = 0x00C
    INVALID_SGL_SEGMENT_DESCRIPTOR = 0x00D
    INVALID_NUMBER_OF_SGL_DESCRIPTORS = 0x00E
    DATA_SGL_LENGTH_INVALID = 0x00F
    METADATA_SGL_LENGTH_INVALID = 0x010
    SGL_DESCRIPTOR_TYPE_INVALID = 0x011
    INVALID_USE_OF_CONTROLLER_MEMORY_BUFFER = 0x012
    PRP_OFFSET_INVALID = 0x013
    ATOMIC_WRITE_UNIT_EXCEEDED = 0x014
    OPERATION_DENIED = 0x015
    SGL_OFFSET_INVALID = 0x016
    HOST_IDENTIFIER_INCONSISTENT_FORMAT = 0x018
    KEEP_ALIVE_TIMER_EXPIRED = 0x019
    KEEP_ALIVE_TIMEOUT_INVALID = 0x01A
    COMMAND_ABORTED_DUE_TO_PREEMPT_AND_ABORT = 0x01B
    SANITIZE_FAILED = 0x01C
    SANITIZE_IN_PROGRESS = 0x01D
    SGL_DATA_BLOCK_GRANULARITY_INVALID = 0x01E
    COMMAND_NOT_SUPPORTED_FOR_QUEUE_IN_CMB = 0x01F
    NAMESPACE_IS_WRITE_PROTECTED = 0x020
    COMMAND_INTERRUPTED = 0x021
    TRANSIENT_TRANSPORT_ERROR = 0x022
    COMMAND_PROHIBITED_BY_COMMAND_AND_FEATURE_LOCKDOWN = 0x023
    ADMIN_COMMAND_MEDIA_NOT_READY = 0x024
    LBA_OUT_OF_RANGE = 0x080
    CAPACITY_EXCEEDED = 0x081
    NAMESPACE_NOT_READY = 0x082
    RESERVATION_CONFLICT = 0x083
    FORMAT_IN_PROGRESS = 0x084
    # Command specific status.
    COMPLETION_QUEUE_INVALID = 0x100
    INVALID_QUEUE_IDENTIFIER = 0x101
    INVALID_QUEUE_SIZE = 0x102
    ABORT_COMMAND_LIMIT_EXCEEDED = 0x103
    ASYNCHRONOUS_EVENT_REQUEST_LIMIT_EXCEEDED = 0x105
    INVALID_LOG_PAGE = 0x109
    FEATURE_IDENTIFIER_NOT_SAVEABLE = 0x10D
    FEATURE_NOT_CHANGEABLE = 0x10E
    FEATURE_NOT_NAMESPACE_SPECIFIC = 0x10F
    CONFLICTING_ATTRIBUTES = 0x180
    INVALID_PROTECTION_INFORMATION = 0x181
    ATTEMPTED_WRITE_TO_READ_ONLY_RANGE = 0x182
    COMMAND_SIZE_LIMIT_EXCEEDED = 0x183
    # Media and data integrity errors.
    WRITE_FAULT = 0x280
    UNRECOVERED_READ_ERROR = 0x281
    END_TO_END_GUARD_CHECK_ERROR = 0x282
    END_TO_END_APPLICATION_TAG_CHECK_ERROR = 0x283
    END_TO_END_REFERENCE_TAG_CHECK_ERROR = 0x284
    COMPARE_FAILURE = 0x285
    ACCESS_DENIED = 0x286
    DEALLOCATED_OR_UNWRITTEN_LOGICAL_BLOCK = 0x287
    # Path related status.
    INTERNAL_PATH_ERROR = 0x300
    ASYMMETRIC_ACCESS_PERSISTENT_LOSS = 0x301
    ASYMMETRIC_ACCESS_INACCESSIBLE = 0x302
    ASYMMETRIC_ACCESS_TRANSITION = 0x303
    CONTROLLER_PATHING_ERROR = 0x360
    HOST_PATHING_ERROR = 0x370
    COMMAND_ABORTED_BY_HOST = 0x371


class ConnectStatus(enum.IntEnum):
    """Command specific status values of Fabrics commands, which share numbers with I/O commands."""

    CONNECT_INCOMPATIBLE_FORMAT = 0x180
    CONNECT_CONTROLLER_BUSY = 0x181
    CONNECT_INVALID_PARAMETERS = 0x182
    CONNECT_RESTART_DISCOVERY = 0x183
    CONNECT_INVALID_HOST = 0x184
    INVALID_QUEUE_TYPE = 0x185
    DISCOVER_RESTART = 0x190
    AUTHENTICATION_REQUIRED = 0x191


_MAY_HELP_LATER = frozenset(
    {
        Status.COMMAND_ABORT_REQUESTED,
        Status.COMMAND_ABORTED_DUE_TO_SQ_DELETION,
        Status.COMMAND_INTERRUPTED,
        Status.NAMESPACE_NOT_READY,
        Status.TRANSIENT_TRANSPORT_ERROR,
        Status.INTERNAL_PATH_ERROR,
        Status.ASYMMETRIC_ACCESS_PERSISTENT_LOSS,
        Status.ASYMMETRIC_ACCESS_INACCESSIBLE,
        Status.ASYMMETRIC_ACCESS_TRANSITION,
    }
)


def field_of(status: int) -> int:
    """Return the 15 bits of a completion that say `status`, with Do Not Retry where it belongs."""
    if not status or status in _MAY_HELP_LATER:
        return int(status)
    return status | DO_NOT_RETRY


def status_of_errno(number: int, *, writes: bool) -> Status:
    """Return what a host is told when a volume's session answers with an errno.

    Args:
        number: An errno of `errno.h`, not 0.
        writes: Whether the command would have written, or put on stable storage what was.
    """
    if number in {errno.EPERM, errno.EROFS, errno.EACCES}:
        return Status.NAMESPACE_IS_WRITE_PROTECTED
    if number in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}:
        return Status.CAPACITY_EXCEEDED
    if number == errno.EINVAL:
        return Status.INVALID_FIELD_IN_COMMAND
    if number in {errno.EOPNOTSUPP, errno.ENOSYS}:
        return Status.INVALID_COMMAND_OPCODE
    return Status.WRITE_FAULT if writes else Status.UNRECOVERED_READ_ERROR


def errno_of_status(status: int) -> int:
    """Return what a program is told when a target answers with `status`; 0 for success."""
    code = status & STATUS_MASK
    if not code:
        return 0
    return _ERRNOS.get(code, errno.EIO)


_ERRNOS: dict[int, int] = {
    Status.INVALID_COMMAND_OPCODE: errno.EOPNOTSUPP,
    Status.INVALID_FIELD_IN_COMMAND: errno.EINVAL,
    Status.INVALID_NAMESPACE_OR_FORMAT: errno.ENXIO,
    Status.NAMESPACE_IS_WRITE_PROTECTED: errno.EPERM,
    Status.LBA_OUT_OF_RANGE: errno.EINVAL,
    Status.CAPACITY_EXCEEDED: errno.ENOSPC,
    Status.NAMESPACE_NOT_READY: errno.EAGAIN,
    Status.RESERVATION_CONFLICT: errno.EBUSY,
    Status.COMPARE_FAILURE: errno.EILSEQ,
    ConnectStatus.CONNECT_INVALID_PARAMETERS: errno.ENOENT,
    ConnectStatus.CONNECT_INVALID_HOST: errno.EACCES,
    ConnectStatus.CONNECT_CONTROLLER_BUSY: errno.EBUSY,
}


def name_of_status(status: int, *, is_fabrics: bool = False) -> str:
    """Return the specification's name of a status, for logs and errors."""
    code = status & STATUS_MASK
    kinds: tuple[type[enum.IntEnum], ...] = (Status, ConnectStatus)
    for kind in reversed(kinds) if is_fabrics else kinds:
        if code in kind._value2member_map_:
            return kind(code).name
    return f"status 0x{code:03x}"


class NvmeStatusError(OSError):
    """A command failed; `status` is its NVMe status, `errno` what a block device would say."""

    def __init__(self, status: int, *, is_fabrics: bool = False) -> None:
        """Keep the status beside the errno."""
        name = name_of_status(status, is_fabrics=is_fabrics)
        super().__init__(errno_of_status(status), f"the controller answered {name}")
        self.status = status & STATUS_MASK
        self.name = name
