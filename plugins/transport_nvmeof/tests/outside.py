"""A cluster on this machine, and another kernel that attaches its volume: two paths, a handover, a death.

    python -m plugins.transport_nvmeof.tests.outside

The cluster runs here, the kernel under QEMU; the half of this program that runs there says on its console
when the primary is to go. Needs what `tests.guest` needs, nvme-cli, xfsprogs and fio.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import attrs
from tests.harness.cluster import RunningCluster

from holdfast.units import MIB

CONFIG = """
[frontend.nvme-tcp]
listen = "127.0.0.1:0"
discovery_listen = ""
"""
HOST = "10.0.2.2"
"""The machine that QEMU runs on, as its guest sees it."""
HANDOVER, KILL = "Now hand the volume over.", "Now kill the primary."
PAUSE_S_MAX = 6.0
DEADLINE_S = 120.0
CLASS = Path("/sys/class/nvme-subsystem")
BLOCK, LOG_BLOCKS = 4096, 8192
FIO_AT = LOG_BLOCKS * BLOCK
_IDENTITY = "11111111-2222-3333-4444-555555555555"
WHO = ("--hostnqn", f"nqn.2014-08.org.nvmexpress:uuid:{_IDENTITY}", "--hostid", _IDENTITY)


def main() -> int:
    """Run the cluster, then the guest beside it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--inside", nargs=3, metavar=("PORT", "PORT", "NQN"), help=argparse.SUPPRESS
    )
    inside = parser.parse_args().inside
    if inside:
        _inside(inside[:2], inside[2])
        return 0
    with (
        tempfile.TemporaryDirectory() as folder,
        RunningCluster(Path(folder) / "cluster", nodes=3, config=CONFIG) as cluster,
    ):
        # Three nodes cannot heal a death; a slow guest is not to meet the end of the grace.
        cluster.create("db", str(512 * MIB), "--set", "grace_s=3600", replicas=2)
        return _outside(cluster)


