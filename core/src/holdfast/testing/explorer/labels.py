"""Values that stand for nothing but themselves: epochs, versions of the record, and names.

The machines compare epochs and versions and count them up by one; they compare names. So a state in
which all of them are others, in the same order, behaves the same. These types let such values be told
from plain numbers and strings wherever the machines have carried them, so that a pickled machine can
be read back with others in their place. What a machine makes of them by other arithmetic would become
a plain number; `test_explorer.py` counts a world that begins at large numbers, to see that none does.
"""

from __future__ import annotations

import io
import pickle
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import attrs
from attrs import define, frozen

from holdfast.model import CopyState, GroupRecord, Member
from holdfast.sync.context import map_tag
from holdfast.units import CopyId, NodeName

EPOCH_FIRST = 3
"""Epochs are counted from here: 1 is special to a group that begins, and nothing here begins."""
_PROCESS = re.compile(r"([a-f])-(\d+)")
_NODE = re.compile(r"(?:copy-)?([a-f])(?:/1|-boot-\d+)?")


class Counted(int):
    """A number of which only the order matters."""

    def __add__(self, other: int) -> Counted:
        """Return the number that lies above by `other`; it is of the same kind."""
        return type(self)(int(self) + other)


class EpochMark(Counted):
    """An epoch."""


class VersionMark(Counted):
    """A version of the group record in the store."""


class Name(str):
    """A node, or what is named after one: its copy, disk, boot or process."""

    __slots__ = ()


class TaggedMap(bytes):
    """A dirty map on disk, whose tag was made of an epoch and a name."""

    incarnation: str
    left_epoch: int


class RecordBytes(bytes):
    """A group record on its way, with the record itself: bytes know nothing of labels."""

    record: GroupRecord


Process = tuple[str, int]


@frozen
class Labels:
    """The values of the three kinds that occur in something, each once and in order."""

    epochs: tuple[int, ...]
    versions: tuple[int, ...]
    processes: tuple[Process, ...]


@define
class Renaming:
    """Which value takes the place of which; what is not named stays."""

    epochs: Mapping[int, int]
    versions: Mapping[int, int]
    processes: Mapping[Process, int]
    """The new number of a process, by its old name."""
    nodes: Mapping[str, str]
    """The new letter of each node, by its old one."""

    def key(self, labels: Labels) -> tuple[object, ...]:
        """Return what this makes of something that has only these labels; for remembering it."""
        return (
            tuple([self.epochs.get(e, e) for e in labels.epochs]),
            tuple([self.versions.get(v, v) for v in labels.versions]),
            tuple([self.processes.get(p, p[1]) for p in labels.processes]),
            tuple(self.nodes.items()),
        )

    def name(self, text: str) -> str:
        """Return a name in which the node, and the number of a process, are the new ones."""
        process = _PROCESS.fullmatch(text)
        if process is not None:
            old = process[1], int(process[2])
            return f"{self.nodes[old[0]]}-{self.processes.get(old, old[1])}"
        found = _NODE.fullmatch(text)
        assert found is not None, text
        at = found.start(1)
        return text[:at] + self.nodes[found[1]] + text[at + 1 :]


def node_of(text: str) -> str:
    """Return the letter of the node that a name is of."""
    found = _PROCESS.fullmatch(text) or _NODE.fullmatch(text)
    assert found is not None, text
    return found[1]


_in_force: list[Renaming] = []


def _epoch(value: int) -> EpochMark:
    return EpochMark(_in_force[-1].epochs.get(value, value) if _in_force else value)


def _version(value: int) -> VersionMark:
    return VersionMark(_in_force[-1].versions.get(value, value) if _in_force else value)


def _name(text: str) -> Name:
    return Name(_in_force[-1].name(text) if _in_force else text)


def _map(incarnation: str, left_epoch: int, bits: bytes) -> TaggedMap:
    return tagged(incarnation, left_epoch, bits)


