"""The policies of simulated worlds: the rule of the failure modes in its plainest form.

The real ones are drivers, which this package does not know; what matters here is that the group
carries out whatever a policy says, also when it changes its mind in the middle of a failover (I6).
"""

from __future__ import annotations

from attrs import frozen

from holdfast.interfaces.policy import Policy, PolicyView, Verdict
from holdfast.model import Access, VolumeSpec

GRACE_S = 4.0


@frozen
class AlwaysWritable:
    """Writable with any number of replicas."""

    def least(self, declared: int) -> int:
        """Return 0."""
        return 0

    def nodes_min(self, declared: int) -> int:
        """Return 1."""
        return 1

    def decide(self, view: PolicyView, now: float) -> Verdict:
        """Return read-write."""
        return Verdict(Access.READ_WRITE, None, "always writable", below=False)


@frozen
class EveryReplica:
    """Read-only when a replica has been missing for a while, until the volume is attached anew."""

    grace_s: float = GRACE_S

    def least(self, declared: int) -> int:
        """Return all of them."""
        return declared

    def nodes_min(self, declared: int) -> int:
        """Return one more than there are copies."""
        return declared + 2

    def decide(self, view: PolicyView, now: float) -> Verdict:
        """Return read-only after the grace, and for as long as nobody attaches anew."""
        below = view.online < view.declared
        if view.access is Access.READ_ONLY and (below or not view.attached_anew):
            return Verdict(Access.READ_ONLY, None, "read-only until attached anew", below=below)
        if not below:
            return Verdict(Access.READ_WRITE, None, "every replica is online", below=False)
        since = now if view.below_since is None else min(view.below_since, now)
        if now >= since + self.grace_s:
            return Verdict(Access.READ_ONLY, None, "replicas are missing", below=True)
        return Verdict(Access.READ_WRITE, since + self.grace_s, "within the grace", below=True)


def policy_of(spec: VolumeSpec) -> Policy:
    """Return the policy that a specification names."""
    if spec.policy == "hard":
        return EveryReplica(float(spec.policy_options.get("grace_s", GRACE_S)))
    return AlwaysWritable()
