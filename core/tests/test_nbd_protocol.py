"""The NBD machines, byte by byte: no socket, no session, no time."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast.errors import RemoteProtocolError
from holdfast.messages import Reply, Request, RequestFlag, RequestKind, pack_extents
from holdfast.node.nbd.handshake import (
    ExportInfo,
    ExportQuestion,
    Handshake,
    ListQuestion,
    Phase,
)
from holdfast.node.nbd.protocol import (
    IHAVEOPT,
    NAME_BYTES_MAX,
    NBD_OPT_REPLY_MAGIC,
    NBD_REQUEST_MAGIC,
    NBD_SIMPLE_REPLY_MAGIC,
    NBD_STRUCTURED_REPLY_MAGIC,
    OPTION,
    OPTION_BYTES_MAX,
    OPTION_REPLY,
    REQUEST,
    Command,
    CommandFlag,
    Errno,
    Info,
    Option,
    Rep,
    TransmissionFlag,
)
from holdfast.node.nbd.transmission import Transmission
from holdfast.units import MIB, REQUEST_BYTES_MAX

SIZE = 256 * MIB
DB = ExportInfo(name="db", size_bytes=SIZE, read_only=False, description="a volume")


# --- handshake ---------------------------------------------------------------------------------


def shaken(flags: int = 3) -> Handshake:
    """Return a handshake whose greeting was answered."""
    handshake = Handshake()
    assert handshake.data_to_send() == b"NBDMAGICIHAVEOPT\x00\x03"
    handshake.receive(struct.pack(">I", flags))
    assert handshake.next_event() is None
    return handshake


def option(number: int, data: bytes = b"") -> bytes:
    return OPTION.pack(IHAVEOPT, number, len(data)) + data


def counted(text: bytes) -> bytes:
    return struct.pack(">I", len(text)) + text


def go(name: bytes, *infos: int) -> bytes:
    return counted(name) + struct.pack(f">H{len(infos)}H", len(infos), *infos)


def replies_in(data: bytes) -> list[tuple[int, int, bytes]]:
    """Return (option, reply type, data) of each option reply."""
    found = []
    while data:
        magic, number, rep, length = OPTION_REPLY.unpack_from(data)
        assert magic == NBD_OPT_REPLY_MAGIC
        found.append((number, rep, data[20 : 20 + length]))
        data = data[20 + length :]
    return found


def ask(handshake: Handshake, number: int, data: bytes = b"") -> list[tuple[int, int, bytes]]:
    """Send an option that the machine answers by itself and return its replies."""
    handshake.receive(option(number, data))
    assert handshake.next_event() is None
    return replies_in(handshake.data_to_send())


def is_closed(handshake: Handshake) -> bool:
    return handshake.phase is Phase.CLOSED


def test_go_answers_with_size_flags_and_block_sizes_and_begins_transmission() -> None:
    handshake = shaken()
    handshake.receive(option(Option.GO, go(b"db", Info.NAME, Info.DESCRIPTION)))
    assert handshake.next_event() == ExportQuestion("db", enters=True)
    handshake.answer_export(DB)
    replies = replies_in(handshake.data_to_send())
    assert [rep for _, rep, _ in replies] == [Rep.INFO] * 4 + [Rep.ACK]
    kind, size, flags = struct.unpack(">HQH", replies[0][2])
    assert (kind, size) == (Info.EXPORT, SIZE)
    assert flags & TransmissionFlag.CAN_MULTI_CONN
    assert not flags & (TransmissionFlag.READ_ONLY | TransmissionFlag.SEND_DF)
    assert struct.unpack(">HIII", replies[1][2]) == (Info.BLOCK_SIZE, 512, 65536, 32 * MIB)
    assert replies[2][2] == b"\x00\x01db"
    assert replies[3][2] == b"\x00\x02a volume"
    assert handshake.phase is Phase.CHOSEN


def test_info_answers_the_same_and_goes_on_with_options() -> None:
    handshake = shaken()
    handshake.receive(option(Option.INFO, go(b"db")))
    assert handshake.next_event() == ExportQuestion("db", enters=False)
    handshake.answer_export(DB)
    assert [rep for _, rep, _ in replies_in(handshake.data_to_send())] == [Rep.INFO] * 2 + [Rep.ACK]
    assert handshake.phase is Phase.OPTIONS


def test_a_read_only_export_says_so() -> None:
    handshake = shaken()
    handshake.receive(option(Option.GO, go(b"db")))
    handshake.next_event()
    handshake.answer_export(ExportInfo("db", SIZE, read_only=True))
    (_, _, info), *_ = replies_in(handshake.data_to_send())
    assert struct.unpack(">HQH", info)[2] & TransmissionFlag.READ_ONLY


@pytest.mark.parametrize(("flags", "zeros"), [(3, 0), (1, 124)])
def test_export_name_answers_with_the_old_form(flags: int, zeros: int) -> None:
    handshake = shaken(flags)
    handshake.receive(option(Option.EXPORT_NAME, b"db") + b"rest")
    assert handshake.next_event() == ExportQuestion("db", enters=True)
    handshake.answer_export(DB)
    data = handshake.data_to_send()
    assert struct.unpack_from(">QH", data)[0] == SIZE
    assert data[10:] == bytes(zeros)
    assert handshake.rest == b"rest"


def test_export_name_of_an_unknown_export_can_only_hang_up() -> None:
    handshake = shaken()
    handshake.receive(option(Option.EXPORT_NAME, b"nix"))
    handshake.next_event()
    handshake.refuse(Rep.ERR_UNKNOWN, "There is no volume named nix.")
    assert handshake.phase is Phase.CLOSED
    assert handshake.data_to_send() == b""
    assert "nix" in handshake.close_reason


def test_go_to_an_unknown_export_is_refused_with_a_sentence_and_options_go_on() -> None:
    handshake = shaken()
    handshake.receive(option(Option.GO, go(b"nix")))
    handshake.next_event()
    handshake.refuse(Rep.ERR_UNKNOWN, "There is no volume named nix.")
    assert replies_in(handshake.data_to_send()) == [
        (Option.GO, Rep.ERR_UNKNOWN, b"There is no volume named nix.")
    ]
    assert ask(handshake, Option.ABORT) == [(Option.ABORT, Rep.ACK, b"")]


def test_list_names_every_export() -> None:
    handshake = shaken()
    handshake.receive(option(Option.LIST))
    assert handshake.next_event() == ListQuestion()
    handshake.answer_list(["db", "größe"])
    assert replies_in(handshake.data_to_send()) == [
        (Option.LIST, Rep.SERVER, counted(b"db")),
        (Option.LIST, Rep.SERVER, counted("größe".encode())),
        (Option.LIST, Rep.ACK, b""),
    ]


def test_abort_is_acknowledged_and_ends_the_handshake() -> None:
    handshake = shaken()
    assert ask(handshake, Option.ABORT) == [(Option.ABORT, Rep.ACK, b"")]
    assert handshake.phase is Phase.CLOSED
    assert not handshake.close_reason


def test_tls_and_unknown_options_are_refused_politely() -> None:
    handshake = shaken()
    for number in (Option.STARTTLS, 4, 11, 999):
        ((_, rep, sentence),) = ask(handshake, number)
        assert rep == Rep.ERR_UNSUP
        assert sentence
    assert handshake.phase is Phase.OPTIONS


@pytest.mark.parametrize(
    ("number", "data"),
    [
        (Option.LIST, b"x"),
        (Option.STARTTLS, b"x"),
        (Option.STRUCTURED_REPLY, b"x"),
        (Option.GO, b""),
        (Option.GO, b"\0\0\0"),
        (Option.GO, struct.pack(">I", 9) + b"db"),
        (Option.GO, counted(b"db")),
        (Option.GO, go(b"db") + b"x"),
        (Option.GO, go(b"db", 1)[:-1]),
        (Option.GO, go(b"\xff\xfe")),
        (Option.INFO, go(b"n" * (NAME_BYTES_MAX + 1))),
        (Option.SET_META_CONTEXT, counted(b"db")),
        (Option.SET_META_CONTEXT, counted(b"db") + struct.pack(">I", 2**32 - 1)),
        (Option.LIST_META_CONTEXT, counted(b"db") + struct.pack(">I", 1) + counted(b"a") + b"x"),
    ],
)
def test_a_malformed_option_is_called_invalid_and_the_next_one_is_taken(
    number: Option, data: bytes
) -> None:
    handshake = shaken()
    ask(handshake, Option.STRUCTURED_REPLY)
    ((answered, rep, sentence),) = ask(handshake, number, data)
    assert (answered, rep) == (number, Rep.ERR_INVALID)
    assert sentence.endswith(b".")
    handshake.receive(option(Option.LIST))
    assert handshake.next_event() == ListQuestion()


def contexts(name: bytes, *queries: bytes) -> bytes:
    return counted(name) + struct.pack(">I", len(queries)) + b"".join(map(counted, queries))


def test_block_status_is_offered_for_the_export_that_it_was_selected_for() -> None:
    handshake = shaken()
    ask(handshake, Option.STRUCTURED_REPLY)
    replies = ask(
        handshake, Option.SET_META_CONTEXT, contexts(b"db", b"other:x", b"base:allocation")
    )
    assert [rep for _, rep, _ in replies] == [Rep.META_CONTEXT, Rep.ACK]
    assert replies[0][2] == b"\0\0\0\1base:allocation"
    handshake.receive(option(Option.GO, go(b"db")))
    handshake.next_event()
    handshake.answer_export(DB)
    assert handshake.base_allocation
    (_, _, info), *_ = replies_in(handshake.data_to_send())
    assert struct.unpack(">HQH", info)[2] & TransmissionFlag.SEND_DF


@pytest.mark.parametrize("later", [b"another", b""])
def test_a_context_selected_for_another_export_does_not_count(later: bytes) -> None:
    handshake = shaken()
    ask(handshake, Option.STRUCTURED_REPLY)
    ask(handshake, Option.SET_META_CONTEXT, contexts(b"db", b"base:allocation"))
    handshake.receive(option(Option.GO, go(later)))
    handshake.next_event()
    handshake.answer_export(DB)
    assert not handshake.base_allocation


def test_selecting_again_forgets_what_was_selected() -> None:
    handshake = shaken()
    ask(handshake, Option.STRUCTURED_REPLY)
    ask(handshake, Option.SET_META_CONTEXT, contexts(b"db", b"base:allocation"))
    replies = ask(handshake, Option.SET_META_CONTEXT, contexts(b"db"))
    assert [rep for _, rep, _ in replies] == [Rep.ACK]
    handshake.receive(option(Option.GO, go(b"db")))
    handshake.next_event()
    handshake.answer_export(DB)
    assert not handshake.base_allocation


@pytest.mark.parametrize("queries", [(), (b"base:",), (b"base:allocation",)])
def test_contexts_are_listed(queries: tuple[bytes, ...]) -> None:
    handshake = shaken()
    ask(handshake, Option.STRUCTURED_REPLY)
    replies = ask(handshake, Option.LIST_META_CONTEXT, contexts(b"db", *queries))
    assert replies[0][1:] == (Rep.META_CONTEXT, b"\0\0\0\0base:allocation")


def test_contexts_without_structured_replies_are_invalid() -> None:
    ((_, rep, _),) = ask(shaken(), Option.SET_META_CONTEXT, contexts(b"db", b"base:allocation"))
    assert rep == Rep.ERR_INVALID


def test_an_option_that_is_too_long_is_refused_before_its_data_comes() -> None:
    handshake = shaken()
    handshake.receive(OPTION.pack(IHAVEOPT, Option.GO, OPTION_BYTES_MAX + 1))
    assert handshake.next_event() is None
    ((_, rep, _),) = replies_in(handshake.data_to_send())
    assert rep == Rep.ERR_TOO_BIG
    assert handshake.phase is Phase.CLOSED


@pytest.mark.parametrize(
    "garbage", [b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"\0\0\0\3" + b"x" * 16, b"\0\0\0\7"]
)
def test_who_speaks_another_protocol_is_hung_up_on(garbage: bytes) -> None:
    handshake = Handshake()
    handshake.receive(garbage)
    with pytest.raises(RemoteProtocolError):
        handshake.next_event()


def test_who_sends_on_without_waiting_for_answers_is_hung_up_on() -> None:
    handshake = shaken()
    handshake.receive(option(Option.LIST))
    handshake.next_event()
    with pytest.raises(RemoteProtocolError, match="without waiting"):
        handshake.receive(option(Option.LIST) * 20_000)


def test_a_handshake_cut_anywhere_just_waits() -> None:
    whole = (
        struct.pack(">I", 3)
        + option(Option.STRUCTURED_REPLY)
        + option(Option.SET_META_CONTEXT, contexts(b"db", b"base:allocation"))
        + option(Option.GO, go(b"db", 3))
    )
    for cut in range(len(whole)):
        handshake = Handshake()
        handshake.receive(whole[:cut])
        assert handshake.next_event() is None
        handshake.receive(whole[cut:])
        assert handshake.next_event() == ExportQuestion("db", enters=True)


@given(st.lists(st.binary(max_size=64), max_size=20), st.booleans())
def test_random_bytes_never_break_the_handshake(pieces: list[bytes], polite: bool) -> None:
    handshake = shaken() if polite else Handshake()
    for piece in pieces:
        try:
            handshake.receive(piece)
            event = handshake.next_event()
        except RemoteProtocolError:
            return
        if event is not None:
            handshake.refuse(Rep.ERR_UNKNOWN, "No.")


@given(
    st.lists(
        st.tuples(st.integers(0, 12), st.binary(max_size=40)).map(lambda o: option(*o)), max_size=8
    )
)
def test_random_option_data_is_always_answered(options: list[bytes]) -> None:
    handshake = shaken()
    for each in options:
        if is_closed(handshake):
            return
        handshake.data_to_send()
        handshake.receive(each)
        event = handshake.next_event()
        if event is not None:
            handshake.refuse(Rep.ERR_UNKNOWN, "No.")
        assert is_closed(handshake) or handshake.data_to_send()


# --- transmission ------------------------------------------------------------------------------


def machine(
    *,
    writable: bool = True,
    structured: bool = True,
    inflight_bytes: int = 64 * MIB,
    inflight_requests: int = 1024,
) -> Transmission:
    return Transmission(
        number=7,
        size_bytes=SIZE,
        writable=writable,
        structured=structured,
        base_allocation=structured,
        inflight_bytes_max=inflight_bytes,
        inflight_requests_max=inflight_requests,
    )


def command(
    kind: int,
    offset: int = 0,
    length: int = 0,
    *,
    cookie: int = 99,
    flags: int = 0,
    data: bytes = b"",
) -> bytes:
    return REQUEST.pack(NBD_REQUEST_MAGIC, flags, kind, cookie, offset, length) + data


def feed(nbd: Transmission, data: bytes) -> list[Request]:
    """Have everything parsed and return the requests."""
    assert nbd.parse(memoryview(data), 0, len(data)) == len(data)
    requests, nbd.requests = nbd.requests, []
    return requests


def sent(nbd: Transmission) -> bytes:
    output, nbd.output = nbd.output, []
    return b"".join(output)


def error_in(nbd: Transmission) -> tuple[int, int]:
    """Return cookie and errno of the one error that was sent."""
    data = sent(nbd)
    magic, flags, kind, cookie, length = struct.unpack_from(">IHHQI", data)
    assert (magic, flags, kind) == (NBD_STRUCTURED_REPLY_MAGIC, 1, 0x8001)
    assert length == len(data) - 20
    errno, text_bytes = struct.unpack_from(">IH", data, 20)
    assert len(data) == 26 + text_bytes
    assert data.endswith(b".")
    return cookie, errno


def simple(cookie: int, errno: int = 0) -> bytes:
    return struct.pack(">IIQ", NBD_SIMPLE_REPLY_MAGIC, errno, cookie)


def test_one_buffer_becomes_one_list_and_payloads_are_views_of_it() -> None:
    nbd = machine()
    data = memoryview(
        command(Command.WRITE, 4096, 512, cookie=1, flags=CommandFlag.FUA, data=b"w" * 512)
        + command(Command.READ, 8192, 1024, cookie=2)
        + command(Command.FLUSH, cookie=3)
    )
    assert nbd.parse(data, 0, len(data)) == len(data)
    write, read, flush = nbd.requests
    assert write[1:5] == (RequestKind.WRITE, RequestFlag.FUA, 4096, 512)
    assert isinstance(write.data, memoryview)
    assert write.data.obj is data.obj
    assert write.data == b"w" * 512
    assert read[1:] == (RequestKind.READ, 0, 8192, 1024, b"")
    assert flush[1:5] == (RequestKind.FLUSH, 0, 0, 0)
    assert len({write.id, read.id, flush.id}) == 3
    assert Transmission.number_of(write.id) == 7


def test_answers_name_the_cookies_of_their_requests_in_any_order() -> None:
    nbd = machine(structured=False)
    first, second = feed(
        nbd,
        command(Command.READ, 0, 512, cookie=2**64 - 1)
        + command(Command.WRITE, 0, 512, cookie=5, data=bytes(512)),
    )
    nbd.answer([Reply(second.id, 0), Reply(first.id, 0, b"r" * 512)])
    assert sent(nbd) == simple(5) + simple(2**64 - 1) + b"r" * 512
    assert nbd.is_idle


def test_a_structured_read_is_one_chunk_with_its_offset() -> None:
    nbd = machine()
    (read,) = feed(nbd, command(Command.READ, 4096, 512, flags=CommandFlag.DF))
    payload = memoryview(b"r" * 512)
    nbd.answer([Reply(read.id, 0, payload)])
    assert nbd.output[-1] is payload
    expected = struct.pack(">IHHQIQ", NBD_STRUCTURED_REPLY_MAGIC, 1, 1, 99, 8 + 512, 4096)
    assert sent(nbd) == expected + b"r" * 512
    assert nbd.has_room


def test_errors_of_the_volume_reach_the_client_with_a_sentence() -> None:
    nbd = machine()
    for errno, expected in ((1, 1), (5, 5), (28, 28), (30, 1), (122, 28), (71, 5)):
        (read,) = feed(nbd, command(Command.READ, 0, 512))
        nbd.answer([Reply(read.id, errno)])
        assert error_in(nbd) == (99, expected)


def test_errors_without_structured_replies_are_numbers() -> None:
    nbd = machine(structured=False)
    (flush,) = feed(nbd, command(Command.FLUSH))
    nbd.answer([Reply(flush.id, 5)])
    assert sent(nbd) == simple(99, Errno.EIO)


def test_trim_zero_and_cache() -> None:
    nbd = machine()
    trim, zero = feed(
        nbd,
        command(Command.TRIM, 512, 1024, cookie=1)
        + command(
            Command.WRITE_ZEROES,
            0,
            512,
            cookie=2,
            flags=CommandFlag.NO_HOLE | CommandFlag.FAST_ZERO | CommandFlag.FUA,
        )
        + command(Command.CACHE, 0, 4096, cookie=3),
    )
    assert trim[1:5] == (RequestKind.DISCARD, 0, 512, 1024)
    assert zero[1:5] == (RequestKind.ZERO, RequestFlag.FUA | RequestFlag.NO_HOLE, 0, 512)
    assert sent(nbd) == simple(3)
    nbd.answer([Reply(trim.id, 0), Reply(zero.id, 0)])
    assert sent(nbd) == simple(1) + simple(2)


@pytest.mark.parametrize("errno", [0, 28])
def test_a_long_trim_goes_in_parts_and_is_answered_once(errno: int) -> None:
    nbd = machine()
    parts = feed(nbd, command(Command.TRIM, 512, 2 * REQUEST_BYTES_MAX + 512))
    assert [(p.offset, p.length) for p in parts] == [
        (512, REQUEST_BYTES_MAX),
        (512 + REQUEST_BYTES_MAX, REQUEST_BYTES_MAX),
        (512 + 2 * REQUEST_BYTES_MAX, 512),
    ]
    nbd.answer([Reply(parts[1].id, errno), Reply(parts[2].id, 0)])
    assert not nbd.output
    nbd.answer([Reply(parts[0].id, 0)])
    if errno:
        assert error_in(nbd) == (99, errno)
    else:
        assert sent(nbd) == simple(99)
    assert nbd.is_idle


def statuses(data: bytes) -> list[tuple[int, int]]:
    magic, flags, kind, cookie, length = struct.unpack_from(">IHHQI", data)
    assert (magic, flags, kind, cookie) == (NBD_STRUCTURED_REPLY_MAGIC, 1, 5, 99)
    assert len(data) == 20 + length
    assert data[20:24] == b"\0\0\0\1"
    return list(struct.iter_unpack(">II", data[24:]))


def test_block_status_tells_holes_and_stays_within_what_was_asked() -> None:
    nbd = machine()
    (extents,) = feed(nbd, command(Command.BLOCK_STATUS, 0, 4096))
    assert extents[1:5] == (RequestKind.EXTENTS, 0, 0, 4096)
    nbd.answer([Reply(extents.id, 0, pack_extents([(512, False), (1024, True), (9999, False)]))])
    assert statuses(sent(nbd)) == [(512, 0), (1024, 3), (2560, 0)]


def test_block_status_for_one_extent_gets_one() -> None:
    nbd = machine()
    (extents,) = feed(nbd, command(Command.BLOCK_STATUS, 0, 4096, flags=CommandFlag.REQ_ONE))
    nbd.answer([Reply(extents.id, 0, pack_extents([(512, False), (3584, True)]))])
    assert statuses(sent(nbd)) == [(512, 0)]


def test_block_status_of_more_than_a_request_may_cover_is_answered_in_part() -> None:
    nbd = machine()
    (extents,) = feed(nbd, command(Command.BLOCK_STATUS, 0, SIZE))
    assert extents.length == REQUEST_BYTES_MAX
    nbd.answer([Reply(extents.id, 0, b"")])
    assert error_in(nbd) == (99, Errno.EIO)


@pytest.mark.parametrize(
    ("request_", "errno"),
    [
        (command(9, 0, 512), Errno.EINVAL),
        (command(8, 0, 512), Errno.EINVAL),
        (command(Command.READ, 0, 0), Errno.EINVAL),
        (command(Command.READ, 1, 512), Errno.EINVAL),
        (command(Command.READ, 0, 511), Errno.EINVAL),
        (command(Command.READ, SIZE, 512), Errno.EINVAL),
        (command(Command.READ, 2**64 - 512, 512), Errno.EINVAL),
        (command(Command.READ, 0, REQUEST_BYTES_MAX + 512), Errno.EINVAL),
        (command(Command.READ, 0, 512, flags=CommandFlag.REQ_ONE), Errno.EINVAL),
        (command(Command.READ, 0, 512, flags=1 << 9), Errno.EINVAL),
        (command(Command.WRITE, 100, 512, data=bytes(512)), Errno.EINVAL),
        (command(Command.WRITE, 0, 100, data=bytes(100)), Errno.EINVAL),
        (command(Command.WRITE, SIZE, 512, data=bytes(512)), Errno.ENOSPC),
        (command(Command.WRITE, 0, 512, flags=CommandFlag.DF, data=bytes(512)), Errno.EINVAL),
        (command(Command.FLUSH, 0, 512), Errno.EINVAL),
        (command(Command.TRIM, SIZE - 512, 1024), Errno.EINVAL),
        (command(Command.TRIM, 0, 0), Errno.EINVAL),
        (command(Command.WRITE_ZEROES, SIZE - 512, 1024), Errno.ENOSPC),
        (command(Command.CACHE, SIZE, 512), Errno.EINVAL),
        (command(Command.BLOCK_STATUS, 0, 0), Errno.EINVAL),
    ],
)
def test_what_may_not_be_is_refused_and_the_next_request_is_taken(
    request_: bytes, errno: Errno
) -> None:
    nbd = machine()
    (flush,) = feed(nbd, request_ + command(Command.FLUSH, cookie=1))
    assert flush.kind == RequestKind.FLUSH
    assert error_in(nbd) == (99, errno)


def test_block_status_without_a_context_and_df_without_structure_are_refused() -> None:
    nbd = machine(structured=False)
    assert not feed(nbd, command(Command.BLOCK_STATUS, 0, 512))
    assert not feed(nbd, command(Command.READ, 0, 512, flags=CommandFlag.DF))
    assert sent(nbd) == simple(99, Errno.EINVAL) * 2


def test_a_read_only_volume_refuses_what_writes_and_serves_what_reads() -> None:
    nbd = machine(writable=False)
    for refused in (
        command(Command.WRITE, 0, 512, data=bytes(512)),
        command(Command.TRIM, 0, 512),
        command(Command.WRITE_ZEROES, 0, 512),
    ):
        assert not feed(nbd, refused)
        assert error_in(nbd) == (99, Errno.EPERM)
    assert len(feed(nbd, command(Command.READ, 0, 512) + command(Command.FLUSH))) == 2
    nbd.writable = True
    assert len(feed(nbd, command(Command.WRITE, 0, 512, data=bytes(512)))) == 1


def test_the_payload_of_a_refused_write_is_passed_over_in_pieces() -> None:
    nbd = machine(writable=False)
    length = REQUEST_BYTES_MAX + 512
    feed(nbd, command(Command.WRITE, 0, length))
    piece = bytes(MIB)
    for _ in range(length // MIB):
        feed(nbd, piece)
        assert not nbd.output, "libnbd takes no answer before it has sent the payload"
    (flush,) = feed(nbd, bytes(512) + command(Command.FLUSH))
    assert flush.kind == RequestKind.FLUSH
    assert error_in(nbd) == (99, Errno.EPERM)


def test_a_request_cut_anywhere_is_taken_when_it_is_whole() -> None:
    whole = command(Command.READ, 0, 512) + command(Command.WRITE, 512, 512, data=b"d" * 512)
    view = memoryview(whole)
    for cut in range(len(whole)):
        nbd = machine()
        stop = nbd.parse(view, 0, cut)
        assert stop <= cut
        assert stop + nbd.wanted > cut
        assert nbd.parse(view, stop, len(whole)) == len(whole)
        assert [r.kind for r in nbd.requests] == [RequestKind.READ, RequestKind.WRITE]
        assert nbd.requests[1].data == b"d" * 512


def test_what_a_request_wants_is_told_once_its_header_is_there() -> None:
    nbd = machine()
    header = memoryview(command(Command.WRITE, 0, MIB))
    assert nbd.parse(header, 0, len(header)) == 0
    assert nbd.wanted == 28 + MIB


@pytest.mark.parametrize("limits", [(MIB, 1024), (64 * MIB, 2)])
def test_no_more_is_taken_than_may_be_unanswered(limits: tuple[int, int]) -> None:
    nbd = machine(inflight_bytes=limits[0], inflight_requests=limits[1])
    data = memoryview(command(Command.READ, 0, MIB // 2) * 3)
    stop = nbd.parse(data, 0, len(data))
    assert stop == 2 * 28
    assert nbd.is_full
    assert not nbd.has_room
    nbd.answer([Reply(nbd.requests[0].id, 0, bytes(MIB // 2))])
    assert nbd.has_room
    assert nbd.parse(data, stop, len(data)) == len(data)


def test_one_request_is_taken_however_large() -> None:
    nbd = machine(inflight_bytes=512)
    assert len(feed(nbd, command(Command.READ, 0, REQUEST_BYTES_MAX))) == 1


def test_nothing_is_taken_after_goodbye() -> None:
    nbd = machine()
    data = command(Command.FLUSH) + command(Command.DISC) + command(Command.FLUSH)
    view = memoryview(data)
    assert nbd.parse(view, 0, len(data)) == 2 * 28
    assert nbd.is_leaving
    assert len(nbd.requests) == 1
    assert not nbd.is_idle
    nbd.answer([Reply(nbd.requests[0].id, 0)])
    assert nbd.is_idle


def test_answers_to_nobody_are_passed_over() -> None:
    nbd = machine()
    nbd.answer([Reply(12345, 0, b"x")])
    assert not nbd.output


def test_a_wrong_magic_ends_the_connection() -> None:
    with pytest.raises(RemoteProtocolError, match="magic"):
        feed(machine(), b"\0" * 28)


@settings(max_examples=300)
@given(
    st.lists(
        st.tuples(
            st.integers(0, 10),
            st.integers(0, 2**64 - 1) | st.integers(0, 600).map(lambda n: n * 512),
            st.integers(0, 2**32 - 1) | st.integers(0, 8).map(lambda n: n * 512),
            st.integers(0, 2**16 - 1) | st.just(0),
        ),
        max_size=12,
    ),
    st.lists(st.integers(1, 2000), max_size=30),
    st.booleans(),
    st.booleans(),
)
def test_every_request_is_answered_once_however_the_bytes_arrive(
    drawn: list[tuple[int, int, int, int]], cuts: list[int], structured: bool, writable: bool
) -> None:
    nbd = machine(structured=structured, writable=writable, inflight_requests=1 << 30)
    data, cookies = b"", []
    for cookie, (kind, offset, drawn_length, flags) in enumerate(drawn):
        if kind == Command.DISC:
            continue
        length = drawn_length % 4096 if kind == Command.WRITE else drawn_length
        data += command(kind, offset, length, cookie=cookie, flags=flags)
        data += bytes(length) if kind == Command.WRITE else b""
        cookies.append(cookie)
    view, position, end = memoryview(data), 0, 0
    for cut in [*cuts, len(data)]:
        end = min(len(data), end + cut)
        position = nbd.parse(view, position, end)
        for request in nbd.requests:
            nbd.answer([_answer(request)])
        nbd.requests = []
    assert position == len(data)
    assert nbd.is_idle
    assert nbd.has_room
    assert sorted(_cookies(sent(nbd), drawn)) == cookies


def _answer(request: Request) -> Reply:
    if request.kind == RequestKind.READ:
        return Reply(request.id, 0, bytes(request.length))
    if request.kind == RequestKind.EXTENTS:
        return Reply(request.id, 0, pack_extents([(request.length, True)]))
    return Reply(request.id, 0)


def _cookies(data: bytes, drawn: list[tuple[int, int, int, int]]) -> list[int]:
    found = []
    while data:
        (magic,) = struct.unpack_from(">I", data)
        if magic == NBD_SIMPLE_REPLY_MAGIC:
            _, errno, cookie = struct.unpack_from(">IIQ", data)
            is_read = drawn[cookie][0] == Command.READ and not errno
            data = data[16 + (drawn[cookie][2] if is_read else 0) :]
        else:
            _, _, _, cookie, length = struct.unpack_from(">IHHQI", data)
            data = data[20 + length :]
        found.append(cookie)
    return found


@given(st.binary(max_size=200))
def test_random_bytes_never_break_transmission(data: bytes) -> None:
    nbd = machine()
    view = memoryview(data)
    try:
        stop = nbd.parse(view, 0, len(data))
    except RemoteProtocolError:
        return
    assert stop == len(data) or len(data) - stop < nbd.wanted
