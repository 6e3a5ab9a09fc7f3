from __future__ import annotations

import errno
import gc

import anyio
import pytest

from holdfast.api import BlockingVolume, Volume
from holdfast.errors import ConflictError, NotFoundError, VolumeError
from holdfast.messages import Extent, RequestKind
from holdfast.model import Access
from holdfast.testing.memory_volume import MemoryVolumeProvider
from holdfast.units import MIB, REQUEST_BYTES_MAX

pytestmark = pytest.mark.anyio
SIZE = 128 * MIB


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(params=[False, True], ids=["later", "at once"])
def provider(request: pytest.FixtureRequest) -> MemoryVolumeProvider:
    provider = MemoryVolumeProvider(answers_at_once=request.param)
    provider.add("db", SIZE)
    return provider


async def test_what_was_written_is_read(provider: MemoryVolumeProvider) -> None:
    async with Volume(provider, "db") as volume:
        assert volume.size_bytes == SIZE
        assert volume.access is Access.READ_WRITE
        await volume.write(4096, b"w" * 1024, fua=True)
        await volume.flush()
        assert await volume.read(4096, 2048) == b"w" * 1024 + bytes(1024)
        await volume.write(4096, memoryview(b"w" * 1024).cast("Q"))
        assert await volume.read(4096, 2048) == b"w" * 1024 + bytes(1024)
        assert await volume.extents(0, MIB) == [Extent(65536, False), Extent(MIB - 65536, True)]
        await volume.zero(4096, 512, keep_space=True)
        assert await volume.read(4096, 1024) == bytes(512) + b"w" * 512
        await volume.discard(0, MIB)
        assert await volume.extents(0, MIB) == [Extent(MIB, True)]
    assert provider.volumes["db"].fua_served == 1
    assert provider.volumes["db"].closed == 1


async def test_requests_longer_than_a_session_takes_are_split(
    provider: MemoryVolumeProvider,
) -> None:
    data = bytes(range(256)) * (2 * REQUEST_BYTES_MAX // 256 + 2)
    async with Volume(provider, "db") as volume:
        await volume.write(512, memoryview(data))
        assert await volume.read(512, len(data)) == data
        await volume.discard(0, SIZE)
        assert await volume.extents(0, SIZE)
    assert provider.volumes["db"].served[RequestKind.WRITE] == 3


async def test_many_requests_travel_together(provider: MemoryVolumeProvider) -> None:
    async with Volume(provider, "db") as volume:
        async with anyio.create_task_group() as group:
            for number in range(100):
                group.start_soon(volume.write, number * 512, bytes([number]) * 512)
        for number in range(100):
            assert await volume.read(number * 512, 512) == bytes([number]) * 512


async def test_errors_say_what_and_where(provider: MemoryVolumeProvider) -> None:
    async with Volume(provider, "db") as volume:
        with pytest.raises(VolumeError, match="Read of 100 bytes at offset 1 failed") as raised:
            await volume.read(1, 100)
        assert raised.value.errno == errno.EINVAL
        with pytest.raises(VolumeError):
            await volume.write(0, b"")
        for offset in (-512, 1 << 70):
            with pytest.raises(VolumeError, match=f"at offset {offset} failed") as raised:
                await volume.read(offset, 512)
            assert raised.value.errno == errno.EINVAL
        provider.volumes["db"].change(access=Access.READ_ONLY)
        assert volume.access is Access.READ_ONLY
        with pytest.raises(VolumeError, match="volume db is read-only") as raised:
            await volume.write(0, bytes(512))
        assert raised.value.errno == errno.EPERM
        provider.volumes["db"].fail(RequestKind.FLUSH, errno.EREMOTEIO)
        with pytest.raises(VolumeError, match="Flush failed"):
            await volume.flush()


async def test_a_volume_that_is_not_open_says_so(provider: MemoryVolumeProvider) -> None:
    volume = Volume(provider, "db")
    with pytest.raises(VolumeError, match="it is not open"):
        await volume.read(0, 512)
    async with volume:
        pass
    with pytest.raises(VolumeError, match="it was closed"):
        await volume.read(0, 512)


async def test_one_writer_at_a_time_unless_forced(provider: MemoryVolumeProvider) -> None:
    async with Volume(provider, "db") as first:
        with pytest.raises(ConflictError):
            await Volume(provider, "db").__aenter__()
        async with Volume(provider, "db", read_only=True) as reader:
            assert await reader.read(0, 512) == bytes(512)
            with pytest.raises(VolumeError):
                await reader.write(0, bytes(512))
        async with Volume(provider, "db", force=True) as second:
            await second.write(0, bytes(512))
            with pytest.raises(VolumeError, match="took volume db over"):
                await first.read(0, 512)


async def test_what_waits_fails_when_the_session_ends(provider: MemoryVolumeProvider) -> None:
    memory = provider.volumes["db"]
    async with Volume(provider, "db") as volume:
        memory.change(access=Access.SUSPENDED)

        async def wait() -> None:
            with pytest.raises(VolumeError):
                await volume.read(0, 512)

        async with anyio.create_task_group() as group:
            group.start_soon(wait)
            await anyio.wait_all_tasks_blocked()
            memory.end_sessions("Volume db was deleted.")


def test_scripts_need_no_event_loop(provider: MemoryVolumeProvider) -> None:
    with BlockingVolume(provider, "db") as volume:
        assert volume.size_bytes == SIZE
        assert volume.access is Access.READ_WRITE
        volume.write(0, b"s" * 512, fua=True)
        volume.flush()
        assert volume.read(0, 512) == b"s" * 512
        volume.zero(0, 512, keep_space=True)
        volume.discard(0, MIB)
        assert volume.extents(0, MIB) == [Extent(MIB, True)]
    with pytest.raises(NotFoundError), BlockingVolume(provider, "nix"):
        pass
    with pytest.raises(VolumeError, match="it was closed"):
        volume.read(0, 512)
    with pytest.raises(VolumeError, match="it is not open"):
        BlockingVolume(provider, "db").flush()
    assert provider.volumes["db"].closed == 1
    gc.collect()
