"""How long nobody is answered when a primary is killed, many times: `python -m benchmarks.failover`.

One cluster of four nodes with default settings, one volume with two replicas, one writer at depth 16
through a node that is never killed. In turn the primary is killed with SIGKILL at a random moment,
the pause is noted, the node is started again, and all copies become in sync. At the end everything
acknowledged is read back and the copies are compared.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from pathlib import Path

from tests.harness.cluster import RunningCluster
from tests.harness.waiting import wait_until
from tests.harness.writer import Writer

from benchmarks.summary import finish, goal, histogram, spread

VOLUME = "db"
MEDIAN_S, P99_S = 3.5, 5.0
"""What is promised."""
LEAD_S = (1.0, 2.5)
"""Seconds of writing before each kill, at random, so that no phase of any timer is preferred."""


def one_kill(cluster: RunningCluster, writer: Writer, dice: random.Random, home: str) -> float:
    """Kill the primary and return for how long the writer got no answer, in seconds."""
    while True:
        if cluster.wait_healthy(VOLUME, 120)["primary"] == home:
            other = next(node for node in cluster.replicas(VOLUME) if node != home)
            cluster.hand_over(VOLUME, other)
        time.sleep(dice.uniform(*LEAD_S))
        status = cluster.show(VOLUME)
        # A busy machine may have had copies dropped meanwhile; without any, nobody could take over.
        if status["health"] == "healthy" and status["primary"] != home:
            break
    victim = status["primary"]
    before = writer.seconds
    cluster.kill(victim)
    answered = writer.answered
    wait_until(lambda: writer.answered > answered + 500, 60, "answers after the kill")
    pauses = [p.length_s for p in list(writer.outcome.pauses) if p.began_s + p.length_s > before]
    cluster.start(victim)
    return max(pauses, default=0.0)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.failover",
        description="Kill the primary again and again under a writer at depth 16.",
    )
    add = parser.add_argument
    add("--kills", type=int, default=50, help="how often (%(default)s)")
    add("--size", type=int, default=256, help="of the volume, in MiB (%(default)s)")
    add("--depth", type=int, default=16, help="writes under way (%(default)s)")
    add("--seed", type=int, help="of the writer and the moments (a new one)")
    add("--json", type=Path, help="write the figures there")
    chosen = parser.parse_args()
    seed = random.SystemRandom().randrange(1 << 32) if chosen.seed is None else chosen.seed
    dice = random.Random(seed)
    print(f"seed {seed}", flush=True)
    pauses: list[float] = []
    with (
        tempfile.TemporaryDirectory(prefix="holdfast-failover-") as folder,
        RunningCluster(Path(folder) / "cluster", nodes=4) as cluster,
    ):
        cluster.create(VOLUME, f"{chosen.size}MiB")
        home = cluster.bystanders(VOLUME)[0]
        uri = cluster.url(VOLUME, home)
        with Writer(uri, blocks=chosen.size * 256, depth=chosen.depth, seed=seed) as writer:
            wait_until(lambda: writer.answered > 1000, 30, "first answers")
            for number in range(1, chosen.kills + 1):
                pauses.append(one_kill(cluster, writer, dice, home))
                print(f"kill {number}: {pauses[-1]:.2f} s", flush=True)
        cluster.wait_healthy(VOLUME, 120)
        wrong = writer.books.verify(uri)
        cluster.verify(VOLUME)
    outcome = writer.outcome
    figures = spread(pauses)
    print(histogram(pauses, 0.25, "s"))
    print(goal("median", figures["p50"], MEDIAN_S, "s"))
    print(goal("99th percentile", figures["p99"], P99_S, "s"))
    print(f"{outcome}; {len(wrong)} blocks wrong")
    finish(
        {
            "pauses_s": pauses,
            "summary": figures,
            "seed": seed,
            "writes": outcome.writes,
            "errors": outcome.errors,
            "wrong": len(wrong),
        },
        chosen.json,
    )
    if outcome.errors or wrong:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
