"""Ordered, reliable links between simulated processes, and everything that goes wrong with them.

A link behaves like TCP: a partition stalls it, and only a timeout, a reset or the end of a process
breaks it; what was on its way then is lost. A connection to a machine whose process is down is
refused; one to a machine without power, or behind a partition, times out.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

from attrs import define, field

from holdfast.messages import Hello, Message
from holdfast.units import NodeName

if TYPE_CHECKING:
    from holdfast.testing.simulation.workload import Asked
    from holdfast.testing.simulation.world import World

CONNECT_TIMEOUT_S = 3.0
_FIN: tuple[Message, ...] | None = None


class Endpoint(Protocol):
    """A process, as the network sees it."""

    name: NodeName
    alive: bool
    links: dict[End, None]

    def run(self, action: Callable[..., None], *args: object) -> None:
        """Run `action` now, or when the process is resumed, or never when it is dead."""
        ...

    def accept(self, end: End, hello: Hello) -> None:
        """Take a new link."""
        ...


@define(eq=False)
class End:
    """One end of a link."""

    owner: Endpoint
    on_messages: Callable[[End, Sequence[Message]], None] | None = None
    on_lost: Callable[[End, bool, str], None] | None = None
    peer: End | None = None
    """None while the connection is being made."""
    open: bool = True
    arrives_at: float = 0.0
    """When the last thing sent to this end arrives."""
    stalled: deque[tuple[Message, ...] | None] = field(factory=deque)
    cut: bool = False
    """Nothing more arrives here."""
    asked: dict[int, Asked] = field(factory=dict)
    """What a consumer has asked through this end and was not answered through it, by number."""


@define(eq=False)
class Network:
    """All links of a world."""

    world: World
    delay_s: tuple[float, float] = (0.00005, 0.0006)
    blocked: dict[tuple[NodeName, NodeName], int] = field(factory=dict)
    """Directed pairs through which nothing passes, with how many faults block each."""
    clogged: dict[tuple[NodeName, NodeName], float] = field(factory=dict)
    """Extra delay in seconds of a directed pair."""
    ends: dict[End, None] = field(factory=dict)
    """Open ends of living processes, in order of their making."""
    process_of: Callable[[NodeName], Endpoint | None] = field(default=lambda _: None)
    powered: Callable[[NodeName], bool] = field(default=lambda _: True)

    def delay(self, source: NodeName, target: NodeName) -> float:
        """Draw the time that a packet takes."""
        low, high = self.delay_s
        rng = self.world.rng
        delay = low + rng.random() * (high - low)
        if rng.random() < 0.01:
            delay *= 20
        return delay + self.clogged.get((source, target), 0.0)

    # -- opening -----------------------------------------------------------------------------------

    def connect(
        self, end: End, target: NodeName, hello: Hello, on_open: Callable[[End], None]
    ) -> None:
        """Open a link from `end` to the process on `target`."""
        source = end.owner.name
        self.ends[end] = None
        end.owner.links[end] = None
        self.world.after(self.delay(source, target), self._arrive, end, target, hello, on_open)

    def _arrive(
        self, end: End, target: NodeName, hello: Hello, on_open: Callable[[End], None]
    ) -> None:
        source = end.owner.name
        if not end.open:
            return
        if self.is_blocked(source, target) or self.is_blocked(target, source):
            self.world.after(CONNECT_TIMEOUT_S, self._fail, end, False, "timed out")
            return
        if not self.powered(target):
            self.world.after(CONNECT_TIMEOUT_S, self._fail, end, False, "no answer")
            return
        process = self.process_of(target)
        if process is None:
            self.world.after(self.delay(target, source), self._fail, end, True, "refused")
            return
        other = End(process, peer=end)
        self.ends[other] = None
        process.links[other] = None
        end.peer = other
        back = self.world.now + self.delay(target, source)
        end.arrives_at = back
        self.world.at(back, self._opened, end, on_open)
        process.run(self._accepted, process, other, hello)

    def _opened(self, end: End, on_open: Callable[[End], None]) -> None:
        if end.open and not end.cut:
            end.owner.run(self._call_open, end, on_open)

    def _call_open(self, end: End, on_open: Callable[[End], None]) -> None:
        if end.open:
            on_open(end)

    def _accepted(self, process: Endpoint, end: End, hello: Hello) -> None:
        if end.open and not end.cut:
            process.accept(end, hello)

    def _fail(self, end: End, gone: bool, sentence: str) -> None:
        if end.open:
            self._lose(end, gone, sentence)

    # -- sending -----------------------------------------------------------------------------------

    def send(self, end: End, messages: Sequence[Message]) -> None:
        """Send messages to the other end."""
        if end.open and end.peer is not None:
            self._put(end, tuple(messages))

    def close(self, end: End) -> None:
        """Close in order: the other end gets what was sent, then learns that the link is gone."""
        if not end.open:
            return
        self._drop(end)
        if end.peer is not None:
            self._put(end, _FIN)

    def _put(self, end: End, parcel: tuple[Message, ...] | None) -> None:
        peer = end.peer
        assert peer is not None
        if not peer.open or peer.cut:
            return
        world = self.world
        at = world.now + self.delay(end.owner.name, peer.owner.name)
        at = max(peer.arrives_at, at)
        peer.arrives_at = at
        world.at(at, self._deliver, peer, parcel)

    def _deliver(self, end: End, parcel: tuple[Message, ...] | None) -> None:
        if not end.open or end.cut:
            return
        peer = end.peer
        assert peer is not None
        if end.stalled or (peer.owner.name, end.owner.name) in self.blocked:
            end.stalled.append(parcel)
            return
        if parcel is None:
            self._lose(end, False, "closed by the other end")
        else:
            end.owner.run(self._hand, end, parcel)

    def _hand(self, end: End, parcel: tuple[Message, ...]) -> None:
        if end.open and end.on_messages is not None:
            end.on_messages(end, parcel)

    # -- breaking ----------------------------------------------------------------------------------

    def is_blocked(self, source: NodeName, target: NodeName) -> bool:
        """Return whether nothing passes from `source` to `target`."""
        return (source, target) in self.blocked

    def block(self, source: NodeName, target: NodeName) -> None:
        """Let nothing pass from `source` to `target`; connections time out in a while."""
        key = (source, target)
        self.blocked[key] = self.blocked.get(key, 0) + 1
        for end in self.between(source, target):
            patience = 3.0 + self.world.rng.random() * 8.0
            self.world.after(patience, self._timed_out, end)

    def unblock(self, source: NodeName, target: NodeName) -> None:
        """Undo one `block`; what was stalled arrives."""
        key = (source, target)
        count = self.blocked.get(key, 0) - 1
        if count > 0:
            self.blocked[key] = count
            return
        self.blocked.pop(key, None)
        for end in list(self.ends):
            if end.stalled and end.owner.name == target and end.peer is not None:
                if end.peer.owner.name == source:
                    stalled, end.stalled = end.stalled, deque()
                    for parcel in stalled:
                        self._deliver(end, parcel)

    def _timed_out(self, end: End) -> None:
        peer = end.peer
        if not end.open or peer is None:
            return
        pair = (end.owner.name, peer.owner.name)
        if pair in self.blocked or pair[::-1] in self.blocked:
            self._lose(end, False, "timed out")

    def between(self, one: NodeName, other: NodeName) -> list[End]:
        """Return the open ends of links between two nodes, both directions."""
        pair = {one, other}
        return [
            end
            for end in self.ends
            if end.peer is not None and {end.owner.name, end.peer.owner.name} == pair
        ]

    def reset(self, one: NodeName, other: NodeName) -> None:
        """Break every link between two nodes; what is on its way is lost."""
        for end in self.between(one, other):
            self._break(end)

    def _break(self, end: End) -> None:
        """`end` gets nothing any more and learns it in a moment."""
        end.cut = True
        end.stalled.clear()
        self.world.after(self.world.rng.random() * 0.01, self._lose, end, False, "reset")

    def _lose(self, end: End, gone: bool, sentence: str) -> None:
        if not end.open:
            return
        self._drop(end)
        peer = end.peer
        if peer is not None and peer.open and not peer.cut:
            # The other end learns it too, if a packet gets there; else by its own timeout.
            self._put(end, _FIN)
        if end.on_lost is not None:
            end.owner.run(end.on_lost, end, gone, sentence)

    def _drop(self, end: End) -> None:
        end.open = False
        end.stalled.clear()
        self.ends.pop(end, None)
        end.owner.links.pop(end, None)

    def process_ended(self, process: Endpoint, *, power: bool) -> None:
        """A process is gone: its kernel resets the links, or with the power off nobody does."""
        rng = self.world.rng
        for end in list(process.links):
            peer = end.peer
            self._drop(end)
            if peer is None or not peer.open:
                continue
            if power:
                peer.cut = peer.cut or rng.random() < 0.5
                self.world.after(2.0 + rng.random() * 8.0, self._lose, peer, False, "timed out")
            elif rng.random() < 0.5:
                self._break(peer)
            else:
                self._put(end, _FIN)

    def process_started(self, name: NodeName) -> None:
        """A new process answers packets for the old one's links with resets."""
        for end in list(self.ends):
            peer = end.peer
            if peer is not None and peer.owner.name == name and not peer.owner.alive:
                self._break(end)
