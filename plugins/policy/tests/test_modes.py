"""Every mode, against the documented table and against properties of the rule."""

from __future__ import annotations

from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.interfaces.policy import Policy, PolicyView
from holdfast.model import Access
from holdfast_policy import (
    AlwaysOnPolicy,
    GraceOptions,
    HardPolicy,
    NoOptions,
    SoftPolicy,
    ThresholdOptions,
    ThresholdPolicy,
    ToleranceOptions,
    V1AlwaysOnPolicy,
    V1HardPolicy,
    V1SoftPolicy,
)

NOW = 1_700_000_000.0
RW, RO, ERROR, NONE, SUSPENDED = (
    Access.READ_WRITE,
    Access.READ_ONLY,
    Access.ERROR,
    Access.NONE,
    Access.SUSPENDED,
)

# Replicas declared and online, and after the grace: hard, soft, v1-hard, v1-soft. The two modes
# that are always on, and the threshold, need no column.
STEADY = """
0 0  RW RW  RW   RW
1 1  RW RW  RW   RW
1 0  RO RO  NONE RW
2 2  RW RW  RW   RW
2 1  RO RW  NONE RW
2 0  RO RO  NONE ERROR
3 3  RW RW  RW   RW
3 2  RO RW  NONE RW
3 1  RO RO  NONE RW
3 0  RO RO  NONE ERROR
4 4  RW RW  RW   RW
4 3  RO RW  NONE RW
4 2  RO RO  NONE RW
4 1  RO RO  NONE RW
4 0  RO RO  NONE ERROR
5 5  RW RW  RW   RW
5 4  RO RW  NONE RW
5 3  RO RO  NONE RW
5 2  RO RO  NONE RW
5 1  RO RO  NONE RW
5 0  RO RO  NONE ERROR
"""
ROWS = [line.split() for line in STEADY.strip().splitlines()]
COLUMNS: list[tuple[int, Any]] = [
    (2, HardPolicy(GraceOptions())),
    (3, SoftPolicy(GraceOptions())),
    (4, V1HardPolicy(NoOptions())),
    (5, V1SoftPolicy(ToleranceOptions())),
]
CELLS = [
    pytest.param(policy, int(row[0]), int(row[1]), Access[{"RW": "READ_WRITE", "RO": "READ_ONLY"}
        .get(row[column], row[column])], id=f"{policy.name}-R{row[0]}-A{row[1]}")
    for column, policy in COLUMNS
    for row in ROWS
]  # fmt: skip
GRACE = [HardPolicy, SoftPolicy, ThresholdPolicy]


def view(declared: int, online: int, access: Access = RW, **more: Any) -> PolicyView:
    fields: dict[str, Any] = {"in_sync": online, "below_since": None} | more
    return PolicyView(declared=declared, online=online, access=access, **fields)


def test_the_table_has_every_pair_of_declared_and_online() -> None:
    assert [(int(r[0]), int(r[1])) for r in ROWS] == [
        (declared, online) for declared in range(6) for online in range(declared, -1, -1)
    ]


@pytest.mark.parametrize(("policy", "declared", "online", "expected"), CELLS)
def test_a_mode_does_after_its_grace_what_the_table_says(
    policy: Policy, declared: int, online: int, expected: Access
) -> None:
    verdict = policy.decide(view(declared, online, below_since=NOW - 90), NOW)
    assert verdict.access is expected
    assert verdict.below is (online < policy.least(declared))
    assert verdict.deadline is None


@pytest.mark.parametrize(("policy", "declared", "online", "expected"), CELLS)
def test_only_the_modes_with_grace_serve_before_it_has_passed(
    policy: Any, declared: int, online: int, expected: Access
) -> None:
    verdict = policy.decide(view(declared, online, below_since=NOW - 89), NOW)
    if policy.name.startswith("v1"):
        assert verdict.access is expected
    else:
        assert verdict.access is RW
        assert verdict.deadline == (NOW + 1 if verdict.below else None)


@pytest.mark.parametrize("threshold", range(6))
@pytest.mark.parametrize("declared", range(6))
def test_a_threshold_is_writable_with_as_many_replicas_as_it_says(
    threshold: int, declared: int
) -> None:
    options = ThresholdOptions(threshold=threshold)
    refusal = ThresholdPolicy.refuse(declared, options)
    assert (refusal is None) is (threshold <= declared)
    for online in range(declared + 1) if refusal is None else ():
        verdict = ThresholdPolicy(options).decide(view(declared, online, below_since=0), NOW)
        assert (verdict.access is RW) is (online >= threshold)


