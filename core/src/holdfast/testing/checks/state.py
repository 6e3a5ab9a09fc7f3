"""What every state store must do; see `interfaces/state.py` for the promises checked here.

A check takes a `Subject`, whose `open` gives one more handle on the same store at every call, and works
under keys of a random prefix that it deletes in the end, so it may run on a store that is in use.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable

from holdfast.testing.checks import _state_leases, _state_values, _state_watches, expect
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
    """Run `checks` one after the other and return each one's name with its failure, or None.

    Raises:
        CheckFailedError: No check ran at all.
    """
    results: dict[str, BaseException | None] = {}
    for check in checks:
        name = getattr(check, "__name__", repr(check))
        try:
            await check(subject)
            results[name] = None
        except Exception as error:  # noqa: BLE001 - whatever a broken store raises is its failure.
            results[name] = _innermost(error)
    expect(bool(results), "The kit of the state store ran no check at all.")
    return results


def _innermost(error: BaseException) -> BaseException:
    """Return the one failure that task groups have wrapped, or the group if there are several."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error
