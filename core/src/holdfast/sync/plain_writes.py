"""The writes that come by the thousand: within the volume, and with nothing asked for besides.

`primary.py` says what becomes of all others. This loop runs once for every write, so it may be
compiled.
"""

from __future__ import annotations

from collections.abc import Sequence

from holdfast.compiled import compiled
from holdfast.messages import Op, OpKind, Reply, Request, RequestKind
from holdfast.sync.refusing import MISALIGNED
from holdfast.units import REQUEST_BYTES_MAX

_WRITE = int(RequestKind.WRITE)
_OP_WRITE = int(OpKind.WRITE)
_new = tuple.__new__  # Half the cost of calling the named tuple.


@compiled
def plain_writes(
    requests: Sequence[Request], volume_bytes: int
) -> tuple[list[Op], list[Reply], int]:
    """Take the plain writes that `requests` begin with; the first that is none ends them.

    A plain write lies within the volume, keeps the limits and asks for nothing besides.

    Args:
        requests: Of one session, in order.
        volume_bytes: The size of the volume.

    Returns:
        Their operations; the reply to each once it may be given; and their bytes together.
    """
    ops = []
    replies = []
    size_bytes = 0
    for request_id, kind, flags, offset, length, data in requests:
        if (
            kind != _WRITE
            or flags
            or (offset | length) & MISALIGNED
            or not 0 < length <= REQUEST_BYTES_MAX
            or offset + length > volume_bytes
        ):
            break
        ops.append(_new(Op, (_OP_WRITE, offset, length, data)))
        replies.append(_new(Reply, (request_id, 0, b"")))
        size_bytes += length
    return ops, replies, size_bytes
