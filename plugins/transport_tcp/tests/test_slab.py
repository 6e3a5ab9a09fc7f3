from __future__ import annotations

from holdfast_transport_tcp.slab import (
    ROOM_BYTES_MIN,
    SHELF_BYTES_MAX,
    SLAB_BYTES_MIN,
    Inbox,
    Shelf,
    is_free,
)


def test_a_slab_is_free_when_the_last_view_of_it_is_gone() -> None:
    slab = bytearray(100)
    view = memoryview(slab).toreadonly()
    part = view[10:20]
    assert not is_free(slab)
    del view
    assert not is_free(slab)
    del part
    assert is_free(slab)
    assert len(slab) == 100


def test_a_shelf_gives_out_only_what_nobody_looks_at() -> None:
    shelf = Shelf()
    slab = bytearray(SLAB_BYTES_MIN)
    view = memoryview(slab)
    shelf.put(slab)
    assert shelf.take(SLAB_BYTES_MIN) is not slab
    del view
    assert shelf.take(SLAB_BYTES_MIN) is slab
    assert shelf.take(SLAB_BYTES_MIN) is not slab


def test_a_shelf_forgets_what_passes_its_limit() -> None:
    shelf = Shelf()
    slabs = [bytearray(SHELF_BYTES_MAX // 4) for _ in range(6)]
    for slab in slabs:
        shelf.put(slab)
    taken = [shelf.take(SHELF_BYTES_MAX // 4) for _ in range(5)]
    assert [any(t is s for t in taken) for s in slabs] == [False, False, True, True, True, True]


def test_an_inbox_that_rests_with_nothing_unread_gives_its_slab_back() -> None:
    shelf = Shelf()
    inbox = Inbox(shelf)
    assert not inbox.slab
    inbox.buffer()
    slab = inbox.slab
    inbox.end = 1000
    inbox.start = 900
    assert [shelf.collect(), shelf.collect()] == [True, True]
    assert inbox.slab is slab, "there are unread bytes in it"
    inbox.start = 1000
    inbox.buffer()
    assert shelf.collect()
    assert inbox.slab is slab, "something has just been received"
    assert not shelf.collect()
    assert not inbox.slab
    assert (inbox.start, inbox.end, inbox.needed) == (0, 0, 0)
    assert Inbox(shelf).buffer().obj is slab


def test_an_inbox_receives_behind_what_is_still_looked_at() -> None:
    inbox = Inbox(Shelf())
    inbox.buffer()[:4] = b"kept"
    view = memoryview(inbox.slab)[:4]
    inbox.start = inbox.end = 4
    inbox.buffer()[:3] = b"new"
    assert bytes(view) == b"kept"
    assert inbox.slab[4:7] == b"new"


def test_an_inbox_turns_to_another_slab_while_the_old_one_is_looked_at() -> None:
    inbox = Inbox(Shelf())
    inbox.buffer()
    old = inbox.slab
    old[:4] = b"keep"
    view = memoryview(old)[:4]
    old[-3:] = b"new"
    inbox.start, inbox.end = len(old) - 3, len(old)
    assert len(inbox.buffer()) >= ROOM_BYTES_MIN
    assert inbox.slab is not old
    assert inbox.slab[:3] == b"new"
    assert bytes(view) == b"keep"


def test_an_inbox_makes_room_for_a_frame_that_is_larger_than_its_slab() -> None:
    inbox = Inbox(Shelf())
    inbox.buffer()
    inbox.slab[100:110] = b"0123456789"
    inbox.start, inbox.end = 100, 110
    inbox.needed = 10 * SLAB_BYTES_MIN
    assert len(inbox.buffer()) >= inbox.needed - 10
    assert inbox.slab[:10] == b"0123456789"
