"""`holdfast plugin check NAME` tries installed drivers with their kit, and catches bad ones."""

from __future__ import annotations

import json
from typing import Any, ClassVar

import attrs
import pytest

from holdfast.cli.app import run
from holdfast.errors import DriverError
from holdfast.interfaces.policy import PolicyView, Verdict
from holdfast.kernel import registry
from holdfast.model import Access
from holdfast.testing import trial


def check(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, list[Any], str]:
    """Run the command; return its exit code, what was tried, and what it complained of."""
    code = run(["--json", "plugin", "check", *words])
    told = capsys.readouterr()
    return code, json.loads(told.out)["plugins"] if told.out else [], told.err


def to_be_tried() -> list[tuple[str, str]]:
    """Return kind and name of what is installed here, without frontends that bring no client."""
    return [
        (info.kind, info.name)
        for info in registry.list_drivers()
        if info.kind in trial.KINDS
        and info.status is registry.DriverStatus.OK
        and (
            info.kind != "frontend"
            or "client" in getattr(registry.load(info.kind, info.name), "CONFORMANCE", {})
        )
    ]


@pytest.mark.parametrize(("kind", "name"), to_be_tried())
def test_every_driver_that_is_installed_keeps_its_promises(
    kind: str, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, tried, complaint = check(capsys, name, "--kind", kind)
    assert code == 0, complaint
    assert len(tried[0]["checks"]) > 10
    assert all(each["promise"].endswith(".") for each in tried[0]["checks"])


def test_all_kinds_of_a_name_are_tried_and_people_are_told(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(["plugin", "check", "nbd"]) == 0
    told = capsys.readouterr().out
    assert "frontend 'nbd' keeps 12 of 12 promises." in told
    assert "attach 'nbd' loads; there is no kit for drivers of its kind." in told


def test_options_are_set_for_the_trial(capsys: pytest.CaptureFixture[str]) -> None:
    assert check(capsys, "threshold", "--set", "threshold=3")[0] == 0
    code, _, complaint = check(capsys, "threshold", "--set", "thresold=3")
    assert code == 2
    assert "Did you mean 'threshold'?" in complaint


def test_an_unknown_name_is_said_to_be_one(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, complaint = check(capsys, "hrad")
    assert code == 4
    assert "There is no driver 'hrad'." in complaint


@attrs.frozen
class Stubborn:
    """A policy that promises what it does not do: it never lets anybody write."""

    API_VERSION = 1
    name = "stubborn"

    @attrs.frozen
    class Options:
        """None."""

    options: Any
    CONFORMANCE: ClassVar[dict[str, Any]] = {"capabilities": {"sticky": False}}

    @staticmethod
    def refuse(declared: int, options: Any) -> None:
        return None

    def least(self, declared: int) -> int:
        return declared

    def nodes_min(self, declared: int) -> int:
        return declared + 1

    def decide(self, view: PolicyView, now: float) -> Verdict:
        return Verdict(Access.READ_ONLY, None, "Never.", below=view.online < view.declared)


def test_a_driver_that_breaks_promises_is_told_which(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(registry, "names", lambda kind: ["stubborn"] if kind == "policy" else [])
    monkeypatch.setattr(registry, "load", lambda *_: Stubborn)
    code, tried, complaint = check(capsys, "stubborn")
    assert code == 4
    failures = {each["name"]: each["failure"] for each in tried[0]["checks"] if each["failure"]}
    assert "check_writing_comes_back_with_a_new_attachment" in failures
    assert "check_the_grace_is_as_declared" in failures
    assert f"breaks {len(failures)} of its promises" in complaint
    assert run(["plugin", "check", "stubborn"]) == 4
    assert "for ever" in capsys.readouterr().out


@pytest.mark.anyio
async def test_what_a_kit_does_not_know_is_refused() -> None:
    class Boasting(Stubborn):
        CONFORMANCE: ClassVar[dict[str, Any]] = {"capabilities": {"flies": True}}

    with pytest.raises(DriverError, match="declares what its kit does not know") as raised:
        await trial.run_kit("policy", Boasting, Boasting.Options())
    assert "sticky" in raised.value.hint

    class Mute(Stubborn):
        CONFORMANCE: ClassVar[dict[str, Any]] = {}

    with pytest.raises(DriverError, match="brings no client"):
        await trial.run_kit("frontend", Mute, None)
