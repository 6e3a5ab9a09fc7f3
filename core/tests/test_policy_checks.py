"""The kit for policies is worth what it rejects: one good policy passes, each broken one fails."""

from __future__ import annotations

import re
from typing import Any, ClassVar

import attrs
import pytest

from holdfast.interfaces import API_VERSION
from holdfast.interfaces.policy import PolicyView, Verdict
from holdfast.model import Access
from holdfast.testing.checks import CheckFailedError
from holdfast.testing.checks.policy import CHECKS, Capabilities, Subject, run_check, run_checks

RW, RO = Access.READ_WRITE, Access.READ_ONLY


@attrs.frozen
class Options:
    grace_s: float = 30.0


class Good:
    """Every replica is needed; 30 s of grace; read-only until attached anew."""

    API_VERSION: ClassVar[int] = API_VERSION
    name: ClassVar[str] = "good"
    Options: ClassVar[type[Options]] = Options

    def __init__(self, options: Any) -> None:
        self.options = options

    @staticmethod
    def refuse(declared: int, options: Any) -> str | None:
        return None

    def least(self, declared: int) -> int:
        return declared

    def nodes_min(self, declared: int) -> int:
        return declared + 1

    def decide(self, view: PolicyView, now: float) -> Verdict:
        below = view.online < self.least(view.declared)
        kept = view.access in {RO, Access.ERROR} and (below or not view.attached_anew)
        if kept:
            return Verdict(view.access, None, "Withdrawn before.", below=below)
        if not below:
            return Verdict(RW, None, "All are here.", below=False)
        deadline = (now if view.below_since is None else view.below_since) + self.options.grace_s
        if now < deadline:
            return Verdict(RW, deadline, "Too few are here.", below=True)
        return Verdict(RO, None, "Too few for too long.", below=True)


class Forgetful(Good):
    """Acts after its grace, but names no deadline, so that nobody asks."""

    def decide(self, view: PolicyView, now: float) -> Verdict:
        return attrs.evolve(super().decide(view, now), deadline=None)


class Moody(Good):
    """Remembers how often it was asked."""

    asked = 0

    def decide(self, view: PolicyView, now: float) -> Verdict:
        type(self).asked += 1
        return attrs.evolve(super().decide(view, now), reason=f"Asked {self.asked} times.")


class Cruel(Good):
    """Withdraws writing though every replica is here."""

    def decide(self, view: PolicyView, now: float) -> Verdict:
        verdict = super().decide(view, now)
        return attrs.evolve(verdict, access=RO) if view.declared == view.online == 3 else verdict


class Grudging(Good):
    """Never gives writing back."""

    def decide(self, view: PolicyView, now: float) -> Verdict:
        return super().decide(attrs.evolve(view, attached_anew=False), now)


class Hasty(Good):
    """Gives writing back without a new attachment, though it says that it is sticky."""

    def decide(self, view: PolicyView, now: float) -> Verdict:
        return super().decide(attrs.evolve(view, attached_anew=True), now)


class Upside(Good):
    """Writes with one replica, and no longer with two."""

    def least(self, declared: int) -> int:
        return min(1, declared)

    def decide(self, view: PolicyView, now: float) -> Verdict:
        verdict = super().decide(view, now)
        return attrs.evolve(verdict, access=RO) if view.online == 2 else verdict


class Liar(Good):
    """Says that nothing is missing."""

    def decide(self, view: PolicyView, now: float) -> Verdict:
        return attrs.evolve(super().decide(view, now), below=False)


class Late(Good):
    """Names a deadline that has passed, so that the group asks in a circle."""

    def decide(self, view: PolicyView, now: float) -> Verdict:
        verdict = super().decide(view, now)
        return attrs.evolve(verdict, deadline=now - 1) if verdict.below else verdict


class Dithering(Good):
    """Takes writing away and gives it back while the shortage lasts."""

    def decide(self, view: PolicyView, now: float) -> Verdict:
        verdict = super().decide(view, now)
        since = view.below_since if view.below_since is not None else now
        if verdict.below and now - since > 3000:
            return attrs.evolve(verdict, access=RW)
        return verdict


class Greedy(Good):
    """Wants more replicas than there are."""

    def least(self, declared: int) -> int:
        return declared + 1


