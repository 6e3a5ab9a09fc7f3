"""What the steps of a search are called, for people."""

from __future__ import annotations

from holdfast.testing.explorer.state import FIN, State, Step
from holdfast.testing.explorer.world import World

_WORDS = {
    "mute": "no heartbeats between",
    "block": "partition between",
    "unmute": "heartbeats again between",
    "unblock": "no partition any longer between",
    "apply": "applies what was asked of its disk",
    "save": "saves metadata",
    "beside": "finishes a flush, read or hash",
    "timer": "runs out of patience",
    "ask": "has its compare-and-set carried out or refused",
    "told": "learns the outcome of its compare-and-set",
    "read": "reads the record",
    "watch": "is shown the record",
    "show": "the consumer is shown the record",
    "dial": "the consumer looks for the primary",
    "submit": "the consumer asks for a write",
    "start": "starts",
    "crash": "is killed",
    "power": "loses power",
    "unsure": "is not told the outcome of its compare-and-set",
    "slow": "finds a copy slow",
    "quiet": "has had no write for a while",
    "handover": "is asked to hand over",
    "nothing": "nothing more can happen",
}


def describe(world: World, state: State, step: Step) -> str:
    """Return what a step is, for people."""
    kind, *rest = step
    names = [*world.names, "the consumer"]
    if kind in {"there", "back", "break", "reset"}:
        link = state.links[rest[0]]
        ends = names[link.opener], names[link.acceptor]
        if kind in {"break", "reset"}:
            return f"the link {ends[0]}-{ends[1]} breaks"
        way = link.there if kind == "there" else link.back
        source, target = ends if kind == "there" else ends[::-1]
        return f"{target} receives from {source}: {_parcel(world, way[0])}"
    if kind in {"mute", "block", "unmute", "unblock"}:
        pairs = rest[0] if kind in {"mute", "block"} else rest
        between = ", ".join(f"{names[one]}-{names[other]}" for one, other in pairs)
        return f"{_WORDS[kind]} {between}"
    if kind == "late":
        if rest[0] == "store":
            return f"{names[rest[1]]} waits long for the store"
        link = state.links[rest[1]]
        return f"the link {names[link.opener]}-{names[link.acceptor]} is slow"
    if kind == "ghost":
        return "a compare-and-set of unknown outcome arrives"
    if not rest:
        return _WORDS[kind]
    more = "".join(f" ({part})" for part in rest[1:])
    return f"{names[rest[0]]} {_WORDS[kind]}{more}"


def _parcel(world: World, number: int) -> str:
    if number == FIN:
        return "the end of the link"
    value = world.things.values[number]
    messages = value if type(value) is tuple else (value,)
    return ", ".join(type(message).__name__ for message in messages)
