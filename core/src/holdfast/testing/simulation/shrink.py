"""Makes the fault list of a failing seed shorter, for as long as it still fails in the same way."""

from __future__ import annotations

from holdfast.testing.simulation.runner import Outcome, run_seed


def shrink(outcome: Outcome, *, runs_max: int = 200) -> Outcome:
    """Return the outcome of the shortest list found that violates the same invariant.

    Faults are left out by halves, then quarters, and so on to single ones (delta debugging), until
    none can be spared or `runs_max` runs are used up.
    """
    if outcome.violation is None:
        return outcome
    best = outcome
    wanted = outcome.violation.invariant
    numbers = [fault.number for fault in outcome.faults if fault.time <= outcome.time]
    if len(numbers) < len(outcome.faults):
        # What was to come after the violation has nothing to do with it.
        best = run_seed(outcome.config.seed, keep=numbers, config=outcome.config)
        assert best.violation is not None
    pieces = 1
    runs = 0
    while runs < runs_max:
        size = max(1, len(numbers) // pieces)
        shorter = None
        for at in range(0, len(numbers), size):
            keep = numbers[:at] + numbers[at + size :]
            runs += 1
            tried = run_seed(outcome.config.seed, keep=keep, config=outcome.config)
            if tried.violation is not None and tried.violation.invariant == wanted:
                best, shorter = tried, keep
                break
            if runs >= runs_max:
                break
        if shorter is not None:
            numbers = shorter
            pieces = max(1, pieces - 1)
        elif size <= 1:
            break
        else:
            pieces *= 2
    return best
