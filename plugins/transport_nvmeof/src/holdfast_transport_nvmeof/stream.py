"""What both ends of a link share: what is to be sent, and how PDUs of one queue are found and judged.

Sans-IO. `host_stream.py` is the end that connected (NVMe's host), `target_stream.py` the other one.
"""

from __future__ import annotations

import struct
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
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
_RESPONSES: Final[tuple[dict[int, bytes], dict[int, bytes]]] = ({}, {})
"""Without and with a header digest, by command identifier."""
JOIN_PIECE_BYTES_MAX: Final = 8 * KIB
"""Pieces below this on average are copied into one buffer, which costs less to write than many."""


def is_intact(view: memoryview, start: int, stop: int) -> bool:
    """Return whether the CRC-32C of `view[start:stop]` stands behind it."""
    found = crc32c(view[start:stop])
    (expected,) = DIGEST.unpack_from(view, stop)
    return found == int(expected)


def responses(*, has_digest: bool) -> Callable[[int], bytes]:
    """Return a function that gives the PDU of a success for a command identifier of our queue.

    They are kept, 2 MiB at most for the operations of all links: one costs 1 us to make.
    """
    made = _RESPONSES[has_digest]

    def response(cid: int) -> bytes:
        found = made.get(cid)
        if found is None:
            size = 28 if has_digest else 24
            found = _RESPONSE.pack(
                PduType.CAPSULE_RESP, int(has_digest), 24, 0, size, 0, 0, 0, QID, cid, 0
            )
            if has_digest:
                found += DIGEST.pack(crc32c(found))
            made[cid] = found
        return found

    return response


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
        if size <= JOIN_PIECE_BYTES_MAX * len(parts):
            self._output.append(b"".join(parts))
        else:
            self._output += parts
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
