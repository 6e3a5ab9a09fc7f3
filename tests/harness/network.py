"""A cluster whose nodes have a network each, so that cables can be pulled: needs root.

Every node runs in a network namespace of its own, joined by a bridge to the one that tests run in.
A cut is a rule in the receiver's namespace, so it may be of one direction only; control sockets are
files and the state store is one, so operators and the store are reached whatever is cut.
"""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import subprocess
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Self

import attrs
from tests.harness.cluster import RunningCluster

from holdfast.errors import UnavailableError
from holdfast.node import supervisor

_NETWORKS = range(100, 200)
"""Third numbers of the networks that are tried, 198.18.N.0/24: RFC 2544 keeps them for such use."""
_TABLE = "holdfast_cuts"
_CLONE_NEWNET = 0x40000000
"""linux/sched.h; for `setns(2)`, which Python has from 3.12 on."""
_libc = ctypes.CDLL(None, use_errno=True)


def can_make_networks() -> bool:
    """Return whether this process may make network namespaces and has the tools for it."""
    if os.geteuid() != 0 or not all(map(shutil.which, ("ip", "nft", "nsenter"))):
        return False
    name = f"hf-probe-{os.getpid()}"
    if _try("ip", "netns", "add", name) != "":
        return False
    _try("ip", "netns", "del", name)
    return True


@attrs.define
class NetworkedCluster(RunningCluster):
    """A cluster in a folder of its own, with a network namespace for each node."""

    _number: int = attrs.field(default=0, init=False)
    _cuts: set[tuple[str, str]] = attrs.field(factory=set, init=False)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End every process, then the networks."""
        self.mend()
        try:
            RunningCluster.__exit__(self, kind, error, trace)
        finally:
            self._unmake_network()

    def __enter__(self) -> Self:
        """Start it and return when all nodes are ready."""
        try:
            RunningCluster.__enter__(self)
        except BaseException:
            self._unmake_network()
            raise
        return self

    def up(self) -> None:
        """Start what does not run."""
        if not self.dir.exists():
            self._make()
            self._open()
            self._make_network()
            if self.prepare is not None:
                self.prepare(self)
        for node in self.names:
            if self.node(node).pid is None:
                self.start(node)

    def start(self, name: str) -> None:
        """Start a node in its namespace and return when it is ready."""
        with ThreadPoolExecutor(max_workers=1) as thread:
            for patience in (True, True, False):
                try:
                    thread.submit(self._start_inside, name).result()
                except UnavailableError:
                    if not patience:  # A busy machine may take longer than an operator would.
                        raise
                else:
                    return

    def _start_inside(self, name: str) -> None:
        """Move this thread, and so what it starts, into the node's namespace."""
        with Path("/run/netns", self._namespace(name)).open() as space:
            failed = _libc.setns(space.fileno(), _CLONE_NEWNET)
        assert not failed, os.strerror(ctypes.get_errno())
        supervisor.start([self.node(name)])

    def stop(self, name: str) -> None:
        """Stop a node in order."""
        supervisor.stop([self.node(name)], handover=True)

    # --- cables --------------------------------------------------------------------------------

    def cut(self, pairs: Iterable[tuple[str, str]]) -> None:
        """Let nothing through from the first to the second node of each pair."""
        for source, target in pairs:
            if (source, target) not in self._cuts:
                self._cuts.add((source, target))
                rule = f"add rule inet {_TABLE} in ip saddr {self._address(source)} drop"
                self._inside(target, "nft", rule)

    def isolate(self, name: str) -> None:
        """Cut a node off from all others, both ways."""
        others = [node for node in self.names if node != name]
        self.cut([(name, o) for o in others] + [(o, name) for o in others])

    def mend(self) -> None:
        """Undo every cut."""
        for target in sorted({target for _, target in self._cuts}):
            self._inside(target, "nft", f"flush chain inet {_TABLE} in")
        self._cuts.clear()

    # --- making --------------------------------------------------------------------------------

    def _address(self, name: str) -> str:
        return address(self._number, 10 + self.names.index(name))

    def _namespace(self, name: str) -> str:
        return f"hf{self._number}-{name}"

    def _inside(self, name: str, *command: str) -> None:
        _do("nsenter", f"--net=/run/netns/{self._namespace(name)}", *command)

    def _make_network(self) -> None:
        self._number = make_bridge()
        for name in self.names:
            space, cable = self._namespace(name), cable_name(self._number, name)
            _do("ip", "netns", "add", space)
            _do(*("ip", "link", "add", cable, "type", "veth", "peer", "eth0", "netns", space))
            _do("ip", "link", "set", cable, "master", bridge_name(self._number), "up")
            for link in ("lo", "eth0"):
                _do("ip", "-n", space, "link", "set", link, "up")
            _do("ip", "-n", space, "addr", "add", f"{self._address(name)}/24", "dev", "eth0")
            chain = "{ type filter hook input priority 0; }"
            self._inside(name, "nft", f"add table inet {_TABLE}")
            self._inside(name, "nft", f"add chain inet {_TABLE} in {chain}")
            config = self.node(name).config
            text = config.read_text()
            text, count = re.subn(
                r'^(listen = ")127\.0\.0\.1',
                rf"\g<1>{self._address(name)}",
                text,
                flags=re.MULTILINE,
            )
            assert count >= 2, text
            config.write_text(text)

    def _unmake_network(self) -> None:
        if not self._number:
            return
        for name in self.names:
            _try("ip", "netns", "del", self._namespace(name))
        remove_link(bridge_name(self._number))


def make_bridge() -> int:
    """Make a bridge with the first free number, which this machine has address 1 at."""
    for number in _NETWORKS:
        name = bridge_name(number)
        if _try("ip", "link", "add", name, "type", "bridge") == "":
            _do("ip", "addr", "add", f"{address(number, 1)}/24", "dev", name)
            _do("ip", "link", "set", name, "up")
            return number
    raise AssertionError("no free number for a network is left")


def make_tap(name: str, number: int) -> None:
    """Make a cable from the bridge to a kernel that runs as a process."""
    _do("ip", "tuntap", "add", name, "mode", "tap")
    _do("ip", "link", "set", name, "master", bridge_name(number), "up")


def remove_link(name: str) -> None:
    """Take a bridge or a cable away. Idempotent."""
    _try("ip", "link", "del", name)


def bridge_name(number: int) -> str:
    """Return what a network's bridge is called."""
    return f"hf{number}-bridge"


def cable_name(number: int, node: str) -> str:
    """Return what the bridge's end of a node's cable is called."""
    return f"hf{number}{node}"


def address(number: int, host: int) -> str:
    """Return an address of a network."""
    return f"198.18.{number}.{host}"


def _do(*command: str) -> None:
    said = _try(*command)
    assert said == "", f"{' '.join(command)}: {said}"


def _try(*command: str) -> str:
    """Run a command; return why it failed, or nothing."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    return "" if done.returncode == 0 else (done.stderr.strip() or str(done.returncode))
