"""Machines lose power under a writer that waits for stable storage: `python -m benchmarks.power`.

Each round cuts the power of the primary's machine, of a replica's, or of all machines that have a
copy: processes and page caches are gone at one moment. Then the machines are started again; every
write that was answered must be there, and all copies must be equal, compared by their bytes. Of one
machine that even holds for writes that were answered and not flushed, for the others have them; how
many of these the machine's own disk had forgotten is counted, and so is what the resync sent.

A machine is a process on a file system of its own, whose power the file system's own shutdown cuts, as
xfstests do it, or with `--machines uml` a guest with a kernel of its own. Needs root.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import re
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import attrs
from tests.harness.cluster import RunningCluster
from tests.harness.disks import can_make_disks, copy_image, mounted
from tests.harness.power import Power, powered_cluster
from tests.harness.uml import GuestCluster, can_make_guests
from tests.harness.waiting import wait_until
from tests.harness.writer import BLOCK_BYTES, Books, Writer, version_of

from holdfast.units import format_size, parse_size

ROLES = ("replica", "primary", "all")
COPIES = 3
BLOCKS = 4096
VOLUME = "db"
PATIENT = "[timing]\nlease_s = 6.0\nmargin_s = 2.0\nack_timeout_s = 20.0\n"
"""For guests, each of which has a part of one processor: slow is not dead."""
_SYNCED = re.compile(r"The copy on (\w+) was synced by ([\w -]+) with ([\d.]+ \w+) in")


@attrs.define
class PowerCuts:
    """One cluster and what its writers know; the first machines have a copy, the last node has none."""

    cluster: RunningCluster
    power: Power
    seed: int
    writes: int = 0
    forgotten: int = 0
    """Blocks that were answered, and then not on the disk of a machine that had lost its power."""
    resynced_bytes: int = 0
    books: Books | None = None

    def prepare(self) -> None:
        """Make the volume; a machine that comes back finds its place kept."""
        # However long a busy machine takes to start a node, that is no shortage.
        kept = ("--member-missing-timeout", "600", "--set", "grace_s=3600")
        self.cluster.create(VOLUME, "64MiB", *kept)

    def round(self, number: int, role: str) -> str:
        """Cut the power of `role`, start what lost it, check, and return what to tell."""
        cluster = self.cluster
        dice = random.Random(f"{self.seed}/{number}/{role}")
        uri = cluster.url(VOLUME, cluster.names[-1])
        seed = dice.randrange(1 << 32)
        # What no flush covers may be lost when nobody is left who has it.
        fua = role == "all" or dice.random() < 0.5
        # Reads in between would take a lost write for what it is only if it had been flushed.
        with Writer(
            *(uri, BLOCKS),
            fua=fua,
            flush_every=0 if fua else dice.choice((16, 256)),
            seed=seed,
            continues=self.books,
        ) as writer:
            wait_until(lambda: writer.answered > 100, 30, "answers")
            time.sleep(dice.uniform(0.2, 1.5))
            cluster.wait_healthy(VOLUME, 120)
            victims, logs = self._victims(role, dice), self._log_ends()
            known = dict(writer.books.acknowledged)
            began = time.monotonic()
            self.power.cut(victims)
            in_sync = {c["node"] for c in cluster.show(VOLUME)["copies"] if c["state"] == "in-sync"}
            assert fua or in_sync > set(victims), f"too busy: only {in_sync} in sync at the cut"
            forgotten = sum(_forgotten(self.power.image(node), known) for node in victims)
            assert not (fua and forgotten and in_sync >= set(victims)), f"{forgotten} not stable"
            time.sleep(dice.choice((0.0, 1.0, 4.0)))
            for node in dice.sample(victims, len(victims)):
                self.power.boot(node)
            answered = writer.answered
            wait_until(lambda: writer.answered > answered + 50, 60, "answers after the cut")
        self.books, outcome = writer.books, writer.outcome
        cluster.wait_healthy(VOLUME, 120)
        healthy_s = time.monotonic() - began
        lost = writer.books.verify(uri)
        assert not outcome.errors, outcome.errors[:3]
        assert not lost, f"{len(lost)} lost, such as {lost[:3]}"
        cluster.verify(VOLUME)
        syncs = [(how, parse_size(size)) for how, size in self._syncs(logs)]
        sent = sum(size for _, size in syncs)
        self.writes += outcome.writes
        self.forgotten += forgotten
        self.resynced_bytes += sent
        return (
            f"power of {', '.join(victims)}: {outcome.writes} writes {'FUA' if fua else 'flushed'}, "
            f"longest pause {outcome.longest_pause_s:.2f} s, {forgotten} blocks forgotten, "
            f"{format_size(sent)} by {' / '.join(how for how, _ in syncs) or 'nothing'}, "
            f"all equal {healthy_s:.1f} s later"
        )

    def _log_ends(self) -> dict[str, int]:
        return {name: self.cluster.node(name).log.stat().st_size for name in self.cluster.names}

    def _syncs(self, since: Mapping[str, int]) -> Iterator[tuple[str, str]]:
        """Yield how each copy was synced and how much was sent, as the nodes' logs tell it."""
        for name, at in since.items():
            with self.cluster.node(name).log.open(errors="replace") as log:
                log.seek(at)
                for _, how, size in _SYNCED.findall(log.read()):
                    yield how, size

    def _victims(self, role: str, dice: random.Random) -> list[str]:
        primary, replicas = self.cluster.primary(VOLUME), self.cluster.replicas(VOLUME)
        if role == "all":
            return [primary, *replicas]
        return [primary] if role == "primary" else [dice.choice(replicas)]


