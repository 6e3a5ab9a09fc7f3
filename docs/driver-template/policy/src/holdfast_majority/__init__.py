"""A failure mode that is not Holdfast's own: writable while most of the copies are here.

The smallest useful policy there is, as a template: copy the folder, rename it, change `least` and
`decide`, and `pip install` it. With too few copies requests wait, and go on by themselves.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import attrs

from holdfast.interfaces import API_VERSION
from holdfast.interfaces.policy import PolicyView, Verdict
from holdfast.model import Access

__all__ = ["MajorityOptions", "MajorityPolicy"]


@attrs.frozen
class MajorityOptions:
    """Parameters of `majority`: what `[policy.majority]` and `--set` may say."""

    spare: int = attrs.field(default=0, metadata={"min": 0, "max": 5})
    """How many copies beyond the majority must be here."""


@attrs.frozen
class MajorityPolicy:
    """Of R+1 copies, more than half must be here, the primary among them."""

    API_VERSION: ClassVar[int] = API_VERSION
    name: ClassVar[str] = "majority"
    Options: ClassVar[type[MajorityOptions]] = MajorityOptions
    CONFORMANCE: ClassVar[Mapping[str, Any]] = {"capabilities": {"grace": False, "sticky": False}}

    options: MajorityOptions

    @staticmethod
    def refuse(declared: int, options: Any) -> str | None:
        """Return why so many spare copies cannot be, or None."""
        if (declared + 1) // 2 + options.spare <= declared:
            return None
        return f"{declared} replicas have no {options.spare} copies beyond the majority."

    def least(self, declared: int) -> int:
        """Return how many replicas make a majority with the primary, and the spare ones."""
        return (declared + 1) // 2 + self.options.spare

    def nodes_min(self, declared: int) -> int:
        """Return one node for each copy, and one to heal on."""
        return declared + 2

    def decide(self, view: PolicyView, now: float) -> Verdict:
        """Return read-write with a majority; otherwise requests wait."""
        least = self.least(view.declared)
        count = f"{view.online} of {view.declared} replicas online, {least} make a majority"
        if view.online >= least:
            return Verdict(Access.READ_WRITE, None, f"{count}.", below=False)
        return Verdict(Access.SUSPENDED, None, f"{count}; requests wait.", below=True)
