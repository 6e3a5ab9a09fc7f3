"""Which nodes a new copy may go to, and what the others are refused with."""

from typing import Any

import attrs
import pytest

from holdfast.model import NodeRecord
from holdfast.sync.placement import place
from holdfast.units import GIB, NodeName

NODE = NodeRecord(
    name=NodeName("n1"),
    address="127.0.0.1:1",
    session="s",
    capacity_bytes=100 * GIB,
    free_bytes=50 * GIB,
    promised_bytes=150 * GIB,
)


def refusal(size_bytes: int = GIB, **changes: Any) -> str:
    """Return why a node like `NODE` takes no copy of such a volume, or an empty string."""
    node = attrs.evolve(NODE, **changes)
    placement = place({node.name: node}, size_bytes=size_bytes, taken=())
    return "" if placement.node == node.name else placement.reasons[node.name]


def test_volumes_are_thin_unless_a_node_says_how_much_it_may_promise() -> None:
    assert not refusal(size_bytes=1000 * GIB)
    assert not refusal(overcommit=2.0, size_bytes=50 * GIB)
    assert refusal(overcommit=2.0, size_bytes=51 * GIB) == (
        "has promised 150 GiB to volumes already, and may promise 200 GiB"
    )


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"free_bytes": GIB}, "has 1 GiB free, and 1 GiB must stay free"),
        ({"compute_only": True}, "is compute-only"),
        ({"cordoned": True}, "is cordoned"),
        ({"draining": True, "cordoned": True}, "is being drained"),
    ],
)
def test_a_node_that_may_not_take_a_copy_says_why(changes: dict[str, Any], sentence: str) -> None:
    assert refusal(**changes) == sentence
