from __future__ import annotations

import json
import random
import struct
from typing import Any

import attrs
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from plugins.transport_tcp.tests.tcp_wire import Wire, decoded, encoded, forged

from holdfast import messages as m
from holdfast.errors import LocalProtocolError, RemoteProtocolError
from holdfast.op_table import OP_ENTRY
from holdfast.testing.checks._transport_bench import settled_form
from holdfast.testing.checks.transport import EXAMPLES
from holdfast.units import KIB, MIB, Epoch, Sequence
from holdfast_transport_tcp.decoder import OtherVersionError
from holdfast_transport_tcp.encoder import COLD
from holdfast_transport_tcp.layout import (
    BATCH_BYTES_MAX,
    FRAME_BYTES_MAX,
    HEADER,
    ITEMS_MAX,
    REPLY_ENTRY,
    FrameType,
)
from holdfast_transport_tcp.preface import Preface, Welcome

COMPRESSIONS = ["none", "lz4", "zstd"]
OWN: tuple[Any, ...] = (
    Preface("c", "n", ("lz4", "none"), ()),
    Welcome("c", "n", "lz4", (), "", ""),
)
ALL = [*EXAMPLES, *OWN]
NAMES = [f"{i}-{type(e).__name__}" for i, e in enumerate(ALL)]

U64 = st.integers(0, 2**64 - 1)
SIGNED = st.integers(-(2**63), 2**63)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
PAYLOAD = st.one_of(
    st.binary(max_size=64),
    st.builds(lambda a, n: a * n, st.binary(min_size=1, max_size=8), st.integers(1, 900)),
)


def _op(kind: int, offset: int, length: int, data: bytes) -> m.Op:
    if kind in {m.OpKind.WRITE, m.OpKind.SYNC_WRITE}:
        return m.Op(kind, offset, len(data), data)
    return m.Op(kind, offset, length)


def _request(id_: int, kind: int, flags: int, offset: int, length: int, data: bytes) -> m.Request:
    if kind == m.RequestKind.WRITE:
        return m.Request(id_, kind, flags, offset, len(data), data)
    return m.Request(id_, kind, flags, offset, length)


OPS = st.builds(_op, st.sampled_from(list(map(int, m.OpKind))), U64, U64, PAYLOAD)
REQUESTS = st.builds(
    _request,
    U64,
    st.sampled_from(list(map(int, m.RequestKind))),
    st.integers(0, 65535),
    U64,
    U64,
    PAYLOAD,
)
REPLIES = st.builds(m.Reply, U64, st.integers(-(2**31), 2**31 - 1), PAYLOAD)
PAIRS = st.lists(st.tuples(TEXT, SIGNED), max_size=4).map(tuple)
BY_NAME: dict[str, st.SearchStrategy[Any]] = {
    "suspects": st.lists(st.tuples(SIGNED, SIGNED), max_size=4).map(tuple),
    "leases": st.none() | PAIRS,
    "compression": st.lists(TEXT, max_size=3).map(tuple),
    "capabilities": st.lists(TEXT, max_size=3).map(tuple),
}
BY_TYPE: dict[str, st.SearchStrategy[Any]] = {
    "bool": st.booleans(),
    "bytes": st.binary(max_size=100),
    "float": st.floats(allow_nan=False, allow_infinity=False),
    "int": SIGNED,
    "Epoch": SIGNED,
    "Sequence": SIGNED,
}


def _cold(cls: type[Any]) -> st.SearchStrategy[Any]:
    fields = {}
    for field in attrs.fields(cls):
        by_name = dict(BY_NAME, refused=PAIRS) if cls is m.HeartbeatAnswer else BY_NAME
        if cls is Welcome:
            by_name = {k: v for k, v in by_name.items() if k != "compression"}
        by_type = BY_TYPE.get(str(field.type), TEXT)
        fields[field.name] = by_name.get(field.name, by_type)
    return st.builds(cls, **fields)


MESSAGES = st.one_of(
    st.builds(m.Batch, U64, st.integers(0, 2**63), U64, st.lists(OPS, max_size=20)),
    st.builds(m.Ack, U64, U64, U64),
    st.builds(m.Requests, U64, st.lists(REQUESTS, max_size=10)),
    st.builds(m.Replies, st.lists(REPLIES, max_size=10)),
    st.builds(m.HashQuery, U64, U64, U64, st.lists(st.integers(0, 2**32 - 1)).map(tuple)),
    st.builds(m.HashAnswer, U64, U64, PAYLOAD),
    st.builds(m.ReadAnswer, U64, U64, U64, PAYLOAD),
    *(_cold(cls) for cls in COLD),
)