def test_a_refused_threshold_says_both_numbers() -> None:
    for declared, told in ((0, "0 replicas"), (1, "1 replica"), (2, "2 replicas")):
        refusal = ThresholdPolicy.refuse(declared, ThresholdOptions(threshold=3))
        assert refusal is not None
        assert f"threshold is 3, but the volume declares {told}, so" in refusal


@pytest.mark.parametrize("online", range(6))
@pytest.mark.parametrize("access", Access)
@pytest.mark.parametrize(
    "policy", [AlwaysOnPolicy(GraceOptions()), V1AlwaysOnPolicy(NoOptions())], ids=lambda p: p.name
)
def test_an_always_on_volume_is_writable_whatever_was_before(
    policy: Policy, access: Access, online: int
) -> None:
    verdict = policy.decide(view(5, online, access, below_since=0), NOW)
    assert (verdict.access, verdict.deadline, verdict.below) == (RW, None, False)


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        (HardPolicy(GraceOptions()), [2, 3, 4, 5, 6, 7]),
        (SoftPolicy(GraceOptions()), [1, 2, 3, 4, 5, 6]),
        (ThresholdPolicy(ThresholdOptions(threshold=0)), [1, 1, 1, 1, 1, 1]),
        (AlwaysOnPolicy(GraceOptions()), [1, 1, 1, 1, 1, 1]),
        (V1HardPolicy(NoOptions()), [1, 2, 3, 4, 5, 6]),
        (V1SoftPolicy(ToleranceOptions()), [1, 1, 2, 2, 2, 2]),
        (V1SoftPolicy(ToleranceOptions(tolerance=0)), [1, 2, 3, 4, 5, 6]),
        (V1AlwaysOnPolicy(NoOptions()), [1, 1, 1, 1, 1, 1]),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_a_mode_says_how_many_nodes_high_availability_takes(
    policy: Policy, expected: list[int]
) -> None:
    assert [policy.nodes_min(declared) for declared in range(6)] == expected


@pytest.mark.parametrize("tolerance", range(6))
def test_v1_soft_counts_the_replicas_that_are_there(tolerance: int) -> None:
    policy = V1SoftPolicy(ToleranceOptions(tolerance=tolerance))
    verdicts = [policy.decide(view(3, online), NOW).access for online in range(4)]
    assert verdicts == [RW if 3 - online <= tolerance else ERROR for online in range(4)]


def test_the_grace_begins_now_when_no_fall_is_on_record() -> None:
    verdict = HardPolicy(GraceOptions(grace_s=4)).decide(view(2, 1), NOW)
    assert (verdict.access, verdict.deadline, verdict.below) == (RW, NOW + 4, True)


def test_a_fall_in_the_future_begins_now() -> None:
    verdict = HardPolicy(GraceOptions(grace_s=4)).decide(view(2, 1, below_since=NOW + 3600), NOW)
    assert verdict.deadline == NOW + 4


def test_no_grace_withdraws_at_once() -> None:
    assert HardPolicy(GraceOptions(grace_s=0)).decide(view(1, 0), NOW).access is RO


def test_hold_makes_requests_wait_during_the_grace_and_serves_when_it_ends_well() -> None:
    policy = HardPolicy(GraceOptions(during_grace="hold"))
    held = policy.decide(view(1, 0), NOW)
    assert (held.access, held.deadline) == (SUSPENDED, NOW + 90)
    assert policy.decide(view(1, 1, SUSPENDED), NOW + 50).access is RW
    assert policy.decide(view(1, 0, SUSPENDED, below_since=NOW), NOW + 90).access is RO


@pytest.mark.parametrize(
    ("on_shortage", "expected"), [("read-only", RO), ("suspend", SUSPENDED), ("error", ERROR)]
)
def test_the_operator_chooses_what_a_shortage_does(on_shortage: str, expected: Access) -> None:
    policy = SoftPolicy(GraceOptions(on_shortage=on_shortage))
    assert policy.decide(view(2, 0, below_since=NOW - 90), NOW).access is expected


@pytest.mark.parametrize("driver", GRACE)
@pytest.mark.parametrize("access", [RO, ERROR])
def test_withdrawn_writing_comes_back_only_with_a_new_attachment(
    driver: Any, access: Access
) -> None:
    policy = driver(driver.Options())
    assert policy.decide(view(2, 2, access), NOW).access is access
    assert policy.decide(view(2, 2, access, attached_anew=True), NOW).access is RW


