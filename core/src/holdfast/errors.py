"""The whole error tree: what went wrong, which exit code it has, and what to do about it.

A broken world raises one of these; broken code is an `assert` and is never caught. The class holds
what a program needs (`exit_code`, `code`), the message is a sentence for a person, and `hint` names
the next step. Exit codes are documented in `docs/cli.md`, which is generated from this module.
"""

from __future__ import annotations

import enum


class FaultReason(enum.Enum):
    """Why a copy was declared lost; each reason has its own remedy."""

    LINK_LOST = "link-lost"
    """Its node answers no heartbeat, or its process refuses connections."""
    ACK_TIMEOUT = "ack-timeout"
    """Its heartbeats live, but its acknowledgements stand still."""
    RESTARTED = "restarted"
    """Its process or machine was started anew, so its window of recent writes is gone."""
    NO_SPACE = "no-space"
    """Its file system is full."""
    IO_ERROR = "io-error"
    """Its disk answered a write, or a read of its metadata, with an error."""
    UNREADABLE = "unreadable"
    """Its disk cannot read some of its data; the rest of it is well, and other copies have it."""
    FLUSH_FAILED = "flush-failed"
    """Its disk failed an fsync; what it held in memory can no longer be trusted."""
    CORRUPT = "corrupt"
    """Its own metadata or data failed a check."""
    FENCED = "fenced"
    """It has seen a higher epoch; the sender is deposed, the copy itself is well."""
    WRONG_IDENTITY = "wrong-identity"
    """It is not the copy that the record names: another disk, or another incarnation."""
    REMOVED = "removed"
    """An operator or the group itself took it out."""

    @property
    def is_recoverable(self) -> bool:
        """Whether the same copy may come back by delta sync without anybody's help."""
        return self not in {FaultReason.CORRUPT, FaultReason.WRONG_IDENTITY, FaultReason.REMOVED}


class HoldfastError(Exception):
    """Base of every error that Holdfast raises on purpose."""

    exit_code = 1
    code = "error"

    def __init__(self, message: str, *, hint: str = "") -> None:
        """Keep the sentence and the next step.

        Args:
            message: One sentence: what, where.
            hint: What to do, as a sentence or a command; may be empty.
        """
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        """Return the sentence, with the hint behind it when there is one."""
        return f"{self.message} {self.hint}".rstrip()


class UsageError(HoldfastError):
    """A request that makes no sense as it stands."""

    exit_code = 2
    code = "usage"


class ConfigError(HoldfastError):
    """The configuration is not usable; names file, key path and value."""

    exit_code = 3
    code = "config"


class DriverError(HoldfastError):
    """A driver is missing, broken, or built for another API version."""

    exit_code = 4
    code = "driver"


class NotFoundError(HoldfastError):
    """What was named does not exist."""

    exit_code = 5
    code = "not-found"


class ConflictError(HoldfastError):
    """The present state does not allow what was asked: it exists, is attached, is too small."""

    exit_code = 6
    code = "conflict"


class UnavailableError(HoldfastError):
    """Something that must answer does not: a node, a store, a volume; trying later may help."""

    exit_code = 7
    code = "unavailable"


class StateError(UnavailableError):
    """The state store cannot be reached or did not answer in time; nothing is known to be written."""

    code = "state-store"


class StateConflictError(HoldfastError):
    """A compare-and-set lost: somebody else wrote first."""

    exit_code = 6
    code = "state-conflict"


class ProtocolError(HoldfastError):
    """Base of the two below; never raised itself."""

    exit_code = 8
    code = "protocol"


class LocalProtocolError(ProtocolError):
    """Our own side broke the protocol; a bug here."""


class RemoteProtocolError(ProtocolError):
    """The peer sent what the protocol does not allow; the connection is closed, no state changes."""


class RefusedError(HoldfastError):
    """A peer refused a handshake; carries the peer's code and sentence."""

    exit_code = 8
    code = "refused"


class CopyError(HoldfastError):
    """The store of one copy cannot go on; `reason` says which remedy applies."""

    exit_code = 9
    code = "copy"

    def __init__(self, message: str, *, reason: FaultReason, hint: str = "") -> None:
        """Keep the reason beside the sentence.

        Args:
            message: One sentence: what, where.
            reason: Decides what the group does about it.
            hint: What to do; may be empty.
        """
        super().__init__(message, hint=hint)
        self.reason = reason


class IntegrityError(CopyError):
    """Bytes on disk or on the wire are not the bytes that were written."""

    exit_code = 10
    code = "integrity"


class VolumeError(HoldfastError):
    """A request on a volume cannot be served; `errno` is what a block device would answer."""

    exit_code = 11
    code = "volume"

    def __init__(self, message: str, *, errno: int, hint: str = "") -> None:
        """Keep the errno beside the sentence.

        Args:
            message: One sentence: what, where.
            errno: As in `errno.h`: EPERM read-only, EINVAL misaligned, ENOSPC past the end, EIO.
            hint: What to do; may be empty.
        """
        super().__init__(message, hint=hint)
        self.errno = errno


class CopiesDifferError(HoldfastError):
    """`verify` found that copies are not equal."""

    exit_code = 12
    code = "copies-differ"


class RuleBrokenError(HoldfastError):
    """`audit` or `simulate` found a rule of the protocol broken."""

    exit_code = 13
    code = "rule-broken"
