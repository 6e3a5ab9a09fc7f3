"""A real local cluster: its processes are started, stopped, killed, frozen and found again."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest

from holdfast.node import supervisor
from holdfast.node.local_cluster import LocalCluster
from holdfast.node.processes import ask_for_stacks, is_alive, wait_until

pytestmark = pytest.mark.alone


@attrs.frozen
class Outcome:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Command = Callable[..., Outcome]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "cluster"


@pytest.fixture
def holdfast(folder: Path) -> Iterator[Command]:
    """`holdfast` with a cluster folder of its own; what it started is stopped in the end."""

    def command(*words: str, **env: str) -> Outcome:
        done = subprocess.run(
            [sys.executable, "-P", "-m", "holdfast", "--dir", str(folder), *words],
            capture_output=True,
            text=True,
            check=False,
            env=os.environ | env,
            timeout=120,
        )
        return Outcome(done.returncode, done.stdout, done.stderr)

    yield command
    command("down")


@pytest.fixture
def running(holdfast: Command, folder: Path) -> LocalCluster:
    """A cluster of two nodes that runs."""
    started = holdfast("up", "--nodes", "2", "--detach")
    assert started.code == 0, started.err
    assert "--replicas 1 --wait" in started.out, "two nodes never have three copies"
    return LocalCluster.open(folder)


def pids(cluster: LocalCluster) -> list[int | None]:
    return [node.pid for node in cluster.nodes]


def test_up_starts_what_does_not_run_and_down_stops_all(
    holdfast: Command, running: LocalCluster
) -> None:
    before = pids(running)
    assert None not in before
    again = holdfast("up", "--detach")
    assert again.code == 0
    assert "run already" in again.out
    settings = running.dir.with_suffix(".toml")
    settings.write_text("[policy.hard]\ngrace_s = 4\n")
    late = holdfast("up", "--detach", "--config", str(settings))
    assert (late.code, "when they are started again" in late.err) == (0, True), late.err
    assert pids(running) == before
    status = holdfast("--json", "status").json
    assert [(n["name"], n["state"]) for n in status["nodes"]] == [
        ("n1", "running"),
        ("n2", "running"),
    ]
    assert status["volumes"] == []
    assert "n2" in holdfast("status").out
    assert holdfast("down").out == "Stopped n1 and n2.\n"
    assert pids(running) == [None, None]
    assert not any(node.control.exists() or node.pid_file.exists() for node in running.nodes)
    assert holdfast("down").out == "Nothing was running.\n"


def test_one_node_is_stopped_and_started(holdfast: Command, running: LocalCluster) -> None:
    first = running.node("n1").pid
    words = ("-s", "1MiB", "-r", "0", "--node", "n2", "--spread", "rack")
    assert "No node has the label 'rack'" in holdfast("volume", "create", "only", *words).err
    stopped = holdfast("node", "stop", "n2")
    assert stopped.out == "Stopped n2.\n"
    assert "Nobody serves only until `holdfast node start n2`" in stopped.err
    assert pids(running) == [first, None]
    states = [n["state"] for n in holdfast("--json", "status").json["nodes"]]
    assert states == ["running", "stopped"]
    assert holdfast("node", "start", "n2").out == "Node n2 is ready.\n"
    assert holdfast("node", "start", "n2").out == "Node n2 runs already.\n"
    assert holdfast("node", "start", "n7").code == 5


def test_a_killed_node_is_seen_as_stopped_and_started_again(
    holdfast: Command, running: LocalCluster
) -> None:
    node = running.node("n1")
    pid = node.pid
    assert pid is not None
    assert ask_for_stacks(pid)
    assert wait_until(lambda: "The event loop turns and has" in node.log.read_text(), 60)
    assert "Current thread" in node.log.read_text()
    os.kill(pid, signal.SIGKILL)
    assert wait_until(lambda: not is_alive(pid), 5)
    # What a crash leaves behind is in nobody's way.
    assert node.pid_file.exists()
    assert node.control.exists()
    assert holdfast("--json", "status").json["nodes"][0]["state"] == "stopped"
    # Its lease may outlive it; nobody could stand in for it as the first copy of a new volume.
    refused = holdfast("volume", "create", "db", "-s", "1MiB", "--node", "n1", "--wait")
    assert refused.code in {6, 7}, refused.err
    assert re.match(r"holdfast: Node n1 (does not answer|is not up)", refused.err), refused.err
    assert holdfast("--json", "volume", "list").json == {"volumes": []}
    made = holdfast("--json", "volume", "create", "db", "-s", "1MiB", "-r", "0", "--wait")
    assert (made.code, made.json["primary"]) == (0, "n2"), made.err
    assert holdfast("up", "--detach").code == 0
    assert node.pid not in {None, pid}
    assert "The process before this one was killed" in node.log.read_text()


def test_a_frozen_node_is_told_apart_and_still_stopped(
    holdfast: Command, running: LocalCluster
) -> None:
    pid = running.node("n1").pid
    assert pid is not None
    made = holdfast("volume", "create", "db", "-s", "1MiB", "-r", "1", "--node", "n1", "--wait")
    assert made.code == 0, made.err
    few = holdfast("volume", "create", "few", "-s", "1MiB", "-r", "2")
    assert "hard soon forbids writes below 2 replicas." in few.err
    os.kill(pid, signal.SIGSTOP)
    promoted = holdfast("volume", "promote", "db", "n2")
    assert promoted.code == 0, promoted.err
    assert holdfast("--json", "status").json["nodes"][0]["state"] == "silent"
    assert holdfast("volume", "list").code == 0
    shown = holdfast("node", "show", "n1")
    assert (shown.code, "did not answer within 5 s" in shown.err) == (7, True), shown.err
    stopped = {s["name"]: s["how"] for s in holdfast("--json", "down").json["stopped"]}
    assert stopped.keys() == {"n1", "n2"}
    assert stopped["n2"] == "clean"
    assert not is_alive(pid)


def test_a_foreign_process_with_the_same_number_is_left_alone(
    holdfast: Command, running: LocalCluster
) -> None:
    holdfast("node", "stop", "n2")
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as stranger:
        running.node("n2").pid_file.write_text(str(stranger.pid))
        assert holdfast("down").out == "Stopped n1.\n"
        assert stranger.poll() is None
        stranger.kill()


def test_a_port_in_use_stops_the_start_and_leaves_nothing_running(
    holdfast: Command, folder: Path
) -> None:
    cluster = LocalCluster.create(folder, count=2)
    port = cluster.node("n2").settings()["transport"]["tcp"]["port"]
    with socket.create_server(("127.0.0.1", port)):
        failed = holdfast("up", "--detach")
    assert failed.code == 6
    assert f"127.0.0.1:{port}" in failed.err
    assert "Traceback" not in failed.err
    assert pids(cluster) == [None, None]


def test_a_wrong_configuration_is_told_in_the_nodes_own_words(
    holdfast: Command, folder: Path
) -> None:
    cluster = LocalCluster.create(folder, count=2)
    with cluster.node("n2").config.open("a") as file:
        file.write("\n[timing]\nhartbeat_s = 1\n")
    failed = holdfast("up", "--detach")
    assert failed.code == 3
    assert "Node n2 does not start" in failed.err
    assert "hartbeat_s" in failed.err
    assert "heartbeat_s" in failed.err
    assert len(failed.err.splitlines()) == 2
    assert pids(cluster) == [None, None]


def test_in_the_foreground_it_runs_until_interrupted(folder: Path) -> None:
    for signum in (signal.SIGINT, signal.SIGTERM):
        program = [sys.executable, "-P", "-m", "holdfast", "--dir", str(folder), "up", "-n", "1"]
        with subprocess.Popen(program, stdout=subprocess.PIPE, text=True) as up:
            assert up.stdout is not None
            lines = []
            for line in up.stdout:
                lines.append(line)
                if "Ctrl-C" in line:
                    break
            cluster = LocalCluster.open(folder)
            pid = cluster.node("n1").pid
            assert pid is not None
            up.send_signal(signum)
            rest = up.stdout.read()
            assert up.wait(30) == 0
        assert "Stopped n1." in rest
        assert not is_alive(pid)


def test_two_ups_at_once_start_every_node_once(folder: Path, holdfast: Command) -> None:
    program = [sys.executable, "-P", "-m", "holdfast", "--dir", str(folder), "up", "-n", "2", "-d"]
    both = [subprocess.Popen(program, stdout=subprocess.DEVNULL) for _ in range(2)]
    assert [up.wait(60) for up in both] == [0, 0]
    log = LocalCluster.open(folder).node("n1").pid
    assert log is not None
    assert holdfast("down").out == "Stopped n1 and n2.\n"
    left = subprocess.run(["pgrep", "-f", str(folder)], capture_output=True, text=True, check=False)
    assert left.stdout == ""


def test_a_cluster_in_a_deep_folder_runs(tmp_path: Path) -> None:
    deep = tmp_path.joinpath(*["a-rather-long-folder-name"] * 5)
    cluster = LocalCluster.create(deep, count=2)
    try:
        assert supervisor.start(cluster.nodes) == ["n1", "n2"]
        assert cluster.node("n2").client().node()["name"] == "n2"
    finally:
        stopped = supervisor.stop(cluster.nodes, handover=False)
        if cluster.sockets is not None:
            cluster.sockets.rmdir()
    assert [s.how for s in stopped] == ["clean", "clean"]


def test_four_nodes_are_ready_within_seconds_and_small(holdfast: Command, folder: Path) -> None:
    began = time.monotonic()
    assert holdfast("up", "--detach").code == 0
    took_s = time.monotonic() - began
    resident = []
    for node in LocalCluster.open(folder).nodes:
        status = Path(f"/proc/{node.pid}/status").read_text()
        resident.append(next(int(x.split()[1]) for x in status.splitlines() if "VmRSS" in x))
    # What is promised is three seconds and 80 MiB; a loaded machine is given some more time.
    assert took_s < 10
    assert max(resident) < 80 * 1024
