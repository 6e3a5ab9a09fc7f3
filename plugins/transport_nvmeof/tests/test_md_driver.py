"""The md replicator as a node opens it: requests, refusals, explanations; no kernel is needed."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from typing import Any

import attrs
import pytest

from holdfast.errors import ConflictError, HoldfastError, NotFoundError, UsageError
from holdfast.interfaces.policy import Policy
from holdfast.interfaces.state import StateStore
from holdfast.kernel import registry
from holdfast.model import VolumeSpec
from holdfast.units import GIB, NodeName, VolumeId
from holdfast_transport_nvmeof.md import machine
from holdfast_transport_nvmeof.md.agent import NODES, VOLUMES
from holdfast_transport_nvmeof.md.driver import MdReplicator, MdReplicatorDriver
from holdfast_transport_nvmeof.md.model import MdNode, MdStatus, MdVolume, MemberState
from holdfast_transport_nvmeof.md.options import MdOptions
from holdfast_transport_nvmeof.md.volume_options import volume_options

Json = dict[str, Any]
PORT = "tcp://192.0.2.1:4420"


@attrs.define
class Host:
    """A node that hears everything and does nothing."""

    store: StateStore
    name: NodeName = attrs.field(factory=lambda: NodeName("x"))
    cluster: str = "lab"
    living: set[str] = attrs.field(factory=lambda: {"a", "b", "c", "x"})
    kept: set[str] = attrs.field(factory=set)
    """Nodes that are cordoned."""

    def alive(self) -> Collection[NodeName]:
        return {NodeName(name) for name in self.living}

    def cordoned(self) -> Collection[NodeName]:
        return {NodeName(name) for name in self.kept}

    def draining(self) -> Collection[NodeName]:
        return ()

    def policy(self, spec: VolumeSpec) -> Policy:
        driver = registry.load("policy", spec.policy)
        made: Policy = driver(driver.Options())
        return made

    def policy_options(self, name: str, given: Mapping[str, Any], declared: int) -> Json:
        return dict(given)

    def note(self, spec: VolumeSpec, epoch: int, kind: str, sentence: str) -> None:
        pass

    async def events(self, volume: VolumeId) -> Sequence[Json]:
        return []


def story(test: Callable[[MdReplicator, Host], Awaitable[None]]) -> None:
    """Run a test with a replicator whose agent rests, beside three nodes that could hold members."""

    async def inside() -> None:
        driver = registry.load("state", "memory")
        store: StateStore = await driver.open(driver.Options(name=uuid.uuid4().hex))
        host = Host(store)
        replicator = await MdReplicatorDriver.open(MdOptions(), host)
        await replicator.aclose()
        for name in "abc":
            node = MdNode(NodeName(name), f"host:{name}", (PORT,), free=((64 * GIB, 4096),) * 2)
            await store.compare_and_set(f"{NODES}{name}", node.to_bytes(), None)
        try:
            await test(replicator, host)
        finally:
            await store.aclose()

    asyncio.run(inside())


async def edit(host: Host, **fields: object) -> MdVolume:
    entry = await host.store.get(f"{VOLUMES}db")
    assert entry is not None
    volume = attrs.evolve(MdVolume.from_bytes(entry.value), **fields)  # type: ignore[arg-type]
    await host.store.compare_and_set(entry.key, volume.to_bytes(), entry.version)
    return volume


async def serving(host: Host, **states: MemberState) -> MdVolume:
    """Let the volume's array run on node a, with members in these states."""
    entry = await host.store.get(f"{VOLUMES}db")
    assert entry is not None
    volume = MdVolume.from_bytes(entry.value)
    members = tuple(
        attrs.evolve(
            m, state=states.get(m.node, MemberState.SYNCED), size_bytes=volume.member_bytes
        )
        for m in volume.members
    )
    status = MdStatus("clean", active=2, device="/dev/md100")
    return await edit(host, members=members, active=NodeName("a"), created=True, status=status)


REQUEST: Json = {"name": "db", "size_bytes": GIB, "primary_node": "a"}


