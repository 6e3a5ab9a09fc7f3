"""Which nodes a new copy may go to, and what the others are refused with."""

from typing import Any

import attrs
import pytest

from holdfast.local.memory_state import MemoryStateDriver, MemoryStateOptions
from holdfast.model import CopyState, GroupRecord, Member, NodeRecord, VolumeSpec
from holdfast.node.directory import Directory
from holdfast.sync.placement import place
from holdfast.units import GIB, CopyId, Epoch, NodeName, VolumeId

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


@pytest.mark.anyio
async def test_what_was_promised_since_a_node_last_spoke_counts() -> None:
    """A thin volume moves no free space, so its nodes had nothing to say for a while."""
    store = await MemoryStateDriver.open(MemoryStateOptions(name="promised"))
    directory = Directory(store, lambda *_: None, lambda *_: None, lambda: None, lambda _: None)
    directory.alive[NODE.name] = attrs.evolve(NODE, promised_bytes=0, overcommit=1.0)
    for number in range(2):
        volume = VolumeId(f"volume-{number}")
        member = Member(CopyId(f"c{number}"), NODE.name, CopyState.IN_SYNC)
        directory.specs[volume] = VolumeSpec(volume, f"v{number}", 40 * GIB, 0)
        directory.groups[volume] = (GroupRecord(volume, Epoch(1), member.copy, (member,)), 1)
    nodes = directory.loaded()
    assert place(nodes, size_bytes=20 * GIB, taken=()).node == NODE.name
    placement = place(nodes, size_bytes=21 * GIB, taken=())
    assert placement.reasons[NODE.name].startswith("has promised 80 GiB")
    await store.aclose()
