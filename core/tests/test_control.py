"""The control API and its client, over a real Unix socket in a temporary folder."""

import os
import socket
import stat
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, TypeVar

import anyio
import anyio.to_thread
import pytest
from core.tests.fake_node import FakeService

from holdfast.errors import (
    ConflictError,
    CopyError,
    FaultReason,
    HoldfastError,
    NotFoundError,
    StateError,
    UnavailableError,
    UsageError,
    VolumeError,
)
from holdfast.node.control import prometheus_text, serve_control
from holdfast.node.control_client import ControlClient
from holdfast.node.control_errors import from_json, http_status, to_json
from holdfast.node.service import Sample

pytestmark = pytest.mark.anyio
T = TypeVar("T")


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, bool]]:
    return "asyncio", {"use_uvloop": True}


@pytest.fixture
def service() -> FakeService:
    return FakeService()


@pytest.fixture
async def client(service: FakeService, tmp_path: Path) -> AsyncIterator[ControlClient]:
    path = tmp_path / "control.sock"
    async with serve_control(service, path):
        yield ControlClient(path, node="n1")


async def ask(call: Callable[..., T], *args: Any, **kwargs: Any) -> T:
    """Run a blocking call beside the event loop that serves it."""
    return await anyio.to_thread.run_sync(lambda: call(*args, **kwargs))


async def test_a_volume_lives_from_creation_to_deletion(client: ControlClient) -> None:
    status, warnings = await ask(client.create_volume, name="db", size_bytes=1 << 30, replicas=2)
    assert (status["name"], status["size"], warnings) == ("db", 1 << 30, [])
    assert len(status["copies"]) == 3
    changed = await ask(client.change_volume, "db", size_bytes=2 << 30, policy="soft")
    assert (changed["size"], changed["policy"]) == (2 << 30, "soft")
    assert (await ask(client.promote, "db", "n2"))["primary"] == "n2"
    moved = await ask(client.move, "db", "n1", "n4")
    assert [c["node"] for c in moved["copies"]] == ["n4", "n2", "n3"]
    assert len((await ask(client.evict, "db", "n4"))["copies"]) == 2
    assert [v["name"] for v in await ask(client.volumes)] == ["db"]
    await ask(client.delete_volume, "db")
    assert await ask(client.volumes) == []


async def test_a_name_with_a_slash_stays_one_name(client: ControlClient) -> None:
    with pytest.raises(NotFoundError, match="a b%"):
        await ask(client.volume, "a b%")


async def test_the_node_describes_itself_and_the_others(client: ControlClient) -> None:
    assert (await ask(client.node))["ready"]
    assert [n["name"] for n in await ask(client.nodes)] == ["n1", "n2", "n3", "n4"]
    assert (await ask(client.cordon, cordoned=True))["cordoned"]
    assert (await ask(client.label, {"rack": "7", "zone": None}))["labels"] == {"rack": "7"}
    with pytest.raises(UsageError, match="has a name and text"):
        await ask(client.label, {"rack": 7})


async def test_a_drain_tells_its_plan_first(client: ControlClient, service: FakeService) -> None:
    await ask(client.create_volume, name="db", size_bytes=1 << 30)
    told = await ask(client.drain, dry_run=True)
    assert [step["volume"] for step in told["plan"]] == ["db"]
    assert not service.cordoned
    assert (await ask(client.drain, dry_run=False))["draining"]
    assert service.cordoned
    assert (await ask(client.plugins))[0]["name"] == "hard"
    assert (await ask(client.config))[0]["path"] == "node.name"


async def test_an_error_keeps_class_sentence_hint_and_exit_code(
    client: ControlClient, service: FakeService
) -> None:
    with pytest.raises(NotFoundError) as caught:
        await ask(client.volume, "nope")
    assert caught.value.message == "No volume is named 'nope'."
    assert caught.value.hint == "See `holdfast volume list`."
    service.fault = StateError("The store is away.")
    with pytest.raises(StateError, match="The store is away"):
        await ask(client.node)


