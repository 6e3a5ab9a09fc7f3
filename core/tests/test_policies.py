"""The policies of a node."""

import attrs
import pytest

from holdfast.errors import DriverError
from holdfast.kernel import registry
from holdfast.model import VolumeSpec
from holdfast.node.policies import Policies
from holdfast.units import MIB, VolumeId


def test_what_is_prepared_is_imported_no_more_when_a_copy_takes_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    spec = VolumeSpec(VolumeId("v"), "db", MIB, 2, policy="hard", hash_key="ab" * 32)
    unknown = attrs.evolve(spec, policy="unheard-of")
    policies = Policies({})
    policies.prepare([unknown, spec])
    with pytest.raises(DriverError):
        policies.of(unknown)
    monkeypatch.setattr(registry, "load", lambda *_: pytest.fail("imported when it is needed"))
    assert policies.of(spec).nodes_min(spec.replicas) == 4
    assert policies.of(attrs.evolve(spec, policy_options={"grace_s": 4.0})).nodes_min(1) == 3
    assert policies.options("hard", {"grace_s": "4"}) == {"grace_s": 4.0}
