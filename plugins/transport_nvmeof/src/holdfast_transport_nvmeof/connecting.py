"""What a Connect must say to be accepted, how a refusal says what was wrong, and what it gets otherwise.

Source: NVM Express Base Specification 2.0, section 6.3 (Connect; figure 380: Invalid Parameters).
"""

from __future__ import annotations

import asyncio
import secrets

from holdfast_transport_nvmeof import secrets_file
from holdfast_transport_nvmeof.authentication import ControllerAuthentication
from holdfast_transport_nvmeof.controller import Controller
from holdfast_transport_nvmeof.dhchap import Group, Hash
from holdfast_transport_nvmeof.fabrics import (
    CNTLID_MAX,
    DISCOVERY_NQN,
    DYNAMIC_CONTROLLER,
    IATTR_DATA,
    IPO_CNTLID,
    IPO_HOSTNQN,
    IPO_SQSIZE,
    Connect,
)
from holdfast_transport_nvmeof.identify import ControllerFacts, ControllerType
from holdfast_transport_nvmeof.options import NvmeTcpOptions
from holdfast_transport_nvmeof.status import ConnectStatus
from holdfast_transport_nvmeof.subsystem import Subsystem


class RefusalError(Exception):
    """Connect is answered with this status; never seen outside of this package."""

    def __init__(self, status: int, dw0: int = 0) -> None:
        """Keep what the completion is to say."""
        super().__init__(status)
        self.status = status
        self.dw0 = dw0


def invalid_data(offset: int) -> RefusalError:
    """Return the refusal that points at a field of Connect's data."""
    return RefusalError(ConnectStatus.CONNECT_INVALID_PARAMETERS, IATTR_DATA | offset)


def admit(question: Connect, options: NvmeTcpOptions) -> ControllerAuthentication | None:
    """Return what the host has to pass before it is served; None when its name is enough.

    Raises:
        RefusalError: It may not connect.
        ConfigError: The file of secrets is not usable.
    """
    if not question.host:
        raise invalid_data(IPO_HOSTNQN)
    if options.allowed_hosts and question.host not in options.allowed_hosts:
        raise RefusalError(ConnectStatus.CONNECT_INVALID_HOST)
    if not options.dhchap_file:
        return None
    known = secrets_file.read(options.dhchap_file).get(question.host)
    if known is None:
        raise RefusalError(ConnectStatus.CONNECT_INVALID_HOST)
    return ControllerAuthentication(
        *(question.host, question.subsystem, known.host, known.controller),
        hashes=tuple(Hash[name.upper()] for name in options.dhchap_hashes),
        groups=tuple(Group[name.upper()] for name in options.dhchap_groups),
    )


def check_size(question: Connect, options: NvmeTcpOptions) -> None:
    """Raise `RefusalError` unless the queue has a size that there is."""
    if not 2 <= question.entries <= options.queue_entries:
        raise RefusalError(ConnectStatus.CONNECT_INVALID_PARAMETERS, IPO_SQSIZE)


def check_admin(question: Connect) -> None:
    """Raise `RefusalError` unless the host asks for any controller (the dynamic model)."""
    if question.cntlid != DYNAMIC_CONTROLLER:
        raise invalid_data(IPO_CNTLID)


def new_controller(
    question: Connect, options: NvmeTcpOptions, subsystem: Subsystem | None = None
) -> Controller:
    """Return the controller that an admin queue gets; of discovery without a subsystem."""
    taken = set(subsystem.controllers) if subsystem is not None else set()
    while (cntlid := 1 + secrets.randbelow(CNTLID_MAX)) in taken:
        pass  # Drawn, not counted, so that those of other nodes hardly ever are the same.
    space = None if subsystem is None else subsystem.namespace
    facts = ControllerFacts(
        cntlid=cntlid,
        kind=ControllerType.IO if space is not None else ControllerType.DISCOVERY,
        subsystem=space.nqn if space is not None else DISCOVERY_NQN,
        serial=space.serial if space is not None else "discovery",
        entries_max=options.queue_entries,
        in_capsule_bytes=options.in_capsule_bytes,
        has_reservations=space is not None and space.offers_reservations,
    )
    controller = Controller(
        facts,
        host=question.host,
        host_id=question.host_id,
        queues_max=options.queues_max,
        kato_ms=question.kato_ms,
        namespace=space,
        seen_at=asyncio.get_running_loop().time(),
    )
    if subsystem is not None:
        controller.counters = subsystem.counters
        controller.siblings = lambda: list(subsystem.controllers)
        controller.abort_io = lambda qid, cid: subsystem.abort(controller, qid, cid)
    return controller
