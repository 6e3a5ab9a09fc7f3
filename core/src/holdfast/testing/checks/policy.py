"""What every policy must do; see `interfaces/policy.py` for the promises checked here.

The checks walk through every view that a group can show (declared and online replicas, the access
in force, since when) and hold the verdicts to what the group relies on. What only some modes do,
such as a grace, is declared in `Capabilities`, and then the opposite is a failure too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import attrs

from holdfast.interfaces import API_VERSION
from holdfast.interfaces.policy import Policy, PolicyDriver, PolicyView, Verdict
from holdfast.model import Access
from holdfast.testing.checks import CheckFailedError, expect
from holdfast.units import REPLICAS_MAX

__all__ = ["CHECKS", "Capabilities", "Check", "Subject", "run_check", "run_checks"]

NOW = 1_700_000_000.0
"""Where the checks stand in time, Unix seconds."""
FAR_S = 10 * 365 * 86_400.0
"""Longer than any grace that somebody would set."""
AGES_S: tuple[float, ...] = (0.0, 0.5, 1.0, 29.0, 30.0, 89.0, 90.0, 91.0, 3600.0, FAR_S)
"""For how long the replicas may have been too few; the edges of common graces among them."""
WITHDRAWN = (Access.READ_ONLY, Access.ERROR)
"""What a consumer notices, so that a mode may want a new attachment before it writes again."""


@attrs.frozen
class Capabilities:
    """What a mode declares of itself."""

    grace: bool = True
    """Serves, or holds requests, for a while after a fall; False: acts at once, and never asks to
    be asked again."""
    sticky: bool = True
    """Keeps read-only and error until the volume is attached anew; False: writes again unasked."""


@attrs.define
class Subject:
    """The policy under test, with the options that it is to be tested with."""

    driver: PolicyDriver
    options: Sequence[Any] = ()
    """Instances of the driver's `Options`; none means its defaults."""
    capabilities: Capabilities = Capabilities()
    compared: int = 0
    """How many promises were compared; a check that compares nothing has checked nothing."""

    def expect(self, holds: bool, sentence: str) -> None:
        """Count one comparison, and fail with `sentence` unless it holds."""
        self.compared += 1
        expect(holds, sentence)

    def every_options(self) -> Sequence[Any]:
        """Return the options to test with."""
        return self.options or (self.driver.Options(),)

    def cases(self) -> Iterator[tuple[Policy, int]]:
        """Yield each policy with each number of replicas that it does not refuse."""
        for options in self.every_options():
            for declared in range(REPLICAS_MAX + 1):
                if self.driver.refuse(declared, options) is None:
                    yield self.driver(options), declared

    def views(self) -> Iterator[tuple[Policy, PolicyView]]:
        """Yield each policy with each view that a group may show it."""
        for policy, declared in self.cases():
            for online in range(declared + 1):
                # The group stores since when only while it was told that A is below.
                short = online < policy.least(declared)
                since = (None, *(NOW - age for age in AGES_S)) if short else (None,)
                for access in Access:
                    for below_since in since:
                        for attached_anew in (False, True):
                            yield (
                                policy,
                                PolicyView(
                                    declared=declared,
                                    online=online,
                                    in_sync=online,
                                    access=access,
                                    below_since=below_since,
                                    attached_anew=attached_anew,
                                ),
                            )


Check = Callable[[Subject], None]


def check_the_driver_declares_itself(subject: Subject) -> None:
    """The driver has the name, the version and the options class that the kernel needs."""
    driver = subject.driver
    subject.expect(driver.API_VERSION == API_VERSION, f"API_VERSION is not {API_VERSION}.")
    subject.expect(
        bool(driver.name) and driver.name == driver.name.lower(), "The name is not usable."
    )
    subject.expect(attrs.has(driver.Options), "Options is not an attrs class.")


def check_a_refusal_is_a_sentence(subject: Subject) -> None:
    """`refuse` returns None or why, says the same twice, and leaves some number of replicas."""
    for options in subject.every_options():
        answers = [subject.driver.refuse(r, options) for r in range(REPLICAS_MAX + 1)]
        again = [subject.driver.refuse(r, options) for r in range(REPLICAS_MAX + 1)]
        subject.expect(answers == again, f"refuse says two things of {options}.")
        subject.expect(
            all(answer is None or _is_sentence(answer) for answer in answers),
            f"A refusal for {options} is no sentence: {answers}.",
        )
        subject.expect(None in answers, f"{options} refuses every number of replicas.")


