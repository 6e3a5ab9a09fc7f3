"""The md replicator on a real kernel: exports, imports, arrays, losses, moves, growth.

Needs root, null_blk, nvmet, nvme-fabrics and MD; `make guest` boots a kernel that has them all.
"""

from __future__ import annotations

import pytest
from plugins.transport_nvmeof.tests import md_lab
from plugins.transport_nvmeof.tests.md_lab import Lab, Shadow, quiet

from holdfast.units import MIB

pytestmark = pytest.mark.skipif(md_lab.missing() is not None, reason=md_lab.missing() or "")


def test_a_lost_member_comes_back_by_the_bitmap() -> None:
    async def story(lab: Lab) -> None:
        lab.add_node("a")
        lab.add_node("b")
        device = await lab.create("db", 64, filesystem="none", consumer="a")
        shadow = Shadow(device, 64 * MIB)
        shadow.write(50)
        lab.cut("b")
        volume = await lab.until("db", lambda v: v.status.mdstate == "degraded")
        assert (volume.status.active, volume.status.down) == (1, 1)
        shadow.write(20, within=4 * MIB)
        lab.back("b")
        await lab.until("db", quiet)
        shadow.verify()
        for agent in lab.agents.values():
            assert agent.seen is not None
            for each in agent.seen.slices.values():
                shadow.verify_member(each.path)
        assert any("what changed meanwhile is copied" in event for event in lab.events), lab.events

    md_lab.run(story)
