"""Drivers are found in real metadata: each test writes the distributions that it needs."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from holdfast.errors import DriverError, UsageError
from holdfast.interfaces import API_VERSION
from holdfast.kernel import registry
from holdfast.kernel.registry import DriverInfo, DriverStatus, list_drivers, load, names

Install = Callable[..., None]
GOOD = f"class Driver:\n    API_VERSION = {API_VERSION}\n    name = 'good'\n"


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Install a distribution with one module and one entry point, as pip would leave it."""
    before = set(sys.modules)

    def install(
        distribution: str,
        *,
        source: str = GOOD,
        name: str = "good",
        kind: str = "orchestrator",
        version: str = "1.2",
    ) -> None:
        site = tmp_path / distribution
        module = distribution.replace("-", "_")
        folder = site / f"{module}-{version}.dist-info"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "METADATA").write_text(f"Name: {distribution}\nVersion: {version}\n")
        (folder / "entry_points.txt").write_text(f"[holdfast.{kind}]\n{name} = {module}:Driver\n")
        (site / f"{module}.py").write_text(source)
        monkeypatch.syspath_prepend(site)

    yield install
    for module in set(sys.modules) - before:
        del sys.modules[module]


def infos(kind: str = "orchestrator") -> dict[tuple[str, str], DriverInfo]:
    return {(info.name, info.distribution): info for info in list_drivers(kind)}


def test_a_driver_is_found_by_kind_and_name(install: Install) -> None:
    install("hf-test-one")
    assert load("orchestrator", "good").name == "good"
    assert infos()["good", "hf-test-one"] == DriverInfo(
        "orchestrator", "good", "hf-test-one", "1.2", DriverStatus.OK
    )


def test_the_first_party_drivers_of_this_tree_are_found() -> None:
    assert {"hard", "soft", "threshold", "alwayson"} <= set(names("policy"))
    assert load("policy", "hard").name == "hard"


def test_a_missing_driver_names_the_nearest_and_what_is_installed() -> None:
    with pytest.raises(DriverError) as caught:
        load("policy", "treshold")
    assert caught.value.message == "There is no policy driver 'treshold'."
    assert "Did you mean 'threshold'?" in caught.value.hint
    assert "alwayson, hard, soft" in caught.value.hint


def test_what_is_built_in_is_named_beside_what_is_installed() -> None:
    with pytest.raises(
        DriverError, match=r"'lockstp'.*mean 'lockstep'\? Built in: lockstep\."
    ) as it:
        load("replicator", "lockstp")
    assert it.value.hint.endswith("Installed: md.")
    with pytest.raises(DriverError, match=r"'lockstep' is built in.*leave it out"):
        load("replicator", "lockstep")


def test_a_kind_without_any_driver_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_entry_points", lambda _group: [])
    with pytest.raises(DriverError, match=r"No policy driver is installed at all.*pip install"):
        load("policy", "hard")


def test_an_unknown_kind_lists_the_kinds() -> None:
    with pytest.raises(UsageError, match=r"no drivers of kind 'polices'.*transport, policy"):
        list_drivers("polices")


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("import a_module_that_is_not_there", "No module named 'a_module_that_is_not_there'"),
        ("raise RuntimeError('the disk is\\non fire')", "RuntimeError: the disk is."),
        ("raise SystemExit(3)", "SystemExit: 3"),
        ("assert False", "AssertionError."),
        ("Driver = 3", "has no API_VERSION"),
        ("class Other: pass", "has no attribute 'Driver'"),
        ("def broken(:", "SyntaxError"),
    ],
)
def test_a_broken_driver_is_listed_with_its_reason_and_stops_no_other(
    install: Install, source: str, reason: str
) -> None:
    install("hf-test-broken", source=source, name="broken")
    install("hf-test-one")
    found = infos()
    assert found["broken", "hf-test-broken"].status is DriverStatus.BROKEN
    assert reason in found["broken", "hf-test-broken"].reason
    assert found["good", "hf-test-one"].status is DriverStatus.OK
    with pytest.raises(DriverError, match=r"hf-test-broken 1\.2") as caught:
        load("orchestrator", "broken")
    assert reason in caught.value.message
    assert load("orchestrator", "good").name == "good"


def test_loading_one_driver_imports_no_other(install: Install) -> None:
    install("hf-test-broken", source="raise SystemExit('imported')", name="broken")
    install("hf-test-one")
    load("orchestrator", "good")
    assert "hf_test_broken" not in sys.modules


def test_a_driver_for_another_api_version_is_refused_with_both_versions(install: Install) -> None:
    install("hf-test-old", source=f"class Driver:\n    API_VERSION = {API_VERSION + 8}\n")
    info = infos()["good", "hf-test-old"]
    assert info.status is DriverStatus.WRONG_VERSION
    with pytest.raises(DriverError, match=f"version {API_VERSION + 8}.*has {API_VERSION}"):
        load("orchestrator", "good")


def test_two_distributions_with_one_name_are_a_conflict_that_names_both(install: Install) -> None:
    install("hf-test-one")
    install("hf-test-two", version="3.4")
    assert {info.status for info in infos().values() if info.name == "good"} == {
        DriverStatus.CONFLICT
    }
    with pytest.raises(DriverError, match=r"hf-test-one 1\.2 and hf-test-two 3\.4 both") as caught:
        load("orchestrator", "good")
    assert "pip uninstall" in caught.value.hint


def test_one_distribution_found_twice_on_the_path_is_no_conflict(
    install: Install, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install("hf-test-one")
    (tmp_path / "copy").mkdir()
    (tmp_path / "hf-test-one" / "hf_test_one-1.2.dist-info").rename(
        tmp_path / "copy" / "Hf.Test_One-1.2.dist-info"
    )
    install("hf-test-one")
    monkeypatch.syspath_prepend(tmp_path / "copy")
    assert load("orchestrator", "good").name == "good"


def test_a_reinstalled_plugin_is_seen_at_once_under_its_new_name(install: Install) -> None:
    install("hf-test-one", name="before")
    assert "before" in names("orchestrator")
    install("hf-test-one", name="after")
    assert "before" not in names("orchestrator")
    assert load("orchestrator", "after").name == "good"


def test_observers_need_no_api_version(install: Install) -> None:
    install("hf-test-hook", source="class Driver: pass", kind="hooks")
    assert infos("hooks")["good", "hf-test-hook"].status is DriverStatus.OK


def test_every_kind_is_listed_when_none_is_named(install: Install) -> None:
    install("hf-test-one")
    kinds = {info.kind for info in list_drivers()}
    assert {"orchestrator", "policy", "state"} <= kinds <= set(registry.KINDS)
