"""The md replicator's plans, without a kernel: a small world carries steps out as MD would.

The world keeps what the real one keeps: slices per node, exports, imports, arrays with their legs. A
step that the real kernel would refuse is an assertion here.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import attrs
import pytest

from holdfast.interfaces.policy import Policy
from holdfast.kernel import registry
from holdfast.units import MIB, NodeName
from holdfast_transport_nvmeof.kernel.fabrics import FoundController
from holdfast_transport_nvmeof.kernel.slices import Slice
from holdfast_transport_nvmeof.kernel.steps import Run, Step, Write
from holdfast_transport_nvmeof.kernel.target import Port
from holdfast_transport_nvmeof.md.consuming import imports, plan_consuming
from holdfast_transport_nvmeof.md.draining import plan_draining
from holdfast_transport_nvmeof.md.members import User, devices_of
from holdfast_transport_nvmeof.md.model import (
    DATA_OFFSET_BYTES,
    MdMember,
    MdNode,
    MdVolume,
    MemberState,
    nqn_of,
)
from holdfast_transport_nvmeof.md.observed import Array, Leg, Observed
from holdfast_transport_nvmeof.md.placing import first_members
from holdfast_transport_nvmeof.md.plan import Plan
from holdfast_transport_nvmeof.md.providing import Home, exports, plan_providing

SIZE = 64 * MIB
PORT = Port("tcp", "192.0.2.1", "4420")


def policy(name: str = "alwayson") -> Policy:
    driver = registry.load("policy", name)
    made: Policy = driver(driver.Options())
    return made


@attrs.define
class World:
    """Three or more nodes, one volume."""

    volume: MdVolume
    nodes: tuple[str, ...] = ("a", "b", "c", "d")
    now: float = 1000.0
    slices: dict[str, tuple[str, int]] = attrs.field(factory=dict)
    """By member id: its node and size."""
    arrays: dict[str, dict[str, Leg]] = attrs.field(factory=dict)
    """By node: the legs by member id, of the one volume."""
    down: set[str] = attrs.field(factory=set)
    draining: set[str] = attrs.field(factory=set)
    component: int = 0
    held: bool = False
    frozen: bool = False
    policy: Policy = attrs.field(factory=policy)
    history: list[Plan] = attrs.field(factory=list)
    roomy: bool = True
    """Members can grow where they are."""
    busy_syncing: bool = False
    """MD never ends a sync while this is set."""

    def known(self) -> dict[NodeName, MdNode]:
        free = tuple((1 << 40, 4096) for _ in range(4))
        return {
            NodeName(n): MdNode(NodeName(n), f"host:{n}", (str(PORT),), free=free)
            for n in self.nodes
            if n not in self.down
        }

    def device(self, member: str, node: str) -> str:
        return f"/dev/part-{member}" if self.slices[member][0] == node else f"/dev/nvme-{member}"

    def seen(self, node: str) -> Observed:
        home = Home("lab", NodeName(node), (PORT,))
        mine = {
            member: Slice(
                member, f"/dev/part-{member}", f"holdfast-{member}", size,
                f"/files/holdfast-{member}.img", room_bytes=1 << 40 if self.roomy else size,
                use="held by md100" if member in self.arrays.get(node, {}) else "",
            )
            for member, (owner, size) in self.slices.items()
            if owner == node
        }  # fmt: skip
        bare = Observed(self.now, mine)
        user = User("lab", NodeName(node))
        allowed = self.exported(node)
        controllers = tuple(
            FoundController(f"nvme{i}", each.nqn, each.port, "", "live", f"/dev/nvme-{member}",
                            self.slices[member][1])
            for i, each in enumerate(imports([self.volume], user, bare))
            for member in [each.nqn.rpartition(":")[2]]
            if member in allowed
        )  # fmt: skip
        assert home.node == node
        arrays = {}
        if node in self.arrays:
            legs = tuple(
                attrs.evolve(leg, there=leg.there and (member in allowed or member in mine))
                for member, leg in self.arrays[node].items()
            )
            arrays[self.volume.array_uuid] = Array(
                "/dev/md100", self.volume.array_uuid, "raid1", self.volume.slots, self.component, legs,
                held=self.held,
            )  # fmt: skip
        return attrs.evolve(bare, controllers=controllers, arrays=arrays)

    def free_slot(self, node: str) -> int:
        """Where MD itself puts a spare."""
        used = {leg.slot for leg in self.arrays[node].values()}
        return next((slot for slot in range(self.volume.slots) if slot not in used), -1)

    def exported(self, to: str) -> set[str]:
        """Members whose living nodes let `to` in."""
        found = set()
        for node in set(self.nodes) - self.down - {to}:
            home = Home("lab", NodeName(node), (PORT,))
            mine = {
                member: Slice(member, "/dev/x", "holdfast-x", size, "d", 1, 0,
                              "held" if member in self.arrays.get(node, {}) else "")
                for member, (owner, size) in self.slices.items()
                if owner == node
            }  # fmt: skip
            for each in exports([self.volume], home, Observed(self.now, mine)):
                if each.host.endswith(f":{to}"):
                    found.add(each.uuid)
        return found

    def step(self) -> bool:
        """Let each living node carry out one plan; return whether there was any."""
        done = False
        for node in sorted(set(self.nodes) - self.down):
            seen = self.seen(node)
            home = Home("lab", NodeName(node), (PORT,), folder="/files")
            plan = plan_providing(self.volume, home, seen, self.known())
            if plan is None:
                user = User("lab", NodeName(node))
                plan = plan_consuming(self.volume, user, seen, self.known(), self.policy)
            if plan is None and node in self.draining:
                takers = {n: each for n, each in self.known().items() if n not in self.draining}
                plan = plan_draining(self.volume, NodeName(node), takers, self.now)
            if plan is not None:
                self.carry_out(node, plan)
                done = True
            assert len(self.arrays) <= 1 or self.down, "two nodes have the array"
        return done

    def settle(self) -> None:
        for _ in range(300):
            moved = self.step()
            if not self.busy_syncing:
                for legs in self.arrays.values():
                    for member, leg in legs.items():
                        if leg.slot >= 0 and not leg.faulty:
                            legs[member] = attrs.evolve(leg, in_sync=True)
            if not moved and not self.step():
                return
        raise AssertionError([plan.why for plan in self.history[-12:]])

    def carry_out(self, node: str, plan: Plan) -> None:
        self.history.append(plan)
        if plan.claim is not None:
            self.volume = plan.claim
            return
        for step in plan.steps:
            self.do(node, step)
        if plan.after is not None:
            self.volume = plan.after

    def do(self, node: str, step: Step) -> None:
        match step:
            case Run(("truncate", size, file)):
                member = file.rpartition("holdfast-")[2].removesuffix(".img")
                self.slices[member] = (node, int(size.removeprefix("--size=")))
            case Run(("mdadm", "--create", *rest)):
                assert self.volume.active == node
                self.component = self.volume.component_bytes
                names = rest[-self.volume.slots :]
                legs = {
                    self.member(name): Leg(name, slot, in_sync=True)
                    for slot, name in enumerate(names)
                    if name != "missing"
                }
                self.arrays[node] = legs
            case Run(("mdadm", "--assemble", _, *rest)):
                assert self.volume.active == node, "assembled without being active"
                devices = [word for word in rest if word.startswith("/dev/")]
                slots = {m.id: m.slot for m in self.volume.members}
                self.arrays[node] = {
                    self.member(d): Leg(d, slots[self.member(d)], in_sync=True) for d in devices
                }
            case Run(("mdadm", "--stop", *_)):
                del self.arrays[node]
            case Run(("mdadm", "--manage", _, _, *words)) if {"--re-add", "--add"} & set(words):
                for device in (word for word in words if word.startswith("/dev/")):
                    assert self.member(device) not in self.arrays[node]
                    self.arrays[node][self.member(device)] = Leg(
                        device, -1 if self.frozen else self.free_slot(node), in_sync=False
                    )
            case Write(path, text) if path.endswith("/slot"):
                assert self.frozen
                device = path.rpartition("/dev-")[2].removesuffix("/slot")
                legs = self.arrays[node]
                assert int(text) not in {leg.slot for leg in legs.values()}
                legs[self.member(device)] = attrs.evolve(legs[self.member(device)], slot=int(text))
            case Write(path, text) if path.endswith("sync_action"):
                self.frozen = text == "frozen"
            case Run(("mdadm", "--manage", _, _, "--replace", old, "--with", new)):
                legs = self.arrays[node]
                gone = legs[self.member(old)]
                legs[self.member(new)] = Leg(new, gone.slot, in_sync=True)
                legs[self.member(old)] = attrs.evolve(gone, faulty=True, in_sync=False)
            case Run(("mdadm", "--manage", _, _, "--fail", device)):
                leg = self.arrays[node][self.member(device)]
                mirrors = range(leg.slot - leg.slot % self.volume.mirrors, leg.slot + 1)
                mirrors = range(mirrors.start, mirrors.start + self.volume.mirrors)
                assert not leg.in_sync or any(
                    each.slot in mirrors and each.in_sync and each is not leg
                    for each in self.arrays[node].values()
                ), "MD would fail the array"
            case Run(("mdadm", "--manage", _, _, "--remove", device)):
                del self.arrays[node][self.member(device)]
            case Run(("mdadm", "--grow", *_)):
                self.component = self.volume.component_bytes
            case Write(path, "remove"):
                name = path.rpartition("/dev-")[2].removesuffix("/state")
                del self.arrays[node][self.member(name)]
            case Write(path, text) if path.endswith("suspend_hi"):
                self.held = text != "0"
            case Run(("losetup", "--detach", path)):
                del self.slices[self.member(path)]
            case Run(("losetup", *_)) | Write():
                pass
            case _ if "unlink" in type(step).__name__.lower():
                pass
            case Run(argv):
                assert argv[0] in {"mdadm", "wipefs", "mkfs.xfs", "mkdir", "mount"}, argv

    @staticmethod
    def member(device: str) -> str:
        return device.rpartition("/")[2].removeprefix("part-").removeprefix("nvme-")

    def lose(self, node: str) -> None:
        """The node's machine is gone."""
        self.down.add(node)
        self.arrays.pop(node, None)

    def whys(self) -> list[str]:
        return [plan.why for plan in self.history]


