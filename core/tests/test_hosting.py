"""The copies of one node, on real disks, beside a state store that fails at the worst moment."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import pytest

from holdfast.errors import ConfigError, ConflictError, CopyError, FaultReason, UnavailableError
from holdfast.kernel.hooks import load_hooks
from holdfast.local.copy.superblock import SLOT_BYTES, SuperblockFile
from holdfast.local.copy_store import FileCopyStore, open_copy
from holdfast.local.memory_state import MemoryStateDriver, MemoryStateOptions
from holdfast.messages import (
    Message,
    Replies,
    Request,
    RequestKind,
    Requests,
    SessionOpen,
    SessionOpened,
)
from holdfast.model import CopyState, GroupRecord, Member, VolumeSpec
from holdfast.node import eventlog, hosting, verifying
from holdfast.node.data_directories import COPIES, DataDirectories
from holdfast.node.directory import Directory
from holdfast.node.eventlog import EventLog
from holdfast.node.hosting import Hosting
from holdfast.node.observing import Observing
from holdfast.node.polling import ALWAYS_ASLEEP
from holdfast.node.pump import Pump, PumpLink
from holdfast.node.tasks import Tasks
from holdfast.node.workers import lock_data
from holdfast.sync import events as ev
from holdfast.sync.events import LinkId
from holdfast.sync.pace import PaceLimits
from holdfast.sync.peers import Peers
from holdfast.testing.faulty_state import FaultyStateStore
from holdfast.units import MIB, CopyId, Epoch, NodeName, VolumeId
from holdfast_policy import AlwaysOnPolicy

NODE, VOLUME = NodeName("n1"), VolumeId("volume-1")
_names = itertools.count()
pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def _in_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hosting, "REOPEN_S", 0.01)


@asynccontextmanager
async def hosted(tmp_path: Path) -> AsyncIterator[tuple[Hosting, FaultyStateStore, GroupRecord]]:
    """Yield a node's hosting beside a store that knows a volume of one copy, which is to be made."""
    options = MemoryStateOptions(name=f"hosting-{next(_names)}")
    store = FaultyStateStore(await MemoryStateDriver.open(options))
    failures: list[BaseException] = []
    tasks = Tasks(failures.append)
    directory = Directory(store, lambda *_: None, lambda *_: None, lambda: None, lambda _: None)
    made = Hosting(
        name=NODE,
        cluster="c1",
        process="p1",
        data=DataDirectories([tmp_path], "c1"),
        directory=directory,
        peers=Peers(NODE),
        policy_of=lambda _: AlwaysOnPolicy(AlwaysOnPolicy.Options()),
        dial=lambda *_: pytest.fail("there is nobody to dial"),
        spawn=tasks.spawn,
        heard=lambda: None,
        events=EventLog(tmp_path / "events", NODE),
        observing=Observing(NODE, load_hooks(), directory),
        polling=ALWAYS_ASLEEP,
        pace_limits=PaceLimits(),
        keeps=lambda _: True,
    )
    spec = VolumeSpec(VOLUME, "v1", MIB, 0, policy="alwayson", hash_key="ab" * 32)
    member = Member(CopyId("c1"), NODE, CopyState.IN_SYNC)
    record = GroupRecord(volume=VOLUME, epoch=Epoch(1), primary=member.copy, members=(member,))
    await store.compare_and_set(f"spec/{VOLUME}", spec.to_bytes(), None)
    entry = await store.compare_and_set(f"group/{VOLUME}", record.to_bytes(), None)
    assert entry is not None
    directory.specs[VOLUME] = spec
    await made.open_all()
    yield made, store, record
    await made.stop(handover=False, patience_s=5.0)
    await tasks.aclose()
    await store.aclose()
    assert not failures


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110 - others bring it about.
            await asyncio.sleep(0.01)


async def is_primary(made: Hosting) -> None:
    await until(lambda: VOLUME in made.pumps and made.pumps[VOLUME].is_primary)


@pytest.mark.parametrize("fault", ["outage", "answers_lost"])
async def test_a_first_copy_outlives_an_outage_of_the_store(fault: str, tmp_path: Path) -> None:
    async with hosted(tmp_path) as (made, store, record):
        setattr(store.faults, fault, True)
        made.on_group(VOLUME, record, 1)
        calls = store.faults.calls
        await until(lambda: store.faults.calls > calls + 4)
        store.faults.heal()
        await is_primary(made)


