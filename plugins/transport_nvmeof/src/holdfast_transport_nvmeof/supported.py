"""What the frontend's controllers carry out, asked of the machines themselves; the tables of the docs.

Nothing is listed by hand: a command is supported when a controller or a queue does not answer it with
Invalid Command Opcode, a log page when a controller has it.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable

from holdfast.units import KIB, MIB, VolumeId
from holdfast_transport_nvmeof.commands import PSDT_SGL, AdminOpcode, Command, IoOpcode
from holdfast_transport_nvmeof.controller import Controller
from holdfast_transport_nvmeof.fabrics import FabricsType
from holdfast_transport_nvmeof.identify import ControllerFacts, ControllerType
from holdfast_transport_nvmeof.judging import judge
from holdfast_transport_nvmeof.logpages import LogPage
from holdfast_transport_nvmeof.namespace import NSID, Namespace
from holdfast_transport_nvmeof.reservations import Reservations
from holdfast_transport_nvmeof.status import Status


def _controller(kind: ControllerType, *, reserves: bool = False) -> Controller:
    space = Namespace("nqn", VolumeId("0" * 32), MIB)
    if reserves:
        space.reservations = Reservations()
    facts = ControllerFacts(1, kind, "nqn", "serial", 128, 64 * KIB)
    is_io = kind is ControllerType.IO
    controller = Controller(facts, "", b"", queues_max=1, namespace=space if is_io else None)
    controller.csts = 1
    return controller


def _command(opcode: int, nsid: int = NSID) -> Command:
    return Command(opcode, PSDT_SGL, 1, nsid, 0, 0, 0, 0, 0)


def admin_commands(kind: ControllerType) -> list[AdminOpcode]:
    """Return the admin commands that a controller of this kind takes."""
    found = []
    for opcode in AdminOpcode:
        completion = _controller(kind).execute(_command(opcode))
        if completion is None or completion.status != Status.INVALID_COMMAND_OPCODE:
            found.append(opcode)
    return [opcode for opcode in found if opcode is not AdminOpcode.FABRICS]


def io_commands(*, reserves: bool) -> list[IoOpcode]:
    """Return the I/O commands that a queue takes, with reservations switched on or not."""
    controller = _controller(ControllerType.IO, reserves=reserves)
    space = controller.namespace
    assert space is not None
    return [
        opcode
        for opcode in IoOpcode
        if judge(_command(opcode), space, controller)[0] != Status.INVALID_COMMAND_OPCODE
    ]


def log_pages(kind: ControllerType) -> tuple[LogPage, ...]:
    """Return the log pages of a controller of this kind."""
    return _controller(kind).log_pages


def tables() -> str:
    """Return the commands and log pages as Markdown tables."""
    io, discovery = ControllerType.IO, ControllerType.DISCOVERY
    plain, reserving = io_commands(reserves=False), io_commands(reserves=True)
    authenticating = {FabricsType.AUTHENTICATION_SEND, FabricsType.AUTHENTICATION_RECEIVE}
    told = admin_commands(discovery)
    rows: list[tuple[str, enum.IntEnum, str]] = [
        ("Fabrics", each, "with `dhchap_file`" if each in authenticating else "")
        for each in FabricsType
    ]
    rows += [("admin", e, "" if e in told else "not at discovery") for e in admin_commands(io)]
    rows += [("I/O", e, "" if e in plain else "with `reservations = true`") for e in reserving]
    lines = ["| queue | command | opcode or type | |", "|---|---|---|---|"]
    lines += [f"| {queue} | {_name(e)} | {e.value:02X}h | {note} |" for queue, e, note in rows]
    lines += ["", "| log page | | of |", "|---|---|---|"]
    for page in LogPage:
        of = _of(page in log_pages(io), page in log_pages(discovery))
        lines.append(f"| {page.value:02X}h | {_name(page)} | {of} |")
    return "\n".join([*lines, ""])


def _name(each: enum.Enum) -> str:
    small: Iterable[str] = ("and", "of")
    words = each.name.split("_")
    return " ".join(word.lower() if word.lower() in small else word.title() for word in words)


def _of(io: bool, discovery: bool) -> str:
    return "both" if io and discovery else "volumes" if io else "discovery controllers"
