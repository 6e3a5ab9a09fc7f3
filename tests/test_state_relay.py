"""State store `relay`, which only tests use, keeps the promises of every state store."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.harness.state_relay import RelayStateDriver, RelayStateOptions
from tests.harness.state_relay_server import Relay

from holdfast.interfaces.state import StateStore
from holdfast.local.sqlite_state import SqliteStateDriver
from holdfast.testing.checks.state import OpenStore
from holdfast.testing.conformance_state import StateConformance


class TestRelay(StateConformance):
    @pytest.fixture
    async def open_store(self, tmp_path: Path) -> AsyncIterator[OpenStore]:
        options = SqliteStateDriver.Options(path=str(tmp_path / "state.db"))
        store = await SqliteStateDriver.open(options)
        async with Relay(store).serving("127.0.0.1") as port:

            async def open_one() -> StateStore:
                return await RelayStateDriver.open(RelayStateOptions(port=port))

            yield open_one
        await store.aclose()
