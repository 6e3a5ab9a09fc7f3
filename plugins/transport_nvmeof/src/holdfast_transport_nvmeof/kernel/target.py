"""Exports: one nvmet subsystem per partition, made and unmade through configfs.

The allow-list is the fence: only the node that uses the volume may connect, and when that changes the
subsystem is taken off its ports first, because nvmet keeps controllers of hosts that are no longer
allowed. Names, UUIDs and serial numbers come from the member's id, so they survive a restart; an
initiator that reconnects would refuse a namespace whose identifiers have changed.

A subsystem is ours by the prefix of its NQN, a port by its number, which is made from its address.
Nothing else is touched. Source: Documentation/ABI/testing/configfs and drivers/nvme/target/configfs.c.
"""

from __future__ import annotations

import zlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

import attrs

from holdfast_transport_nvmeof.kernel.steps import Link, MakeDir, RemoveDir, Step, Unlink, Write

CONFIGFS = "/sys/kernel/config/nvmet"
TCP_PORT, RDMA_PORT = 4420, 4421


@attrs.frozen
class Port:
    """Where a subsystem can be reached."""

    trtype: str
    """`tcp` or `rdma`."""
    traddr: str
    """An IP address, never a name."""
    trsvcid: str
    """The port number, as text."""

    def __str__(self) -> str:
        """Return `tcp://192.0.2.1:4420`, the form that records hold."""
        host = f"[{self.traddr}]" if ":" in self.traddr else self.traddr
        return f"{self.trtype}://{host}:{self.trsvcid}"

    @classmethod
    def parse(cls, text: str) -> Port:
        """Return the port that `str` printed; raises `ValueError` for anything else."""
        trtype, _, rest = text.partition("://")
        host, _, service = rest.rpartition(":")
        if trtype not in {"tcp", "rdma"} or not host or not service.isdecimal():
            raise ValueError(f"{text!r} is no port; write for example tcp://192.0.2.1:4420")
        return cls(trtype, host.removeprefix("[").removesuffix("]"), service)

    @property
    def number(self) -> int:
        """The name of its directory: a number of ours, the same after a restart."""
        return 20_000 + zlib.crc32(str(self).encode()) % 40_000

    @property
    def family(self) -> str:
        """`ipv4` or `ipv6`."""
        return "ipv6" if ":" in self.traddr else "ipv4"


@attrs.frozen
class Export:
    """One block device that one host may import."""

    nqn: str
    device: str
    uuid: str
    host: str
    """The NQN of the only host that may connect."""
    ports: tuple[Port, ...]


@attrs.frozen
class FoundSubsystem:
    """A subsystem of nvmet as configfs shows it."""

    nqn: str
    device: str = ""
    enabled: bool = False
    hosts: tuple[str, ...] = ()
    ports: tuple[int, ...] = ()


@attrs.frozen
class FoundTarget:
    """Everything of nvmet that plans look at."""

    subsystems: Mapping[str, FoundSubsystem] = attrs.field(factory=dict)
    ports: Mapping[int, Port] = attrs.field(factory=dict)
    hosts: frozenset[str] = frozenset()


def found_target(root: str = CONFIGFS) -> FoundTarget:
    """Return what nvmet exports now; nothing when it is not loaded."""
    top = Path(root)
    ports: dict[int, Port] = {}
    linked: dict[str, list[int]] = {}
    for folder in _folders(top / "ports"):
        number = int(folder.name)
        ports[number] = Port(
            _text(folder / "addr_trtype"),
            _text(folder / "addr_traddr"),
            _text(folder / "addr_trsvcid"),
        )
        for link in sorted((folder / "subsystems").glob("*")):
            linked.setdefault(link.name, []).append(number)
    subsystems = {}
    for folder in _folders(top / "subsystems"):
        space = folder / "namespaces/1"
        subsystems[folder.name] = FoundSubsystem(
            folder.name,
            _text(space / "device_path"),
            _text(space / "enable") == "1",
            tuple(sorted(link.name for link in (folder / "allowed_hosts").glob("*"))),
            tuple(linked.get(folder.name, ())),
        )
    hosts = frozenset(folder.name for folder in _folders(top / "hosts"))
    return FoundTarget(subsystems, ports, hosts)


def _folders(path: Path) -> list[Path]:
    return sorted(path.iterdir()) if path.is_dir() else []


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return ""


def plan_target(
    wanted: Collection[Export],
    found: FoundTarget,
    *,
    prefix: str,
    host_prefix: str,
    root: str = CONFIGFS,
) -> list[Step]:
    """Return the steps after which exactly `wanted` is exported under our names.

    Args:
        wanted: What this node exports.
        found: What there is.
        prefix: Subsystems whose NQN begins so are ours, and go when nobody wants them.
        host_prefix: Hosts whose NQN begins so are ours; they go when no subsystem allows them.
        root: Where nvmet's configfs is.
    """
    plan = _Plan(found, root)
    for name, known in found.subsystems.items():
        if name.startswith(prefix) and name not in {each.nqn for each in wanted}:
            plan.remove(known)
    for each in wanted:
        assert each.nqn.startswith(prefix)
        plan.export(each)
    plan.tidy(host_prefix)
    return plan.steps


