"""Fingerprints of machines: equal for two states that cannot be told apart by what they do.

A machine is an attrs instance full of others. Its fingerprint is a tuple over all of its fields, in
which shared instances appear once and are referred to after that, and in which counters that only
serve to draw unused numbers do not appear. Times need no special case, because the explorer's clocks
stand still (`holdfast.testing.explorer`).
"""

from __future__ import annotations

import enum
import hashlib
from collections import deque
from collections.abc import Mapping
from typing import Any

import attrs

from holdfast.errors import FaultReason
from holdfast.sync.bitmap import Bitmap

LEFT_OUT = frozenset(
    {"_last_token", "_last_link", "_next_tick", "policy_of", "hash_of", "worker_of", "_notes"}
)
"""Counters and functions: they tell no two states apart."""
_PLAIN = (int, float, str, bool, type(None))
_DATA_BYTES_MAX = 64
"""Longer runs of bytes are named by their hash, so that fingerprints stay small."""
_fields: dict[type, tuple[str, ...]] = {}


def canonical(thing: object) -> object:
    """Return a hashable value that is equal for equal states."""
    return _walk(thing, {})


def _walk(thing: Any, known: dict[int, int]) -> object:
    kind = type(thing)
    if kind in _PLAIN:
        return thing
    if kind is bytes or kind is bytearray or kind is memoryview:
        return _bytes(bytes(thing))
    if isinstance(thing, enum.Enum):
        return thing.value
    if kind is tuple or kind is list or kind is deque:
        if len(thing) == 2 and type(thing[0]) is FaultReason:
            return thing[0].value  # The sentence beside it is for people.
        return tuple([_walk(item, known) for item in thing])
    if isinstance(thing, tuple):
        return (kind.__name__, *[_walk(item, known) for item in thing])
    if isinstance(thing, Mapping):
        # In their order: two machines that differ in it send in another order.
        return tuple([(_walk(key, known), _walk(value, known)) for key, value in thing.items()])
    if kind is set or kind is frozenset:
        return ("set", *sorted(thing))
    if kind is Bitmap:
        return thing.to_bytes()
    names = _fields.get(kind)
    if names is None:
        names = _fields[kind] = tuple(a.name for a in attrs.fields(kind) if a.name not in LEFT_OUT)
    at = known.get(id(thing))
    if at is not None:
        return ("same", at)
    known[id(thing)] = len(known)
    return (kind.__name__, *[_walk(getattr(thing, name), known) for name in names])


def _bytes(data: bytes) -> bytes:
    if len(data) <= _DATA_BYTES_MAX:
        return data
    return hashlib.blake2b(data, digest_size=12).digest()
