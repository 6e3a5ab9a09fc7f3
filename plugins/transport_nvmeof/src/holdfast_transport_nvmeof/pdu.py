"""The PDUs of NVMe/TCP: their layouts, how one is written, and how one is found in received bytes.

Both ends use it: which PDU may come, and how long it may be, is a table that each end brings. What a
PDU means is not known here; that the peer broke a rule is said by a `PduError`, which carries what
the termination request must say. Integers are little-endian throughout.

Source: NVM Express TCP Transport Specification 1.0, sections 3.3 (data alignment, digests) and 3.6
(PDU definitions, figures 16 to 36).
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Mapping
from typing import NamedTuple

import attrs
import google_crc32c

from holdfast.errors import RemoteProtocolError
from holdfast.messages import Payload
from holdfast.units import KIB


class PduType(enum.IntEnum):
    """PDU-Type, byte 0 of the common header."""

    IC_REQ = 0x00
    IC_RESP = 0x01
    H2C_TERM_REQ = 0x02
    C2H_TERM_REQ = 0x03
    CAPSULE_CMD = 0x04
    CAPSULE_RESP = 0x05
    H2C_DATA = 0x06
    C2H_DATA = 0x07
    R2T = 0x09


class PduFlag(enum.IntFlag):
    """FLAGS, byte 1 of the common header; which apply depends on the type."""

    HDGSTF = 1
    DDGSTF = 2
    LAST_PDU = 4
    SUCCESS = 8


class FatalErrorStatus(enum.IntEnum):
    """FES: why a connection is terminated."""

    INVALID_PDU_HEADER_FIELD = 1
    """FEI is the byte offset of the field in the PDU."""
    PDU_SEQUENCE_ERROR = 2
    HEADER_DIGEST_ERROR = 3
    """FEI is the digest that was received."""
    DATA_TRANSFER_OUT_OF_RANGE = 4
    DATA_TRANSFER_LIMIT_EXCEEDED = 5
    UNSUPPORTED_PARAMETER = 6
    """FEI is the byte offset of the field in the PDU."""


class Offset(enum.IntEnum):
    """Byte offsets within a PDU that a termination request may point at."""

    TYPE = 0
    FLAGS = 1
    HLEN = 2
    PDO = 3
    PLEN = 4
    PFV = 8
    PDA = 10
    """HPDA of ICReq, CPDA of ICResp."""
    DGST = 11
    MAXIMUM = 12
    """MAXR2T of ICReq, MAXH2CDATA of ICResp."""
    CCCID = 8
    TTAG = 10
    DATAO = 12
    DATAL = 16
    SQE = 8


COMMON = struct.Struct("<BBBBI")
"""Type, flags, HLEN, PDO, PLEN: the first 8 bytes of each PDU."""
IC = struct.Struct("<HBBI112x")
"""ICReq: PFV, HPDA, DGST, MAXR2T. ICResp: PFV, CPDA, DGST, MAXH2CDATA."""
TERM = struct.Struct("<HI10x")
"""FES, FEI."""
DATA = struct.Struct("<HHII4x")
"""H2CData, C2HData and R2T: CCCID, TTAG, offset, length."""
RESPONSE = struct.Struct("<IIHHHH")
"""A completion: dwords 0 and 1, SQHD, SQID, CID, status with the phase bit."""
DIGEST = struct.Struct("<I")

DGST_HEADER = 1
DGST_DATA = 2
"""Bits of DGST in ICReq and ICResp."""
CRC_PIECE_BYTES = 64 * KIB
PFV = 0
HEADER_BYTES = COMMON.size
SQE_BYTES = 64
HLEN: Mapping[int, int] = {
    PduType.IC_REQ: 128,
    PduType.IC_RESP: 128,
    PduType.H2C_TERM_REQ: 24,
    PduType.C2H_TERM_REQ: 24,
    PduType.CAPSULE_CMD: 72,
    PduType.CAPSULE_RESP: 24,
    PduType.H2C_DATA: 24,
    PduType.C2H_DATA: 24,
    PduType.R2T: 24,
}
TERM_DATA_BYTES_MAX = 128
"""How much of the offending PDU's header a termination request carries back."""
_CAPSULE, _CAPSULE_HLEN = int(PduType.CAPSULE_CMD), 72
_new = tuple.__new__
_NEVER_DIGESTED = frozenset(
    {PduType.IC_REQ, PduType.IC_RESP, PduType.H2C_TERM_REQ, PduType.C2H_TERM_REQ}
)

assert (COMMON.size, IC.size, TERM.size, DATA.size, RESPONSE.size) == (8, 120, 16, 16, 16)


class PduError(RemoteProtocolError):
    """The peer sent a PDU that ends the connection; a termination request says why."""

    def __init__(self, message: str, fes: FatalErrorStatus, fei: int = 0) -> None:
        """Keep what the termination request is to say."""
        super().__init__(message)
        self.fes = fes
        self.fei = fei


