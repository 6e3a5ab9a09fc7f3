"""The threads in which one disk is worked on: few for what computes, many for what waits for the disk.

Whoever submits says which they are; nothing here knows what they do. Why there are two kinds, and why
these numbers: decision 0022.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import attrs

FEW = 16
"""Threads for reads, probes and hashes. They hold the interpreter while they compute, and so keep the
event loop from it; a read among them waits for no flush."""
MANY = 256
"""Threads for what ends on stable storage: they wait for the disk and for nothing else."""


@attrs.frozen
class DiskThreads:
    """Two pools; each begins a thread when it finds none idle, so nothing waits before its limit."""

    few: ThreadPoolExecutor = attrs.field(factory=lambda: ThreadPoolExecutor(FEW, "holdfast-disk"))
    many: ThreadPoolExecutor = attrs.field(
        factory=lambda: ThreadPoolExecutor(MANY, "holdfast-flush")
    )

    def close(self) -> None:
        """End the threads, when they have done what they are at."""
        for pool in (self.few, self.many):
            pool.shutdown(wait=True)
