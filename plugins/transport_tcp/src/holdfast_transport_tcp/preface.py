"""The transport's own handshake: who are you, do we speak alike.

The connecting side sends a `Preface`, the accepting one answers with a `Welcome` that either names
the compression chosen or refuses. Only then does the connecting side send its first message. Both
are ordinary frames, so that one decoder reads everything and a stranger's bytes fail at once.
"""

from __future__ import annotations

import attrs

from holdfast_transport_tcp.layout import VERSION

CAPABILITIES: tuple[str, ...] = ()
"""What this version can do beyond version 1; both sides use what both have."""

_LADDER = ("zstd", "lz4", "none")
"""From the most compression to none; a side offers its choice and what lies below."""


@attrs.frozen
class Preface:
    """Connecting side: the first frame of a connection."""

    cluster: str
    node: str
    compression: tuple[str, ...]
    """In order of preference."""
    capabilities: tuple[str, ...]


@attrs.frozen
class Welcome:
    """Accepting side: the answer to a preface."""

    cluster: str
    node: str
    compression: str
    """The one chosen, for both directions."""
    capabilities: tuple[str, ...]
    """Those that both sides have."""
    refused: str
    """Empty, or the code of a refusal; the connection is closed after it."""
    sentence: str
    """Why it was refused, for a person."""


def offers(choice: str) -> tuple[str, ...]:
    """Return what a node configured for `choice` offers and accepts."""
    return _LADDER[_LADDER.index(choice) :]


def answer(preface: Preface, *, cluster: str, node: str, choice: str) -> Welcome:
    """Return the answer to `preface` of a node of `cluster` that is configured for `choice`."""
    mine = offers(choice)
    shared = [name for name in preface.compression if name in mine]
    refused = sentence = ""
    if preface.cluster != cluster:
        refused = "wrong-cluster"
        sentence = (
            f"Node {node} belongs to cluster {cluster!r}, and {preface.node!r} came from "
            f"{preface.cluster!r}."
        )
    elif not shared:
        refused = "no-compression"
        sentence = f"Node {node} accepts {', '.join(mine)} and was offered none of them."
    return Welcome(
        cluster=cluster,
        node=node,
        compression="" if refused else shared[0],
        capabilities=tuple(c for c in preface.capabilities if c in CAPABILITIES),
        refused=refused,
        sentence=sentence,
    )


def other_version(node: str, cluster: str, version: int) -> Welcome:
    """Return the refusal of a peer whose header names another version."""
    return Welcome(
        cluster=cluster,
        node=node,
        compression="",
        capabilities=(),
        refused="wrong-version",
        sentence=f"Node {node} speaks protocol version {VERSION}, not {version}.",
    )
