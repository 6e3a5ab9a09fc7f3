"""The compiled loops against their Python twins: equal answers, equal effects, the same kinds of errors.

They are compiled here, from the source as it stands, with every warning an error and with checks for
undefined behaviour; so what is tested is never a leftover of an earlier build.
"""

from __future__ import annotations

import copy
import errno
import importlib.util
import os
import random
import resource
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.conftest import lacking

import holdfast
from holdfast import compiled
from holdfast.local.copy import data, hashes  # noqa: F401
from holdfast.messages import Op, OpKind, Payload, Reply, Request, RequestFlag, RequestKind
from holdfast.node.nbd import plain  # noqa: F401 - brings its loops.
from holdfast.node.nbd.protocol import NBD_REQUEST_MAGIC, REQUEST, Command
from holdfast.op_table import OP_ENTRY
from holdfast.sync import consumer, disk, plain_writes  # noqa: F401
from holdfast.units import CHUNK_BYTES, MIB, REGION_BYTES, REQUEST_BYTES_MAX, SECTOR_BYTES

SOURCE = Path(holdfast.__file__).parent / "_loops.c"
STRICT = ["-Wall", "-Wextra", "-Werror", "-fsanitize=undefined", "-fno-sanitize-recover=all"]

Loop = Callable[..., Any]