@pytest.mark.parametrize("driver", GRACE)
def test_a_new_attachment_is_not_enough_while_replicas_are_missing(driver: Any) -> None:
    policy = driver(driver.Options())
    short = view(2, 0, RO, attached_anew=True, below_since=NOW - 500)
    assert policy.decide(short, NOW).access is RO


@pytest.mark.parametrize("driver", GRACE)
def test_a_second_fall_gives_no_new_grace_to_what_is_read_only(driver: Any) -> None:
    verdict = driver(driver.Options()).decide(view(2, 0, RO), NOW)
    assert (verdict.access, verdict.deadline) == (RO, None)


@pytest.mark.parametrize("driver", GRACE)
def test_auto_resume_gives_writing_back_by_itself(driver: Any) -> None:
    policy = driver(driver.Options(auto_resume=True))
    assert policy.decide(view(2, 2, RO), NOW).access is RW


def test_what_was_suspended_goes_on_by_itself() -> None:
    policy = HardPolicy(GraceOptions(on_shortage="suspend"))
    assert policy.decide(view(2, 2, SUSPENDED), NOW).access is RW


@pytest.mark.parametrize("access", Access)
@pytest.mark.parametrize("driver", [V1HardPolicy, V1SoftPolicy])
def test_the_first_generation_goes_back_by_itself(driver: Any, access: Access) -> None:
    assert driver(driver.Options()).decide(view(2, 2, access), NOW).access is RW


def test_reasons_are_sentences_with_the_numbers_in_them() -> None:
    policy = HardPolicy(GraceOptions())
    assert policy.decide(view(2, 2, in_sync=1), NOW).reason == (
        "2 of 2 replicas online (1 still syncing)."
    )
    assert policy.decide(view(2, 1), NOW).reason == (
        "1 of 2 replicas online, 2 needed; reads and writes go on, and after 90 s of this"
        " the volume is read-only."
    )
    assert policy.decide(view(2, 1, below_since=0), NOW).reason == (
        "1 of 2 replicas online, 2 needed for more than 90 s; the volume is read-only until they"
        " are back and it is attached anew."
    )


grace_options = st.builds(
    GraceOptions,
    grace_s=st.floats(0, 1000),
    during_grace=st.sampled_from(["serve", "hold"]),
    on_shortage=st.sampled_from(["read-only", "suspend", "error"]),
    auto_resume=st.booleans(),
)
policies = st.one_of(
    grace_options.map(HardPolicy),
    grace_options.map(SoftPolicy),
    grace_options.map(AlwaysOnPolicy),
    st.just(V1HardPolicy(NoOptions())),
    st.builds(ToleranceOptions, tolerance=st.none() | st.integers(0, 5)).map(V1SoftPolicy),
)
views = st.integers(0, 5).flatmap(
    lambda declared: st.builds(
        PolicyView,
        declared=st.just(declared),
        online=st.integers(0, declared),
        in_sync=st.just(0),
        access=st.sampled_from(Access),
        below_since=st.none() | st.floats(NOW - 2000, NOW + 2000),
        attached_anew=st.booleans(),
    )
)


@given(policies, views)
def test_a_decision_depends_on_its_input_alone(policy: Policy, seen: PolicyView) -> None:
    assert policy.decide(seen, NOW) == policy.decide(seen, NOW)


@given(policies, views, st.data())
def test_more_replicas_never_take_writing_away(
    policy: Policy, seen: PolicyView, data: st.DataObject
) -> None:
    more = attrs.evolve(seen, online=data.draw(st.integers(seen.online, seen.declared)))
    # What waits is not withdrawn, but what could write may write with more replicas.
    if policy.decide(seen, NOW).access is RW and seen.access not in {RO, ERROR}:
        assert policy.decide(more, NOW).access is RW


@given(policies, views, st.floats(0, 3000))
def test_a_deadline_lies_ahead_and_nothing_changes_before_it(
    policy: Policy, seen: PolicyView, later: float
) -> None:
    first = policy.decide(seen, NOW)
    if first.below and (seen.below_since is None or seen.below_since > NOW):
        seen = attrs.evolve(seen, below_since=NOW)  # The group stores it.
    assert first.deadline is None or first.deadline > NOW
    if first.deadline is None or NOW + later < first.deadline:
        assert policy.decide(seen, NOW + later).access is first.access
