"""The command line's own NBD client, and import and export through it, over real sockets."""

import contextlib
import errno
import os
import random
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from anyio.from_thread import start_blocking_portal

from holdfast.cli.demo_writer import Writer, record
from holdfast.cli.file_copy import copy_in, copy_out
from holdfast.cli.nbd_client import READ, WRITE, WRITE_ZEROES, NbdClient, Request
from holdfast.cli.volume_data import _told_if_partial
from holdfast.errors import (
    ConflictError,
    HoldfastError,
    NotFoundError,
    RefusedError,
    RemoteProtocolError,
    UnavailableError,
    UsageError,
    VolumeError,
)
from holdfast.messages import RequestKind
from holdfast.model import Access
from holdfast.node.nbd import NbdFrontendDriver, NbdOptions
from holdfast.testing.memory_volume import MemoryVolume, MemoryVolumeProvider
from holdfast.units import CHUNK_BYTES, MIB

SIZE = 8 * MIB


@pytest.fixture
def provider() -> MemoryVolumeProvider:
    return MemoryVolumeProvider()


@pytest.fixture
def volume(provider: MemoryVolumeProvider) -> MemoryVolume:
    return provider.add("v", SIZE)


@pytest.fixture
def uri(volume: MemoryVolume, provider: MemoryVolumeProvider) -> Iterator[str]:
    assert volume.spec.name == "v"
    with start_blocking_portal(backend_options={"use_uvloop": True}) as portal:
        options = NbdOptions(listen="127.0.0.1:0")
        frontend = portal.call(NbdFrontendDriver.open, options, provider)
        yield frontend.uri("v", "127.0.0.1")
        portal.call(frontend.aclose)


@pytest.fixture
def filled(client: NbdClient) -> bytes:
    """What a volume holds that is in use already."""
    client.write(0, b"o" * SIZE)
    return b"o" * SIZE


@pytest.fixture
def client(uri: str) -> Iterator[NbdClient]:
    with NbdClient(uri, timeout_s=10) as client:
        yield client


def test_what_is_written_is_read(client: NbdClient, volume: MemoryVolume) -> None:
    assert client.size_bytes == SIZE
    assert not client.read_only
    client.write(4096, b"x" * 8192, fua=True)
    client.flush()
    assert client.read(0, 16384) == bytes(4096) + b"x" * 8192 + bytes(4096)
    assert volume.read(4096, 8192) == b"x" * 8192
    assert volume.fua_served == 1


def test_many_requests_are_under_way_and_all_are_answered(client: NbdClient) -> None:
    noise = random.Random(1)
    blocks = {at: noise.randbytes(4096) for at in range(0, SIZE, 4096)}
    writes = (Request(WRITE, at, 4096, data) for at, data in blocks.items())
    assert sum(1 for _ in client.pipeline(writes)) == len(blocks)
    reads = (Request(READ, at, 4096) for at in blocks)
    assert {request.offset: data for request, data in client.pipeline(reads)} == blocks


def test_a_request_larger_than_socket_buffers_arrives_whole(client: NbdClient) -> None:
    data = random.Random(2).randbytes(SIZE)
    client.write(0, data)
    assert client.read(0, SIZE) == data


def test_extents_tell_holes(client: NbdClient) -> None:
    client.write(MIB, b"x" * 4096)
    deque_of = list(client.pipeline([Request(WRITE_ZEROES, 0, MIB)]))
    assert len(deque_of) == 1
    assert client.extents(0, SIZE) == [
        (MIB, True),
        (CHUNK_BYTES, False),
        (SIZE - MIB - CHUNK_BYTES, True),
    ]
    assert sum(length for length, _ in client.extents(MIB - 4096, 12288)) == 12288


def test_an_error_of_the_volume_names_the_request(client: NbdClient, volume: MemoryVolume) -> None:
    volume.fail(RequestKind.READ, errno.EIO)
    with pytest.raises(VolumeError, match="read of 512 bytes at 1024 failed") as caught:
        client.read(1024, 512)
    assert caught.value.errno == errno.EIO
    with pytest.raises(VolumeError):
        client.read(SIZE, 512)
    assert client.read(0, 512) == bytes(512)