def world(
    copies: int = 2,
    drives: int = 1,
    nodes: tuple[str, ...] = ("a", "b", "c", "d"),
    **fields: object,
) -> World:
    ids = (f"{i:08d}-0000-4000-8000-000000000000" for i in itertools.count(1))
    volume = MdVolume(
        "0" * 32, "db", SIZE * drives, copies, drives, filesystem="none", consumer=NodeName("a")
    )
    made = World(attrs.evolve(volume, **fields), nodes)  # type: ignore[arg-type]
    made.volume = first_members(made.volume, made.known(), made.now, lambda: next(ids))
    return made


def states(made: World) -> Mapping[str, str]:
    return {m.node: m.state.value for m in made.volume.members}


@pytest.mark.parametrize(
    ("copies", "drives", "members", "slots"),
    [(1, 1, 1, 2), (2, 1, 2, 2), (3, 1, 3, 3), (2, 2, 4, 4), (1, 2, 2, 4), (3, 2, 6, 6)],
)
def test_copies_and_drives_make_the_array(
    copies: int, drives: int, members: int, slots: int
) -> None:
    made = world(copies, drives)
    made.settle()
    create = next(
        step.argv
        for plan in made.history
        for step in plan.steps
        if isinstance(step, Run) and step.argv[:2] == ("mdadm", "--create")
    )
    assert f"--raid-devices={slots}" in create
    assert ("--level=1" if drives == 1 else "--level=10") in create
    assert create[-slots:].count("missing") == slots - members
    assert {"--assume-clean", "--bitmap=internal", "--failfast"} <= set(create)
    assert all(m.state is MemberState.SYNCED for m in made.volume.members)
    # Mirrors stand side by side, each on a node of its own.
    for first in range(0, slots, max(copies, 2)):
        nodes = [
            m.node
            for m in made.volume.members
            if m.slot // max(copies, 2) == first // max(copies, 2)
        ]
        assert len(set(nodes)) == len(nodes) == copies
        assert nodes[0] == "a"


