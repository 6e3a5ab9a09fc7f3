"""Conformance checks as plain async functions, free of pytest, so that operators can run them too.

Each takes what it needs to open the thing under test and raises `CheckFailedError` with a sentence that
names the broken promise. They use no `assert`, which `python -O` would silently turn off.
"""

from __future__ import annotations


class CheckFailedError(AssertionError):
    """A driver broke a promise of its interface."""


def expect(holds: bool, sentence: str) -> None:
    """Fail the running check with `sentence` unless `holds`.

    Raises:
        CheckFailedError: It does not hold.
    """
    if not holds:
        raise CheckFailedError(sentence)