async def test_a_copy_that_cannot_be_opened_anew_at_once_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with hosted(tmp_path) as (made, store, record):
        made.on_group(VOLUME, record, 1)
        await is_primary(made)
        failed = made.pumps[VOLUME]
        real, left = SuperblockFile.save, [3]

        def save(self: SuperblockFile, *args: object) -> None:
            left[0] -= 1
            if left[0] >= 0:
                raise CopyError("The disk fails.", reason=FaultReason.IO_ERROR)
            real(self, *args)  # type: ignore[arg-type]

        monkeypatch.setattr(SuperblockFile, "save", save)
        failed._fail(CopyError("The disk fails.", reason=FaultReason.IO_ERROR))
        await until(lambda: left[0] <= 0)
        store.faults.outage = True
        calls = store.faults.calls
        await until(lambda: store.faults.calls > calls + 2)
        store.faults.heal()
        await is_primary(made)
        assert made.pumps[VOLUME] is not failed
        assert not made.orphans


def made_in(directories: DataDirectories, copy: str) -> FileCopyStore:
    spec = VolumeSpec(VOLUME, "v1", MIB, 0, policy="alwayson", hash_key="ab" * 32)
    member = Member(CopyId(copy), NODE, CopyState.OFFLINE)
    return directories.make(spec, member, CopyState.OFFLINE, Epoch(1))[0]


async def test_a_copy_of_which_nobody_can_say_what_it_is_makes_room_and_keeps_its_files(
    tmp_path: Path,
) -> None:
    directories = DataDirectories([tmp_path], "c1")
    assert directories.copies() == []
    store = made_in(directories, "c1")
    store.close()
    (superblock,) = (tmp_path / COPIES / VOLUME).glob("superblock*")
    superblock.write_bytes(bytes(2 * SLOT_BYTES))
    kept = {path.name for path in superblock.parent.iterdir()}
    for copy in ("c1", "c2"):
        store = made_in(directories, copy)
        assert store.superblock.copy == copy
        assert store.fresh
        store.close()
    (aside,) = (tmp_path / COPIES).glob(f".{VOLUME}.damaged-*")
    assert {path.name for path in aside.iterdir()} == kept
    assert [path.name for path in directories.copies()] == [VOLUME]
    directories.close()


async def test_a_superseded_copy_that_was_replaced_takes_nothing_of_the_newer_one_with_it(
    tmp_path: Path,
) -> None:
    async with hosted(tmp_path) as (made, _, record):
        made.on_group(VOLUME, record, 1)
        await is_primary(made)
        older, newer = made.pumps[VOLUME], made._paths[VOLUME]
        # As when the word that it is superseded came while its place was being taken.
        older.close()
        await made._close_store(older)
        del made.pumps[VOLUME]
        await made._open_listed(newer)
        await made._look_again(older)
        assert made._paths[VOLUME] == newer
        assert newer.exists()
        assert not made.pumps[VOLUME].closed


async def test_a_copy_that_is_made_while_the_node_stops_is_not_left_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with hosted(tmp_path) as (made, _store, record):
        begun, go_on = threading.Event(), threading.Event()
        real = made.data.make

        def make(*words: Any) -> tuple[FileCopyStore, Path]:
            begun.set()
            assert go_on.wait(30)
            return real(*words)

        monkeypatch.setattr(made.data, "make", make)
        made.on_group(VOLUME, record, 1)
        await until(begun.is_set)
        await made.stop(handover=False, patience_s=5.0)
        go_on.set()
        async with made._lock(VOLUME):
            assert not made.pumps
            open_copy(tmp_path / COPIES / VOLUME, boot="b1").close()


async def test_a_comparison_ends_when_its_copy_is_closed(tmp_path: Path) -> None:
    async with hosted(tmp_path) as (made, _store, record):
        made.on_group(VOLUME, record, 1)
        await is_primary(made)
        pump = made.pumps[VOLUME]

        async def compare() -> None:
            async for _ in verifying.run(pump, "v1", repair=False):
                pass

        under_way = asyncio.create_task(compare())
        await asyncio.sleep(0)
        pump.close()
        for each in (under_way, asyncio.create_task(compare())):
            with pytest.raises(UnavailableError, match="changed during the comparison"):
                await each


def test_a_data_directory_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    (tmp_path / COPIES).write_text("no folder")
    (tmp_path / "node.lock").mkdir()
    told = f"The data directory {tmp_path} cannot be used: "
    with pytest.raises(ConfigError, match=told):
        DataDirectories([tmp_path], "c1").copies()
    with pytest.raises(ConfigError, match=told):
        lock_data([str(tmp_path)])


async def test_events_on_a_disk_that_stalls_hold_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(eventlog, "READ_S", 0.01)
    log = EventLog(tmp_path / "events", NODE)
    spec = VolumeSpec(VOLUME, "v1", MIB, 0)
    answers = threading.Event()
    log._thread.submit(answers.wait, 30)
    log.add(spec, 1, "made", "It was made.")
    assert await log.read(VOLUME) == []
    monkeypatch.undo()
    answers.set()
    assert [event["sentence"] for event in await log.read(VOLUME)] == ["It was made."]