@pytest.fixture(scope="module")
def loops(tmp_path_factory: pytest.TempPathFactory, tool: Callable[[str], str]) -> ModuleType:
    built = tmp_path_factory.mktemp("loops") / f"_loops{sysconfig.get_config_var('EXT_SUFFIX')}"
    include = sysconfig.get_path("include")
    if not (Path(include) / "Python.h").exists():
        lacking(f"Python's headers are not in {include}.")
    command = [tool("gcc"), "-O1", "-g", "-std=c11", "-D_GNU_SOURCE", "-shared", "-fPIC", *STRICT]
    done = subprocess.run(
        [*command, f"-isystem{include}", str(SOURCE), "-o", str(built)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    spec = importlib.util.spec_from_file_location("holdfast._loops", built)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def both(loops: ModuleType, name: str, *arguments: Any) -> Any:
    """Call both twins with equal arguments; return what they answer, which must be equal."""
    told = []
    for loop in (compiled.PYTHON[name], getattr(loops, name)):
        own = copied(arguments)
        try:
            told.append((plainly(loop(*own)), plainly(own)))
        except (ValueError, TypeError) as error:
            told.append((type(error), None))
    assert told[0] == told[1]
    return told[0][0]


def copied(arguments: Sequence[Any]) -> list[Any]:
    """Copy what a loop may change."""
    return [copy.copy(a) if isinstance(a, list | dict | set) else a for a in arguments]


def plainly(value: Any) -> Any:
    """Return a value in a form that compares types as well: views by what they show."""
    if isinstance(value, memoryview):
        return ("view", bytes(value))
    if isinstance(value, list | tuple):
        return (type(value), [plainly(each) for each in value])
    if isinstance(value, dict):
        return ("dict", [(k, plainly(v)) for k, v in value.items()])
    return (type(value), value)


sectors = st.integers(0, 200).map(lambda n: n * SECTOR_BYTES)
odd = st.sampled_from([0, 1, 511, 513, 2**31, 2**32 - 1, 2**63, 2**64 - 1])
numbers = st.one_of(sectors, odd)


@st.composite
def ops(draw: st.DrawFn) -> list[Op]:
    """Operations, most of them in order."""
    made = []
    for _ in range(draw(st.integers(0, 70))):
        kind = draw(st.sampled_from([1, 1, 1, 2, 3, 4, 5, 6, draw(st.integers(0, 9))]))
        length = draw(st.integers(0, 3)) * SECTOR_BYTES
        payload: Payload = b""
        if kind in {OpKind.WRITE, OpKind.SYNC_WRITE} or draw(st.integers(0, 20)) == 0:
            held = length if draw(st.integers(0, 30)) else draw(st.integers(0, 1600))
            payload = bytes(held)
            if draw(st.booleans()):
                payload = memoryview(payload)
        made.append(Op(kind, draw(numbers), length, payload))
    return made


@given(ops())
def test_tables_are_packed_alike(loops: ModuleType, made: list[Op]) -> None:
    both(loops, "pack_ops", made)
    both(loops, "pack_ops", tuple(made))


@pytest.mark.parametrize(
    "op",
    [
        (1, 0, 512),
        Op(1, 0, 512, bytes(511)),
        Op(1, -1, 0, b""),
        Op(1, 2**64, 0, b""),
        Op(256, 0, 0, b""),
        Op(-1, 0, 0, b""),
        Op(4, 0, 2**64, b""),
    ],
)
def test_what_is_no_operation_is_refused(loops: ModuleType, op: tuple[Any, ...]) -> None:
    assert both(loops, "pack_ops", [Op(1, 0, 1, b"x"), op]) in {ValueError, TypeError}


@given(ops(), st.randoms(use_true_random=False))
def test_tables_are_unpacked_alike(loops: ModuleType, made: list[Op], dice: random.Random) -> None:
    payload = b"".join(bytes(op.data) for op in made if op.kind in {1, 5})
    table = bytearray().join(OP_ENTRY.pack(op.kind, op.offset, op.length) for op in made)
    both(loops, "unpack_ops", memoryview(table), memoryview(payload))
    if table:  # As it never leaves an honest peer.
        table[dice.randrange(len(table))] ^= 1 << dice.randrange(8)
        both(loops, "unpack_ops", memoryview(table), memoryview(payload))
        both(loops, "unpack_ops", memoryview(table)[: dice.randrange(len(table))], memoryview(b""))


def test_a_length_beyond_all_memory_is_refused(loops: ModuleType) -> None:
    table = OP_ENTRY.pack(1, 0, 512) + OP_ENTRY.pack(1, 0, 2**64 - 1)
    assert both(loops, "unpack_ops", memoryview(table), memoryview(bytes(511))) is ValueError
    assert both(loops, "unpack_ops", memoryview(table), memoryview(bytes(512))) is ValueError


@given(ops(), st.integers(1, 2**62), st.sets(st.integers(0, 5)))
def test_operations_are_noted_alike(
    loops: ModuleType, made: list[Op], first: int, marked: set[int]
) -> None:
    kept = [op for op in made if op.offset < 2**40]
    both(loops, "note_ops", kept, first, 1.5, marked, {7: (1, 0.5)})


def test_a_write_touches_all_its_regions(loops: ModuleType) -> None:
    op = Op(OpKind.DISCARD, REGION_BYTES - 512, REGION_BYTES + 1024, b"")
    touched: dict[int, tuple[int, float]] = {}
    window, flushes, unmarked = loops.note_ops([op], 9, 2.0, {0, 1}, touched)
    assert (window, flushes, unmarked) == ([(9, op.offset, op.length)], [], True)
    assert touched == dict.fromkeys(range(3), (9, 2.0))
    assert not loops.note_ops([op], 9, 2.0, {0, 1, 2}, touched)[2]
    whole = Op(OpKind.ZERO, REGION_BYTES, REGION_BYTES, b"")
    assert not loops.note_ops([whole], 9, 2.0, {1}, touched)[2]


@st.composite
def requests(draw: st.DrawFn) -> list[Request]:
    """Requests, most of them plain writes."""
    kinds = st.sampled_from([2] * 12 + [int(kind) for kind in RequestKind])
    return [
        Request(number, draw(kinds), draw(st.sampled_from([0] * 9 + [1, 2])), offset, length, b"x")
        for number, (offset, length) in enumerate(draw(st.lists(st.tuples(numbers, numbers))))
    ]


@given(requests(), st.one_of(st.just(MIB), numbers))
def test_plain_writes_are_taken_alike(
    loops: ModuleType, made: list[Request], volume_bytes: int
) -> None:
    both(loops, "plain_writes", made, volume_bytes)


def test_the_longest_write_is_plain_and_a_longer_one_is_not(loops: ModuleType) -> None:
    volume_bytes = 2 * REQUEST_BYTES_MAX
    for length, taken in ((REQUEST_BYTES_MAX, 1), (REQUEST_BYTES_MAX + 512, 0)):
        request = Request(1, RequestKind.WRITE, 0, 0, length, b"")
        found, replies, size = loops.plain_writes([request], volume_bytes)
        assert found == [Op(OpKind.WRITE, 0, length, b"")] * taken
        assert replies == [Reply(1, 0, b"")] * taken
        assert size == taken * length
    told = both(loops, "plain_writes", [request._replace(length=REQUEST_BYTES_MAX)], volume_bytes)
    assert told[0] is tuple


@pytest.mark.parametrize("flags", [0, 1, 2, 3, 4])
@pytest.mark.parametrize("kind", RequestKind)
def test_only_a_write_that_asks_for_nothing_besides_is_plain(
    loops: ModuleType, kind: RequestKind, flags: int
) -> None:
    plain_one = Request(1, RequestKind.WRITE, 0, 0, 512, b"x")
    told = both(loops, "plain_writes", [plain_one, Request(2, kind, flags, 0, 512, b"x")], MIB)
    taken = loops.plain_writes([plain_one, Request(2, kind, flags, 0, 512, b"x")], MIB)[0]
    assert told[0] is tuple
    assert len(taken) == 1 + (kind is RequestKind.WRITE and flags == 0)


def test_writes_at_the_end_of_a_volume_are_judged_alike(loops: ModuleType) -> None:
    for length in (0, 1, 511, 512, 513, 1024, MIB, MIB + 512):
        for offset in (0, 1, 512, MIB - length, MIB - length + 512, MIB - 512, MIB):
            if offset >= 0:
                request = Request(1, RequestKind.WRITE, 0, offset, length, b"")
                both(loops, "plain_writes", [request], MIB)
                fits = length > 0 and offset + length <= MIB and not (offset | length) % 512
                assert len(loops.plain_writes([request], MIB)[0]) == fits


@given(requests(), st.integers(0, 3))
def test_requests_are_kept_alike(loops: ModuleType, made: list[Request], same: int) -> None:
    both(loops, "keep_requests", {}, made)
    both(
        loops,
        "keep_requests",
        {same: made[0] if made else None},
        [r._replace(id=same) for r in made],
    )
    both(loops, "keep_requests", {}, tuple(made))


def test_what_comes_before_a_flush_is_kept(loops: ModuleType) -> None:
    write, flush = (
        Request(7, RequestKind.WRITE, 0, 0, 512, b"x"),
        Request(8, RequestKind.FLUSH, 0, 0, 0),
    )
    for made, kept in (([], 0), ([write], 1), ([flush, write], 0), ([write, flush, write], 1)):
        unanswered: dict[int, Request] = {}
        assert loops.keep_requests(unanswered, made) == kept
        assert unanswered == {r.id: r for r in made[:kept]}


@given(requests(), st.lists(st.tuples(st.integers(0, 12), st.sampled_from([0, 0, 0, 5]))))
def test_writes_are_settled_alike(
    loops: ModuleType, made: list[Request], answers: list[tuple[int, int]]
) -> None:
    unanswered = {request.id: request for request in made}
    both(loops, "settle_writes", unanswered, [Reply(number, error) for number, error in answers])
    both(loops, "settle_writes", unanswered, tuple(Reply(request.id, 0) for request in made))


@pytest.mark.parametrize(
    "other",
    [
        (Request(8, RequestKind.WRITE, RequestFlag.FUA, 0, 512, b"x"), Reply(8, 0)),
        (Request(8, RequestKind.WRITE, 0, 0, 512, b"x"), Reply(8, errno.ENOSPC)),
        (Request(8, RequestKind.FLUSH, 0, 0, 0), Reply(8, 0)),
        (Request(8, RequestKind.READ, 0, 0, 512), Reply(8, 0, b"x")),
        (Request(8, RequestKind.WRITE, 0, 0, 512, b"x"), Reply(9, 0)),
    ],
)
def test_what_is_no_plain_write_ends_the_settling(
    loops: ModuleType, other: tuple[Request, Reply]
) -> None:
    request, reply = other
    write = Request(7, RequestKind.WRITE, 0, 0, 512, b"x")
    unanswered = {7: write, 8: request}
    for settle in (loops.settle_writes, compiled.PYTHON["settle_writes"]):
        left = dict(unanswered)
        assert settle(left, [Reply(7, 0), reply, Reply(7, 0)]) == 1
        assert left == {8: request}


@given(ops())
def test_touched_chunks_are_noted_alike(loops: ModuleType, made: list[Op]) -> None:
    kept = [op for op in made if op.offset < 2**62]
    both(loops, "note_chunks", kept, {3})
    both(loops, "note_chunks", tuple(kept), set())


def test_chunks_are_told_by_their_edges(loops: ModuleType) -> None:
    for offset, length, chunks, runs in (
        (0, CHUNK_BYTES, {0}, []),
        (0, CHUNK_BYTES + 512, set(), [(0, 2)]),
        (CHUNK_BYTES - 512, 512, {0}, []),
        (CHUNK_BYTES - 512, 1024, set(), [(0, 2)]),
        (CHUNK_BYTES, 512, {1}, []),
        (CHUNK_BYTES, 0, set(), []),
        (512, 3 * CHUNK_BYTES, set(), [(0, 4)]),
    ):
        for note in (loops.note_chunks, compiled.PYTHON["note_chunks"]):
            noted: set[int] = set()
            assert note([Op(OpKind.DISCARD, offset, length)], noted) == runs
            assert noted == chunks


@st.composite
def received(draw: st.DrawFn) -> bytes:
    """What an NBD client may have sent, most of it in order, and cut anywhere."""
    parts = []
    for cookie in range(draw(st.integers(0, 12))):
        command = draw(st.sampled_from([0, 1, 1, 1, draw(st.integers(0, 8))]))
        length = draw(st.one_of(st.integers(0, 8).map(lambda n: n * 512), odd)) & 0xFFFFFFFF
        flags = draw(st.sampled_from([0, 0, 0, 1, 2, 0xFFFF]))
        magic = NBD_REQUEST_MAGIC if draw(st.integers(0, 40)) else 0
        parts.append(REQUEST.pack(magic, flags, command, cookie, draw(numbers), length))
        if command == Command.WRITE and length <= 8192:
            parts.append(bytes([cookie]) * length)
    sent = b"".join(parts)
    return sent[: draw(st.integers(0, len(sent)))] if draw(st.booleans()) else sent


@given(received(), st.integers(0, 12), st.integers(0, 20_000), st.booleans(), st.data())
def test_requests_are_taken_alike(
    loops: ModuleType, sent: bytes, room: int, inflight: int, writable: bool, rest: st.DataObject
) -> None:
    begin = rest.draw(st.sampled_from([0, 0, min(28, len(sent))]))
    both(
        loops, "take_requests", memoryview(bytearray(sent)), begin, len(sent), 2**40 + 7, room,
        inflight, 16_384, MIB, writable, [], {},
    )  # fmt: skip


def taken_by_both(
    loops: ModuleType,
    sent: bytes,
    *,
    room: int = 9,
    inflight: int = 0,
    inflight_max: int = MIB,
    size: int = MIB,
    writable: bool = True,
) -> Any:
    return both(
        loops, "take_requests", memoryview(bytearray(sent)), 0, len(sent), 5, room, inflight,
        inflight_max, size, writable, [], {},
    )  # fmt: skip


def request(command: int, offset: int, length: int, flags: int = 0) -> bytes:
    payload = bytes(length) if command == Command.WRITE and length <= 8192 else b""
    return REQUEST.pack(NBD_REQUEST_MAGIC, flags, command, 77, offset, length) + payload


def test_what_is_cut_anywhere_is_taken_alike(loops: ModuleType) -> None:
    sent = request(1, 512, 512) + request(0, 0, 1024) + request(1, 0, 512)
    for end in range(len(sent) + 1):
        taken_by_both(loops, sent[:end])


@pytest.mark.parametrize("command", range(10))
@pytest.mark.parametrize("flags", [0, 1, 2, 3, 4, 0x8000])
@pytest.mark.parametrize("writable", [True, False])
def test_every_command_and_flag_is_judged_alike(
    loops: ModuleType, command: int, flags: int, writable: bool
) -> None:
    sent = request(1, 0, 512) + request(command, 512, 512, flags) + request(0, 0, 512)
    taken_by_both(loops, sent, writable=writable)


@pytest.mark.parametrize("command", [Command.READ, Command.WRITE])
@pytest.mark.parametrize("size", [MIB, 4 * REQUEST_BYTES_MAX])
def test_ranges_at_the_limits_are_judged_alike(loops: ModuleType, command: int, size: int) -> None:
    for length in (0, 1, 511, 512, 513, REQUEST_BYTES_MAX, REQUEST_BYTES_MAX + 512):
        for offset in (0, 1, 512, size - length, size - length + 512, size, 2**64 - 512):
            if offset >= 0:
                taken_by_both(loops, request(command, offset, length), size=size)


def test_limits_end_the_taking_alike(loops: ModuleType) -> None:
    sent = request(1, 0, 512) * 4
    for room in range(6):
        for inflight_max in (0, 1, 511, 512, 513, 1023, 1024, 1025, 4096):
            for inflight in (0, 512):
                taken_by_both(loops, sent, room=room, inflight=inflight, inflight_max=inflight_max)


@given(st.lists(st.tuples(st.integers(0, 9), st.sampled_from([0, 0, 0, 5]))))
def test_writes_are_answered_alike(loops: ModuleType, answers: list[tuple[int, int]]) -> None:
    pending = {n: (2**64 - 1 - n, int(n == 4), 0, 512) for n in range(5)} | {
        n: (n, 1, 0, 4096) for n in range(5, 9)
    }
    replies = [Reply(number, error, b"") for number, error in answers]
    both(loops, "answer_writes", replies, pending)


@settings(max_examples=60)
@given(ops(), st.integers(0, 5))
def test_files_are_written_alike(
    loops: ModuleType, tmp_path_factory: pytest.TempPathFactory, made: list[Op], at: int
) -> None:
    kept = [
        Op(op.kind, op.offset, len(op.data), bytes([n % 256]) * len(op.data))
        for n, op in enumerate(made)
        if op.offset <= MIB
    ]
    folder = tmp_path_factory.mktemp("written")
    told = []
    for loop in (compiled.PYTHON["write_ops"], loops.write_ops):
        with (folder / "data").open("wb") as file:
            told.append((loop(file.fileno(), kept, at), (folder / "data").read_bytes()))
    assert told[0] == told[1]


def test_more_writes_than_one_call_of_the_kernel_takes(loops: ModuleType, tmp_path: Path) -> None:
    block = bytes(range(256)) * 2
    apart = [Op(OpKind.WRITE, 1024 * n, 512, block) for n in range(200)]
    joined = [Op(OpKind.SYNC_WRITE, 512 * n, 512, memoryview(block)) for n in range(300)]
    with (tmp_path / "data").open("wb") as file:
        assert loops.write_ops(file.fileno(), [*apart, Op(OpKind.FLUSH, 0, 0)], 0) == 200
        assert (tmp_path / "data").read_bytes() == (block + bytes(512)) * 199 + block
        assert loops.write_ops(file.fileno(), joined, 0) == 300
    rest = (block + bytes(512)) * 49 + block
    assert (tmp_path / "data").read_bytes() == block * 300 + rest


def test_what_the_kernel_refuses_is_an_error_with_its_number(
    loops: ModuleType, tmp_path: Path
) -> None:
    path = tmp_path / "data"
    path.write_bytes(b"")
    fd = os.open(path, os.O_RDONLY)
    try:
        with pytest.raises(OSError) as refused:
            loops.write_ops(fd, [Op(OpKind.WRITE, 0, 512, bytes(512))], 0)
    finally:
        os.close(fd)
    assert refused.value.errno == errno.EBADF
    with Path("/dev/full").open("wb") as full, pytest.raises(OSError) as refused:
        loops.write_ops(full.fileno(), [Op(OpKind.WRITE, 0, 512, bytes(512))] * 3, 0)
    assert refused.value.errno == errno.ENOSPC


@pytest.mark.parametrize("lengths", [[4096], [512, 4096], [512, 512, 2048, 4096]])
def test_a_write_that_was_cut_short_goes_on_where_it_ended(
    loops: ModuleType, tmp_path: Path, lengths: list[int]
) -> None:
    """At the limit of a file's size the kernel takes a part, and refuses the rest."""
    limit = sum(lengths) - 1024
    made, offset = [], 0
    for number, length in enumerate(lengths, start=1):
        made.append(Op(OpKind.WRITE, offset, length, bytes([number]) * length))
        offset += length
    whole = b"".join(bytes(op.data) for op in made)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    for number, loop in enumerate((compiled.PYTHON["write_ops"], loops.write_ops)):
        path = tmp_path / f"data{number}"
        with path.open("wb") as file:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
            try:
                with pytest.raises(OSError) as refused:
                    loop(file.fileno(), made, 0)
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert refused.value.errno == errno.EFBIG
        assert path.read_bytes() == whole[:limit]


@pytest.mark.parametrize("name", sorted(compiled.PYTHON))
def test_every_loop_refuses_what_it_cannot_take(loops: ModuleType, name: str) -> None:
    loop = getattr(loops, name)
    for count in (0, 1, 2, 3, 4, 5, 11, 12):
        for wrong in (None, -1, "x", [None], (1, 2, 3, 4), memoryview(b"x")[::-1]):
            with pytest.raises((TypeError, ValueError, OSError)):
                loop(*[wrong] * count)


def test_the_module_holds_a_twin_of_every_loop_and_nothing_else(loops: ModuleType) -> None:
    own = {name for name in vars(loops) if not name.startswith("__")}
    assert own == compiled.PYTHON.keys()


@pytest.mark.parametrize("pure", ["0", "1"])
def test_the_variable_decides_which_are_used(pure: str) -> None:
    program = "from holdfast import compiled; print(compiled.IN_USE)"
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, compiled.PURE_VARIABLE: pure},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.strip() == str(compiled.IN_USE and pure == "0")


def test_a_simulated_world_goes_the_same_way_with_either() -> None:
    command = [sys.executable, "-m", "holdfast.testing.simulation", "--seeds", "12"]
    told = set()
    for pure in ("0", "1"):
        environment = {**os.environ, compiled.PURE_VARIABLE: pure}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        told.add(done.stdout.split(" in ")[0])  # Behind it stands how long it took.
    assert len(told) == 1, told