def _past(kept: list[Any]) -> dict[str, Any]:
    """Return what the last message may differ in for an acknowledgement to replace it."""
    last = kept[-1] if kept else None
    return {"applied": last.applied, "durable": last.durable} if isinstance(last, m.Ack) else {}


@pytest.mark.parametrize("compression", COMPRESSIONS)
@given(sent=st.lists(MESSAGES, max_size=6), step=st.integers(1, 5000))
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_every_message_comes_back_as_it_was_however_its_bytes_are_cut(
    compression: str, sent: list[Any], step: int
) -> None:
    kept: list[Any] = []
    for message in sent:
        if isinstance(message, m.Ack) and kept[-1:] == [message._replace(**_past(kept))]:
            kept.pop()
        kept.append(message)
    got = decoded(encoded(sent, compression), compression, step)
    assert [settled_form(g) for g in got] == [settled_form(k) for k in kept]


def test_the_examples_hold_every_kind_of_message() -> None:
    assert {type(e) for e in EXAMPLES} == set(m.Message.__args__)


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("message", ALL, ids=NAMES)
def test_no_truncation_gives_a_message(message: Any, compression: str) -> None:
    whole = encoded([message], compression)
    for size in range(len(whole)):
        assert decoded(whole[:size], compression) == []


@pytest.mark.parametrize("message", ALL, ids=NAMES)
def test_every_flipped_bit_is_noticed(message: Any) -> None:
    whole = encoded([message])
    wrong = 0
    for position in range(8 * min(len(whole), 400)):
        damaged = bytearray(whole)
        damaged[position // 8] ^= 1 << position % 8
        try:
            got = decoded(bytes(damaged))
        except RemoteProtocolError:
            continue
        wrong += [settled_form(g) for g in got] != [settled_form(message)]
    assert wrong == 0


@pytest.mark.parametrize("compression", ["lz4", "zstd"])
def test_every_flipped_bit_of_a_compressed_frame_is_noticed(compression: str) -> None:
    message = m.Batch(Epoch(1), Sequence(1), Sequence(0), [m.Op(1, 0, 4096, b"holdfast" * 512)])
    whole = encoded([message], compression)
    assert len(whole) < 300
    for position in range(8 * len(whole)):
        damaged = bytearray(whole)
        damaged[position // 8] ^= 1 << position % 8
        try:
            got = decoded(bytes(damaged), compression)
        except RemoteProtocolError:
            continue
        assert [settled_form(g) for g in got] == [settled_form(message)]


@given(noise=st.binary(min_size=1, max_size=300), step=st.integers(1, 300))
def test_noise_is_refused_or_incomplete(noise: bytes, step: int) -> None:
    try:
        assert decoded(noise, step=step) == []
    except RemoteProtocolError:
        return
    assert noise == encoded([])[: len(noise)] or b"HFst".startswith(noise[:4])


@given(
    kind=st.integers(0, 255),
    body=st.binary(max_size=200),
    count=st.integers(0, 12),
    mark=st.integers(0, 2),
)
@settings(max_examples=400)
def test_noise_behind_good_checksums_is_refused_or_a_message(
    kind: int, body: bytes, count: int, mark: int
) -> None:
    entry = {FrameType.BATCH: 17, FrameType.REQUESTS: 27, FrameType.REPLIES: 16}.get(kind, 0)  # type: ignore[call-overload]
    table = min(len(body), entry * count)
    frame = forged(kind, body, count=count, mark=mark, table=table)
    try:
        got = decoded(frame)
    except RemoteProtocolError:
        return
    assert all(decoded(encoded([g])) == [g] for g in got)


FIELDS = {"cluster": "c", "node": "n", "session": "s"}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "null",
        "{}",
        "[" * 100_000,
        '{"a":' * 5000 + "1" + "}" * 5000,
        json.dumps({**FIELDS, "more": 1}),
        json.dumps({**FIELDS, "node": 5}),
        json.dumps({**FIELDS, "node": None}),
        json.dumps({**FIELDS, "node": ["n"]}),
        json.dumps({**FIELDS, "node": "\ud800"}),
        '{"cluster":"c","node":"n","session":"\x00"}',
        '{"cluster":"c","node":NaN,"session":"s"}',
        '{"cluster":"c","node":' + "9" * 5000 + ',"session":"s"}',
    ],
)
def test_json_that_is_no_peer_hello_is_refused(text: str) -> None:
    with pytest.raises(RemoteProtocolError):
        decoded(forged(FrameType.PEER_HELLO, text.encode()))


