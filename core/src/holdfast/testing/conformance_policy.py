"""The checks of policies as a pytest class, for the test folder of a driver.

    class TestMajority(PolicyConformance):
        driver = MajorityPolicy
        options = (MajorityOptions(), MajorityOptions(grace_s=0))
        capabilities = Capabilities(grace=True, sticky=True)

Nothing can be skipped: what a mode does not do it declares in `capabilities`, and then it must not.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import pytest

from holdfast.interfaces.policy import PolicyDriver
from holdfast.testing.checks import expect
from holdfast.testing.checks.policy import CHECKS, Capabilities, Check, Subject, run_check


class PolicyConformance:
    """Runs every check of `testing.checks.policy`; set `driver`, and what else the module shows."""

    driver: ClassVar[PolicyDriver]
    options: ClassVar[Sequence[Any]] = ()
    capabilities: ClassVar[Capabilities] = Capabilities()

    @pytest.fixture(scope="class")
    @classmethod
    def ran(cls) -> Iterator[list[str]]:
        """Collect the names of the checks that ran to their end; none at all is a failure."""
        names: list[str] = []
        yield names
        expect(bool(names), "The kit of the policy ran no check to its end.")

    @pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
    def test_policy(self, check: Check, ran: list[str]) -> None:
        """Hold the policy to one promise of its interface."""
        run_check(check, Subject(self.driver, self.options, self.capabilities))
        ran.append(check.__name__)
