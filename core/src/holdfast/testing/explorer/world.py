"""Which steps a small world may take: the abstraction that `holdfast.testing.explorer` describes."""

from __future__ import annotations

from collections.abc import Iterator

from attrs import define, field

from holdfast.model import CopyState, GroupRecord, Member, VolumeSpec
from holdfast.testing.explorer import client, site
from holdfast.testing.explorer.facts import Facts
from holdfast.testing.explorer.labels import EPOCH_FIRST, EpochMark, Name
from holdfast.testing.explorer.move import Move
from holdfast.testing.explorer.site import VOLUME, Shape, copy_name
from holdfast.testing.explorer.sites import Sites, Things
from holdfast.testing.explorer.state import Size, State, Step, awaits, pair_of
from holdfast.units import BLOCK_BYTES, Epoch, NodeName

STORE = frozenset({"ask", "told", "read", "watch"})
"""Steps at a node that the state store takes."""
PATIENT = frozenset({"timer", "dial", "reset"})
"""Steps that take their time."""


@define(eq=False)
class World:
    """All that the states of one search share."""

    size: Size
    names: tuple[NodeName, ...] = field(init=False)
    sites: Sites = field(init=False)
    clients: client.Clients = field(init=False)
    things: Things = field(factory=Things)

    def __attrs_post_init__(self) -> None:
        """Name the nodes."""
        self.names = tuple(NodeName(Name("abcdef"[i])) for i in range(self.size.copies))
        spec = VolumeSpec(
            VOLUME, VOLUME, self.size.blocks * BLOCK_BYTES, self.size.copies - 1, hash_key="0" * 64
        )
        power = "power" in self.size.kinds
        self.sites = Sites(Shape(self.size.blocks, self.size.slow, power, spec), self.things)
        self.clients = client.Clients(self.things)

    # -- beginning ---------------------------------------------------------------------------------

    def first(self) -> State:
        """Return a group in full redundancy whose consumer has opened its session."""
        members = tuple(
            Member(copy_name(name), name, CopyState.IN_SYNC, Name(f"{name}/1"))
            for name in self.names
        )
        epoch = EpochMark(EPOCH_FIRST)
        record = GroupRecord(VOLUME, Epoch(epoch), members[0].copy, members)
        count, blocks = self.size.copies, (0,) * self.size.blocks
        state = State(
            sites=tuple(
                self.sites.add(site.new_site(name, self.sites.shape.spec, epoch))
                for name in self.names
            ),
            client=self.clients.add(client.new_client()),
            record=self.things.number(record),
            version=1,
            heard=(False,) * (count + 1),
            asked=(None,) * count,
            reads=(False,) * count,
            ghosts=(),
            links=(),
            mute=(),
            blocked=(),
            late=(),
            left=0,
            submitted=0,
            acked=blocks,
            seen=blocks,
            ackers=(),
        )
        for at in range(count):
            state = self.take(state, ("start", at))
        state = self._settled(state)._replace(left=self.size.faults)
        assert self.is_at_rest(state._replace(submitted=self.size.writes)), state
        return state

    def _settled(self, state: State) -> State:
        """Take free steps, the first that leads on, until there is none."""
        been = {state}
        while True:
            for step in self.steps(state):
                after = self.take(state, step) if step[0] != "submit" else state
                if after not in been:
                    break
            else:
                return state
            been.add(after)
            state = after

    def is_at_rest(self, state: State) -> bool:
        """Return whether redundancy is back and everything was asked for and answered."""
        record: GroupRecord = self.things.values[state.record]
        facts = self.clients.facts[state.client]
        return (
            len(record.in_sync) == self.size.copies
            and state.submitted == self.size.writes
            and not facts.unanswered
            and facts.phase == "open"
            and any(self.sites.facts[s].serving for s in state.sites)
        )

    # -- what may happen ---------------------------------------------------------------------------

    def steps(self, state: State) -> Iterator[Step]:
        """Yield every step that may come next, in the order in which they are usual."""
        facts = [self.sites.facts[number] for number in state.sites]
        if state.left:
            yield from self._faults(state, facts)
        free = list(self._free(state, facts))
        ends = True
        if self.size.timers == "last":
            prompt = [step for step in free if step[0] not in PATIENT]
            if not all(self._is_late(state, step) for step in prompt):
                free, ends = prompt, False
        slept = []
        for step in free:
            if state.mute and self._is_asleep(state, step):
                slept.append(step)
            else:
                yield step
        yield from slept
        if ends:
            yield from self._ends(state, facts)

    def _free(self, state: State, facts: list[Facts]) -> Iterator[Step]:
        yield from self._on_links(state)
        yield from self._at_store(state, facts)
        yield from self._at_client(state)
        yield from self._at_sites(state, facts)

    def _is_late(self, state: State, step: Step) -> bool:
        """Whether timers may run out before this, though it may come at any moment."""
        kind = step[0]
        if kind in {"there", "back"}:
            return state.links[step[1]].late
        if kind in STORE:
            return step[1] in state.late
        if kind == "show":
            return self.size.copies in state.late
        return kind in {"ghost", "submit"}

    def _is_asleep(self, state: State, step: Step) -> bool:
        """Whether a step is one of a process that stands still, which usually is late."""
        if len(step) == 1 or step[0] in {"reset", "ask", "ghost"}:
            return False
        at = step[1]
        if step[0] in {"there", "back"}:
            link = state.links[at]
            at = link.acceptor if step[0] == "there" else link.opener
        return sum(at in pair for pair in state.mute) >= self.size.copies - 1 > 1

    def _on_links(self, state: State) -> Iterator[Step]:
        for at, link in enumerate(state.links):
            if pair_of(link.opener, link.acceptor) in state.blocked:
                yield ("reset", at)  # It times out in the end.
                continue
            if link.there:
                yield ("there", at)
            if link.back:
                yield ("back", at)

    def _at_sites(self, state: State, facts: list[Facts]) -> Iterator[Step]:
        for at, fact in enumerate(facts):
            if not fact.running:
                continue
            if fact.data:
                yield ("apply", at)
            if fact.metadata:
                yield ("save", at)
            for number in range(len(fact.beside)):
                yield ("beside", at, number)
            if fact.may_stand and self._may_fall_silent(state, facts, at):
                yield ("timer", at, "silence", fact.follows)
            for leg in fact.legs:
                other = self.at(leg.node)
                if leg.retries and (facts[other].running or not leg.gone):
                    yield ("timer", at, "retry", leg.node)
                if leg.gone:
                    yield ("timer", at, "gone", leg.node)
                if leg.reads:
                    yield ("timer", at, "reads", leg.node)
                if self._is_deaf(state, facts, at, other):
                    if leg.lost and not leg.in_sync and not facts[other].running:
                        yield ("timer", at, "lost", leg.node)
                    if leg.in_sync and (leg.leased or leg.heard):
                        yield ("timer", at, "lapse", leg.node)

    def _may_fall_silent(self, state: State, facts: list[Facts], at: int) -> bool:
        """R5's one ordering: a copy gives its primary up after the lease that it granted is over."""
        name = self.names[at]
        if any(leg.leased for fact in facts for leg in fact.legs if leg.node == name):
            return False
        follows = facts[at].follows
        if follows is None:
            return True
        other = self.at(follows)
        wanted = any(leg.wanted for leg in facts[other].legs if leg.node == name)
        return not wanted or self._is_deaf(state, facts, at, other)

    def _is_deaf(self, state: State, facts: list[Facts], one: int, other: int) -> bool:
        pair = pair_of(one, other)
        return pair in state.mute or pair in state.blocked or not facts[other].running

    def _ends(self, state: State, facts: list[Facts]) -> Iterator[Step]:
        for at, fact in enumerate(facts):
            if not fact.running:
                yield ("start", at)
        for pair in state.mute:
            yield ("unmute", pair)
        for pair in state.blocked:
            yield ("unblock", pair)

    def _at_store(self, state: State, facts: list[Facts]) -> Iterator[Step]:
        for at, asked in enumerate(state.asked):
            if asked is not None:
                yield (asked[0], at)
            if state.reads[at]:
                yield ("read", at)
            if facts[at].running and not state.heard[at]:
                yield ("watch", at)
        for at in range(len(state.ghosts)):
            yield ("ghost", at)

    def _at_client(self, state: State) -> Iterator[Step]:
        facts = self.clients.facts[state.client]
        if not state.heard[-1]:
            yield ("show",)
        if facts.seeks:
            yield ("dial",)
        write = state.submitted + 1
        if write <= self.size.writes:
            block = self.block_of(write)
            # Never two unanswered writes of one block, as file systems have it.
            if all(self.block_of(other) != block for other in facts.unanswered):
                yield ("submit",)

    def _faults(self, state: State, facts: list[Facts]) -> Iterator[Step]:
        kinds = self.size.kinds
        count = range(self.size.copies)
        for at, fact in enumerate(facts):
            if fact.running:
                for kind in ("crash", "power"):
                    if kind in kinds:
                        yield (kind, at, False)
                        if fact.data:
                            yield (kind, at, True)
                asked = state.asked[at]
                if "unsure" in kinds and asked is not None and asked[0] == "ask":
                    yield ("unsure", at)
                if "slow" in kinds:
                    yield from (("slow", at, leg.node) for leg in fact.legs if leg.waits)
                if "quiet" in kinds:
                    yield ("quiet", at)
                if "handover" in kinds and fact.serving:
                    yield ("handover", at)
        if "late" in kinds:
            yield from self._delays(state, facts)
        if "break" in kinds:
            for at, link in enumerate(state.links):
                if link.near is not None and link.far is not None:
                    yield ("break", at)
        for one in count:
            for other in range(one + 1, self.size.copies):
                for kind in ("mute", "block"):
                    if kind in kinds:
                        yield (kind, ((one, other),))
            if "mute" in kinds and self.size.copies > 2:
                # The process stands still: nobody hears it, and it hears nobody.
                yield ("mute", tuple(pair_of(one, other) for other in count if other != one))

    def _delays(self, state: State, facts: list[Facts]) -> Iterator[Step]:
        if self.size.timers == "any":
            return  # Everything is late there.
        for at, link in enumerate(state.links):
            if (link.there or link.back) and not link.late:
                yield ("late", "link", at)
        for at in range(self.size.copies + 1):
            if at not in state.late and awaits(state, at):
                yield ("late", "store", at)

    def block_of(self, write: int) -> int:
        """Return which block a write is of."""
        return (write - 1) % self.size.blocks

    def at(self, node: NodeName) -> int:
        """Return the place of a node among the sites."""
        return self.names.index(node)

    # -- taking a step -----------------------------------------------------------------------------

    def take(self, state: State, step: Step) -> State:
        """Return the state after a step; the same one when the step changes nothing."""
        move = Move(self, state)
        move.do(step)
        move.settle()
        return move.after()
