"""Staying awake for what is about to arrive: a process that sleeps must be woken, and that takes time.

A write of depth 1 wakes the primary three times and each replica once. On a virtual machine a core that
has nothing to do leaves it, and to wake it costs the sender an exit of its own and the sleeper tens of
microseconds: half the time of such a write. So a process that has heard something looks for more, for
a moment, before it sleeps, and gives its core away at every turn to whoever else wants it.

It does so only where that has paid of late, and not beside somebody who computes: who gives his core
away gets it back when the other's slice of time is over, and who sleeps when he is woken
(`docs/decisions/0020-busy-polling.md`). It knows no volumes.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable

WORTH = 0.7
"""The share of waits that must have ended within the window for the next one to be spent awake."""
MEMORY = 8.0
"""How many waits that share looks back on, more or less."""
TAKEN_S = 0.001
"""A core that comes back later than this was taken by somebody who computes, not by another node."""
REST_S_MIN, REST_S_MAX = 0.05, 1.6
"""How long all waits are then slept through; twice as long when it soon happens again."""


class Polling:
    """Decides, for one event loop, whether to wait awake; and does."""

    __slots__ = (
        "_awaiting",
        "_call_soon",
        "_give_way",
        "_is_awake",
        "_rest_s",
        "_rest_until",
        "_shares",
        "_waits_since",
        "_window",
        "clock",
    )

    def __init__(
        self,
        window_us: int,
        *,
        clock: Callable[[], float] = time.monotonic,
        call_soon: Callable[[Callable[[], None]], object] | None = None,
        give_way: Callable[[], None] = os.sched_yield,
    ) -> None:
        """Make one; nothing happens until something is heard.

        Args:
            window_us: How long to stay awake at most, in microseconds; 0 always sleeps.
            clock: Tells the time in seconds.
            call_soon: Calls back in the loop's next turn; by default that of the running loop.
            give_way: Lets others have the core.
        """
        self._window = window_us / 1e6
        self.clock = clock
        self._call_soon = call_soon
        self._give_way = give_way
        self._waits_since = float("-inf")
        self._is_awake = False
        self._awaiting = False
        """Which kind of wait is under way."""
        self._shares = [0.0, 0.0]
        """Of waits for anything, and of waits for an answer that is due: how many were short."""
        self._rest_s = REST_S_MIN
        self._rest_until = float("-inf")

    def handled(self, arrived_at: float, *, awaiting: bool) -> None:
        """Begin to wait, what has arrived being dealt with; awake if that is worth it.

        Args:
            arrived_at: When it arrived, by `clock`: how long was it waited for?
            awaiting: Whether an answer is due: an acknowledgement, or the reply to a request.
        """
        if not self._window:
            return
        shares, waited_s = self._shares, arrived_at - self._waits_since
        if waited_s >= 0:  # Else what arrived within has told.
            kind = self._awaiting
            shares[kind] += ((waited_s <= self._window) - shares[kind]) / MEMORY
        now = self._waits_since = self.clock()
        self._awaiting = awaiting
        if not self._is_awake and shares[awaiting] >= WORTH and now >= self._rest_until:
            self._is_awake = True
            if self._call_soon is None:
                self._call_soon = asyncio.get_running_loop().call_soon
            self._call_soon(self._turn)

    def _turn(self) -> None:
        """Let others have the core, then come back after the loop has looked, until it is enough."""
        before = self.clock()
        self._give_way()
        now = self.clock()
        if now - before > TAKEN_S:
            self._rest(now)
        elif now - self._waits_since < self._window and self._shares[self._awaiting] >= WORTH:
            assert self._call_soon is not None
            self._call_soon(self._turn)
            return
        self._is_awake = False

    def _rest(self, now: float) -> None:
        """Sleep through what comes next: there is somebody who computes on this core."""
        is_again = now - self._rest_until < self._rest_s
        self._rest_s = min(2 * self._rest_s, REST_S_MAX) if is_again else REST_S_MIN
        self._rest_until = now + self._rest_s


ALWAYS_ASLEEP = Polling(0)