class Stingy(Good):
    """Says that fewer nodes suffice than it has copies."""

    def nodes_min(self, declared: int) -> int:
        return declared


class Silent(Good):
    """Gives no reason."""

    def decide(self, view: PolicyView, now: float) -> Verdict:
        return attrs.evolve(super().decide(view, now), reason="")


class Sulking(Good):
    """Leaves requests waiting for ever after they were suspended."""

    def decide(self, view: PolicyView, now: float) -> Verdict:
        if view.access is Access.SUSPENDED:
            return Verdict(view.access, None, "Waiting.", below=view.online < view.declared)
        return super().decide(view, now)


class Refusing(Good):
    """Refuses every number of replicas."""

    @staticmethod
    def refuse(declared: int, options: Any) -> str | None:
        return "I will not."


class Mumbling(Good):
    """Refuses with a boolean."""

    @staticmethod
    def refuse(declared: int, options: Any) -> Any:
        return declared > 3


class Old(Good):
    """Was built for another major version."""

    API_VERSION: ClassVar[int] = API_VERSION + 1


class Crashing(Good):
    """Divides by the number of replicas."""

    def decide(self, view: PolicyView, now: float) -> Verdict:
        view.online // view.declared
        return super().decide(view, now)


def failures(driver: Any, capabilities: Capabilities | None = None) -> list[str]:
    results = run_checks(Subject(driver, (), capabilities or Capabilities()))
    return [name for name, failure in results.items() if failure is not None]


def test_a_good_policy_passes_every_check() -> None:
    assert failures(Good) == []


@pytest.mark.parametrize(
    ("driver", "check"),
    [
        (Forgetful, "check_nothing_changes_before_the_deadline"),
        (Moody, "check_the_same_view_gives_the_same_verdict"),
        (Cruel, "check_enough_replicas_never_lose_writing"),
        (Grudging, "check_writing_comes_back_with_a_new_attachment"),
        (Hasty, "check_stickiness_is_as_declared"),
        (Upside, "check_more_replicas_never_take_writing_away"),
        (Liar, "check_below_says_whether_replicas_are_too_few"),
        (Late, "check_a_deadline_lies_ahead_and_is_kept"),
        (Dithering, "check_longer_shortages_never_give_writing_back"),
        (Greedy, "check_the_least_lies_between_none_and_all"),
        (Stingy, "check_the_nodes_suffice_for_the_least"),
        (Silent, "check_every_verdict_has_a_reason"),
        (Sulking, "check_what_waited_goes_on_with_enough_replicas"),
        (Refusing, "check_a_refusal_is_a_sentence"),
        (Mumbling, "check_a_refusal_is_a_sentence"),
        (Old, "check_the_driver_declares_itself"),
        (Crashing, "check_a_verdict_that_is_carried_out_stands"),
    ],
)
def test_a_broken_policy_is_rejected_for_what_is_broken(driver: Any, check: str) -> None:
    assert check in failures(driver)


def test_every_check_rejects_some_policy() -> None:
    drivers = [Forgetful, Moody, Cruel, Grudging, Hasty, Upside, Liar, Late, Dithering, Greedy]
    drivers += [Stingy, Silent, Sulking, Refusing, Old]
    caught = {name for driver in drivers for name in failures(driver)}
    caught |= set(failures(Good, Capabilities(grace=False, sticky=False)))
    assert caught == {check.__name__ for check in CHECKS}


@pytest.mark.parametrize(
    ("capabilities", "check"),
    [
        (Capabilities(grace=False), "check_the_grace_is_as_declared"),
        (Capabilities(sticky=False), "check_stickiness_is_as_declared"),
    ],
)
def test_what_is_declared_absent_must_be_absent(capabilities: Capabilities, check: str) -> None:
    assert failures(Good, capabilities) == [check]


def test_a_kit_without_checks_is_a_failure() -> None:
    with pytest.raises(CheckFailedError, match=re.escape("no check at all")):
        run_checks(Subject(Good), checks=())


def test_a_check_that_compares_nothing_is_a_failure() -> None:
    def check_nothing(subject: Subject) -> None:
        """Look at nothing."""

    with pytest.raises(CheckFailedError, match="check_nothing compared nothing"):
        run_check(check_nothing, Subject(Good))
