"""The numbers and names that every room shares; knows nothing but arithmetic.

Sizes are in bytes and times in seconds unless a name says otherwise. The figures come from the
design's section 17; each is the default, and what is configurable is configured elsewhere.
"""

from __future__ import annotations

import re
from typing import NewType

NodeName = NewType("NodeName", str)
"""What an operator calls a node: `n1`. Unique in a cluster."""
VolumeId = NewType("VolumeId", str)
"""32 hexadecimal digits, chosen at creation and never reused."""
CopyId = NewType("CopyId", str)
"""32 hexadecimal digits naming one copy of one volume, never reused."""
Epoch = NewType("Epoch", int)
"""Rises with every change of primary or in-sync set; the fencing token. 1 is the first."""
Sequence = NewType("Sequence", int)
"""Position of an operation in a group's ordered stream; 0 means "before the first"."""

SECTOR_BYTES = 512
"""The smallest unit that a consumer may address."""
BLOCK_BYTES = 4096
"""The logical block: the unit of linearizability and of torn-write promises."""
CHUNK_BYTES = 64 * 1024
"""The unit of hashing and resync: 256 MiB of 128-bit hashes per TiB of volume."""
REGION_BYTES = 4 * 1024 * 1024
"""The unit of the write-intent map (DRBD's activity-log extent has the same size)."""
CHUNKS_PER_REGION = REGION_BYTES // CHUNK_BYTES

KIB, MIB, GIB, TIB = 1 << 10, 1 << 20, 1 << 30, 1 << 40

VOLUME_BYTES_MAX = 64 * TIB
"""Keeps chunk numbers within 30 bits and the hash list of one volume within 16 GiB."""
REQUEST_BYTES_MAX = 32 * MIB
"""Largest single read or write of a consumer; what NBD clients expect."""
REPLICAS_MAX = 5
"""StorageOS: "between 0 and 5 replicas"."""

_SIZE = re.compile(r"\s*([0-9]+)(?:\.([0-9]+))?\s*(?:([kmgt])(ib?|b)?|b)?\s*", re.IGNORECASE)
_POWER = {"k": 1, "m": 2, "g": 3, "t": 4}


def parse_size(text: str) -> int:
    """Return the number of bytes that `text` names, such as `1GiB`, `512M`, `4096` or `1.5TB`.

    `GiB`, `Gi` and `G` are powers of 1024, as LVM, QEMU and fio take a bare `G`; `GB` is 10^9 bytes,
    as drives are sold. What is left of a byte is dropped.

    Raises:
        ValueError: The text is not a size; the message says what one looks like.
    """
    match = _SIZE.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is not a size; write for example 512MiB, 1GiB or 2TiB")
    whole, part, unit, after = match.groups(default="")
    base = 1000 if after.lower() == "b" else 1024
    scale: int = base ** _POWER.get(unit.lower(), 0)
    # In whole numbers: a float would make 4.1GB one byte less.
    parts: int = 10 ** len(part)
    return int(whole + part) * scale // parts


def format_size(size_bytes: float) -> str:
    """Return `size_bytes` for people: `1 GiB`, `1.5 MiB`, `512 B`."""
    for scale, unit in ((TIB, "TiB"), (GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB")):
        if abs(size_bytes) >= scale:
            return f"{size_bytes / scale:.2f}".rstrip("0").rstrip(".") + f" {unit}"
    return f"{int(size_bytes)} B"


def nearest_sizes(size_bytes: int, *, multiple: int, least: int, most: int) -> str:
    """Return the possible sizes around one that is not, exactly: `2861MiB or 2862MiB`.

    Args:
        size_bytes: What was wished for.
        multiple: The possible ones are multiples of it, in bytes.
        least: The smallest possible one in bytes, and a multiple.
        most: The largest possible one in bytes, and a multiple.
    """
    below = size_bytes // multiple * multiple
    around = {min(max(each, least), most) for each in (below, below + multiple)}
    return " or ".join(map(_exact, sorted(around)))


def _exact(size_bytes: int) -> str:
    """Return a size as `parse_size` takes it, in the largest unit that it is a multiple of."""
    for scale, unit in ((TIB, "TiB"), (GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB")):
        if size_bytes and size_bytes % scale == 0:
            return f"{size_bytes // scale}{unit}"
    return str(size_bytes)


def chunks_of(size_bytes: int) -> int:
    """Return how many chunks cover `size_bytes`; the last may be short."""
    return -(-size_bytes // CHUNK_BYTES)


def regions_of(size_bytes: int) -> int:
    """Return how many regions cover `size_bytes`; the last may be short."""
    return -(-size_bytes // REGION_BYTES)


def counted(number: int, noun: str) -> str:
    """Return a number with its noun, such as `1 replica` or `2 replicas`."""
    return f"{number} {noun}{'' if number == 1 else 's'}"
