"""A local cluster of real node processes, driven as an operator would, and the faults done to it.

What a test is about goes through `holdfast`, in a process of its own. Half of such a command's second
are imports; so what every test does many times (starting and stopping nodes, comparing copies, asking
who is primary) takes the way below the command line: the supervisor and the control socket. Whatever
happens in a test, leaving the context ends every process that belongs to the cluster's folder.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import attrs
from tests.harness.waiting import WaitedInVainError, wait_until

from holdfast.errors import HoldfastError, UnavailableError
from holdfast.node import supervisor
from holdfast.node.local_cluster import LocalCluster, LocalNode
from holdfast.node.ports import choosing, free_port
from holdfast.node.processes import ask_for_stacks, is_alive, send, wait_gone

Json = dict[str, Any]
COMMAND_TIMEOUT_S = 300.0
"""For one command of the command line; the slowest wait for a whole cluster to start."""
LOG_LINES = 30
"""How much of each node's log a failure shows."""


@attrs.frozen
class Result:
    """How one command ended."""

    code: int
    out: str
    err: str


class CommandFailedError(AssertionError):
    """A command of the command line ended with another exit code than the one expected."""


def holdfast(
    *words: str | Path,
    env: dict[str, str] | None = None,
    stdin: str | None = None,
    timeout_s: float = COMMAND_TIMEOUT_S,
) -> Result:
    """Run `holdfast WORDS` in a process of its own and return how it ended."""
    done = subprocess.run(
        # -P: what lies in the folder that a test runs in is nothing to import.
        [sys.executable, "-P", "-m", "holdfast", *map(str, words)],
        env=os.environ | (env or {}),
        input=stdin,
        stdin=subprocess.DEVNULL if stdin is None else None,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )
    return Result(done.returncode, done.stdout, done.stderr)


