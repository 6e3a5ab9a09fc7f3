"""The transports that one node runs: its own, and further ones that volumes may choose.

Its own carries sessions and heartbeats, and the replication of volumes that do not say otherwise. All
of them listen, because any node may become the primary that another one's copy is reached from.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack

from holdfast.errors import UnavailableError
from holdfast.interfaces.passing import Passed
from holdfast.interfaces.transport import (
    Accept,
    Link,
    LinkHandler,
    PassingTransport,
    Transport,
)
from holdfast.kernel.config import Config
from holdfast.messages import Hello
from holdfast.model import NodeRecord


class Transports:
    """The open transports of one node."""

    def __init__(self, own: str, by_name: Mapping[str, Transport]) -> None:
        """Keep them; `own` is the name of the node's own."""
        self.own_name = own
        self.own = by_name[own]
        self._by_name = by_name
        self._addresses: dict[str, str] = {}

    @classmethod
    async def open(cls, config: Config, stack: AsyncExitStack) -> Transports:
        """Open what the configuration names; `stack` closes it."""
        opened: dict[str, Transport] = {}
        for name, chosen in config.transports.items():
            opened[name] = await chosen.driver.open(
                chosen.options, config.cluster.name, config.node.name
            )
            stack.push_async_callback(opened[name].aclose)
        return cls(config.transport.name, opened)

    async def listen(self, accept_for: Callable[[str], Accept], stack: AsyncExitStack) -> str:
        """Listen with all of them until `stack` closes; return the address of the node's own.

        Args:
            accept_for: Returns who takes the links of the transport of this name.
            stack: Closes the listeners.

        Raises:
            UnavailableError: An address cannot be had.
        """
        for name, transport in self._by_name.items():
            listener = await transport.listen(accept_for(name))
            stack.push_async_callback(listener.aclose)
            self._addresses[name] = listener.address
        return self._addresses[self.own_name]

    def addresses(self, advertise: str) -> dict[str, str]:
        """Return where other nodes find each transport.

        Args:
            advertise: Address, or address and port of the node's own transport, when other nodes
                reach this one elsewhere than where it listens; else empty.
        """
        if not advertise:
            return dict(self._addresses)
        host, _, port = advertise.rpartition(":")
        if not host or not port.isdecimal():
            host = advertise
        ports = {name: address.rpartition(":")[2] for name, address in self._addresses.items()}
        return {name: f"{host}:{port}" for name, port in ports.items()} | {self.own_name: advertise}

    async def connect(
        self, name: str, known: NodeRecord, hello: Hello, handler: LinkHandler
    ) -> Link:
        """Open a link to a node by the transport `name`.

        Raises:
            ConnectionRefusedError: Nothing listens there: the peer's process is gone.
            RefusedError: The peer would not talk to us.
            UnavailableError: It cannot be reached, or one of the two does not run that transport.
        """
        transport = self._by_name.get(name)
        address = known.address if name == self.own_name else ""
        address = known.transports.get(name, address)
        if transport is None or not address:
            who = "This node" if transport is None else f"Node {known.name}"
            raise UnavailableError(
                f"{who} does not run the transport {name}, by which the copy is to be reached.",
                hint=f'Set `also = ["{name}"]` under [transport] of each node, or give the volume '
                "another transport with `holdfast volume set --transport`.",
            )
        return await transport.connect(address, hello, handler)

    def unable_to_pass(self) -> list[str]:
        """Return the transports whose links only the process that accepted them can serve."""
        return [n for n, room in self._by_name.items() if not isinstance(room, PassingTransport)]

    async def adopt(self, name: str, passed: Passed, accept: Accept) -> None:
        """Go on with a link that another process of this node has accepted by a transport."""
        transport = self._by_name[name]
        assert isinstance(transport, PassingTransport)
        await transport.adopt(passed, accept)

    def metrics(self) -> Mapping[str, Mapping[str, float]]:
        """Return each transport's counters."""
        return {name: transport.metrics() for name, transport in self._by_name.items()}