def check_the_least_lies_between_none_and_all(subject: Subject) -> None:
    """M is 0 to R, or a volume could never be written."""
    for policy, declared in subject.cases():
        least = policy.least(declared)
        subject.expect(0 <= least <= declared, f"least({declared}) is {least}.")


def check_the_nodes_suffice_for_the_least(subject: Subject) -> None:
    """A primary and M replicas take M+1 nodes, so no mode can do with fewer."""
    for policy, declared in subject.cases():
        nodes = policy.nodes_min(declared)
        subject.expect(
            nodes >= policy.least(declared) + 1, f"nodes_min({declared}) is {nodes}, too few."
        )


def check_the_same_view_gives_the_same_verdict(subject: Subject) -> None:
    """A decision is pure: it depends on view and time alone, whatever was asked in between."""
    asked = [(policy, view, policy.decide(view, NOW)) for policy, view in subject.views()]
    for policy, view, verdict in reversed(asked):
        subject.expect(policy.decide(view, NOW) == verdict, f"Two verdicts for {view}.")


def check_below_says_whether_replicas_are_too_few(subject: Subject) -> None:
    """`below` is A < M, for the group keeps since when by it."""
    for policy, view in subject.views():
        short = view.online < policy.least(view.declared)
        subject.expect(policy.decide(view, NOW).below is short, f"below is not {short} for {view}.")


def check_enough_replicas_never_lose_writing(subject: Subject) -> None:
    """With A >= M what is writable stays so, and nobody need ask again."""
    for policy, view in _enough(subject):
        if view.access is Access.READ_WRITE:
            verdict = policy.decide(view, NOW)
            subject.expect(verdict.access is Access.READ_WRITE, f"Withdrawn without need: {view}.")
            subject.expect(verdict.deadline is None, f"A deadline without need: {view}.")


def check_what_waited_goes_on_with_enough_replicas(subject: Subject) -> None:
    """With A >= M suspended requests go on by themselves: their consumers have noticed nothing."""
    for policy, view in _enough(subject):
        if view.access in {Access.SUSPENDED, Access.NONE}:
            access = policy.decide(view, NOW).access
            subject.expect(access is Access.READ_WRITE, f"{access.value} for ever: {view}.")


def check_writing_comes_back_with_a_new_attachment(subject: Subject) -> None:
    """With A >= M and a new attachment every volume is writable, whatever was before (I6)."""
    for policy, view in _enough(subject):
        if view.attached_anew:
            access = policy.decide(view, NOW).access
            subject.expect(access is Access.READ_WRITE, f"{access.value} for ever: {view}.")


def check_more_replicas_never_take_writing_away(subject: Subject) -> None:
    """Whoever may write with A replicas may write with A+1."""
    for policy, view in subject.views():
        if view.online < view.declared and _writes(policy.decide(view, NOW)):
            more = attrs.evolve(view, online=view.online + 1, in_sync=view.in_sync + 1)
            subject.expect(
                _writes(policy.decide(more, NOW)) or view.access in WITHDRAWN,
                f"One replica more takes writing away: {view}.",
            )
    subject.expect(True, "A volume that writes with none has nothing to compare.")


def check_longer_shortages_never_give_writing_back(subject: Subject) -> None:
    """What a shortage has withdrawn, the same shortage does not give back by lasting longer."""
    for policy, view in subject.views():
        verdict = policy.decide(view, NOW)
        if verdict.below and not _writes(verdict) and verdict.deadline is None:
            stored = attrs.evolve(_stored(view, verdict), access=verdict.access)
            for age in AGES_S:
                access = policy.decide(stored, NOW + age).access
                subject.expect(
                    access is verdict.access, f"{access.value} after {age:g} s more of {stored}."
                )
    subject.expect(True, "A mode that never withdraws has nothing to compare.")


def check_nothing_changes_before_the_deadline(subject: Subject) -> None:
    """A policy names every moment at which it changes its mind, for nobody asks in between."""
    for policy, view in subject.views():
        verdict = policy.decide(view, NOW)
        stored = _stored(view, verdict)
        for age in AGES_S:
            if verdict.deadline is None or NOW + age < verdict.deadline:
                access = policy.decide(stored, NOW + age).access
                subject.expect(
                    access is verdict.access,
                    f"{verdict.access.value} turned {access.value} unasked in {age:g} s: {view}.",
                )


