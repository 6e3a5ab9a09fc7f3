"""Conformance checks as plain async functions, free of pytest, so that operators can run them too.

Each takes what it needs to open the thing under test and raises `CheckFailedError` with a sentence that
names the broken promise. They use no `assert`, which `python -O` would silently turn off.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from typing import TypeVar

T = TypeVar("T")


class CheckFailedError(AssertionError):
    """A driver broke a promise of its interface."""


def expect(holds: bool, sentence: str) -> None:
    """Fail the running check with `sentence` unless `holds`.

    Raises:
        CheckFailedError: It does not hold.
    """
    if not holds:
        raise CheckFailedError(sentence)


async def run_each(
    kit: str, subject: T, checks: Iterable[Callable[[T], Awaitable[None]]]
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
        except Exception as error:  # noqa: BLE001 - whatever a broken driver raises is its failure.
            results[name] = _innermost(error)
    expect(bool(results), f"The kit of the {kit} ran no check at all.")
    return results


def _innermost(error: BaseException) -> BaseException:
    """Return the one failure that task groups have wrapped, or the group if there are several."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error
