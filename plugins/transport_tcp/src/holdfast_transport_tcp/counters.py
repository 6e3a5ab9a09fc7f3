"""What one transport counts; its `metrics()`."""

from __future__ import annotations

import attrs


@attrs.define
class Counters:
    """Counts since the transport was opened; bytes include headers and tables."""

    frames_sent: int = 0
    frames_stored: int = 0
    """Frames sent plain because the link's data had not compressed."""
    bytes_plain_sent: int = 0
    bytes_wire_sent: int = 0
    frames_received: int = 0
    bytes_plain_received: int = 0
    bytes_wire_received: int = 0
    connections_open: int = 0
    connections_accepted: int = 0
    connections_refused: int = 0
    """Turned away by a limit or in the handshake."""
    protocol_errors: int = 0
    """Connections closed because the peer broke the protocol."""

    def as_metrics(self) -> dict[str, float]:
        """Return the counters by name."""
        return attrs.asdict(self)
