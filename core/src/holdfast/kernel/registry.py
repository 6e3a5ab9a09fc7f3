"""Find and load exactly one driver by kind and name, and explain it when that fails.

Drivers are entry points of installed distributions: stevedore loads them, `importlib.metadata` says
whose they are. The registry knows names, distributions and API versions; it refuses to know what
any driver does. Nothing is imported but what was asked for, and a driver that breaks while it is
imported is reported with its reason and stops nobody else.
"""

from __future__ import annotations

import difflib
import enum
import re
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import EntryPoint, entry_points
from typing import Any

import attrs
from stevedore.named import NamedExtensionManager

from holdfast.errors import DriverError, UsageError
from holdfast.interfaces import API_VERSION

KINDS: tuple[str, ...] = (
    "transport",
    "policy",
    "orchestrator",
    "frontend",
    "state",
    "replicator",
    "attach",
    "hooks",
)
"""Every kind of driver; the entry-point group of a kind is `holdfast.` and the kind."""

BUILT_IN: Mapping[str, tuple[str, ...]] = {"replicator": ("lockstep",)}
"""What an operator may name beside drivers: the core has it, and nothing is installed for it."""

_UNVERSIONED = frozenset({"hooks"})
"""Observers need no `API_VERSION`: pluggy checks the arguments of each hook by itself."""


class DriverStatus(enum.Enum):
    """What became of an installed driver."""

    OK = "ok"
    BROKEN = "broken"
    """It cannot be imported, or is not a driver."""
    WRONG_VERSION = "wrong-version"
    """It was built for another major version of the interfaces."""
    CONFLICT = "conflict"
    """Several distributions declare the same kind and name; none of them is used."""


@attrs.frozen
class DriverInfo:
    """One installed driver, for `holdfast plugin list`."""

    kind: str
    name: str
    distribution: str
    """The distribution as pip knows it."""
    version: str
    """The distribution's version."""
    status: DriverStatus
    reason: str = ""
    """One sentence why it is not usable; empty when it is."""


class _FreshManager(NamedExtensionManager[Any]):
    """stevedore without its cache of entry points.

    The cache in the user's home directory hashes modification times as 32-bit floats, a grain of
    128 seconds: a plugin that is reinstalled within that time keeps its old names. It also drops
    the distribution, which the operator wants to see.
    """

    def list_entry_points(self) -> list[EntryPoint]:
        return _entry_points(self.namespace)


def names(kind: str) -> list[str]:
    """Return the names of the installed drivers of `kind`, sorted, without importing any."""
    return sorted({point.name for point in _entry_points(_group(kind))})


def load(kind: str, name: str) -> Any:
    """Import and return the driver `name` of `kind`.

    Args:
        kind: One of `KINDS`.
        name: The entry-point name, as an operator types it.

    Raises:
        DriverError: No such driver is installed, it is declared twice, it cannot be imported, or it
            was built for another major version; says which, and what to do.
    """
    found = [point for point in _entry_points(_group(kind)) if point.name == name]
    if not found:
        raise _not_found(kind, name)
    driver, info = _examine(kind, name, found)
    if info.status is DriverStatus.OK:
        return driver
    raise DriverError(
        f"The {kind} driver {name!r} cannot be used: {info.reason}", hint=_remedy(info, found)
    )


def list_drivers(kind: str | None = None) -> list[DriverInfo]:
    """Import every installed driver and say what became of it, by kind and name.

    Args:
        kind: One of `KINDS`; None means all of them.
    """
    infos: list[DriverInfo] = []
    for each in KINDS if kind is None else (kind,):
        points = _entry_points(_group(each))
        for name in sorted({point.name for point in points}):
            found = [point for point in points if point.name == name]
            _, info = _examine(each, name, found)
            infos.extend(
                attrs.evolve(info, distribution=distribution, version=version)
                for distribution, version in sorted(map(_origin, found))
            )
    return infos


def _group(kind: str) -> str:
    if kind not in KINDS:
        raise UsageError(
            f"There are no drivers of kind {kind!r}.", hint=f"Kinds are {', '.join(KINDS)}."
        )
    return f"holdfast.{kind}"


def _entry_points(group: str) -> list[EntryPoint]:
    """Return the group's entry points, each once for each distribution that declares it."""
    seen: dict[tuple[str, str, str], EntryPoint] = {}
    for point in entry_points(group=group):
        seen.setdefault((point.name, point.value, _canonical(_origin(point)[0])), point)
    return list(seen.values())


