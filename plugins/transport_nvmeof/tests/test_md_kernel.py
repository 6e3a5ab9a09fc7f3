"""The md replicator on a real kernel: exports, imports, arrays, losses, moves, growth.

Needs root, null_blk, nvmet, nvme-fabrics and MD; `make guest` boots a kernel that has them all.
"""

# ruff: noqa: ASYNC221, ASYNC230, ASYNC240 - the test is all that runs meanwhile.

from __future__ import annotations

import asyncio
import functools
import os
import re
import subprocess
from pathlib import Path

import attrs
import pytest
from plugins.transport_nvmeof.tests import md_lab
from plugins.transport_nvmeof.tests.md_lab import Lab, Shadow, in_sync_on, quiet

from holdfast.units import MIB, NodeName
from holdfast_transport_nvmeof.kernel.target import CONFIGFS
from holdfast_transport_nvmeof.md import inventory
from holdfast_transport_nvmeof.md.model import MdVolume
from holdfast_transport_nvmeof.md.options import MdOptions

pytestmark = [
    pytest.mark.alone,
    pytest.mark.skipif(md_lab.missing() is not None, reason=md_lab.missing() or ""),
]
RDMA = pytest.mark.skipif(
    not any(Path("/sys/class/infiniband").glob("*")), reason="there is no RDMA device"
)
SPEED = Path("/proc/sys/dev/raid/speed_limit_max")


def arrays() -> str:
    """What the kernel says of its arrays, but for how many pages of bitmaps it has in memory just now."""
    return re.sub(r"\d+/\d+ pages \[\d+KB\]", "pages", Path("/proc/mdstat").read_text())


@pytest.mark.parametrize("transport", ["tcp", pytest.param("rdma", marks=RDMA)])
def test_a_lost_member_comes_back_by_the_bitmap(transport: str) -> None:
    async def story(lab: Lab) -> None:
        for name in "ab":
            lab.add_node(name, transport=transport)
        device = await lab.create("db", 64, filesystem="none", consumer="a")
        assert lab.transports() == {transport}
        shadow = Shadow(device, 64 * MIB)
        shadow.write(50)
        lab.cut("b")
        volume = await lab.until("db", lambda v: v.status.mdstate == "degraded")
        assert (volume.status.active, volume.status.down) == (1, 1)
        shadow.write(20, within=4 * MIB)
        lab.back("b")
        await lab.until("db", quiet)
        shadow.verify()
        lab.verify_members(shadow)
        assert any("what changed meanwhile is copied" in event for event in lab.events), lab.events

    md_lab.run(story)


@pytest.mark.parametrize(("copies", "drives"), [(1, 1), (1, 2), (2, 1), (3, 1), (2, 2)])
def test_each_combination_of_copies_and_drives_keeps_data_and_leaves_nothing(
    copies: int, drives: int
) -> None:
    async def story(lab: Lab) -> None:
        for name in "abc"[: max(copies, 2)]:
            lab.add_node(name, drives=drives)
        device = await lab.create(
            "db",
            48 * drives,
            copies=copies,
            drives_per_copy=drives,
            filesystem="none",
            consumer="a",
        )
        volume = await lab.volume("db")
        before = arrays()
        assert ("raid10" if drives > 1 else "raid1") in before.partition(":")[2]
        assert volume.status.active == copies * drives
        shadow = Shadow(device, 48 * drives * MIB)
        shadow.write(60)
        lab.restart("a")  # A daemon that starts anew changes nothing of what runs.
        await lab.round()
        assert arrays() == before
        shadow.verify()
        if drives == 1:
            lab.verify_members(shadow)
        await lab.change("db", lambda v: attrs.evolve(v, deleting=True, consumer=NodeName("")))
        await lab.until_gone("db")
        assert not list(Path(CONFIGFS, "subsystems").glob("*"))
        assert "md1" not in Path("/proc/mdstat").read_text()
        await lab.round()
        for agent in lab.agents.values():
            assert agent.seen is not None
            assert not agent.seen.slices

    md_lab.run(story)


