"""What both ends of a link share: what is to be sent, and how PDUs of one queue are found and judged.

Sans-IO. `host_stream.py` is the end that connected (NVMe's host), `target_stream.py` the other one.
"""

from __future__ import annotations

import struct
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Final

from holdfast.errors import LocalProtocolError, RemoteProtocolError
from holdfast.messages import Ack, Message, Payload
from holdfast.sockets import Counters
from holdfast.units import KIB
from holdfast_transport_nvmeof.pdu import (
    COMMON,
    DIGEST,
    TERM,
    FatalErrorStatus,
    Framing,
    Pdu,
    PduError,
    PduType,
    crc32c,
    offending_header,
    term_pdu,
)

QID: Final = 1
"""The one I/O queue of a controller."""
_RESPONSE: Final = struct.Struct("<BBBBIIIHHHH")
_PART_BITS: Final = 8
_PART: Final = 1 << _PART_BITS
"""Successes that are made at a time; one costs 1 us."""
JOIN_PIECE_BYTES_MAX: Final = 8 * KIB
"""Pieces below this on average are copied into one buffer, which costs less to write than many."""


def _residue() -> int:
    data = b"any"
    return crc32c(data, DIGEST.pack(crc32c(data)))


RESIDUE: Final = _residue()
"""The CRC-32C of whatever has its own CRC-32C behind it."""


def is_intact(view: memoryview, start: int, stop: int) -> bool:
    """Return whether the CRC-32C of `view[start:stop]` stands behind it."""
    return crc32c(view[start : stop + DIGEST.size]) == RESIDUE


def joined(parts: list[Payload], size: int) -> list[Payload]:
    """Return `parts`, of `size` bytes together, as one where that costs less than to write many."""
    return [b"".join(parts)] if size <= JOIN_PIECE_BYTES_MAX * len(parts) else parts


class Successes:
    """The PDUs of successes on our queue, in the order of command identifiers.

    They are kept, 2 MiB at most for all links, so that those of a run of commands are one piece of
    memory: to send and to compare with.
    """

    def __init__(self, *, has_digest: bool) -> None:
        """Begin with none."""
        self.size = 28 if has_digest else 24
        """Of one, in bytes."""
        self._has_digest = has_digest
        self._made = [b""] * (0x1_0000 >> _PART_BITS)

    def of(self, cid: int, count: int = 1) -> bytes:
        """Return those of `count` command identifiers from `cid` on."""
        part, at, stop = cid >> _PART_BITS, cid & _PART - 1, (cid & _PART - 1) + count
        made = self._made[part] or self._make(part)
        if stop <= _PART:
            return made[at * self.size : stop * self.size]
        fit = _PART - at
        return made[at * self.size :] + self.of(cid + fit, count - fit)

    def _make(self, part: int) -> bytes:
        begin = part << _PART_BITS
        self._made[part] = b"".join(map(self._one, range(begin, begin + _PART)))
        return self._made[part]

    def _one(self, cid: int) -> bytes:
        flag = int(self._has_digest)
        found = _RESPONSE.pack(PduType.CAPSULE_RESP, flag, 24, 0, self.size, 0, 0, 0, QID, cid, 0)
        return found + DIGEST.pack(crc32c(found)) if flag else found


SUCCESSES: Final = (Successes(has_digest=False), Successes(has_digest=True))
"""Without and with a header digest; all links have the same."""