def tagged(incarnation: str, left_epoch: int, bits: bytes) -> TaggedMap:
    """Return a dirty map as it lies on disk; see `holdfast.sync.context.map_tag`."""
    member = Member(CopyId(""), NodeName(""), CopyState.OFFLINE, incarnation, left_epoch=left_epoch)
    made = TaggedMap(map_tag(member) + bits)
    made.incarnation, made.left_epoch = incarnation, left_epoch
    return made


_to_bytes = GroupRecord.to_bytes
_from_bytes = GroupRecord.from_bytes


def _record_bytes(record: GroupRecord) -> RecordBytes:
    made = RecordBytes(_to_bytes(record))
    made.record = record
    return made


def _record(raw: bytes) -> GroupRecord:
    read = _from_bytes(raw)
    if not isinstance(raw, RecordBytes):
        return read
    assert read == raw.record, (read, raw.record)
    return raw.record


@contextmanager
def labels_in_bytes() -> Iterator[None]:
    """Let labels survive that a record is written as bytes and read back, as long as this runs."""
    GroupRecord.to_bytes = _record_bytes  # type: ignore[method-assign, assignment]
    GroupRecord.from_bytes = _record  # type: ignore[method-assign]
    try:
        yield
    finally:
        GroupRecord.to_bytes = _to_bytes  # type: ignore[method-assign]
        GroupRecord.from_bytes = _from_bytes  # type: ignore[method-assign]


_FIELDS = tuple(field.name for field in attrs.fields(GroupRecord))


def _group_record(*values: Any) -> GroupRecord:
    """Return a record whose members stand in the order of their names, whatever these are by now."""
    record = GroupRecord(*values)
    members = tuple(sorted(record.members, key=lambda member: member.copy))
    return attrs.evolve(record, members=members)


class _Pickler(pickle.Pickler):
    def __init__(self, out: io.BytesIO) -> None:
        super().__init__(out, pickle.HIGHEST_PROTOCOL)
        self.epochs: set[int] = set()
        self.versions: set[int] = set()
        self.processes: set[Process] = set()
        self.dispatch_table = {
            # Syncs send views of bytes; what they show is all that matters.
            memoryview: lambda view: (bytes, (bytes(view),)),
            EpochMark: self._epoch,
            VersionMark: self._version,
            Name: self._name,
            TaggedMap: self._map,
            GroupRecord: lambda record: (_group_record, tuple(getattr(record, n) for n in _FIELDS)),
            RecordBytes: lambda raw: (_record_bytes, (raw.record,)),
        }

    def _epoch(self, value: int) -> Any:
        self.epochs.add(int(value))
        return _epoch, (int(value),)

    def _version(self, value: int) -> Any:
        self.versions.add(int(value))
        return _version, (int(value),)

    def _name(self, text: str) -> Any:
        process = _PROCESS.fullmatch(text)
        if process is not None:
            self.processes.add((process[1], int(process[2])))
        return _name, (str.__str__(text),)

    def _map(self, tagged_map: TaggedMap) -> Any:
        tag_bytes = len(map_tag(None))
        bits = bytes(tagged_map)[tag_bytes:]
        return _map, (tagged_map.incarnation, tagged_map.left_epoch, bits)


def frozen_bytes(thing: object) -> tuple[bytes, Labels]:
    """Return a thing as bytes, and the labels in it."""
    out = io.BytesIO()
    pickler = _Pickler(out)
    pickler.dump(thing)
    return out.getvalue(), Labels(
        tuple(sorted(pickler.epochs)),
        tuple(sorted(pickler.versions)),
        tuple(sorted(pickler.processes)),
    )


def thawed(raw: bytes, renaming: Renaming | None = None) -> Any:
    """Return the thing that these bytes are of, with other labels if a renaming says so."""
    if renaming is None:
        return pickle.loads(raw)  # noqa: S301 (pickled by `frozen_bytes`)
    _in_force.append(renaming)
    try:
        return pickle.loads(raw)  # noqa: S301
    finally:
        _in_force.pop()
