"""A link whose copy is still being made: nothing that arrives meanwhile may be lost."""

from __future__ import annotations

from collections.abc import Sequence

from holdfast.errors import HoldfastError
from holdfast.messages import Message
from holdfast.node.pump import PumpLink


class PendingLink:
    """Keeps what arrives on a link while its copy is being made."""

    def __init__(self) -> None:
        self._early: list[Message] = []
        self._lost: HoldfastError | None = None
        self._handler: PumpLink | None = None

    def become(self, handler: PumpLink) -> None:
        """Hand everything to the handler that is there now."""
        self._handler = handler
        if self._early:
            handler.on_messages(tuple(self._early))
        if self._lost is not None:
            handler.on_lost(self._lost)

    def on_messages(self, messages: Sequence[Message]) -> None:
        """Pass on, or keep."""
        if self._handler is not None:
            self._handler.on_messages(messages)
        else:
            self._early.extend(messages)

    def on_lost(self, error: HoldfastError) -> None:
        """Pass on, or remember."""
        if self._handler is not None:
            self._handler.on_lost(error)
        else:
            self._lost = error
