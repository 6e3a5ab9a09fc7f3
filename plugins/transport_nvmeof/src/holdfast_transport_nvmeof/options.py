"""The options of the frontend `nvme-tcp`."""

from __future__ import annotations

import attrs

from holdfast.sockets import split_address
from holdfast.units import KIB, MIB, REQUEST_BYTES_MAX
from holdfast_transport_nvmeof.dhchap import Group, Hash

NVME_TCP_PORT = 4420
DISCOVERY_PORT = 8009


@attrs.frozen
class NvmeTcpOptions:
    """`[frontend.nvme-tcp]`: volumes as NVMe/TCP subsystems."""

    listen: str = f"127.0.0.1:{NVME_TCP_PORT}"
    """Address and port of the subsystems; port 0 takes a free one."""
    discovery_listen: str = f"127.0.0.1:{DISCOVERY_PORT}"
    """Address and port of the discovery controller; empty for none beside that at `listen`."""
    advertise: str = ""
    """`HOST:PORT` of the subsystems as hosts reach it, when address translation lies between."""
    referrals: tuple[str, ...] = ()
    """`HOST:PORT` of further discovery controllers that this one tells of."""
    allowed_hosts: tuple[str, ...] = ()
    """NQNs of the hosts that may connect; empty for any."""
    dhchap_file: str = attrs.field(default="", metadata={"path": True})
    """File of DH-HMAC-CHAP secrets, mode 0600; with one every host has to authenticate. Empty for none."""
    dhchap_hashes: tuple[str, ...] = ("sha256", "sha384", "sha512")
    """Hash functions that hosts may authenticate with, the best first."""
    dhchap_groups: tuple[str, ...] = ("ffdhe2048", "ffdhe3072", "null")
    """Diffie-Hellman groups likewise; ffdhe4096, ffdhe6144 and ffdhe8192 hold the node up for a tenth of
    a second or more at each Connect."""
    queues_max: int = attrs.field(default=16, validator=attrs.validators.in_(range(1, 129)))
    """I/O queues, each a connection, that one host may open per volume."""
    queue_entries: int = attrs.field(default=128, validator=attrs.validators.in_(range(32, 1025)))
    """Commands that one queue may have outstanding."""
    in_capsule_bytes: int = attrs.field(
        default=64 * KIB,
        validator=[attrs.validators.in_(range(8 * KIB, MIB + 1, 4 * KIB))],
        metadata={"unit": "bytes"},
    )
    """Writes up to this size come with their command; larger ones are asked for."""
    inflight_bytes_max: int = attrs.field(
        default=REQUEST_BYTES_MAX,
        validator=attrs.validators.ge(MIB),
        metadata={"unit": "bytes"},
    )
    """Bytes of unanswered reads and asked-for writes per queue beyond which more wait."""
    connections_max: int = attrs.field(default=1024, validator=attrs.validators.ge(1))
    """Connections at a time, all hosts together; more are turned away."""
    connect_timeout_s: float = attrs.field(
        default=30.0, validator=attrs.validators.gt(0), metadata={"unit": "s"}
    )
    """How long a connection may take to become a queue."""
    reservations: bool = False
    """Offer reservations, which hold on this node alone; for hosts that use no other node's path."""

    def __attrs_post_init__(self) -> None:
        """Refuse what is no address, hash or group."""
        optional = (self.discovery_listen, self.advertise, *self.referrals)
        for address in (self.listen, *filter(None, optional)):
            split_address(address)
        for name, kind in (("dhchap_hashes", Hash), ("dhchap_groups", Group)):
            chosen, known = getattr(self, name), [each.name.lower() for each in kind]
            if not chosen or not set(chosen) <= set(known):
                raise ValueError(f"{name} is {list(chosen)}; it takes some of {', '.join(known)}")
