"""An observer that anybody may install hears what a cluster does, and places copies with it."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.harness.cluster import RunningCluster, holdfast
from tests.harness.waiting import wait_until

Start = Callable[..., RunningCluster]
OBSERVER = '''
import json, os
import pluggy
import typer

hookimpl = pluggy.HookimplMarker("holdfast")


def tell(**what):
    with open(os.environ["HOLDFAST_TOLD"], "a") as file:
        file.write(json.dumps(what) + "\\n")


@hookimpl
def group_changed(spec, before, after):
    tell(hook="group_changed", volume=spec.name, before=before and before.epoch, after=after.epoch)


@hookimpl
def sync_progress(spec, node, bytes_left, bytes_total, rate):
    tell(hook="sync_progress", node=node, left=bytes_left, total=bytes_total, rate=rate)


@hookimpl
def node_lost(node):
    tell(hook="node_lost", node=node)


@hookimpl
def score_placement(node):
    return 5000.0 if node.name in ("n2", "n4") else None


@hookimpl
def metrics(node):
    return [("holdfast_observed_total", 3, {"at": node})]


@hookimpl
def cli_commands(app: typer.Typer):
    @app.command()
    def observed():
        """Say that the observer is here."""
        print("observed")
'''


@pytest.fixture
def told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], list[Any]]:
    """Install the observer for the processes of this test; return what it was told of a hook."""
    folder = tmp_path / "observer"
    info = folder / "holdfast_observer-1.0.dist-info"
    info.mkdir(parents=True)
    (folder / "holdfast_observer.py").write_text(OBSERVER)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: holdfast-observer\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[holdfast.hooks]\nobserver = holdfast_observer\n")
    path = tmp_path / "told.jsonl"
    monkeypatch.setenv("HOLDFAST_TOLD", str(path))
    monkeypatch.setenv("PYTHONPATH", f"{folder}{os.pathsep}{os.environ['PYTHONPATH']}")

    def of(hook: str) -> list[Any]:
        lines = path.read_text().splitlines() if path.exists() else []
        return [each for each in map(json.loads, lines) if each["hook"] == hook]

    return of


def test_an_observer_hears_of_everything_and_scores_placements(
    start_cluster: Start, told: Callable[[str], list[Any]]
) -> None:
    cluster = start_cluster(nodes=4)
    made = cluster.create("db", "64MiB", replicas=1)
    assert {copy["node"] for copy in made["copies"]} == {"n2", "n4"}
    changes = told("group_changed")
    assert (changes[0]["before"], changes[0]["after"]) == (None, 1)
    epochs = [each["after"] for each in changes]
    assert epochs == sorted(epochs)
    assert all(each["volume"] == "db" for each in changes)

    wait_until(lambda: told("sync_progress"), 5, "a sync to be told")
    assert told("sync_progress")[-1]["left"] == 0

    metrics = cluster.node("n1").client().metrics()
    assert 'holdfast_observed_total{at="n1"} 3' in metrics

    victim = cluster.primary("db")
    cluster.kill(victim)
    wait_until(lambda: told("node_lost"), 20, "a node to be told lost")
    assert {each["node"] for each in told("node_lost")} == {victim}
    cluster.wait_healthy("db")
    assert told("group_changed")[-1]["after"] > epochs[-1]
    cluster.stop("n1")
    assert {each["node"] for each in told("node_lost")} == {victim}


@pytest.mark.usefixtures("told")
def test_an_observer_adds_a_command() -> None:
    done = holdfast("observed")
    assert (done.code, done.out) == (0, "observed\n"), done.err
