"""A policy: the failure mode of a volume, as a pure decision.

A policy owns no timer and does no I/O. It is asked whenever the group changes and again at the
deadline that its last verdict named; the group carries the verdict out and stores what must survive
a failover.
"""

from __future__ import annotations

from typing import Any, Protocol

import attrs

from holdfast.model import Access


@attrs.frozen
class PolicyView:
    """What a policy may look at."""

    declared: int
    """R: declared replicas, 0 to 5."""
    online: int
    """A: replicas online and receiving writes, in sync or syncing; the primary not counted."""
    in_sync: int
    """How many of those are in sync."""
    access: Access
    """The access in force, as stored in the group record."""
    below_since: float | None
    """When A first fell below the least, Unix seconds, as stored; None while it is not below."""
    attached_anew: bool = False
    """A writer session has attached since the access was withdrawn."""


@attrs.frozen
class Verdict:
    """What the group may do now."""

    access: Access
    deadline: float | None
    """Unix seconds at which to ask again though nothing changed; None: only at a change."""
    reason: str
    """One sentence for people: why, and what happens at the deadline."""
    below: bool
    """Whether A is below the least now; the group stores since when."""


class Policy(Protocol):
    """One failure mode with its parameters; stateless."""

    def least(self, declared: int) -> int:
        """Return M: the fewest online replicas with which `declared` replicas are read-write."""
        ...

    def nodes_min(self, declared: int) -> int:
        """Return how many nodes a cluster needs so that one loss is healed."""
        ...

    def decide(self, view: PolicyView, now: float) -> Verdict:
        """Return the verdict for `view` at `now` (Unix seconds). Pure: same input, same verdict."""
        ...


class PolicyDriver(Protocol):
    """What an entry point in `holdfast.policy` names: a class with these."""

    API_VERSION: int
    name: str
    """As typed in TOML and on the command line."""
    Options: type[Any]
    """An attrs class of the parameters, each with type, default and docstring metadata."""

    def __call__(self, options: Any) -> Policy:
        """Return a policy with these `Options`."""
        ...

    @staticmethod
    def refuse(declared: int, options: Any) -> str | None:
        """Return why `declared` replicas are impossible with these options, or None."""
        ...
