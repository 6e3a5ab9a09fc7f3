"""A node's clocks: a monotonic one with its own rate, and a wall clock that may be set at any time."""

from __future__ import annotations

from attrs import define

from holdfast.sync.events import Instant

WALL_AT_START = 1_700_000_000.0


@define
class Clock:
    """Turns the world's time into what one node reads."""

    rate: float = 1.0
    """Seconds of this node per second of the world; crystals differ by 1e-4, we by more."""
    offset: float = 0.0
    wall_offset: float = 0.0

    def instant(self, time: float) -> Instant:
        """Return what this node reads at `time`."""
        return Instant(time * self.rate + self.offset, WALL_AT_START + time + self.wall_offset)

    def mono(self, time: float) -> float:
        """Return the monotonic reading at `time`."""
        return time * self.rate + self.offset

    def when(self, mono: float) -> float:
        """Return the world's time at which the monotonic clock shows `mono`."""
        return (mono - self.offset) / self.rate
