"""Random faults for as long as asked, under writers that check: `python -m benchmarks.soak --minutes 30`.

In rounds: writers work on several volumes through several nodes; nodes are killed, frozen, stopped,
cut off from each other, left without room on their disks, or asked to hand a primary over. After a
while everything is made well; every acknowledged write must be there, all copies must be equal, and
every volume must have its declared redundancy back. The first thing that is wrong ends the program
with exit code 1, and its cluster is kept for looking at.

What a round does follows from the seed and its number alone, so that `--seed S --first N` does it
again; the machine's timing does not. Cuts and full disks need root, and are left out without.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import attrs
from tests.harness.cluster import RunningCluster
from tests.harness.disks import LoopDisk, can_make_disks
from tests.harness.network import NetworkedCluster, can_make_networks
from tests.harness.waiting import wait_until
from tests.harness.writer import Books, Writer

from benchmarks.cluster import TRANSPORTS

NODES = 5
SIZE_MIB = 32
VOLUMES = ("v0", "v1", "v2")
SMALL_DISKS = ("n2", "n4")
"""Nodes whose data lies on a file system that can be filled."""
PAUSE_S_MAX = 60.0
"""A writer without an answer for longer than this is stuck, not paused; `waiting.PATIENCE` times it on
a busy machine."""
THINK_S = 0.002
"""Of a writer after each answer: the time that it leaves is for more rounds."""
AT_ONCE = 2
"""So many nodes may be unwell at a time; a volume with two replicas outlives their loss."""


@attrs.define
class Soak:
    """One cluster, its writers, and what is done to it."""

    cluster: RunningCluster
    seed: int
    disks: dict[str, LoopDisk] = attrs.field(factory=dict)
    done: Counter[str] = attrs.field(factory=Counter)
    """How often each kind of fault was done."""
    writes: int = 0
    longest_pause_s: float = 0.0
    _books: dict[str, Books] = attrs.field(factory=dict)
    _dice: random.Random = attrs.field(factory=random.Random)
    _unwell: dict[str, Callable[[], None]] = attrs.field(factory=dict)
    """Node to what makes it well."""

    def round(self, number: int) -> str:
        """Do one round and return what to tell of it."""
        began = time.monotonic()
        dice = self._dice = random.Random(f"{self.seed}/{number}")
        with contextlib.ExitStack() as stack:
            # The writers' own nodes keep running: a client whose server dies has no connection left.
            spared = dice.sample(self.cluster.names, 2)
            writers = {}
            for volume in VOLUMES:
                uri = self.cluster.url(volume, dice.choice(spared))
                writer = Writer(
                    *(uri, SIZE_MIB * 256),
                    depth=8,
                    reads=0.2,
                    think_s=THINK_S,
                    flush_every=dice.choice((0, 20, 300)),
                    seed=dice.randrange(1 << 32),
                    continues=self._books.get(volume),
                )
                writers[volume] = stack.enter_context(writer)
            wait_until(
                lambda: all(w.answered > 50 for w in writers.values()), PAUSE_S_MAX, "answers"
            )
            told = [self._fault(spared) for _ in range(dice.randint(1, 3))]
            self._make_well()
            marks = {volume: writer.answered for volume, writer in writers.items()}
            for volume, writer in writers.items():
                wait_until(
                    lambda w=writer, m=marks[volume]: w.answered > m + 50,  # type: ignore[misc]
                    PAUSE_S_MAX,
                    f"answers on {volume}",
                )
        for volume, writer in writers.items():
            self._books[volume] = writer.books
            self._check(volume, writer)
        writes = sum(writer.outcome.writes for writer in writers.values())
        pause_s = max(writer.outcome.longest_pause_s for writer in writers.values())
        self.writes += writes
        self.longest_pause_s = max(self.longest_pause_s, pause_s)
        took_s = time.monotonic() - began
        return f"{took_s:.0f} s, {', '.join(told)}: {writes} writes, longest pause {pause_s:.2f} s"

    def _check(self, volume: str, writer: Writer) -> None:
        self.cluster.wait_healthy(volume, 180)
        reader = self.cluster.url(volume, self._dice.choice(self.cluster.names))
        lost, outcome = writer.books.verify(reader), writer.outcome
        assert not outcome.errors, f"{volume}: {outcome.errors[:3]}"
        assert not outcome.wrong_reads, f"{volume}: {outcome.wrong_reads[:3]}"
        assert not lost, f"{volume}, seed {writer.seed}: {len(lost)} lost, such as {lost[:3]}"
        self.cluster.verify(volume)

    # -- faults ------------------------------------------------------------------------------------

    def _fault(self, spared: list[str]) -> str:
        """Do something to a node that is well, and wait a while."""
        dice = self._dice
        kinds = ["kill", "kill", "freeze", "stop", "promote", "wait"]
        if isinstance(self.cluster, NetworkedCluster):
            kinds += ["isolate", "cut", "cut one way"]
        if self.disks:
            kinds += ["fill"]
        # Drawn whether or not they are used, so that a later choice is the same in every run.
        kind, pause_s = dice.choice(kinds), dice.uniform(0.0, 4.0)
        node, other = dice.sample([n for n in self.cluster.names if n not in spared], 2)
        volume, disk = dice.choice(VOLUMES), dice.choice(SMALL_DISKS)
        if kind == "fill":
            node = disk
        if node in self._unwell or (kind != "promote" and len(self._unwell) >= AT_ONCE):
            kind = "wait"
        told = self._do(kind, node, other, volume)
        self.done[kind] += 1
        time.sleep(pause_s)
        return told

    def _do(self, kind: str, node: str, other: str, volume: str) -> str:
        cluster = self.cluster
        match kind:
            case "kill":
                cluster.kill(node)
                self._unwell[node] = lambda: cluster.start(node)
            case "stop":
                cluster.stop(node)
                self._unwell[node] = lambda: cluster.start(node)
            case "freeze":
                cluster.freeze(node)
                self._unwell[node] = lambda: cluster.thaw(node)
            case "fill":
                self.disks[node].fill()
                self._unwell[node] = self.disks[node].empty
            case "promote":
                # A replica may have gone in the meantime; a refusal is an answer.
                cluster.run("volume", "promote", volume, node)
                return f"promote {volume} {node}"
            case "wait":
                return kind
            case _:
                assert isinstance(cluster, NetworkedCluster)
                if kind == "isolate":
                    cluster.isolate(node)
                else:
                    both = [(node, other), (other, node)]
                    cluster.cut(both if kind == "cut" else both[:1])
                self._unwell[node] = cluster.mend
                return f"{kind} {node}" if kind == "isolate" else f"{kind} {node} {other}"
        return f"{kind} {node}"

    def _make_well(self) -> None:
        """Mend what was done; a node that takes long to start on a busy machine is waited for."""
        for node in sorted(self._unwell):
            self._unwell[node]()
        self._unwell.clear()


@contextlib.contextmanager
def soaking(folder: Path, seed: int, transport: str = "tcp") -> Iterator[Soak]:
    """Start a cluster with its volumes; it ends with the context."""
    with contextlib.ExitStack() as stack:
        disks: dict[str, LoopDisk] = {}

        def prepare(cluster: RunningCluster) -> None:
            for node in SMALL_DISKS if can_make_disks() else ():
                disk = LoopDisk(folder / f"{node}.img", cluster.node(node).data)
                disks[node] = stack.enter_context(disk)

        made = NetworkedCluster if can_make_networks() else RunningCluster
        config = TRANSPORTS[transport]
        with made(folder / "cluster", nodes=NODES, config=config, prepare=prepare) as cluster:
            for volume in VOLUMES:
                cluster.create(volume, f"{SIZE_MIB}MiB")
            yield Soak(cluster, seed, disks)


def main() -> None:
    """Go on until the time is over or something is wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.soak", description="Do random faults under checking writers."
    )
    add = parser.add_argument
    add("--minutes", type=float, default=10.0, help="how long (%(default)s)")
    add("--rounds", type=int, default=None, help="end after so many rounds at the latest")
    add("--seed", type=int, default=None, help="of all choices (a new one)")
    add("--first", type=int, default=1, help="number of the first round (%(default)s)")
    add("--transport", choices=TRANSPORTS, default="tcp", help="between nodes (%(default)s)")
    chosen = parser.parse_args()
    # As at the keyboard's interrupt, everything that was made is unmade.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    seed = random.SystemRandom().randrange(1 << 32) if chosen.seed is None else chosen.seed
    print(f"seed {seed}", flush=True)
    end = time.monotonic() + 60 * chosen.minutes
    last = float("inf") if chosen.rounds is None else chosen.first + chosen.rounds - 1
    folder = Path(tempfile.mkdtemp(prefix="holdfast-soak-"))
    number = chosen.first
    try:
        with soaking(folder, seed, chosen.transport) as soak:
            while number <= last and time.monotonic() < end:
                print(f"round {number}: {soak.round(number)}", flush=True)
                number += 1
    except Exception as error:  # noqa: BLE001 - told, with where to look.
        print(f"--seed {seed} --first {number}: {type(error).__name__}: {error}")
        print(f"The cluster is kept in {folder}.")
        sys.exit(1)
    shutil.rmtree(folder, ignore_errors=True)
    done = ", ".join(f"{count} {kind}" for kind, count in soak.done.most_common())
    print(f"{number - chosen.first} rounds, {soak.writes} writes, nothing wrong. Done: {done}.")
    print(f"The longest pause of a writer was {soak.longest_pause_s:.2f} s.")


if __name__ == "__main__":
    main()
