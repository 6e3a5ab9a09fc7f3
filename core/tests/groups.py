"""One group of real member machines in virtual time, with a hand on nodes, clock and consumer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from holdfast.interfaces.policy import Policy
from holdfast.messages import Reply, Request, RequestKind
from holdfast.model import Access, CopyState, GroupRecord, NodeRecord, VolumeSpec
from holdfast.node.explain import explain
from holdfast.node.service import Json
from holdfast.node.status import volume_status
from holdfast.sync import events as ev
from holdfast.sync.member import GroupMember
from holdfast.testing.simulation.pump import Pump
from holdfast.testing.simulation.workload import Asked, Client
from holdfast.testing.simulation.world import Config, World
from holdfast.units import BLOCK_BYTES, MIB, NodeName, VolumeId
from holdfast_policy import (
    AlwaysOnPolicy,
    HardPolicy,
    SoftPolicy,
    ThresholdPolicy,
    V1AlwaysOnPolicy,
    V1HardPolicy,
    V1SoftPolicy,
)

VOLUME = VolumeId("v1")
_POLICIES: dict[str, Any] = {
    policy.name: policy
    for policy in (
        AlwaysOnPolicy,
        HardPolicy,
        SoftPolicy,
        ThresholdPolicy,
        V1AlwaysOnPolicy,
        V1HardPolicy,
        V1SoftPolicy,
    )
}
FOREVER = 1e9


def policy_of(spec: VolumeSpec) -> Policy:
    """Return the policy that a specification names."""
    driver = _POLICIES.get(spec.policy, AlwaysOnPolicy)
    made: Policy = driver(driver.Options(**spec.policy_options))
    return made


class _Consumer(Client):
    """A consumer whose replies a test looks at."""

    replies: list[Reply]

    def on_replies(self, replies: Sequence[Reply]) -> None:
        for reply in replies:
            self.asked.pop(reply.id, None)
        self.replies.extend(replies)


class Attached:
    """A consumer at one node that asks for one thing at a time."""

    def __init__(self, group: Group, node: NodeName) -> None:
        process = group.world.machines[node].process
        assert process is not None
        self.group = group
        self.replies: list[Reply] = []
        self.asked = 0
        self.client = _Consumer(process, VOLUME, group.world.loads[VOLUME])
        self.client.replies = self.replies
        process.clients.setdefault(VOLUME, []).append(self.client)
        self.client._new_session()
        group.until(lambda: self.is_open, "the session")

    @property
    def is_open(self) -> bool:
        session = self.client.session
        return session is not None and session.phase.value == "open"

    @property
    def access(self) -> Access:
        assert self.client.session is not None
        return self.client.session.access

    @property
    def size_bytes(self) -> int:
        assert self.client.session is not None
        return self.client.session.size_bytes

    def ask(
        self, kind: RequestKind, offset: int = 0, data: bytes = b"", *, length: int = BLOCK_BYTES
    ) -> int:
        """Send a request and return its id, without waiting."""
        assert self.client.session is not None
        self.asked += 1
        length = len(data) if kind is RequestKind.WRITE else length
        request = Request(self.asked, int(kind), 0, offset, length, data)
        session = self.client.session.hello.session
        self.client.asked[request.id] = Asked(request, session, self.group.world.history.tick(), [])
        self.client.submit([request])
        return self.asked

    def answer(self, request_id: int, within_s: float = 20.0) -> Reply:
        """Wait for the reply to a request."""
        self.group.until(lambda: any(r.id == request_id for r in self.replies), "a reply", within_s)
        return next(r for r in self.replies if r.id == request_id)

    def write(self, offset: int = 0, fill: bytes = b"x") -> int:
        """Write a block and return the errno."""
        return self.answer(self.ask(RequestKind.WRITE, offset, fill * BLOCK_BYTES)).errno

    def read(self, offset: int = 0) -> Reply:
        """Read a block."""
        return self.answer(self.ask(RequestKind.READ, offset))

    def waits(self, request_id: int) -> bool:
        """Whether a request has not been answered."""
        return all(r.id != request_id for r in self.replies)

    def detach_at_once(self) -> None:
        """Give the session up without waiting for the record to say so."""
        if self.client.session is not None:
            self.client._do(self.client.session.close())
        self.client.process.clients[VOLUME].remove(self.client)

    def detach(self) -> None:
        """Give the session up in order."""
        self.detach_at_once()
        self.group.until(lambda: not self.group.record.attached_session, "the end of the session")


class Group:
    """A volume `v1` in a cluster of its own."""

    def __init__(
        self,
        replicas: int,
        policy: str = "alwayson",
        *,
        nodes: int | None = None,
        size_bytes: int = MIB,
        seed: int = 1,
        options: Mapping[str, Any] | None = None,
        **more: Any,
    ) -> None:
        self.world = World(
            Config(
                seed=seed,
                nodes=replicas + 1 if nodes is None else nodes,
                replicas=replicas,
                size_bytes=size_bytes,
                clients=0,
                policy_of=policy_of,
                skew=0.0,
            )
        )
        self.world.load_on = False
        self.until(lambda: VOLUME in self.world.store.specs, "the volume")
        self.change(policy=policy, policy_options={**(options or {}), **more})
        self.until_healthy()

    # -- looking ----------------------------------------------------------------------------------

    @property
    def record(self) -> GroupRecord:
        return self.world.store.records[VOLUME][0]

    @property
    def spec(self) -> VolumeSpec:
        return self.world.store.specs[VOLUME]

    @property
    def primary_node(self) -> NodeName:
        return self.record.primary_member.node

    @property
    def replica_nodes(self) -> list[NodeName]:
        return [m.node for m in self.record.members if m.copy != self.record.primary]

    @property
    def pump(self) -> Pump | None:
        """The pump of the copy that the record calls primary."""
        process = self.world.machines[self.primary_node].process
        return None if process is None else process.pumps.get(VOLUME)

    @property
    def member(self) -> GroupMember | None:
        return None if self.pump is None else self.pump.member

    @property
    def serves(self) -> bool:
        member = self.member
        return member is not None and member.primary is not None and member.primary.serving

    @property
    def online(self) -> int:
        return sum(
            m.state is not CopyState.OFFLINE and m.copy != self.record.primary
            for m in self.record.members
        )

    @property
    def wall(self) -> float:
        """Unix seconds at the primary."""
        return self.world.machines[self.primary_node].clock.instant(self.world.now).wall

    @property
    def alive(self) -> dict[NodeName, NodeRecord]:
        return {name: node for name, (node, _) in self.world.store.nodes.items()}

    def status(self, *, silent: bool = False) -> Json:
        return volume_status(self.spec, self.record, self.alive, self.member, silent=silent)

    def explain(self, *, silent: bool = False) -> Json:
        return explain(
            self.spec,
            self.record,
            self.alive,
            self.member,
            policy_of(self.spec),
            now=self.wall,
            silent=silent,
        )

    def notes(self, kind: str) -> list[str]:
        """Return what was noted of a kind, oldest first."""
        return [line for line in self.world.lines if " note " in line and f" {kind} " in line]

    # -- doing ------------------------------------------------------------------------------------

    def run(self, seconds: float) -> None:
        self.world.run(self.world.now + seconds)

    def until(
        self,
        condition: Callable[[], bool],
        what: str = "it",
        within_s: float = 60.0,
        step_s: float = 0.05,
    ) -> None:
        limit = self.world.now + within_s
        while not condition():
            assert self.world.now < limit, f"no {what} within {within_s:g} s; {self.record}"
            self.run(step_s)

    def until_healthy(self, within_s: float = 60.0) -> None:
        self.until(lambda: self.world.is_healthy(VOLUME), "health", within_s)

    def change(self, **changes: Any) -> None:
        self.world.store.change_spec(VOLUME, **changes)

    def kill(self, *nodes: NodeName) -> None:
        """Kill nodes; they stay down until `start`."""
        for node in nodes:
            machine = self.world.machines[node]
            machine.down_until = FOREVER
            machine.kill()

    def start(self, *nodes: NodeName) -> None:
        for node in nodes:
            machine = self.world.machines[node]
            machine.down_until = 0.0
            machine.start()

    def wipe(self, node: NodeName) -> None:
        """Empty the disk of a node that is down."""
        self.world.machines[node].copies.clear()

    def feed(self, event: ev.Event) -> None:
        """Give the primary an event."""
        assert self.pump is not None
        self.pump.feed(event)

    def attach(self, node: NodeName | None = None) -> Attached:
        return Attached(self, self.primary_node if node is None else node)

    def attach_anew(self) -> None:
        """Attach once more and leave again."""
        self.attach().detach()

    def content(self, node: NodeName) -> dict[int, bytes]:
        """Return the blocks of a node's copy that are not zeros."""
        cache = self.world.machines[node].copies[VOLUME].cache
        return {number: block for number, block in cache.items() if any(block)}

    def cordon(self, node: NodeName, *, cordoned: bool = True, draining: bool = False) -> None:
        machine = self.world.machines[node]
        machine.cordoned, machine.draining = cordoned, draining
        if machine.process is not None:
            machine.process.publish()
        self.run(1.0)
