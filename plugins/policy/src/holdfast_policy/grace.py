"""The rule that the second generation of failure modes shares: how writing is lost and regained.

A mode says how many online replicas it wants; everything else is here. The rule owns no clock: the
moment of the fall comes from the group record, so that it survives a failover, and the moment to
ask again is told in the verdict.

Source: StorageOS v2, "failure modes": I/O goes on for 90 s while a replacement is made, then the
volume is read-only until enough replicas are back and it has been mounted again.
"""

from __future__ import annotations

from holdfast.interfaces.policy import PolicyView, Verdict
from holdfast.model import Access
from holdfast_policy.options import ERROR, HOLD, READ_ONLY, SUSPEND, GraceOptions

_AFTER_GRACE = {
    READ_ONLY: Access.READ_ONLY,
    SUSPEND: Access.SUSPENDED,
    ERROR: Access.ERROR,
}
_STICKY = frozenset({Access.READ_ONLY, Access.ERROR})
"""What a consumer has noticed: its file system may have gone read-only by itself, so that writing
again unasked would help nobody. Suspended requests have only waited."""
_WORDS = {
    Access.READ_ONLY: "read-only",
    Access.SUSPENDED: "suspended",
    Access.ERROR: "failing writes",
}


def decide(least: int, options: GraceOptions, view: PolicyView, now: float) -> Verdict:
    """Return the verdict for a mode that wants `least` online replicas.

    Args:
        least: M, from 0 to R.
        options: The mode's parameters.
        view: The group.
        now: Unix seconds.
    """
    if view.online >= least:
        return _enough(least, options, view)
    if view.access in _STICKY and not options.auto_resume:
        # Neither a new fall nor another mode's grace gives back what was withdrawn.
        return Verdict(
            view.access, None, f"{_shortage(least, view)}; {_way_back(view.access)}.", below=True
        )
    # A moment in the future is another node's clock, or ours set back: the grace begins now.
    since = now if view.below_since is None else min(view.below_since, now)
    deadline = since + options.grace_s
    after = _AFTER_GRACE[options.on_shortage]
    if now >= deadline:
        return Verdict(
            after,
            None,
            f"{_shortage(least, view)} for more than {options.grace_s:g} s;"
            f" {_way_back(after, auto=options.auto_resume)}.",
            below=True,
        )
    during = Access.SUSPENDED if options.during_grace == HOLD else Access.READ_WRITE
    waits = "requests wait" if options.during_grace == HOLD else "reads and writes go on"
    return Verdict(
        during,
        deadline,
        f"{_shortage(least, view)}; {waits}, and after {options.grace_s:g} s of this"
        f" the volume is {_WORDS[after]}.",
        below=True,
    )


def _enough(least: int, options: GraceOptions, view: PolicyView) -> Verdict:
    if view.access in _STICKY and not (view.attached_anew or options.auto_resume):
        return Verdict(
            view.access,
            None,
            f"{_count(view)}, enough again, but the volume stays {_WORDS[view.access]} until it is"
            " attached anew.",
            below=False,
        )
    needed = "" if view.online >= view.declared else f", {least} needed to write"
    return Verdict(Access.READ_WRITE, None, f"{_count(view)}{needed}.", below=False)


def _count(view: PolicyView) -> str:
    if view.declared == 0:
        return "The volume declares no replicas"
    syncing = view.online - view.in_sync
    suffix = f" ({syncing} still syncing)" if syncing > 0 else ""
    return f"{view.online} of {view.declared} replicas online{suffix}"


def _shortage(least: int, view: PolicyView) -> str:
    return f"{view.online} of {view.declared} replicas online, {least} needed"


def _way_back(access: Access, *, auto: bool = False) -> str:
    if access is Access.SUSPENDED:
        return "the volume is suspended and goes on by itself when they are back"
    if auto:
        return f"the volume is {_WORDS[access]} until they are back"
    return f"the volume is {_WORDS[access]} until they are back and it is attached anew"
