"""The loads, and what running one of them with fio against a server gives."""

from __future__ import annotations

import json
import resource
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import attrs

from benchmarks.machine import Load, cpu_s, family, rss_bytes
from benchmarks.peers import PeerError, Server

WARM_UP_S = 1
PREFILL_TIMEOUT_S = 600


@attrs.frozen
class Job:
    """One load."""

    name: str
    mode: str
    """fio's `rw`."""
    block: str
    depth: int
    """Requests under way."""
    extra: tuple[str, ...] = ()

    @property
    def is_bandwidth(self) -> bool:
        """Whether bytes a second say more than requests a second."""
        return self.block != "4k"


JOBS = {
    job.name: job
    for job in (
        Job("randwrite-d1", "randwrite", "4k", 1),
        Job("randwrite-d16", "randwrite", "4k", 16),
        Job("randwrite-d32", "randwrite", "4k", 32),
        Job("randread-d1", "randread", "4k", 1),
        Job("randread-d32", "randread", "4k", 32),
        Job("randwrite-64k-d8", "randwrite", "64k", 8),
        Job("write-1m-d4", "write", "1m", 4),
        Job("read-1m-d4", "read", "1m", 4),
        Job("write-flush-d1", "randwrite", "4k", 1, ("--fsync=1",)),
    )
}
TARGETS = ("randwrite-d16", "randwrite-d1")
"""What the project has promised figures for."""
DATA = {
    "random": (),
    "half": (
        "--buffer_compress_percentage=50",
        "--buffer_compress_chunk=4096",
        "--refill_buffers",
    ),
}
"""What is written: bytes that do not compress, or half of which do."""


@attrs.frozen
class Figures:
    """What one run of one job gave."""

    iops: float
    mb_per_s: float
    """Millions of bytes a second."""
    p50_us: float
    p99_us: float
    p999_us: float
    max_us: float
    server_cpu_us: float
    """Processor time of all server processes for one request."""
    client_cpu_us: float
    """The same of fio."""
    rss_mib: float
    """Resident memory of all server processes at the end."""
    foreign_percent: float
    """Which part of the machine's processors did neither serve nor measure; kernel threads count too.
    Above 15 the figure is too low to be trusted."""


def prefill(server: Server, size: int, data: str) -> None:
    """Write the whole volume once, so that no job measures allocation."""
    _fio(server, size, data, ["--rw=write", "--bs=1m", "--iodepth=4", "--end_fsync=1"])


def run(job: Job, server: Server, size: int, runtime_s: int, data: str) -> Figures:
    """Run `job` for `runtime_s` seconds after a warm-up.

    Raises:
        PeerError: fio failed; carries what it said.
    """
    words = [
        f"--rw={job.mode}",
        f"--bs={job.block}",
        f"--iodepth={job.depth}",
        "--time_based",
        *job.extra,
    ]
    _fio(server, size, data, [*words, f"--runtime={WARM_UP_S}"])
    pids = family(server.pids)
    load, cpu, began = Load.now(), cpu_s(pids), time.monotonic()
    result, client_s = _fio(server, size, data, [*words, f"--runtime={runtime_s}"])
    wall_s = time.monotonic() - began
    used, server_s = Load.now().since(load), cpu_s(pids) - cpu
    part = result["read" if "read" in job.mode else "write"]
    requests = max(1, part["total_ios"])
    percentiles = part["lat_ns"].get("percentile", {})
    assert wall_s > 0
    return Figures(
        iops=part["iops"],
        mb_per_s=part["bw_bytes"] / 1e6,
        p50_us=percentiles.get("50.000000", 0) / 1e3,
        p99_us=percentiles.get("99.000000", 0) / 1e3,
        p999_us=percentiles.get("99.900000", 0) / 1e3,
        max_us=part["lat_ns"]["max"] / 1e3,
        server_cpu_us=server_s * 1e6 / requests,
        client_cpu_us=client_s * 1e6 / requests,
        rss_mib=rss_bytes(pids) / (1 << 20),
        foreign_percent=100
        * max(0.0, used.busy_s - server_s - client_s)
        / max(0.01, used.busy_s + used.idle_s),
    )


def _words(server: Server) -> tuple[str, ...]:
    if isinstance(server.access, str):
        return ("--ioengine=nbd", f"--uri={server.access}")
    return server.access


def _fio(server: Server, size: int, data: str, words: list[str]) -> tuple[dict[str, Any], float]:
    """Run fio; return its job's result and the processor time that it used, in seconds."""
    with tempfile.TemporaryDirectory(prefix="holdfast-fio-") as folder:
        output = Path(folder) / "output.json"
        command = [
            *("fio", "--name=job", *_words(server), f"--size={size}"),
            *("--output-format=json", f"--output={output}", "--thread"),
            *("--randrepeat=0", "--norandommap", "--random_generator=tausworthe64"),
            *("--lat_percentiles=1", "--clat_percentiles=0", "--percentile_list=50:99:99.9"),
            *DATA[data],
            *words,
        ]
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        try:
            done = subprocess.run(
                command,
                cwd=folder,
                capture_output=True,
                text=True,
                timeout=PREFILL_TIMEOUT_S,
                check=False,
            )
        except FileNotFoundError as error:
            raise PeerError("fio not installed") from error
        except subprocess.TimeoutExpired as error:
            raise PeerError(f"fio did not end within {PREFILL_TIMEOUT_S} s") from error
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        text = output.read_text() if output.exists() else ""
    if done.returncode:
        raise PeerError(f"fio failed: {(done.stderr + done.stdout + text)[-400:].strip()}")
    result: dict[str, Any] = json.loads(text[text.index("{") :])["jobs"][0]
    if result["error"]:
        raise PeerError(f"fio reports error {result['error']}")
    return result, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