def test_a_member_that_returns_in_time_comes_back_by_the_bitmap() -> None:
    made = world()
    made.settle()
    other = made.volume.members[1].node
    made.lose(other)
    made.settle()
    assert states(made)[other] == "missing"
    made.now += 800
    made.down.clear()
    made.settle()
    assert set(states(made).values()) == {"synced"}
    steps = [s for plan in made.history for s in plan.steps if isinstance(s, Run)]
    assert sum("--re-add" in s.argv for s in steps) == 1
    assert not any(s.argv[0] == "wipefs" for s in steps)


def test_a_member_that_stays_away_is_replaced_and_its_slice_removed_when_it_returns() -> None:
    made = world()
    made.settle()
    other = made.volume.members[1]
    made.lose(other.node)
    made.settle()
    made.now += 899
    made.settle()
    assert len(made.volume.members) == 2
    made.now += 2
    made.settle()
    kept = {m.node: m.state for m in made.volume.members}
    assert kept.pop(other.node) is MemberState.FAULTY
    assert set(kept.values()) == {MemberState.SYNCED}
    assert len(kept) == 2
    made.down.clear()
    made.settle()
    assert made.volume.member(other.id) is None
    assert set(states(made).values()) == {"synced"}


@pytest.mark.parametrize("copies", [1, 2])
def test_a_volume_moves_to_a_node_without_a_copy(copies: int) -> None:
    made = world(copies)
    made.settle()
    epoch = made.volume.epoch
    made.volume = attrs.evolve(made.volume, consumer=NodeName("d"))
    made.settle()
    assert made.volume.active == "d"
    assert made.volume.epoch > epoch
    assert "d" in states(made)
    assert "a" not in states(made), "the former user's copy made room"
    assert len(made.volume.members) == copies
    assert set(made.arrays) == {"d"}


