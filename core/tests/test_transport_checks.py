"""The kit of the transport is itself held to its word: each broken transport must be caught.

Every transport here is the in-memory one with one promise broken, and names the check that must notice.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest

from holdfast.errors import HoldfastError, UnavailableError
from holdfast.interfaces.transport import Accept, LinkHandler, Transport
from holdfast.messages import Ack, Batch, Hello, Message
from holdfast.testing.checks import CheckFailedError
from holdfast.testing.checks.transport import (
    CHECKS,
    Capabilities,
    OpenTransport,
    Subject,
    run_checks,
)
from holdfast.testing.conformance_transport import TransportConformance
from holdfast.testing.memory_transport import (
    MemoryLink,
    MemoryListener,
    MemoryNetwork,
    MemoryTransport,
)

pytest_plugins = ["pytester"]

IN_MEMORY = Capabilities(compresses=False, byte_stream=False)


class TestMemoryTransport(TransportConformance):
    capabilities = IN_MEMORY

    @pytest.fixture
    def anyio_backend(self) -> str:
        return "asyncio"

    @pytest.fixture
    def open_transport(self) -> OpenTransport:
        return MemoryNetwork().open


class BrokenTransport(MemoryTransport):
    """Works, until a subclass or its link breaks something."""

    must_fail = ""
    link_type: type[MemoryLink] = MemoryLink

    def make_link(self, peer: str) -> MemoryLink:
        link = self.link_type(self, peer)
        self.links.add(link)
        return link


class ReorderingLink(MemoryLink):
    def send(self, messages: Sequence[Message]) -> None:
        super().send(list(reversed(messages)))


class Reorders(BrokenTransport):
    """Delivers what was sent together in another order."""

    must_fail = "check_messages_arrive_whole_and_in_order"
    link_type = ReorderingLink


class TruncatingLink(MemoryLink):
    def send(self, messages: Sequence[Message]) -> None:
        for message in messages:
            if isinstance(message, Batch):
                ops = [op._replace(data=op.data[:65536]) for op in message.ops]
                message = message._replace(ops=ops)  # noqa: PLW2901
            super().send([message])


class Truncates(BrokenTransport):
    """Cuts payloads at 64 KiB."""

    must_fail = "check_large_payloads_arrive"
    link_type = TruncatingLink


class MiscountingLink(MemoryLink):
    def send(self, messages: Sequence[Message]) -> None:
        for message in messages:
            if isinstance(message, Batch) and len(message.ops) > 4:
                super().send([message._replace(ops=message.ops[:4])])
                super().send([message._replace(ops=message.ops[4:])])  # The same `first`.
            else:
                super().send([message])


class SplitsWithoutCounting(BrokenTransport):
    """Splits a batch, and both parts claim the same place in the stream."""

    must_fail = "check_large_payloads_arrive"
    link_type = MiscountingLink


class ForgetfulCloseLink(MemoryLink):
    def close(self, reason: str = "") -> None:
        self.abort()


class SwallowsClose(BrokenTransport):
    """Closing drops what was accepted."""

    must_fail = "check_close_sends_what_was_accepted"
    link_type = ForgetfulCloseLink


class TellingLink(MemoryLink):
    def close(self, reason: str = "") -> None:
        was_open = self._is_open
        super().close(reason)
        if was_open and self.handler is not None:
            self.handler.on_lost(UnavailableError("The link was closed."))


class TellsOfItsOwnClose(BrokenTransport):
    """Calls on_lost for a close by its owner."""

    must_fail = "check_the_other_end_is_told_once_of_a_loss"
    link_type = TellingLink


class StutteringLink(MemoryLink):
    def _lost(self, error: HoldfastError) -> None:
        super()._lost(error)
        if self.handler is not None:
            self.handler.on_lost(error)


class TellsTwice(BrokenTransport):
    """Calls on_lost twice."""

    must_fail = "check_the_other_end_is_told_once_of_a_loss"
    link_type = StutteringLink


class ReusingLink(MemoryLink):
    """Delivers views into one buffer and writes the next payload over the last."""

    def __init__(self, room: MemoryTransport, peer: str) -> None:
        super().__init__(room, peer)
        self._buffer = bytearray(64 << 20)

    def _wake(self) -> None:
        at = 0
        for index, message in enumerate(self._inbox):
            if isinstance(message, Batch):
                ops = []
                for op in message.ops:
                    self._buffer[at : at + len(op.data)] = op.data
                    ops.append(op._replace(data=memoryview(self._buffer)[at : at + len(op.data)]))
                    at += len(op.data)
                self._inbox[index] = message._replace(ops=ops)
        super()._wake()


class ReusesBuffers(BrokenTransport):
    """Payloads change under whoever keeps them."""

    must_fail = "check_payloads_stay_valid_while_held"
    link_type = ReusingLink


class CarelessLink(MemoryLink):
    @property
    def unsent_bytes(self) -> int:
        return 0


class CountsNothingUnsent(BrokenTransport):
    """Gives no sign of a receiver that stalls."""

    must_fail = "check_unsent_bytes_tell_of_a_receiver_that_stalls"
    link_type = CarelessLink


class OneByOneLink(MemoryLink):
    """Calls the handler once for each message."""

    def _wake(self) -> None:
        if self.handler is not None and self._inbox:
            waiting, self._inbox = self._inbox, []
            self._inbox_bytes = 0
            for message in waiting:
                if self._is_open:
                    self.handler.on_messages([message])
        super()._wake()


class DeliversOneByOne(BrokenTransport):
    """Costs a call for each message."""

    must_fail = "check_one_wakeup_delivers_many_messages"
    link_type = OneByOneLink


class MergesEpochsLink(MemoryLink):
    def send(self, messages: Sequence[Message]) -> None:
        acks = [m for m in messages if isinstance(m, Ack)]
        super().send(acks[-1:] if len(acks) == len(messages) else messages)


class MergesAcksAcrossEpochs(BrokenTransport):
    """Leaves out an epoch's last acknowledgement because the next epoch's follows it."""

    must_fail = "check_acknowledgements_may_be_merged_but_the_last_arrives"
    link_type = MergesEpochsLink


class LetsEverybodyIn(BrokenTransport):
    """Does not look at the cluster."""

    must_fail = "check_another_cluster_is_refused"

    async def connect(self, address: str, hello: Hello, handler: LinkHandler) -> MemoryLink:
        self.cluster = "kit"
        return await super().connect(address, hello, handler)


class RefusesVaguely(BrokenTransport):
    """Cannot tell "nothing listens" from "no answer"."""

    must_fail = "check_a_closed_listener_refuses_connections"

    async def connect(self, address: str, hello: Hello, handler: LinkHandler) -> MemoryLink:
        try:
            return await super().connect(address, hello, handler)
        except ConnectionRefusedError as error:
            raise UnavailableError("No answer.") from error


class DeafListener(MemoryListener):
    async def aclose(self) -> None:
        self.room.network.listeners.pop(self.address, None)
        self.links.clear()


class LeavesLinksBehind(BrokenTransport):
    """A closed listener keeps its links."""

    must_fail = "check_a_closed_listener_refuses_connections"

    async def listen(self, accept: Accept) -> MemoryListener:
        listener = DeafListener(self, accept)
        self.network.listeners[listener.address] = listener
        return listener


class CountsHalf(BrokenTransport):
    """Has no count of stored frames."""

    must_fail = "check_metrics_count_frames_and_bytes"

    def metrics(self) -> Mapping[str, float]:
        return {k: v for k, v in super().metrics().items() if k != "frames_stored"}


class DropsHellosLink(MemoryLink):
    def _wake(self) -> None:
        accept = self.on_hello
        if accept is not None and self._inbox:
            hello = self._inbox[0]
            self.on_hello = None
            self.handler = accept(self, hello)  # type: ignore[arg-type]
        super()._wake()


class DeliversTheHelloTwice(BrokenTransport):
    """Gives the first message to accept and to the handler."""

    must_fail = "check_the_hello_reaches_accept_unchanged"
    link_type = DropsHellosLink


BROKEN = [
    Reorders,
    Truncates,
    SplitsWithoutCounting,
    SwallowsClose,
    TellsOfItsOwnClose,
    TellsTwice,
    ReusesBuffers,
    CountsNothingUnsent,
    DeliversOneByOne,
    MergesAcksAcrossEpochs,
    LetsEverybodyIn,
    RefusesVaguely,
    LeavesLinksBehind,
    CountsHalf,
    DeliversTheHelloTwice,
]


def opener(kind: type[MemoryTransport]) -> Callable[[], OpenTransport]:
    def fresh() -> OpenTransport:
        network = MemoryNetwork()

        async def open_transport(cluster: str, node: str) -> Transport:
            return kind(network, cluster, node)

        return open_transport

    return fresh


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.parametrize("broken", BROKEN, ids=lambda kind: kind.__name__)
async def test_a_broken_transport_fails_the_check_that_guards_its_promise(
    broken: type[BrokenTransport],
) -> None:
    subject = Subject(opener(broken)(), IN_MEMORY, patience_s=0.3)
    guarding = [check for check in CHECKS if getattr(check, "__name__", "") == broken.must_fail]
    results = await run_checks(subject, guarding)
    assert isinstance(results[broken.must_fail], CheckFailedError)


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_transport_that_claims_to_compress_must_do_so() -> None:
    subject = Subject(MemoryNetwork().open, Capabilities(byte_stream=False), patience_s=5.0)
    results = await run_checks(subject)
    failed = [name for name, error in results.items() if error is not None]
    assert failed == ["check_metrics_count_frames_and_bytes"]


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_kit_that_runs_no_check_fails() -> None:
    with pytest.raises(CheckFailedError, match="no check"):
        await run_checks(Subject(MemoryNetwork().open), [])


def test_a_subclass_that_opens_no_transport_is_an_error_and_not_a_skip(
    pytester: pytest.Pytester,
) -> None:
    pytester.makepyfile(
        """
        from holdfast.testing.conformance_transport import TransportConformance

        class TestNothing(TransportConformance):
            pass
        """
    )
    result: Any = pytester.runpytest_inprocess("-p", "no:cacheprovider")
    outcomes = result.parseoutcomes()
    assert outcomes.get("errors", 0) >= len(CHECKS)
    assert "passed" not in outcomes
    assert "skipped" not in outcomes