class _Plan:
    """The steps so far, and what will be there after them."""

    def __init__(self, found: FoundTarget, root: str) -> None:
        self.steps: list[Step] = []
        self._subsystems = dict(found.subsystems)
        self._ports = dict(found.ports)
        self._hosts = set(found.hosts)
        self._root = root

    def remove(self, known: FoundSubsystem) -> None:
        home = self._home(known.nqn)
        self._off_ports(known)
        if known.enabled:
            self.steps.append(Write(f"{home}/namespaces/1/enable", "0"))
        if known.device:
            self.steps.append(RemoveDir(f"{home}/namespaces/1"))
        self.steps += [Unlink(f"{home}/allowed_hosts/{host}") for host in known.hosts]
        self.steps.append(RemoveDir(home))
        del self._subsystems[known.nqn]

    def export(self, each: Export) -> None:
        known = self._subsystems.get(each.nqn)
        if known is not None and (known.device != each.device or not known.enabled):
            self.remove(known)  # Half made, or of a device that has another name now.
            known = None
        if known is None:
            known = self._made(each)
        if known.hosts != (each.host,):
            known = self._allow(known, each.host)
        wanted = {port.number: port for port in each.ports}
        self._off_ports(known, [number for number in known.ports if number not in wanted])
        for number, port in wanted.items():
            self._need_port(number, port)
            if number not in known.ports:
                link = f"{self._root}/ports/{number}/subsystems/{each.nqn}"
                self.steps.append(Link(link, self._home(each.nqn)))
        self._subsystems[each.nqn] = attrs.evolve(known, ports=tuple(wanted))

    def tidy(self, host_prefix: str) -> None:
        """Remove ports and hosts of ours that nothing is tied to any more."""
        used = {number for each in self._subsystems.values() for number in each.ports}
        allowed = {host for each in self._subsystems.values() for host in each.hosts}
        for number, port in self._ports.items():
            if number == port.number and number not in used:
                self.steps.append(RemoveDir(f"{self._root}/ports/{number}"))
        for host in sorted(self._hosts - allowed):
            if host.startswith(host_prefix):
                self.steps.append(RemoveDir(f"{self._root}/hosts/{host}"))

    def _made(self, each: Export) -> FoundSubsystem:
        home = self._home(each.nqn)
        space = f"{home}/namespaces/1"
        self.steps += [
            MakeDir(home),
            Write(f"{home}/attr_serial", each.uuid.replace("-", "")[:20]),
            Write(f"{home}/attr_model", "Holdfast"),
            MakeDir(space),
            Write(f"{space}/device_path", each.device),
            Write(f"{space}/device_uuid", each.uuid),
            Write(f"{space}/enable", "1"),
        ]
        return FoundSubsystem(each.nqn, each.device, enabled=True)

    def _allow(self, known: FoundSubsystem, host: str) -> FoundSubsystem:
        """Make `host` the only one: nobody is connected while the list is changed."""
        self._off_ports(known)
        home = self._home(known.nqn)
        self.steps += [Unlink(f"{home}/allowed_hosts/{old}") for old in known.hosts if old != host]
        if host not in self._hosts:
            self.steps.append(MakeDir(f"{self._root}/hosts/{host}"))
            self._hosts.add(host)
        if host not in known.hosts:
            link = f"{home}/allowed_hosts/{host}"
            self.steps.append(Link(link, f"{self._root}/hosts/{host}"))
        return attrs.evolve(known, hosts=(host,), ports=())

    def _off_ports(self, known: FoundSubsystem, numbers: Sequence[int] | None = None) -> None:
        """Take a subsystem off ports; its controllers there end with that."""
        for number in known.ports if numbers is None else numbers:
            self.steps.append(Unlink(f"{self._root}/ports/{number}/subsystems/{known.nqn}"))

    def _need_port(self, number: int, port: Port) -> None:
        if number not in self._ports:
            self.steps += _port_steps(f"{self._root}/ports/{number}", port)
            self._ports[number] = port

    def _home(self, nqn: str) -> str:
        return f"{self._root}/subsystems/{nqn}"


def _port_steps(home: str, port: Port) -> Iterator[Step]:
    yield MakeDir(home)
    for name, value in (
        ("trtype", port.trtype),
        ("adrfam", port.family),
        ("traddr", port.traddr),
        ("trsvcid", port.trsvcid),
    ):
        yield Write(f"{home}/addr_{name}", value)
