"""The loss of a zone costs the state store in proportion to the volumes that had a copy there."""

import pytest

from holdfast.testing.simulation.scale import lose_a_zone, main


def test_the_cost_of_losing_a_zone_grows_with_the_affected_volumes_alone() -> None:
    small = lose_a_zone(40, 40, 5)
    large = lose_a_zone(40, 160, 5)
    wide = lose_a_zone(80, 40, 5)
    for each in (small, large, wide):
        assert each.lost_nodes * 5 == each.nodes
        assert each.affected >= each.failovers > 0
        assert each.operations < 8 * each.affected
        assert each.serving_s <= each.redundant_s < 15.0
    costs = [each.operations / each.affected for each in (small, large, wide)]
    assert max(costs) < 1.4 * min(costs), costs


def test_the_command_says_what_it_cost(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--nodes", "20", "--volumes", "10", "--zones", "4"]) == 0
    assert "operations" in capsys.readouterr().out