def test_two_nodes_never_have_the_array_while_it_wanders() -> None:
    made = world()
    made.settle()
    for node in ("b", "c", "d", "a", "c"):
        made.volume = attrs.evolve(made.volume, consumer=NodeName(node))
        made.settle()
        assert set(made.arrays) == {node}, made.whys()[-5:]


def test_an_array_is_not_started_without_a_member_that_is_in_sync_by_the_record() -> None:
    """MD may have acknowledged writes to it alone in its last moments (the record came too late)."""
    made = world()
    made.settle()
    made.lose("a")
    made.volume = attrs.evolve(
        made.volume, active=NodeName(""), consumer=made.volume.members[1].node
    )
    made.settle()
    assert not made.arrays
    made.volume = attrs.evolve(made.volume, force=True)
    made.settle()
    assert set(made.arrays) == {made.volume.consumer}
    lost = next(m for m in made.volume.members if m.node == "a")
    assert lost.whole
    made.down.clear()
    made.settle()
    wiped = [s.argv for p in made.history for s in p.steps if isinstance(s, Run)]
    assert any(argv[0] == "wipefs" for argv in wiped), "never by the bitmap"


def test_a_node_that_finds_itself_deposed_lets_go_first() -> None:
    made = world()
    made.settle()
    made.volume = attrs.evolve(made.volume, active=NodeName("b"), consumer=NodeName("b"))
    plan = plan_consuming(
        made.volume, User("lab", NodeName("a")), made.seen("a"), made.known(), policy()
    )
    assert plan is not None
    assert [s.argv[:2] for s in plan.steps if isinstance(s, Run)] == [("mdadm", "--stop")]
    assert plan.after is None, "the record is the other's"


