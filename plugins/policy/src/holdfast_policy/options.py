"""What an operator may set for a failure mode, each with the default of the design's section 5."""

from __future__ import annotations

import attrs
from attrs.validators import in_

from holdfast.units import REPLICAS_MAX

SERVE, HOLD = "serve", "hold"
READ_ONLY, SUSPEND, ERROR = "read-only", "suspend", "error"


@attrs.frozen
class GraceOptions:
    """Parameters of `hard`, `soft` and `alwayson`; times in seconds."""

    grace_s: float = attrs.field(default=90.0, metadata={"min": 0, "unit": "s"})
    """How long too few replicas are put up with, while a replacement is made."""
    during_grace: str = attrs.field(default=SERVE, validator=in_((SERVE, HOLD)))
    """What happens meanwhile: `serve` reads and writes, or `hold` them until it is over."""
    on_shortage: str = attrs.field(default=READ_ONLY, validator=in_((READ_ONLY, SUSPEND, ERROR)))
    """What happens afterwards: `read-only`, `suspend` (requests wait, and go on by themselves), or
    `error` (writes fail, reads work)."""
    auto_resume: bool = False
    """Whether writing comes back without a new attachment once enough replicas are online."""


@attrs.frozen
class ThresholdOptions(GraceOptions):
    """Parameters of `threshold`."""

    threshold: int = attrs.field(default=1, metadata={"min": 0, "max": REPLICAS_MAX})
    """The fewest online replicas with which the volume stays writable."""


@attrs.frozen
class NoOptions:
    """Modes without parameters."""


@attrs.frozen
class ToleranceOptions:
    """Parameters of `v1-soft`."""

    tolerance: int | None = attrs.field(default=None, metadata={"min": 0, "max": REPLICAS_MAX})
    """How many replicas may be missing; none: all but one, and the only one of a volume that has
    one."""
