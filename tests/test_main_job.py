"""The main job on real processes: nodes die and freeze under a writer, and it sees pauses, never errors.

Durations are shorter than in `benchmarks/faults.py`, which gives the full-length figures; the limits are
the promised ones, with default settings.
"""

import json
import random
import subprocess
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from tests.harness.cluster import RunningCluster
from tests.harness.faults import Story, frozen, through
from tests.harness.nbd import Command, NbdConnection
from tests.harness.waiting import wait_until

Start = Callable[..., RunningCluster]
MIB = 1 << 20
CHUNK_BYTES = 64 * 1024
BLOCKS = 4096
"""16 MiB of the volume are written to, so that blocks are overwritten often."""
FAILOVER_S_MAX = 6.0
REPLICA_LOSS_S_MAX = 2.0


def primary_of(cluster: RunningCluster) -> str:
    return cluster.primary("db")


def replica_of(cluster: RunningCluster) -> str:
    return cluster.replicas("db")[0]


def has_moved(cluster: RunningCluster, victim: str) -> bool:
    return primary_of(cluster) != victim


def told(story: Story) -> Story:
    assert story.is_good, str(story)
    return story


def restart(node: str) -> Callable[[RunningCluster, str], None]:
    return lambda cluster, _: cluster.start(node)


@pytest.mark.parametrize("verified", ["crc32c"])
def test_fio_verifies_its_writes_through_a_killed_primary(
    start_cluster: Start, fio: str, tmp_path: Path, verified: str
) -> None:
    cluster = start_cluster(nodes=4)
    cluster.create("db", "256MiB")
    uri = cluster.url("db", cluster.bystanders("db")[0])
    output = tmp_path / "fio.json"
    command = [
        *(fio, "--name=main", "--ioengine=nbd", f"--uri={uri}", "--rw=randwrite", "--bs=4k"),
        *("--iodepth=16", "--size=32m", f"--verify={verified}", "--verify_fatal=1"),
        *("--do_verify=1", "--verify_state_save=0", "--time_based", "--runtime=10"),
        *("--output-format=json", f"--output={output}"),
    ]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as process:
        try:
            time.sleep(2)  # How long fio writes in peace; nothing is waited for.
            victim = primary_of(cluster)
            cluster.kill(victim)
            _, said = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 0, said + output.read_text()
    text = output.read_text()
    job = json.loads(text[text.index("{") :])["jobs"][0]
    assert job["error"] == 0
    assert job["write"]["total_ios"] > 1000
    assert job["read"]["total_ios"] > 1000, "nothing was verified"
    cluster.start(victim)
    cluster.wait_healthy("db", 120)
    cluster.verify("db")


def test_a_killed_primary_is_a_pause(start_cluster: Start) -> None:
    cluster = start_cluster(nodes=4)
    cluster.create("db", "256MiB")
    victim = primary_of(cluster)
    story = told(
        through(
            cluster,
            "db",
            lambda c, _: c.kill(victim),
            writing_at=cluster.bystanders("db")[0],
            blocks=BLOCKS,
            repair=restart(victim),
        )
    )
    assert story.after["primary"] != victim
    assert story.outcome.longest_pause_s <= FAILOVER_S_MAX, str(story)


def test_a_killed_replica_is_a_short_pause(start_cluster: Start) -> None:
    cluster = start_cluster(nodes=4)
    cluster.create("db", "256MiB")
    victim = replica_of(cluster)
    story = told(
        through(
            cluster,
            "db",
            lambda c, _: c.kill(victim),
            writing_at=cluster.bystanders("db")[0],
            blocks=BLOCKS,
            repair=restart(victim),
        )
    )
    assert story.after["primary"] == story.before["primary"]
    assert story.outcome.longest_pause_s < REPLICA_LOSS_S_MAX, str(story)


def test_a_frozen_primary_that_wakes_up_steps_down(start_cluster: Start) -> None:
    cluster = start_cluster(nodes=4)
    cluster.create("db", "256MiB")
    victim = primary_of(cluster)

    def freeze(cluster: RunningCluster, volume: str) -> None:
        with frozen(cluster, victim):
            wait_until(lambda: cluster.primary(volume) != victim, FAILOVER_S_MAX, "another primary")
            time.sleep(2)  # The others go on without it for a while.

    story = told(
        through(
            cluster,
            "db",
            freeze,
            writing_at=cluster.bystanders("db")[0],
            blocks=BLOCKS,
        )
    )
    assert story.after["primary"] != victim
    assert story.after["epoch"] > story.before["epoch"]
    assert story.outcome.longest_pause_s <= FAILOVER_S_MAX, str(story)
    roles = [copy["role"] for copy in story.after["copies"]]
    assert roles.count("primary") == 1, "split brain"