def test_a_volume_that_does_not_exist_is_not_found(uri: str) -> None:
    with pytest.raises(NotFoundError, match="'nope'"):
        NbdClient(uri.rpartition("/")[0] + "/nope")


def test_no_server_or_no_uri_is_a_sentence() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
        with pytest.raises(UnavailableError, match="No NBD server answers"):
            NbdClient(f"nbd://{address}/v")
    for wrong in ("http://x/", "nbd+unix:///v", "nbd://x:port/v"):
        with pytest.raises(UsageError, match="not an NBD URI"):
            NbdClient(wrong)


GREETING = b"NBDMAGICIHAVEOPT\0\3"


def refusal(option: int, kind: int) -> bytes:
    return struct.pack(">QIII", 0x3E889045565A9, option, kind, 0)


@pytest.mark.parametrize(
    ("sent", "kind"),
    [
        (b"SSH-2.0-OpenSSH_9.2 hello there", RefusedError),
        (GREETING + b"\0" * 64, RemoteProtocolError),
        (GREETING[:9], UnavailableError),
        (GREETING + struct.pack(">QIII", 0x3E889045565A9, 8, 1, 1 << 30), RemoteProtocolError),
        (GREETING + refusal(8, 0x80000001) + refusal(7, 0x80000002), ConflictError),
        (GREETING + refusal(8, 0x80000001) + refusal(7, 0x80000007), UnavailableError),
        (GREETING + refusal(8, 0x80000001) + refusal(7, 0x80000005), RefusedError),
    ],
)
def test_rubbish_from_a_server_is_an_error(sent: bytes, kind: type[HoldfastError]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            connection, _ = server.accept()
            with connection, contextlib.suppress(OSError):
                # A client that has seen enough hangs up before this end is done.
                connection.sendall(sent)
                connection.shutdown(socket.SHUT_WR)
                while connection.recv(4096):
                    pass

        thread = threading.Thread(target=serve)
        thread.start()
        with pytest.raises(kind):
            NbdClient(f"nbd://127.0.0.1:{server.getsockname()[1]}/v")
        thread.join()


def test_a_silent_server_is_given_up_and_a_cut_is_told(
    volume: MemoryVolume, client: NbdClient
) -> None:
    volume.hold()
    client._socket.settimeout(0.05)
    with pytest.raises(UnavailableError, match="did not answer in time"):
        client.read(0, 512)
    client._socket.settimeout(5)
    client._socket.shutdown(socket.SHUT_RDWR)
    with pytest.raises(UnavailableError, match="closed the connection"):
        client.read(0, 512)


def sparse_file(path: Path, size: int, data: dict[int, bytes]) -> Path:
    with path.open("wb") as file:
        file.truncate(size)
        for at, content in data.items():
            file.seek(at)
            file.write(content)
    return path


@pytest.fixture
def copied_in(client: NbdClient) -> Callable[[Path], int]:
    def copy(path: Path) -> int:
        with path.open("rb") as source:
            return copy_in(source.fileno(), path.stat().st_size, client)

    return copy


def test_a_file_that_shrinks_while_it_is_imported_is_not_taken_for_whole(
    client: NbdClient, uri: str, volume: MemoryVolume, filled: bytes, tmp_path: Path
) -> None:
    # More than is under way at once, so that the file shrinks before all of it is read.
    path = sparse_file(tmp_path / "in", SIZE, {0: b"n" * SIZE})
    with (
        path.open("rb") as source,
        pytest.raises(UnavailableError, match="ends at 1 MiB, before the size") as caught,
        _told_if_partial("v", path),
    ):
        copy_in(source.fileno(), SIZE, client, lambda _: os.truncate(path, MIB))
    assert f"Volume v may hold only a part of {path} now" in caught.value.hint
    with (
        path.open("rb") as source,
        NbdClient(uri) as another,
        pytest.raises(UnavailableError, match="ends at 1 MiB, before the size"),
    ):
        copy_in(source.fileno(), SIZE, another)
    assert volume.read(SIZE - MIB, MIB) == filled[-MIB:], "nothing was made up"


def test_a_sparse_file_is_imported_and_exported_without_its_holes(
    client: NbdClient,
    volume: MemoryVolume,
    copied_in: Callable[[Path], int],
    filled: bytes,
    tmp_path: Path,
) -> None:
    assert volume.read(0, SIZE) == filled
    content = {MIB: b"a" * 5000, 6 * MIB: b"b" * 4096}
    path = sparse_file(tmp_path / "in", SIZE, content)
    sent = copied_in(path)
    assert sent < MIB
    assert volume.read(0, SIZE) == path.read_bytes()
    assert volume.served[RequestKind.FLUSH] == 1
    out = tmp_path / "out"
    with out.open("wb") as target:
        got = copy_out(client, target.fileno())
    assert got < MIB
    assert out.read_bytes() == path.read_bytes()
    assert out.stat().st_blocks * 512 < MIB


def test_a_disk_that_takes_a_part_of_a_write_gets_the_rest_as_well(
    client: NbdClient, filled: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: real(fd, data[:100_000], at))
    with (tmp_path / "out").open("wb") as target:
        copy_out(client, target.fileno())
    assert (tmp_path / "out").read_bytes() == filled


def test_a_file_that_cannot_be_read_is_not_blamed_on_the_volume(
    copied_in: Callable[[Path], int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_words: object) -> bytes:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "pread", fails)
    with pytest.raises(
        UnavailableError, match="The file cannot be read at 0 B: Input/output error"
    ):
        copied_in(sparse_file(tmp_path / "in", MIB, {0: b"x"}))


@pytest.mark.parametrize("size", [1, 511, 512, 513, 4097, MIB + 7])
def test_a_file_of_any_size_is_imported_and_what_lies_behind_it_stays(
    volume: MemoryVolume,
    copied_in: Callable[[Path], int],
    filled: bytes,
    tmp_path: Path,
    size: int,
) -> None:
    path = tmp_path / "odd"
    path.write_bytes(os.urandom(size))
    assert copied_in(path) == size
    assert volume.read(0, SIZE) == path.read_bytes() + filled[size:]


def test_zeros_that_are_written_out_become_holes(
    volume: MemoryVolume, copied_in: Callable[[Path], int], tmp_path: Path
) -> None:
    path = tmp_path / "zeros"
    path.write_bytes(bytes(2 * MIB) + b"x" * 512)
    assert copied_in(path) < MIB
    assert volume.read(0, 2 * MIB + 512) == path.read_bytes()


def test_a_read_only_volume_says_so(volume: MemoryVolume, uri: str) -> None:
    volume.change(access=Access.READ_ONLY)
    with NbdClient(uri, timeout_s=10) as client:
        assert client.read(0, 512) == bytes(512)
        with pytest.raises(VolumeError, match="write of 512 bytes") as caught:
            client.write(0, bytes(512))
        assert caught.value.errno == errno.EPERM


def test_the_writer_finds_every_record_and_every_loss(uri: str) -> None:
    writer = Writer(uri, MIB, 4 * MIB)
    writer.start()
    while writer.acknowledged < 300 and writer.failure is None:
        writer._stop.wait(0.001)
    writer.stop()
    with NbdClient(uri) as client:
        assert writer.check(client) == []
        client.write(MIB + 4096, record(2)[:-512] + bytes(512))
        client.write(MIB + 8192, record(1))
        assert writer.check(client) == [2, 3]
    assert writer.pause_s > 0


def test_the_writer_goes_round_and_expects_the_last_record(uri: str) -> None:
    writer = Writer(uri, 0, 16 * 4096)
    writer.start()
    while writer.acknowledged < 40 and writer.failure is None:
        writer._stop.wait(0.001)
    writer.stop()
    assert writer.area_used_bytes == 16 * 4096
    with NbdClient(uri) as client:
        assert writer.check(client) == []


def test_the_writer_tells_what_ended_it(uri: str, volume: MemoryVolume) -> None:
    volume.fail(RequestKind.WRITE, errno.EIO, times=100)
    writer = Writer(uri, 0, MIB)
    writer.start()
    while writer.failure is None:
        writer._stop.wait(0.001)
    with pytest.raises(VolumeError):
        writer.stop()


def test_every_record_is_one_block_and_unlike_the_others() -> None:
    assert len(record(1)) == 4096
    assert record(1) != record(2)
    assert record(7) == record(7)
