"""The first generation of failure modes: `v1-hard`, `v1-soft` and `v1-alwayson`.

They act at once, without any grace, and go back by themselves; nothing is sticky, and what another
mode withdrew is given back as soon as the count is right. Source: the design's section 5, after
StorageOS v1, which since its version 1.1.5 counts the replicas that are there, not those that
failed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import attrs

from holdfast.interfaces import API_VERSION
from holdfast.interfaces.policy import PolicyView, Verdict
from holdfast.model import Access
from holdfast_policy.options import NoOptions, ToleranceOptions


def _at_once(view: PolicyView, least: int, short: Access, words: str) -> Verdict:
    """Return read-write with `least` replicas online, and `short`, told as `words`, with fewer."""
    count = f"{view.online} of {view.declared} replicas online"
    if view.online >= least:
        return Verdict(Access.READ_WRITE, None, f"{count}, {least} needed.", below=False)
    return Verdict(
        short, None, f"{count}, {least} needed; {words} until they are back.", below=True
    )


@attrs.frozen
class _AtOncePolicy:
    """What the modes without grace have in common."""

    API_VERSION: ClassVar[int] = API_VERSION
    CONFORMANCE: ClassVar[Mapping[str, Any]] = {"capabilities": {"grace": False, "sticky": False}}

    @staticmethod
    def refuse(declared: int, options: Any) -> str | None:
        """Return None: any number of replicas will do."""
        return None


@attrs.frozen
class V1HardPolicy(_AtOncePolicy):
    """Every declared replica is needed for reading and for writing."""

    name: ClassVar[str] = "v1-hard"
    Options: ClassVar[type[NoOptions]] = NoOptions

    options: NoOptions

    def least(self, declared: int) -> int:
        """Return R."""
        return declared

    def nodes_min(self, declared: int) -> int:
        """Return R+1."""
        return declared + 1

    def decide(self, view: PolicyView, now: float) -> Verdict:
        """Return read-write with every replica, and nothing at all with fewer."""
        return _at_once(view, self.least(view.declared), Access.NONE, "reads and writes fail")


@attrs.frozen
class V1SoftPolicy(_AtOncePolicy):
    """As many replicas may be missing as the operator tolerates; reads work without any."""

    name: ClassVar[str] = "v1-soft"
    Options: ClassVar[type[ToleranceOptions]] = ToleranceOptions

    options: ToleranceOptions

    def least(self, declared: int) -> int:
        """Return R less the tolerance, which by default is R-1, and 1 of a single replica."""
        tolerance = self.options.tolerance
        if tolerance is None:
            tolerance = 1 if declared == 1 else max(0, declared - 1)
        return max(0, declared - tolerance)

    def nodes_min(self, declared: int) -> int:
        """Return R less the tolerance, and one."""
        return self.least(declared) + 1

    def decide(self, view: PolicyView, now: float) -> Verdict:
        """Return read-write with enough replicas, and failing writes with fewer."""
        return _at_once(view, self.least(view.declared), Access.ERROR, "reads work and writes fail")


@attrs.frozen
class V1AlwaysOnPolicy(_AtOncePolicy):
    """Writable while any copy lives."""

    name: ClassVar[str] = "v1-alwayson"
    Options: ClassVar[type[NoOptions]] = NoOptions

    options: NoOptions

    def least(self, declared: int) -> int:
        """Return 0."""
        return 0

    def nodes_min(self, declared: int) -> int:
        """Return 1."""
        return 1

    def decide(self, view: PolicyView, now: float) -> Verdict:
        """Return read-write."""
        return _at_once(view, 0, Access.READ_WRITE, "")