@pytest.mark.parametrize(
    "fields",
    [
        {"number": True, "version": 1, "leases": None, "stall_s": 0.0},
        {"number": 1.0, "version": 1, "leases": None, "stall_s": 0.0},
        {"number": 2**64, "version": 1, "leases": None, "stall_s": 0.0},
        {"number": 1, "version": 1, "leases": [["v"]], "stall_s": 0.0},
        {"number": 1, "version": 1, "leases": [["v", 1, 2]], "stall_s": 0.0},
        {"number": 1, "version": 1, "leases": {"v": 1}, "stall_s": 0.0},
        {"number": 1, "version": 1, "leases": None, "stall_s": "0"},
        {"number": 1, "version": 1, "leases": None, "stall_s": float("inf")},
        {"number": 1, "version": 1, "leases": None, "stall_s": True},
    ],
)
def test_a_heartbeat_with_a_wrong_field_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(RemoteProtocolError):
        decoded(forged(FrameType.HEARTBEAT, json.dumps(fields).encode()))


def test_a_record_that_is_not_base64_is_refused() -> None:
    with pytest.raises(RemoteProtocolError):
        decoded(forged(FrameType.EPOCH_CHANGE, b'{"epoch":1,"record":"a*b="}'))


OP = OP_ENTRY.pack(1, 0, 512)


