"""A session's way to the copy on its own node, for reads that a replica may answer by itself.

Whether it may is decided in `sync.reading`. This module only carries reads there, answers back, and
what is not answered there to the primary; it never lets a read be lost in between.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from holdfast.messages import Message, Replies, Reply, Request
from holdfast.node.pump import Pump
from holdfast.sync import events as ev

_new = tuple.__new__  # Half the cost of calling the named tuple.


class LocalReader:
    """Reads of one session from one copy; the outlet of a link of that copy's pump."""

    __slots__ = ("_answer", "_elsewhere", "_link", "_under_way", "pump")

    def __init__(
        self,
        pump: Pump,
        answer: Callable[[Sequence[Reply]], None],
        elsewhere: Callable[[Sequence[Request]], None],
    ) -> None:
        """Open a link to the copy.

        Args:
            pump: The copy's.
            answer: Takes the replies.
            elsewhere: Takes what the copy does not answer.
        """
        self.pump = pump
        self._answer = answer
        self._elsewhere = elsewhere
        self._under_way: dict[int, Request] = {}
        self._link = pump.accept(self)

    def read(self, requests: Sequence[Request]) -> None:
        """Ask the copy; answers come before this returns, unless the pump is at work already."""
        for request in requests:
            self._under_way[request[0]] = request
        self.pump.feed(_new(ev.LocalReads, (self._link, requests)))

    def send(self, messages: Sequence[Message]) -> None:
        """Take replies of the copy."""
        under_way = self._under_way
        for message in messages:
            assert isinstance(message, Replies), message
            for reply in message.replies:
                under_way.pop(reply[0], None)
            self._answer(message.replies)

    def unserved(self, requests: Sequence[Request]) -> None:
        """The copy does not answer these."""
        for request in requests:
            self._under_way.pop(request[0], None)
        self._elsewhere(requests)

    def close(self, reason: str = "") -> None:
        """The copy's end, or the session's, is gone: what was not answered is for the primary."""
        left, self._under_way = list(self._under_way.values()), {}
        self.pump.forget(self._link)
        if left:
            self._elsewhere(left)
