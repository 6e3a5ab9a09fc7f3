"""What a maker of an md volume may say of it, also in the words of MeshStor's storage classes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs

from holdfast.errors import UsageError
from holdfast.units import MIB

MEMBERS_MAX = 32
"""Of one array; far below what MD's superblock can hold, and more than nodes in a rack."""
TIMEOUT_S_MIN = 60.0
SIZE_BYTES_MIN = 32 * MIB

_ALIASES = {
    "numberOfCopies": "copies",
    "replicaCount": "copies",
    "drivesPerCopy": "drives_per_copy",
    "stripeWidth": "drives_per_copy",
    "memberMissingTimeout": "member_missing_timeout_s",
    "sectorSize": "sector_size",
}


@attrs.frozen
class MdVolumeOptions:
    """The parameters of one md volume."""

    copies: int = 2
    drives_per_copy: int = 1
    member_missing_timeout_s: float = 900.0
    sector_size: int = 4096
    filesystem: str = "xfs"


def volume_options(
    given: Mapping[str, Any], *, replicas: int | None, missing_timeout_s: float | None
) -> MdVolumeOptions:
    """Return the parameters of a new volume.

    Args:
        given: As typed: numbers may be texts; MeshStor's names will do.
        replicas: Of the request: copies beside the first; None when it does not say.
        missing_timeout_s: Of the request, likewise.

    Raises:
        UsageError: A name is unknown or a value impossible; says which and what is possible.
    """
    fields: dict[str, Any] = {}
    if replicas is not None:
        fields["copies"] = replicas + 1
    if missing_timeout_s is not None:
        fields["member_missing_timeout_s"] = missing_timeout_s
    known = {field.name: field for field in attrs.fields(MdVolumeOptions)}
    for name, value in given.items():
        plain = _ALIASES.get(name, name)
        if plain not in known:
            names = ", ".join([*known, *_ALIASES])
            raise UsageError(f"The replicator md has no option {name!r}.", hint=f"It has {names}.")
        fields[plain] = _converted(name, value, type(known[plain].default))
    options = MdVolumeOptions(**fields)
    _check(options)
    return options


def _converted(name: str, value: Any, kind: type) -> Any:
    try:
        return kind(value)
    except (TypeError, ValueError):
        raise UsageError(f"{name} is {value!r}; it must be a number.") from None


def _check(options: MdVolumeOptions) -> None:
    members = max(options.copies, 2) * options.drives_per_copy
    if options.copies < 1 or options.drives_per_copy < 1 or members > MEMBERS_MAX:
        raise UsageError(
            f"{options.copies} copies of {options.drives_per_copy} drives are impossible.",
            hint=f"Each is at least 1, and an array has at most {MEMBERS_MAX} members.",
        )
    if options.member_missing_timeout_s < TIMEOUT_S_MIN:
        raise UsageError(
            f"memberMissingTimeout is {options.member_missing_timeout_s:g} s; it must be at least "
            f"{TIMEOUT_S_MIN:g} s, or a restart of a node costs a whole sync."
        )
    if options.sector_size not in {512, 4096}:
        raise UsageError(f"sectorSize is {options.sector_size}; it must be 512 or 4096.")
    if options.filesystem not in {"xfs", "none"}:
        raise UsageError(f"filesystem is {options.filesystem!r}; it must be xfs or none.")
