"""Failure modes: what a volume may do while copies of it are missing.

Every mode is a pure decision over counts and times. This package knows neither nodes nor bytes.
"""

from holdfast_policy.first_generation import V1AlwaysOnPolicy, V1HardPolicy, V1SoftPolicy
from holdfast_policy.modes import AlwaysOnPolicy, HardPolicy, SoftPolicy, ThresholdPolicy
from holdfast_policy.options import GraceOptions, NoOptions, ThresholdOptions, ToleranceOptions

__all__ = [
    "AlwaysOnPolicy",
    "GraceOptions",
    "HardPolicy",
    "NoOptions",
    "SoftPolicy",
    "ThresholdOptions",
    "ThresholdPolicy",
    "ToleranceOptions",
    "V1AlwaysOnPolicy",
    "V1HardPolicy",
    "V1SoftPolicy",
]
