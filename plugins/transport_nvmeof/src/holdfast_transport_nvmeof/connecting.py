"""What a Connect must say to be accepted, and how a refusal says what was wrong.

Source: NVM Express Base Specification 2.0, section 6.3 (Connect; figure 380: Invalid Parameters).
"""

from __future__ import annotations

from holdfast_transport_nvmeof.fabrics import (
    DYNAMIC_CONTROLLER,
    IATTR_DATA,
    IPO_CNTLID,
    IPO_HOSTNQN,
    IPO_SQSIZE,
    Connect,
)
from holdfast_transport_nvmeof.options import NvmeTcpOptions
from holdfast_transport_nvmeof.status import ConnectStatus


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


def check_host(question: Connect, options: NvmeTcpOptions) -> None:
    """Raise `RefusalError` unless this host may connect."""
    if not question.host:
        raise invalid_data(IPO_HOSTNQN)
    if options.allowed_hosts and question.host not in options.allowed_hosts:
        raise RefusalError(ConnectStatus.CONNECT_INVALID_HOST)


def check_size(question: Connect, options: NvmeTcpOptions) -> None:
    """Raise `RefusalError` unless the queue has a size that there is."""
    if not 2 <= question.entries <= options.queue_entries:
        raise RefusalError(ConnectStatus.CONNECT_INVALID_PARAMETERS, IPO_SQSIZE)


def check_admin(question: Connect) -> None:
    """Raise `RefusalError` unless the host asks for any controller (the dynamic model)."""
    if question.cntlid != DYNAMIC_CONTROLLER:
        raise invalid_data(IPO_CNTLID)
