"""How fast the syncs of one primary go beside its consumers' writes.

A sync shares processors, links and disks with the writes that consumers wait for, and nothing tells
beforehand which of these is short. So the time that writes take is measured: while nothing is synced,
or in short pauses of the syncs, and while data is sent. When it is stretched too much the rate falls
by a quarter, when not it rises by an eighth, between a floor, so that every sync ends, and a ceiling.
Where nobody writes there is nothing to spare, and only the ceiling counts.

Knows no clock: every method takes the monotonic time, in seconds.
"""

from __future__ import annotations

from typing import Final

from attrs import define, field

from holdfast.units import MIB

STRETCH_MAX: Final = 1.5
"""A write may take this many times its usual time: with a fixed number of requests under way, two
thirds of the usual rate are left."""
WINDOW_S: Final = 0.05
"""Over how long write times are averaged before the rate is changed."""
PAUSE_EVERY_S: Final = 2.0
PAUSE_S: Final = 0.1
"""How often and how long syncs pause so that the usual time is known under the present load."""
SETTLE_S: Final = 0.03
"""The part of a pause in which what was sent before is still being worked on."""
FOREGROUND_S: Final = 0.25
"""How long after its last write a consumer counts as writing."""
_FALL: Final = 0.75
_RISE: Final = 1.125
_BURST_S: Final = 0.02
"""What was not sent may be sent later, up to this much of it."""


@define
class PaceLimits:
    """What an operator has set, in bytes a second."""

    floor: float = 16.0 * MIB
    ceiling: float = float("inf")


@define
class Pace:
    """The rate that the syncs of one primary share, in bytes a second."""

    limits: PaceLimits = field(factory=PaceLimits)
    rate: float = float("inf")
    """As last decided; infinite before a sync has met a consumer's write."""
    usual_s: float | None = None
    """What a write takes when nothing is synced, if that is known."""
    _written_at: float = float("-inf")
    _window_at: float = float("-inf")
    _sum_s: float = 0.0
    _count: int = 0
    _sent: float = 0.0
    """Bytes sent in this window."""
    _busy_at: float = float("-inf")
    """When sync data was last sent."""
    _pause_at: float = float("-inf")
    """When the present or last pause began."""
    _credit: float = 0.0
    _credited_at: float = float("-inf")

    # -- what writes take -------------------------------------------------------------------------

    def wrote(self, now: float, took_s: float) -> None:
        """Take note that a consumer's write was acknowledged `took_s` after it was sent."""
        self._written_at = now
        settled_at = self._pause_at + SETTLE_S
        if self._window_at < settled_at <= now:
            # What began before the pause, or in its first part, says nothing.
            self._begin_window(now)
            return
        self._sum_s += took_s
        self._count += 1
        if now - self._window_at >= WINDOW_S:
            self._judge(now)
            self._begin_window(now)

    def _begin_window(self, now: float) -> None:
        self._sum_s, self._count, self._sent = 0.0, 0, 0.0
        self._window_at = now

    def _judge(self, now: float) -> None:
        """End a window: learn the usual time from it, or change the rate."""
        mean_s, span_s = self._sum_s / self._count, now - self._window_at
        usual_s = self.usual_s
        if not self._sent and self._window_at - self._busy_at >= SETTLE_S:
            # Half of the old, so that a load that has changed is known after a few pauses.
            self.usual_s = mean_s if usual_s is None else (usual_s + mean_s) / 2
            self._pause_at = now - PAUSE_S
        elif usual_s is None:
            self._pause_at = now
        elif self._sent and span_s < FOREGROUND_S:
            achieved = self._sent / span_s
            if mean_s > STRETCH_MAX * usual_s:
                self.rate = max(min(self.rate, achieved) * _FALL, self.limits.floor)
            else:
                self.rate = min(max(self.rate, achieved) * _RISE, self.limits.ceiling)

    # -- what syncs may send ----------------------------------------------------------------------

    def ready_at(self, now: float) -> float:
        """Return from when on something may be sent; not later than `now`: at once."""
        rate = self.limits.ceiling
        if now - self._written_at <= FOREGROUND_S:
            if now - self._pause_at > PAUSE_EVERY_S:
                self._pause_at = now
            if now - self._pause_at < PAUSE_S:
                return self._pause_at + PAUSE_S
            rate = min(max(self.rate, self.limits.floor), rate)
        if rate == float("inf"):
            self._credit = 0.0
            return now
        # A debt is paid by all the time since; only what is saved up is bounded.
        earned = rate * (now - self._credited_at)
        self._credited_at = now
        self._credit = min(self._credit + earned, rate * _BURST_S)
        return now if self._credit >= 0 else now - self._credit / rate

    def sent(self, now: float, size_bytes: int) -> None:
        """Take note that a sync has sent so much."""
        self._busy_at = now
        self._sent += size_bytes
        self._credit -= size_bytes