@pytest.mark.parametrize("is_proved", [False, True])
async def test_a_copy_goes_only_when_the_store_proves_that_its_volume_is_gone(
    is_proved: bool, tmp_path: Path
) -> None:
    """A store that has lost its records, or another one, proves nothing (decision 0008)."""
    async with hosted(tmp_path) as (made, store, record):
        made.on_group(VOLUME, record, 1)
        await is_primary(made)
        pump, path = made.pumps[VOLUME], made._paths[VOLUME]
        if is_proved:
            await store.compare_and_set(f"deleted/{VOLUME}", b"v1", None)
        entry = await store.get(f"group/{VOLUME}")
        assert entry is not None
        await store.compare_and_set(f"group/{VOLUME}", None, entry.version)
        pump._read_record(ev.ReadRecord())
        await until(lambda: VOLUME not in made.pumps)
        await until(lambda: not path.exists() or path in made.orphans)
        assert path.exists() is not is_proved


async def test_a_copy_that_knows_more_than_the_store_is_deleted_for_no_other(
    tmp_path: Path,
) -> None:
    directories = DataDirectories([tmp_path], "c1")
    assert directories.copies() == []
    store = made_in(directories, "c1")
    store.save(attrs.evolve(store.superblock, epoch=Epoch(7)))
    store.close()
    with pytest.raises(ConflictError, match="epoch 7"):
        made_in(directories, "c2")
    store = made_in(directories, "c1")
    assert not store.fresh
    store.close()
    directories.close()


class Outlet:
    """A consumer's end of a link."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self.is_closed = False

    def send(self, messages: Sequence[Message]) -> None:
        self.messages.extend(messages)

    def close(self, reason: str = "") -> None:
        self.is_closed = True

    def of(self, kind: type[Message]) -> list[Any]:
        return [message for message in self.messages if isinstance(message, kind)]


async def attached(pump: Pump, outlet: Outlet) -> tuple[LinkId, int]:
    """Open a session; return its link and generation."""
    link = pump.accept(outlet)
    hello = SessionOpen(
        cluster="c1",
        volume=VOLUME,
        node=NODE,
        session="s1",
        process="p1",
        read_only=False,
        force=False,
        resume_generation=0,
    )
    pump.feed(ev.SessionLinked(link, hello))
    await until(lambda: bool(outlet.of(SessionOpened)))
    return link, outlet.of(SessionOpened)[0].generation


async def test_what_arrives_while_a_copy_is_made_is_told_to_it_when_it_is_there(
    tmp_path: Path,
) -> None:
    async with hosted(tmp_path) as (made, _, record):
        made.on_group(VOLUME, record, 1)
        await is_primary(made)
        pump, outlet = made.pumps[VOLUME], Outlet()
        link, generation = await attached(pump, outlet)
        early, cut = PumpLink(), PumpLink()
        write = Request(1, int(RequestKind.WRITE), 0, 0, 4096, b"a" * 4096)
        early.on_messages((Requests(generation, (write,)),))
        cut.on_lost(UnavailableError("The peer is gone."))
        early.become(pump, link)
        await until(lambda: len(outlet.of(Replies)) == 1)
        primary = pump.member.primary
        assert primary is not None
        assert link in primary.attachments.open
        cut.become(pump, link)
        assert link not in primary.attachments.open


@pytest.mark.parametrize("broken", ["apply", "flush"])
async def test_what_was_left_undone_is_not_vouched_for_by_what_comes_behind_it(
    broken: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Acknowledgements are cumulative, so a copy whose work broke off must not go on."""
    async with hosted(tmp_path) as (made, _, record):
        made.on_group(VOLUME, record, 1)
        await is_primary(made)
        pump, outlet = made.pumps[VOLUME], Outlet()
        link, generation = await attached(pump, outlet)

        def ask(number: int, kind: RequestKind, data: bytes = b"") -> None:
            request = Request(number, int(kind), 0, 0, len(data), data)
            pump.feed(ev.Received(link, (Requests(generation, (request,)),)))

        ask(1, RequestKind.WRITE, b"a" * 4096)
        await until(lambda: len(outlet.of(Replies)) == 1)
        tries = itertools.count()
        real = getattr(pump.store, broken)

        def out_of_memory_once(*args: object) -> None:
            if next(tries) == 0:
                raise MemoryError
            real(*args)

        monkeypatch.setattr(pump.store, broken, out_of_memory_once)
        ask(2, RequestKind.WRITE, b"b" * 4096)
        ask(3, RequestKind.FLUSH)
        ask(4, RequestKind.WRITE, b"c" * 4096)
        await until(lambda: outlet.is_closed)
        answered = {reply.id for replies in outlet.of(Replies) for reply in replies.replies}
        assert answered.isdisjoint({2, 3, 4} if broken == "apply" else {3})
        await until(lambda: made.pumps.get(VOLUME) not in {None, pump})
        await is_primary(made)
