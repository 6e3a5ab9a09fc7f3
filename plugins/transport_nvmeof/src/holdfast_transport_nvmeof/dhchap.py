"""DH-HMAC-CHAP: secrets, responses, Diffie-Hellman, and the messages, as values.

What both ends compute and pack is here; whose turn it is, is in `authentication.py`. Messages are bytes
that came from outside: whatever is wrong with one is a `MessageError`. Secrets are never part of a `repr`.

Python's `pow` takes a time that depends on its operands, so exponents are used once and thrown away.

Source: NVM Express Base Specification 2.0, section 8.13 (figures 459 to 472); TP 8006 for the text form
of secrets; RFC 7919, appendix A, for the groups.
"""

from __future__ import annotations

import base64
import binascii
import enum
import functools
import hashlib
import hmac
import struct

import attrs

SECP = 0xE9
"""Security protocol of Authentication Send and Receive, with 1 in both SPSP fields."""
AUTH_REQUIRED = 1 << 17
"""ATR in dword 0 of a completed Connect: this queue has to authenticate."""
AUTH_REQUIRED_MASK = 3 << 17
"""ATR and ASCR, which asks for TLS beside."""


class Hash(enum.IntEnum):
    """Identifiers of hash functions."""

    SHA256 = 1
    SHA384 = 2
    SHA512 = 3

    @property
    def size(self) -> int:
        """Bytes of a digest."""
        return 16 * (self + 1)


class Group(enum.IntEnum):
    """Identifiers of Diffie-Hellman groups."""

    NULL = 0
    FFDHE2048 = 1
    FFDHE3072 = 2
    FFDHE4096 = 3
    FFDHE6144 = 4
    FFDHE8192 = 5


class MessageId(enum.IntEnum):
    """AUTH_ID; NEGOTIATE and the failures have AUTH_TYPE 0, the others 1."""

    NEGOTIATE = 0x00
    CHALLENGE = 0x01
    REPLY = 0x02
    SUCCESS1 = 0x03
    SUCCESS2 = 0x04
    FAILURE2 = 0xF0
    FAILURE1 = 0xF1


class Failure(enum.IntEnum):
    """Reason code explanation of a failure, whose reason code is always 1."""

    AUTHENTICATION_FAILED = 1
    PROTOCOL_NOT_USABLE = 2
    SECURE_CHANNEL_CONCATENATION_MISMATCH = 3
    HASH_NOT_USABLE = 4
    DH_GROUP_NOT_USABLE = 5
    INCORRECT_PAYLOAD = 6
    INCORRECT_PROTOCOL_MESSAGE = 7


class MessageError(Exception):
    """A message is wrong, or says what cannot be; never seen outside of this package."""

    def __init__(self, failure: Failure) -> None:
        """Keep what the other end is told."""
        super().__init__(failure.name)
        self.failure = failure


@attrs.frozen
class Secret:
    """One end's secret."""

    key: bytes = attrs.field(repr=False)
    hash: Hash | None = None
    """With which it is bound to a name; None: it is used as it is."""

    @classmethod
    def parse(cls, text: str) -> Secret:
        """Return what `DHHC-1:XX:BASE64:` says.

        Raises:
            ValueError: It is no secret; the sentence does not repeat it.
        """
        head, colon, rest = text.strip().partition(":")
        kind, _, rest = rest.partition(":")
        body, end, rest = rest.partition(":")
        if head != "DHHC-1" or not colon or not end or rest or kind not in {"00", "01", "02", "03"}:
            raise ValueError("it has not the form DHHC-1:XX:BASE64:, XX being 00 to 03")
        try:
            raw = base64.b64decode(body, validate=True)
        except binascii.Error:
            raise ValueError("its third part is not base64") from None
        key, crc = raw[:-4], raw[-4:]
        if len(key) not in {32, 48, 64}:
            raise ValueError("its key has not 32, 48 or 64 bytes")
        if binascii.crc32(key) != int.from_bytes(crc, "little"):
            raise ValueError("its checksum is wrong; a character may be missing or changed")
        chosen = Hash(int(kind)) if kind != "00" else None
        if chosen is not None and chosen.size != len(key):
            raise ValueError(f"a key of kind {kind} has {chosen.size} bytes")
        return cls(key, chosen)

    def of(self, nqn: str) -> bytes:
        """Return the key that is used by the end called `nqn`."""
        if self.hash is None:
            return self.key
        return _hmac(self.hash, self.key, nqn.encode() + b"NVMe-over-Fabrics")


def _hmac(kind: Hash, key: bytes, data: bytes) -> bytes:
    return hmac.digest(key, data, kind.name.lower())


# --- Diffie-Hellman ------------------------------------------------------------------------

_BITS = {
    Group.FFDHE2048: (2048, 560_316, 256),
    Group.FFDHE3072: (3072, 2_625_351, 288),
    Group.FFDHE4096: (4096, 5_736_041, 336),
    Group.FFDHE6144: (6144, 15_705_020, 384),
    Group.FFDHE8192: (8192, 10_965_728, 400),
}
"""Bits of the prime, the number that makes it one, and bits of an exponent (at least those of RFC 7919)."""


