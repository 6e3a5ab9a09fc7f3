"""What one transport counts; its `metrics()`."""

from __future__ import annotations

import attrs


@attrs.define
class Counters:
    """Counts since the transport was opened; a frame is a PDU, bytes include headers and digests."""

    frames_sent: int = 0
    frames_stored: int = 0
    """Always 0: nothing is compressed here."""
    bytes_plain_sent: int = 0
    bytes_wire_sent: int = 0
    """The same as plain: nothing is compressed here."""
    frames_received: int = 0
    bytes_plain_received: int = 0
    bytes_wire_received: int = 0
    connections_open: int = 0
    """Links that stand."""
    connections_accepted: int = 0
    connections_refused: int = 0
    """Connects that were answered with a status other than success."""
    protocol_errors: int = 0
    """Links that were ended because the peer broke the protocol."""

    def sent(self, frames: int, size: int) -> None:
        """Count PDUs of `size` bytes together."""
        self.frames_sent += frames
        self.bytes_plain_sent += size
        self.bytes_wire_sent += size

    def received(self, frames: int, size: int) -> None:
        """Count PDUs of `size` bytes together."""
        self.frames_received += frames
        self.bytes_plain_received += size
        self.bytes_wire_received += size

    def as_metrics(self) -> dict[str, float]:
        """Return the counters by name."""
        return attrs.asdict(self)
