"""All sites ever met, by number, and what each input has made of them.

Sites are kept pickled, and what an input makes of a numbered site is worked out once: most of a search
meets the same site again with other things going on around it.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

import attrs

from holdfast.sync import events as ev
from holdfast.sync.context import MAP_TAG_BYTES
from holdfast.sync.pace import Pace
from holdfast.sync.peers import NEVER, Peers
from holdfast.testing.explorer.canon import anonymous
from holdfast.testing.explorer.facts import Facts, facts_of
from holdfast.testing.explorer.labels import TaggedMap, labels_in_bytes, tagged
from holdfast.testing.explorer.numbered import Numbered
from holdfast.testing.explorer.site import Output, Shape, Site
from holdfast.units import CopyId

LEASE_SET = 1000
"""The version of every lease set that a node would tell now."""
LEGS_MAX = 4
"""The most links that a primary of a small world may open in one step."""


class Things(Numbered):
    """Records, messages and whatever else sites put out, by number, from 1 on."""

    def __init__(self) -> None:
        """Begin with none; the number 0 is nothing's."""
        super().__init__()
        self.values: list[Any] = []
        self.number(())

    def look(self, thing: Any, _fingerprint: object) -> None:
        """Keep the thing itself: nobody changes it."""
        self.values.append(thing)

    def numbered(self, out: list[Output]) -> tuple[Output, ...]:
        """Return outputs with numbers in the place of what they carry."""
        return tuple(
            (*output[:at], self.number(output[at]), *output[at + 1 :])
            if (at := _CARRIES.get(output[0]))
            else output
            for output in out
        )


_CARRIES = {"send": 2, "open": 3, "ask": 1, "beat": 1, "answer": 1}
"""Kind of output to the place of what is numbered in it."""


class Sites(Numbered):
    """All sites ever met, by number."""

    def __init__(self, shape: Shape, things: Things) -> None:
        """Begin with none."""
        super().__init__()
        self.shape = shape
        self.things = things
        self.facts: list[Facts] = []
        self.looks: list[int] = []
        """By number: equal for sites that may be the same but for names."""
        self.worked_out = 0
        self._known_looks: dict[int, int] = {}
        self._known: dict[tuple[int, Hashable], tuple[int, tuple[Output, ...]]] = {}

    def look(self, thing: Any, fingerprint: object) -> None:
        """Keep what may be seen of a site."""
        self.facts.append(facts_of(thing, self.shape))
        look = anonymous(fingerprint, thing.name)
        self.looks.append(self._known_looks.setdefault(look, len(self._known_looks)))

    def add(self, site: Site) -> int:
        """Return the number of a site that has just reacted."""
        _tidy(site, self.shape)
        return self.number(site)

    def react(
        self, number: int, name: Hashable, act: Callable[[Site, Shape, list[Output]], None]
    ) -> tuple[int, tuple[Output, ...]]:
        """Return what becomes of a site by `act`, which `name` names, and what it puts out."""
        key = (number, name)
        known = self._known.get(key)
        if known is None:
            site: Site = self.load(number)
            if site.member is not None:
                _set_counters(site)
            out: list[Output] = []
            with labels_in_bytes():
                act(site, self.shape, out)
            known = self._known[key] = (self.add(site), self.things.numbered(out))
            self.worked_out += 1
            if site.member is not None:
                # The one cycle in a site; without it nothing is left for the garbage collector,
                # which `search.py` turns off because it would look through all states again.
                site.member.departure.roles = None  # type: ignore[assignment]
        return known


def _set_counters(site: Site) -> None:
    """Let the next token and link be the least that nothing in the site uses.

    Machines draw numbers that were never used; numbers that nobody remembers do as well, and keep
    states equal that differ in nothing but how long they took to come about.
    """
    member = site.member
    assert member is not None
    ctx, keeper = member.ctx, member.keeper
    used = {*ctx._saving, *ctx._growing, *member.replica._answers}  # noqa: SLF001
    links: set[int] = set()
    if keeper is not None:
        syncing = keeper.syncing
        used |= {*syncing._maps, *syncing._hashes, *syncing._reads}  # noqa: SLF001
        for leg in keeper.primary.legs.values():
            used |= {*leg.queries, *leg.queries.values(), leg.read_token or 0}
            if leg.job is not None:
                used |= {*leg.job._queries}  # noqa: SLF001
            links.add(leg.link or 0)
    for effect in (*site.metadata, *[effect for effect, _ in site.beside]):
        if not isinstance(effect, ev.FlushDisk):
            used.add(getattr(effect, "token", 0))
    ctx._last_token = max(used, default=0)  # noqa: SLF001
    # Below the first gap that is wide enough for whatever one step may open.
    free = 0
    while any(free - wide in links for wide in range(1, LEGS_MAX + 1)):
        free -= 1
    ctx._last_link = free  # noqa: SLF001


def _tidy(site: Site, shape: Shape) -> None:
    """Take out of a site what only tells how it came about."""
    disk = site.disk
    disk._hashes.clear()  # noqa: SLF001
    disk.superblock = attrs.evolve(disk.superblock, generation=0)
    if not shape.power:
        disk.flush_done(disk.flush_mark())
        disk.stable.clear()
        disk.marked_maybe.clear()
    base = disk._flushed_base  # noqa: SLF001
    disk._flushed_base = 0  # noqa: SLF001
    site.beside = [
        (effect, max(0, mark - base) if isinstance(effect, ev.FlushDisk) else 0)
        for effect, mark in site.beside
    ]
    keeper = None if site.member is None else site.member.keeper
    if keeper is not None:
        # How fast a sync may go is a matter of time alone; here it always may go on.
        keeper.primary.pace = Pace()
        keeper.syncing.go_on_at = float("inf")
    for copy, raw in disk.dirty.items():
        if not isinstance(raw, TaggedMap):
            disk.dirty[copy] = _known_map(site, copy, raw)
    if site.peers is not None:
        _tidy_peers(site.peers)


def _known_map(site: Site, copy: CopyId, raw: bytes) -> TaggedMap:
    assert site.member is not None
    member = site.member.ctx.record.member(copy)
    made = tagged(member.incarnation, member.left_epoch, raw[MAP_TAG_BYTES:])
    assert made == raw, (made, raw)
    return made


def _tidy_peers(peers: Peers) -> None:
    """Let the versions of lease sets be the same whenever they stand to each other in the same way.

    Only these relations are ever looked at: whether the set has changed since it was told, whether the
    lease was in a set that has been answered, and whether the receiver knows the set that is told.
    """
    peers.changed = False
    for outgoing in peers._outgoing.values():  # noqa: SLF001
        outgoing.number = 0 if not outgoing.sent else outgoing.number
        outgoing.due_at = NEVER
        is_told = outgoing.told_version == outgoing.version
        outgoing.told_version = LEASE_SET if is_told else -1
        known = outgoing.answered_version
        is_answered = False
        for volume, (epoch, version) in outgoing.leases.items():
            is_answered = version <= known
            outgoing.leases[volume] = (epoch, LEASE_SET)
        outgoing.answered_version = LEASE_SET if is_answered else LEASE_SET - 1
        outgoing.version = LEASE_SET
    for incoming in peers._incoming.values():  # noqa: SLF001
        incoming.version = LEASE_SET if incoming.version >= 0 else -1
