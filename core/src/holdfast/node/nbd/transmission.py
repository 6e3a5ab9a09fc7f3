"""NBD transmission as a machine: the client's bytes become requests, replies become bytes.

One machine per client connection. `parse` turns whatever has arrived into one list of requests, whose
payloads are views into the receive buffer; `answer` turns a list of replies into one list of buffers to
write, payloads untouched. What the protocol or the volume forbids is answered here, so that a session
only ever sees requests that it may carry out. The machine refuses to know sockets and buffers' owners.

This is the hot path: reads and writes in order, and answers to writes, take the short way through the
loops of `plain.py`; everything else goes through `_take_rare` and the loop of `answer`.
"""

from __future__ import annotations

from collections.abc import Sequence

import attrs

from holdfast.errors import RemoteProtocolError
from holdfast.messages import (
    Payload,
    Reply,
    Request,
    RequestFlag,
    RequestKind,
    unpack_extents,
)
from holdfast.node.nbd.plain import FULL, RARE, answer_writes, take_requests
from holdfast.node.nbd.protocol import (
    BASE_ALLOCATION_ID,
    CHUNK,
    DESCRIPTOR,
    ERROR_CHUNK,
    NBD_REQUEST_MAGIC,
    NBD_SIMPLE_REPLY_MAGIC,
    NBD_STRUCTURED_REPLY_MAGIC,
    OFFSET_DATA,
    REQUEST,
    SIMPLE_REPLY,
    Command,
    CommandFlag,
    Errno,
    ReplyFlag,
    ReplyType,
    State,
)
from holdfast.units import REQUEST_BYTES_MAX, SECTOR_BYTES

_HEADER_BYTES = REQUEST.size
_MISALIGNED = SECTOR_BYTES - 1
_ID_BITS = 40
_ID_SPAN = 1 << _ID_BITS
_READ = int(Command.READ)
_WRITE = int(Command.WRITE)
assert int(RequestFlag.NO_HOLE) == int(CommandFlag.NO_HOLE), (
    "`_submit_range` passes the bit on as it is"
)
_FUA = int(CommandFlag.FUA)
_FLAGS_ALLOWED = {
    Command.READ: _FUA | int(CommandFlag.DF),
    Command.WRITE: _FUA,
    Command.DISC: _FUA,
    Command.FLUSH: _FUA,
    Command.TRIM: _FUA,
    Command.CACHE: _FUA,
    Command.WRITE_ZEROES: int(CommandFlag.FUA | CommandFlag.NO_HOLE | CommandFlag.FAST_ZERO),
    Command.BLOCK_STATUS: _FUA | int(CommandFlag.REQ_ONE),
}
"""The specification lets FUA stand on every command, and it means something on the writing ones.
Numbers, because the complement of an `IntFlag` has only bits that have names."""
_WRITING = frozenset({Command.WRITE, Command.TRIM, Command.WRITE_ZEROES})
_RANGES = {Command.TRIM: RequestKind.DISCARD, Command.WRITE_ZEROES: RequestKind.ZERO}
_SENTENCES = {
    Errno.EPERM: "The volume is read-only.",
    Errno.EIO: "The volume could not carry out the request.",
    Errno.ENOMEM: "The node is out of memory.",
    Errno.EINVAL: "The volume cannot take this request.",
    Errno.ENOSPC: "There is no space for this write.",
    Errno.EOVERFLOW: "The value is too large.",
    Errno.ENOTSUP: "The volume does not support this request.",
    Errno.ESHUTDOWN: "The node is shutting down.",
}
_ERRNOS_ALIKE = {30: Errno.EPERM, 122: Errno.ENOSPC, 27: Errno.ENOSPC}
"""EROFS, EDQUOT and EFBIG have no number of their own in the protocol."""


@attrs.define
class _Parts:
    """One client request that became several; answered when the last part is."""

    left: int
    error: int = 0


