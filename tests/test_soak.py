"""A few rounds of what `make soak` does for as long as one likes."""

from pathlib import Path

import pytest
from benchmarks.soak import soaking

pytestmark = pytest.mark.alone


def test_a_few_rounds_of_random_faults_lose_nothing(tmp_path: Path) -> None:
    with soaking(tmp_path, seed=4) as soak:
        for number in range(1, 4):
            soak.round(number)
