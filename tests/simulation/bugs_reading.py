"""Bugs in what replicas answer from their own disks (decision 0014)."""

from __future__ import annotations

from typing import Any

from tests.simulation.planting import Patch, bug

from holdfast.sync import keeper, reading
from holdfast.sync.events import Effect, Instant, LateReads, SendReplies, ServeReads
from holdfast.sync.primary import PrimaryRole
from holdfast.sync.reading import LocalReader


@bug(
    (4.0, "clog2", "@replica", 18.0, 0.1),
    (4.0, "store-cut", "@replica", 18.0, 0.5),
    (6.0, "evict", "@replica", 0.0, 0.5),
    (13.0, "evict", "@replica", 0.0, 0.5),
    nodes=3,
    readers=3,
    think_s=0.01,
)
def forget_read_lease(patch: Patch) -> None:
    """Let a replica answer reads by itself whether or not it has a lease."""
    original = LocalReader.read

    def read(self: LocalReader, *args: Any) -> None:
        self.until = float("inf")
        original(self, *args)

    patch(LocalReader, "read", read)


@bug(
    (4.0, "clog2", "@other", 14.0, 0.05),
    nodes=3,
    readers=3,
    think_s=0.01,
)
def read_in_window(patch: Patch) -> None:
    """Let a replica answer reads of what may not be on every copy yet."""
    original = LocalReader.read

    def read(self: LocalReader, *args: Any) -> None:
        disk = self.ctx.disk
        kept, disk.window = disk.window, type(disk.window)()
        original(self, *args)
        disk.window = kept

    patch(LocalReader, "read", read)


@bug(
    (4.0, "clog2", "@other", 14.0, 0.05),
    nodes=3,
    readers=3,
    think_s=0.01,
)
def read_behind_one_write(patch: Patch) -> None:
    """Serve a read that has waited for one write, whatever has come behind that."""

    def read_anew(self: PrimaryRole, _now: Instant, out: list[Effect]) -> None:
        waiting, self._reads = self._reads, []
        for entry in waiting:
            if entry[0] <= self.commit:
                out.append(ServeReads(entry[1], (entry[2],)))
            else:
                self._reads.append(entry)

    patch(PrimaryRole, "_read_anew", read_anew)


@bug(
    *((4.0 + 4 * at, "clog2", "@replica", 3.0, 0.4) for at in range(5)),
    *((5.0 + 4 * at, "evict", "@replica", 0.0, 0.5) for at in range(5)),
    nodes=4,
    readers=4,
    think_s=0.02,
)
def drop_a_reader(patch: Patch) -> None:
    """Take a copy out of the in-sync set while it has a read lease."""
    patch(reading, "are_over", lambda *_: True)


@bug(
    *((4.0 + 9 * at, "disk-stall", "@primary", 0.9, 0.8) for at in range(3)),
    *((4.6 + 9 * at, "pause", "@primary", 6.0, 0.5) for at in range(3)),
    nodes=3,
    replicas=1,
    clients=2,
    depth=8,
    reads=0.5,
    think_s=0.05,
)
def answer_late(patch: Patch) -> None:
    """Answer reads that a stalled disk has kept waiting without asking whether one still may."""

    def on_late_reads(_self: PrimaryRole, event: LateReads, _now: Any, out: list[Any]) -> None:
        out.append(SendReplies(event.link, event.replies))

    patch(PrimaryRole, "on_late_reads", on_late_reads)


@bug(
    (5.0, "isolate", "@other", 16.0, 0.9),
    (5.0, "store-cut", "@replica", 16.0, 0.5),
    (5.0, "store-cut", "@primary", 16.0, 0.5),
    (9.0, "takeover", "@primary", 0.0, 0.5),
    nodes=3,
    readers=3,
    clients=3,
    think_s=0.02,
)
def read_lease_of_its_own(patch: Patch) -> None:
    """Grant read leases that do not end with the primary's own."""
    original = reading.grant

    def grant(primary: PrimaryRole, leg: Any, query: Any, now: Any, out: Any) -> None:
        until, PrimaryRole.lease_until = (  # type: ignore[method-assign]
            PrimaryRole.lease_until,
            lambda _self: now.mono + 2.0,  # type: ignore[assignment]
        )
        original(primary, leg, query, now, out)
        PrimaryRole.lease_until = until  # type: ignore[method-assign]

    patch(keeper, "grant", grant)
