"""A cluster of node processes on one machine: its folder, its configuration files, its ports.

For development, tests, demonstrations and single-host use. It lays the files out and reads them
back; starting and stopping processes is `supervisor.py`'s part. It knows no running node.

    DIR/cluster.json            id, node names, where the sockets are
    DIR/state.db                the state store, SQLite
    DIR/nodes/NAME/node.toml    the node's configuration; the user may edit it
    DIR/nodes/NAME/node.pid     its process id, while it runs
    DIR/nodes/NAME/log.jsonl    its log
    DIR/nodes/NAME/control.sock its control API
    DIR/nodes/NAME/data/        its copies
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import secrets
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

from holdfast.errors import ConfigError, ConflictError, NotFoundError, UsageError
from holdfast.node.control_client import ControlClient
from holdfast.node.control_socket import SOCKET_PATH_BYTES_MAX
from holdfast.node.ports import HOST, free_port, is_free
from holdfast.node.processes import read_pid
from holdfast.node.toml_files import (
    Settings,
    leaves,
    merged,
    read_toml,
    toml_text,
    write_atomically,
)

FORMAT = 1
NODES_DEFAULT = 4
"""Hard mode heals one loss from R + 2 nodes on: four for two replicas."""
NODES_MAX = 64
TRANSPORT_PORT_BASE = 5703
NBD_PORT_BASE = 10809


def default_dir() -> Path:
    """Return where the cluster is unless `--dir` or `HOLDFAST_DIR` says otherwise."""
    state = os.environ.get("XDG_STATE_HOME") or Path("~/.local/state").expanduser()
    return Path(state) / "holdfast"


@attrs.frozen
class LocalNode:
    """One node of a local cluster: where its files are."""

    name: str
    dir: Path
    control: Path

    @property
    def config(self) -> Path:
        """Its configuration file."""
        return self.dir / "node.toml"

    @property
    def pid_file(self) -> Path:
        """Where its process puts its id."""
        return self.dir / "node.pid"

    @property
    def log(self) -> Path:
        """Its log, JSON lines."""
        return self.dir / "log.jsonl"

    @property
    def data(self) -> Path:
        """Its copies."""
        return self.dir / "data"

    @property
    def pid(self) -> int | None:
        """Its process id, or None when it does not run."""
        return read_pid(self.pid_file, argument=str(self.config))

    def client(self) -> ControlClient:
        """Return a client of its control API."""
        return ControlClient(self.control, node=self.name)

    def settings(self) -> Settings:
        """Return what its configuration file says.

        Raises:
            ConfigError: It cannot be read or is not TOML.
        """
        return read_toml(self.config)


@attrs.frozen
class LocalCluster:
    """A local cluster that exists on disk."""

    dir: Path
    id: str
    names: tuple[str, ...]
    sockets: Path | None
    """A folder for the control sockets when paths below `dir` would be too long for one."""

    @classmethod
    def open(cls, directory: Path) -> LocalCluster:
        """Return the cluster in `directory`.

        Raises:
            NotFoundError: There is none.
            ConfigError: Its `cluster.json` is damaged or of a newer format.
        """
        path = directory / "cluster.json"
        try:
            raw = json.loads(path.read_text(encoding="utf-8"))
            if raw["format"] > FORMAT:
                raise ConfigError(
                    f"{path} has format {raw['format']}, this program knows up to {FORMAT}.",
                    hint="Upgrade this program, or choose another folder with --dir.",
                )
            sockets = raw["sockets"]
            return cls(
                dir=directory,
                id=raw["id"],
                names=tuple(raw["nodes"]),
                sockets=None if sockets is None else Path(sockets),
            )
        except (FileNotFoundError, NotADirectoryError) as error:
            raise NotFoundError(
                f"There is no local cluster in {directory}.",
                hint="Make one with `holdfast up`, or name its folder with --dir or HOLDFAST_DIR.",
            ) from error
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(
                f"{path} is damaged ({error}).",
                hint="Restore it, or make a new cluster in another folder with --dir.",
            ) from error
        except OSError as error:
            raise ConfigError(f"{path} cannot be read: {error.strerror}.") from error

    @classmethod
    def create(
        cls, directory: Path, *, count: int | None = None, extra: Path | None = None
    ) -> LocalCluster:
        """Return the cluster in `directory`, making or completing what is missing of it.

        Idempotent: nodes and ports that exist stay as they are. A cluster that an earlier call left
        half made is completed.

        Args:
            directory: Its folder; made if need be.
            count: How many nodes at least; None: those there are, or `NODES_DEFAULT`.
            extra: A TOML file whose settings every node takes, over the standard ones.

        Raises:
            UsageError: `count` is impossible or less than there are nodes; the folder is not ours.
            ConfigError: `extra` cannot be read, is wrong, or sets what belongs to one node; nothing
                is changed.
        """
        if count is not None and not 1 <= count <= NODES_MAX:
            raise UsageError(f"A local cluster has 1 to {NODES_MAX} nodes, not {count}.")
        shared = {} if extra is None else _shared_settings(extra)
        try:
            directory.mkdir(parents=True, exist_ok=True)
            cluster = _existing(directory) or cls._new(directory)
            cluster = cluster._grown(count or len(cluster.names) or NODES_DEFAULT)  # noqa: SLF001
            if extra is not None:
                cluster._check(shared, extra)  # noqa: SLF001
            cluster._save()  # noqa: SLF001
            cluster._write_nodes(shared, rewrite=extra is not None)  # noqa: SLF001
        except OSError as error:
            raise _unusable(directory, error) from error
        return cluster

    @property
    def state_db(self) -> Path:
        """The state store's file."""
        return self.dir / "state.db"

    @property
    def nodes(self) -> tuple[LocalNode, ...]:
        """All nodes, in the order they were made."""
        return tuple(self.node(name) for name in self.names)

    def node(self, name: str) -> LocalNode:
        """Return the node `name`.

        Raises:
            NotFoundError: There is none; lists those there are.
        """
        if name not in self.names:
            raise NotFoundError(
                f"This cluster has no node {name!r}.",
                hint=f"Its nodes are {', '.join(self.names)}.",
            )
        directory = self.dir / "nodes" / name
        sockets = directory / "control.sock" if self.sockets is None else self.sockets / name
        return LocalNode(name=name, dir=directory, control=sockets)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the cluster's lock, so that two commands do not start the same node twice."""
        with locked(self.dir):
            yield

    @classmethod
    def _new(cls, directory: Path) -> LocalCluster:
        strangers = sorted(
            entry.name
            for entry in directory.iterdir()
            if entry.name not in {"nodes", "cluster.lock", "attach"}
            and not entry.name.startswith(("state.db", "cluster.json"))
        )
        if strangers:
            raise UsageError(
                f"{directory} is not empty and holds no cluster: it has {strangers[0]!r}.",
                hint="Choose an empty folder with --dir.",
            )
        longest = directory / "nodes" / f"n{NODES_MAX}" / "control.sock"
        cluster_id = secrets.token_hex(16)
        sockets = None
        if len(os.fsencode(longest)) > SOCKET_PATH_BYTES_MAX:
            base = os.environ.get("XDG_RUNTIME_DIR") or tempfile.gettempdir()
            sockets = Path(base) / f"holdfast-{cluster_id[:12]}"
        return cls(dir=directory, id=cluster_id, names=(), sockets=sockets)

    def _grown(self, count: int) -> LocalCluster:
        if count < len(self.names):
            raise UsageError(
                f"This cluster has {len(self.names)} nodes already, more than {count}.",
                hint="Leave --nodes out, or make another cluster with --dir.",
            )
        fresh = (f"n{number}" for number in range(1, NODES_MAX * 2))
        names = list(self.names)
        while len(names) < count:
            name = next(fresh)
            if name not in names:
                names.append(name)
        return attrs.evolve(self, names=tuple(names))

    def _save(self) -> None:
        text = json.dumps(
            {
                "format": FORMAT,
                "id": self.id,
                "nodes": list(self.names),
                "sockets": None if self.sockets is None else str(self.sockets),
            },
            indent=2,
        )
        write_atomically(self.dir / "cluster.json", text + "\n")

    def _write_nodes(self, shared: Settings, *, rewrite: bool) -> None:
        if self.sockets is not None:
            _make_private(self.sockets)
        taken = {
            port for node in self.nodes if node.config.exists() for port in _ports(node.settings())
        }
        for index, node in enumerate(self.nodes):
            node.data.mkdir(parents=True, exist_ok=True)
            if node.config.exists():
                if not rewrite:
                    continue
                ports = _ports(node.settings())
            else:
                ports = (
                    free_port(TRANSPORT_PORT_BASE + index, taken),
                    free_port(NBD_PORT_BASE + index, taken),
                )
            taken.update(ports)
            own = self._settings(node, *ports)
            text = (
                f"# Node {node.name} of the local cluster in {self.dir}, made by `holdfast up`.\n"
                "# Edit it while the node is stopped; `holdfast config show` prints all of it.\n\n"
                + toml_text(merged(shared, own))
            )
            write_atomically(node.config, text)

    def _check(self, shared: Settings, path: Path) -> None:
        """Raise what is wrong with the settings in `path`, before every node has them."""
        # Here, for it is slow to import and seldom needed.
        from holdfast.kernel.config import check_settings  # noqa: PLC0415

        own = self._settings(self.nodes[0], TRANSPORT_PORT_BASE, NBD_PORT_BASE)
        check_settings(merged(shared, own), path)

    def _settings(self, node: LocalNode, transport_port: int, nbd_port: int) -> Settings:
        """Return what the node cannot share with another."""
        return {
            # Nodes of two local clusters must not take each other for their own.
            "cluster": {"name": f"local-{self.id[:12]}"},
            "node": {"name": node.name, "data": [str(node.data)]},
            "control": {"socket": str(node.control)},
            "state": {"driver": "sqlite", "sqlite": {"path": str(self.state_db)}},
            "transport": {"tcp": {"listen": HOST, "port": transport_port}},
            "frontend": {"nbd": {"listen": f"{HOST}:{nbd_port}"}},
            "log": {"format": "json"},
        }


