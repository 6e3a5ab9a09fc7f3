"""What can be said of kernel NBD without a kernel that has it."""

from __future__ import annotations

from pathlib import Path

import pytest

from holdfast.errors import UnavailableError, UsageError
from holdfast.local import commands
from holdfast.local.attach_nbd import NbdAttach, _parts_of
from holdfast.local.commands import clause, missing_tools, run, until

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


async def test_uris_are_taken_apart_for_nbd_client() -> None:
    assert _parts_of("nbd://n1:10810/a%20b") == ("n1", 10810, "a b")
    assert _parts_of("nbd://[::1]/db") == ("::1", 10809, "db")
    with pytest.raises(UsageError, match="no URI"):
        _parts_of("nbd+unix:///db?socket=s")


async def test_what_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commands, "program", lambda _name: None)
    with pytest.raises(UnavailableError, match="apt install nbd-client util-linux"):
        await NbdAttach().attach("nbd://n1/db", str(tmp_path / "a"))
    assert not (tmp_path / "a").exists()
    assert missing_tools({}) is None


async def test_detaching_what_was_never_attached_is_nothing(tmp_path: Path) -> None:
    await NbdAttach().detach(str(tmp_path))


async def test_commands_that_cannot_be_started_say_so() -> None:
    assert await run("/nonexistent/tool") == (
        127,
        "",
        "/nonexistent/tool: No such file or directory",
    )
    assert await run("sh", "-c", "echo out; echo err >&2; exit 3") == (3, "out", "err")


async def test_what_tools_say_fits_into_a_sentence() -> None:
    assert clause("Error: no such export.\nExiting.") == "Error: no such export"
    assert clause(" \n") == "it did not say why"


async def test_waiting_ends_with_the_deadline() -> None:
    assert await until(lambda: True)
    assert not await until(lambda: False, deadline_s=0.05)
