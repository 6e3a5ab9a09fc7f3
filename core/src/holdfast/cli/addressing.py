"""Where a volume is found, and by what its copies are: URIs of frontends, names of transports.

Nodes know their frontends; this module asks them and chooses among them.
"""

from __future__ import annotations

import socket
from typing import Any
from urllib.parse import quote

from holdfast.cli.context import Context
from holdfast.cli.waiting import check_served
from holdfast.errors import NotFoundError, UnavailableError, UsageError
from holdfast.node.control_client import ControlClient
from holdfast.node.service import VOLUME_IN_URI


def uri_of(context: Context, name: str, frontend: str, node: str | None = None) -> str:
    """Return the URI at which `node`, or the most fitting one, serves a volume.

    Raises:
        NotFoundError: No such volume or node.
        DriverError: No such frontend.
        UnavailableError: The node does not run, or does not run that frontend.
    """
    client = context.client()
    if frontend == "nbd":
        return nbd_uri(client, name, node)
    each, _ = _serving(client, name, frontend, node)
    uris: dict[str, str] = context.client(each).node()["uris"]
    return uris[frontend].replace(VOLUME_IN_URI, quote(name, safe=""))


def nbd_uri(client: ControlClient, name: str, node: str | None = None) -> str:
    """Return the NBD URI of a volume; as `uri_of`."""
    return f"nbd://{_serving(client, name, 'nbd', node)[1]}/{quote(name, safe='')}"


def served_uri(client: ControlClient, name: str, node: str | None = None) -> str:
    """Return the NBD URI of a volume for whoever opens it at once; as `uri_of`.

    Raises:
        UnavailableError: No node that could serve the volume is there, too: opening would only wait.
    """
    check_served(client, name)
    return nbd_uri(client, name, node)


def _serving(client: ControlClient, name: str, frontend: str, node: str | None) -> tuple[str, str]:
    """Return the node that is to serve a volume, and the address of its frontend."""
    from holdfast.kernel import registry

    status = client.volume(name)
    nodes = {each["name"]: each for each in client.nodes()}
    if node is not None and node not in nodes:
        raise NotFoundError(
            f"The cluster has no node {node!r}.", hint=f"Its nodes are {', '.join(sorted(nodes))}."
        )
    living = [each for each in nodes if nodes[each]["alive"]]
    wanted = [node] if node is not None else [status["attached"], status["primary"], *living]
    for each in wanted:
        address = nodes[each]["frontends"].get(frontend) if each in living else None
        # The state store may take a node for alive for some seconds after it was killed or frozen.
        if each is not None and address and _listens(address, greets=frontend == "nbd"):
            return each, address
    if frontend not in registry.names("frontend"):
        registry.load("frontend", frontend)  # Says which there are.
    what = "NBD" if frontend == "nbd" else frontend
    hint = "`holdfast status` shows which nodes run."
    if frontend != "nbd":
        hint = f"Switch it on with a section [frontend.{frontend}]. {hint}"
    who = f"Node {wanted[0]} does not serve" if node else "No node serves"
    raise UnavailableError(f"{who} {what} now.", hint=hint)


def _listens(address: str, *, greets: bool) -> bool:
    """Whether somebody is at `address`: the kernel lets one connect to a frozen process as well.

    Args:
        address: Host and port.
        greets: Whether who listens there speaks first.
    """
    host, _, port = address.rpartition(":")
    if host in {"0.0.0.0", "[::]"}:  # noqa: S104 - compared, not bound.
        host = "localhost"
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=1) as connection:
            return not greets or bool(connection.recv(1))
    except OSError:
        return False


def transports_in(words: list[str] | None) -> dict[str, Any]:
    """Return the fields of a request that `--transport` gives.

    Raises:
        UsageError: Two transports are given for the same thing.
    """
    common: str | None = None
    by_node: dict[str, str] = {}
    for word in words or ():
        node, equals, transport = word.partition("=")
        if (equals and node in by_node) or (not equals and common is not None):
            raise UsageError(
                f"--transport {word!r} comes after another one for the same copies.",
                hint="Give one name for all copies, and NODE=NAME for those that differ.",
            )
        if equals:
            by_node[node] = transport
        else:
            common = node
    return {"transport": common, "transports": by_node or None}