def test_a_volume_is_declared_shown_and_explained() -> None:
    async def test(md: MdReplicator, host: Host) -> None:
        await md.create(REQUEST)
        assert (await md.volume("db"))["health"] == "offline"
        assert "being made" in (await md.explain("db"))["doing"][0]
        await serving(host)
        told = await md.volume("db")
        assert (told["health"], told["primary"], told["access"]) == ("healthy", "a", "read-write")
        words = ("phase", "mdstate", "total", "active", "failed", "down", "sync")
        assert [told["md"][key] for key in words] == ["Synced", "clean", 2, 2, 0, 0, ""]
        assert (await md.explain("db"))["why"] == ["All members are in sync."]
        await edit(host, status=MdStatus("recovering", active=1, sync="45.2%", device="/dev/md100"))
        assert (await md.volume("db"))["md"]["phase"] == "Syncing"
        other = next(m.node for m in (await serving(host)).members if m.node != "a")
        await serving(host, **{other: MemberState.MISSING})
        told, why = await md.volume("db"), await md.explain("db")
        assert told["health"] == "degraded"
        assert why["why"] == [f"The member on {other} is missing."]
        assert any("another is made on" in each["sentence"] for each in why["next"])
        assert any(each["command"] == f"holdfast volume evict db {other}" for each in why["help"])

    story(test)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"size_bytes": 3 * 10**9}, "Nearest: 2861MiB or 2862MiB"),
        ({"size_bytes": 1 << 20}, "at least"),
        ({"shared": True}, "cannot be shared"),
        ({"replicas": 5}, "wants 6 copies"),
        ({"primary_node": "z"}, "Node z cannot hold"),
        ({"replicator_options": {"drivesPerCopy": "3"}}, "Node a cannot hold"),
        ({"replicator_options": {"sectorSize": 512}}, "Node a cannot hold"),
        ({"replicator_options": {"sectorSize": 1024}}, "512 or 4096"),
        ({"replicator_options": {"numberOfCopies": "many"}}, "must be a number"),
        ({"replicator_options": {"numberOfCopies": 0}}, "impossible"),
        ({"replicator_options": {"memberMissingTimeout": 59}}, "at least 60 s"),
        ({"replicator_options": {"stripes": 1}}, "no option 'stripes'"),
        ({"replicator_options": {"filesystem": "ext4"}}, "must be xfs or none"),
    ],
)
def test_what_is_impossible_is_refused_with_a_sentence(changes: Json, told: str) -> None:
    async def test(md: MdReplicator, host: Host) -> None:
        with pytest.raises(HoldfastError, match=told):
            await md.create({**REQUEST, **changes})
        assert await md.ids() == {}
        assert await host.store.get("name/db") is None

    story(test)


def test_names_of_meshstor_mean_the_same() -> None:
    given = {
        "replicaCount": "3",
        "stripeWidth": "2",
        "memberMissingTimeout": "120",
        "sectorSize": "512",
    }
    options = volume_options(given, replicas=None, missing_timeout_s=None)
    assert (options.copies, options.drives_per_copy, options.sector_size) == (3, 2, 512)
    assert options.member_missing_timeout_s == 120
    assert volume_options({}, replicas=0, missing_timeout_s=60).copies == 1


def test_a_node_that_may_still_write_is_not_taken_over_without_force() -> None:
    async def test(md: MdReplicator, host: Host) -> None:
        await md.create(REQUEST)
        volume = await serving(host)
        other = next(m.node for m in volume.members if m.node != "a")
        with pytest.raises(ConflictError, match="answers"):
            await md.promote("db", other, force=True)
        host.living.discard("a")
        with pytest.raises(ConflictError, match="may still write"):
            await md.promote("db", other, force=False)
        assert "does not answer" in (await md.explain("db"))["why"][0]
        await md.promote("db", other, force=True)
        taken = await edit(host)
        assert (taken.active, taken.consumer, taken.force) == ("", other, True)
        assert taken.epoch > volume.epoch
        left = next(m for m in taken.members if m.node == "a")
        assert (left.state, left.whole) == (MemberState.MISSING, True)

    story(test)


def test_nobody_takes_over_what_only_a_silent_node_has() -> None:
    async def test(md: MdReplicator, host: Host) -> None:
        await md.create(REQUEST)
        volume = await serving(host)
        other = next(m.node for m in volume.members if m.node != "a")
        await serving(host, **{other: MemberState.MISSING})
        host.living.discard("a")
        with pytest.raises(ConflictError, match="no copy of db is in sync"):
            await md.promote("db", other, force=True)

    story(test)


