"""md volumes as an operator has them: nodes are processes, the command line asks them, a kernel works.

Members are files, so that a node is no more than a folder and a port; all nodes share the kernel.
Needs what `test_md_kernel.py` needs; `make guest` boots a kernel that has it.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from plugins.transport_nvmeof.tests import md_lab
from tests.harness.cluster import Json, RunningCluster
from tests.harness.waiting import wait_until

from holdfast.units import MIB
from holdfast_transport_nvmeof.kernel.target import CONFIGFS

pytestmark = [
    pytest.mark.alone,
    pytest.mark.skipif(md_lab.missing() is not None, reason=md_lab.missing() or ""),
]
FIRST_PORT = 4600
PATIENCE_S = md_lab.PATIENCE_S


def give_md(cluster: RunningCluster) -> None:
    """Let each node have a folder for members and a port for exports."""
    home = cluster.dir.parent
    for number, name in enumerate(cluster.names):
        with cluster.node(name).config.open("a", encoding="utf-8") as file:
            file.write(
                f'\n[replicator.md]\nfiles = "{home}/members/{name}"\nmount = "{home}/mnt/{name}"\n'
                f'address = "127.0.0.1"\nport = {FIRST_PORT + number}\n'
                "queues = 1\nkeep_alive_s = 5\ninterval_s = 1.0\n"
            )


def cut(cluster: RunningCluster, name: str) -> None:
    """Let nobody reach what a node exports, as when its machine is gone."""
    wanted = str(FIRST_PORT + cluster.names.index(name))
    for port in Path(CONFIGFS, "ports").iterdir():
        if (port / "addr_trsvcid").read_text().strip() == wanted:
            for link in (port / "subsystems").iterdir():
                link.unlink()


def until(cluster: RunningCluster, holds: Callable[[Json], bool], what: str) -> Json:
    """Return the volume's status once it is as it should be."""

    def found() -> Json | None:
        status = cluster.show("db")
        return status if holds(status) else None

    status = wait_until(found, PATIENCE_S, what)
    assert status is not None
    return status


def test_an_array_outlives_daemons_and_a_member_and_moves_with_its_data(tmp_path: Path) -> None:
    with (
        md_lab.roomy(tmp_path),
        RunningCluster(tmp_path / "cluster", nodes=2, prepare=give_md) as cluster,
    ):
        made = ("--size", "320MiB", "--replicator", "md", "--replicas", "1", "--node", "n1")
        cluster.do("volume", "create", "db", *made)
        status = until(cluster, lambda s: bool(s["md"]["mounted"]), "the mount")
        table = cluster.do("volume", "list", "--wide").split()
        assert {"PHASE", "MDSTATE", "TOTAL", "ACTIVE", "FAILED", "DOWN", "SYNC"} <= set(table)
        data = [os.urandom(2 * MIB) for _ in range(3)]
        folder = Path(status["md"]["mounted"])
        (folder / "0").write_bytes(data[0])
        # Without its daemon the array goes on, and the next one finds it.
        before = status["md"]["device"]
        cluster.kill("n1")
        (folder / "1").write_bytes(data[1])
        os.sync()
        cluster.start("n1")
        status = until(cluster, lambda s: s["health"] == "healthy", "the daemon to find its array")
        assert status["md"]["device"] == before
        # Without a member it is degraded, and says so in both languages.
        cluster.kill("n2")
        cut(cluster, "n2")
        status = until(cluster, lambda s: s["md"]["mdstate"] == "degraded", "the loss")
        assert (status["health"], status["md"]["down"]) == ("degraded", 1)
        assert "The member on n2 is missing." in cluster.do("explain", "db")
        (folder / "2").write_bytes(data[2])
        os.sync()
        cluster.start("n2")
        until(cluster, lambda s: s["health"] == "healthy", "the member to be back")
        # The other node uses it: what has it mounted here lets go.
        cluster.do("volume", "promote", "db", "n2")
        status = until(
            cluster,
            lambda s: (
                (s["health"], s["attached"]) == ("healthy", "n2") and "/n2/" in s["md"]["mounted"]
            ),
            "the move",
        )
        moved = Path(status["md"]["mounted"])
        assert [(moved / str(number)).read_bytes() for number in range(3)] == data
        cluster.do("volume", "delete", "db", "--force")
        wait_until(
            lambda: not cluster.ask("volume", "list")["volumes"], PATIENCE_S, "the end of all"
        )
        assert not list(tmp_path.glob("members/*/*"))
        assert not list(Path(CONFIGFS, "subsystems").iterdir())
        assert "md1" not in Path("/proc/mdstat").read_text()
