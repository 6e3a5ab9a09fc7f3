"""The second generation of failure modes: `hard`, `soft`, `threshold` and `alwayson`.

The first three differ in one number, the fewest online replicas with which a volume is writable;
the rule around it is in `grace.py`. Source: the design's section 5, after StorageOS v2.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import attrs

from holdfast.interfaces import API_VERSION
from holdfast.interfaces.policy import PolicyView, Verdict
from holdfast.model import Access
from holdfast.units import counted
from holdfast_policy import grace
from holdfast_policy.options import GraceOptions, ThresholdOptions


@attrs.frozen
class _GracePolicy:
    """What the modes with grace have in common: everything but their number."""

    API_VERSION: ClassVar[int] = API_VERSION
    Options: ClassVar[type[GraceOptions]] = GraceOptions

    options: GraceOptions

    @staticmethod
    def refuse(declared: int, options: Any) -> str | None:
        """Return None: any number of replicas will do."""
        return None

    def least(self, declared: int) -> int:
        """Return M; each mode has its own."""
        raise NotImplementedError

    def decide(self, view: PolicyView, now: float) -> Verdict:
        """Return the verdict of the shared rule."""
        return grace.decide(self.least(view.declared), self.options, view, now)


@attrs.frozen
class HardPolicy(_GracePolicy):
    """Every declared replica is needed; the strictest mode and the default."""

    name: ClassVar[str] = "hard"

    def least(self, declared: int) -> int:
        """Return R."""
        return declared

    def nodes_min(self, declared: int) -> int:
        """Return R+2: a lost copy needs a node that has none yet."""
        return declared + 2


@attrs.frozen
class SoftPolicy(_GracePolicy):
    """One replica may be missing, but never the only one."""

    name: ClassVar[str] = "soft"

    def least(self, declared: int) -> int:
        """Return R-1, at least 1 where there is one."""
        return min(declared, max(1, declared - 1))

    def nodes_min(self, declared: int) -> int:
        """Return R+1."""
        return declared + 1


@attrs.frozen
class ThresholdPolicy(_GracePolicy):
    """A number of replicas that the operator names is needed."""

    name: ClassVar[str] = "threshold"
    Options: ClassVar[type[ThresholdOptions]] = ThresholdOptions

    options: ThresholdOptions

    @staticmethod
    def refuse(declared: int, options: ThresholdOptions) -> str | None:
        """Return why a threshold above the number of replicas cannot be, or None."""
        if options.threshold <= declared:
            return None
        return (
            f"threshold is {options.threshold}, but the volume declares "
            f"{counted(declared, 'replica')}, so it could never be written."
        )

    def least(self, declared: int) -> int:
        """Return T."""
        return self.options.threshold

    def nodes_min(self, declared: int) -> int:
        """Return T+1."""
        return self.options.threshold + 1


@attrs.frozen
class AlwaysOnPolicy(_GracePolicy):
    """Writable whatever is missing; the last copy takes the writes alone.

    Takes the other modes' parameters, so that a change of mode keeps them, and needs none of them.
    """

    name: ClassVar[str] = "alwayson"
    CONFORMANCE: ClassVar[Mapping[str, Any]] = {"capabilities": {"grace": False, "sticky": False}}

    def least(self, declared: int) -> int:
        """Return 0."""
        return 0

    def nodes_min(self, declared: int) -> int:
        """Return 1."""
        return 1

    def decide(self, view: PolicyView, now: float) -> Verdict:
        """Return read-write, from whatever access another mode left behind."""
        return Verdict(
            Access.READ_WRITE,
            None,
            f"{view.online} of {view.declared} replicas online; this mode writes with any number.",
            below=False,
        )
