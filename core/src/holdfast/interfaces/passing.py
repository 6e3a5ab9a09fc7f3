"""A connection on its way from one process of a node to another.

A node with several workers has one listener; whoever listens finds out by the handshake which worker
a connection is for, and passes it on. What state goes along is between the two ends of one driver.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs


@attrs.frozen
class Passed:
    """An accepted connection in nobody's hands; whoever takes it closes `fd`."""

    fd: int
    state: Mapping[str, Any]
    """What the handshake has brought so far; JSON-able."""