def test_a_member_lost_for_too_long_is_replaced() -> None:
    async def story(lab: Lab) -> None:
        for name in "abc":
            lab.add_node(name)
        device = await lab.create(
            "db", 64, filesystem="none", consumer="a", member_missing_timeout_s=6.0
        )
        shadow = Shadow(device, 64 * MIB)
        shadow.write(50)
        before = {m.id: m.node for m in (await lab.volume("db")).members}
        lost = next(node for node in before.values() if node != "a")
        fast = SPEED.read_text()
        SPEED.write_text("4000")
        try:
            lab.cut(lost)
            await lab.until("db", lambda v: v.status.mdstate == "degraded")
            seen: list[MdVolume] = []
            await lab.until(
                "db",
                lambda v: (
                    sum(m.state.value == "synced" for m in v.members) == 2
                    and v.status.mdstate != "degraded"
                ),
                told=seen,
            )
        finally:
            SPEED.write_text(fast)
        percents = [float(v.status.sync.rstrip("%")) for v in seen if v.status.sync]
        assert percents == sorted(percents)
        assert percents, "no percentage was seen"
        shadow.write(10)
        shadow.verify()
        lab.back(lost)
        volume = await lab.until("db", lambda v: quiet(v) and len(v.members) == 2)
        assert lost not in {m.node for m in volume.members}
        lab.verify_members(shadow)

    md_lab.run(story)


@pytest.mark.parametrize("copies", [3, 2], ids=["RAID1", "RAID10"])
def test_what_was_written_while_two_members_were_away_reaches_both(copies: int) -> None:
    async def story(lab: Lab) -> None:
        drives = 1 if copies == 3 else 2
        for name in "abc"[:copies]:
            lab.add_node(name, drives=drives)
        device = await lab.create(
            "db",
            32 * drives,
            copies=copies,
            drives_per_copy=drives,
            filesystem="none",
            consumer="a",
        )
        shadow = Shadow(device, 32 * drives * MIB)
        shadow.write(30)
        away = "abc"[1:copies]
        for name in away:
            lab.cut(name)
        await lab.until("db", lambda v: v.status.active == v.slots - 2)
        shadow.write(40)
        for name in away:
            lab.back(name)
            if drives == 1:
                # The second one comes back when the first one has been synced.
                await lab.until("db", functools.partial(in_sync_on, node=name))
                shadow.write(20)
        await lab.until("db", lambda v: quiet(v) and v.status.mdstate in {"active", "clean"})
        shadow.verify()
        assert lab.mismatches(device) == 0
        if drives == 1:
            lab.verify_members(shadow)

    md_lab.run(story)


def test_a_policy_lets_writes_wait_until_a_member_is_back() -> None:
    async def story(lab: Lab) -> None:
        for name in "ab":
            lab.add_node(name)
        lab.policy = md_lab.policy("hard", during_grace="hold", grace_s=3600)
        device = await lab.create("db", 32, filesystem="none", consumer="a")
        shadow = Shadow(device, 32 * MIB)
        shadow.write(20)
        lab.cut("b")
        volume = await lab.until("db", lambda v: v.access == "suspended")
        assert volume.status.mdstate == "degraded"
        shadow.verify()  # Reads go on.
        written = asyncio.create_task(asyncio.to_thread(shadow.write, 5))
        for _ in range(10):
            await lab.round()
        assert not written.done()
        lab.back("b")
        await lab.until("db", lambda v: v.access == "read-write" and quiet(v))
        await written
        shadow.verify()
        lab.verify_members(shadow)

    md_lab.run(story)


@pytest.mark.parametrize(
    ("transport", "copies"), [("tcp", 1), ("tcp", 2), pytest.param("rdma", 2, marks=RDMA)]
)
def test_a_volume_moves_to_another_node_with_its_data(transport: str, copies: int) -> None:
    async def story(lab: Lab) -> None:
        for name in "abc":
            lab.add_node(name, transport=transport)
        device = await lab.create("db", 64, copies=copies, filesystem="none", consumer="a")
        shadow = Shadow(device, 64 * MIB)
        shadow.write(50)
        volume = await lab.volume("db")
        target = next(n for n in "cb" if n not in {m.node for m in volume.members})
        await lab.change("db", lambda v: attrs.evolve(v, consumer=NodeName(target)))
        volume = await lab.until(
            "db",
            lambda v: (
                v.active == target
                and quiet(v)
                and len(v.members) == copies
                and target in {m.node for m in v.members}
                and bool(v.status.device)
            ),
        )
        assert "a" not in {m.node for m in volume.members}
        assert not [event for event in lab.events if "missing" in event], lab.events
        moved = Shadow(volume.status.device, 64 * MIB, blocks=shadow.blocks)
        moved.verify()
        moved.write(10)
        lab.verify_members(moved)

    md_lab.run(story)


