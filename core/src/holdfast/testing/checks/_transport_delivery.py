"""What must arrive, how, and in which order."""

from __future__ import annotations

import hashlib
import random

from holdfast.messages import Ack, Batch, Replies, Reply, Request, RequestKind, Requests
from holdfast.testing.checks import expect
from holdfast.testing.checks._transport_bench import (
    HELLO,
    Subject,
    ack,
    bench,
    pattern,
    settle,
    settled_form,
    write,
)
from holdfast.testing.checks._transport_examples import EXAMPLES
from holdfast.units import MIB, Epoch
from holdfast.units import Sequence as Place


async def check_the_hello_reaches_accept_unchanged(subject: Subject) -> None:
    """The first message arrives at `accept`, not at the handler."""
    async with bench(subject) as b:
        pair = await b.pair()
        expect(pair.at_far.hello == HELLO, "accept was called with another hello.")
        await settle()
        expect(not pair.at_far.messages, "The hello was delivered to the handler as well.")
        expect(bool(pair.near.peer) and bool(pair.far.peer), "A link does not say who its peer is.")


async def check_messages_arrive_whole_and_in_order(subject: Subject) -> None:
    """Batches of many sizes, sent both ways at once in groups of many sizes."""
    async with bench(subject) as b:
        pair = await b.pair()
        rng = random.Random(5)
        sizes = [512 * rng.choice((1, 2, 8, 9, 128, 300)) for _ in range(1000)]
        at = 0
        while at < len(sizes):
            group = range(at, min(len(sizes), at + rng.randint(1, 40)))
            pair.near.send([write(i + 1, pattern(i + 1, sizes[i])) for i in group])
            pair.far.send([write(i + 1, pattern(i + 2001, sizes[i])) for i in group])
            at = group.stop
            await settle()
        for recorder, shift in ((pair.at_far, 1), (pair.at_near, 2001)):
            await recorder.until(lambda r=recorder: len(r.ops) >= len(sizes), "every delivery")  # type: ignore[misc]
            expect(len(recorder.ops) == len(sizes), "More operations arrived than were sent.")
            firsts = [m.first for m in recorder.messages if isinstance(m, Batch)]
            expect(firsts == sorted(firsts), "Batches arrived in another order.")
            for i, op in enumerate(recorder.ops):
                right = op.offset == (i + 1) * 512 and op.length == sizes[i]
                expect(right, f"Operation {i + 1} arrived in another place or length.")
                expect(op.data == pattern(i + shift, sizes[i]), f"Operation {i + 1} is damaged.")


async def check_every_kind_of_message_arrives_as_it_was_sent(subject: Subject) -> None:
    """One of each kind and more, both ways, one by one and together."""
    async with bench(subject) as b:
        for together in (False, True):
            pair = await b.pair()
            for link, recorder in ((pair.near, pair.at_far), (pair.far, pair.at_near)):
                if together:
                    link.send(EXAMPLES)
                else:
                    for example in EXAMPLES:
                        link.send([example])
                await recorder.until(
                    lambda r=recorder: len(r.messages) >= len(EXAMPLES),  # type: ignore[misc]
                    "the arrival of one message of each kind",
                )
                for sent, got in zip(EXAMPLES, recorder.messages, strict=True):
                    expect(
                        settled_form(got) == settled_form(sent),
                        f"A {type(sent).__name__} arrived as {got!r:.200} and was {sent!r:.200}.",
                    )


async def check_acknowledgements_may_be_merged_but_the_last_arrives(subject: Subject) -> None:
    """Of consecutive acknowledgements of one epoch the last must arrive, none twice or backwards."""
    async with bench(subject) as b:
        pair = await b.pair()
        pair.far.send([ack(i) for i in range(1, 51)])
        pair.far.send([Ack(Epoch(1), Place(60), Place(3)), Ack(Epoch(2), Place(60), Place(3))])
        pair.far.send([ack(70)])
        last = ack(70)
        await pair.at_near.until(lambda: last in pair.at_near.messages, "the last acknowledgement")
        got = [m for m in pair.at_near.messages if isinstance(m, Ack)]
        expect(
            Ack(Epoch(1), Place(60), Place(3)) in got, "An epoch's last acknowledgement is lost."
        )
        expect(Ack(Epoch(2), Place(60), Place(3)) in got, "A new epoch's acknowledgement is lost.")
        applied = [m.applied for m in got]
        expect(applied == sorted(applied), "Acknowledgements arrived in another order.")


async def check_large_payloads_arrive(subject: Subject) -> None:
    """The largest request and reply of a consumer, and batches larger than any frame."""
    async with bench(subject) as b:
        pair = await b.pair()
        large = random.Random(3).randbytes(32 * MIB)
        ops = [write(i, pattern(i, MIB + 512)).ops[0] for i in range(1, 13)]
        pair.near.send([Batch(Epoch(1), Place(1), Place(0), ops)])
        pair.near.send([Requests(1, [Request(7, RequestKind.WRITE, 0, 0, len(large), large)])])
        pair.far.send([Replies([Reply(7, 0, large), Reply(8, 0, b"")])])
        far, near = pair.at_far, pair.at_near
        await far.until(
            lambda: any(isinstance(m, Requests) for m in far.messages), "a large request"
        )
        expect(len(far.ops) == len(ops), "A large batch lost operations.")
        whole = all(a.data == e.data for a, e in zip(far.ops, ops, strict=True))
        expect(whole, "A large batch arrived damaged.")
        place = 1
        for batch in far.messages[:-1]:
            right = isinstance(batch, Batch) and batch.first == place
            expect(right, "A batch that was split does not say where each part begins.")
            assert isinstance(batch, Batch)  # For the type checker; said above.
            place += len(batch.ops)
        last = far.messages[-1]
        assert isinstance(last, Requests)
        expect(last.requests[0].data == large, "A large request arrived damaged.")

        def replies() -> list[Reply]:
            return [r for m in near.messages if isinstance(m, Replies) for r in m.replies]

        await near.until(lambda: len(replies()) == 2, "a large reply")
        expect(replies()[0].data == large, "A large reply arrived damaged.")


async def check_payloads_stay_valid_while_held(subject: Subject) -> None:
    """What a handler keeps is not overwritten by what arrives later."""
    async with bench(subject) as b:
        pair = await b.pair()
        size = 24 * 1024
        digests = {}
        for round_ in range(20):
            batch = [write(i, pattern(i, size)) for i in range(round_ * 20 + 1, round_ * 20 + 21)]
            pair.near.send(batch)
            await pair.at_far.until(lambda n=round_: len(pair.at_far.ops) >= n * 20 + 20, "arrival")  # type: ignore[misc]
            for i, op in enumerate(pair.at_far.ops[round_ * 20 :]):
                digests[round_ * 20 + i] = hashlib.sha256(op.data).digest()
            # Some are let go, so that buffers come free between those that are held.
            for index in range(round_ * 20, round_ * 20 + 7):
                message = pair.at_far.messages[index]
                assert isinstance(message, Batch)
                copied = [op._replace(data=bytes(op.data)) for op in message.ops]
                pair.at_far.messages[index] = message._replace(ops=copied)
        # Nor by what arrives while the link is being closed. The small writes come one by one, so
        # that the buffer in use at the end holds some of them and has room behind.
        small = []
        for i in range(401, 409):
            pair.near.send([write(i, pattern(i, 512))])
            await pair.at_far.until(lambda n=i: len(pair.at_far.ops) >= n, "arrival")  # type: ignore[misc]
            small.append(pair.at_far.ops[-1])
        pair.near.send([write(i, bytes([255]) * size) for i in range(409, 489)])
        pair.far.close()
        await pair.at_near.until_lost()
        await settle()  # The closing end is still reading, only to drop.
        for i, op in enumerate(small, 401):
            expect(op.data == pattern(i, 512), f"Payload {i} changed after its link was closed.")
        for i, op in enumerate(pair.at_far.ops[: len(digests)]):
            same = hashlib.sha256(op.data).digest() == digests[i] and op.data == pattern(
                i + 1, size
            )
            expect(same, f"Payload {i + 1} changed after it had been delivered.")


async def check_one_wakeup_delivers_many_messages(subject: Subject) -> None:
    """Messages that arrive together are delivered together, or small writes would each cost a turn."""
    async with bench(subject) as b:
        pair = await b.pair()
        pair.near.send([write(i, pattern(i, 512)) for i in range(1, 201)])
        await pair.at_far.until(lambda: len(pair.at_far.ops) == 200, "the arrival of 200 writes")
        expect(
            pair.at_far.calls <= 50, f"200 messages were delivered in {pair.at_far.calls} calls."
        )


async def check_links_do_not_mix(subject: Subject) -> None:
    """A hundred links between the same two nodes each carry their own messages."""
    async with bench(subject) as b:
        pairs = await b.pairs(100)
        for turn in range(3):
            for number, pair in enumerate(pairs):
                pair.near.send([write(turn + 1, pattern(number * 10 + turn, 4096))])
        for number, pair in enumerate(pairs):
            await pair.at_far.until(lambda p=pair: len(p.at_far.ops) >= 3, "arrival on each link")  # type: ignore[misc]
            for turn, op in enumerate(pair.at_far.ops):
                right = op.data == pattern(number * 10 + turn, 4096)
                expect(right, "A message arrived on another link than it was sent on.")
            expect(len(pair.at_far.ops) == 3, "A link delivered a message twice.")
