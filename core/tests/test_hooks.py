from __future__ import annotations

import logging
from typing import Any

import pluggy
import pytest

from holdfast.kernel.hooks import HookManager, Hooks, load_hooks
from holdfast.model import NodeRecord
from holdfast.units import NodeName

hookimpl = pluggy.HookimplMarker("holdfast")
N1 = NodeName("n1")


class Watching:
    def __init__(self) -> None:
        self.seen: list[str] = []

    @hookimpl
    def node_lost(self, node: NodeName) -> None:
        self.seen.append(node)

    @hookimpl
    def score_placement(self, node: NodeRecord) -> float:
        return 2.5


class Raising:
    @hookimpl
    def node_lost(self) -> None:
        raise RuntimeError("no pager")

    @hookimpl
    def score_placement(self) -> Any:
        raise RuntimeError("no score")


class Babbling:
    @hookimpl
    def score_placement(self) -> Any:
        return "ten"


class Misspelled:
    @hookimpl
    def node_losst(self, node: NodeName) -> None:
        """Never called."""


class Wrapping:
    @hookimpl(wrapper=True)
    def node_lost(self) -> Any:
        return (yield)


class Unmakeable:
    def __init__(self) -> None:
        raise RuntimeError("no licence")


def test_observers_are_told_what_they_ask_for() -> None:
    watching = Watching()
    HookManager([("w", watching)]).tell("node_lost", node=N1)
    assert watching.seen == ["n1"]


def test_an_observer_that_raises_is_logged_and_the_others_are_told(
    caplog: pytest.LogCaptureFixture,
) -> None:
    first, last = Watching(), Watching()
    manager = HookManager([("first", first), ("raising", Raising()), ("last", last)])
    manager.tell("node_lost", node=N1)
    assert first.seen == last.seen == ["n1"]
    assert "Observer raising failed in node_lost." in caplog.text


def test_scores_of_all_observers_are_added_up(caplog: pytest.LogCaptureFixture) -> None:
    manager = HookManager(
        [("a", Watching()), ("b", Watching()), ("r", Raising()), ("x", Babbling())]
    )
    node = NodeRecord(name=N1, address="", session="")
    assert manager.score_placement(spec=None, node=node) == 5.0  # type: ignore[arg-type]
    assert "is no number: 'ten'" in caplog.text


def test_a_class_is_made_an_observer_without_arguments() -> None:
    assert HookManager([("w", Watching)]).names == ["w"]


@pytest.mark.parametrize(
    ("observer", "reason"),
    [(Misspelled(), "node_losst"), (Wrapping(), "wraps others"), (Unmakeable, "no licence")],
)
def test_what_is_no_observer_is_logged_and_left_out(
    observer: Any, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    watching = Watching()
    manager = HookManager([("bad", observer), ("w", watching)])
    manager.tell("node_lost", node=N1)
    assert manager.names == ["w"]
    assert watching.seen == ["n1"]
    assert "Observer bad is left out" in caplog.text
    assert reason in caplog.text


def test_every_hook_is_documented_with_its_arguments() -> None:
    hooks = {name: f for name, f in vars(Hooks).items() if hasattr(f, "holdfast_spec")}
    assert {"group_changed", "sync_progress", "node_lost", "score_placement"} <= set(hooks)
    for name, function in hooks.items():
        arguments = function.__code__.co_varnames[1 : function.__code__.co_argcount]
        assert function.__doc__, name
        assert all(f"{argument}:" in function.__doc__ for argument in arguments), name


def test_without_any_observer_installed_there_is_nobody_to_tell(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.ERROR):
        assert load_hooks().tell("metrics", node=N1) == []
    assert not caplog.text