class Stream(ABC):
    """One end of a link, after its handshake."""

    def __init__(self, framing: Framing, counters: Counters, term: PduType) -> None:
        """Begin; `framing` is what the handshake agreed on, `term` how this end terminates."""
        self._framing = framing
        self._counters = counters
        self._term = term
        self._output: list[Payload] = []

    @property
    def wanted(self) -> int:
        """Bytes that the PDU at the position where `parse` stopped takes in all."""
        return self._framing.wanted

    @property
    def waiting_bytes(self) -> int:
        """Bytes of messages that wait in here for the peer to make room."""
        return 0

    @property
    def is_waiting(self) -> bool:
        """Whether messages wait in here for the peer to make room."""
        return False

    def take_output(self) -> list[Payload]:
        """Return what is to be sent, and forget it."""
        output, self._output = self._output, []
        return output

    def send(self, messages: Sequence[Message]) -> None:
        """Turn messages into PDUs; of acknowledgements behind one another the last is enough.

        Raises:
            LocalProtocolError: A message does not fit the protocol; names what and why.
        """
        last = len(messages) - 1
        for index, message in enumerate(messages):
            if type(message) is Ack and index < last:
                follower = messages[index + 1]
                if type(follower) is Ack and follower.epoch == message.epoch:
                    continue
            try:
                self._put(message)
            except (ValueError, KeyError) as error:
                raise _misfit(message, error) from error

    def parse(self, view: memoryview, start: int, end: int, into: list[Any]) -> int:
        """Take the whole PDUs in `view[start:end]` and return where the next one begins.

        Args:
            view: What was received; payloads of messages are slices of it.
            start: Where the first PDU begins.
            end: Where the received bytes end.
            into: Gets the messages, in order; also those before an error.

        Raises:
            RemoteProtocolError: The peer broke the protocol. What it is to be told is in the output;
                send that and close.
        """
        begun, count = start, 0
        take, act, run = self._framing.take, self._on_pdu, self._on_run
        try:
            while True:
                start, taken = run(view, start, end, into)
                count += taken
                pdu = take(view, start, end)
                if pdu is None:
                    break
                act(view, pdu, into)
                start = pdu[5]
                count += 1
        except PduError as error:
            header = offending_header(view, start, end)
            self._output.append(term_pdu(self._term, error.fes, error.fei, header))
            raise
        finally:
            self._settle(into)
            self._counters.received(count, start - begun)
        return start

    @abstractmethod
    def _put(self, message: Message) -> None:
        """Append the PDUs of one message to the output."""

    @abstractmethod
    def _on_run(self, view: memoryview, start: int, end: int, into: list[Any]) -> tuple[int, int]:
        """Take the PDUs at `start` that are of the commonest kind and just as they should be.

        Returns where the next one begins, which is looked at closely, and how many were taken.
        """

    @abstractmethod
    def _on_pdu(self, view: memoryview, pdu: Pdu, into: list[Any]) -> None:
        """Take one PDU."""

    @abstractmethod
    def _settle(self, into: list[Any]) -> None:
        """Bring to an end what was collected over several PDUs."""

    def _append(self, parts: list[Payload], count: int, size: int) -> None:
        """Append the bytes of `count` PDUs to the output."""
        self._output += joined(parts, size)
        self._counters.sent(count, size)

    def _pdu(self, kind: PduType, flags: int, fields: bytes, pieces: list[Payload]) -> None:
        """Append one PDU whose data are `pieces`, none of them empty."""
        framing = self._framing
        if len(pieces) > 1 and framing.data_digest:
            pieces = [b"".join(pieces)]
        data = pieces[0] if pieces else b""
        parts = framing.pdu(kind, flags, fields, data)
        if len(pieces) > 1:
            # The header was made for the first piece; its length counts them all.
            size = sum(map(len, pieces))
            head = bytearray(parts[0])
            plen = COMMON.unpack_from(head)[4] + size - len(data)
            head[4:8] = plen.to_bytes(4, "little")
            if framing.header_digest:
                hlen = head[2]
                head[hlen : hlen + 4] = DIGEST.pack(crc32c(head[:hlen]))
            parts = [bytes(head), *pieces]
        self._append(parts, 1, sum(map(len, parts)))

    @staticmethod
    def _terminated(view: memoryview, pdu: Pdu) -> RemoteProtocolError:
        """Return what the peer's termination request means here."""
        fes, fei = TERM.unpack_from(view, pdu.start + COMMON.size)
        known = fes in FatalErrorStatus._value2member_map_
        name = FatalErrorStatus(fes).name if known else f"FES {fes}"
        return RemoteProtocolError(f"The peer terminated the connection: {name}, FEI 0x{fei:x}.")


def _misfit(message: Message, error: Exception) -> LocalProtocolError:
    name = type(message).__name__
    return LocalProtocolError(f"A {name} cannot be sent over NVMe/TCP: {error}.")