def test_only_the_user_of_a_volume_may_reach_its_members() -> None:
    made = world(copies=3)
    made.settle()
    user = made.volume.active
    for node in made.nodes:
        assert bool(made.exported(node)) == (node == user)
    # While one lets go and another waits, the members are still the former one's.
    made.volume = attrs.evolve(made.volume, consumer=NodeName("d"))
    assert made.exported(user)
    assert not made.exported("d")


def test_a_daemon_that_starts_anew_adopts_what_runs() -> None:
    made = world()
    made.settle()
    before = len(made.history)
    assert not made.step()
    assert len(made.history) == before


@pytest.mark.parametrize("roomy", [True, False])
def test_a_volume_grows_with_its_members(roomy: bool) -> None:
    made = world()
    made.settle()
    before = {m.id for m in made.volume.members}
    made.roomy = roomy
    made.volume = attrs.evolve(made.volume, size_bytes=2 * SIZE)
    made.settle()
    assert made.component == 2 * SIZE
    assert all(m.size_bytes >= made.volume.member_bytes for m in made.volume.members)
    assert (before == {m.id for m in made.volume.members}) == roomy
    assert len(made.volume.members) == 2


def test_the_kernel_takes_note_of_a_growth_that_a_crash_cut_short() -> None:
    made = world()
    made.settle()
    made.volume = attrs.evolve(made.volume, size_bytes=2 * SIZE)
    for member, (node, _) in made.slices.items():
        made.slices[member] = (node, made.volume.member_bytes)
    before = len(made.history)
    made.settle()
    steps = [step for plan in made.history[before:] for step in plan.steps]
    noted = {
        step.argv[-1] for step in steps if isinstance(step, Run) and "--set-capacity" in step.argv
    }
    assert noted == {f"/dev/part-{m.id}" for m in made.volume.members}
    assert made.component == 2 * SIZE


def test_the_policy_holds_writes_and_lets_them_go() -> None:
    made = world(policy="hard")
    made.policy = policy("hard")
    made.settle()
    assert not made.held
    made.down |= {"b", "c", "d"}
    made.settle()
    assert not made.held, "the grace has begun"
    made.now += 91
    made.settle()
    assert made.held
    assert made.volume.access == "read-only"
    made.down.clear()
    made.settle()
    made.volume = attrs.evolve(made.volume, anew=True)
    made.settle()
    assert not made.held
    assert made.volume.access == "read-write"


@pytest.mark.parametrize("copies", [1, 2, 3])
def test_a_deleted_volume_leaves_nothing(copies: int) -> None:
    made = world(copies)
    made.settle()
    made.volume = attrs.evolve(made.volume, deleting=True, consumer=NodeName(""))
    ended = False
    for _ in range(50):
        made.step()
        ended = ended or made.history[-1].ends
    assert ended
    assert not made.arrays
    assert not made.volume.members


ORDERS = list(itertools.permutations(("lose b", "lose c", "back", "late"), 3))


@pytest.mark.parametrize("order", ORDERS, ids="-".join)
def test_whatever_happens_to_others_three_copies_come_back(order: tuple[str, ...]) -> None:
    made = world(copies=3)
    made.settle()
    for event in order:
        if event.startswith("lose"):
            made.lose(event.removeprefix("lose "))
        elif event == "back":
            made.down.clear()
        else:
            made.now += 1000
        made.settle()
        assert any(leg.in_sync for leg in made.arrays["a"].values())
    made.down.clear()
    made.settle()
    made.now += 1000
    made.settle()
    live = [m for m in made.volume.members if m.state is MemberState.SYNCED]
    assert len(live) == len(made.volume.members) == 3
    assert len({m.node for m in live}) == 3


def test_records_survive_json() -> None:
    made = world(copies=2, drives=2)
    made.settle()
    assert MdVolume.from_bytes(made.volume.to_bytes()) == made.volume
    for node in made.known().values():
        assert MdNode.from_bytes(node.to_bytes()) == node


