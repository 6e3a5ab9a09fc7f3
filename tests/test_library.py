"""Volumes used by a program without a node, on real clusters; docs/library.md runs, too."""

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import anyio
import pytest
from tests.harness.cluster import RunningCluster

from holdfast.api import BlockingCluster, Cluster
from holdfast.errors import ConflictError, NotFoundError, UsageError, VolumeError
from holdfast.sync.attachments import HOLDER_PATIENCE_S

Start = Callable[..., RunningCluster]
BLOCK_BYTES = 4096
MIB = 1 << 20
PAGE = Path(__file__).parent.parent / "docs" / "library.md"


@pytest.mark.anyio
async def test_a_killed_primary_is_a_pause_for_a_program(start_cluster: Start) -> None:
    cluster = start_cluster(nodes=3)
    cluster.create("db", "64MiB")
    written: dict[int, int] = {}
    pause_s = 0.0
    async with Cluster.open(cluster.dir) as opened, opened.volume("db") as volume:
        assert volume.size_bytes == 64 * MIB
        stop = anyio.Event()

        async def write(worker: int) -> None:
            nonlocal pause_s
            number = 0
            while not stop.is_set():
                block = worker * 256 + number % 256
                number += 1
                began = time.monotonic()
                await volume.write(block * BLOCK_BYTES, number.to_bytes(4, "big") * 1024)
                pause_s = max(pause_s, time.monotonic() - began)
                written[block] = number

        async with anyio.create_task_group() as group:
            for worker in range(8):
                group.start_soon(write, worker)
            while len(written) < 64:  # noqa: ASYNC110 - several tasks count.
                await anyio.sleep(0.01)
            await anyio.to_thread.run_sync(cluster.kill, cluster.primary("db"))
            before = sum(written.values())
            with anyio.fail_after(120):
                while pause_s < 0.5 or sum(written.values()) < before + 200:  # noqa: ASYNC110
                    await anyio.sleep(0.01)
            stop.set()
        await volume.flush()
        for block, number in written.items():
            data = await volume.read(block * BLOCK_BYTES, BLOCK_BYTES)
            assert data == number.to_bytes(4, "big") * 1024
    assert 0.5 < pause_s < 10


@pytest.mark.anyio
async def test_a_program_is_a_consumer_like_any_other(start_cluster: Start) -> None:
    cluster = start_cluster(nodes=2)
    cluster.create("db", replicas=1)
    async with (
        Cluster.open(cluster.node("n2").config) as first,
        Cluster.open(cluster.dir) as second,
    ):
        assert list(await first.volumes()) == ["db"]
        assert (await first.describe("db")).replicas == 1
        with pytest.raises(NotFoundError, match="no volume 'dbb'"):
            await first.describe("dbb")
        async with first.volume("db") as volume:
            assert cluster.show("db")["attached"] == first.name
            with pytest.raises(ConflictError, match=first.name):
                await second.volume("db").__aenter__()
            async with second.volume("db", read_only=True) as reader:
                await volume.write(0, b"w" * 512)
                assert await reader.read(0, 512) == b"w" * 512
            async with second.volume("db", force=True) as thief:
                await thief.write(0, b"t" * 512)
                with pytest.raises(VolumeError):
                    await volume.write(0, b"w" * 512)
        async with first.volume("db") as volume:
            assert await volume.read(0, 512) == b"t" * 512
            later = first.volume("db")
    with pytest.raises(UsageError, match="not open"):
        await first.volumes()
    with pytest.raises(VolumeError):
        await later.read(0, 512)


def test_a_program_that_died_holds_nobody_up_for_long(start_cluster: Start) -> None:
    cluster = start_cluster(nodes=1)
    cluster.create("db", replicas=0)
    program = (
        "import sys\n"
        "from holdfast.api import BlockingCluster\n"
        "with BlockingCluster.open() as cluster, cluster.volume('db') as volume:\n"
        "    volume.write(0, b'd' * 512)\n"
        "    print('written', flush=True)\n"
        "    sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program],
        env=os.environ | {"HOLDFAST_DIR": str(cluster.dir)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "written\n"
        process.kill()
    began = time.monotonic()
    with BlockingCluster.open(cluster.dir) as opened, opened.volume("db") as volume:
        assert volume.read(0, 512) == b"d" * 512
        assert list(opened.volumes()) == ["db"]
        assert opened.describe("db").size_bytes == volume.size_bytes
    assert time.monotonic() - began < HOLDER_PATIENCE_S + 5
    with pytest.raises(UsageError, match="not open"):
        opened.volumes()


def test_a_folder_without_a_cluster_says_so(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no local cluster"):
        Cluster.open(tmp_path)


def programs() -> list[str]:
    """Return the Python programs of the page."""
    return re.findall(r"^```python\n(.*?)^```", PAGE.read_text("utf-8"), re.MULTILINE | re.DOTALL)


def test_the_page_on_the_library_does_what_it_says(start_cluster: Start) -> None:
    cluster = start_cluster(nodes=1)
    cluster.create("db", replicas=0)
    assert len(programs()) > 2
    for program in programs():
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", program],
            env=os.environ | {"HOLDFAST_DIR": str(cluster.dir)},
            cwd=cluster.dir,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, f"{program}\n{done.stderr}"
