"""What a discovery controller tells: each volume by each node's path, and other discovery controllers.

Source: NVM Express Base Specification 2.0, sections 5.16.1.23 (discovery log page) and 3.1.2.3.
"""

from __future__ import annotations

from holdfast.interfaces.frontend import VolumeProvider
from holdfast.sockets import split_address
from holdfast_transport_nvmeof.fabrics import ADMIN_QUEUE_ENTRIES_MIN, DISCOVERY_NQN
from holdfast_transport_nvmeof.logpages import DiscoveryEntry, Subtype
from holdfast_transport_nvmeof.namespace import nqn_of
from holdfast_transport_nvmeof.options import NvmeTcpOptions

FRONTEND = "nvme-tcp"
"""Under which name nodes publish the addresses of this frontend."""


async def listed(
    options: NvmeTcpOptions, provider: VolumeProvider, *, own: str, seen: str
) -> list[DiscoveryEntry]:
    """Return the entries for a host.

    Args:
        options: May name another address to tell, and referrals.
        provider: Knows the volumes and the other nodes.
        own: `HOST:PORT` that the subsystems are at.
        seen: The address that this host has connected to, told when `own` is all addresses.
    """
    host, port = split_address(options.advertise or own)
    if not options.advertise and host in {"0.0.0.0", "::"}:  # noqa: S104 - compared, not bound.
        host = seen
    paths = {(host, port): 0}
    for address in provider.addresses(FRONTEND):
        paths.setdefault(split_address(address), len(paths))
    entries = [
        DiscoveryEntry(nqn_of(name), *path, Subtype.NVM, number, ADMIN_QUEUE_ENTRIES_MIN)
        for name in await provider.names()
        for path, number in paths.items()
    ]
    for number, address in enumerate(options.referrals, start=len(paths)):
        entries.append(
            DiscoveryEntry(DISCOVERY_NQN, *split_address(address), Subtype.REFERRAL, number)
        )
    return entries