@contextlib.contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Hold the lock of the cluster in `directory`; waits for another command to end."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        file = (directory / "cluster.lock").open("w")
    except OSError as error:
        raise _unusable(directory, error) from error
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _unusable(directory: Path, error: OSError) -> UsageError:
    return UsageError(
        f"The cluster's folder {directory} cannot be used: {error.strerror}.",
        hint="Choose a folder that you may write to with --dir.",
    )


def _existing(directory: Path) -> LocalCluster | None:
    try:
        return LocalCluster.open(directory)
    except NotFoundError:
        return None


_OWN = frozenset(
    {
        "cluster.name",
        "node.name",
        "node.data",
        "control.socket",
        "state.driver",
        "state.sqlite.path",
        "transport.tcp.port",
        "frontend.nbd.listen",
        "log.format",
    }
)
"""What `holdfast up` sets for each node by itself."""


def _shared_settings(path: Path) -> Settings:
    settings = read_toml(path)
    for dotted in leaves(settings):
        if dotted in _OWN:
            raise ConfigError(
                f"{path}: {dotted} belongs to one node and cannot be shared by all.",
                hint="Leave it out here; `holdfast up` sets it for each node.",
            )
    return settings


def _ports(settings: Mapping[str, Any]) -> tuple[int, int]:
    """Return the transport's and NBD's port of a node's settings; 0 where none is set."""

    def port(*path: str) -> int:
        value: Any = settings
        for key in path:
            value = value.get(key, {}) if isinstance(value, Mapping) else {}
        tail = str(value).rpartition(":")[2]
        return int(tail) if tail.isdigit() else 0

    return port("transport", "tcp", "port"), port("frontend", "nbd", "listen")


