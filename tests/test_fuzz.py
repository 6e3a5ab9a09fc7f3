"""Every decoder against every truncation and many flipped bits of what it should read.

The long form is `make fuzz`; `tests/fuzz` says what a target is.
"""

from __future__ import annotations

import random
import resource

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.fuzz.__main__ import mutated
from tests.fuzz.targets import CORPUS, TARGETS, inputs

from holdfast.interfaces.copy import Superblock
from holdfast.local.copy.superblock import SLOT_BYTES, decode_slot, encode_slot

PIECES_MAX = 200
"""Truncations, and flipped bits, of one input; an input of few bytes has all of them tried."""
KIBIBYTES_MAX = 256 * 1024


@pytest.mark.parametrize("name", TARGETS)
def test_a_decoder_answers_damaged_bytes_with_its_own_error(name: str) -> None:
    target, dice = TARGETS[name], random.Random(name)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for path in inputs(name):
        whole = path.read_bytes()
        target(whole)
        for length in some(range(len(whole)), dice):
            target(whole[:length])
        for bit in some(range(8 * len(whole)), dice):
            flipped = bytearray(whole)
            flipped[bit // 8] ^= 1 << bit % 8
            target(bytes(flipped))
        for _ in range(20):
            target(mutated(whole, dice))
    taken = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert taken < KIBIBYTES_MAX, f"{taken} KiB for a few bytes"


def some(numbers: range, dice: random.Random) -> list[int]:
    most = PIECES_MAX if len(numbers) < 20_000 else PIECES_MAX // 4
    return list(numbers) if len(numbers) <= most else sorted(dice.sample(numbers, most))


def test_every_target_has_a_corpus_and_none_is_left_over() -> None:
    assert {path.name for path in CORPUS.iterdir()} == TARGETS.keys()
    assert all(inputs(name) for name in TARGETS)


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
NUMBER = st.integers(0, 2**63)


@settings(max_examples=200, deadline=None)
@given(
    superblock=st.builds(
        Superblock,
        cluster=TEXT,
        volume=TEXT,
        copy=TEXT,
        incarnation=TEXT,
        boot=TEXT,
        epoch=NUMBER,
        state=TEXT,
        durable=NUMBER,
        applied=NUMBER,
        clean=st.booleans(),
        size_bytes=NUMBER,
        hash_key=TEXT,
        generation=NUMBER,
    ),
    bit=st.integers(0, 8 * SLOT_BYTES - 1),
)
def test_a_superblock_is_read_as_it_was_written_and_any_flipped_bit_shows(
    superblock: Superblock, bit: int
) -> None:
    slot = bytearray(encode_slot(superblock))
    assert decode_slot(bytes(slot)) == superblock
    slot[bit // 8] ^= 1 << bit % 8
    with pytest.raises(ValueError, match=r"^it|^its"):
        decode_slot(bytes(slot))


def test_a_field_of_another_type_is_no_superblock() -> None:
    block = Superblock("c", "v", "k", "i", "b", 1, "s", 2, 3, True, 4, "h", 5)  # type: ignore[arg-type]
    for field, value in (("epoch", "1"), ("clean", 1), ("size_bytes", None), ("boot", 7)):
        with pytest.raises(ValueError, match="not a superblock"):
            decode_slot(encode_slot(attrs.evolve(block, **{field: value})))  # type: ignore[arg-type]