def _forgotten(image: Path, known: Mapping[int, int]) -> int:
    """Return how many blocks of the copy on a disk are older than `known` says by block."""
    with mounted(copy_image(image)) as disk, next(disk.glob("copies/*/data")).open("rb") as data:

        def version(block: int) -> int:
            data.seek(block * BLOCK_BYTES)
            return version_of(data.read(BLOCK_BYTES))

        return sum(version(block) < answered for block, answered in known.items())


@contextlib.contextmanager
def machines(kind: str, folder: Path) -> Iterator[tuple[RunningCluster, Power]]:
    """Start a cluster whose machines, but the last, can lose their power."""
    if kind == "uml":
        cluster = folder / "cluster"
        with GuestCluster(cluster, COPIES + 1, PATIENT, machines=COPIES) as guests:
            yield guests, guests
    else:
        with powered_cluster(folder, nodes=COPIES + 1, machines=COPIES) as powered:
            yield powered.cluster, powered


def main() -> None:
    """Cut and tell."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.power", description="Cut the power of machines under a writer."
    )
    add = parser.add_argument
    add("roles", nargs="*", metavar="ROLE", help=f"whose: {', '.join(ROLES)} (each)")
    add("--rounds", type=int, default=20, help="how often each (%(default)s)")
    add("--seed", type=int, default=None, help="of all choices (a new one)")
    add("--machines", choices=("disk", "uml"), default="disk", help="what they are (%(default)s)")
    chosen = parser.parse_args()
    if not can_make_disks():
        parser.error("this needs root, mount and mkfs.ext4")
    if chosen.machines == "uml" and not can_make_guests():
        parser.error("guests need /dev/net/tun, ip, and linux.uml of the package user-mode-linux")
    strangers = [role for role in chosen.roles if role not in ROLES]
    if strangers:
        parser.error(f"{', '.join(strangers)}: not one of {', '.join(ROLES)}")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    seed = random.SystemRandom().randrange(1 << 32) if chosen.seed is None else chosen.seed
    print(f"seed {seed}", flush=True)
    folder = Path(tempfile.mkdtemp(prefix="holdfast-power-"))
    told, roles = "", chosen.roles or ROLES
    try:
        with machines(chosen.machines, folder) as (cluster, power):
            cuts = PowerCuts(cluster, power, seed)
            cuts.prepare()
            for number in range(1, chosen.rounds + 1):
                for role in roles:
                    told = f"round {number}, {role}"
                    print(f"{told}: {cuts.round(number, role)}", flush=True)
    except Exception as error:  # noqa: BLE001 - told, with where to look.
        print(f"--seed {seed}, {told}: {type(error).__name__}: {error}")
        sys.exit(1)
    shutil.rmtree(folder, ignore_errors=True)
    print(
        f"{chosen.rounds} rounds of {', '.join(roles)}: {cuts.writes} writes, nothing lost; "
        f"{cuts.forgotten} blocks forgotten by disks, {format_size(cuts.resynced_bytes)} resynced."
    )


if __name__ == "__main__":
    main()
