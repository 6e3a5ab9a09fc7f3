"""Nodes on machines of their own that really lose power: guests of User-Mode Linux. Needs root.

A guest is a Linux kernel that runs as a process. It has this machine's file system, read-only, as its
own, one disk with ext4 for the node's copies, and a cable to a bridge. Killed, all that was in its
memory is gone: the node and the page cache. What its disk had been handed stays. Started again it
replays the journal, as a machine would; the node finds another boot id because it is another boot.

Guest and host share no lock and no memory map, so nodes in guests reach the state store by `relay`.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from threading import Thread
from typing import IO

import attrs
from tests.harness import network
from tests.harness.cluster import Json, RunningCluster
from tests.harness.disks import can_make_disks, copy_image, make_image, mounted
from tests.harness.nbd import Command, NbdConnection
from tests.harness.waiting import wait_until

from holdfast.node.local_cluster import LocalNode
from holdfast.node.processes import is_alive, send
from holdfast.node.toml_files import Settings, toml_text

KERNEL = "linux.uml"
"""Debian's package user-mode-linux."""
MEMORY = "256M"
ROOT = Path(__file__).parents[2]
_READY = re.compile(rb"Node \w+ is ready")
_METADATA = {
    "METADATA": "Metadata-Version: 2.1\nName: holdfast-tests-relay\nVersion: 0\n",
    "entry_points.txt": "[holdfast.state]\nrelay = tests.harness.state_relay:RelayStateDriver\n",
}
_INIT = """#!/bin/sh
export PATH=/usr/sbin:/usr/bin:/sbin:/bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t tmpfs tmpfs /run
e2fsck -p /dev/ubda
[ $? -lt 4 ] || exit 1
mount -t ext4 /dev/ubda {data}
ip link set lo up
ip link set vec0 address {mac} up
ip addr add {address}/24 dev vec0
cd /run
export HOME=/run XDG_CACHE_HOME=/run PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
export PYTHONPATH={path}
exec {python} -P -m holdfast.node --config {config} --pid-file /run/node.pid </dev/null
"""


def can_make_guests() -> bool:
    """Return whether this process may start guests with disks and cables, and has the kernel."""
    return (
        can_make_disks()
        and shutil.which(KERNEL) is not None
        and shutil.which("ip") is not None
        and Path("/dev/net/tun").exists()
    )