def test_a_mounted_volume_grows_while_it_is_used() -> None:
    async def story(lab: Lab) -> None:
        for name in "ab":
            lab.add_node(name, size_mib=500, mount=f"/mnt/{name}")
        await lab.create("db", 320, consumer="a")
        volume = await lab.until("db", lambda v: bool(v.status.mounted))
        file = Path(volume.status.mounted, "file")
        data = os.urandom(8 * MIB)
        file.write_bytes(data)
        os.sync()
        before = os.statvfs(volume.status.mounted).f_blocks
        await lab.change("db", lambda v: attrs.evolve(v, size_bytes=400 * MIB))
        await lab.until(
            "db", lambda _: os.statvfs(volume.status.mounted).f_blocks > before * 6 // 5
        )
        Path("/proc/sys/vm/drop_caches").write_text("3")
        assert file.read_bytes() == data
        await lab.until("db", lambda v: v.status.mdstate in {"active", "clean"})
        await lab.change("db", lambda v: attrs.evolve(v, deleting=True, consumer=NodeName("")))
        await lab.until_gone("db")

    md_lab.run(story)


def test_members_in_files_serve_and_grow_and_are_removed(tmp_path: Path) -> None:
    async def story(lab: Lab) -> None:
        for name in "ab":
            lab.add_node(name, drives=0, files=str(tmp_path / name))
        device = await lab.create("db", 32, filesystem="none", consumer="a")
        shadow = Shadow(device, 32 * MIB)
        shadow.write(30)
        lab.cut("b")
        await lab.until("db", lambda v: v.status.mdstate == "degraded")
        shadow.write(10)
        lab.back("b")
        await lab.until("db", quiet)
        await lab.change("db", lambda v: attrs.evolve(v, size_bytes=48 * MIB))
        await lab.until("db", lambda v: v.status.size_bytes >= 48 * MIB and quiet(v))
        shadow.size = 48 * MIB
        shadow.write(20)
        shadow.verify()
        lab.verify_members(shadow)
        await lab.change("db", lambda v: attrs.evolve(v, deleting=True, consumer=NodeName("")))
        await lab.until_gone("db")
        assert not list(tmp_path.glob("*/*"))
        told = subprocess.run(["losetup", "--list"], capture_output=True, text=True, check=True)
        assert str(tmp_path) not in told.stdout

    with md_lab.roomy(tmp_path):
        md_lab.run(story)


def test_what_is_not_ours_is_never_touched() -> None:
    async def story(lab: Lab) -> None:
        lab.add_node("a", size_mib=200)
        lab.add_node("b", size_mib=200)
        agent = lab.agents["a"]
        drive = agent.options.drives[0]
        subprocess.run(
            ["sfdisk", "--quiet", drive], input="label: gpt\nsize=64M, name=theirs\n", text=True,
            check=True,
        )  # fmt: skip
        theirs = f"{drive}p1"
        mark = os.urandom(MIB)
        Path(theirs).write_bytes(mark)
        device = await lab.create("db", 64, filesystem="none", consumer="a")
        Shadow(device, 64 * MIB).write(20)
        # A slice that no volume names: its record is gone, as after a loss of the store.
        entry = await lab.store.get("md/volume/db")
        assert entry is not None
        lab.down |= {"a", "b"}
        await lab.store.compare_and_set(entry.key, None, entry.version)
        subprocess.run(["mdadm", "--stop", "--quiet", device], check=True)
        rows = await inventory.cleanup(agent.options, "lab", "a", lab.store, apply=False)
        assert [row["told"] for row in rows] == ["in no volume"]
        rows = await inventory.cleanup(agent.options, "lab", "a", lab.store, apply=True)
        assert [row["told"] for row in rows] == ["removed"]
        assert await inventory.cleanup(agent.options, "lab", "a", lab.store, apply=True) == []
        with Path(theirs).open("rb") as file:
            assert file.read(MIB) == mark
        listed = {row["path"]: row for row in await inventory.drives(agent.options)}
        assert listed[drive]["told"] == "gpt: 0 of ours, 1 other"
        assert listed[drive]["free_bytes"] > 100 * MIB

    md_lab.run(story)


def test_drives_that_come_and_go_are_told() -> None:
    async def story(_lab: Lab) -> None:
        told: list[tuple[str, str]] = []

        async def listen() -> None:
            async for event in inventory.events(MdOptions(drives=("/dev/*",))):
                told.append((event["action"], event["path"]))  # noqa: PERF401 - it never ends.

        listening = asyncio.create_task(listen())
        try:
            async with asyncio.timeout(md_lab.PATIENCE_S):
                path = ""
                while {("add", path), ("remove", path)} - set(told):
                    # Again until it is heard: nobody says when listening has begun.
                    path = md_lab.make_drive("hot0", 64)
                    await asyncio.sleep(1.0)
                    md_lab.remove_drive("hot0")
                    await asyncio.sleep(1.0)
        finally:
            listening.cancel()
            await asyncio.gather(listening, return_exceptions=True)

    md_lab.run(story)
