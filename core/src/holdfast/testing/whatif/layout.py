"""The nodes, zones and volumes that a user describes in TOML, and which of them are lost at once.

[nodes]
a = { zone = "east" }
[volumes.db]
size = "100GiB"
replicas = 2                 # else --replicas
policy = "soft"              # else --policy
nodes = ["a", "b", "c"]      # the primary's first; else spread over the zones
"""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Callable, Collection, Mapping
from typing import Any

from attrs import frozen

from holdfast.errors import ConfigError, UsageError
from holdfast.units import REPLICAS_MAX, counted, parse_size

NODES_MAX = 32
VOLUMES_MAX = 16
FAULTS = ("node", "zone", "two-nodes")
_KEYS = frozenset({"nodes", "volumes"})
_VOLUME_KEYS = frozenset({"size", "replicas", "policy", "set", "nodes"})

Place = Callable[[str], str]
"""From a key's path, such as `volumes.db.size`, to where it is written: file, line and path."""


@frozen
class Volume:
    """One volume of a layout."""

    name: str
    size_bytes: int
    replicas: int
    policy: str
    options: Mapping[str, Any]
    nodes: tuple[str, ...]
    """Where its copies are, the primary's first."""


@frozen
class Layout:
    """What is to be run through failures."""

    zones: Mapping[str, str]
    """Node to zone."""
    volumes: tuple[Volume, ...]

    def called(self, lost: tuple[str, ...]) -> str:
        """Return what a person calls nodes that are lost together: a zone, or their names."""
        zones = {self.zones[node] for node in lost}
        together = len(lost) > 1 and len(zones) == 1
        if together and all(zone not in zones or n in lost for n, zone in self.zones.items()):
            return f"zone {zones.pop()}"
        return " + ".join(lost)

    def losses(self, kind: str) -> list[tuple[str, ...]]:
        """Return the sets of nodes that are lost together for one kind of fault."""
        nodes = list(self.zones)
        if kind == "node":
            return [(node,) for node in nodes]
        if kind == "two-nodes":
            return list(itertools.combinations(nodes, 2))
        zones = dict.fromkeys(self.zones.values())
        return [tuple(n for n in nodes if self.zones[n] == zone) for zone in zones]


def parse(content: Mapping[str, Any], place: Place, *, policy: str, replicas: int) -> Layout:
    """Return the layout in `content`.

    Args:
        content: What a TOML file holds.
        place: Says where a key stands, for errors.
        policy: Of volumes that name none.
        replicas: Of volumes that name none.

    Raises:
        ConfigError: It is no layout; names the place, the value and the nearest right spelling.
    """
    for key in content.keys() - _KEYS:
        raise _unknown(key, place(key), _KEYS)
    zones = _zones(content.get("nodes"), place)
    named = content.get("volumes")
    if not isinstance(named, dict) or not 0 < len(named) <= VOLUMES_MAX:
        raise _wrong(place("volumes"), f"must be a table of 1 to {VOLUMES_MAX} volumes")
    volumes = []
    for name, given in named.items():
        where = f"volumes.{name}"
        if not isinstance(given, dict):
            raise _wrong(place(where), f"is {given!r}; it must be a table")
        for key in given.keys() - _VOLUME_KEYS:
            raise _unknown(key, place(f"{where}.{key}"), _VOLUME_KEYS)
        volumes.append(
            _volume(name, {"policy": policy, "replicas": replicas, **given}, zones, place)
        )
    return Layout(zones, tuple(volumes))


def _zones(given: object, place: Place) -> dict[str, str]:
    if not isinstance(given, dict) or not 0 < len(given) <= NODES_MAX:
        raise _wrong(place("nodes"), f"must be a table of 1 to {NODES_MAX} nodes")
    zones = {}
    for node, about in given.items():
        # Who names no zone has one of its own.
        zone = about.get("zone", node) if isinstance(about, dict) else about
        if not isinstance(zone, str) or not zone or (isinstance(about, dict) and len(about) > 1):
            raise _wrong(
                place(f"nodes.{node}"), f'is {about!r}; it must be {{ zone = "NAME" }}, or {{}}'
            )
        zones[node] = zone
    return zones


def _volume(name: str, given: Mapping[str, Any], zones: Mapping[str, str], place: Place) -> Volume:
    where = f"volumes.{name}"

    def wrong(key: str, what: str) -> ConfigError:
        shown = f"is {given[key]!r}; it " if key in given else ""
        return _wrong(place(f"{where}.{key}"), f"{shown}must {what}")

    try:
        size_bytes = parse_size(str(given.get("size", "10GiB")))
    except ValueError as error:
        raise wrong("size", f"be a size: {error}") from error
    if size_bytes <= 0:
        raise wrong("size", "be above 0")
    replicas, policy, options = given["replicas"], given["policy"], given.get("set", {})
    if type(replicas) is not int or not 0 <= replicas <= REPLICAS_MAX:
        raise wrong("replicas", f"be 0 to {REPLICAS_MAX}")
    if not isinstance(policy, str):
        raise wrong("policy", "be the name of one")
    if not isinstance(options, dict):
        raise wrong("set", "be a table, such as { grace_s = 30 }")
    nodes = given.get("nodes")
    if nodes is None:
        nodes = _spread(zones, replicas + 1, name)
    if not isinstance(nodes, list) or not all(node in zones for node in nodes):
        raise wrong("nodes", f"be a list of nodes of this file, which are {', '.join(zones)}")
    if len(set(nodes)) != len(nodes) or len(nodes) != replicas + 1:
        raise wrong(
            "nodes",
            f"name {replicas + 1} different ones: the primary's and {counted(replicas, 'replica')}",
        )
    return Volume(name, size_bytes, replicas, policy, options, tuple(nodes))


def _spread(zones: Mapping[str, str], count: int, name: str) -> list[str]:
    """Choose nodes zone by zone, beginning elsewhere for each volume."""
    if count > len(zones):
        raise UsageError(
            f"Volume {name} needs {count} nodes, one for each copy, and there are {len(zones)}.",
            hint="Declare fewer replicas, or add nodes.",
        )
    nodes = list(zones)
    start = sum(name.encode()) % len(nodes)
    left = nodes[start:] + nodes[:start]
    chosen: list[str] = []
    while len(chosen) < count:
        used = [zones[node] for node in chosen]
        best = min(left, key=lambda node: (used.count(zones[node]), left.index(node)))
        chosen.append(best)
        left.remove(best)
    return chosen


def _unknown(key: str, at: str, known: Collection[str]) -> ConfigError:
    nearest = difflib.get_close_matches(key, known, n=1)
    hint = f"Did you mean {nearest[0]!r}?" if nearest else f"There are {', '.join(sorted(known))}."
    return ConfigError(f"{at} is not known.", hint=hint)


def _wrong(at: str, what: str) -> ConfigError:
    return ConfigError(f"{at} {what}.", hint="`holdfast whatif -h` shows a layout.")
