"""What a node has the other nodes of its machine say and do: by their control sockets.

Only the node of a primary knows how its volume is this very moment, and only it can change that. On
another machine nobody can be asked; then the store's picture has to do, and orders have to be given
there.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, cast

from holdfast.errors import HoldfastError, UnavailableError
from holdfast.node.control_client import ControlClient
from holdfast.node.directory import Directory
from holdfast.node.service import Json
from holdfast.units import NodeName

ANSWER_S = 1.5
"""How long another node may take to tell what it knows; a frozen one must not hold whoever asks."""
ORDER_S = 20.0
"""How long it may take to do what it is told, which is ten seconds at most."""


class OtherNodes:
    """The nodes that one node can reach beside itself."""

    def __init__(self, own: NodeName, directory: Directory) -> None:
        """Look in `directory` for who is there; `own` is the node that asks."""
        self._own = own
        self._directory = directory

    def can_ask(self, node: NodeName) -> bool:
        """Tell whether `node` is another one and has a control socket on this machine."""
        return self._socket_of(node) is not None

    async def answers(self, node: NodeName) -> bool:
        """Tell whether a node answers, as far as it can be asked: a lease outlives its process."""
        control = self._socket_of(node)
        if control is None:
            return True
        client = ControlClient(control, node=node)
        try:
            await asyncio.to_thread(client.node, timeout_s=ANSWER_S)
        except HoldfastError:
            return False
        return True

    async def ask(self, node: NodeName, call: str, *arguments: object) -> Any:
        """Return what another node itself knows; None when it cannot be asked or is silent."""
        control = self._socket_of(node)
        if control is None:
            return None
        client = ControlClient(control, node=node, timeout_s=ANSWER_S)
        try:
            return await asyncio.to_thread(getattr(client, f"own_{call}"), *arguments)
        except HoldfastError:
            return None

    async def order(self, node: NodeName, call: str, *arguments: object, **options: object) -> Json:
        """Have another node do something; raises what it raises."""
        order = getattr(self.client_of(node), call)
        return cast("Json", await asyncio.to_thread(order, *arguments, **options))

    def client_of(self, node: NodeName) -> ControlClient:
        """Return a client of another node's control API.

        Raises:
            UnavailableError: The node is not on this machine.
        """
        control = self._socket_of(node)
        if control is None:
            raise UnavailableError(
                f"Node {node} cannot be asked from here.", hint=f"Run the command on {node}."
            )
        return ControlClient(control, node=node, timeout_s=ORDER_S)

    def _socket_of(self, node: NodeName) -> Path | None:
        if node == self._own:
            return None
        known = self._directory.alive.get(node)
        if known is None or not known.control or not Path(known.control).exists():
            return None
        return Path(known.control)
