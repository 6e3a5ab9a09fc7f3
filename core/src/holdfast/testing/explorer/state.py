"""A small world as one value: what is in it, and what is on its way.

A `State` is made of numbers, of sites, of the consumer, of records and messages, so that a million of
them fit into memory and compare at once. What the numbers stand for is in `sites.py`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from attrs import frozen

FIN = 0
"""As a message on its way: the link ends here."""
FAULTS = ("crash", "power", "break", "block", "mute", "unsure", "slow", "quiet", "handover", "late")
TIMERS = ("last", "any")
SLOW = ("data", "metadata", "flushes", "reads")
DEFAULT_FAULTS = frozenset({"crash", "break", "block", "mute", "unsure", "late"})
Step = tuple[Any, ...]
Pair = tuple[int, int]


class Link(NamedTuple):
    """One link, with what is on its way in both directions."""

    opener: int
    near: int | None
    """The opener's id of it; None: its end is gone."""
    acceptor: int
    far: int | None
    """The acceptor's id of it; 0: it has not heard of it yet; None: its end is gone."""
    there: tuple[int, ...]
    back: tuple[int, ...]
    late: bool = False
    """What is on its way may take longer than a timer runs."""


class State(NamedTuple):
    """Everything that may differ between two moments of a world."""

    sites: tuple[int, ...]
    client: int
    record: int
    version: int
    heard: tuple[bool, ...]
    """Whether each site, and at the end the consumer, has been shown the record."""
    asked: tuple[Step | None, ...]
    """For each site: ("ask", record, version) on its way, or ("told", outcome, record, version)."""
    reads: tuple[bool, ...]
    ghosts: tuple[tuple[int, int], ...]
    """(record, version) of compare-and-sets of which nobody knows whether they are still coming."""
    links: tuple[Link, ...]
    mute: tuple[Pair, ...]
    """Pairs of nodes between which no heartbeat arrives in time."""
    blocked: tuple[Pair, ...]
    """Pairs of nodes between which nothing arrives."""
    late: tuple[int, ...]
    """Nodes, and at the end the consumer, whose answers from the store may take as long."""
    left: int
    """Faults that may still happen."""
    submitted: int
    acked: tuple[int, ...]
    """By block: the newest write that was acknowledged."""
    seen: tuple[int, ...]
    """By block: the newest write that a read could have returned."""
    ackers: tuple[tuple[int, int], ...]
    """(epoch, site): who has acknowledged in which epoch."""


@frozen
class Size:
    """How large a small world is."""

    copies: int = 3
    writes: int = 2
    faults: int = 1
    blocks: int = 2
    kinds: frozenset[str] = DEFAULT_FAULTS
    slow: frozenset[str] = frozenset()
    timers: str = "any"
    """`last`: they run out when nothing that is on its way is about to arrive; `any`: at any moment."""


class Violated(Exception):  # noqa: N818 (an invariant is violated; that is its name)
    """An invariant does not hold; carries its name and a sentence."""

    def __init__(self, invariant: str, sentence: str) -> None:
        """Keep the invariant's name, such as `I1`, and what was seen."""
        super().__init__(f"{invariant}: {sentence}")
        self.invariant = invariant


def pair_of(one: int, other: int) -> Pair:
    """Return two nodes in their order."""
    return (one, other) if one < other else (other, one)


def awaits(state: State, at: int) -> bool:
    """Return whether a node, or the consumer, has something to expect of the state store."""
    if not state.heard[at]:
        return True
    return at < len(state.sites) and (state.asked[at] is not None or state.reads[at])