@functools.cache
def prime(group: Group) -> int:
    """Return the prime of a group: 2^b - 2^(b-64) + (floor(2^(b-130) e) + X) 2^64 - 1."""
    bits, extra, _ = _BITS[group]
    guard = 64
    euler, term, n = 0, 1 << (bits - 130 + guard), 1
    while term:
        euler += term
        term //= n
        n += 1
    return (1 << bits) - (1 << (bits - 64)) + (((euler >> guard) + extra) << 64) - 1


def value_bytes(group: Group) -> int:
    """Return how long public and shared values of a group are."""
    return 0 if group is Group.NULL else _BITS[group][0] // 8


def exponent(group: Group, drawn: bytes) -> int:
    """Return a private exponent from 64 random bytes."""
    return int.from_bytes(drawn, "little") & ((1 << _BITS[group][2]) - 1) | 1 << (
        _BITS[group][2] - 1
    )


def public(group: Group, private: int) -> bytes:
    """Return what the other end is told."""
    return pow(2, private, prime(group)).to_bytes(value_bytes(group), "big")


def shared(group: Group, private: int, theirs: bytes) -> bytes:
    """Return the value that only both ends can compute.

    Raises:
        MessageError: What the other end told is no value of the group.
    """
    modulus, value = prime(group), int.from_bytes(theirs, "big")
    if len(theirs) != value_bytes(group) or not 1 < value < modulus - 1:
        raise MessageError(Failure.INCORRECT_PAYLOAD)
    return pow(value, private, modulus).to_bytes(value_bytes(group), "big")


# --- responses -----------------------------------------------------------------------------


@attrs.frozen
class Transaction:
    """What both ends have agreed on, and who they are."""

    host: str
    subsystem: str
    """Their NQNs."""
    number: int
    """T_ID."""
    hash: Hash
    group: Group
    shared: bytes = attrs.field(default=b"", repr=False)
    """The Diffie-Hellman value; empty with the NULL group."""

    def host_response(self, secret: Secret, challenge: bytes, sequence: int) -> bytes:
        """Return what a host answers to a controller's challenge."""
        names = (b"HostHost", self.host, self.subsystem)
        return self._response(secret.of(self.host), challenge, sequence, *names)

    def controller_response(self, secret: Secret, challenge: bytes, sequence: int) -> bytes:
        """Return what a controller answers to a host's challenge."""
        names = (b"Controller", self.subsystem, self.host)
        return self._response(secret.of(self.subsystem), challenge, sequence, *names)

    def _response(
        self, key: bytes, challenge: bytes, sequence: int, role: bytes, own: str, other: str
    ) -> bytes:
        if self.group is not Group.NULL:
            session = hashlib.new(self.hash.name.lower(), self.shared).digest()
            challenge = _hmac(self.hash, session, challenge)
        # SC_C is 0: no secure channel is made of it.
        numbers = struct.pack("<IHB", sequence, self.number, 0)
        names = role + own.encode() + b"\0" + other.encode()
        return _hmac(self.hash, key, challenge + numbers + names)


# --- messages ------------------------------------------------------------------------------

_HEAD = struct.Struct("<BBHH")
"""AUTH_TYPE, AUTH_ID, reserved, T_ID: the beginning of every message."""
_NEGOTIATE = struct.Struct("<6xBBBxBB")
"""SC_C, NAPD; of the first protocol descriptor AUTHID, HALEN, DHLEN."""
_CHALLENGE = struct.Struct("<BBHHBxBBHI")
"""Head, HL, HASHID, DHGID, DHVLEN, SEQNUM."""
_REPLY = struct.Struct("<BBHHBxBxHI")
"""Head, HL, CVALID, DHVLEN, SEQNUM."""
_SUCCESS1 = struct.Struct("<BBHHBxB7x")
"""Head, HL, RVALID."""
_FAILURE = struct.Struct("<BBHHBB")
"""Head, reason code, explanation."""
_HASHES_AT, _GROUPS_AT, _NEGOTIATE_BYTES = 12, 42, 72
"""Where the lists of the first protocol descriptor begin: 30 identifiers each."""
_CHAP, _DHCHAP_ID = 1, 1


def head(data: bytes) -> tuple[int, int, int]:
    """Return AUTH_TYPE, AUTH_ID and T_ID of a message."""
    if len(data) < _HEAD.size:
        raise MessageError(Failure.INCORRECT_PAYLOAD)
    kind, message, _, number = _HEAD.unpack_from(data)
    return kind, message, number


