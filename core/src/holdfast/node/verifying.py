"""Verifications and scrubs of one volume, as lines of JSON for whoever asked.

The primary's machine does the work and tells how far it is; this module only waits and words it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Sequence

from holdfast.errors import UnavailableError
from holdfast.model import CopyState
from holdfast.node.pump import Pump
from holdfast.node.service import Json
from holdfast.sync import events as ev
from holdfast.sync.verify import BATCH_CHUNKS
from holdfast.units import CHUNK_BYTES, NodeName

BATCH_BYTES = BATCH_CHUNKS * CHUNK_BYTES
"""What one step of a verification reads on each copy."""


async def run(pump: Pump, name: str, *, repair: bool, pace_s: float = 0.0) -> AsyncIterator[Json]:
    """Yield the progress of a verification of the volume whose primary `pump` steps.

    Args:
        pump: Its pump.
        name: The volume's name.
        repair: Put right what is wrong.
        pace_s: The least time between two batches of 8 MiB.

    Raises:
        UnavailableError: A copy cannot be compared now, or the primary changed on the way.
    """
    members = pump.member.ctx.record.members
    missing = [m.node for m in members if m.state is not CopyState.IN_SYNC]
    if missing:
        raise UnavailableError(
            f"The copy on {', '.join(missing)} is not in sync and cannot be compared.",
            hint=f"Wait until `holdfast volume show {name}` says healthy.",
        )
    gone = UnavailableError(
        f"The primary of {name} changed during the comparison.", hint="Run it again."
    )
    if pump.closed:
        raise gone
    queue: asyncio.Queue[ev.Verified] = asyncio.Queue()
    token = pump.member.ctx.token()
    pump.listeners[token] = queue.put_nowait
    pump.feed(ev.Verify(token, repair=repair, pace_s=pace_s))
    try:
        while True:
            told = await queue.get()
            if told.failed:
                raise gone
            if told.differing is None:
                yield {"chunks_done": told.chunks_done, "chunks_total": told.chunks_total}
                continue
            yield _outcome(told)
            return
    finally:
        del pump.listeners[token]


def _outcome(told: ev.Verified) -> Json:
    repaired = set(told.repaired)
    wrong = {chunk for chunk, _ in (*(told.differing or ()), *told.rotten)}
    return {
        "equal": wrong <= repaired,
        "copies": told.copies,
        "chunks_total": told.chunks_total,
        "differences": [_entry(c, nodes, repaired) for c, nodes in told.differing or ()],
        "rotten": [_entry(c, nodes, repaired) for c, nodes in told.rotten],
        "repaired": len(repaired),
    }


def _entry(chunk: int, nodes: Sequence[NodeName], repaired: set[int]) -> Json:
    return {
        "chunk": chunk,
        "offset": chunk * CHUNK_BYTES,
        "nodes": list(nodes),
        "repaired": chunk in repaired,
    }


async def lines_of(ask: Callable[[], Iterator[Json]]) -> AsyncIterator[Json]:
    """Yield the lines that another node streams; each is waited for in a thread."""
    iterator = await asyncio.to_thread(lambda: iter(ask()))
    end = object()
    while (line := await asyncio.to_thread(next, iterator, end)) is not end:
        assert isinstance(line, dict)
        yield line
