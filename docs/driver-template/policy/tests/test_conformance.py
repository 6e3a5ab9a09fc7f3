"""The policy under the public kit, and what is its own."""

from __future__ import annotations

import pytest
from holdfast_majority import MajorityOptions, MajorityPolicy

from holdfast.interfaces.policy import PolicyView
from holdfast.model import Access
from holdfast.testing.checks.policy import Capabilities
from holdfast.testing.conformance_policy import PolicyConformance


class TestMajority(PolicyConformance):
    driver = MajorityPolicy
    options = (MajorityOptions(), MajorityOptions(spare=1))
    capabilities = Capabilities(**MajorityPolicy.CONFORMANCE["capabilities"])


@pytest.mark.parametrize(
    ("online", "access"), [(2, Access.READ_WRITE), (1, Access.READ_WRITE), (0, Access.SUSPENDED)]
)
def test_two_of_three_copies_suffice(online: int, access: Access) -> None:
    view = PolicyView(
        declared=2, online=online, in_sync=online, access=Access.READ_WRITE, below_since=None
    )
    assert MajorityPolicy(MajorityOptions()).decide(view, now=0.0).access is access
