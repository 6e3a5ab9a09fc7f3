from __future__ import annotations

from holdfast.slab import SLAB_BYTES, Slab


def receive(slab: Slab, data: bytes, wanted: int = 1) -> memoryview:
    """Receive `data` in as many pieces as it takes and return the view of all of it."""
    while data:
        space = slab.space(wanted)
        assert space
        taken = min(len(space), len(data))
        space[:taken] = data[:taken]
        slab.end += taken
        data = data[taken:]
    return slab.view[slab.start : slab.end]


def test_what_is_pointed_into_is_never_written_again() -> None:
    slab, kept = Slab(), []
    for number in range(200):
        view = receive(slab, bytes([number]) * 10_000, 10_000)
        slab.start = slab.end
        kept.append(view)
    assert all(view == bytes([number]) * 10_000 for number, view in enumerate(kept))


def test_the_same_memory_is_used_again_once_nobody_points_into_it() -> None:
    slab, seen = Slab(), set()
    for _ in range(500):
        view = receive(slab, b"x" * 10_000, 10_000)
        slab.start = slab.end
        seen.add(id(view.obj))
        del view
    assert len(seen) == 1


def test_a_request_that_does_not_fit_moves_with_what_has_arrived_of_it() -> None:
    slab = Slab()
    receive(slab, b"a" * (SLAB_BYTES - 10))
    slab.start = slab.end
    receive(slab, b"bcd")
    whole = 3 * SLAB_BYTES
    view = receive(slab, b"e" * (whole - 3), whole)
    assert view == b"bcd" + b"e" * (whole - 3)
    assert slab.start == 0


def test_several_slabs_take_turns_while_requests_are_unanswered() -> None:
    slab, seen, unanswered = Slab(), set(), []
    for number in range(1000):
        view = receive(slab, number.to_bytes(2, "big") * 5_000, 10_000)
        slab.start = slab.end
        seen.add(id(view.obj))
        unanswered.append((number, view))
        if len(unanswered) > 32:
            first, oldest = unanswered.pop(0)
            assert oldest == first.to_bytes(2, "big") * 5_000
            del oldest
    assert len(seen) <= 4