async def test_a_bug_of_the_node_is_one_sentence(
    client: ControlClient, service: FakeService, caplog: pytest.LogCaptureFixture
) -> None:
    service.fault = RuntimeError("boom")
    with pytest.raises(HoldfastError, match="did not expect") as caught:
        await ask(client.node)
    assert "boom" not in str(caught.value)
    assert "boom" in caplog.text


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        ({"name": "x"}, "needs at least"),
        ({"name": "x", "size_bytes": "1"}, "'size_bytes' has the wrong type"),
        ({"name": "x", "size_bytes": True}, "'size_bytes' has the wrong type"),
        ({"name": "x", "size_bytes": 1, "replica": 2}, "unknown field 'replica'"),
        ({"name": "x" * 70000, "size_bytes": 1}, "larger than"),
    ],
)
async def test_a_wrong_request_says_what_is_wrong(
    client: ControlClient, body: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(UsageError, match=sentence):
        await ask(client.request, "POST", "/v1/volumes", body)


async def test_rubbish_on_the_socket_is_refused_and_the_node_lives(client: ControlClient) -> None:
    def send(raw: bytes) -> bytes:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(5)
            sock.connect(os.fspath(client.path))
            sock.sendall(raw)
            sock.shutdown(socket.SHUT_WR)
            return b"".join(iter(lambda: sock.recv(4096), b""))

    assert b"400" in await ask(send, b"\x00\xff rubbish\r\n\r\n")
    head = b"POST /v1/volumes HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\n"
    assert b"not JSON" in await ask(send, head + b"{,}")
    assert b"not a JSON object" in await ask(send, head + b"[1]")
    with pytest.raises(NotFoundError, match="no GET /v2"):
        await ask(client.request, "GET", "/v2")
    assert (await ask(client.node))["name"] == "n1"


async def test_events_end_without_follow_and_go_on_with_it(
    client: ControlClient, service: FakeService
) -> None:
    await ask(client.create_volume, name="db", size_bytes=4096)
    assert [e["kind"] for e in await ask(lambda: list(client.events("db")))] == [
        "created",
        "synced",
    ]
    with pytest.raises(NotFoundError):
        await ask(lambda: list(client.events("nope", follow=True)))

    def first_two() -> list[str]:
        stream = client.events("db", follow=True)
        kinds = [next(stream)["kind"], next(stream)["kind"]]
        stream.close()  # type: ignore[attr-defined]
        return kinds

    assert await ask(first_two) == ["created", "synced"]
    with anyio.fail_after(60):
        while service.following:  # noqa: ASYNC110 - the fake has no event to wait for.
            await anyio.sleep(0.01)


async def test_verify_streams_progress_and_raises_what_happens_on_the_way(
    client: ControlClient, service: FakeService
) -> None:
    await ask(client.create_volume, name="db", size_bytes=4096)
    lines = await ask(lambda: list(client.verify("db")))
    assert lines[0]["chunks_done"] == 8
    assert lines[-1]["equal"] is True
    service.fault = UnavailableError("Node n2 is away.")
    with pytest.raises(UnavailableError, match="n2 is away"):
        await ask(lambda: list(client.verify("db")))
    service.fault = RuntimeError("boom")
    with pytest.raises(HoldfastError, match="did not expect"):
        await ask(lambda: list(client.verify("db")))


async def test_stop_tells_whether_to_hand_over(client: ControlClient, service: FakeService) -> None:
    await ask(client.stop, handover=False)
    assert service.stopped.is_set()
    assert service.handover is False


async def test_metrics_are_prometheus_text(client: ControlClient) -> None:
    assert await ask(client.metrics) == (
        "# TYPE holdfast_frames_total counter\n"
        'holdfast_frames_total{volume="a\\"b"} 3\n'
        'holdfast_frames_total{volume="c"} 4.5\n'
        "# TYPE holdfast_nodes gauge\n"
        "holdfast_nodes 4\n"
    )
    assert prometheus_text([Sample("x", float("inf"))]).endswith("x inf\n")


async def test_only_the_owner_may_open_the_socket(client: ControlClient) -> None:
    assert stat.S_IMODE(client.path.stat().st_mode) == 0o600


async def test_a_dead_socket_is_replaced_and_a_live_one_is_not(
    service: FakeService, tmp_path: Path
) -> None:
    path = tmp_path / "control.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(os.fspath(path))
    async with serve_control(service, path):
        assert (await ask(ControlClient(path).node))["name"] == "n1"
        with pytest.raises(ConflictError, match="already serves"):
            async with serve_control(service, path):
                pass
        assert (await ask(ControlClient(path).node))["name"] == "n1"
    assert not path.exists()
    path.write_text("not a socket")
    with pytest.raises(ConflictError, match="no socket"):
        async with serve_control(service, path):
            pass


async def test_a_path_that_is_too_long_or_has_no_folder_is_an_error(
    service: FakeService, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="longer than 107"):
        async with serve_control(service, tmp_path / ("x" * 120)):
            pass
    with pytest.raises(UsageError, match="cannot be made"):
        async with serve_control(service, Path("/nonexistent/x.sock")):
            pass


async def test_a_node_that_is_not_running_says_how_to_start_it(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match="Node n1 is not running") as caught:
        await ask(ControlClient(tmp_path / "none.sock", node="n1").node)
    assert caught.value.hint == "Start it with `holdfast node start n1`."


async def test_a_node_that_does_not_answer_is_given_up(tmp_path: Path) -> None:
    path = tmp_path / "deaf.sock"
    with socket.socket(socket.AF_UNIX) as deaf:
        deaf.bind(os.fspath(path))
        deaf.listen()
        with pytest.raises(UnavailableError, match="did not answer within"):
            await ask(ControlClient(path, node="n1").node, timeout_s=0.05)


async def test_leaving_ends_streams_that_never_end(service: FakeService, tmp_path: Path) -> None:
    path = tmp_path / "control.sock"
    client = ControlClient(path)
    got: list[Any] = []

    def follow() -> None:
        with pytest.raises(UnavailableError, match="is stopping"):
            got.extend(client.events("db", follow=True))

    async with anyio.create_task_group() as tasks, serve_control(service, path):
        await ask(client.create_volume, name="db", size_bytes=4096)
        tasks.start_soon(ask, follow)
        with anyio.fail_after(60):
            while not service.following:  # noqa: ASYNC110 - likewise.
                await anyio.sleep(0.01)
    assert service.following == 0


@pytest.mark.parametrize(
    "error",
    [
        UsageError("A.", hint="B."),
        CopyError("C.", reason=FaultReason.NO_SPACE),
        VolumeError("D.", errno=28),
    ],
)
def test_errors_survive_json(error: HoldfastError) -> None:
    again = from_json(to_json(error))
    assert type(again) is type(error)
    assert (again.message, again.hint) == (error.message, error.hint)
    assert vars(again) | {"exit_code": 0} == vars(error) | {"exit_code": 0}
    assert 400 <= http_status(error) <= 503


def test_an_unknown_error_keeps_its_exit_code() -> None:
    error = from_json({"error": {"code": "newer", "message": "X.", "exit_code": 42}})
    assert error.exit_code == 42
