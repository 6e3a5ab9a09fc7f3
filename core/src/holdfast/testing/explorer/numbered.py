"""Things under numbers: equal ones once, as bytes, and what they would be with other labels."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

from holdfast.testing.explorer.canon import canonical
from holdfast.testing.explorer.labels import Labels, Renaming, frozen_bytes, thawed


class Numbered:
    """All things of one kind ever met, by number."""

    def __init__(self) -> None:
        """Begin with none."""
        self.labels: list[Labels] = []
        """By number: the epochs, versions and processes that occur in the thing."""
        self._raw: list[bytes] = []
        self._numbers: dict[object, int] = {}
        self._images: dict[tuple[int, Hashable], int] = {}

    def __len__(self) -> int:
        """Return how many different things were met."""
        return len(self._raw)

    def number(self, thing: Any) -> int:
        """Return the number of a thing; equal ones have the same."""
        key = canonical(thing)
        known = self._numbers.get(key)
        if known is None:
            known = self._numbers[key] = len(self._raw)
            raw, labels = frozen_bytes(thing)
            self._raw.append(raw)
            self.labels.append(labels)
            self.look(thing, key)
        return known

    def look(self, thing: Any, fingerprint: object) -> None:
        """Take a thing that was never met before; its number is the highest."""

    def load(self, number: int) -> Any:
        """Return a thing anew, to be changed at will."""
        return thawed(self._raw[number])

    def image(self, number: int, renaming: Renaming) -> int:
        """Return the number of what a thing becomes when its labels are others."""
        key = (number, renaming.key(self.labels[number]))
        known = self._images.get(key)
        if known is None:
            known = self._images[key] = self.number(thawed(self._raw[number], renaming))
        return known