def test_a_member_is_found_by_its_controller() -> None:
    volume = attrs.evolve(world().volume, members=(MdMember("m", 0, NodeName("b")),))
    found = FoundController("nvme0", nqn_of("lab", "b", "m"), PORT, "", "connecting", "/dev/n", 9)
    seen = Observed(0.0, controllers=(found,))
    user = User("lab", NodeName("a"))
    assert devices_of(volume, user, seen) == {}
    assert devices_of(volume, user, seen, live=False) == {"m": ("/dev/n", 9)}
    assert DATA_OFFSET_BYTES == 16 * MIB


@pytest.mark.parametrize(("copies", "drives"), [(1, 1), (2, 1), (3, 1), (2, 2)])
def test_a_drained_node_has_nothing_of_a_volume_in_the_end(copies: int, drives: int) -> None:
    made = world(copies, drives)
    made.settle()
    for node in ("a", "b"):
        made.draining = {node}
        made.settle()
        assert node not in states(made)
        assert node not in {made.volume.consumer, made.volume.active}
        assert set(states(made).values()) == {"synced"}
        assert len(made.volume.members) == copies * drives
    assert not [why for why in made.whys() if "missing" in why]


def members_of(made: World, node: str) -> list[MdMember]:
    return [m for m in made.volume.members if m.node == node]


def test_both_drives_of_a_lost_node_return_to_raid10_together() -> None:
    """Some kernels forget what a second member lacks once they have recovered the first."""
    made = world(2, 2)
    made.settle()
    made.lose("b")
    made.settle()
    assert {m.state for m in members_of(made, "b")} == {MemberState.MISSING}
    made.down.clear()
    made.settle()
    adds = [
        s.argv for p in made.history for s in p.steps if isinstance(s, Run) if "--re-add" in s.argv
    ]
    assert len(adds) == 1
    assert len([word for word in adds[0] if word.startswith("/dev/nvme")]) == 2
    assert set(states(made).values()) == {"synced"}


def test_what_stays_away_while_raid10_recovers_another_is_synced_as_a_whole() -> None:
    made = world(2, 2, nodes=("a", "b"))
    made.settle()
    first, second = members_of(made, "b")
    made.lose("b")
    made.settle()
    # Only one of its drives has come back with it.
    kept = made.slices.pop(second.id)
    made.down.clear()
    made.settle()
    assert made.volume.member(first.id).state is MemberState.SYNCED  # type: ignore[union-attr]
    away = made.volume.member(second.id)
    assert away is not None
    assert (away.state, away.whole) == (MemberState.MISSING, True)
    noted = next(
        i for i, p in enumerate(made.history) if p.claim and p.claim.member(second.id) == away
    )
    recovered = next(i for i, p in enumerate(made.history) if p.kind == "returned")
    assert noted < recovered, "it is written down before the bitmap forgets"
    made.slices[second.id] = kept
    made.settle()
    assert set(states(made).values()) == {"synced"}
    wiped = [
        s.argv for p in made.history for s in p.steps if isinstance(s, Run) if s.argv[0] == "wipefs"
    ]
    assert len(wiped) == 1


def test_a_member_lost_while_raid10_recovers_another_is_synced_as_a_whole() -> None:
    made = world(2, 2, nodes=("a", "b"))
    made.settle()
    first, second = members_of(made, "b")
    made.lose("b")
    made.settle()
    made.busy_syncing = True
    made.down.clear()
    made.settle()
    kept = made.slices.pop(second.id)
    made.settle()
    away = made.volume.member(second.id)
    assert away is not None
    assert (away.state, away.whole) == (MemberState.MISSING, True)
    made.slices[second.id] = kept
    made.settle()
    assert away.id not in {m.id for m in made.volume.members if m.state is MemberState.SYNCING}, (
        "it waits"
    )
    made.busy_syncing = False
    made.settle()
    assert set(states(made).values()) == {"synced"}
    assert made.volume.member(first.id) is not None


