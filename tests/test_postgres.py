"""A real database on a replicated volume: its transactions outlive the primary, its files stay sound."""

import contextlib
import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.harness.cluster import RunningCluster
from tests.harness.waiting import wait_until

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0, reason="mounting takes root, and PostgreSQL a user of its own"
)

USER = "postgres"
Tool = Callable[[str], str]


def run(*words: str | Path, user: str | None = None, timeout_s: float = 120) -> str:
    done = subprocess.run(
        [str(word) for word in words],
        user=user,
        group=user,
        extra_groups=None if user is None else [],
        cwd="/",
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )
    assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
    return done.stdout + done.stderr


@contextlib.contextmanager
def mounted(cluster: RunningCluster, volume: str, node: str, tool: Tool) -> Iterator[Path]:
    """Attach a volume through a node, make ext4 on it, mount it where everybody may go."""
    device = cluster.do("volume", "attach", volume, "--node", node).strip()
    folder = Path(tempfile.mkdtemp(prefix="holdfast-postgres-"))
    try:
        folder.chmod(0o755)
        run(tool("mkfs.ext4"), "-q", "-F", device)
        run("mount", "-t", "ext4", device, folder)
        try:
            yield folder
        finally:
            run("umount", folder)
        # What the file system says of itself, when the device has all of it.
        run(tool("e2fsck"), "-f", "-n", device)
    finally:
        cluster.run("volume", "detach", volume)
        folder.rmdir()


class Database:
    """A PostgreSQL of our own in a folder, with checksums on its pages."""

    def __init__(self, folder: Path, tool: Tool) -> None:
        self._tool = tool
        self._sockets = folder
        self.data = folder / "data"
        self.data.mkdir()
        run("chown", f"{USER}:", self.data, folder)
        initdb = (tool("initdb"), "-D", self.data, "--data-checksums", "--no-sync", "-A", "trust")
        run(*initdb, "-E", "UTF8", "--locale=C", user=USER)

    def command(self, name: str, *words: str) -> list[str]:
        return [self._tool(name), "-h", str(self._sockets), *words]

    @contextlib.contextmanager
    def serving(self) -> Iterator[None]:
        """Run the server; nothing listens on TCP."""
        control = (self._tool("pg_ctl"), "-D", self.data, "-w", "-s")
        options = f"-k {self._sockets} -c listen_addresses= -c checkpoint_timeout=30s"
        run(*control, "-l", self.data / "log", "-o", options, "start", user=USER)
        try:
            yield
        finally:
            run(*control, "-m", "fast", "stop", user=USER)


def test_pgbench_runs_through_a_killed_primary(
    start_cluster: Callable[..., RunningCluster], tool: Tool
) -> None:
    """The application's node has no copy; the primary on another one is killed in the middle."""
    cluster = start_cluster(nodes=4)
    cluster.create("db", "1GiB")
    node = cluster.bystanders("db")[0]
    attached = cluster.run("volume", "attach", "db", "--node", node)
    if attached.code and "cannot make block devices" in attached.err:
        pytest.skip(attached.err)
    assert attached.code == 0, attached.err
    cluster.do("volume", "detach", "db")
    with mounted(cluster, "db", node, tool) as folder:
        database = Database(folder, tool)
        with database.serving():
            run(*database.command("pgbench", "-i", "-q", "-s", "5", "postgres"), user=USER)
            bench = database.command("pgbench", "-c", "4", "-T", "11", "-P", "1", "postgres")
            with subprocess.Popen(
                bench,
                user=USER,
                cwd="/",
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            ) as process:
                try:
                    time.sleep(3)  # How long it runs in peace; nothing is waited for.
                    victim = cluster.primary("db")
                    cluster.kill(victim)
                    said, _ = process.communicate(timeout=120)
                finally:
                    process.kill()
            assert process.returncode == 0, said
            assert "number of failed transactions: 0 " in said, said
            cluster.start(victim)
            check = ("pg_amcheck", "--install-missing", "--heapallindexed", "--all")
            run(*database.command(*check), user=USER)
        run(tool("pg_checksums"), "--check", "-D", database.data, user=USER)
    wait_until(lambda: cluster.show("db")["health"] == "healthy", 120, "all copies in sync")
    cluster.verify("db")
