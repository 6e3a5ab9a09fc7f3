"""The hash list of one copy and the tree over it: how two copies find their difference.

Sixteen bytes per chunk, keyed with the volume's own key, so that a tenant cannot craft two chunks
that look alike; over them a tree with 256 children per node, so that two equal volumes of any size
are known equal by one comparison, and k differing chunks cost O(k log n).

Zeros stand for zeros all the way up: a chunk of zeros (a hole, a chunk never written) has the hash
`ZERO_HASH`, sixteen zero bytes, and so has a node that has only such below it. The list of a sparse
volume is therefore itself sparse, and whatever lies beyond the end counts as zeros: copies of
different size (a resize under way) have comparable trees.

Knows neither files nor the data: the bytes of the list live in a buffer that the owner injects, and
the owner computes what is stale (`chunk_hash`) and puts it here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final, Protocol

from blake3 import blake3

from holdfast.errors import UsageError
from holdfast.sync.bitmap import Bitmap, consecutive
from holdfast.units import CHUNK_BYTES

HASH_BYTES: Final = 16
"""128 bits: with a secret key, two differing chunks among 2**32 look alike once in 2**64 volumes."""
FANOUT: Final = 256
"""A node's children fill one page of the list's file: 4 KiB."""
LEVEL_MAX: Final = 4
"""256**4 chunks are 256 TiB, more than a volume may have; levels up to this one always answer."""
KEY_BYTES: Final = 32
ZERO_HASH: Final = bytes(HASH_BYTES)
"""The hash of a chunk of zeros and of a node above only such chunks."""

_FANOUT_BITS: Final = 8
_ZERO_CHUNK: Final = bytes(CHUNK_BYTES)
_NODE_BYTES: Final = FANOUT * HASH_BYTES
_ZERO_NODE: Final = bytes(_NODE_BYTES)
assert 1 << _FANOUT_BITS == FANOUT


class HashBuffer(Protocol):
    """Where the bytes of a hash list live: a bytearray, an mmap, or a file behind the same face.

    Only slices without a step, within the length and without a change of length, are used.
    """

    def __len__(self) -> int:
        """Return the number of bytes."""
        ...

    def __getitem__(self, where: slice, /) -> bytes | bytearray:
        """Return the bytes of a slice."""
        ...

    def __setitem__(self, where: slice, value: bytes, /) -> None:
        """Put bytes in place of a slice of the same length."""
        ...


def parse_key(text: str) -> bytes:
    """Return the key that 64 hexadecimal digits name; raises `UsageError` for anything else."""
    try:
        key = bytes.fromhex(text)
    except ValueError:
        key = b""
    if len(key) != KEY_BYTES:
        raise UsageError("A hash key is 64 hexadecimal digits; this one is not.")
    return key


def chunk_hash(data: bytes | bytearray | memoryview, key: bytes) -> bytes:
    """Return the 16 bytes that stand for a chunk.

    Args:
        data: The chunk's bytes. A short last chunk is hashed as if padded with zeros, so that its
            hash stays right when the volume grows.
        key: The volume's key, 32 bytes.
    """
    short = CHUNK_BYTES - len(data)
    assert 0 <= short < CHUNK_BYTES
    if short:
        data = bytes(data) + bytes(short)
    # memcmp ends at the first byte that is not zero, so only real zeros pay for this comparison
    # (3 us, less than the 11 us of the hash that they save).
    if data == _ZERO_CHUNK:
        return ZERO_HASH
    return blake3(data, key=key).digest(HASH_BYTES)


def node_hash(children: bytes | bytearray, key: bytes) -> bytes:
    """Return the 16 bytes that stand for a node, from its children's; missing ones count as zero."""
    if len(children) < _NODE_BYTES:
        children = bytes(children) + bytes(_NODE_BYTES - len(children))
    if children == _ZERO_NODE:
        return ZERO_HASH
    return blake3(children, key=key).digest(HASH_BYTES)


