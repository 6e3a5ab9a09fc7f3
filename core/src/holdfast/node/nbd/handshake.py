"""The NBD handshake as a machine: the client's bytes go in, questions to answer come out.

Fixed newstyle negotiation, until an export is chosen or the client leaves. The machine answers by
itself whatever needs no knowledge of volumes; for the rest `next_event` returns a question, and the
machine reads on once it was answered by one of the `answer_*` methods or `refuse`. It refuses to know
sockets, volumes and sessions.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Mapping, Sequence
from typing import Any

import attrs

from holdfast.errors import RemoteProtocolError
from holdfast.node.nbd.protocol import (
    BASE_ALLOCATION,
    BASE_ALLOCATION_ID,
    BLOCK_SIZES,
    CLIENT_FLAGS,
    EXPORT_NAME_REPLY,
    GREETING,
    IHAVEOPT,
    INFO_BLOCK_SIZE,
    INFO_EXPORT,
    NAME_BYTES_MAX,
    NBD_OPT_REPLY_MAGIC,
    NBDMAGIC,
    OPTION,
    OPTION_BYTES_MAX,
    OPTION_REPLY,
    HandshakeFlag,
    Info,
    Option,
    Rep,
    TransmissionFlag,
)

_U32 = struct.Struct(">I")
_U16 = struct.Struct(">H")
_FLAGS = int(HandshakeFlag.FIXED_NEWSTYLE | HandshakeFlag.NO_ZEROES)
"""A number, because the complement of an `IntFlag` has only bits that have names."""
_OFFERED = (
    TransmissionFlag.HAS_FLAGS
    | TransmissionFlag.SEND_FLUSH
    | TransmissionFlag.SEND_FUA
    | TransmissionFlag.SEND_TRIM
    | TransmissionFlag.SEND_WRITE_ZEROES
    | TransmissionFlag.SEND_FAST_ZERO
    | TransmissionFlag.SEND_CACHE
    | TransmissionFlag.CAN_MULTI_CONN
)


@attrs.frozen
class ListQuestion:
    """The client asks which exports there are; `answer_list` or `refuse`."""


@attrs.frozen
class ExportQuestion:
    """The client asks for an export; `answer_export` or `refuse`."""

    name: str
    """May be empty: the default export."""
    enters: bool
    """Whether transmission begins with the answer; otherwise the client only asks what it is like."""


Question = ListQuestion | ExportQuestion


@attrs.frozen
class ExportInfo:
    """What a client is told of an export."""

    name: str
    size_bytes: int
    read_only: bool
    description: str = ""


class Phase(enum.Enum):
    """How far a handshake has come."""

    FLAGS = "flags"
    """The client has not answered the greeting yet."""
    OPTIONS = "options"
    ASKING = "asking"
    """A question is out; nothing is read until it is answered."""
    CHOSEN = "chosen"
    """Transmission begins with the bytes in `rest`."""
    CLOSED = "closed"
    """Send what is left to send, then hang up."""


class _InvalidOptionError(Exception):
    """The data of an option is not what the specification says; the client is told and goes on."""


@attrs.define
class Handshake:
    """One client's handshake, from the greeting to the choice of an export."""

    phase: Phase = Phase.FLAGS
    structured: bool = False
    """Whether replies are structured."""
    _context_name: str | None = None
    """The export for which base:allocation was selected."""
    base_allocation: bool = False
    """Whether the client may ask for the block status of the export that it chose."""
    close_reason: str = ""
    """Why the server ends the handshake; empty when the client left in order."""
    _no_zeroes: bool = False
    _received: bytearray = attrs.field(factory=bytearray)
    _output: bytearray = attrs.field(
        factory=lambda: bytearray(GREETING.pack(NBDMAGIC, IHAVEOPT, _FLAGS)), repr=False
    )
    _option: int = 0
    """The option that the open question is about."""
    _question: Question | None = None
    _infos: frozenset[int] = frozenset()

    @property
    def question(self) -> Question | None:
        """What is to be answered before the handshake goes on."""
        return self._question

    def state(self) -> dict[str, Any]:
        """Return all of an open question's handshake, JSON-able, for `resumed`."""
        question = self._question
        assert isinstance(question, ExportQuestion)
        return {
            "structured": self.structured,
            "context_name": self._context_name,
            "no_zeroes": self._no_zeroes,
            "received": self._received.hex(),
            "option": self._option,
            "infos": sorted(self._infos),
            "name": question.name,
        }

    @classmethod
    def resumed(cls, state: Mapping[str, Any]) -> Handshake:
        """Return a handshake at the choice of an export, where another process has left it."""
        return cls(
            phase=Phase.ASKING,
            structured=state["structured"],
            context_name=state["context_name"],
            no_zeroes=state["no_zeroes"],
            received=bytearray.fromhex(state["received"]),
            output=bytearray(),
            option=state["option"],
            question=ExportQuestion(state["name"], enters=True),
            infos=frozenset(state["infos"]),
        )

    @property
    def rest(self) -> bytes:
        """The bytes that came behind the handshake and belong to transmission."""
        assert self.phase is Phase.CHOSEN
        return bytes(self._received)

    def receive(self, data: bytes | bytearray | memoryview) -> None:
        """Take bytes from the client.

        Raises:
            RemoteProtocolError: More than one option's worth is waiting, so the client does not
                wait for answers, which the protocol demands of it.
        """
        self._received += data
        if len(self._received) > 2 * (OPTION_BYTES_MAX + OPTION.size):
            raise RemoteProtocolError("The NBD client sends options without waiting for answers.")

    def data_to_send(self) -> bytes:
        """Return what is to be sent now, once."""
        data = bytes(self._output)
        self._output.clear()
        return data

    def next_event(self) -> Question | None:
        """Return the next question, or None when more bytes or an answer are needed.

        Raises:
            RemoteProtocolError: The client does not speak this protocol; hang up.
        """
        while True:
            if self.phase is Phase.FLAGS:
                if not self._take_flags():
                    return None
            elif self.phase is Phase.OPTIONS:
                option = self._take_option()
                if option is None:
                    return None
                question = self._decide(*option)
                if question is not None:
                    self._question = question
                    self.phase = Phase.ASKING
                    return question
            else:
                return None

    # --- answers ---------------------------------------------------------------------------

    def answer_list(self, names: Sequence[str]) -> None:
        """Answer a `ListQuestion` with the exports there are."""
        assert isinstance(self._question, ListQuestion)
        for name in names:
            raw = name.encode()
            self._reply(Rep.SERVER, _U32.pack(len(raw)) + raw)
        self._reply(Rep.ACK)
        self._answered(Phase.OPTIONS)

    def answer_export(self, export: ExportInfo) -> None:
        """Answer an `ExportQuestion` with what the export is like, and enter it when asked to."""
        question = self._question
        assert isinstance(question, ExportQuestion)
        flags = _OFFERED
        if export.read_only:
            flags |= TransmissionFlag.READ_ONLY
        if self.structured:
            flags |= TransmissionFlag.SEND_DF
        if self._option == Option.EXPORT_NAME:
            self._output += EXPORT_NAME_REPLY.pack(export.size_bytes, flags)
            self._output += b"" if self._no_zeroes else bytes(124)
        else:
            self._reply(Rep.INFO, INFO_EXPORT.pack(Info.EXPORT, export.size_bytes, flags))
            self._reply(Rep.INFO, INFO_BLOCK_SIZE.pack(Info.BLOCK_SIZE, *BLOCK_SIZES))
            if Info.NAME in self._infos:
                self._reply(Rep.INFO, _U16.pack(Info.NAME) + export.name.encode())
            if Info.DESCRIPTION in self._infos and export.description:
                text = export.description.encode()[:NAME_BYTES_MAX]
                self._reply(Rep.INFO, _U16.pack(Info.DESCRIPTION) + text)
            self._reply(Rep.ACK)
        if question.enters:
            self.base_allocation = self.structured and self._context_name == question.name
        self._answered(Phase.CHOSEN if question.enters else Phase.OPTIONS)

    def refuse(self, rep: Rep, sentence: str) -> None:
        """Answer the open question with no, saying why."""
        assert self._question is not None
        if self._option == Option.EXPORT_NAME:
            # The oldest option has no way to say no but to hang up.
            self.close_reason = sentence
            self._answered(Phase.CLOSED)
            return
        self._reply(rep, sentence.encode()[:NAME_BYTES_MAX])
        self._answered(Phase.OPTIONS)

    def _answered(self, phase: Phase) -> None:
        self._question = None
        self.phase = phase

    # --- input -----------------------------------------------------------------------------

    def _take_flags(self) -> bool:
        if len(self._received) < CLIENT_FLAGS.size:
            return False
        (flags,) = CLIENT_FLAGS.unpack_from(self._received)
        del self._received[: CLIENT_FLAGS.size]
        if flags & ~_FLAGS:
            raise RemoteProtocolError(
                f"The client answered the NBD greeting with unknown flags 0x{flags:x}."
            )
        self._no_zeroes = bool(flags & HandshakeFlag.NO_ZEROES)
        self.phase = Phase.OPTIONS
        return True

    def _take_option(self) -> tuple[int, bytes] | None:
        if len(self._received) < OPTION.size:
            return None
        magic, option, length = OPTION.unpack_from(self._received)
        if magic != IHAVEOPT:
            raise RemoteProtocolError(f"The client sent no NBD option: its magic is 0x{magic:x}.")
        if length > OPTION_BYTES_MAX:
            self._option = option
            sentence = f"Options longer than {OPTION_BYTES_MAX} bytes are not taken."
            if option != Option.EXPORT_NAME:
                self._reply(Rep.ERR_TOO_BIG, sentence.encode())
            self.close_reason = f"{sentence} The client announced {length}."
            self.phase = Phase.CLOSED
            return None
        end = OPTION.size + length
        if len(self._received) < end:
            return None
        data = bytes(self._received[OPTION.size : end])
        del self._received[:end]
        return option, data

    def _decide(self, option: int, data: bytes) -> Question | None:
        """Answer what needs no knowledge of volumes; return the question otherwise."""
        self._option = option
        try:
            match option:
                case Option.EXPORT_NAME:
                    return self._legacy_choice(data)
                case Option.ABORT:
                    self._reply(Rep.ACK)
                    self.phase = Phase.CLOSED
                case Option.LIST:
                    _must(not data, "NBD_OPT_LIST takes no data.")
                    return ListQuestion()
                case Option.STARTTLS:
                    self._start_tls(data)
                case Option.INFO | Option.GO:
                    return self._choice(data, enters=option == Option.GO)
                case Option.STRUCTURED_REPLY:
                    _must(not data, "NBD_OPT_STRUCTURED_REPLY takes no data.")
                    self.structured = True
                    self._reply(Rep.ACK)
                case Option.LIST_META_CONTEXT | Option.SET_META_CONTEXT:
                    self._meta_contexts(data, selects=option == Option.SET_META_CONTEXT)
                case _:
                    self._reply(Rep.ERR_UNSUP, b"Holdfast does not know this option.")
        except _InvalidOptionError as error:
            self._reply(Rep.ERR_INVALID, str(error).encode())
        return None

    def _start_tls(self, data: bytes) -> None:
        # TLS would be entered here: acknowledge, hand the socket to the TLS layer, then begin anew
        # in phase OPTIONS with everything that was negotiated in the clear forgotten.
        _must(not data, "NBD_OPT_STARTTLS takes no data.")
        self._reply(Rep.ERR_UNSUP, b"This server speaks no TLS yet; connect without it.")

    def _legacy_choice(self, data: bytes) -> Question | None:
        try:
            return ExportQuestion(_name(data), enters=True)
        except _InvalidOptionError as error:
            self.close_reason = str(error)
            self.phase = Phase.CLOSED
            return None

    def _choice(self, data: bytes, *, enters: bool) -> Question:
        name, at = _counted(data, 0)
        _must(len(data) >= at + _U16.size, "The number of information requests is missing.")
        (count,) = _U16.unpack_from(data, at)
        _must(len(data) == at + _U16.size * (1 + count), "The information requests are cut off.")
        self._infos = frozenset(struct.unpack_from(f">{count}H", data, at + _U16.size))
        return ExportQuestion(_name(name), enters=enters)

    def _meta_contexts(self, data: bytes, *, selects: bool) -> None:
        """Offer or select base:allocation, the one context that there is."""
        if selects:
            self._context_name = None
        _must(self.structured, "Meta contexts need structured replies first.")
        raw_name, at = _counted(data, 0)
        name = _name(raw_name)
        _must(len(data) >= at + _U32.size, "The number of queries is missing.")
        (count,) = _U32.unpack_from(data, at)
        at += _U32.size
        # Each query is at least its length field, so a count beyond the data ends the loop early.
        matches = not count and not selects
        for _ in range(count):
            query, at = _counted(data, at)
            matches |= query == BASE_ALLOCATION or (query == b"base:" and not selects)
        _must(at == len(data), "There is more data than queries.")
        if matches:
            context = BASE_ALLOCATION_ID if selects else 0
            self._reply(Rep.META_CONTEXT, _U32.pack(context) + BASE_ALLOCATION)
            if selects:
                self._context_name = name
        self._reply(Rep.ACK)

    def _reply(self, rep: Rep, data: bytes = b"") -> None:
        self._output += OPTION_REPLY.pack(NBD_OPT_REPLY_MAGIC, self._option, rep, len(data)) + data


def _must(holds: bool, sentence: str) -> None:
    if not holds:
        raise _InvalidOptionError(sentence)


def _counted(data: bytes, at: int) -> tuple[bytes, int]:
    """Return the string at `at` that is preceded by its length, and where it ends."""
    _must(len(data) >= at + _U32.size, "A string's length is missing.")
    (length,) = _U32.unpack_from(data, at)
    at += _U32.size
    _must(length <= len(data) - at, "A string is cut off.")
    return data[at : at + length], at + length


def _name(raw: bytes) -> str:
    _must(len(raw) <= NAME_BYTES_MAX, f"Names are at most {NAME_BYTES_MAX} bytes long.")
    try:
        return raw.decode()
    except UnicodeDecodeError:
        raise _InvalidOptionError("A name must be UTF-8.") from None
