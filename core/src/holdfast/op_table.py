"""The operations of a batch as a table of fixed entries, with their payloads beside it.

What a transport that sends bytes puts in front of the payloads, and what it finds there again. It
knows neither frames nor checksums; a table from outside may be wrong in any way, and is refused.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Final

from holdfast.compiled import compiled
from holdfast.messages import Op, OpKind, Payload

OP_ENTRY: Final = struct.Struct(">BQQ")
"""Kind, offset and length of one operation."""
assert OP_ENTRY.size == 17

_CARRYING: Final = frozenset({int(OpKind.WRITE), int(OpKind.SYNC_WRITE)})
_KINDS: Final = frozenset(map(int, OpKind))
_pack = OP_ENTRY.pack
_new = tuple.__new__  # Half the cost of calling the named tuple.


@compiled
def pack_ops(ops: Sequence[Op]) -> tuple[bytearray, list[Payload], int]:
    """Return the table of `ops`, the payloads of those that carry one, and their bytes together.

    Raises:
        ValueError: An operation is of no kind, does not fit its entry, or holds another number of
            bytes than it says.
    """
    table = bytearray()
    pieces: list[Payload] = []
    size = 0
    try:
        for kind, offset, length, data in ops:
            if kind in _CARRYING:
                if len(data) != length:
                    raise ValueError(f"a write of {length} bytes holds {len(data)}")
                pieces.append(data)
                size += length
            elif data or kind not in _KINDS:
                raise ValueError(f"operation kind {kind} with {len(data)} bytes")
            table += _pack(kind, offset, length)
    except struct.error as error:
        raise ValueError(f"an operation does not fit its entry: {error}") from error
    return table, pieces, size


@compiled
def unpack_ops(table: memoryview, data: memoryview) -> list[Op]:
    """Return the operations of a table, their payloads as slices of `data`.

    Args:
        table: A whole number of entries.
        data: The payloads, one behind the other.

    Raises:
        ValueError: An operation is of no kind, or the payloads are not what the table says.
    """
    if len(table) % OP_ENTRY.size:
        raise ValueError(f"a table of {len(table)} bytes")
    ops = []
    at, size = 0, len(data)
    for kind, offset, length in OP_ENTRY.iter_unpack(table):
        if kind in _CARRYING:
            end = at + length
            if end > size:
                raise ValueError(f"operations of {end} bytes and more stand over {size}")
            ops.append(_new(Op, (kind, offset, length, data[at:end])))
            at = end
        elif kind in _KINDS:
            ops.append(_new(Op, (kind, offset, length, b"")))
        else:
            raise ValueError(f"operation kind {kind}")
    if at != size:
        raise ValueError(f"operations of {at} bytes stand over {size}")
    return ops
