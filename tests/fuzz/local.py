"""Targets for what is read from disk, from the state store, and from a person: files and the control API."""

from __future__ import annotations

import asyncio
import atexit
import os
import tempfile
import zlib
from pathlib import Path
from typing import Any

import anyio
from core.tests.fake_node import FakeService

from holdfast.errors import ConfigError, CopyError, DriverError, HoldfastError, IntegrityError
from holdfast.kernel.config import config_from_text, provenance
from holdfast.local.copy.bitmap_file import BitmapFile
from holdfast.local.copy.dirty import DirtyMaps
from holdfast.local.copy.hash_file import DamagedHashesError, HashFile
from holdfast.local.copy.superblock import SLOT_BYTES, SuperblockFile
from holdfast.model import GroupRecord, NodeRecord, VolumeSpec
from holdfast.node.control import control_app
from holdfast.node.control_client import _parse
from holdfast.node.control_errors import from_json
from holdfast.sync.hashlist import HASH_BYTES
from holdfast.units import MIB, CopyId

_BITS = 10_000
_SIZE = 64 * MIB


class _Scratch:
    """A folder for the files of one process, in memory where that is possible."""

    def __init__(self) -> None:
        place = "/dev/shm" if Path("/dev/shm").is_dir() else None  # noqa: S108
        self._folder = tempfile.TemporaryDirectory(dir=place)
        self.path = Path(self._folder.name)
        atexit.register(self._folder.cleanup)

    def file(self, name: str, data: bytes) -> Path:
        """Return a file of this content."""
        path = self.path / name
        path.write_bytes(data)
        return path


_scratch = _Scratch()


def superblock(data: bytes) -> None:
    """A file `superblock` as it is."""
    path = _scratch.file("superblock", data)
    fd = os.open(path, os.O_RDWR)
    try:
        SuperblockFile.open(fd, path)
    except CopyError:
        return
    finally:
        os.close(fd)


def superblock_payload(data: bytes) -> None:
    """A slot whose checksum is right; what counts is that its fields are what they must be."""
    payload = data[: SLOT_BYTES - 28]
    head = b"HFCOPYSB" + (2).to_bytes(4, "little") + bytes(4) + (1).to_bytes(8, "little")
    slot = bytearray((head + len(payload).to_bytes(4, "little") + payload).ljust(SLOT_BYTES, b"\0"))
    slot[12:16] = zlib.crc32(slot).to_bytes(4, "little")
    superblock(bytes(slot))


def intent(data: bytes) -> None:
    """A map of bits; whatever it is, it opens, with more bits set rather than fewer."""
    path = _scratch.file("intent", data)
    fd = os.open(path, os.O_RDWR)
    try:
        opened, damage = BitmapFile.open(fd, path, _BITS, "fuzz")
        assert len(opened.bits) == _BITS
        assert damage or len(data) >= 512
    finally:
        os.close(fd)


def hashes(data: bytes) -> None:
    """A list of hashes; damaged sectors are told once each, and then read as zeros."""
    path = _scratch.file("hashes", data)
    fd = os.open(path, os.O_RDWR)
    chunks = 200
    try:
        buffer = HashFile(fd, chunks, str(path), "fuzz")
        told: list[int] = []
        while True:
            try:
                found = buffer[0 : chunks * HASH_BYTES]
                break
            except DamagedHashesError as error:
                told.append(error.first)
        assert len(found) == chunks * HASH_BYTES
        assert len(told) == len(set(told))
    finally:
        os.close(fd)


def dirty(data: bytes) -> None:
    """A dirty map; the first byte says whether its checksum is made right."""
    folder = _scratch.path / "dirty"
    folder.mkdir(exist_ok=True)
    if data[:1] == b"+":
        data = b"HFDIRTY1" + zlib.crc32(data[1:]).to_bytes(4, "little") + data[1:]
    (folder / ("e" * 32)).write_bytes(data)
    bits = DirtyMaps(folder).load(CopyId("e" * 32), _SIZE)
    assert bits is not None
    assert len(bits) <= 1 << 28


def config(data: bytes) -> None:
    """A configuration file."""
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return
    try:
        provenance(config_from_text(text))
    except (ConfigError, DriverError):
        return


def records(data: bytes) -> None:
    """Values in the state store; the first byte chooses which."""
    kinds: tuple[Any, ...] = (GroupRecord, VolumeSpec, NodeRecord)
    try:
        kinds[data[0] % 3 if data else 0].from_bytes(data[1:]).to_bytes()
    except IntegrityError:
        return


_loop = asyncio.new_event_loop()
atexit.register(_loop.close)
_REQUESTS = (
    ("POST", "/v1/volumes"),
    ("PATCH", "/v1/volumes/v"),
    ("POST", "/v1/node/stop"),
    ("POST", "/v1/node/cordon"),
    ("POST", "/v1/node/drain"),
    ("POST", "/v1/volumes/v/promote"),
    ("POST", "/v1/volumes/v/move"),
    ("POST", "/v1/volumes/v/evict"),
    ("DELETE", "/v1/volumes/v"),
    ("GET", ""),
    ("POST", "/v1/node/labels"),
)


def control(data: bytes) -> None:
    """A request to the control API; the first byte chooses it, the rest is its body, or its path."""
    method, path = _REQUESTS[data[0] % len(_REQUESTS) if data else 0]
    body = data[1:]
    if not path:
        # The HTTP server lets nothing else through.
        path, body = "/" + "".join(chr(byte) for byte in body if 0x21 <= byte <= 0x7E), b""
    status = _loop.run_until_complete(_ask(method, path, body))
    assert status < 500, f"{method} {path} was answered {status}"


async def _ask(method: str, path: str, body: bytes) -> int:
    app = control_app(FakeService(), anyio.Event())
    plain, _, query = path.partition("?")
    scope: dict[str, Any] = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": method,
        "path": plain,
        "raw_path": plain.encode("ascii"),
        "root_path": "",
        "scheme": "http",
        "query_string": query.encode("ascii"),
        "headers": [],
        "server": None,
    }
    parts = [{"type": "http.request", "body": body, "more_body": False}]
    statuses = []

    async def receive() -> Any:
        return parts.pop() if parts else {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            statuses.append(message["status"])

    with anyio.fail_after(10):
        await app(scope, receive, send)
    return int(statuses[0])


def control_answer(data: bytes) -> None:
    """What a node answers to a command line."""
    try:
        item = _parse(data)
        from_json(item)
    except HoldfastError:
        return