@attrs.define
class Guest:
    """The machine of one node."""

    node: LocalNode
    tap: str
    """Its end of the cable on the host."""
    address: str
    _process: subprocess.Popen[bytes] | None = None
    _console: Thread | None = None

    @property
    def image(self) -> Path:
        """What its disk holds."""
        return self.node.dir / "disk.img"

    def prepare(self, path: str) -> None:
        """Make its disk, and what its kernel starts; `path` is where Python finds everything."""
        make_image(self.image)
        number = self.address.rpartition(".")[2]
        init = _INIT.format(
            data=shlex.quote(str(self.node.data)),
            address=self.address,
            # The same after each boot, or the others would go on sending to the one before.
            mac=f"02:00:00:00:00:{int(number):02x}",
            path=shlex.quote(path),
            python=shlex.quote(sys.executable),
            config=shlex.quote(str(self.node.config)),
        )
        self._init.write_text(init)
        self._init.chmod(0o755)

    def boot(self) -> None:
        """Switch it on."""
        assert self._process is None, f"the machine of {self.node.name} is on"
        umid = f"boot{len(list(self.node.dir.glob('boot*')))}"
        self._process = subprocess.Popen(
            [
                *(KERNEL, f"mem={MEMORY}", "rootfstype=hostfs", "rootflags=/", "ro", "quiet"),
                *(f"init={self._init}", f"ubda={self.image}", "con=null", "con0=fd:0,fd:1"),
                *(f"vec0:transport=tap,ifname={self.tap},depth=128,gro=1",),
                *(f"uml_dir={self.node.dir}/", f"umid={umid}"),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        # The kernel waits with epoll for its console, which a file has not.
        assert self._process.stdout is not None
        self._console = Thread(target=self._log, args=(self._process.stdout,), daemon=True)
        self._console.start()

    def cut_power(self) -> None:
        """Kill the kernel and its helpers; `wait_dark` waits until they are gone."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)

    def wait_dark(self) -> None:
        """Return when nothing of a machine whose power was cut is left."""
        if self._process is None:
            return
        session = self._process.pid
        self._process.wait(10)
        wait_until(lambda: not _living(session), 10, f"the helpers of {KERNEL} {session} to end")
        if self._console is not None:
            self._console.join()
        self._process = None

    @contextlib.contextmanager
    def standing_still(self) -> Iterator[None]:
        """Stop its kernel, and so all that it does to its disk, while the context lasts."""
        assert self._process is not None, f"the machine of {self.node.name} is off"
        send(self._process.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            send(self._process.pid, signal.SIGCONT)

    @property
    def is_on(self) -> bool:
        """Whether its kernel runs."""
        return self._process is not None and self._process.poll() is None

    @property
    def is_ready(self) -> bool:
        """Whether its node has been ready since the first boot."""
        assert self.is_on, f"the machine of {self.node.name} has stopped; see {self.node.log}"
        return _READY.search(self.node.log.read_bytes()) is not None

    @property
    def _init(self) -> Path:
        return self.node.dir / "init"

    def _log(self, console: IO[bytes]) -> None:
        with self.node.log.open("ab", buffering=0) as log:
            for line in console:
                log.write(line.rstrip() + b"\n")


@attrs.define
class GuestCluster(RunningCluster):
    """A cluster whose first nodes are on machines of their own; the others only serve consumers."""

    machines: int = 3
    guests: dict[str, Guest] = attrs.field(factory=dict, init=False)
    _number: int = attrs.field(default=0, init=False)
    _relay: subprocess.Popen[str] | None = attrs.field(default=None, init=False)

    def up(self) -> None:
        """Start all of it."""
        self._make()
        self._open()
        self._number = network.make_bridge()
        port = self._serve_state()
        path = os.pathsep.join((str(self._metadata()), str(ROOT), os.environ.get("PYTHONPATH", "")))
        for index, name in enumerate(self.names):
            self._configure(self.node(name), index, port)
        for guest in self.guests.values():
            network.make_tap(guest.tap, self._number)
            guest.prepare(path)
            guest.boot()
        for name in self.names[self.machines :]:
            self.start(name)
        for guest in self.guests.values():
            wait_until(lambda g=guest: g.is_ready, 60, f"node {guest.node.name}")  # type: ignore[misc]

    def cut(self, nodes: Sequence[str]) -> None:
        """Cut the power of all these machines at one moment."""
        for node in nodes:
            self.guests[node].cut_power()
        for node in nodes:
            self.guests[node].wait_dark()

    def boot(self, node: str) -> None:
        """Switch a machine that has lost power on again, and with it its node."""
        self.guests[node].boot()

    def image(self, node: str) -> Path:
        """Return what a node's disk holds."""
        return self.guests[node].image

    def verify(self, name: str, deadline_s: float = 180.0) -> Json:
        """Flush the only volume, and compare what the disks of all machines have of it.

        Control sockets are files of a kernel, so nobody here can ask a guest to verify.
        """
        with NbdConnection(self.url(name, self.names[-1]), timeout_s=deadline_s) as volume:
            assert volume.call(Command.FLUSH) == b""
        sums = {node: self._sum(guest) for node, guest in self.guests.items()}
        assert len(set(sums.values())) == 1, sums
        return {"equal": True, "copies": len(sums)}

    def _sum(self, guest: Guest) -> str:
        with guest.standing_still():
            disk = copy_image(guest.image)
        with mounted(disk) as at, next(at.glob("copies/*/data")).open("rb") as data:
            return hashlib.file_digest(data, "sha256").hexdigest()

    def end(self) -> None:
        """End every machine and process, and take the cables away."""
        self.cut(list(self.guests))
        if self._relay is not None:
            send(self._relay.pid, signal.SIGKILL)
            self._relay.wait(10)
            self._relay = None
        super().end()
        for guest in self.guests.values():
            network.remove_link(guest.tap)
        if self._number:
            network.remove_link(network.bridge_name(self._number))
            self._number = 0

    def _serve_state(self) -> int:
        """Start the relay and return its port."""
        module = ("-m", "tests.harness.state_relay_server")
        self._relay = subprocess.Popen(
            [sys.executable, *module, self.dir / "state.db", network.address(self._number, 1)],
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        assert self._relay.stdout is not None
        return int(self._relay.stdout.readline())

    def _metadata(self) -> Path:
        """Write down that the driver `relay` is installed, and return the folder that says so."""
        folder = self.dir / "metadata"
        (folder / "holdfast_tests_relay-0.dist-info").mkdir(parents=True)
        for name, text in _METADATA.items():
            (folder / "holdfast_tests_relay-0.dist-info" / name).write_text(text)
        return folder

    def _configure(self, node: LocalNode, index: int, port: int) -> None:
        settings = node.settings()
        host, gateway = network.address(self._number, 1), network.address(self._number, 1)
        if index < self.machines:
            host = network.address(self._number, 10 + index)
            self.guests[node.name] = Guest(node, network.cable_name(self._number, node.name), host)
            settings["state"] = {"driver": "relay", "relay": {"host": gateway, "port": port}}
            settings["control"]["socket"] = "/run/control.sock"
        else:
            settings["node"] = {"name": node.name, "compute_only": True}
        _listen(settings, host)
        node.config.write_text(toml_text(settings))


def _listen(settings: Settings, host: str) -> None:
    settings["transport"]["tcp"]["listen"] = host
    nbd = settings["frontend"]["nbd"]
    nbd["listen"] = f"{host}:{nbd['listen'].rpartition(':')[2]}"


def _living(session: int) -> list[int]:
    """Return the processes of a session that have not ended."""

    def members() -> Iterator[int]:
        for entry in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(ProcessLookupError):
                if os.getsid(int(entry.name)) == session:
                    yield int(entry.name)

    return [pid for pid in members() if is_alive(pid)]
