"""The checks of frontends as a pytest class, for the test folder of a driver.

    class TestNbd(FrontendConformance):
        @pytest.fixture
        def subject(self):
            return Subject(
                open=lambda provider: NbdDriver.open(NbdOptions(listen="127.0.0.1:0"), provider),
                connect=NbdClient.connect,
            )

Nothing can be skipped: what a protocol does not have is declared in `Subject.capabilities`.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from holdfast.testing.checks import expect
from holdfast.testing.checks.frontend import CHECKS, Check, Subject


class FrontendConformance:
    """Runs every check of `testing.checks.frontend`; override `subject`."""

    @pytest.fixture
    def subject(self) -> Subject:
        """Return how to open the frontend and how to connect to it."""
        raise NotImplementedError("Override the fixture subject, as the module shows.")

    @pytest.fixture(scope="class")
    @classmethod
    def ran(cls) -> Iterator[list[str]]:
        """Collect the names of the checks that ran to their end; none at all is a failure."""
        names: list[str] = []
        yield names
        expect(bool(names), "The kit of the frontend ran no check to its end.")

    @pytest.mark.anyio
    @pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
    async def test_frontend(self, check: Check, subject: Subject, ran: list[str]) -> None:
        """Hold the frontend to one promise of its interface."""
        await check(subject)
        ran.append(check.__name__)
