"""Waiting for a volume, and knowing when that is in vain."""

from __future__ import annotations

import time

from holdfast.cli.context import Context
from holdfast.errors import UnavailableError
from holdfast.node.control_client import ControlClient, Json

POLL_S = 0.2
"""How often a status is asked for while somebody waits for it."""
AWAY_S = 3.0
"""How long all nodes that could serve must be away by their leases; a busy machine renews late."""


def wait_healthy(
    context: Context,
    client: ControlClient,
    name: str,
    *,
    timeout_s: float | None = None,
    is_new: bool = False,
) -> Json:
    """Return the status of a volume once all its declared copies are in sync, with progress.

    Args:
        context: Of the command.
        client: Of any node.
        name: The volume's.
        timeout_s: Give up after this long; None: never.
        is_new: It was made just now: give up too when every node that could serve it is away.

    Raises:
        UnavailableError: It was given up; says how the volume is, and what to do.
    """
    from holdfast.cli import render

    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    away_since: float | None = None
    status = client.volume(name)
    with render.sync_progress() as progress:
        while status["health"] != "healthy":
            now = time.monotonic()
            if deadline is not None and now > deadline:
                raise UnavailableError(
                    f"Volume {name} is {status['health']} after {timeout_s:g} s: {status['reason']}"
                )
            away_since = (away_since or now) if is_new and _is_away(status) else None
            if away_since is not None and now - away_since > AWAY_S:
                raise _made_in_vain(name, status["primary"])
            if not context.json:
                progress.show(status)
            time.sleep(POLL_S)
            client, status = again(context, client, name)
    return status


def again(context: Context, client: ControlClient, name: str) -> tuple[ControlClient, Json]:
    """Ask for a status again, of another node when this one has gone."""
    try:
        return client, client.volume(name)
    except UnavailableError:
        client = context.client()
        return client, client.volume(name)


def check_served(client: ControlClient, name: str) -> None:
    """Raise `UnavailableError` when no node that could serve a volume is there.

    While one is, nothing is said: a failover is a pause that whoever opens the volume waits for.
    """
    status = client.volume(name)
    if _is_away(status):
        raise UnavailableError(f"Volume {name} is offline. {status['reason']}")


def holders(status: Json) -> set[str]:
    """Return the nodes that have a lease and an in-sync copy of a volume."""
    copies = [copy for copy in status["copies"] if copy["state"] == "in-sync"]
    return {copy["node"] for copy in copies if copy.get("alive", True)}


def _is_away(status: Json) -> bool:
    is_made = bool(status["copies"])
    return is_made and status["health"] == "offline" and not holders(status)


def _made_in_vain(name: str, node: str) -> UnavailableError:
    return UnavailableError(
        f"Volume {name} is made, but node {node}, which has its first copy, is away.",
        hint=f"Bring {node} back, such as by `holdfast node start {node}`, and it serves and "
        f"becomes healthy by itself;\nor `holdfast volume delete {name}`, and make it anew.",
    )
