"""A driver for a major version of the interfaces that never was; it must be refused by number."""

from __future__ import annotations

from typing import ClassVar

__all__ = ["OldPolicy"]


class OldPolicy:
    """Declares a version and nothing else."""

    API_VERSION: ClassVar[int] = 0
    name: ClassVar[str] = "old"
