"""What every state store must do; see `interfaces/state.py` for the promises checked here.

A check takes a `Subject`, whose `open` gives one more handle on the same store at every call, and works
under keys of a random prefix that it deletes in the end, so it may run on a store that is in use.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable

from holdfast.testing.checks import _state_leases, _state_values, _state_watches, run_each
from holdfast.testing.checks._state_bench import Capabilities, OpenStore, Subject

__all__ = ["CHECKS", "Capabilities", "Check", "OpenStore", "Subject", "run_checks"]

Check = Callable[[Subject], Awaitable[None]]

CHECKS: tuple[Check, ...] = tuple(
    check
    for module in (_state_values, _state_watches, _state_leases)
    for name, check in vars(module).items()
    if name.startswith("check_")
)
"""Every check, values first, then watches, then leases."""


async def run_checks(
    subject: Subject, checks: Iterable[Check] = CHECKS
) -> dict[str, BaseException | None]:
    """Run `checks`, as `run_each`."""
    return await run_each("state store", subject, checks)