def check_ports(node: LocalNode) -> None:
    """Raise `ConflictError` when another program holds a port that `node` is to listen on."""
    for port in _ports(node.settings()):
        if port and not is_free(port):
            raise ConflictError(
                f"Node {node.name} cannot listen on {HOST}:{port}: another program does.",
                hint="Stop that program, or choose other ports with `holdfast up --new-ports`.",
            )


def choose_ports_anew(cluster: LocalCluster) -> None:
    """Write free ports into the configuration of nodes that do not run and whose ports are taken.

    Everything else in those files stays as it is, comments too.
    """
    taken = {port for node in cluster.nodes for port in _ports(node.settings())}
    for node in cluster.nodes:
        if node.pid is not None:
            continue
        text = node.config.read_text(encoding="utf-8")
        for port in _ports(node.settings()):
            if port and not is_free(port):
                fresh = free_port(port, taken)
                text = re.sub(
                    rf'^(port = |listen = "{HOST}:){port}\b',
                    rf"\g<1>{fresh}",
                    text,
                    flags=re.MULTILINE,
                )
        write_atomically(node.config, text)


def _make_private(directory: Path) -> None:
    """Make a folder that is ours alone; it may be below a folder that everybody writes to."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    stat = directory.lstat()
    if stat.st_uid != os.getuid() or stat.st_mode & 0o077:
        raise UsageError(f"The folder for control sockets {directory} is not this user's alone.")


def names_text(names: Sequence[str]) -> str:
    """Return names for a sentence: `n1, n2 and n3`."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
