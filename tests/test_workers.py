"""Nodes with two workers: volumes spread over processes that live and die apart.

Everything is done to real processes: a worker is killed and frozen beside one that goes on, the
process that listens is frozen and killed, and an application that can prove what became of its writes
uses a volume of each worker meanwhile.
"""

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.harness.cluster import RunningCluster
from tests.harness.waiting import wait_until
from tests.harness.writer import Books, Writer

from holdfast.node.processes import is_alive, wait_gone

Start = Callable[..., RunningCluster]
NODE, OTHER = "n1", "n2"
"""Where both primaries are, and where the application uses the volume whose worker suffers."""
SUFFERS, STAYS = "one", "two"
BLOCKS = 2048
LEASE_S = 2.0
SEED = 5


def pids(cluster: RunningCluster, node: str = NODE) -> list[int]:
    return [worker["pid"] for worker in cluster.node(node).client().node()["workers"]]


def keeper(cluster: RunningCluster, volume: str, node: str = NODE) -> int:
    """Return the process that has a volume's copy open."""
    folder = f"/copies/{cluster.show(volume)['id']}/"
    for pid in pids(cluster, node):
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                if folder in str(entry.readlink()):
                    return pid
    raise AssertionError(f"no worker of {node} keeps {volume}")


@pytest.fixture
def cluster(start_cluster: Start) -> RunningCluster:
    cluster = start_cluster(nodes=3, config="[node]\nworkers = 2\n")
    for volume in (SUFFERS, STAYS):
        cluster.create(volume, "16MiB", "--node", NODE)
    return cluster


@contextlib.contextmanager
def written(
    cluster: RunningCluster, volume: str, node: str, continues: Books | None = None
) -> Iterator[Writer]:
    """Write while the context lasts; afterwards nothing that was acknowledged may be missing."""
    uri = cluster.url(volume, node)
    with Writer(
        *(uri, BLOCKS),
        seed=SEED,
        reads=0.1,
        flush_every=200,
        think_s=0.001,
        continues=continues,
    ) as writer:
        answers(writer)
        yield writer
        answers(writer)
    assert not writer.outcome.errors
    assert not writer.outcome.wrong_reads
    assert not writer.books.verify(uri)


def answers(writer: Writer, count: int = 200) -> None:
    """Wait until so many more requests were answered."""
    wanted = writer.answered + count
    wait_until(lambda: writer.answered >= wanted, 60, "answers")


def record(cluster: RunningCluster, volume: str) -> dict[str, Any]:
    shown = cluster.show(volume)
    return {key: shown[key] for key in ("epoch", "primary")}


def test_volumes_of_two_workers_live_apart(cluster: RunningCluster) -> None:
    assert keeper(cluster, SUFFERS) != keeper(cluster, STAYS)
    assert cluster.node(NODE).client().node()["copies"] == 2
    untouched = record(cluster, STAYS)

    # The client of the volume that stays is served by its primary's own worker, all the time.
    with written(cluster, STAYS, NODE) as staying:
        with written(cluster, SUFFERS, OTHER) as suffering:
            killed = keeper(cluster, SUFFERS)
            os.kill(killed, signal.SIGKILL)
            wait_until(
                lambda: killed not in pids(cluster) and None not in pids(cluster),
                60,
                "another worker",
            )
        cluster.wait_healthy(SUFFERS)

        with written(cluster, SUFFERS, OTHER, suffering.books):
            frozen = keeper(cluster, SUFFERS, cluster.primary(SUFFERS))
            before = record(cluster, SUFFERS)
            os.kill(frozen, signal.SIGSTOP)
            try:
                wait_until(lambda: record(cluster, SUFFERS) != before, 60, "another primary")
            finally:
                os.kill(frozen, signal.SIGCONT)
        cluster.wait_healthy(SUFFERS)

        # Heartbeats and data go from worker to worker: who listens is not needed for them.
        cluster.freeze(NODE)
        try:
            until = staying.seconds + 2 * LEASE_S
            wait_until(lambda: staying.seconds > until, 60, "several leases to pass")
            answers(staying)
        finally:
            cluster.thaw(NODE)
    assert record(cluster, STAYS) == untouched
    cluster.verify(SUFFERS)
    cluster.verify(STAYS)

    started = pids(cluster)
    cluster.kill(NODE)
    assert not wait_gone(started, 10), "workers outlived the process that started them"
    cluster.start(NODE)
    for volume in (SUFFERS, STAYS):
        cluster.wait_healthy(volume)

    started = [pid for node in cluster.names for pid in pids(cluster, node)]
    cluster.down()
    assert not any(is_alive(pid) for pid in started)
