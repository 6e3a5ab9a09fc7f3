"""One step from one state of a small world to the next."""

from __future__ import annotations

from collections.abc import Hashable
from typing import TYPE_CHECKING, Any

from holdfast.messages import Attach, SessionOpen
from holdfast.model import GroupRecord
from holdfast.sync import events as ev
from holdfast.testing.explorer import client, site
from holdfast.testing.explorer.labels import VersionMark
from holdfast.testing.explorer.site import Output
from holdfast.testing.explorer.state import FIN, Link, Pair, State, Step, Violated, awaits, pair_of
from holdfast.testing.explorer.symmetry import labels_of, order_of
from holdfast.units import NodeName

if TYPE_CHECKING:
    from holdfast.testing.explorer.world import World

SETTLE_MAX = 20
"""Ticks and heartbeats that follow one step; there are never more than a few."""


class Move:
    """One step from one state: a draft of the next, and what is still to be carried out for it."""

    def __init__(self, world: World, state: State) -> None:
        """Begin with everything as it was."""
        self.world = world
        self.before = state
        self.sites = list(state.sites)
        self.client = state.client
        self.record, self.version = state.record, state.version
        self.heard = list(state.heard)
        self.asked = list(state.asked)
        self.reads = list(state.reads)
        self.ghosts = state.ghosts
        self.links = list(state.links)
        self.changes: dict[str, Any] = {}
        self.acked = list(state.acked)
        self.ackers = dict(state.ackers)

    def after(self) -> State:
        """Return the state that the step has led to."""
        facts = self.world.sites.facts
        for at, number in enumerate(self.sites):
            fact = facts[number]
            if not fact.running or fact.version == self.version:
                self.heard[at] = True
        after = self.before._replace(
            sites=tuple(self.sites),
            client=self.client,
            record=self.record,
            version=self.version,
            heard=tuple(self.heard),
            asked=tuple(self.asked),
            reads=tuple(self.reads),
            ghosts=self.ghosts,
            links=tuple(sorted((_on_time(k) for k in self.links if _lives(k)), key=order_of)),
            acked=tuple(self.acked),
            ackers=tuple(sorted(self.ackers.items())),
            **self.changes,
        )
        if after.late:
            after = after._replace(late=tuple(at for at in after.late if awaits(after, at)))
        return after

    def settle(self) -> None:
        """Let what is always soon to come follow at once: ticks, and heartbeats that are due."""
        world, size = self.world, self.world.size
        facts = world.sites.facts
        todo = set(range(size.copies))
        if "mute" not in self.changes and "blocked" not in self.changes:
            todo = {at for at in todo if self.sites[at] != self.before.sites[at]}
        mute = self.changes.get("mute", self.before.mute)
        mute = (*mute, *self.changes.get("blocked", self.before.blocked))
        for _ in range(SETTLE_MAX):
            before = list(self.sites)
            for at in sorted(todo):
                self._tick(at)
                for leg in facts[self.sites[at]].legs:
                    other = world.at(leg.node)
                    if leg.beats and pair_of(at, other) not in mute:
                        if facts[self.sites[other]].running:
                            self._beat(at, other)
            todo = {at for at, number in enumerate(self.sites) if number != before[at]}
            if not todo:
                return
        raise Violated("busy", "ticks and heartbeats lead on for ever")

    # -- steps -------------------------------------------------------------------------------------

    def do(self, step: Step) -> None:
        """Carry a step out."""
        getattr(self, f"_{step[0]}")(*step[1:])

    def _there(self, at: int) -> None:
        link = self.links[at]
        parcel, rest = link.there[0], link.there[1:]
        self.links[at] = link._replace(there=rest)
        if link.far is None:
            return
        acceptor = link.acceptor
        if parcel == FIN:
            self.links[at] = self.links[at]._replace(far=None)
            if link.far:
                lost = ev.LinkLost(link.far, False, "closed")
                self.run(acceptor, ("lost", link.far), site.feed(lost))
            return
        value = self.world.things.values[parcel]
        if isinstance(value, Attach | SessionOpen):
            above = max((k.far or 0 for k in self.links if k.acceptor == acceptor), default=0)
            self._accepting = at
            self.run(acceptor, ("accept", parcel, above), site.accept(value, above))
        else:
            event = ev.Received(link.far, value)
            self.run(acceptor, ("received", link.far, parcel), site.feed(event))

    def _back(self, at: int) -> None:
        link = self.links[at]
        parcel = link.back[0]
        self.links[at] = link._replace(back=link.back[1:])
        if link.near is None:
            return
        opener, near = link.opener, link.near
        if parcel == FIN:
            self.links[at] = self.links[at]._replace(near=None)
            self._lose(opener, near, gone=False)
        elif opener == self.world.size.copies:
            value = self.world.things.values[parcel]
            self.run_client(("messages", parcel), client.messages(value))
        else:
            event = ev.Received(near, self.world.things.values[parcel])
            self.run(opener, ("received", near, parcel), site.feed(event))

    def _lose(self, opener: int, near: int, *, gone: bool) -> None:
        if opener == self.world.size.copies:
            self.run_client(("lost",), client.lost)
        else:
            lost = ev.LinkLost(near, gone, "refused" if gone else "closed")
            self.run(opener, ("lost", near, gone), site.feed(lost))

    def _reset(self, at: int) -> None:
        link = self.links[at]
        self.links[at] = link._replace(there=(), back=())
        if link.near is not None:
            self._replace_link(link, near=None)
            self._lose(link.opener, link.near, gone=False)
        if link.far is not None:
            self._replace_link(link, far=None)
            if link.far:
                lost = ev.LinkLost(link.far, False, "reset")
                self.run(link.acceptor, ("lost", link.far), site.feed(lost))

    def _replace_link(self, link: Link, **changes: Any) -> None:
        for at, known in enumerate(self.links):
            if (known.opener, known.near) == (link.opener, link.near) and "near" in changes:
                self.links[at] = known._replace(there=(), back=(), **changes)
                return
            if (known.acceptor, known.far) == (link.acceptor, link.far) and "far" in changes:
                self.links[at] = known._replace(there=(), back=(), **changes)
                return

    def _break(self, at: int) -> None:
        link = self.links[at]
        self._pay()
        self.links[at] = link._replace(there=(FIN,), back=(FIN,))

    def _start(self, at: int) -> None:
        record, version = self.world.things.values[self.record], self.version
        mine = self.world.names[at]
        used = [n for name, n in labels_of(self.world, self.before).processes if name == mine]
        process = max(used, default=0) + 1
        act = site.start(record, version, process)
        self.run(at, ("start", self.record, version, process), act)

    def _apply(self, at: int) -> None:
        self.run(at, ("apply",), site.apply)

    def _save(self, at: int) -> None:
        self.run(at, ("save",), site.save)

    def _beside(self, at: int, number: int) -> None:
        self.run(at, ("beside", number), site.beside(number))

    def _tick(self, at: int) -> None:
        self.run(at, ("tick",), site.feed(ev.Tick()))

    def _timer(self, at: int, kind: str, node: NodeName) -> None:
        self.run(at, ("timer", kind, node), site.timer(kind, node))

    def _beat(self, at: int, other: int) -> None:
        names = self.world.names
        for _ in range(2):
            out = self.run(at, ("make-beat", other), site.make_beat(names[other]))
            number = out[0][1]
            beat = self.world.things.values[number]
            process = self.world.sites.facts[self.sites[at]].process
            out = self.run(
                other, ("take-beat", at, process, number), site.take_beat(names[at], process, beat)
            )
            number = out[0][1]
            answer = self.world.things.values[number]
            self.run(at, ("answer", other, number), site.take_answer(names[other], answer))
            if answer.version >= 0:
                return  # Else it asked for the whole set, which the next one brings.

    # -- the store ---------------------------------------------------------------------------------

    def _ask(self, at: int) -> None:
        asked = self.asked[at]
        assert asked is not None
        _, record, version = asked
        won = self._write(record, version)
        self.asked[at] = ("told", "ok" if won else "conflict", self.record, self.version)

    def _write(self, record: int, version: int) -> bool:
        if version != self.version:
            return False
        values = self.world.things.values
        _check_change(values[self.record], values[record])
        self.record, self.version = record, self.version + 1
        self.heard = [False] * len(self.heard)
        return True

    def _told(self, at: int) -> None:
        asked, self.asked[at] = self.asked[at], None
        assert asked is not None
        _, outcome, record, version = asked
        event = ev.CasDone(outcome, self.world.things.values[record], VersionMark(version))
        self.run(at, asked, site.feed(event))

    def _ghost(self, at: int) -> None:
        record, version = self.ghosts[at]
        self.ghosts = self.ghosts[:at] + self.ghosts[at + 1 :]
        self._write(record, version)

    def _read(self, at: int) -> None:
        self.reads[at] = False
        self._watch(at)

    def _watch(self, at: int) -> None:
        self.heard[at] = True
        event = ev.RecordSeen(self.world.things.values[self.record], VersionMark(self.version))
        self.run(at, ("seen", self.record, self.version), site.feed(event))

    def _show(self) -> None:
        self.heard[-1] = True
        record = self.world.things.values[self.record]
        self.run_client(("record", self.record), client.on_record(record))

    # -- the consumer ------------------------------------------------------------------------------

    def _dial(self) -> None:
        self.run_client(("retry",), client.retry)

    def _submit(self) -> None:
        write = self.before.submitted + 1
        self.changes["submitted"] = write
        self.run_client(("submit", write), client.submit(write, self.world.block_of(write)))

    # -- faults ------------------------------------------------------------------------------------

    def _pay(self) -> None:
        self.changes["left"] = self.before.left - 1

    def _crash(self, at: int, applied: bool, power: bool = False) -> None:
        self._pay()
        name = ("crash", applied, power)
        self.run(at, name, site.crash(applied=applied, power=power))
        asked = self.asked[at]
        if asked is not None and asked[0] == "ask":
            self.ghosts = tuple(sorted((*self.ghosts, (asked[1], asked[2]))))
        self.asked[at], self.reads[at] = None, False
        for number, link in enumerate(self.links):
            if link.opener == at and link.near is not None:
                # What it has sent may still arrive; then its end does.
                link = link._replace(near=None, there=(*link.there, FIN), back=())  # noqa: PLW2901
            if link.acceptor == at and link.far is not None:
                link = link._replace(far=None, back=(*link.back, FIN), there=())  # noqa: PLW2901
            self.links[number] = link

    def _power(self, at: int, applied: bool) -> None:
        self._crash(at, applied, power=True)

    def _unsure(self, at: int) -> None:
        self._pay()
        asked = self.asked[at]
        assert asked is not None
        self.ghosts = tuple(sorted((*self.ghosts, (asked[1], asked[2]))))
        self.asked[at] = None
        self.run(at, ("unsure",), site.feed(ev.CasDone("unknown", None, 0)))

    def _slow(self, at: int, node: NodeName) -> None:
        self._pay()
        self._timer(at, "slow", node)

    def _quiet(self, at: int) -> None:
        self._pay()
        self._timer(at, "quiet", self.world.names[at])

    def _handover(self, at: int) -> None:
        self._pay()
        self.run(at, ("handover",), site.feed(ev.Handover(None, leave=False)))

    def _late(self, what: str, at: int) -> None:
        self._pay()
        if what == "link":
            self.links[at] = self.links[at]._replace(late=True)
        else:
            self.changes["late"] = tuple(sorted((*self.before.late, at)))

    def _mute(self, pairs: tuple[Pair, ...]) -> None:
        self._pay()
        self.changes["mute"] = tuple(sorted({*self.before.mute, *pairs}))

    def _block(self, pairs: tuple[Pair, ...]) -> None:
        self._pay()
        self.changes["blocked"] = tuple(sorted({*self.before.blocked, *pairs}))

    def _unmute(self, pair: Pair) -> None:
        self.changes["mute"] = tuple(p for p in self.before.mute if p != pair)

    def _unblock(self, pair: Pair) -> None:
        self.changes["blocked"] = tuple(p for p in self.before.blocked if p != pair)

    # -- carrying out ------------------------------------------------------------------------------

    def run(self, at: int, name: Hashable, act: Any) -> tuple[Output, ...]:
        """Let a site react, and carry out what it puts out; return that."""
        if not self.world.sites.facts[self.sites[at]].running and name[0] != "start":  # type: ignore[index]
            return ()
        self.sites[at], out = self.world.sites.react(self.sites[at], name, act)
        for output in out:
            self._carry(at, output)
        return out

    def run_client(self, name: Hashable, act: client.Act) -> None:
        """Let the consumer react, and carry out what it puts out."""
        self.client, out = self.world.clients.react(self.client, name, act)
        for output in out:
            self._carry(self.world.size.copies, output)

    def _carry(self, at: int, output: Output) -> None:
        kind = output[0]
        if kind == "send":
            self._send(at, output[1], output[2])
        elif kind == "reply":
            self._acknowledge(at, output[2], output[1])
        elif kind == "accepted":
            link = self.links[self._accepting]
            self.links[self._accepting] = link._replace(far=output[1])
        elif kind == "close":
            self._close(at, output[1])
        elif kind == "open":
            self._open(at, *output[1:])
        elif kind == "ask":
            self.asked[at] = output
        elif kind == "read":
            self.reads[at] = True

    def _find(self, at: int, link: int) -> int | None:
        for number, known in enumerate(self.links):
            if (known.opener, known.near) == (at, link) or (known.acceptor, known.far) == (
                at,
                link,
            ):
                return number
        return None

    def _send(self, at: int, link: int, message: int) -> None:
        number = self._find(at, link)
        if number is None:
            return
        known = self.links[number]
        if (known.opener, known.near) == (at, link):
            if known.far is not None:
                self.links[number] = known._replace(there=(*known.there, message))
        elif known.near is not None:
            self.links[number] = known._replace(back=(*known.back, message))

    def _close(self, at: int, link: int) -> None:
        number = self._find(at, link)
        if number is None:
            return
        known = self.links[number]
        if (known.opener, known.near) == (at, link):
            self.links[number] = known._replace(near=None, there=(*known.there, FIN), back=())
        else:
            self.links[number] = known._replace(far=None, back=(*known.back, FIN), there=())

    def _open(self, at: int, link: int, node: NodeName, hello: int) -> None:
        other = self.world.names.index(node)
        running = self.world.sites.facts[self.sites[other]].running
        if not running or pair_of(at, other) in self.before.blocked:
            self._lose(at, link, gone=not running)
            return
        self.links.append(Link(at, link, other, 0, (hello,), ()))
        if at < self.world.size.copies:
            self.run(at, ("opened", link), site.feed(ev.LinkOpened(link)))

    def _acknowledge(self, at: int, replies: tuple[Any, ...], epoch: int) -> None:
        """A primary answers: I2, then I1 of what it has acknowledged."""
        record: GroupRecord = self.world.things.values[self.record]
        first = self.ackers.setdefault(epoch, at)
        names = self.world.names
        if first != at:
            raise Violated(
                "I2", f"{names[first]} and {names[at]} both acknowledge in epoch {epoch}"
            )
        if epoch < record.epoch and record.primary_member.node != names[at]:
            raise Violated(
                "I2",
                f"{names[at]} acknowledges in epoch {epoch}, but {record.primary_member.node} is "
                f"primary of epoch {record.epoch}",
            )
        for reply in replies:
            if not reply.errno:
                block = self.world.block_of(reply.id)
                self.acked[block] = max(self.acked[block], reply.id)


def _check_change(before: GroupRecord, after: GroupRecord) -> None:
    if after.epoch < before.epoch:
        raise Violated("I2", f"the epoch fell from {before.epoch} to {after.epoch}")
    changed = after.primary != before.primary or set(after.in_sync) != set(before.in_sync)
    if changed and after.epoch == before.epoch:
        raise Violated("I2", f"the in-sync set changed within epoch {after.epoch}")
    if after.primary not in before.in_sync:
        raise Violated("R4", f"{after.primary_member.node} was promoted without being in sync")


def _on_time(link: Link) -> Link:
    return link._replace(late=False) if link.late and not (link.there or link.back) else link


def _lives(link: Link) -> bool:
    """Whether an end of the link is still there to notice anything."""
    return bool(link.near is not None or (link.far is not None)) and (
        link.near is not None or link.far != 0 or bool(link.there)
    )
