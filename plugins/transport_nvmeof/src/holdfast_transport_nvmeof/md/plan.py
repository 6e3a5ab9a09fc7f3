"""What a planner returns: what to write first, what to do, what to write then, and what to say.

The order is the contract. A record that claims something is in the store before the first step that
relies on it; a record that says something was done follows the last step that did it.
"""

from __future__ import annotations

import attrs

from holdfast_transport_nvmeof.kernel.slices import Slice
from holdfast_transport_nvmeof.kernel.steps import Step
from holdfast_transport_nvmeof.md.model import MdVolume


@attrs.frozen
class Plan:
    """One thing to be done for one volume, by one node."""

    why: str
    """One sentence for the volume's events and for `--dry-run`."""
    kind: str = "md"
    """The event's word."""
    claim: MdVolume | None = None
    """Written before the steps; when that loses, nothing is done and the plan is made anew."""
    check: Slice | None = None
    """Looked at again right before the steps, which remove it."""
    steps: tuple[Step, ...] = ()
    after: MdVolume | None = None
    """Written when all steps have succeeded."""
    on_failure: MdVolume | None = None
    """Written when a step has failed."""
    background: str = ""
    """A member's id: the steps take long, and nothing else is done to that member meanwhile."""
    quiet: bool = False
    """Not worth an event."""
    ends: bool = False
    """The volume's record goes when the steps have succeeded."""
