"""The checks of the state store as a pytest class, for the test folder of a driver.

    class TestEtcd(StateConformance):
        capabilities = Capabilities(shortest_ttl_s=2.0)

        @pytest.fixture
        def open_store(self, etcd):
            return lambda: EtcdStateDriver.open(EtcdOptions(endpoint=etcd.address))

Nothing can be skipped: what a store cannot do it declares in `capabilities`, and then it must do that.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import pytest

from holdfast.testing.checks import expect
from holdfast.testing.checks.state import CHECKS, Capabilities, Check, OpenStore, Subject


class StateConformance:
    """Runs every check of `testing.checks.state`; override `open_store`, declare `capabilities`."""

    capabilities: ClassVar[Capabilities] = Capabilities()

    @pytest.fixture
    def open_store(self) -> OpenStore:
        """Return a function that opens one more handle on the same fresh store."""
        raise NotImplementedError("Override the fixture open_store, as the module shows.")

    @pytest.fixture(scope="class")
    @classmethod
    def ran(cls) -> Iterator[list[str]]:
        """Collect the names of the checks that ran to their end; none at all is a failure."""
        names: list[str] = []
        yield names
        expect(bool(names), "The kit of the state store ran no check to its end.")

    @pytest.mark.anyio
    @pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
    async def test_store(self, check: Check, open_store: OpenStore, ran: list[str]) -> None:
        """Hold the store to one promise of its interface."""
        await check(Subject(open_store, self.capabilities))
        ran.append(check.__name__)