@attrs.frozen
class Negotiate:
    """What a host can do."""

    number: int
    hashes: tuple[int, ...]
    groups: tuple[int, ...]

    @classmethod
    def parse(cls, data: bytes) -> Negotiate:
        """Return what a message says."""
        if len(data) < _NEGOTIATE_BYTES:
            raise MessageError(Failure.INCORRECT_PAYLOAD)
        concatenation, protocols, protocol, hashes, groups = _NEGOTIATE.unpack_from(data)
        if concatenation:
            raise MessageError(Failure.SECURE_CHANNEL_CONCATENATION_MISMATCH)
        if not protocols or protocol != _DHCHAP_ID:
            raise MessageError(Failure.PROTOCOL_NOT_USABLE)
        if hashes > _GROUPS_AT - _HASHES_AT or groups > _NEGOTIATE_BYTES - _GROUPS_AT:
            raise MessageError(Failure.INCORRECT_PAYLOAD)
        listed = data[_HASHES_AT : _HASHES_AT + hashes]
        return cls(head(data)[2], tuple(listed), tuple(data[_GROUPS_AT : _GROUPS_AT + groups]))

    def pack(self) -> bytes:
        """Return the message."""
        raw = bytearray(_NEGOTIATE_BYTES)
        _HEAD.pack_into(raw, 0, 0, MessageId.NEGOTIATE, 0, self.number)
        raw[7], raw[8], raw[10], raw[11] = 1, _DHCHAP_ID, len(self.hashes), len(self.groups)
        raw[_HASHES_AT : _HASHES_AT + len(self.hashes)] = bytes(self.hashes)
        raw[_GROUPS_AT : _GROUPS_AT + len(self.groups)] = bytes(self.groups)
        return bytes(raw)


@attrs.frozen
class Challenge:
    """What a controller asks."""

    number: int
    hash: int
    group: int
    sequence: int
    challenge: bytes
    public: bytes = b""

    @classmethod
    def parse(cls, data: bytes) -> Challenge:
        """Return what a message says."""
        data = data.ljust(_CHALLENGE.size, b"\0")
        _, _, _, number, length, kind, group, dh_bytes, sequence = _CHALLENGE.unpack_from(data)
        start = _CHALLENGE.size
        found = (data[start : start + length], data[start + length : start + length + dh_bytes])
        if len(found[0]) != length or len(found[1]) != dh_bytes:
            raise MessageError(Failure.INCORRECT_PAYLOAD)
        return cls(number, kind, group, sequence, *found)

    def pack(self) -> bytes:
        """Return the message."""
        sizes = (len(self.challenge), self.hash, self.group, len(self.public), self.sequence)
        fields = _CHALLENGE.pack(_CHAP, MessageId.CHALLENGE, 0, self.number, *sizes)
        return fields + self.challenge + self.public


@attrs.frozen
class Reply:
    """What a host answers, and what it asks itself."""

    number: int
    response: bytes
    sequence: int
    challenge: bytes = b""
    """Empty when the controller need not authenticate."""
    public: bytes = b""

    @classmethod
    def parse(cls, data: bytes) -> Reply:
        """Return what a message says."""
        data = data.ljust(_REPLY.size, b"\0")
        _, _, _, number, length, has_challenge, dh_bytes, sequence = _REPLY.unpack_from(data)
        start = _REPLY.size
        stops = (start + length, start + 2 * length, start + 2 * length + dh_bytes)
        if not length or len(data) < stops[2]:
            raise MessageError(Failure.INCORRECT_PAYLOAD)
        challenge = data[stops[0] : stops[1]] if has_challenge & 1 else b""
        return cls(number, data[start : stops[0]], sequence, challenge, data[stops[1] : stops[2]])

    def pack(self) -> bytes:
        """Return the message."""
        sizes = (len(self.response), bool(self.challenge), len(self.public), self.sequence)
        fields = _REPLY.pack(_CHAP, MessageId.REPLY, 0, self.number, *sizes)
        challenge = self.challenge.ljust(len(self.response), b"\0")
        return fields + self.response + challenge + self.public


def success1(number: int, hash_bytes: int, response: bytes) -> bytes:
    """Return the message by which a controller lets a host in, with its own response if asked for."""
    fields = (_CHAP, MessageId.SUCCESS1, 0, number, hash_bytes, bool(response))
    return _SUCCESS1.pack(*fields) + response.ljust(hash_bytes, b"\0")


def response_of_success1(data: bytes) -> bytes:
    """Return a controller's response; empty when it gave none."""
    data = data.ljust(_SUCCESS1.size, b"\0")
    length, is_valid = _SUCCESS1.unpack_from(data)[4:]
    return data[_SUCCESS1.size : _SUCCESS1.size + length] if is_valid & 1 else b""


def success2(number: int) -> bytes:
    """Return the message by which a host accepts a controller."""
    return _HEAD.pack(_CHAP, MessageId.SUCCESS2, 0, number) + bytes(10)


def failure(kind: MessageId, number: int, why: Failure) -> bytes:
    """Return FAILURE1, which controllers send, or FAILURE2, which hosts do."""
    return _FAILURE.pack(0, kind, 0, number, 1, why)


def reason_of(data: bytes) -> str:
    """Return why the other end failed, by the name of its explanation."""
    code = data[7] if len(data) > 7 else 0
    return Failure(code).name if code in Failure._value2member_map_ else f"explanation {code}"
