"""Machines lose power under a writer that waits for stable storage: `python -m benchmarks.power`.

Each round cuts the power of the primary's machine, of a replica's, or of all machines that have a
copy: processes and page caches are gone at one moment, by the file system's own shutdown, as xfstests
do it. Then the machines are started again; every write that was answered must be there, and all
copies must be equal, compared by their bytes. Needs root, for loop devices.
"""

from __future__ import annotations

import argparse
import random
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

import attrs
from tests.harness.disks import can_make_disks
from tests.harness.power import PoweredCluster, powered_cluster
from tests.harness.waiting import wait_until
from tests.harness.writer import Books, Writer

ROLES = ("replica", "primary", "all")
COPIES = 3
BLOCKS = 4096
VOLUME = "db"


@attrs.define
class PowerCuts:
    """One cluster and what its writers know; three machines have a copy, the last node has none."""

    powered: PoweredCluster
    seed: int
    books: Books | None = None

    def prepare(self) -> None:
        """Make the volume; a machine that comes back finds its place kept."""
        # However long a busy machine takes to start a node, that is no shortage.
        kept = ("--member-missing-timeout", "600", "--set", "grace_s=3600")
        self.powered.cluster.create(VOLUME, "64MiB", *kept)

    def round(self, number: int, role: str) -> str:
        """Cut the power of `role`, start what lost it, check, and return what to tell."""
        cluster = self.powered.cluster
        dice = random.Random(f"{self.seed}/{number}/{role}")
        uri = cluster.url(VOLUME, cluster.names[-1])
        seed = dice.randrange(1 << 32)
        # Reads in between would take a lost write for what it is only if it had been flushed.
        with Writer(uri, BLOCKS, fua=True, seed=seed, continues=self.books) as writer:
            wait_until(lambda: writer.answered > 100, 30, "answers")
            time.sleep(dice.uniform(0.2, 1.5))
            victims = self._victims(role, dice)
            began = time.monotonic()
            self.powered.cut(victims)
            time.sleep(dice.choice((0.0, 1.0, 4.0)))
            for node in dice.sample(victims, len(victims)):
                self.powered.boot(node)
            answered = writer.answered
            wait_until(lambda: writer.answered > answered + 50, 60, "answers after the cut")
        self.books, outcome = writer.books, writer.outcome
        cluster.wait_healthy(VOLUME, 120)
        healthy_s = time.monotonic() - began
        lost = writer.books.verify(uri)
        assert not outcome.errors, outcome.errors[:3]
        assert not lost, f"{len(lost)} lost, such as {lost[:3]}"
        cluster.verify(VOLUME)
        return (
            f"power of {', '.join(victims)}: {outcome.writes} writes, "
            f"longest pause {outcome.longest_pause_s:.2f} s, all equal {healthy_s:.1f} s later"
        )

    def _victims(self, role: str, dice: random.Random) -> list[str]:
        cluster = self.powered.cluster
        primary, replicas = cluster.primary(VOLUME), cluster.replicas(VOLUME)
        if role == "all":
            return [primary, *replicas]
        return [primary] if role == "primary" else [dice.choice(replicas)]


def main() -> None:
    """Cut and tell."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.power", description="Cut the power of machines under a writer."
    )
    add = parser.add_argument
    add("roles", nargs="*", metavar="ROLE", help=f"whose: {', '.join(ROLES)} (each)")
    add("--rounds", type=int, default=20, help="how often each (%(default)s)")
    add("--seed", type=int, default=None, help="of all choices (a new one)")
    chosen = parser.parse_args()
    if not can_make_disks():
        parser.error("this needs root, mount and mkfs.ext4")
    strangers = [role for role in chosen.roles if role not in ROLES]
    if strangers:
        parser.error(f"{', '.join(strangers)}: not one of {', '.join(ROLES)}")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    seed = random.SystemRandom().randrange(1 << 32) if chosen.seed is None else chosen.seed
    print(f"seed {seed}", flush=True)
    folder = Path(tempfile.mkdtemp(prefix="holdfast-power-"))
    told = ""
    try:
        with powered_cluster(folder, nodes=COPIES + 1, machines=COPIES) as powered:
            cuts = PowerCuts(powered, seed)
            cuts.prepare()
            for number in range(1, chosen.rounds + 1):
                for role in chosen.roles or ROLES:
                    told = f"round {number}, {role}"
                    print(f"{told}: {cuts.round(number, role)}", flush=True)
    except Exception as error:  # noqa: BLE001 - told, with where to look.
        print(f"--seed {seed}, {told}: {type(error).__name__}: {error}")
        sys.exit(1)
    shutil.rmtree(folder, ignore_errors=True)
    print(f"{chosen.rounds} rounds of {', '.join(chosen.roles or ROLES)}: nothing lost.")


if __name__ == "__main__":
    main()
