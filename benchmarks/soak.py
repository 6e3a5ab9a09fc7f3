"""Random faults for as long as asked, under writers that check: `python -m benchmarks.soak --minutes 30`.

In rounds: writers work on several volumes through several nodes; a node is killed, frozen, stopped
or asked to hand a primary over; after a while everything is made well, all copies must become equal and
every acknowledged write must be there. The first thing that is wrong ends the program with exit code 1,
and its cluster is kept for looking at. The choices follow from the seed; the machine's timing does not.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import sys
import tempfile
import time
from pathlib import Path

import attrs
from tests.harness.cluster import RunningCluster
from tests.harness.waiting import wait_until
from tests.harness.writer import Writer

NODES = 5
SIZE_MIB = 64
VOLUMES = ("v0", "v1", "v2")
PAUSE_S_MAX = 30.0
"""A writer without an answer for longer than this is stuck, not paused."""


@attrs.define
class Soak:
    """One cluster, its writers, and what is done to it."""

    cluster: RunningCluster
    dice: random.Random
    frozen: set[str] = attrs.field(factory=set)
    down: set[str] = attrs.field(factory=set)

    def round(self) -> str:
        """Do one round and return what to tell of it."""
        with contextlib.ExitStack() as stack:
            # The writers' own nodes are spared: a client whose server dies has no connection left.
            spared = self.dice.sample(self.cluster.names, 2)
            writers = {}
            for volume in VOLUMES:
                uri = self.cluster.url(volume, self.dice.choice(spared))
                seed = self.dice.randrange(1 << 32)
                writer = Writer(uri, blocks=SIZE_MIB * 256, depth=8, reads=0.2, seed=seed)
                writers[volume] = stack.enter_context(writer)
            wait_until(lambda: all(w.answered > 50 for w in writers.values()), 30, "answers")
            done = [self._fault(spared) for _ in range(self.dice.randint(1, 3))]
            self._repair()
            marks = {volume: writer.answered for volume, writer in writers.items()}
            for volume, writer in writers.items():
                wait_until(
                    lambda w=writer, m=marks[volume]: w.answered > m + 50,  # type: ignore[misc]
                    PAUSE_S_MAX,
                    f"answers on {volume}",
                )
        for volume, writer in writers.items():
            self.cluster.wait_healthy(volume, 180)
            lost = writer.books.verify(self.cluster.url(volume))
            assert not writer.outcome.errors, f"{volume}: {writer.outcome.errors}"
            assert not writer.outcome.wrong_reads, f"{volume}: {writer.outcome.wrong_reads}"
            assert not lost, f"{volume}, seed {writer.seed}: {len(lost)} lost, such as {lost[:3]}"
            self.cluster.verify(volume)
        writes = sum(writer.outcome.writes for writer in writers.values())
        pause_s = max(writer.outcome.longest_pause_s for writer in writers.values())
        return f"{', '.join(done)}: {writes} writes, longest pause {pause_s:.2f} s"

    def _fault(self, spared: list[str]) -> str:
        """Do something to a node that is well; keep so many that every volume has a copy left."""
        well = [n for n in self.cluster.names if n not in {*self.frozen, *self.down, *spared}]
        what = self.dice.choice(("kill", "freeze", "stop", "promote", "wait"))
        if len(self.frozen) + len(self.down) >= 2:
            what = "wait"
        node = self.dice.choice(well)
        if what == "kill":
            self.cluster.kill(node)
            self.down.add(node)
        elif what == "freeze":
            self.cluster.freeze(node)
            self.frozen.add(node)
        elif what == "stop":
            self.cluster.stop(node)
            self.down.add(node)
        elif what == "promote":
            volume = self.dice.choice(VOLUMES)
            # A replica may have gone in the meantime; a refusal is an answer.
            self.cluster.run("volume", "promote", volume, node)
        time.sleep(self.dice.uniform(0.0, 5.0))
        return what if what == "wait" else f"{what} {node}"

    def _repair(self) -> None:
        for node in sorted(self.frozen):
            self.cluster.thaw(node)
        for node in sorted(self.down):
            self.cluster.start(node)
        self.frozen.clear()
        self.down.clear()


def main() -> None:
    """Go on until the time is over or something is wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.soak", description="Do random faults under checking writers."
    )
    add = parser.add_argument
    add("--minutes", type=float, default=10.0, help="how long (%(default)s)")
    add("--seed", type=int, default=None, help="of all choices (a new one)")
    chosen = parser.parse_args()
    seed = random.SystemRandom().randrange(1 << 32) if chosen.seed is None else chosen.seed
    print(f"seed {seed}", flush=True)
    end = time.monotonic() + 60 * chosen.minutes
    folder = Path(tempfile.mkdtemp(prefix="holdfast-soak-"))
    number = 0
    try:
        with RunningCluster(folder / "cluster", nodes=NODES) as cluster:
            for volume in VOLUMES:
                cluster.create(volume, f"{SIZE_MIB}MiB")
            soak = Soak(cluster, random.Random(seed))
            while time.monotonic() < end:
                number += 1
                print(f"round {number}: {soak.round()}", flush=True)
    except Exception as error:  # noqa: BLE001 - told, with where to look.
        print(f"round {number}, seed {seed}: {type(error).__name__}: {error}")
        print(f"The cluster is kept in {folder}.")
        sys.exit(1)
    folder.rmdir()
    print(f"{number} rounds, nothing wrong.")


if __name__ == "__main__":
    main()
