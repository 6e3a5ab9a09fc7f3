"""GlusterFS, three replicas on this machine, as one of the peers: a file on a volume of three bricks.

fio speaks to it through libgfapi, without FUSE in between, which is the fastest way that it offers.
`write-behind` is off: with it, GlusterFS acknowledges what no brick has seen. The caches of the client
are off as well, so that reads are measured and not memory. Its management daemon has one fixed port
and one folder, so the machine must not run GlusterFS for anything else.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

from benchmarks.peers import HOST, PeerError, Server, is_open, needs, wait_for

PORT = 24007
STATE = Path("/var/lib/glusterd")
BRICKS = 3
OPTIONS = {
    "performance.write-behind": "off",
    "performance.quick-read": "off",
    "performance.io-cache": "off",
    "performance.read-ahead": "off",
    "performance.stat-prefetch": "off",
    "client.event-threads": "2",
    "server.event-threads": "2",
    "self-heal-daemon": "off",
}


@contextlib.contextmanager
def gluster(folder: Path, size: int) -> Iterator[Server]:
    """Serve one file of `size` bytes from three bricks."""
    needs("glusterd", "gluster", "glusterfs")
    if os.geteuid():
        raise PeerError("GlusterFS needs root")
    if is_open(PORT) or (STATE.exists() and any((STATE / "vols").glob("*"))):
        raise PeerError(f"GlusterFS is in use on this machine (port {PORT}, {STATE})")
    for needed in (STATE, Path("/var/log/glusterfs"), Path("/var/run/gluster")):
        needed.mkdir(parents=True, exist_ok=True)
    log = folder / "glusterd.log"
    with log.open("wb") as output:
        daemon = subprocess.Popen(["glusterd", "-N"], stdout=output, stderr=output)
    volume = folder.name
    try:
        wait_for(lambda: is_open(PORT), 5, "glusterd to listen")
        wait_for(lambda: _gluster("volume", "list", check=False) == 0, 5, "glusterd to answer")
        bricks = [f"{socket.gethostname()}:{folder}/brick{n}/data" for n in range(BRICKS)]
        for number in range(BRICKS):
            (folder / f"brick{number}").mkdir()
        _gluster("volume", "create", volume, "replica", str(BRICKS), *bricks, "force")
        for name, value in OPTIONS.items():
            _gluster("volume", "set", volume, name, value)
        _gluster("volume", "start", volume)
        _make_image(volume, folder / "mount", size)
        pids = tuple(int(pid) for pid in _output("pgrep", "-x", "glusterfsd").split())
        words = ("--ioengine=gfapi_async", f"--volume={volume}", f"--brick={HOST}")
        yield Server((*words, "--filename=image"), pids, copies=BRICKS)
    finally:
        _gluster("volume", "stop", volume, "force", check=False)
        _gluster("volume", "delete", volume, check=False)
        daemon.terminate()
        daemon.wait()


def _make_image(volume: str, mount: Path, size: int) -> None:
    """Make the file through a FUSE mount, which waits until all bricks are connected."""
    mount.mkdir()
    _output("glusterfs", "-s", HOST, "--volfile-id", volume, str(mount))
    try:
        with (mount / "image").open("wb") as image:
            image.truncate(size)
    except OSError as error:
        raise PeerError(f"GlusterFS does not take a file: {error}") from error
    finally:
        _output("umount", str(mount))


def _gluster(*words: str, check: bool = True) -> int:
    command = ["gluster", "--mode=script", *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    if check and done.returncode:
        raise PeerError(f"gluster {' '.join(words[:2])}: {(done.stderr or done.stdout).strip()}")
    return done.returncode


def _output(*command: str) -> str:
    path = shutil.which(command[0])
    done = subprocess.run(
        [path or command[0], *command[1:]],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    if done.returncode:
        raise PeerError(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout
