"""How links end, and who is told."""

from __future__ import annotations

from collections.abc import Callable

from holdfast.errors import HoldfastError, RefusedError, UnavailableError
from holdfast.interfaces.transport import Link, LinkHandler
from holdfast.messages import Hello, Refused
from holdfast.testing.checks import CheckFailedError, expect
from holdfast.testing.checks._transport_bench import (
    HELLO,
    Pair,
    Subject,
    bench,
    pattern,
    settle,
    write,
)
from holdfast.units import MIB


async def check_the_other_end_is_told_once_of_a_loss(subject: Subject) -> None:
    """Whichever end goes, and however, the other hears it once and the one that went does not."""
    endings: tuple[Callable[[Link], None], ...] = (Link.close, Link.abort)
    async with bench(subject) as b:
        for ending in endings:
            name = ending.__name__
            for near_goes in (True, False):
                pair = await b.pair()
                goes, stays = (pair.near, pair.far) if near_goes else (pair.far, pair.near)
                told, untold = pair.at_far, pair.at_near
                if not near_goes:
                    told, untold = untold, told
                getattr(goes, name)()
                error = await told.until_lost()
                unavailable = isinstance(error, UnavailableError)
                expect(unavailable, f"A loss was told as {type(error).__name__}.")
                getattr(goes, name)()
                stays.send([write(1, pattern(1, 512))])
                stays.close()
                stays.abort()
                await settle()
                expect(len(told.errors) == 1, "on_lost was called more than once.")
                expect(not untold.errors, f"on_lost was called after the own {name}.")


async def check_close_sends_what_was_accepted(subject: Subject) -> None:
    """Also while the other end is sending, when a careless close would end in a reset."""
    async with bench(subject) as b:
        for far_is_sending in (False, True):
            pair = await b.pair()
            count = 24
            if far_is_sending:
                pair.far.send([write(i, pattern(i, MIB)) for i in range(1, count + 1)])
            pair.near.send([write(i, pattern(i, MIB)) for i in range(1, count + 1)])
            pair.near.close("done")
            if far_is_sending:
                pair.far.send([write(count + 1, pattern(1, MIB))])
            await pair.at_far.until_lost()
            got = len(pair.at_far.ops)
            expect(got == count, f"Of {count} writes sent before close, {got} arrived.")


async def check_abort_drops_what_was_not_sent(subject: Subject) -> None:
    """After abort nothing more is accepted, and nothing is left to account for."""
    async with bench(subject) as b:
        pair = await b.pair()
        pair.near.send([write(i, pattern(i, MIB)) for i in range(1, 65)])
        pair.near.abort()
        pair.near.send([write(65, pattern(1, 512))])
        expect(pair.near.unsent_bytes == 0, "An aborted link still counts unsent bytes.")
        await pair.at_far.until_lost()
        expect(all(op.offset != 65 * 512 for op in pair.at_far.ops), "A message passed an abort.")


async def check_nothing_is_delivered_after_close_or_abort(subject: Subject) -> None:
    """A handler that ends its link while it is called is not called again."""
    async with bench(subject) as b:
        for ending in ("close", "abort"):
            pair = await b.pair()
            calls: list[int] = []

            def end(pair: Pair = pair, ending: str = ending, calls: list[int] = calls) -> None:
                calls.append(1)
                getattr(pair.far, ending)()

            pair.at_far.on_call = end
            for i in range(1, 20):
                pair.near.send([write(i, pattern(i, 65536))])
                await settle()
            await pair.at_near.until_lost()
            await settle()
            expect(len(calls) == 1, f"A handler was called again after {ending}.")
            expect(not pair.at_far.errors, f"on_lost was called after the own {ending}.")


async def check_a_closed_listener_refuses_connections(subject: Subject) -> None:
    """Nothing listens any more: `ConnectionRefusedError`, and the accepted links are gone."""
    async with bench(subject) as b:
        accepted = []

        def accept(_link: Link, _hello: Hello) -> LinkHandler:
            accepted.append(b.recorder())
            return accepted[-1]

        _, listener = await b.listening(accept)
        node = await b.node("a")
        told = b.recorder()
        await node.connect(listener.address, HELLO, told)
        await b.until(lambda: len(accepted) == 1, "the acceptance of a link")
        await listener.aclose()
        await told.until_lost()
        expect(not accepted[0].errors, "on_lost was called for a link aborted by its own listener.")
        try:
            await node.connect(listener.address, HELLO, b.recorder())
        except ConnectionRefusedError:
            return
        except HoldfastError as error:
            raise CheckFailedError(
                f"Where nothing listens, connect raised {type(error).__name__}."
            ) from error
        raise CheckFailedError("A connection stands where nothing listens.")


async def check_a_refusal_by_accept_reaches_the_handler(subject: Subject) -> None:
    """`accept` may send `Refused` and close; the message arrives before the loss is told."""
    async with bench(subject) as b:
        no = Refused("not-primary", "Ask another node.")

        def accept(link: Link, _hello: Hello) -> None:
            link.send([no])
            link.close("not primary")

        _, listener = await b.listening(accept)
        node = await b.node("a")
        told = b.recorder()
        await node.connect(listener.address, HELLO, told)
        await told.until_lost()
        expect(told.messages == [no], f"A refusal arrived as {told.messages!r:.200}.")
        expect(len(told.errors) == 1, "on_lost was called more than once.")


async def check_another_cluster_is_refused(subject: Subject) -> None:
    """`connect` raises `RefusedError`, and `accept` never sees the stranger."""
    async with bench(subject) as b:
        seen: list[Hello] = []

        def accept(_link: Link, hello: Hello) -> LinkHandler:
            seen.append(hello)
            return b.recorder()

        _, listener = await b.listening(accept)
        stranger = await b.node("a", cluster="another")
        handler = b.recorder()
        try:
            await stranger.connect(listener.address, HELLO, handler)
        except RefusedError as error:
            expect("kit" in str(error), "The refusal does not name the cluster.")
        else:
            raise CheckFailedError("A node of another cluster was let in.")
        await settle()
        expect(not seen, "accept was called for a node of another cluster.")
        expect(not handler.errors, "on_lost was called for a link that never stood.")


async def check_aclose_ends_everything(subject: Subject) -> None:
    """A transport that closes aborts its links and frees its address."""
    async with bench(subject) as b:
        told, untold = b.recorder(), b.recorder()
        far, listener = await b.listening(lambda _link, _hello: untold)
        node = await b.node("a")
        await node.connect(listener.address, HELLO, told)
        await far.aclose()
        await told.until_lost()
        expect(not untold.errors, "on_lost was called for a link aborted by its own transport.")
        try:
            await node.connect(listener.address, HELLO, b.recorder())
        except ConnectionRefusedError:
            return
        raise CheckFailedError("A closed transport still accepts links.")
