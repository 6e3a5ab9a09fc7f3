"""How long a writer waits when a primary is handed over: `python -m benchmarks.handover`.

A writer at depth 16 works through a node without a copy while `volume promote` moves the primary back
and forth between two nodes. The pause of a handover is the longest time without any answer around it.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import threading
import time
from pathlib import Path

from tests.harness.cluster import RunningCluster
from tests.harness.nbd import Command, NbdConnection
from tests.harness.waiting import wait_until

from benchmarks.summary import finish, goal, histogram, spread

VOLUME = "db"
P99_S = 0.1
"""What is promised."""
BLOCK_BYTES = 4096
REST_S = 0.4
"""Seconds of writing between two handovers."""


class Stopwatch:
    """Writes at random on a thread of its own and keeps every gap between two answers."""

    def __init__(self, uri: str, *, blocks: int, depth: int, seed: int) -> None:
        """Begin to write `depth` blocks of 4 KiB at a time to the first `blocks` blocks."""
        self.gaps: list[tuple[float, float]] = []
        """(monotonic time of the answer that ended it, length in seconds), above a millisecond."""
        self.answered = 0
        self.errors = 0
        self._uri, self._blocks, self._depth = uri, blocks, depth
        self._dice = random.Random(seed)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Wait for what is under way and end."""
        self._stop.set()
        self._thread.join(timeout=60)

    def _run(self) -> None:
        data = self._dice.randbytes(BLOCK_BYTES)
        last = time.monotonic()
        under_way = 0
        with NbdConnection(self._uri, timeout_s=60) as volume:
            while under_way or not self._stop.is_set():
                while under_way < self._depth and not self._stop.is_set():
                    at = self._dice.randrange(self._blocks) * BLOCK_BYTES
                    volume.send(Command.WRITE, at, data=data)
                    under_way += 1
                self.errors += bool(volume.receive().errno)
                under_way -= 1
                self.answered += 1
                now = time.monotonic()
                if now - last > 0.001:
                    self.gaps.append((now, now - last))
                last = now


def hand_over(cluster: RunningCluster, watch: Stopwatch) -> tuple[float, float]:
    """Hand the primary over; return the writer's longest gap and how long the command took."""
    target = cluster.replicas(VOLUME)[0]
    client = cluster.node(cluster.bystanders(VOLUME)[0]).client()
    began = time.monotonic()
    client.promote(VOLUME, target)
    took = time.monotonic() - began
    wait_until(lambda: cluster.primary(VOLUME) == target, 10, "the handover", every_s=0.02)
    answered = watch.answered
    wait_until(lambda: watch.answered > answered + 50, 30, "answers after it", every_s=0.02)
    return max((gap for at, gap in list(watch.gaps) if at >= began), default=0.0), took


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.handover",
        description="Hand a primary over again and again under a writer at depth 16.",
    )
    add = parser.add_argument
    add("--handovers", type=int, default=100, help="how often (%(default)s)")
    add("--replicas", type=int, default=1, help="copies beside the primary (%(default)s)")
    add("--size", type=int, default=256, help="of the volume, in MiB (%(default)s)")
    add("--depth", type=int, default=16, help="writes under way (%(default)s)")
    add("--json", type=Path, help="write the figures there")
    chosen = parser.parse_args()
    pauses, commands = [], []
    with (
        tempfile.TemporaryDirectory(prefix="holdfast-handover-") as folder,
        RunningCluster(Path(folder) / "cluster", nodes=chosen.replicas + 2) as cluster,
    ):
        cluster.create(VOLUME, f"{chosen.size}MiB", replicas=chosen.replicas)
        uri = cluster.url(VOLUME, cluster.bystanders(VOLUME)[0])
        watch = Stopwatch(uri, blocks=chosen.size * 256, depth=chosen.depth, seed=1)
        wait_until(lambda: watch.answered > 1000, 30, "first answers")
        for _ in range(chosen.handovers):
            time.sleep(REST_S)
            cluster.wait_healthy(VOLUME)
            pause, took = hand_over(cluster, watch)
            pauses.append(pause)
            commands.append(took)
        watch.stop()
        cluster.verify(VOLUME)
        failed = cluster.do("volume", "events", VOLUME, "--json").count('"handover-failed"')
    figures = spread(pauses)
    print(histogram([pause * 1000 for pause in pauses], 10, "ms"))
    print(goal("99th percentile", figures["p99"] * 1000, P99_S * 1000, "ms"))
    print(f"median {figures['p50'] * 1000:.0f} ms, longest {figures['max'] * 1000:.0f} ms")
    print(f"the command: median {spread(commands)['p50'] * 1000:.0f} ms")
    print(f"{watch.answered} writes, {watch.errors} errors, {failed} handovers that failed")
    finish(
        {
            "pauses_s": pauses,
            "summary": figures,
            "commands_s": spread(commands),
            "writes": watch.answered,
            "errors": watch.errors,
            "failed": failed,
        },
        chosen.json,
    )


if __name__ == "__main__":
    main()