def _outside(cluster: RunningCluster) -> int:
    primary = cluster.primary("db")
    nodes = [primary, next(name for name in cluster.names if name != primary)]
    ports, nqn = [], ""
    for node in nodes:
        uri = cluster.do("volume", "url", "db", "--frontend", "nvme-tcp", "--node", node)
        found = re.fullmatch(r"nvme\+tcp://[^/]*:(\d+)/(\S+)", uri.strip())
        assert found is not None, uri
        ports.append(found[1])
        nqn = found[2]
    own = [sys.executable, "-m", "plugins.transport_nvmeof.tests.outside", "--inside", *ports, nqn]
    guest = [sys.executable, "-m", "tests.guest", "--reach-host", "--cpus", "4", *own]
    with subprocess.Popen(guest, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            _say(line.rstrip())
            if line.strip() == HANDOVER:
                cluster.do("volume", "promote", "db", nodes[1])
            elif line.strip() == KILL:
                cluster.kill(cluster.primary("db"))
    return process.returncode


# --- in the guest --------------------------------------------------------------------------


def _inside(ports: list[str], nqn: str) -> None:
    listed = _run("nvme", "discover", "-t", "tcp", "-a", HOST, "-s", ports[0], *WHO)
    assert nqn in listed, listed
    assert all(f"trsvcid: {port}" in listed for port in ports), listed
    for digests in ([], ["--hdr-digest", "--data-digest"]):
        _connect(ports[0], nqn, "--nr-io-queues", "4", *digests)
        _use_file_system(_device(nqn))
        _run("nvme", "disconnect", "-n", nqn)
    for port in ports:
        _connect(
            port, nqn, "--keep-alive-tmo", "2", "--reconnect-delay", "1", "--ctrl-loss-tmo", "60"
        )
    device = _device(nqn)
    _until(lambda: _paths() == ["optimized", "non-optimized"], "two paths")
    writer = Writer(device)
    fio = subprocess.Popen(
        ["fio", "--name=verify", f"--filename={device}", f"--offset={FIO_AT}", "--size=64M",
         "--rw=randwrite", "--bs=16k", "--direct=1", "--ioengine=libaio", "--iodepth=8",
         "--verify=crc32c", "--verify_fatal=1", "--verify_state_save=0", "--loops=2"],
        stdout=subprocess.DEVNULL,
    )  # fmt: skip
    writer.go_on(50)
    _say(HANDOVER)
    _until(lambda: _paths() == ["non-optimized", "optimized"], "the paths changing places")
    writer.go_on(50)
    _say(f"Handed over; the longest write took {writer.longest_s:.2f} s.")
    writer.longest_s = 0.0
    _say(KILL)
    _until(lambda: "live" not in _states()[1:], "the death being noticed")
    writer.go_on(50)
    _say(f"Killed; the longest write took {writer.longest_s:.2f} s.")
    assert writer.longest_s <= PAUSE_S_MAX
    assert fio.wait() == 0, "fio found other bytes than it had written"
    writer.stop()
    told = subprocess.run(["dmesg"], capture_output=True, text=True, check=True).stdout
    assert "I/O error" not in told, told
    _run("nvme", "disconnect", "-n", nqn)


@attrs.define
class Writer:
    """Writes numbered blocks one after the other, and reads them back in the end."""

    device: str
    written: int = 0
    longest_s: float = 0.0
    _is_over: bool = False
    _thread: threading.Thread = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        """Begin."""
        self._thread = threading.Thread(target=self._write, daemon=True)
        self._thread.start()

    def _write(self) -> None:
        with open(self.device, "wb", buffering=0, opener=_synchronously) as file:
            while not self._is_over:
                begun = time.monotonic()
                os.pwrite(file.fileno(), _block(self.written), self.written % LOG_BLOCKS * BLOCK)
                self.longest_s = max(self.longest_s, time.monotonic() - begun)
                self.written += 1

    def go_on(self, count: int) -> None:
        """Return when `count` more writes were acknowledged."""
        goal = self.written + count
        _until(lambda: self.written >= goal, "writes going on")

    def stop(self) -> None:
        """End, and hold every block that was acknowledged against what is there now."""
        self._is_over = True
        self._thread.join()
        _run("blockdev", "--flushbufs", self.device)
        first = max(0, self.written - LOG_BLOCKS)
        with Path(self.device).open("rb") as file:
            for number in range(first, self.written):
                got = os.pread(file.fileno(), BLOCK, number % LOG_BLOCKS * BLOCK)
                assert got == _block(number), f"write {number} is lost"
        _say(f"All {self.written - first} numbered writes are there.")


def _synchronously(path: str, flags: int) -> int:
    return os.open(path, flags & ~os.O_CREAT & ~os.O_TRUNC | os.O_SYNC)


def _block(number: int) -> bytes:
    return number.to_bytes(8, "little") * (BLOCK // 8)


def _use_file_system(device: str) -> None:
    _run("mkfs.xfs", "-q", "-f", device)
    _run("mount", device, "/mnt")
    data = os.urandom(16 * MIB)
    Path("/mnt/file").write_bytes(data)
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3")
    assert Path("/mnt/file").read_bytes() == data
    Path("/mnt/file").unlink()
    _run("fstrim", "/mnt")
    _run("umount", "/mnt")
    _run("xfs_repair", "-n", device)


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stdout}{done.stderr}"
    return done.stdout


def _connect(port: str, nqn: str, *options: str) -> None:
    _run("nvme", "connect", "-t", "tcp", "-a", HOST, "-s", port, "-n", nqn, *WHO, *options)


def _device(nqn: str) -> str:
    def found() -> list[str]:
        homes = [
            home for home in CLASS.glob("*") if (home / "subsysnqn").read_text().strip() == nqn
        ]
        spaces = [space.name for home in homes for space in home.glob("nvme*n*")]
        return [f"/dev/{name}" for name in spaces if Path("/dev", name).exists()]

    _until(lambda: bool(found()), "the device")
    return found()[0]


def _paths() -> list[str]:
    found = sorted(Path("/sys/class/nvme").glob("nvme*/nvme*c*n*/ana_state"))
    return [path.read_text().strip() for path in found]


def _states() -> list[str]:
    found = sorted(Path("/sys/class/nvme").glob("nvme*/state"))
    return [path.read_text().strip() for path in found]


def _until(holds: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not holds():
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.02)


if __name__ == "__main__":
    sys.exit(main())