def test_a_frozen_replica_holds_nobody_for_long(start_cluster: Start) -> None:
    cluster = start_cluster(nodes=4)
    cluster.create("db", "256MiB")
    victim = replica_of(cluster)

    def freeze(cluster: RunningCluster, volume: str) -> None:
        with frozen(cluster, victim):
            wait_until(lambda: victim not in cluster.replicas(volume), 6, "the drop")

    story = told(
        through(cluster, "db", freeze, writing_at=cluster.bystanders("db")[0], blocks=BLOCKS)
    )
    assert story.after["primary"] == story.before["primary"]
    assert story.outcome.longest_pause_s <= FAILOVER_S_MAX, str(story)


def test_a_clean_stop_hands_over(start_cluster: Start) -> None:
    cluster = start_cluster(nodes=4)
    cluster.create("db", "256MiB")
    victim = primary_of(cluster)
    story = told(
        through(
            cluster,
            "db",
            lambda c, _: c.stop(victim),
            writing_at=cluster.bystanders("db")[0],
            blocks=BLOCKS,
            repair=restart(victim),
        )
    )
    assert story.after["primary"] != victim
    # No lease is waited for.
    assert story.outcome.longest_pause_s < REPLICA_LOSS_S_MAX, str(story)


def test_two_losses_one_after_the_other_lose_nothing(start_cluster: Start) -> None:
    cluster = start_cluster(nodes=4)
    cluster.create("db", "256MiB")
    gone: list[str] = []

    def kill_two(cluster: RunningCluster, _: str) -> None:
        for _loss in range(2):
            victim = primary_of(cluster)
            gone.append(victim)
            cluster.kill(victim)
            wait_until(partial(has_moved, cluster, victim), 15, "another primary")

    def repair(cluster: RunningCluster, _: str) -> None:
        for node in gone:
            cluster.start(node)

    told(
        through(
            cluster,
            "db",
            kill_two,
            writing_at=cluster.bystanders("db")[0],
            blocks=BLOCKS,
            repair=repair,
        )
    )


def test_all_nodes_killed_at_once_lose_nothing_acknowledged(start_cluster: Start) -> None:
    cluster = start_cluster(nodes=3)
    cluster.create("db", "64MiB")
    uri = cluster.url("db", "n1")
    content = {n * CHUNK_BYTES: random.Random(n).randbytes(CHUNK_BYTES) for n in range(0, 900, 7)}
    with NbdConnection(uri) as volume:
        for offset, data in content.items():
            volume.call(Command.WRITE, offset, data=data)
        volume.call(Command.FLUSH)
    for name in cluster.names:
        cluster.kill(name)
    cluster.up()
    cluster.wait_healthy("db")
    with NbdConnection(cluster.url("db", "n2")) as volume:
        for offset, data in content.items():
            assert volume.call(Command.READ, offset, CHUNK_BYTES) == data, f"lost at {offset}"
    cluster.verify("db")


def sent_to(cluster: RunningCluster, node: str) -> int:
    copy = cluster.copy_on("db", node)
    assert copy is not None
    sync = copy["sync"]
    assert sync is None or sync["bytes_left"] == 0
    return 0 if sync is None else int(sync["bytes_sent"])


def test_only_changed_chunks_travel_to_a_node_that_returns(start_cluster: Start) -> None:
    """64 MiB of changes on a full volume of 1 GiB, and then none at all."""
    cluster = start_cluster(nodes=3)
    cluster.create("db", "1GiB")
    primary = primary_of(cluster)
    victim = replica_of(cluster)
    dice = random.Random(5)
    with NbdConnection(cluster.url("db", primary), timeout_s=60) as volume:
        noise = dice.randbytes(MIB)
        for offset in range(0, 1024 * MIB, MIB):
            # Every MiB different, and none of it zeros.
            volume.call(Command.WRITE, offset, data=offset.to_bytes(8, "big") + noise[8:])
        volume.call(Command.FLUSH)
        cluster.kill(victim)
        for chunk in dice.sample(range(16384), 1024):
            volume.call(Command.WRITE, chunk * CHUNK_BYTES, data=dice.randbytes(CHUNK_BYTES))
    cluster.start(victim)
    cluster.wait_healthy("db", 120)
    sent = sent_to(cluster, victim)
    assert 64 * MIB <= sent <= 80 * MIB, f"{sent / MIB:.1f} MiB were sent"
    cluster.verify("db")

    cluster.kill(victim)
    wait_until(lambda: victim not in cluster.replicas("db"), 15, "the drop")
    cluster.start(victim)
    cluster.wait_healthy("db", 60)
    assert sent_to(cluster, victim) == 0
    cluster.verify("db")