def test_a_volume_moves_grows_and_is_deleted_by_its_record() -> None:
    async def test(md: MdReplicator, host: Host) -> None:
        await md.create(REQUEST)
        volume = await serving(host)
        other = next(m.node for m in volume.members if m.node != "a")
        await md.promote("db", other, force=False)
        assert ((await edit(host)).active, (await edit(host)).consumer) == ("a", other)
        await md.change("db", {"size_bytes": 2 * GIB, "member_missing_timeout_s": 90})
        assert (await md.volume("db"))["md"]["phase"] == "Expanding"
        with pytest.raises(ConflictError, match="only grow"):
            await md.change("db", {"size_bytes": GIB})
        with pytest.raises(ConflictError, match="cannot be changed"):
            await md.change("db", {"replicas": 2})
        with pytest.raises(UsageError, match="at least 60 s"):
            await md.change("db", {"member_missing_timeout_s": 1})
        with pytest.raises(NotFoundError, match="no copy"):
            await md.evict("db", NodeName("z"))
        await md.evict("db", NodeName("a"))
        assert len((await edit(host)).members) == 3
        await edit(host, status=MdStatus("clean", mounted="/srv", device="/dev/md100"))
        with pytest.raises(ConflictError, match="mounted at /srv"):
            await md.delete("db", force=False)
        await md.delete("db", force=True)
        assert (await md.volume("db"))["health"] == "deleting"

    story(test)


def test_a_drain_tells_where_members_go_and_cordoned_nodes_take_none() -> None:
    async def test(md: MdReplicator, host: Host) -> None:
        await md.create(REQUEST)
        volume = await serving(host)
        other = next(m.node for m in volume.members if m.node != "a")
        third = next(name for name in "bc" if name != other)
        row = {"volume": "db", "state": "in-sync", "why_not": ""}
        assert await md.drain_plan(NodeName("a")) == [
            {**row, "role": "primary", "promote": other, "copy_to": third}
        ]
        assert await md.drain_plan(other) == [
            {**row, "role": "replica", "promote": None, "copy_to": third}
        ]
        assert await md.drain_plan(NodeName(third)) == []
        host.kept = {third}
        assert "it is cordoned" in (await md.drain_plan(other))[0]["why_not"]
        with pytest.raises(ConflictError, match="No other node can take") as refused:
            await md.evict("db", other)
        assert f"{third}: it is cordoned" in (refused.value.hint or "")

    story(test)


@pytest.mark.parametrize(
    ("ports", "told"), [((), "has no address"), (("rdma://192.0.2.1:4421",), "a cannot do RDMA")]
)
def test_no_copy_goes_where_its_user_could_not_reach_it(ports: tuple[str, ...], told: str) -> None:
    async def test(md: MdReplicator, host: Host) -> None:
        for name in "bc":
            entry = await host.store.get(f"{NODES}{name}")
            assert entry is not None
            node = attrs.evolve(MdNode.from_bytes(entry.value), ports=ports)
            await host.store.compare_and_set(entry.key, node.to_bytes(), entry.version)
        with pytest.raises(ConflictError, match="wants 2 copies") as refused:
            await md.create(REQUEST)
        assert told in (refused.value.hint or "")
        await md.create({**REQUEST, "replicas": 0})

    story(test)


def test_a_striped_volume_does_not_grow() -> None:
    async def test(md: MdReplicator, _host: Host) -> None:
        await md.create({**REQUEST, "replicator_options": {"drivesPerCopy": 2}})
        with pytest.raises(ConflictError, match="striped"):
            await md.change("db", {"size_bytes": 2 * GIB})

    story(test)


@pytest.mark.skipif(
    next(machine.lacks(MdOptions()), None) is None, reason="nothing is lacking here"
)
def test_a_machine_that_lacks_something_says_so_and_takes_no_members() -> None:
    async def test(md: MdReplicator, host: Host) -> None:
        await md.agent.reconcile()
        entry = await host.store.get(f"{NODES}x")
        assert entry is not None
        lacks = MdNode.from_bytes(entry.value).lacks
        assert lacks == " ".join(MdReplicatorDriver.lacks()[0])
        with pytest.raises(ConflictError) as refused:
            await md.create({**REQUEST, "primary_node": "x"})
        assert lacks.rstrip(".") in refused.value.message
        assert md.agent.steps_done == 0
        told = " ".join(sentence for sentence, _ in MdReplicatorDriver.lacks())
        assert ("no RDMA device" in told) != machine.has_rdma()

    story(test)