def crc32c(*parts: Payload) -> int:
    """Return the CRC-32C of `parts` one after the other; 0xE3069283 for b"123456789"."""
    if len(parts) == 1 and len(parts[0]) <= CRC_PIECE_BYTES:
        return int(
            google_crc32c.value(bytes(parts[0]))
        )  # Most are headers: half the time of the loop.
    value = 0
    for part in parts:
        if isinstance(part, bytes):
            value = google_crc32c.extend(value, part)
            continue
        # The library takes nothing that could change under it, so a view is copied: in pieces that
        # stay in the processor's cache and need no fresh pages.
        view = memoryview(part)
        for start in range(0, len(view), CRC_PIECE_BYTES):
            piece = bytes(view[start : start + CRC_PIECE_BYTES])
            value = google_crc32c.extend(value, piece)
    return value


class Pdu(NamedTuple):
    """One PDU in a buffer: positions, not bytes."""

    kind: int
    flags: int
    start: int
    data_start: int
    data_end: int
    """Equal to `data_start` when it carries no data."""
    next: int
    """Where the next PDU begins."""
    is_data_intact: bool
    """False when its data digest is wrong, which ends a command, not the connection."""


@attrs.define
class Framing:
    """What two ends agreed on in ICReq and ICResp, and the writing and finding of PDUs under it."""

    limits: dict[int, int]
    """By type that may come: the most data bytes it may carry, 0 for none."""
    header_digest: bool = False
    data_digest: bool = False
    alignment_out: int = 4
    """Data that we send begins at a multiple of this; the peer's HPDA or CPDA says it, in dwords - 1."""
    alignment_in: int = 4
    wanted: int = HEADER_BYTES
    """Bytes from the position where `take` found no whole PDU that the PDU takes in all."""

    def take(self, view: memoryview, position: int, end: int) -> Pdu | None:
        """Return the PDU at `position`, or None while it is not there in full.

        Raises:
            PduError: It is none that may come now.
        """
        if end - position < HEADER_BYTES:
            self.wanted = HEADER_BYTES
            return None
        kind, flags, hlen, pdo, plen = COMMON.unpack_from(view, position)
        limit = self.limits.get(kind)
        if limit is None:
            raise _refusal(kind)
        following = position + plen
        if (
            kind == _CAPSULE
            and not flags
            and hlen == _CAPSULE_HLEN
            and (plen == hlen or (pdo == hlen < plen <= hlen + limit))
            and following <= end
            and not self.header_digest
            and not self.data_digest
        ):
            # The commonest PDU, just as it should be.
            start = position + _CAPSULE_HLEN
            return _new(Pdu, (kind, 0, position, start, following, following, True))
        if hlen != HLEN[kind]:
            raise _bad(kind, "HLEN", hlen, Offset.HLEN)
        digested = kind not in _NEVER_DIGESTED
        head = hlen + 4 if self.header_digest and digested else hlen
        if plen != head and not head < plen <= self._plen_max(head, limit):
            raise _bad(kind, "PLEN", plen, Offset.PLEN)
        if end - position < plen:
            self.wanted = plen
            return None
        if digested and (flags & 1) != self.header_digest:
            raise _bad(kind, "FLAGS", flags, Offset.FLAGS)
        if head != hlen:
            _check_header(view, position, hlen)
        if plen == head:
            return Pdu(kind, flags, position, following, following, following, True)
        if not digested:
            return Pdu(kind, flags, position, position + head, following, following, True)
        return self._with_data(view, (kind, flags, head, pdo, plen), position)

    def _with_data(self, view: memoryview, common: tuple[int, ...], position: int) -> Pdu:
        kind, flags, head, pdo, plen = common
        if bool(flags & PduFlag.DDGSTF) != self.data_digest:
            raise _bad(kind, "FLAGS", flags, Offset.FLAGS)
        tail = plen - 4 if self.data_digest else plen
        if not head <= pdo < tail or (pdo % self.alignment_in and pdo != head):
            raise _bad(kind, "PDO", pdo, Offset.PDO)
        start, stop = position + pdo, position + tail
        intact = True
        if self.data_digest:
            intact = crc32c(view[start:stop]) == DIGEST.unpack_from(view, stop)[0]
        return Pdu(kind, flags, position, start, stop, position + plen, intact)

    def _plen_max(self, head: int, limit: int) -> int:
        if not limit:
            return head
        return head + self.alignment_in + limit + 4 * self.data_digest

    def plain_heads(self) -> tuple[int, int, int, bool]:
        """Return how capsules of commands begin that are as they are usually sent.

        The first four bytes as a number of one without and of one with data, the bytes of a header
        digest, and whether there is any digest.
        """
        extra = 4 * self.header_digest
        head = _CAPSULE | self.header_digest << 8 | _CAPSULE_HLEN << 16
        with_data = head | PduFlag.DDGSTF * self.data_digest << 8 | _CAPSULE_HLEN + extra << 24
        return head, with_data, extra, self.header_digest or self.data_digest

    def is_intact(self, view: memoryview, position: int, plen: int, length: int) -> bool:
        """Return whether such a capsule has right digests, and room for just `length` bytes of data."""
        start = position + _CAPSULE_HLEN
        if self.header_digest:
            if plen < _CAPSULE_HLEN + 4:
                return False
            if crc32c(view[position:start]) != DIGEST.unpack_from(view, start)[0]:
                return False
            start += 4
        stop = start + length
        if not length or not self.data_digest:
            return stop == position + plen
        if stop + 4 != position + plen:
            return False
        return bool(crc32c(view[start:stop]) == DIGEST.unpack_from(view, stop)[0])

    # --- writing ---------------------------------------------------------------------------

    def pdu(self, kind: PduType, flags: int, fields: bytes, data: Payload = b"") -> list[Payload]:
        """Return the bytes of a PDU.

        Args:
            kind: Its type.
            flags: Flags of its own; those of digests are added.
            fields: What follows the common header, up to HLEN.
            data: What it carries; not copied.
        """
        hlen = HEADER_BYTES + len(fields)
        head = hlen + 4 * self.header_digest
        if self.header_digest:
            flags |= PduFlag.HDGSTF
        if not data:
            header = COMMON.pack(kind, flags, hlen, 0, head) + fields
            return [header + DIGEST.pack(crc32c(header)) if self.header_digest else header]
        pdo = -(-head // self.alignment_out) * self.alignment_out
        plen = pdo + len(data)
        if self.data_digest:
            flags |= PduFlag.DDGSTF
            plen += 4
        header = COMMON.pack(kind, flags, hlen, pdo, plen) + fields
        if self.header_digest:
            header += DIGEST.pack(crc32c(header))
        parts: list[Payload] = [header.ljust(pdo, b"\0"), data]
        if self.data_digest:
            parts.append(DIGEST.pack(crc32c(data)))
        return parts


def ic_pdu(kind: PduType, *, alignment: int, digests: int, maximum: int) -> bytes:
    """Return an ICReq or ICResp.

    Args:
        kind: Which.
        alignment: In bytes, of data that the receiver of this PDU will send.
        digests: DGST bits wanted, or agreed on.
        maximum: MAXR2T of ICReq, MAXH2CDATA in bytes of ICResp.
    """
    head = COMMON.pack(kind, 0, HLEN[kind], 0, HLEN[kind])
    return head + IC.pack(PFV, alignment // 4 - 1, digests, maximum)


def term_pdu(kind: PduType, fes: FatalErrorStatus, fei: int, header: Payload) -> bytes:
    """Return a termination request.

    Args:
        kind: H2C_TERM_REQ or C2H_TERM_REQ.
        fes: Why.
        fei: More about it: an offset or a digest.
        header: The header of the offending PDU as received; cut to 128 bytes.
    """
    data = bytes(header[:TERM_DATA_BYTES_MAX])
    length = HLEN[kind]
    return COMMON.pack(kind, 0, length, 0, length + len(data)) + TERM.pack(fes, fei) + data


def offending_header(view: memoryview, position: int, end: int) -> bytes:
    """Return as much of the header at `position` as there is, for a termination request."""
    length = TERM_DATA_BYTES_MAX
    if end - position >= HEADER_BYTES:
        length = min(HLEN.get(view[position], HEADER_BYTES), TERM_DATA_BYTES_MAX)
    return bytes(view[position : min(end, position + length)])


def _check_header(view: memoryview, position: int, hlen: int) -> None:
    (received,) = DIGEST.unpack_from(view, position + hlen)
    if crc32c(view[position : position + hlen]) != received:
        raise PduError(
            "A PDU's header digest is wrong.", FatalErrorStatus.HEADER_DIGEST_ERROR, received
        )


def _bad(kind: int, field: str, value: int, offset: Offset) -> PduError:
    return PduError(
        f"{PduType(kind).name} came with {field} {value}.",
        FatalErrorStatus.INVALID_PDU_HEADER_FIELD,
        offset,
    )


def _refusal(kind: int) -> PduError:
    if kind in HLEN:
        return PduError(
            f"{PduType(kind).name} may not come now.", FatalErrorStatus.PDU_SEQUENCE_ERROR
        )
    return PduError(
        f"There is no PDU type 0x{kind:02x}.",
        FatalErrorStatus.INVALID_PDU_HEADER_FIELD,
        Offset.TYPE,
    )