def nodes_at(level: int, chunks: int) -> int:
    """Return how many nodes a tree over `chunks` chunks has at `level`; level 0 is the chunks."""
    return -(-chunks // (1 << (_FANOUT_BITS * level)))


def top_level(chunks: int) -> int:
    """Return the lowest level that has a single node: where a comparison begins."""
    level = 0
    while nodes_at(level, chunks) > 1:
        level += 1
    return level


class HashList:
    """The hashes of `chunks` chunks, which of them are stale, and the tree, computed when asked for.

    Beside the injected buffer it takes 1/256 of the buffer's size for the tree, from the first
    question about the tree on. Not safe for use from several threads at once.
    """

    __slots__ = ("_buffer", "_chunks", "_key", "_nodes", "_valid", "stale")

    def __init__(self, buffer: HashBuffer, stale: Bitmap, *, chunks: int, key: bytes) -> None:
        """Take over a list as it is.

        Args:
            buffer: At least 16 bytes per chunk.
            stale: A bit per chunk, set where the hash in `buffer` may be another than the chunk's.
            chunks: Number of chunks.
            key: The volume's key, 32 bytes.
        """
        assert len(key) == KEY_BYTES
        assert len(buffer) >= chunks * HASH_BYTES
        assert len(stale) == chunks
        self.stale = stale
        self._buffer = buffer
        self._chunks = chunks
        self._key = key
        # By level; [0] is never used. Invariant: a node that is not valid has no valid ancestor.
        self._nodes: list[bytearray] = []
        self._valid: list[Bitmap] = []

    @property
    def chunks(self) -> int:
        """Number of chunks."""
        return self._chunks

    @property
    def key(self) -> bytes:
        """The volume's key."""
        return self._key

    def put(self, chunk: int, value: bytes) -> None:
        """Set the hash of a chunk, which is no longer stale."""
        self.put_run(chunk, value)

    def put_run(self, first: int, values: bytes) -> None:
        """Set the hashes of consecutive chunks, which are no longer stale.

        Writes nothing where the value stays, so that holes in a sparse buffer stay holes.
        """
        count = len(values) // HASH_BYTES
        where = slice(first * HASH_BYTES, (first + count) * HASH_BYTES)
        old = self._buffer[where]
        if old != values:
            self._buffer[where] = values
            for index in range(first, first + count):
                at = (index - first) * HASH_BYTES
                if old[at : at + HASH_BYTES] != values[at : at + HASH_BYTES]:
                    self._invalidate(index)
        self.stale.clear(first, count)

    def get(self, chunks: Iterable[int]) -> bytes:
        """Return the kept hashes of `chunks`, stale or not, 16 bytes each, in their order.

        Chunks beyond the end have the hash of zeros.
        """
        parts = []
        for first, count in consecutive(chunks):
            inside = min(count, max(0, self._chunks - first))
            if inside:
                parts.append(
                    bytes(self._buffer[first * HASH_BYTES : (first + inside) * HASH_BYTES])
                )
            parts.append(ZERO_HASH * (count - inside))
        return b"".join(parts)

    def nodes(self, level: int, indexes: Iterable[int]) -> bytes:
        """Return 16 bytes for each node, as of the kept hashes; level 0 is `get`.

        Nodes beyond the end, and levels above the top one, count the missing as zeros.
        """
        assert 0 <= level <= LEVEL_MAX, level
        if level == 0:
            return self.get(indexes)
        if not self._nodes:
            self._make_tree()
        return b"".join(self._node(level, index) for index in indexes)

    def stale_below(self, level: int, index: int) -> Iterator[tuple[int, int]]:
        """Return runs (first, count) of stale chunks below a node; put what they should be."""
        width = 1 << (_FANOUT_BITS * level)
        return self.stale.runs(index * width, min((index + 1) * width, self._chunks))

    def resize(self, buffer: HashBuffer, chunks: int) -> None:
        """Go on with a grown buffer; new chunks are zeros. `stale` grows with it."""
        assert chunks >= self._chunks
        assert len(buffer) >= chunks * HASH_BYTES
        self._buffer = buffer
        self._chunks = chunks
        self.stale.resize(chunks)
        if not self._nodes:
            return
        for level in range(1, LEVEL_MAX + 1):
            count = nodes_at(level, chunks)
            before = len(self._valid[level])
            self._nodes[level].extend(bytes(count * HASH_BYTES - len(self._nodes[level])))
            # A new node has only zeros below, which is what it holds; what was the last node
            # counted the missing as zeros. So all that was right is right, and ancestors hold.
            self._valid[level].resize(count)
            self._valid[level].set_range(before, count - before)

    def forget_tree(self) -> None:
        """Drop the tree; it is computed anew when asked for. For when the buffer was replaced."""
        self._nodes, self._valid = [], []

    def _make_tree(self) -> None:
        counts = [0] + [nodes_at(level, self._chunks) for level in range(1, LEVEL_MAX + 1)]
        self._nodes = [bytearray(count * HASH_BYTES) for count in counts]
        self._valid = [Bitmap(count) for count in counts]

    def _invalidate(self, chunk: int) -> None:
        index = chunk
        for valid in self._valid[1:]:
            index >>= _FANOUT_BITS
            if not valid.test(index):
                return
            valid.clear(index)

    def _node(self, level: int, index: int) -> bytes:
        valid = self._valid[level]
        if index >= len(valid):
            return ZERO_HASH
        where = slice(index * HASH_BYTES, (index + 1) * HASH_BYTES)
        if valid.test(index):
            return bytes(self._nodes[level][where])
        below = slice(index * _NODE_BYTES, (index + 1) * _NODE_BYTES)
        if level == 1:
            end = min(below.stop, self._chunks * HASH_BYTES)
            value = node_hash(self._buffer[below.start : end], self._key)
        else:
            children = self._valid[level - 1]
            stop = min((index + 1) * FANOUT, len(children))
            child = children.next_clear(index * FANOUT, stop)
            while child < stop:
                self._node(level - 1, child)
                child = children.next_clear(child + 1, stop)
            value = node_hash(self._nodes[level - 1][below], self._key)
        self._nodes[level][where] = value
        valid.set_range(index)
        return value
