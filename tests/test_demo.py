"""`holdfast demo`: everything it promises holds, and it leaves nothing behind, whatever happens."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from holdfast.node.local_cluster import LocalCluster
from holdfast.node.processes import is_alive, wait_until

pytestmark = pytest.mark.alone
PROGRAM = [sys.executable, "-P", "-m", "holdfast", "--json", "demo"]


def left_behind(folder: Path) -> list[str]:
    """Return what is in `folder`, and the processes whose command line names it."""
    found = [entry.name for entry in folder.iterdir() if not entry.name.endswith(".lock")]
    listed = subprocess.run(["pgrep", "-f", folder], capture_output=True, text=True, check=False)
    return found + [pid for pid in listed.stdout.split() if is_alive(int(pid))]


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    return {**os.environ, "TMPDIR": str(tmp_path)}


def test_everything_that_the_demonstration_promises_holds(
    tmp_path: Path, env: dict[str, str]
) -> None:
    done = subprocess.run(PROGRAM, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads(done.stdout)
    assert result["held"]
    assert result["acknowledged"] > 1000
    assert (result["lost"], result["copies_equal"], result["file_intact"]) == (0, True, True)
    assert result["file_bytes"] >= 256 << 20
    assert result["sync_sent_bytes"] < result["volume_bytes"] // 2
    assert left_behind(tmp_path) == []


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupted_demonstration_cleans_up(
    tmp_path: Path, env: dict[str, str], signum: signal.Signals
) -> None:
    with subprocess.Popen(PROGRAM, env=env, stdout=subprocess.PIPE, text=True) as demo:

        def nodes_run() -> bool:
            found = list(tmp_path.glob("holdfast-demo-*/cluster"))
            if not found or not (found[0] / "cluster.json").exists():
                return False
            return all(node.pid is not None for node in LocalCluster.open(found[0]).nodes)

        assert wait_until(nodes_run, 30)
        demo.send_signal(signum)
        out, _ = demo.communicate(timeout=60)
    assert demo.returncode == 130
    assert json.loads(out)["held"] is False
    assert left_behind(tmp_path) == []


def test_a_demonstration_that_fails_says_why_and_cleans_up(
    tmp_path: Path, env: dict[str, str]
) -> None:
    with subprocess.Popen(
        PROGRAM, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as demo:
        nodes: list[int] = []

        def all_run() -> bool:
            found = list(tmp_path.glob("holdfast-demo-*/cluster/cluster.json"))
            if found:
                pids = [node.pid for node in LocalCluster.open(found[0].parent).nodes]
                nodes[:] = [pid for pid in pids if pid is not None]
            return len(nodes) == 4

        assert wait_until(all_run, 30)
        for pid in nodes:
            os.kill(pid, signal.SIGKILL)
        out, err = demo.communicate(timeout=200)
    assert demo.returncode not in {0, 70}, err
    assert "Traceback" not in err
    assert json.loads(out)["held"] is False
    assert left_behind(tmp_path) == []
