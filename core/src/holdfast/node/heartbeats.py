"""Carries heartbeats between nodes: one peer link to each process that holds copies of our groups.

`sync.peers` decides what is said and what it means; this module keeps the links, the timer, and tells
the pumps when a lease was refused or has come back.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import attrs

from holdfast.errors import HoldfastError
from holdfast.interfaces.transport import Link, LinkHandler
from holdfast.messages import Heartbeat, HeartbeatAnswer, Hello, Message, PeerHello
from holdfast.sync.peers import Peers, Seat
from holdfast.units import Epoch, NodeName, VolumeId

RETRY_S = 0.2

Dial = Callable[[NodeName, Hello, LinkHandler], Coroutine[Any, Any, Link]]


class Heartbeats:
    """All peer links of one node."""

    def __init__(
        self,
        peers: Peers,
        hello: PeerHello,
        dial: Dial,
        spawn: Callable[[Coroutine[Any, Any, None]], None],
        on_answer: Callable[[Sequence[tuple[VolumeId, Epoch]]], None],
    ) -> None:
        """Prepare; nothing is sent before `kick`.

        Args:
            peers: The rules.
            hello: How this node presents itself.
            dial: Opens a link to a node.
            spawn: Runs a coroutine under the node's task group.
            on_answer: Called after each answer with the groups that it newly refused.
        """
        self.peers = peers
        self._hello = hello
        self._dial = dial
        self._spawn = spawn
        self._on_answer = on_answer
        self._links: dict[Seat, Link] = {}
        self._dialling: set[Seat] = set()
        self._accepted: dict[Seat, Link] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False

    def kick(self) -> None:
        """Send what is due, open what is missing, and set the timer."""
        if self._closed:
            return
        self.peers.changed = False
        for seat in self.peers.targets():
            if seat not in self._links and seat not in self._dialling:
                self._dialling.add(seat)
                self._spawn(self._connect(seat))
        now = time.monotonic()
        for seat, beat in self.peers.due(now):
            link = self._links.get(seat)
            if link is not None:
                link.send((beat,))
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        due = self.peers.next_due()
        if due < float("inf"):
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(max(0.001, due - now), self.kick)

    def accept(self, link: Link, hello: PeerHello) -> LinkHandler:
        """Return the handler of a link on which another node's heartbeats arrive."""
        # A newer link of a worker ends the older: nothing of a dead process may be heard any more.
        seat = (hello.node, hello.worker)
        older = self._accepted.pop(seat, None)
        if older is not None:
            older.abort()
        self._accepted[seat] = link
        return _Hearing(self.peers, link, hello)

    async def _connect(self, seat: Seat) -> None:
        node, worker = seat
        hello = attrs.evolve(self._hello, to_worker=worker)
        try:
            link = await self._dial(node, hello, _Answers(self, seat))
        except (OSError, HoldfastError):
            if not self._closed:
                asyncio.get_running_loop().call_later(RETRY_S, self._retry, seat)
            return
        self._dialling.discard(seat)
        if self._closed:
            link.close()
            return
        self._links[seat] = link
        self.peers.on_connected(seat)
        self.kick()

    def _retry(self, seat: Seat) -> None:
        self._dialling.discard(seat)
        self.kick()

    def answered(self, seat: Seat, answer: HeartbeatAnswer) -> None:
        """Take an answer of `seat`."""
        refused = self.peers.on_answer(seat, answer)
        if answer.version < 0:
            self.kick()
        self._on_answer(refused)

    def lost(self, seat: Seat) -> None:
        """The link to `seat` is gone."""
        self._links.pop(seat, None)
        self.peers.on_disconnected(seat)
        if not self._closed and seat not in self._dialling:
            self._dialling.add(seat)
            asyncio.get_running_loop().call_later(RETRY_S, self._retry, seat)

    def close(self) -> None:
        """Close every link."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        for link in (*self._links.values(), *self._accepted.values()):
            link.close("the node is stopping")
        self._links.clear()
        self._accepted.clear()


class _Answers:
    """The handler of a link on which our heartbeats go out."""

    def __init__(self, heartbeats: Heartbeats, seat: Seat) -> None:
        self._heartbeats = heartbeats
        self._seat = seat

    def on_messages(self, messages: Sequence[Message]) -> None:
        for message in messages:
            if isinstance(message, HeartbeatAnswer):
                self._heartbeats.answered(self._seat, message)

    def on_lost(self, error: HoldfastError) -> None:
        self._heartbeats.lost(self._seat)


class _Hearing:
    """The handler of a link on which another node's heartbeats come in."""

    def __init__(self, peers: Peers, link: Link, hello: PeerHello) -> None:
        self._peers = peers
        self._link = link
        self._hello = hello

    def on_messages(self, messages: Sequence[Message]) -> None:
        now = time.monotonic()
        for message in messages:
            if isinstance(message, Heartbeat):
                hello = self._hello
                answer = self._peers.on_heartbeat(
                    hello.node, hello.session, message, now, hello.worker
                )
                self._link.send((answer,))

    def on_lost(self, error: HoldfastError) -> None:
        """Silence is counted by the clock, not by links."""
