"""What an operator does to a running cluster, on real processes, while volumes are in use."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.harness.cluster import RunningCluster
from tests.harness.nbd import Command, NbdConnection
from tests.harness.waiting import wait_until

Start = Callable[..., RunningCluster]
CHUNK_BYTES = 64 * 1024


def nodes_of(cluster: RunningCluster, volume: str) -> set[str]:
    return {copy["node"] for copy in cluster.show(volume)["copies"]}


def local_reads(cluster: RunningCluster, node: str, volume: str) -> float:
    """Return how many reads the copy of a volume on a node has answered by itself."""
    lines = cluster.node(node).client().metrics().splitlines()
    name = f'holdfast_volume_local_reads_total{{volume="{volume}"}}'
    return sum(float(line.split()[-1]) for line in lines if line.startswith(name))


def test_a_node_is_drained_and_its_volumes_stay_whole(start_cluster: Start) -> None:
    cluster = start_cluster(nodes=4)
    for name in ("a", "b"):
        cluster.create(name, "16MiB")
    victim = cluster.primary("a")
    with NbdConnection(cluster.url("a", victim)) as volume:
        volume.call(Command.WRITE, 0, data=b"x" * CHUNK_BYTES)
        plan = cluster.ask("node", "drain", victim, "--dry-run")
        assert not plan["draining"]
        assert next(s["volume"] for s in plan["plan"] if s["role"] == "primary") == "a"
        assert victim in nodes_of(cluster, "a")
        cluster.do("node", "drain", victim, "--wait")
        volume.call(Command.WRITE, CHUNK_BYTES, data=b"y" * CHUNK_BYTES)
        assert volume.call(Command.READ, 0, CHUNK_BYTES) == b"x" * CHUNK_BYTES
    for name in ("a", "b"):
        assert victim not in nodes_of(cluster, name)
        cluster.wait_healthy(name)
        cluster.verify(name)
    refused = cluster.run("node", "drain", cluster.primary("a"))
    assert refused.code == 6
    assert "no other node can take its copy" in refused.err
    for node, zone in zip(cluster.names, "aabb", strict=True):
        cluster.do("node", "label", node, f"zone={zone}", "rack=7")
    assert "has no label 'zoen'" in cluster.run("node", "label", victim, "zoen-").err
    cluster.do("node", "label", victim, "rack-")
    cluster.stop(victim)
    cluster.start(victim)
    described = cluster.ask("node", "show", victim)
    assert described["draining"], "a restart does not forget it"
    assert described["labels"].keys() == {"zone"}, "nor its labels"
    cluster.do("node", "uncordon", victim)
    assert not cluster.ask("node", "show", victim)["draining"]
    logged = cluster.do("node", "log", victim, "--lines", "1")
    assert "level" not in logged, "for people"
    assert json.loads(cluster.do("--json", "node", "log", victim, "--lines", "1"))["level"]
    labels = {node["name"]: node["labels"] for node in cluster.ask("status")["nodes"]}
    for name in ("c", "d"):
        cluster.create(name, "4MiB", "--spread", "zone", replicas=1)
        assert {labels[node]["zone"] for node in nodes_of(cluster, name)} == {"a", "b"}
    kept = cluster.ask("volume", "set", "c", "--label", "team=x", "--label", "use=y")["labels"]
    assert kept == {"holdfast/spread": "zone", "team": "x", "use": "y"}
    assert cluster.ask("volume", "set", "c", "--label", "team=")["labels"].keys() == kept.keys() - {
        "team"
    }


def test_nodes_without_room_for_md_say_so_and_keep_their_other_volumes(
    start_cluster: Start,
) -> None:
    cluster = start_cluster(nodes=2, config='[replicator.md]\naddress = "127.0.0.1"\n')
    cluster.create("db", "16MiB", replicas=1)
    made = ("volume", "create", "other", "--size", "400MiB")
    refused = cluster.run(*made, "--replicator", "md")
    assert (refused.code, "0 can take one" in refused.err) == (6, True)
    assert all(f"{name}: " in refused.err for name in cluster.names)
    assert "mdd" in cluster.run(*made, "--replicator", "mdd").err
    assert "no option 'copies'" in cluster.run(*made, "--replicator-set", "copies=2").err
    assert [volume["name"] for volume in cluster.ask("volume", "list")["volumes"]] == ["db"]
    cluster.do("drive", "list")
    plan = cluster.ask("node", "drain", cluster.primary("db"), "--dry-run")["plan"]
    assert [step["volume"] for step in plan] == ["db"]


@contextmanager
def compute_only_node(cluster: RunningCluster, folder: Path) -> Iterator[str]:
    """Run one more node, which keeps no copies, from a file in `folder`; yield its name."""
    name = cluster.node("n1").settings()["cluster"]["name"]
    folder.mkdir()
    config = folder / "node.toml"
    config.write_text(
        f'[cluster]\nname = "{name}"\n[node]\nname = "c1"\ncompute_only = true\n'
        f'[state.sqlite]\npath = "{cluster.dir / "state.db"}"\n'
        '[transport.tcp]\nport = 0\n[frontend.nbd]\nlisten = "127.0.0.1:0"\n'
    )
    command = [sys.executable, "-P", "-m", "holdfast", "node", "run", "--config", str(config)]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        try:
            wait_until((folder / "control.sock").exists, 20, "the node to be ready")
            yield "c1"
        finally:
            process.terminate()


def test_a_primary_moves_to_another_node(start_cluster: Start, tmp_path: Path) -> None:
    cluster = start_cluster(nodes=4)
    cluster.create("db", "16MiB")
    source, target = cluster.primary("db"), cluster.bystanders("db")[0]
    assert cluster.run("volume", "move", "db", source, "--call-off").code == 6, "nothing moves"
    assert cluster.run("volume", "move", "db", source).code == 2
    cluster.do("volume", "move", "db", source, target)
    wait_until(lambda: source not in nodes_of(cluster, "db"), 20, "the move")
    assert cluster.primary("db") == target
    with compute_only_node(cluster, tmp_path / "c1") as consumer:
        uri = cluster.do("volume", "url", "db", "--node", consumer).strip()
        with NbdConnection(uri) as volume:
            volume.call(Command.WRITE, 0, data=b"z" * CHUNK_BYTES)
        for words in (("create", "x", "--size", "4MiB", "--node"), ("move", "db", target, "--to")):
            refused = cluster.run("volume", *words, consumer)
            assert (refused.code, "compute-only" in refused.err) == (6, True), refused.err
    cluster.wait_healthy("db")
    cluster.verify("db")


def test_a_volume_explains_itself(start_cluster: Start) -> None:
    cluster = start_cluster(nodes=2)
    cluster.create("db", "16MiB", "--set", "grace_s=600", replicas=1)
    assert cluster.ask("explain", "db")["why"] == ["All copies are in sync."]
    replica = cluster.replicas("db")[0]
    cluster.kill(replica)
    wait_until(lambda: cluster.show("db")["health"] == "degraded", 10, "the loss")
    told = cluster.ask("explain", "db")
    assert told["told_by"] == "primary"
    (ends,) = [each["at"] for each in told["next"] if each["at"] is not None]
    # The end of the grace moves with the volume's settings, also while it runs.
    cluster.do("volume", "set", "db", "--set", "grace_s=1")
    wait_until(lambda: cluster.show("db")["access"] == "read-only", 10, "read-only")
    assert cluster.ask("explain", "db")["since"] >= ends - 600 + 1
    commands = [each["command"] for each in told["help"]]
    assert f"holdfast node start {replica}" in commands
    cluster.start(replica)
    wait_until(lambda: len(cluster.replicas("db")) == 1, 20, "the replica")
    wait_until(
        lambda: any(
            "Attach it anew" in h["sentence"] for h in cluster.ask("explain", "db")["help"]
        ),
        10,
        "the advice",
    )
    assert cluster.show("db")["access"] == "read-only"
    with NbdConnection(cluster.url("db")) as volume:
        volume.call(Command.WRITE, 0, data=b"x" * CHUNK_BYTES)
    assert cluster.show("db")["access"] == "read-write"
    cluster.create("solo", "1MiB", "--node", replica, replicas=0)
    cluster.kill(replica)
    refused = cluster.run("volume", "verify", "solo")
    assert (refused.code, "holdfast explain solo" in refused.err) == (7, True), refused.err
    wait_until(lambda: not cluster.show("solo")["copies"][0]["alive"], 20, "the end of its lease")
    assert "node down" in cluster.do("volume", "show", "solo")
    told = cluster.run("volume", "events", "solo")
    assert f"{replica} cannot be asked" in told.err


def test_a_volume_grows_under_a_writer(start_cluster: Start) -> None:
    cluster = start_cluster(nodes=3)
    cluster.create("db", "16MiB", "--member-missing-timeout", "600")
    with NbdConnection(cluster.url("db", cluster.primary("db"))) as volume:
        volume.call(Command.WRITE, 0, data=b"x" * CHUNK_BYTES)
        cluster.do("volume", "resize", "db", "--size", "32MiB")
        volume.call(Command.WRITE, CHUNK_BYTES, data=b"y" * CHUNK_BYTES)
    cluster.do("volume", "set", "db", "--read-from", "local")
    assert cluster.show("db")["read_from"] == "local"
    node = cluster.replicas("db")[0]
    with NbdConnection(cluster.url("db", node)) as volume:
        assert volume.size_bytes == 32 << 20

        def reads_come_from_here() -> bool:
            assert volume.call(Command.READ, CHUNK_BYTES, CHUNK_BYTES) == b"y" * CHUNK_BYTES
            return local_reads(cluster, node, "db") > 0

        wait_until(reads_come_from_here, 20, "a read of the copy on the consumer's node")
        volume.call(Command.WRITE, 0, data=b"w" * CHUNK_BYTES)
        assert volume.call(Command.READ, 0, CHUNK_BYTES) == b"w" * CHUNK_BYTES
        volume.call(Command.WRITE, (32 << 20) - CHUNK_BYTES, data=b"z" * CHUNK_BYTES)
        cluster.kill(cluster.primary("db"))
        assert volume.call(Command.READ, (32 << 20) - CHUNK_BYTES, CHUNK_BYTES)[:1] == b"z"
    assert cluster.show("db")["size"] == 32 << 20
    assert cluster.run("volume", "resize", "db", "--size", "16MiB").code == 6
    cluster.up()
    cluster.wait_healthy("db")
    cluster.verify("db")


def test_rot_in_a_data_file_is_found_told_and_repaired(start_cluster: Start) -> None:
    cluster = start_cluster(nodes=3)
    cluster.create("db", "16MiB")
    with NbdConnection(cluster.url("db", cluster.primary("db"))) as volume:
        for chunk in range(64):
            volume.call(Command.WRITE, chunk * CHUNK_BYTES, data=bytes([chunk + 1]) * CHUNK_BYTES)
        volume.call(Command.FLUSH)
    cluster.do("volume", "scrub", "db")  # From here on every hash is known.
    victims = {5: cluster.replicas("db")[0], 9: cluster.primary("db")}
    for chunk, victim in victims.items():
        (data,) = cluster.node(victim).dir.glob("**/copies/*/data")
        with data.open("r+b") as file:
            file.seek(chunk * CHUNK_BYTES + 100)
            file.write(b"rot")
    told = cluster.run("--json", "volume", "verify", "db")
    assert told.code == 12
    found = {e["chunk"]: e["nodes"] for e in json.loads(told.out)["rotten"]}
    assert found == {chunk: [victim] for chunk, victim in victims.items()}
    scrubbed = cluster.ask("volume", "scrub", "db")
    assert scrubbed["equal"]
    assert scrubbed["repaired"] == 2
    cluster.verify("db")
    with NbdConnection(cluster.url("db", cluster.primary("db"))) as volume:
        assert volume.call(Command.READ, 9 * CHUNK_BYTES, 4096) == bytes([10]) * 4096
    assert "Chunk 5 has rotted" in cluster.do("volume", "events", "db")


def test_scrubs_come_round_by_themselves(start_cluster: Start) -> None:
    cluster = start_cluster(nodes=2, config="[scrub]\ninterval_s = 3\n")
    cluster.create("db", "16MiB", replicas=1)
    with NbdConnection(cluster.url("db", cluster.primary("db"))) as volume:
        volume.call(Command.WRITE, 0, data=b"x" * CHUNK_BYTES)
        volume.call(Command.FLUSH)
    kept = cluster.node(cluster.primary("db")).dir / "data" / "scrubs.json"
    wait_until(kept.exists, 30, "the first scrub")
    (data,) = cluster.node(cluster.replicas("db")[0]).dir.glob("**/copies/*/data")
    with data.open("r+b") as file:
        file.write(b"rot")
    wait_until(
        lambda: "Chunk 0 has rotted" in cluster.do("volume", "events", "db"), 30, "the next one"
    )
    cluster.verify("db")
