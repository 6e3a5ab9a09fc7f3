"""What people would use instead of Holdfast, each started here, used and ended again.

All but GlusterFS serve NBD over TCP on loopback, so that one client measures them alike, and all
acknowledge a write when every copy has it in its page cache, as Holdfast does.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any, Self

import attrs
from tests.harness.waiting import WaitedInVainError, wait_until

HOST = "127.0.0.1"
READY_S = 20.0
"""How long a peer may take to start."""


class PeerError(Exception):
    """A peer cannot be used here; says why."""


@attrs.frozen
class Server:
    """Something that serves one volume."""

    access: str | tuple[str, ...]
    """The URI of NBD over TCP, or fio's words for another way."""
    pids: tuple[int, ...]
    """Every process whose time counts as the server's; descendants are found by themselves."""
    copies: int


Peer = Callable[[Path, int], AbstractContextManager[Server]]
"""Takes a folder for the copies and a size in bytes."""


def needs(*programs: str) -> None:
    """Raise `PeerError` when one of these programs is not installed."""
    missing = [program for program in programs if shutil.which(program) is None]
    if missing:
        raise PeerError(f"{', '.join(missing)} not installed")


def is_open(port: int) -> bool:
    """Return whether somebody listens on a TCP port."""
    with socket.socket() as probe:
        return probe.connect_ex((HOST, port)) == 0


def wait_for(condition: Callable[[], bool], deadline_s: float, what: str) -> None:
    """Wait as `wait_until` does, and raise `PeerError` when it was in vain."""
    try:
        wait_until(condition, deadline_s, what)
    except WaitedInVainError as error:
        raise PeerError(str(error)) from error


