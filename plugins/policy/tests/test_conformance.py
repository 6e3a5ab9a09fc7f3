from holdfast.testing.checks.policy import Capabilities
from holdfast.testing.conformance_policy import PolicyConformance
from holdfast_policy import (
    AlwaysOnPolicy,
    GraceOptions,
    HardPolicy,
    SoftPolicy,
    ThresholdOptions,
    ThresholdPolicy,
    ToleranceOptions,
    V1AlwaysOnPolicy,
    V1HardPolicy,
    V1SoftPolicy,
)

GRACES = (
    GraceOptions(),
    GraceOptions(grace_s=0),
    GraceOptions(grace_s=30, during_grace="hold", on_shortage="suspend"),
    GraceOptions(on_shortage="error"),
    GraceOptions(grace_s=0.5, auto_resume=True),
)
AT_ONCE = Capabilities(grace=False, sticky=False)


class TestHard(PolicyConformance):
    driver = HardPolicy
    options = GRACES


class TestSoft(PolicyConformance):
    driver = SoftPolicy
    options = GRACES


class TestThreshold(PolicyConformance):
    driver = ThresholdPolicy
    options = tuple(ThresholdOptions(threshold=threshold) for threshold in range(6))


class TestAlwaysOn(PolicyConformance):
    driver = AlwaysOnPolicy
    options = GRACES
    capabilities = AT_ONCE


class TestV1Hard(PolicyConformance):
    driver = V1HardPolicy
    capabilities = AT_ONCE


class TestV1Soft(PolicyConformance):
    driver = V1SoftPolicy
    options = tuple(ToleranceOptions(tolerance=tolerance) for tolerance in (None, 0, 1, 4))
    capabilities = AT_ONCE


class TestV1AlwaysOn(PolicyConformance):
    driver = V1AlwaysOnPolicy
    capabilities = AT_ONCE