def processes_of(needle: str) -> list[int]:
    """Return the ids of the living processes that have `needle` in their command line."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        with contextlib.suppress(OSError):
            line = (entry / "cmdline").read_bytes()
            if os.fsencode(needle) in line and is_alive(int(entry.name)):
                found.append(int(entry.name))
    return found


@attrs.define
class RunningCluster:
    """A cluster in a folder of its own, up while the context lasts."""

    dir: Path
    """Made if need be; removed with all data when the context ends well."""
    nodes: int = 3
    config: str = ""
    """TOML that every node takes."""
    keep: bool = False
    """Leave the folder, whatever happens."""
    prepare: Callable[[RunningCluster], None] | None = None
    """Called when the files of all nodes are made and before any of them runs."""
    _cluster: LocalCluster | None = attrs.field(default=None, init=False)

    def __enter__(self) -> Self:
        """Start it and return when all nodes are ready."""
        try:
            self.up()
        except BaseException:
            self.show_logs()
            self.end()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End every process; after a failure print the ends of the logs."""
        if kind is not None:
            self.show_logs()
        try:
            if kind is None:
                self.down()
        finally:
            self.end()
            if kind is None and not self.keep:
                shutil.rmtree(self.dir, ignore_errors=True)

    # --- the command line ----------------------------------------------------------------------

    def run(self, *words: str | Path, timeout_s: float = COMMAND_TIMEOUT_S) -> Result:
        """Run a command against this cluster and return how it ended."""
        return holdfast("--dir", self.dir, *words, timeout_s=timeout_s)

    def do(self, *words: str | Path, timeout_s: float = COMMAND_TIMEOUT_S) -> str:
        """Run a command that must succeed and return what it printed."""
        result = self.run(*words, timeout_s=timeout_s)
        if result.code:
            line = " ".join(map(str, words))
            raise CommandFailedError(
                f"holdfast {line} ended with {result.code}:\n{result.out}{result.err}"
            )
        return result.out

    def ask(self, *words: str | Path, timeout_s: float = COMMAND_TIMEOUT_S) -> Any:
        """Run a command that must succeed with --json and return its value."""
        return json.loads(self.do("--json", *words, timeout_s=timeout_s))

    def up(self) -> None:
        """Start what does not run."""
        if not self.dir.exists():
            self._make()
            self._open()
            if self.prepare is not None:
                self.prepare(self)
        self._start(*self._opened.nodes)

    def down(self) -> None:
        """Stop all nodes in order."""
        supervisor.stop(self._opened.nodes, handover=False)

    def create(self, name: str, size: str = "64MiB", *words: str, replicas: int = 2) -> Json:
        """Make a volume, wait until all its copies are in sync, and return its status."""
        made: Json = self.ask(
            *("volume", "create", name, "--size", size, "--replicas", str(replicas)),
            *(*words, "--wait"),
        )
        return made

    def url(self, name: str, node: str | None = None) -> str:
        """Return the NBD URI of a volume at a node, or at its primary's."""
        listen = self.node(node or self.primary(name)).settings()["frontend"]["nbd"]["listen"]
        return f"nbd://{listen}/{name}"

    def verify(self, name: str, deadline_s: float = 180.0) -> Json:
        """Compare all copies; they must be equal.

        On a busy machine a copy may be dropped again just then; it is waited for.
        """

        def compared() -> Json | None:
            node = next(n for n in self._opened.nodes if n.pid and not _is_frozen(n.pid))
            try:
                return deque(node.client().verify(name), maxlen=1)[0]
            except UnavailableError:
                return None

        result = wait_until(compared, deadline_s, f"all copies of {name} to be compared")
        assert result is not None
        assert result["equal"], result
        return result

    # --- looking -------------------------------------------------------------------------------

    @property
    def names(self) -> tuple[str, ...]:
        """All node names."""
        return self._opened.names

    def node(self, name: str) -> LocalNode:
        """Return where a node's files are."""
        return self._opened.node(name)

    def show(self, name: str) -> Json:
        """Return a volume's status from the first node that answers.

        Raises:
            UnavailableError: None does.
        """
        failure: HoldfastError = UnavailableError("No node runs.")
        for node in self._opened.nodes:
            pid = node.pid
            if pid is None or _is_frozen(pid):
                continue
            try:
                status: Json = node.client().volume(name)
            except UnavailableError as error:
                failure = error
            else:
                return status
        raise failure

    def primary(self, name: str) -> str:
        """Return the node that has the primary."""
        found: str = self.show(name)["primary"]
        return found

    def hand_over(self, name: str, node: str) -> None:
        """Make the copy on a node the primary, and wait until everybody says so."""
        self.do("volume", "promote", name, node)
        wait_until(lambda: self.primary(name) == node, 10, "the handover")

    def replicas(self, name: str) -> list[str]:
        """Return the nodes that have in-sync replicas."""
        return [
            copy["node"]
            for copy in self.show(name)["copies"]
            if copy["role"] == "replica" and copy["state"] == "in-sync"
        ]

    def bystanders(self, name: str) -> list[str]:
        """Return the nodes that have no copy."""
        having = {copy["node"] for copy in self.show(name)["copies"]}
        return [node for node in self.names if node not in having]

    def copy_on(self, name: str, node: str) -> Json | None:
        """Return the status of the copy on `node`, or None when it has none."""
        for copy in self.show(name)["copies"]:
            if copy["node"] == node:
                found: Json = copy
                return found
        return None

    def wait_healthy(self, name: str, deadline_s: float = 60.0) -> Json:
        """Return the volume's status once all declared copies are in sync."""

        def healthy() -> Json | None:
            status = self.show(name)
            if status["health"] == "healthy":
                return status
            seen[:] = [f"{status['health']}: {status.get('reason')}, {status['copies']}"]
            return None

        seen: list[str] = []
        try:
            found = wait_until(healthy, deadline_s, f"volume {name} to be healthy")
        except AssertionError as error:
            raise AssertionError(f"{error}; {seen}") from None
        assert found is not None
        return found

    # --- faults --------------------------------------------------------------------------------

    def pid(self, name: str) -> int:
        """Return the process id of a node that runs."""
        pid = self.node(name).pid
        assert pid is not None, f"node {name} does not run"
        return pid

    def kill(self, name: str) -> None:
        """End a node's process with SIGKILL and wait until it is gone."""
        pid = self.pid(name)
        send(pid, signal.SIGKILL)
        assert not wait_gone([pid], 10), f"node {name}, process {pid}, outlived SIGKILL"

    def freeze(self, name: str) -> None:
        """Stop a node's process with SIGSTOP."""
        send(self.pid(name), signal.SIGSTOP)

    def thaw(self, name: str) -> None:
        """Let a frozen node go on."""
        send(self.pid(name), signal.SIGCONT)

    def start(self, name: str) -> None:
        """Start a node and return when it is ready."""
        self._start(self.node(name))

    def stop(self, name: str) -> None:
        """Stop a node in order."""
        supervisor.stop([self.node(name)], handover=True)

    # --- ending --------------------------------------------------------------------------------

    def end(self) -> None:
        """End every process that was started for this folder, at once and for certain."""
        pids = [pid for node in self._nodes() if (pid := node.pid) is not None]
        pids += processes_of(f"{self.dir}/")
        for pid in set(pids):
            send(pid, signal.SIGKILL)
        left = wait_gone(set(pids), 10)
        assert not left, f"processes {left} outlived SIGKILL"

    def show_logs(self) -> None:
        """Print the end of each node's log and what it is at, for whoever reads the failure.

        A silent node may be dead, stuck or waiting; so each is asked for the stacks of its threads
        and tasks, and the store for the group records, which say who may take over.
        """
        asked = {node.name: self._ask(node) for node in self._nodes()}
        for node in self._nodes():
            pid, told = asked[node.name]
            state = "no process" if pid is None else f"process {pid}, {_state(pid)}"
            sys.stdout.write(f"--- {node.log}: {state}\n")
            with contextlib.suppress(OSError), node.log.open("rb") as file:
                if pid is not None:
                    with contextlib.suppress(WaitedInVainError):
                        wait_until(lambda n=node, t=told: _has_told(n, t), 1, "its stacks")  # type: ignore[misc]
                before = deque(file.read(told).splitlines(keepends=True), maxlen=LOG_LINES)
                for line in (*before, *file):
                    sys.stdout.write(line.decode(errors="replace"))
        with contextlib.suppress(OSError, sqlite3.Error), self._state() as db:
            for key, value in db.execute("SELECT key, value FROM entry WHERE key LIKE 'group/%'"):
                sys.stdout.write(f"--- {key}: {value.decode()}\n")

    @staticmethod
    def _ask(node: LocalNode) -> tuple[int | None, int]:
        """Have a node tell its stacks; return its process and where in its log they begin."""
        pid = node.pid
        size = node.log.stat().st_size if node.log.exists() else 0
        if pid is not None:
            ask_for_stacks(pid)
        return pid, size

    @contextlib.contextmanager
    def _state(self) -> Iterator[sqlite3.Connection]:
        """Read the state store's file beside its nodes."""
        path = LocalCluster.open(self.dir).state_db
        with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as db:
            yield db

    def _make(self) -> None:
        """Make the cluster's files, with ports that no other cluster of this machine begins with.

        A killed node's port is nobody's until the node is back; a cluster with the usual ports that
        starts in between would take it.
        """
        extra = None
        if self.config:
            extra = self.dir.with_name(f"{self.dir.name}.toml")
            extra.write_text(self.config)
        taken = {*range(5703, 5803), *range(10809, 10909)}
        with choosing():
            for node in LocalCluster.create(self.dir, count=self.nodes, extra=extra).nodes:
                text = node.config.read_text()
                for key in (r"^(port = )[1-9]\d*", r'^(listen = "127.0.0.1:)[1-9]\d*'):
                    port = free_port(min(taken), taken)
                    text, count = re.subn(key, rf"\g<1>{port}", text, flags=re.MULTILINE)
                    assert count == 1, text
                node.config.write_text(text)

    def _start(self, *nodes: LocalNode) -> None:
        with self._opened.locked(), choosing():
            supervisor.start(nodes)

    def _open(self) -> None:
        self._cluster = LocalCluster.open(self.dir)

    @property
    def _opened(self) -> LocalCluster:
        assert self._cluster is not None, "the cluster is not up"
        return self._cluster

    def _nodes(self) -> Iterator[LocalNode]:
        try:
            yield from LocalCluster.open(self.dir).nodes
        except HoldfastError:
            return


def _is_frozen(pid: int) -> bool:
    return _state(pid) in {"T", "gone"}


def _state(pid: int) -> str:
    """Return the letter that the kernel has for what a process does; source: proc_pid_stat(5)."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return "gone"
    return stat.rpartition(")")[2].split()[0]


def _has_told(node: LocalNode, since: int) -> bool:
    """Whether a node's loop has told its tasks, which come last."""
    with node.log.open("rb") as file:
        file.seek(since)
        return b"The event loop turns" in file.read()