@attrs.define
class Transmission:
    """One client connection, from the choice of an export to the end."""

    number: int
    """Of this connection among those of one session; part of every request id."""
    size_bytes: int
    writable: bool
    """False answers every write with EPERM; may change at any time, as may the size."""
    structured: bool
    base_allocation: bool
    inflight_bytes_max: int
    """Reads and writes of more bytes than this are not taken at once, but one always is."""
    inflight_requests_max: int
    requests: list[Request] = attrs.field(factory=list)
    """What `parse` found; the caller takes the list away."""
    output: list[Payload] = attrs.field(factory=list)
    """What is to be sent; the caller takes the list away."""
    wanted: int = _HEADER_BYTES
    """Bytes that the request at the position where `parse` stopped takes in all."""
    is_full: bool = False
    """`parse` stopped at a limit; call it again after answers."""
    is_leaving: bool = False
    """The client said goodbye; hang up once `is_idle`."""
    read_bytes: int = 0
    """Counters, since the beginning."""
    written_bytes: int = 0
    requests_taken: int = 0
    errors_sent: int = 0
    _next_id: int = attrs.field(init=False)
    _pending: dict[int, tuple[int, int, int, int]] = attrs.field(factory=dict)
    """Request id to (cookie, command, offset, length)."""
    _one_extent: set[int] = attrs.field(factory=set)
    """Ids of block status requests with REQ_ONE."""
    _parts: dict[int, _Parts] = attrs.field(factory=dict)
    _inflight_bytes: int = 0
    _skip: int = 0
    """Bytes still to come of a write that was refused."""
    _skip_refusal: tuple[int, Errno, str] = (0, Errno.EIO, "")

    def __attrs_post_init__(self) -> None:
        """Begin the ids of this connection."""
        self._next_id = self.number << _ID_BITS

    @staticmethod
    def number_of(request_id: int) -> int:
        """Return the number of the connection that a request id belongs to."""
        return request_id >> _ID_BITS

    @property
    def is_idle(self) -> bool:
        """Whether every request has been answered."""
        return not self._pending

    @property
    def has_room(self) -> bool:
        """Whether another request may be taken."""
        return (
            self._inflight_bytes < self.inflight_bytes_max
            and len(self._pending) < self.inflight_requests_max
        )

    # --- requests --------------------------------------------------------------------------

    def parse(self, view: memoryview, position: int, end: int) -> int:
        """Take the whole requests in `view[position:end]` and return where the next one begins.

        Fills `requests` and, with what is answered at once, `output`. Payloads are slices of `view`.

        Raises:
            RemoteProtocolError: The client sent something that is no request; hang up.
        """
        requests, pending = self.requests, self._pending
        taken_before = len(requests)
        self.wanted = _HEADER_BYTES
        self.is_full = False
        if self._skip:
            position = self._skip_refused(position, end)
        while not self.is_leaving:
            stop, self.wanted, self._next_id, self._inflight_bytes, written, position = (
                take_requests(
                    view,
                    position,
                    end,
                    self._next_id,
                    self.inflight_requests_max - len(pending),
                    self._inflight_bytes,
                    self.inflight_bytes_max,
                    self.size_bytes,
                    self.writable,
                    requests,
                    pending,
                )
            )
            self.written_bytes += written
            if stop != RARE:
                self.is_full = stop == FULL
                break
            magic, flags, command, cookie, offset, length = REQUEST.unpack_from(view, position)
            if magic != NBD_REQUEST_MAGIC:
                raise RemoteProtocolError(f"The NBD client sent no request: magic 0x{magic:08x}.")
            position = self._take_rare(command, flags, cookie, offset, length, position, end)
        self.requests_taken += len(requests) - taken_before
        if self._next_id >= (self.number + 1) * _ID_SPAN:
            # Ids wrap long after the last request with the same one was answered.
            self._next_id = self.number << _ID_BITS
        return position

    def _take_rare(
        self,
        command: int,
        flags: int,
        cookie: int,
        offset: int,
        length: int,
        position: int,
        end: int,
    ) -> int:
        """Take one request that is not a plain read or write and return where the next begins."""
        position += _HEADER_BYTES
        refusal = self._refusal(command, flags, offset, length)
        if refusal is not None:
            if command == Command.WRITE:
                # Its payload comes all the same, and libnbd takes no answer before it is sent.
                self._skip = length
                self._skip_refusal = (cookie, *refusal)
                return self._skip_refused(position, end)
            self._refuse(cookie, *refusal)
            return position
        match command:
            case Command.READ:
                self._submit(cookie, command, (RequestKind.READ, 0, offset, length))
                self._inflight_bytes += length
            case Command.FLUSH:
                self._submit(cookie, command, (RequestKind.FLUSH, 0, 0, 0))
            case Command.TRIM | Command.WRITE_ZEROES:
                self._submit_range(cookie, Command(command), flags, offset, length)
            case Command.BLOCK_STATUS:
                length = min(length, REQUEST_BYTES_MAX)  # An answer may cover less.
                number = self._submit(cookie, command, (RequestKind.EXTENTS, 0, offset, length))
                if flags & CommandFlag.REQ_ONE:
                    self._one_extent.add(number)
            case Command.CACHE:
                self._acknowledge(cookie)  # Copies are local files; the page cache is theirs.
            case _:
                assert command == Command.DISC
                self.is_leaving = True
        return position

    def _refusal(
        self, command: int, flags: int, offset: int, length: int
    ) -> tuple[Errno, str] | None:
        """Return why a request may not be carried out, or None."""
        if command not in _FLAGS_ALLOWED:
            return Errno.EINVAL, f"Command {command} is unknown here."
        if command == Command.DISC:
            return None  # Whatever it says beside it, the client leaves.
        if flags & ~_FLAGS_ALLOWED[Command(command)]:
            return Errno.EINVAL, f"Flags 0x{flags:x} do not go with {Command(command).name}."
        if flags & CommandFlag.DF and not self.structured:
            return Errno.EINVAL, "DF needs structured replies."
        if command == Command.BLOCK_STATUS and not self.base_allocation:
            return Errno.EINVAL, "No meta context was selected."
        if command in _WRITING and not self.writable:
            return Errno.EPERM, _SENTENCES[Errno.EPERM]
        if command == Command.FLUSH:
            return (Errno.EINVAL, "FLUSH takes no range.") if offset or length else None
        if not length:
            return Errno.EINVAL, "The length is 0."
        if (offset | length) & _MISALIGNED:
            return Errno.EINVAL, f"Offset and length must be multiples of {SECTOR_BYTES}."
        if command in {Command.READ, Command.WRITE} and length > REQUEST_BYTES_MAX:
            return Errno.EINVAL, f"{Command(command).name} takes at most {REQUEST_BYTES_MAX} bytes."
        if offset + length > self.size_bytes:
            grows = command in {Command.WRITE, Command.WRITE_ZEROES}
            error = Errno.ENOSPC if grows else Errno.EINVAL
            return error, f"The volume ends at byte {self.size_bytes}."
        return None

    def _submit(self, cookie: int, command: int, request: tuple[int, int, int, int]) -> int:
        number = self._next_id
        self._next_id = number + 1
        kind, flags, offset, length = request
        self.requests.append(Request(number, kind, flags, offset, length))
        self._pending[number] = (cookie, command, offset, length)
        return number

    def _submit_range(
        self, cookie: int, command: Command, flags: int, offset: int, length: int
    ) -> None:
        """Submit a trim or a write of zeros, which may be 4 GiB long, in parts."""
        kind = _RANGES[command]
        kept = flags & (CommandFlag.FUA | CommandFlag.NO_HOLE)
        count = -(-length // REQUEST_BYTES_MAX)
        parts = _Parts(left=count)
        end = offset + length
        while offset < end:
            part = min(REQUEST_BYTES_MAX, end - offset)
            number = self._submit(cookie, command, (kind, kept, offset, part))
            if count > 1:
                self._parts[number] = parts
            offset += part

    def _skip_refused(self, position: int, end: int) -> int:
        """Pass over the payload of a refused write; answer when it is behind."""
        skipped = min(self._skip, end - position)
        self._skip -= skipped
        if not self._skip:
            self._refuse(*self._skip_refusal)
        return position + skipped

    # --- replies ---------------------------------------------------------------------------

    def answer(self, replies: Sequence[Reply]) -> None:
        """Append the bytes that answer `replies` to `output`; ids of nobody are passed over."""
        output, pending = self.output, self._pending
        answers, inflight, done = answer_writes(replies, pending)
        if done:
            output.append(answers)
        pop, structured = pending.pop, self.structured
        read_bytes = 0
        for number, error, data in replies[done:]:
            entry = pop(number, None)
            if entry is None:
                continue
            cookie, command, offset, length = entry
            if command > _WRITE:
                self._answer_rare(number, error, data, entry)
                continue
            inflight += length
            if error:
                self._fail(cookie, error)
            elif command == _WRITE:
                output.append(SIMPLE_REPLY.pack(NBD_SIMPLE_REPLY_MAGIC, 0, cookie))
            else:
                assert len(data) == length, "a read is answered with as many bytes as it asked for"
                read_bytes += length
                if structured:
                    head = OFFSET_DATA.pack(
                        NBD_STRUCTURED_REPLY_MAGIC, 1, 1, cookie, 8 + length, offset
                    )
                else:
                    head = SIMPLE_REPLY.pack(NBD_SIMPLE_REPLY_MAGIC, 0, cookie)
                output += (head, data)
        self._inflight_bytes -= inflight
        self.read_bytes += read_bytes

    def _answer_rare(
        self, number: int, error: int, data: Payload, entry: tuple[int, int, int, int]
    ) -> None:
        cookie, command, _, length = entry
        one = number in self._one_extent
        self._one_extent.discard(number)
        parts = self._parts.pop(number, None)
        if parts is not None:
            parts.left -= 1
            parts.error = error = parts.error or error
            if parts.left:
                return
        if error:
            self._fail(cookie, error)
        elif command == Command.BLOCK_STATUS:
            self._send_block_status(cookie, data, length, one=one)
        else:
            self._acknowledge(cookie)

    def _send_block_status(self, cookie: int, data: Payload, length: int, *, one: bool) -> None:
        descriptors: list[bytes] = []
        left = length
        for extent_bytes, is_hole in unpack_extents(data):
            taken = min(extent_bytes, left)
            state = State.HOLE | State.ZERO if is_hole else State.DATA
            descriptors.append(DESCRIPTOR.pack(taken, state))
            left -= taken
            if one or not left:
                break
        if not descriptors:
            self._fail(cookie, Errno.EIO)
            return
        payload = BASE_ALLOCATION_ID.to_bytes(4, "big") + b"".join(descriptors)
        head = CHUNK.pack(
            NBD_STRUCTURED_REPLY_MAGIC,
            ReplyFlag.DONE,
            ReplyType.BLOCK_STATUS,
            cookie,
            len(payload),
        )
        self.output.append(head + payload)

    def _acknowledge(self, cookie: int) -> None:
        self.output.append(SIMPLE_REPLY.pack(NBD_SIMPLE_REPLY_MAGIC, 0, cookie))

    def _fail(self, cookie: int, error: int) -> None:
        """Answer with the errno of a session, in the words of the protocol."""
        known = Errno(error) if error in _SENTENCES else _ERRNOS_ALIKE.get(error, Errno.EIO)
        self._refuse(cookie, known, _SENTENCES[known])

    def _refuse(self, cookie: int, error: Errno, sentence: str) -> None:
        self.errors_sent += 1
        if not self.structured:
            self.output.append(SIMPLE_REPLY.pack(NBD_SIMPLE_REPLY_MAGIC, error, cookie))
            return
        text = sentence.encode()
        head = ERROR_CHUNK.pack(
            NBD_STRUCTURED_REPLY_MAGIC,
            ReplyFlag.DONE,
            ReplyType.ERROR,
            cookie,
            6 + len(text),
            error,
            len(text),
        )
        self.output.append(head + text)


assert (ReplyFlag.DONE, ReplyType.OFFSET_DATA) == (1, 1), "`answer` writes them as numbers"
