from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from holdfast.sync.bitmap import Bitmap

_SIZES = st.one_of(st.integers(0, 200), st.integers(30_000, 140_000))


class BitmapAgainstSet(RuleBasedStateMachine):
    """A bitmap does what a set of integers does."""

    def __init__(self) -> None:
        super().__init__()
        self.bits = Bitmap(0)
        self.model: set[int] = set()

    @initialize(size=_SIZES)
    def _make(self, size: int) -> None:
        self.bits = Bitmap(size)

    def _range(self, data: st.DataObject) -> tuple[int, int]:
        start = data.draw(st.integers(0, len(self.bits)))
        return start, data.draw(
            st.one_of(
                st.integers(0, min(20, len(self.bits) - start)),
                st.integers(0, len(self.bits) - start),
            )
        )

    @rule(data=st.data())
    def _set_range(self, data: st.DataObject) -> None:
        start, length = self._range(data)
        self.bits.set_range(start, length)
        self.model |= set(range(start, start + length))

    @rule(data=st.data())
    def _clear(self, data: st.DataObject) -> None:
        start, length = self._range(data)
        self.bits.clear(start, length)
        self.model -= set(range(start, start + length))

    @rule(size=_SIZES)
    def _resize(self, size: int) -> None:
        self.bits.resize(size)
        self.model = {i for i in self.model if i < size}

    @rule(data=st.data())
    def _combine(self, data: st.DataObject) -> None:
        start, length = self._range(data)
        other = Bitmap(len(self.bits))
        other.set_range(start, length)
        if data.draw(st.booleans()):
            self.bits.union(other)
            self.model |= set(range(start, start + length))
        else:
            self.bits.subtract(other)
            self.model -= set(range(start, start + length))

    @rule(data=st.data())
    def _ask(self, data: st.DataObject) -> None:
        start, length = self._range(data)
        stop = start + length
        window = {i for i in self.model if start <= i < stop}
        assert self.bits.count(start, stop) == len(window)
        assert self.bits.any(start, stop) == bool(window)
        assert self.bits.next_set(start, stop) == (min(window) if window else None)
        free = next((i for i in range(start, stop) if i not in window), stop)
        assert self.bits.next_clear(start, stop) == free
        told = [i for first, n in self.bits.runs(start, stop) for i in range(first, first + n)]
        assert told == sorted(window)
        if start < len(self.bits):
            assert self.bits.test(start) == (start in self.model)

    @rule()
    def _there_and_back(self) -> None:
        raw = self.bits.to_bytes()
        assert Bitmap.from_bytes(raw, len(self.bits)) == self.bits == self.bits.copy()

    @invariant()
    def _same(self) -> None:
        assert self.bits.count() == len(self.model)
        assert list(self.bits) == sorted(self.model)
        assert int.from_bytes(self.bits.to_bytes(), "little").bit_count() == len(self.model)


TestBitmapAgainstSet = BitmapAgainstSet.TestCase


@given(st.sets(st.integers(0, 5000)), st.integers(1, 9))
def test_runs_are_maximal_unless_cut_at_the_longest_allowed(
    members: set[int], longest: int
) -> None:
    bits = Bitmap(5001)
    for index in members:
        bits.set_range(index)
    whole = list(bits.runs())
    assert all(a + n < b for (a, n), (b, _) in itertools.pairwise(whole))
    pieces = list(bits.runs(longest=longest))
    assert all(n <= longest for _, n in pieces)
    assert sum(n for _, n in pieces) == sum(n for _, n in whole) == len(members)


def test_bits_are_little_endian() -> None:
    bits = Bitmap(12)
    bits.set_range(0)
    bits.set_range(9)
    assert bits.to_bytes() == b"\x01\x02"


def test_from_bytes_forgets_bits_beyond_and_fills_up_what_is_missing() -> None:
    assert Bitmap.from_bytes(b"\xff\xff", 3).to_bytes() == b"\x07"
    assert Bitmap.from_bytes(b"\xff", 20).to_bytes() == b"\xff\0\0"


def test_union_takes_a_shorter_map() -> None:
    long, short = Bitmap(100), Bitmap(10)
    long.set_range(50)
    short.set_range(3)
    long.union(short)
    assert list(long) == [3, 50]


def test_runs_may_be_cleared_while_they_are_told() -> None:
    bits = Bitmap(1000)
    bits.set_range(10, 5)
    bits.set_range(700, 100)
    for first, length in bits.runs():
        bits.clear(first, length)
    assert not bits.any()


def test_a_terabyte_of_chunks_is_crossed_without_a_loop_per_bit() -> None:
    bits = Bitmap(1 << 24)
    bits.set_range((1 << 24) - 1)
    bits.set_range(1 << 20, 1 << 20)
    assert list(bits.runs()) == [(1 << 20, 1 << 20), ((1 << 24) - 1, 1)]
    assert bits.count() == (1 << 20) + 1