def _origin(point: EntryPoint) -> tuple[str, str]:
    """Return the name and version of the distribution that declares `point`."""
    if point.dist is None:
        return "unknown", "unknown"
    return point.dist.name, point.dist.version


def _canonical(distribution: str) -> str:
    """Return the name as packaging compares it, so that `a_b` and `A-b` are one."""
    return re.sub(r"[-_.]+", "-", distribution).lower()


def _examine(kind: str, name: str, found: Sequence[EntryPoint]) -> tuple[Any, DriverInfo]:
    """Return the driver, or None, and what is to be said of it."""
    distribution, version = _origin(found[0])

    def info(status: DriverStatus, reason: str = "") -> DriverInfo:
        return DriverInfo(kind, name, distribution, version, status, reason)

    if len(found) > 1:
        owners = _and(sorted(f"{n} {v}" for n, v in map(_origin, found)))
        return None, info(DriverStatus.CONFLICT, f"{owners} both declare it.")
    try:
        driver = _import(found[0])
    except DriverError as error:
        return None, info(DriverStatus.BROKEN, error.message)
    built_for = getattr(driver, "API_VERSION", None)
    if kind in _UNVERSIONED and built_for is None:
        return driver, info(DriverStatus.OK)
    if type(built_for) is not int:
        return None, info(
            DriverStatus.BROKEN, f"{found[0].value} has no API_VERSION, so it is not a driver."
        )
    if built_for != API_VERSION:
        return None, info(
            DriverStatus.WRONG_VERSION,
            f"it was built for API version {built_for}, and this Holdfast has {API_VERSION}.",
        )
    return driver, info(DriverStatus.OK)


def _import(point: EntryPoint) -> Any:
    """Load one entry point through stevedore; raises `DriverError` with the reason alone."""
    failures: list[BaseException] = []
    try:
        manager = _FreshManager(
            point.group,
            names=[point.name],
            on_load_failure_callback=lambda _manager, _point, error: failures.append(error),
            on_missing_entrypoints_callback=None,
        )
    except (AssertionError, SystemExit) as error:
        # stevedore lets these two pass; a driver's module must not end the daemon either.
        failures.append(error)
    if failures:
        sentence = str(failures[0]).strip().split("\n", 1)[0].rstrip(".")
        kind = type(failures[0]).__name__
        raise DriverError(
            f"importing {point.value} failed: {kind}: {sentence}."
            if sentence
            else f"importing {point.value} failed: {kind}."
        )
    return manager.extensions[0].plugin


def _not_found(kind: str, name: str) -> DriverError:
    installed, built_in = names(kind), BUILT_IN.get(kind, ())
    if name in built_in:
        return DriverError(
            f"The {kind} {name!r} is built in and is no driver.",
            hint="It is always there and has no options; leave it out.",
        )
    if not installed and not built_in:
        hint = f"No {kind} driver is installed at all."
        if kind in {"transport", "policy", "orchestrator"}:
            hint += f" Install one, for example `pip install {_FIRST_PARTY[kind]}`."
        return DriverError(f"There is no {kind} driver {name!r}.", hint=hint)
    nearest = difflib.get_close_matches(name, [*built_in, *installed], n=1)
    guess = f"Did you mean {nearest[0]!r}? " if nearest else ""
    told = [f"Built in: {', '.join(built_in)}."] if built_in else []
    told += [f"Installed: {', '.join(installed)}."] if installed else []
    return DriverError(f"There is no {kind} driver {name!r}.", hint=guess + " ".join(told))


_FIRST_PARTY = {
    "transport": "holdfast-transport-tcp",
    "policy": "holdfast-policy",
    "orchestrator": "holdfast-orchestrator-k8s",
}


def _remedy(info: DriverInfo, found: Sequence[EntryPoint]) -> str:
    match info.status:
        case DriverStatus.CONFLICT:
            owners = sorted(_origin(point)[0] for point in found)
            return f"Uninstall all but one: `pip uninstall {owners[-1]}`."
        case DriverStatus.WRONG_VERSION:
            return f"Install a version of {info.distribution} that fits, or another Holdfast."
        case _:
            return (
                f"It comes from {info.distribution} {info.version}: "
                f"`pip install --force-reinstall {info.distribution}`."
            )


def _and(words: Iterable[str]) -> str:
    *head, last = words
    return f"{', '.join(head)} and {last}" if head else last