def free_port() -> int:
    """Return a TCP port that nobody has at the moment."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


@contextlib.contextmanager
def running(
    command: Sequence[str], ready: Path, log: Path, *, env: dict[str, str] | None = None
) -> Iterator[int]:
    """Run a server until the context ends; begin when the file `ready` has appeared.

    Raises:
        PeerError: It ended, or was not ready in time; carries the end of what it said.
    """
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=os.environ | (env or {}),
        )
    try:
        deadline = time.monotonic() + READY_S
        while not (ready.exists() and ready.stat().st_size):
            if process.poll() is not None or time.monotonic() > deadline:
                said = log.read_text(errors="replace")[-500:]
                raise PeerError(f"{command[0]} did not start: {said or 'it said nothing'}")
            time.sleep(0.02)
        yield process.pid
    finally:
        process.terminate()
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextlib.contextmanager
def nbdkit(folder: Path, size: int) -> Iterator[Server]:
    """One file behind nbdkit, not replicated: what the network and the client cost by themselves."""
    needs("nbdkit")
    image = _image(folder / "image", size)
    port = free_port()
    ready = folder / "nbdkit.pid"
    command = ["nbdkit", "-f", "-P", str(ready), "-i", HOST, "-p", str(port), "file", str(image)]
    with running(command, ready, folder / "nbdkit.log") as pid:
        yield Server(f"nbd://{HOST}:{port}", (pid,), copies=1)


@contextlib.contextmanager
def quorum(folder: Path, size: int) -> Iterator[Server]:
    """QEMU's quorum driver over one local file and two NBD servers: three copies, all written.

    A quorum of reads is not asked for (`read-pattern=fifo` reads one copy), as Holdfast does.
    """
    with ExitStack() as stack:
        shim = _shim(folder)
        remotes = [stack.enter_context(_qemu_copy(folder, n, size, shim)) for n in (1, 2)]
        local = _image(folder / "local", size)
        blocks = ["--blockdev", f"{_file(local)},node-name=local"]
        for number, (port, _) in enumerate(remotes, 1):
            blocks += ["--blockdev", f"{_remote(port)},node-name=remote{number}"]
        how = "driver=quorum,node-name=volume,vote-threshold=2,read-pattern=fifo"
        children = "children.0=local,children.1=remote1,children.2=remote2"
        blocks += ["--blockdev", f"{how},{children}"]
        port, front = stack.enter_context(_qemu(folder, "front", blocks, "volume", shim))
        pids = (front, *(pid for _, pid in remotes))
        yield Server(f"nbd://{HOST}:{port}/volume", pids, copies=3)


@contextlib.contextmanager
def mirror(folder: Path, size: int) -> Iterator[Server]:
    """QEMU's mirror job in mode write-blocking: a local file and two NBD servers, three copies.

    QEMU takes one mirror job for a device, so its target is a quorum of both servers.
    """
    with ExitStack() as stack:
        shim = _shim(folder)
        remotes = [stack.enter_context(_qemu_copy(folder, n, size, shim)) for n in (1, 2)]
        control = folder / "qmp"
        blocks = [
            *("--chardev", f"socket,id=control,path={control},server=on,wait=off"),
            *("--monitor", "chardev=control"),
            *("--blockdev", f"{_file(_image(folder / 'local', size))},node-name=volume"),
        ]
        for number, (port, _) in enumerate(remotes, 1):
            blocks += ["--blockdev", f"{_remote(port)},node-name=remote{number}"]
        how = "driver=quorum,node-name=remote,vote-threshold=1,read-pattern=fifo"
        blocks += ["--blockdev", f"{how},children.0=remote1,children.1=remote2"]
        port, front = stack.enter_context(_qemu(folder, "front", blocks, "volume", shim))
        with _Qmp(control) as qmp:
            qmp.call(
                "blockdev-mirror",
                {
                    "job-id": "mirror",
                    "device": "volume",
                    "target": "remote",
                    "sync": "full",
                    "copy-mode": "write-blocking",
                },
            )
            wait_for(
                lambda: [job["status"] for job in qmp.call("query-jobs")] == ["ready"],
                30,
                "QEMU's mirror to be ready",
            )
        pids = (front, *(pid for _, pid in remotes))
        yield Server(f"nbd://{HOST}:{port}/volume", pids, copies=3)


PEERS: dict[str, Peer] = {"nbdkit": nbdkit, "quorum": quorum, "mirror": mirror}


def _image(path: Path, size: int) -> Path:
    """Make a file with its space allocated."""
    with path.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, size)
    return path


def _shim(folder: Path) -> str:
    """Compile `nodelay.c` and return the path of the library."""
    compiler = next((name for name in ("cc", "gcc", "clang") if shutil.which(name)), None)
    if compiler is None:
        raise PeerError("no C compiler, so old QEMUs would be measured with delayed replies")
    library = folder / "nodelay.so"
    source = Path(__file__).with_name("nodelay.c")
    command = [compiler, "-shared", "-fPIC", "-O2", "-o", str(library), str(source), "-ldl"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise PeerError(f"nodelay.c does not compile: {done.stderr[-300:]}")
    return str(library)


def _file(path: Path) -> str:
    return f"driver=file,filename={path},aio=threads,discard=unmap"


def _remote(port: int) -> str:
    where = f"server.type=inet,server.host={HOST},server.port={port}"
    return f"driver=nbd,{where},export=volume"


@contextlib.contextmanager
def _qemu_copy(folder: Path, number: int, size: int, shim: str) -> Iterator[tuple[int, int]]:
    """Serve one more copy from a process of its own; yield its port and process id."""
    image = _image(folder / f"remote{number}", size)
    blocks = ["--blockdev", f"{_file(image)},node-name=volume"]
    with _qemu(folder, f"remote{number}", blocks, "volume", shim) as served:
        yield served


@contextlib.contextmanager
def _qemu(
    folder: Path, name: str, blocks: Sequence[str], node: str, shim: str
) -> Iterator[tuple[int, int]]:
    """Export a block node over TCP; yield the port and the process id."""
    needs("qemu-storage-daemon")
    port = free_port()
    ready = folder / f"{name}.pid"
    command = [
        "qemu-storage-daemon",
        *blocks,
        *(
            "--nbd-server",
            f"addr.type=inet,addr.host={HOST},addr.port={port},max-connections=16",
        ),
        *("--export", f"type=nbd,id=export,node-name={node},name=volume,writable=on"),
        *("--pidfile", str(ready)),
    ]
    env = {"LD_PRELOAD": shim}
    with running(command, ready, folder / f"{name}.log", env=env) as pid:
        yield port, pid


class _Qmp:
    """QEMU's control protocol: one JSON object a line."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(str(path))
        self._file = self._socket.makefile("rw", encoding="utf-8")
        self._file.readline()  # The greeting.
        self.call("qmp_capabilities")

    def call(self, command: str, arguments: dict[str, Any] | None = None) -> Any:
        self._file.write(json.dumps({"execute": command, "arguments": arguments or {}}) + "\n")
        self._file.flush()
        while True:
            answer = json.loads(self._file.readline())
            if "error" in answer:
                raise PeerError(f"QEMU refused {command}: {answer['error']['desc']}")
            if "return" in answer:
                return answer["return"]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self._socket.close()
