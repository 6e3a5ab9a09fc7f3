"""Asynchronous tests run on asyncio, as a node does."""

import pytest


@pytest.fixture
def anyio_backend() -> str:
    """Return the backend of anyio's pytest plugin."""
    return "asyncio"
