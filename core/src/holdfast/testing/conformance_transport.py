"""The checks of the transport as a pytest class, for the test folder of a driver.

    class TestTcp(TransportConformance):
        capabilities = Capabilities(compresses=True)

        @pytest.fixture
        def open_transport(self):
            return lambda cluster, node: TcpTransportDriver.open(TcpOptions(port=0), cluster, node)

Nothing can be skipped: what a transport cannot do it declares in `capabilities`, and then it must do that.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import pytest

from holdfast.testing.checks import expect
from holdfast.testing.checks.transport import (
    CHECKS,
    Capabilities,
    Check,
    OpenTransport,
    Subject,
)


class TransportConformance:
    """Runs every check of `testing.checks.transport`; override `open_transport`."""

    capabilities: ClassVar[Capabilities] = Capabilities()

    @pytest.fixture
    def open_transport(self) -> OpenTransport:
        """Return a function that opens the transport of one more node on a free address."""
        raise NotImplementedError("Override the fixture open_transport, as the module shows.")

    @pytest.fixture(scope="class")
    @classmethod
    def ran(cls) -> Iterator[list[str]]:
        """Collect the names of the checks that ran to their end; none at all is a failure."""
        names: list[str] = []
        yield names
        expect(bool(names), "The kit of the transport ran no check to its end.")

    @pytest.mark.anyio
    @pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
    async def test_transport(
        self, check: Check, open_transport: OpenTransport, ran: list[str]
    ) -> None:
        """Hold the transport to one promise of its interface."""
        await check(Subject(open_transport, self.capabilities))
        ran.append(check.__name__)