def check_a_deadline_lies_ahead_and_is_kept(subject: Subject) -> None:
    """A deadline is later than now, and at it there is none or a later one: no circle."""
    for policy, view in subject.views():
        verdict = policy.decide(view, NOW)
        if verdict.deadline is None:
            subject.expect(True, "No deadline is kept at once.")
            continue
        subject.expect(verdict.deadline > NOW, f"The deadline for {view} has passed already.")
        stored = attrs.evolve(_stored(view, verdict), access=verdict.access)
        then = policy.decide(stored, verdict.deadline)
        subject.expect(
            then.deadline is None or then.deadline > verdict.deadline,
            f"At the deadline for {view} the same deadline again.",
        )


def check_a_verdict_that_is_carried_out_stands(subject: Subject) -> None:
    """Asked again with its own verdict stored, a policy says the same."""
    for policy, view in subject.views():
        verdict = policy.decide(view, NOW)
        stored = attrs.evolve(_stored(view, verdict), access=verdict.access)
        again = policy.decide(stored, NOW)
        subject.expect(
            (again.access, again.deadline) == (verdict.access, verdict.deadline),
            f"{verdict.access.value} does not stand once it is stored: {view}.",
        )


def check_the_grace_is_as_declared(subject: Subject) -> None:
    """A mode with grace serves or holds at the fall, with a deadline; one without never has one."""
    graces = 0
    for policy, view in subject.views():
        verdict = policy.decide(view, NOW)
        if subject.capabilities.grace:
            graces += verdict.deadline is not None
        else:
            subject.expect(verdict.deadline is None, f"A grace that was not declared: {view}.")
        if verdict.deadline is not None:
            subject.expect(
                verdict.access in {Access.READ_WRITE, Access.SUSPENDED},
                f"{verdict.access.value} before the deadline for {view}.",
            )
    if subject.capabilities.grace:
        subject.expect(graces > 0, "A grace is declared, and there is none.")


def check_stickiness_is_as_declared(subject: Subject) -> None:
    """With A >= M but no new attachment a sticky mode keeps what it withdrew, others do not."""
    kept = 0
    for policy, view in _enough(subject):
        if view.access in WITHDRAWN and not view.attached_anew:
            access = policy.decide(view, NOW).access
            kept += access is view.access
            subject.expect(
                access is Access.READ_WRITE
                or (access is view.access and subject.capabilities.sticky),
                f"{view.access.value} became {access.value} with enough replicas: {view}.",
            )
    if subject.capabilities.sticky:
        subject.expect(kept > 0, "Stickiness is declared, and nothing was kept.")


def check_every_verdict_has_a_reason(subject: Subject) -> None:
    """The reason is one sentence for people."""
    for policy, view in subject.views():
        reason = policy.decide(view, NOW).reason
        subject.expect(_is_sentence(reason), f"The reason for {view} is no sentence: {reason!r}.")


CHECKS: tuple[Check, ...] = tuple(
    check for name, check in vars().copy().items() if name.startswith("check_")
)
"""Every check, in the order of this module."""


def run_check(check: Check, subject: Subject) -> None:
    """Run one check.

    Raises:
        CheckFailedError: A promise is broken, or the check found nothing to compare.
    """
    before = subject.compared
    check(subject)
    expect(subject.compared > before, f"{check.__name__} compared nothing.")


def run_checks(
    subject: Subject, checks: Iterable[Check] = CHECKS
) -> dict[str, BaseException | None]:
    """Run `checks` one after the other and return each one's name with its failure, or None.

    Raises:
        CheckFailedError: No check ran at all.
    """
    results: dict[str, BaseException | None] = {}
    for check in checks:
        try:
            run_check(check, subject)
            results[check.__name__] = None
        except Exception as error:  # noqa: BLE001 - whatever a broken policy raises is its failure.
            results[check.__name__] = error
    if not results:
        raise CheckFailedError("The kit of the policy ran no check at all.")
    return results


def _enough(subject: Subject) -> Iterator[tuple[Policy, PolicyView]]:
    """Yield the views with A >= M."""
    for policy, view in subject.views():
        if view.online >= policy.least(view.declared):
            yield policy, view


def _stored(view: PolicyView, verdict: Verdict) -> PolicyView:
    """Return the view that the group shows next, having stored since when."""
    if not verdict.below:
        return attrs.evolve(view, below_since=None)
    return view if view.below_since is not None else attrs.evolve(view, below_since=NOW)


def _writes(verdict: Verdict) -> bool:
    return verdict.access is Access.READ_WRITE


def _is_sentence(text: object) -> bool:
    return (
        isinstance(text, str)
        and text.endswith((".", "!"))
        and "\n" not in text
        and bool(text.strip(" .!"))
    )