@pytest.mark.parametrize(
    "frame",
    [
        forged(200),
        forged(FrameType.PEER_HELLO, b"{}", first=1),
        forged(FrameType.PEER_HELLO, json.dumps(FIELDS).encode(), count=2),
        forged(FrameType.PEER_HELLO, json.dumps(FIELDS).encode(), checksum=1),
        forged(FrameType.ACK, b"x"),
        forged(FrameType.ACK, count=0, reserved=1),
        forged(FrameType.ACK, count=0, stored_as=1),
        forged(FrameType.ACK, count=0, stored_as=64),
        forged(FrameType.BATCH, OP + bytes(511), table=17),
        forged(FrameType.BATCH, OP + bytes(513), table=17),
        forged(FrameType.BATCH, OP_ENTRY.pack(1, 0, 2**64 - 1) + bytes(512), table=17),
        forged(FrameType.BATCH, OP_ENTRY.pack(99, 0, 0), table=17),
        forged(FrameType.BATCH, OP_ENTRY.pack(0, 0, 0), table=17),
        forged(FrameType.REPLIES, REPLY_ENTRY.pack(1, 0, 2**32 - 1), table=16),
        forged(FrameType.REPLIES, REPLY_ENTRY.pack(1, 0, 0), table=16, epoch=1),
        forged(FrameType.HASH_QUERY, bytes(8), count=3),
        forged(FrameType.HASH_QUERY, bytes(8), count=2**32 - 1),
        forged(FrameType.READ_ANSWER, bytes(8), count=2),
        forged(FrameType.HASH_ANSWER, bytes(16), mark=1),
        forged(FrameType.READ_ANSWER, stored=FRAME_BYTES_MAX + 1, plain=FRAME_BYTES_MAX + 1),
        forged(FrameType.READ_ANSWER, stored=2**32 - 1, plain=2**32 - 1),
        forged(FrameType.READ_ANSWER, stored=10, plain=9),
        forged(FrameType.READ_ANSWER, stored=9, plain=10),
        forged(FrameType.BATCH, stored=BATCH_BYTES_MAX, plain=BATCH_BYTES_MAX, count=2),
        forged(FrameType.BATCH, stored=0, plain=0, count=ITEMS_MAX + 1),
        forged(FrameType.BATCH, stored=0, plain=0, count=2**32 - 1),
    ],
)
def test_a_frame_that_breaks_a_rule_is_refused_before_its_rest_arrives(frame: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        decoded(frame)


def test_another_version_is_told_apart_from_rubbish() -> None:
    with pytest.raises(OtherVersionError) as caught:
        decoded(forged(FrameType.ACK, count=0, version=2))
    assert caught.value.version == 2


@pytest.mark.parametrize("greeting", [b"G", b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01", b"HFsX"])
def test_foreign_bytes_are_refused_at_once(greeting: bytes) -> None:
    with pytest.raises(RemoteProtocolError, match="Foreign"):
        decoded(greeting)


@pytest.mark.parametrize("compression", ["lz4", "zstd"])
def test_a_block_that_unpacks_to_more_than_it_says_is_refused(compression: str) -> None:
    whole = bytearray(encoded([m.ReadAnswer(Epoch(1), 1, 0, bytes(64 * KIB))], compression))
    fields = list(HEADER.unpack_from(whole))
    body = bytes(whole[HEADER.size :])
    for plain in (1024, 64 * KIB - 1, 64 * KIB + 1, 32 * MIB):
        frame = forged(
            FrameType.READ_ANSWER, body, stored_as=fields[3], epoch=1, first=1, plain=plain
        )
        with pytest.raises(RemoteProtocolError):
            decoded(frame, compression)


def test_a_zstandard_frame_that_hides_its_size_is_refused_without_unpacking_it() -> None:
    hiding = zstandard.ZstdCompressor(write_content_size=False).compress(bytes(64 * KIB))
    frame = forged(FrameType.READ_ANSWER, hiding, stored_as=2, epoch=1, plain=64 * KIB)
    with pytest.raises(RemoteProtocolError, match="size"):
        decoded(frame, "zstd")


@pytest.mark.parametrize("stored_as", [1, 2])
def test_a_compression_that_was_not_agreed_is_refused(stored_as: int) -> None:
    frame = forged(FrameType.READ_ANSWER, bytes(100), stored_as=stored_as, plain=1000)
    with pytest.raises(RemoteProtocolError, match="not agreed"):
        decoded(frame)


def test_messages_before_a_bad_frame_are_delivered() -> None:
    wire = Wire()
    with pytest.raises(RemoteProtocolError):
        wire.feed(encoded([EXAMPLES[0]]) + bytes(100))
    assert wire.messages == [EXAMPLES[0]]


def test_the_first_frames_have_their_own_limits() -> None:
    small, large = m.PeerHello("c", "n", "s"), m.PeerHello("c" * 2000, "n", "s")  # type: ignore[arg-type]
    limits = (100, 1000)
    assert Wire(limits=limits).feed(encoded([small, small, large])) == [small, small, large]
    for refused in ([large], [small, large]):
        with pytest.raises(RemoteProtocolError, match="allowed"):
            Wire(limits=limits).feed(encoded(refused))


# --- the encoder ------------------------------------------------------------------------------


def test_a_large_batch_is_split_with_its_places_counted_on() -> None:
    ops = [m.Op(1, i * 300_000, 300_000, bytes([i]) * 300_000) for i in range(40)]
    sent = m.Batch(Epoch(3), Sequence(100), Sequence(99), ops)
    got = decoded(encoded([sent]))
    assert [(g.epoch, g.commit) for g in got] == [(3, 99)] * len(got)
    assert len(got) == 4
    assert [op for g in got for op in g.ops] == ops
    place = 100
    for part in got:
        assert part.first == place
        place += len(part.ops)


def test_requests_and_replies_are_split_too() -> None:
    requests = [m.Request(i, 2, 0, 0, 3 * MIB, bytes(3 * MIB)) for i in range(3)]
    got = decoded(encoded([m.Requests(5, requests)]))
    assert [g.generation for g in got] == [5, 5, 5]
    assert [r for g in got for r in g.requests] == requests
    replies = [m.Reply(i, 0, bytes(3 * MIB)) for i in range(3)]
    got = decoded(encoded([m.Replies(replies)]))
    assert [r for g in got for r in g.replies] == replies


def test_many_items_without_data_are_split_by_their_number() -> None:
    ops = [m.Op(4, 0, 0)] * (ITEMS_MAX + 5)
    got = decoded(encoded([m.Batch(Epoch(1), Sequence(1), Sequence(0), ops)]))
    assert [len(g.ops) for g in got] == [ITEMS_MAX, 5]


@pytest.mark.parametrize(
    "message",
    [
        m.Batch(Epoch(1), Sequence(1), Sequence(0), [m.Op(1, 0, 512, b"short")]),
        m.Batch(Epoch(1), Sequence(1), Sequence(0), [m.Op(4, 0, 0, b"flush with data")]),
        m.Batch(Epoch(1), Sequence(1), Sequence(0), [m.Op(77, 0, 0)]),
        m.Batch(Epoch(-1), Sequence(1), Sequence(0), []),
        m.Requests(1, [m.Request(1, 1, 0, 0, 4096, b"read with data")]),
        m.Requests(1, [m.Request(1, 2, 0, 0, 4096)]),
        m.HashQuery(Epoch(1), 1, 0, (2**32,)),
        m.ReadAnswer(Epoch(1), 1, 0, bytes(FRAME_BYTES_MAX + 1)),
        m.Refused("code", "\ud800"),
    ],
)
def test_our_own_mistakes_are_local_protocol_errors(message: Any) -> None:
    with pytest.raises(LocalProtocolError, match=type(message).__name__):
        encoded([message])


def test_consecutive_acks_of_one_epoch_become_one_frame() -> None:
    acks = [m.Ack(Epoch(1), Sequence(i), Sequence(0)) for i in range(1, 9)]
    assert len(encoded(acks)) == HEADER.size
    other = m.Ack(Epoch(2), Sequence(9), Sequence(0))
    assert decoded(encoded([*acks, other])) == [acks[-1], other]


def test_large_payloads_are_not_copied() -> None:
    from holdfast.sockets import Counters
    from holdfast_transport_tcp.encoder import Encoder

    payloads: list[m.Payload] = [bytes(MIB), bytearray(MIB), memoryview(bytes(2 * MIB))[:MIB]]
    ops = [m.Op(1, 0, MIB, p) for p in payloads]
    buffers = Encoder(Counters()).encode([m.Batch(Epoch(1), Sequence(1), Sequence(0), ops)])
    assert all(any(p is b for b in buffers) for p in payloads)
    batch = decoded(b"".join(buffers))[0]
    assert len({id(op.data.obj) for op in batch.ops}) == 1  # All of them look at one slab.
    assert all(op.data.readonly for op in batch.ops)


def write(data: bytes) -> m.Batch:
    return m.Batch(Epoch(1), Sequence(1), Sequence(0), [m.Op(1, 0, len(data), data)])


@pytest.mark.parametrize("compression", ["lz4", "zstd"])
def test_data_that_does_not_compress_goes_stored_for_a_while_and_is_tried_again(
    compression: str,
) -> None:
    from holdfast.sockets import Counters
    from holdfast_transport_tcp.compression import Squeezer, codec_named
    from holdfast_transport_tcp.encoder import Encoder

    counters = Counters()
    encoder = Encoder(counters, Squeezer(codec_named(compression), counters))
    noise, half = random.Random(1).randbytes(64 * KIB), b""
    rng = random.Random(2)
    half = b"".join(rng.randbytes(256) + bytes(256) for _ in range(128))
    for _ in range(10):
        encoder.encode([write(noise)])
    assert counters.frames_stored == 10
    # Once the pause is over, data that compresses is found again and stays compressed.
    while counters.frames_stored < 1000:
        before = counters.bytes_wire_sent
        encoder.encode([write(half)])
        if counters.bytes_wire_sent - before < 48 * KIB:
            break
    stored = counters.frames_stored
    assert stored < 1000
    for _ in range(100):
        encoder.encode([write(half)])
    assert counters.frames_stored == stored


def test_half_compressible_writes_take_little_more_than_half() -> None:
    rng = random.Random(3)
    block = 4 * KIB
    ops = [
        m.Op(1, at * block, block, rng.randbytes(block // 2).ljust(block, b"\0"))
        for at in range(16)
    ]
    sent = encoded([m.Batch(Epoch(1), Sequence(1), Sequence(0), ops)], "lz4")
    assert len(sent) <= 0.55 * 16 * block


def test_small_frames_are_never_compressed() -> None:
    beat = m.Heartbeat(1, 1, None, 0.0)
    assert encoded([beat], "lz4") == encoded([beat])
    assert encoded([write(bytes(512))], "lz4") == encoded([write(bytes(512))])


def test_the_header_is_as_documented() -> None:
    from holdfast_transport_tcp import layout_tables

    tables = layout_tables()
    assert "### Frame header (56 bytes, big-endian)" in tables
    assert all(f"| {kind.value} |" in tables for kind in FrameType)
    assert struct.calcsize(">4sBBBBQQQIIIQI") == 56
