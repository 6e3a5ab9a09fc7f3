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
from holdfast.sync.context import MAP_TAG_BYTES
from holdfast.testing.explorer.labels import (
    EpochMark,
    Name,
    RecordBytes,
    TaggedMap,
    VersionMark,
    node_of,
)

LEFT_OUT = frozenset(
    {
        "_last_token",
        "_last_link",
        "next_tick",
        "policy_of",
        "hash_of",
        "worker_of",
        "_notes",
        "sentence",
    }
)
"""Counters, functions, and words for people: they tell no two states apart."""
_LABELS: dict[type, type] = {EpochMark: int, VersionMark: int, Name: str, TaggedMap: bytes}
_PLAIN = (int, float, str, bool, type(None))
_DATA_BYTES_MAX = 64
"""Longer runs of bytes are named by their hash, so that fingerprints stay small."""
_fields: dict[type, tuple[str, ...]] = {}


def canonical(thing: object) -> object:
    """Return a hashable value that is equal for equal states."""
    return _walk(thing, {})


def anonymous(fingerprint: object, node: str) -> int:
    """Return a number that is equal for what may differ only in the names of nodes and processes.

    Args:
        fingerprint: What `canonical` has returned.
        node: The letter of the node that it is of: whether a name is the own one is told apart.
    """
    if type(fingerprint) is not tuple or not fingerprint:
        return hash(fingerprint)
    kind = fingerprint[0]
    if kind == Name.__name__:
        return hash((kind, node_of(fingerprint[1]) == node, len(fingerprint[1])))
    if kind == "same":
        return hash(kind)
    if kind == TaggedMap.__name__:
        return hash(fingerprint[1][MAP_TAG_BYTES:])
    parts = [anonymous(part, node) for part in fingerprint]
    return hash(tuple(parts)) if type(kind) is str and kind != "set" else hash(tuple(sorted(parts)))


def _walk(thing: Any, known: dict[int, int]) -> object:
    kind = type(thing)
    if kind in _PLAIN:
        return thing
    if kind in _LABELS:
        return (kind.__name__, _LABELS[kind](thing))
    if kind is RecordBytes:
        return _walk(thing.record, known)
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
        items = list(thing.items())
        if items and _is_of_a_node(items[0][0]):
            # Which of several nodes is served first is nothing that another one could see.
            items.sort(key=_first)
        return tuple([(_walk(key, known), _walk(value, known)) for key, value in items])
    if kind is set or kind is frozenset:
        return ("set", *[_walk(item, known) for item in sorted(thing)])
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


def _is_of_a_node(key: object) -> bool:
    return type(key) is Name or (type(key) is tuple and type(key[0]) is Name)


def _first(item: tuple[Any, Any]) -> Any:
    return item[0]
