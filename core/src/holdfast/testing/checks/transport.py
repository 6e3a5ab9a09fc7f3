"""What every transport must do; see `interfaces/transport.py` for the promises checked here.

A check takes a `Subject`, whose `open` gives the transport of one more node at every call; all of them
can reach each other.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable

from holdfast.testing.checks import (
    _transport_accounts,
    _transport_delivery,
    _transport_ends,
    run_each,
)
from holdfast.testing.checks._transport_bench import Capabilities, OpenTransport, Subject
from holdfast.testing.checks._transport_examples import EXAMPLES

__all__ = [
    "CHECKS",
    "EXAMPLES",
    "Capabilities",
    "Check",
    "OpenTransport",
    "Subject",
    "run_checks",
]

Check = Callable[[Subject], Awaitable[None]]

CHECKS: tuple[Check, ...] = tuple(
    check
    for module in (_transport_delivery, _transport_ends, _transport_accounts)
    for name, check in vars(module).items()
    if name.startswith("check_")
)
"""Every check: delivery first, then endings, then accounts."""


async def run_checks(
    subject: Subject, checks: Iterable[Check] = CHECKS
) -> dict[str, BaseException | None]:
    """Run `checks`, as `run_each`."""
    return await run_each("transport", subject, checks)
