"""Imports: controllers made through /dev/nvme-fabrics, the same for TCP and RDMA.

The timeouts are MeshStor's: a silent target is noticed after one second, its I/O fails after another,
and its device is gone after three, so that MD drops the member and goes on. A controller is ours by
its host NQN, which names the node; others are never disconnected.

Source: drivers/nvme/host/fabrics.c (`opt_tokens`) and Documentation/ABI/testing/sysfs-nvme.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from pathlib import Path

import attrs

from holdfast_transport_nvmeof.kernel.steps import Connect, Step, Write
from holdfast_transport_nvmeof.kernel.target import Port

SYSFS = "/sys"


@attrs.frozen
class Timeouts:
    """How soon a lost target is given up, in seconds."""

    keep_alive_s: int = 1
    fast_io_fail_s: int = 1
    controller_loss_s: int = 3
    reconnect_s: int = 1


@attrs.frozen
class Host:
    """Who imports; the kernel wants one id for each NQN."""

    nqn: str
    id: str
    """A UUID."""
    address: str = ""
    """The address to come from; empty lets routing choose."""


@attrs.frozen
class Import:
    """One exported block device that is wanted here."""

    nqn: str
    port: Port


@attrs.frozen
class FoundController:
    """A controller of this kernel, with the block device of its subsystem."""

    name: str
    """Such as `nvme3`."""
    nqn: str
    port: Port
    host: str
    state: str
    """`live`, `connecting`, `deleting`…"""
    device: str = ""
    """Path of the first namespace's block device; empty until it is there."""
    size_bytes: int = 0


def connect_options(wanted: Import, host: Host, timeouts: Timeouts, queues: int) -> str:
    """Return the line for /dev/nvme-fabrics."""
    fields: dict[str, str | int] = {
        "nqn": wanted.nqn,
        "transport": wanted.port.trtype,
        "traddr": wanted.port.traddr,
        "trsvcid": wanted.port.trsvcid,
        "hostnqn": host.nqn,
        "hostid": host.id,
        "nr_io_queues": queues,
        "keep_alive_tmo": timeouts.keep_alive_s,
        "reconnect_delay": timeouts.reconnect_s,
        "ctrl_loss_tmo": timeouts.controller_loss_s,
        "fast_io_fail_tmo": timeouts.fast_io_fail_s,
    }
    if host.address:
        fields["host_traddr"] = host.address
    return ",".join(f"{key}={value}" for key, value in fields.items())


def found_controllers(host: str, root: str = SYSFS) -> list[FoundController]:
    """Return the controllers that were made under the host NQN `host`."""
    devices = _devices_of_subsystems(Path(root, "class/nvme-subsystem"))
    found = []
    for folder in sorted(Path(root, "class/nvme").glob("nvme*")):
        if _text(folder / "hostnqn") != host:
            continue
        nqn, trtype = _text(folder / "subsysnqn"), _text(folder / "transport")
        address = dict(
            part.partition("=")[::2] for part in _text(folder / "address").split(",") if part
        )
        port = Port(trtype, address.get("traddr", ""), address.get("trsvcid", ""))
        state = _text(folder / "state")
        device, size = devices.get(nqn, ("", 0))
        found.append(FoundController(folder.name, nqn, port, host, state, device, size))
    return found


def _devices_of_subsystems(top: Path) -> Mapping[str, tuple[str, int]]:
    """Return device and size by NQN; with native multipath the device belongs to the subsystem."""
    found = {}
    for folder in top.glob("nvme-subsys*"):
        spaces = [*folder.glob("nvme*n*"), *folder.glob("nvme*/nvme*n*")]
        for space in sorted(spaces, key=lambda each: each.name):
            # `nvme0c1n1` is one hidden path of the device `nvme0n1`.
            if re.fullmatch(r"nvme\d+n\d+", space.name):
                size = int(_text(space / "size") or 0) * 512
                found[_text(folder / "subsysnqn")] = (f"/dev/{space.name}", size)
                break
    return found


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return ""


def plan_imports(
    wanted: Collection[Import],
    found: Collection[FoundController],
    host: Host,
    *,
    timeouts: Timeouts,
    queues: int,
    root: str = SYSFS,
) -> tuple[list[Step], list[Connect]]:
    """Return the steps that drop what is not wanted, and the connects that are missing.

    A connect may fail because the other machine is away, which is nobody's fault and must not stop
    the rest of a plan; so they come apart. A controller that is reconnecting is left to the kernel.
    """
    nqns = {each.nqn for each in wanted}
    drops: list[Step] = [
        Write(f"{root}/class/nvme/{each.name}/delete_controller", "1")
        for each in found
        if each.nqn not in nqns and each.state not in {"deleting", "deleting (no IO)"}
    ]
    there = {each.nqn for each in found if not each.state.startswith("deleting")}
    connects = [
        Connect(connect_options(each, host, timeouts, queues))
        for each in wanted
        if each.nqn not in there
    ]
    return drops, connects


def best_port(theirs: Collection[Port], *, rdma: bool, failed: Collection[str] = ()) -> Port | None:
    """Return the port to import from: RDMA where both ends have it, else TCP.

    Args:
        theirs: What the exporting node offers.
        rdma: Whether this node can do RDMA.
        failed: Ports, as text, at which the last attempt failed; they come last.
    """
    usable = [port for port in theirs if port.trtype == "tcp" or rdma]
    usable.sort(key=lambda port: (str(port) in failed, port.trtype != "rdma", str(port)))
    return usable[0] if usable else None
