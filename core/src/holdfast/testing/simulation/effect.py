"""Whether a fault has changed anything: all that faults change at once, as one value to compare.

It knows neither kinds nor schedules. What a disk's error does comes later, with the operation that
meets it, and is counted there (`Pump._fails`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from holdfast.testing.simulation.world import World


def look(world: World) -> tuple[object, ...]:
    """Return what faults change."""
    network, store = world.network, world.store
    return (
        world.steps,
        dict(network.blocked),
        dict(network.clogged),
        [end.cut for end in network.ends],
        (store.down, dict(store.cut_off), store.slow_s, store.unsure, dict(store.specs)),
        [
            (
                machine.clock.wall_offset,
                machine.draining,
                machine.process,
                machine.process is not None and (machine.process.paused, machine.process.stopping),
                [(len(disk.unreadable), len(disk.rotted)) for disk in machine.copies.values()],
            )
            for machine in world.machines.values()
        ],
        [pump.stalled_until for process in world.processes() for pump in process.pumps.values()],
    )
