"""The invariants of the design's section 4, asked of one state of a small world."""

from __future__ import annotations

from holdfast.model import CopyState, GroupRecord
from holdfast.testing.explorer.facts import Facts
from holdfast.testing.explorer.state import State, Violated
from holdfast.testing.explorer.world import World


def check(world: World, state: State) -> State:
    """Raise `Violated` if an invariant does not hold; return the state with what reads have seen.

    Every moment is one at which somebody may read: where a primary would answer a read at once, its
    answer may not be older than what was acknowledged, or than what a read could have returned
    before (I5).
    """
    record: GroupRecord = world.things.values[state.record]
    facts = [world.sites.facts[number] for number in state.sites]
    in_sync = [
        fact
        for fact, name in zip(facts, world.names, strict=True)
        if (member := record.on_node(name)) is not None and member.state is CopyState.IN_SYNC
    ]
    sound = [fact for fact in in_sync if not fact.tainted]
    if not sound:
        # Every in-sync copy has lost power; what no flush covered was not promised (I4).
        nothing = (0,) * world.size.blocks
        return state._replace(acked=nothing, seen=nothing)
    _acknowledged(state, sound)
    _known(sound)
    _maps(world, record, facts)
    return _read(world, state, facts)


def _acknowledged(state: State, sound: list[Facts]) -> None:
    for block, newest in enumerate(state.acked):
        for fact in sound:
            if fact.holds[block] < newest:
                raise Violated(
                    "I1",
                    f"write {newest} of block {block} is acknowledged, but an in-sync copy holds "
                    f"{fact.holds[block]} (holds: {[fact.holds for fact in sound]})",
                )


def _known(sound: list[Facts]) -> None:
    if len({fact.holds for fact in sound}) > 1 and not any(fact.knows for fact in sound):
        raise Violated("I3", f"in-sync copies differ, {[f.holds for f in sound]}, and nobody knows")


def _maps(world: World, record: GroupRecord, facts: list[Facts]) -> None:
    at = world.names.index(record.primary_member.node)
    primary = facts[at]
    if not primary.serving or primary.epoch != record.epoch:
        return
    for member in record.members:
        other = facts[world.names.index(member.node)]
        if member.state is not CopyState.OFFLINE or other.tainted or other.holds == primary.holds:
            continue
        if member.copy in primary.kept and member.copy not in primary.maps:
            if not (other.knows or primary.knows):
                raise Violated(
                    "I3",
                    f"the absent copy on {member.node} holds {other.holds}, the primary "
                    f"{primary.holds}, and its dirty map is empty",
                )


def _read(world: World, state: State, facts: list[Facts]) -> State:
    seen = list(state.seen)
    for fact, name in zip(facts, world.names, strict=True):
        if fact.readable is None:
            continue
        for block, value in enumerate(fact.readable):
            if value is None:
                continue
            if value < max(seen[block], state.acked[block]):
                raise Violated(
                    "I5",
                    f"{name} reads {value} in block {block} after {max(seen[block], state.acked[block])} "
                    "was acknowledged or read",
                )
            seen[block] = value
    return state if tuple(seen) == state.seen else state._replace(seen=tuple(seen))
