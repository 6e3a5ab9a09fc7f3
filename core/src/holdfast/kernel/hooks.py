"""Every hook that an observer may implement, and the loader that keeps observers harmless.

An observer is an entry point in `holdfast.hooks`: a module, an instance, or a class without
arguments, with any of the functions below, each marked for pluggy's project `holdfast`:

    hookimpl = pluggy.HookimplMarker("holdfast")

    @hookimpl
    def node_lost(node):
        page_somebody(node)

A hook names only the arguments that it wants. Hooks are told after the fact and decide nothing,
except that `score_placement` adds points. They run on the event loop's thread, so they return at
once; what takes time belongs in a thread of the observer's own. An observer that raises is logged
and has no other effect. Nothing here is called for a request.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import pluggy

from holdfast.errors import DriverError
from holdfast.kernel import registry
from holdfast.model import GroupRecord, NodeRecord, VolumeSpec
from holdfast.units import NodeName

if TYPE_CHECKING:
    import typer

hookspec = pluggy.HookspecMarker("holdfast")

_log = logging.getLogger("holdfast.hooks")


class Hooks(Protocol):
    """The hooks there are; what their arguments mean and when they are called."""

    @hookspec
    def group_changed(
        self, spec: VolumeSpec, before: GroupRecord | None, after: GroupRecord
    ) -> None:
        """A group's record has changed: another primary, in-sync set, access or attachment.

        Called on the node that made the change, after the state store has it; once for each change.

        Args:
            spec: The volume.
            before: The record that was in force; None when the volume is new.
            after: The record in force. Its epoch is higher if primary or in-sync set changed.
        """

    @hookspec
    def sync_progress(
        self, spec: VolumeSpec, node: NodeName, bytes_left: int, bytes_total: int, rate: float
    ) -> None:
        """A replica is being caught up; called about once a second by the primary's node.

        Args:
            spec: The volume.
            node: Where the replica is.
            bytes_left: What may still differ; 0 in the last call, when the replica is in sync.
            bytes_total: What differed when the sync began.
            rate: Bytes per second at present.
        """

    @hookspec
    def node_lost(self, node: NodeName) -> None:
        """A node's lease has run out, or its session has ended without a clean stop.

        Called by every node that notices, so an observer that pages somebody must expect several.

        Args:
            node: Its name.
        """

    @hookspec
    def score_placement(self, spec: VolumeSpec, node: NodeRecord) -> float:
        """Add to a node's score for one more copy of a volume.

        Called for each node when a copy is to be placed. Of two nodes that are otherwise alike, one
        copy held makes a difference of 1, an empty disk one of 10 and a zone of its own one of
        1000.

        Args:
            spec: The volume.
            node: A node; whether it is at all possible is decided elsewhere.

        Returns:
            Points, positive or negative; they are added up over all observers.
        """

    @hookspec
    def cli_commands(self, app: typer.Typer) -> None:
        """Add commands to the command line; called once, before the arguments are read.

        Args:
            app: The root command; use `app.command()` or `app.add_typer()`.
        """

    @hookspec
    def metrics(self, node: NodeName) -> Sequence[tuple[str, float, Mapping[str, str]]]:
        """Add samples to a node's metrics; called at each scrape, so it must take milliseconds.

        Args:
            node: The node that is scraped.

        Returns:
            Name, value and labels of each sample. Names begin with `holdfast_` and end in their
            unit, those of counters in `_total`.
        """


class HookManager:
    """The observers of one process; telling them never raises."""

    def __init__(self, observers: Iterable[tuple[str, Any]] = ()) -> None:
        """Register `observers` with their names; one that does not fit is logged and left out."""
        self._manager = pluggy.PluginManager("holdfast")
        self._manager.add_hookspecs(Hooks)
        for name, observer in observers:
            self._register(name, observer)

    @property
    def names(self) -> list[str]:
        """The names of the observers that are told, sorted."""
        return sorted(name for name, _ in self._manager.list_name_plugin())

    def tell(self, hook: str, /, **arguments: Any) -> list[Any]:
        """Call `hook` of every observer, in the order of registration.

        Args:
            hook: The name of a function of `Hooks`.
            arguments: All of its arguments.

        Returns:
            What the observers returned, without None; nothing from one that raised.
        """
        caller = getattr(self._manager.hook, hook)
        results = []
        for implementation in caller.get_hookimpls():
            # pluggy's own call stops at the first exception, and would keep the others from being
            # told.
            wanted = [arguments[name] for name in implementation.argnames]
            try:
                result = implementation.function(*wanted)
            except Exception:  # noqa: BLE001 - foreign code; see the module.
                _log.exception("Observer %s failed in %s.", implementation.plugin_name, hook)
                continue
            if result is not None:
                results.append(result)
        return results

    def score_placement(self, spec: VolumeSpec, node: NodeRecord) -> float:
        """Return the points of all observers together; what is no number is logged and counts 0."""
        points = 0.0
        for score in self.tell("score_placement", spec=spec, node=node):
            if isinstance(score, int | float):
                points += score
            else:
                _log.error("A score for node %s is no number: %r.", node.name, score)
        return points

    def _register(self, name: str, observer: Any) -> None:
        try:
            instance = observer() if isinstance(observer, type) else observer
            self._manager.register(instance, name=name)
            # A misspelled hook would silently never be called.
            self._manager.check_pending()
            self._refuse_wrappers(instance)
        except Exception as error:  # noqa: BLE001 - foreign code; see the module.
            _log.error("Observer %s is left out: %s", name, error)
            if self._manager.has_plugin(name):
                self._manager.unregister(name=name)

    def _refuse_wrappers(self, observer: Any) -> None:
        for caller in self._manager.get_hookcallers(observer) or []:
            for each in caller.get_hookimpls():
                if each.plugin is observer and (each.wrapper or each.hookwrapper):
                    raise ValueError(f"its {caller.name} wraps others, and observers do not.")


def load_hooks() -> HookManager:
    """Return a manager with every installed observer; those that do not load are logged."""
    observers = []
    for name in registry.names("hooks"):
        try:
            observers.append((name, registry.load("hooks", name)))
        except DriverError as error:
            _log.error("Observer %s is left out: %s", name, error)
    return HookManager(observers)
