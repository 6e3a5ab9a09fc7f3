"""Waiting for a condition with a deadline, the only way in which tests wait."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")
PATIENCE = 4.0
"""How many times slower a machine may be than the one on which the deadlines were chosen."""


class WaitedInVainError(AssertionError):
    """What was waited for did not come true in time; says what was seen last."""


def wait_until(
    condition: Callable[[], T], deadline_s: float, what: str, *, every_s: float = 0.05
) -> T:
    """Return the first true value of `condition`.

    Args:
        condition: Asked again and again; errors of it count as "not yet" and are told at the end.
        deadline_s: How long, in seconds, on an idle machine of 2026; `PATIENCE` times that is waited.
        what: What is waited for, to complete "Waited 5 s in vain for ...".
        every_s: Seconds between two questions.

    Raises:
        WaitedInVainError: It did not come true.
    """
    deadline_s *= PATIENCE
    end = time.monotonic() + deadline_s
    seen: object = None
    while True:
        try:
            value = condition()
        except Exception as error:  # noqa: BLE001 - whatever it is, it may pass; told below.
            seen = error
        else:
            if value:
                return value
            seen = value
        if time.monotonic() >= end:
            raise WaitedInVainError(
                f"Waited {deadline_s:g} s in vain for {what}; seen last: {seen!r}"
            )
        time.sleep(every_s)