def test_replacements_in_raid10_stand_beside_a_copy_on_another_node() -> None:
    made = world(2, 2, nodes=("a", "b", "c", "d", "e"))
    made.settle()
    for lost in (("b",), ("b", "a")):
        made.volume = attrs.evolve(made.volume, consumer=NodeName("c"))
        made.settle()
        for node in lost:
            made.lose(node)
        made.settle()
        made.now += 1000
        made.settle()
        made.down.clear()
        made.settle()
        nodes = {m.id: m.node for m in made.volume.members}
        legs = made.arrays["c"]
        assert len(legs) == 4
        for first in (0, 2):
            beside = {nodes[id_] for id_, leg in legs.items() if leg.slot in {first, first + 1}}
            assert len(beside) == 2, (lost, legs, nodes)


def test_a_striped_volume_with_one_copy_moves_without_losing_a_stripe() -> None:
    made = world(1, 2)
    made.settle()
    made.volume = attrs.evolve(made.volume, consumer=NodeName("d"))
    made.settle()
    assert states(made) == {"d": "synced"}
    assert {leg.slot // 2 for leg in made.arrays["d"].values()} == {0, 1}


def test_an_array_made_right_before_a_crash_is_not_made_again() -> None:
    made = world()
    made.settle()
    before = made.volume
    members = tuple(attrs.evolve(m, state=MemberState.CREATED) for m in before.members)
    made.volume = attrs.evolve(before, created=False, members=members)
    made.settle()
    assert made.volume.created
    assert set(states(made).values()) == {"synced"}
    creates = [
        s for p in made.history for s in p.steps if isinstance(s, Run) and "--create" in s.argv
    ]
    assert len(creates) == 1


@pytest.mark.parametrize(("copies", "drives"), [(2, 1), (2, 2)])
def test_a_member_added_right_before_a_crash_is_not_waited_for(copies: int, drives: int) -> None:
    made = world(copies, drives)
    made.settle()
    made.lose("b")
    made.settle()
    made.busy_syncing = True
    made.down.clear()
    made.settle()
    for state in (MemberState.MISSING, MemberState.CREATED):
        syncing = [m for m in made.volume.members if m.state is MemberState.SYNCING]
        assert len(syncing) == drives
        for member in syncing:
            made.volume = made.volume.with_member(attrs.evolve(member, state=state, whole=True))
        made.settle()
    made.busy_syncing = False
    made.settle()
    assert set(states(made).values()) == {"synced"}


def test_an_array_left_from_before_a_takeover_is_stopped_not_taken_up() -> None:
    made = world()
    made.settle()
    stale = dict(made.arrays["a"])
    members = tuple(
        attrs.evolve(m, state=MemberState.MISSING, whole=True) if m.node == "a" else m
        for m in made.volume.members
    )
    other = next(m for m in members if m.node != "a")
    del stale[other.id]
    made.arrays["a"] = stale
    made.volume = attrs.evolve(made.volume, active=NodeName(""), members=members)
    plan = plan_consuming(
        made.volume, User("lab", NodeName("a")), made.seen("a"), made.known(), policy()
    )
    assert plan is not None
    assert [s.argv[:2] for s in plan.steps if isinstance(s, Run)] == [("mdadm", "--stop")]


def test_who_lets_go_says_first_which_members_lack_something() -> None:
    made = world()
    made.settle()
    other = made.volume.members[1]
    made.lose(other.node)
    made.volume = attrs.evolve(made.volume, consumer=NodeName("d"))
    made.step()
    assert made.volume.active == "a"
    assert states(made)[other.node] == "missing"
    made.step()
    assert made.volume.active != "a"


def test_a_member_that_was_replaced_is_not_told_as_missing() -> None:
    made = world()
    made.settle()
    made.volume = attrs.evolve(made.volume, consumer=NodeName("d"))
    made.settle()
    assert not [why for why in made.whys() if "missing" in why]
