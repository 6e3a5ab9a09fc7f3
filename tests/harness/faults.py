"""One fault under one writer, from before it until everything is well again: what tests and figures share."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterator

import attrs
from tests.harness.cluster import Json, RunningCluster
from tests.harness.waiting import wait_until
from tests.harness.writer import Outcome, Writer, Wrong

Fault = Callable[[RunningCluster, str], None]
"""Does something to the cluster; is given the name of the volume."""


@attrs.frozen
class Story:
    """What happened around a fault, as the application and the cluster tell it."""

    outcome: Outcome
    before: Json
    """The volume's status before the fault."""
    after: Json
    """The same when it was healthy again."""
    lost: list[Wrong]
    """Blocks that did not hold what was acknowledged, read back through another node."""

    @property
    def is_good(self) -> bool:
        """Whether the application saw neither an error nor wrong data."""
        return not (self.outcome.errors or self.outcome.wrong_reads or self.lost)

    def __str__(self) -> str:
        """Return the story for people."""
        moved = f"primary {self.before['primary']} -> {self.after['primary']}"
        told = f"{self.outcome}; {moved}, epoch {self.before['epoch']} -> {self.after['epoch']}"
        faults = [*self.outcome.errors[:5], *self.outcome.wrong_reads[:5], *self.lost[:5]]
        return "\n  ".join([told, *map(str, faults)])


def through(
    cluster: RunningCluster,
    volume: str,
    fault: Fault,
    *,
    writing_at: str,
    blocks: int,
    lead_s: float = 1.0,
    after_s: float = 3.0,
    seed: int | None = None,
    repair: Fault | None = None,
) -> Story:
    """Write at a node, do `fault`, go on writing, make well, read everything back, compare the copies.

    Args:
        cluster: It is up.
        volume: A healthy volume.
        fault: May take as long as it lasts.
        writing_at: The node that the application uses.
        blocks: How many blocks of 4 KiB it writes to.
        lead_s: Seconds of writing before the fault.
        after_s: Seconds of answered writing after it.
        seed: Of the writer; None: a new one.
        repair: Done when the writer has ended, before everything must be healthy.
    """
    before = cluster.wait_healthy(volume)
    uri = cluster.url(volume, writing_at)
    chosen = random.SystemRandom().randrange(1 << 32) if seed is None else seed
    with Writer(uri, blocks=blocks, reads=0.1, flush_every=500, seed=chosen) as writer:
        wait_until(lambda: writer.seconds > lead_s and writer.answered > 100, 30, "first answers")
        fault(cluster, volume)
        answered = writer.answered
        wait_until(lambda: writer.answered > answered + 100, 60, "answers after the fault")
        until = writer.seconds + after_s
        wait_until(lambda: writer.seconds > until, after_s + 30, "the end of the writing")
    if repair is not None:
        repair(cluster, volume)
    after = cluster.wait_healthy(volume, 120)
    elsewhere = next(
        node for node in cluster.names if node != writing_at and cluster.node(node).pid is not None
    )
    lost = writer.books.verify(cluster.url(volume, elsewhere))
    cluster.verify(volume)
    return Story(writer.outcome, before, after, lost)


@contextlib.contextmanager
def frozen(cluster: RunningCluster, node: str) -> Iterator[None]:
    """Hold a node's process still while the context lasts."""
    cluster.freeze(node)
    try:
        yield
    finally:
        cluster.thaw(node)
