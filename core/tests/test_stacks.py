"""What a silent process is at: a loop that stands still, tasks that wait, a node that must be killed."""

import asyncio
import faulthandler
import signal
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path

import pytest

from holdfast.local import stacks
from holdfast.node import supervisor
from holdfast.node.local_cluster import LocalNode
from holdfast.node.processes import ask_for_stacks, wait_until

DEAF = """
import asyncio, signal, threading
from holdfast.local.stacks import telling

async def held_up():
    with telling():
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, print)
        print("ready", flush=True)
        threading.Event().wait()

asyncio.run(held_up())
"""


def test_a_loop_that_stands_still_is_told_once_with_what_holds_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(stacks, "LOOK_S", 0.01)
    monkeypatch.setattr(stacks, "STALL_S", 0.1)
    lines: list[str] = []
    told = threading.Event()
    again = asyncio.Event()

    async def main() -> None:
        loop = asyncio.get_running_loop()

        def warn(sentence: str, *values: object) -> None:
            lines.append(sentence % values)
            if "has not turned" in sentence:
                told.set()
            elif "turns again" in sentence:
                loop.call_soon_threadsafe(again.set)

        def hold_up() -> stacks.LoopWatch:
            watch = stacks.LoopWatch(loop, warn)
            assert told.wait(60)
            return watch

        watch = hold_up()
        await asyncio.wait_for(again.wait(), 60)
        watch.close()

    asyncio.run(main())
    end = next(at for at, line in enumerate(lines) if "turns again" in line)
    (stall,) = (line for line in lines[:end] if "has not turned" in line)
    assert "hold_up" in stall


def test_a_task_is_told_with_everything_that_it_awaits(caplog: pytest.LogCaptureFixture) -> None:
    told = asyncio.Event()

    async def waits() -> None:
        await told.wait()

    async def main() -> None:
        with stacks.telling():
            task = asyncio.create_task(waits(), name="patience")
            signal.raise_signal(signal.SIGUSR1)
            while "The event loop turns" not in caplog.text:  # noqa: ASYNC110 - nobody tells of a line.
                await asyncio.sleep(0.001)
            told.set()
            await task

    try:
        asyncio.run(main())
    finally:
        faulthandler.unregister(signal.SIGUSR1)
    (line,) = (record.message for record in caplog.records if "patience" in record.message)
    assert ".waits > locks.py:" in line
    assert "2 tasks" in caplog.text


def test_a_node_that_must_be_killed_has_said_what_it_was_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = LocalNode("n1", tmp_path, tmp_path / "control.sock")
    monkeypatch.setattr(supervisor, "TERM_TIMEOUT_S", 2.0)
    # However long that takes here.
    has_told = partial(wait_until, lambda: "in held_up" in node.log.read_text(), 60)
    monkeypatch.setattr(supervisor, "wait_until", lambda *_: has_told())
    with (
        node.log.open("wb") as log,
        subprocess.Popen(
            [sys.executable, "-c", DEAF, str(node.config)], stdout=subprocess.PIPE, stderr=log
        ) as process,
    ):
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            node.pid_file.write_text(str(process.pid))
            (stopped,) = supervisor.stop([node], handover=False)
        finally:
            process.kill()
    assert stopped.how == "killed"
    text = node.log.read_text()
    assert "in held_up" in text
    assert "of node n1 is killed" in text[text.index("in held_up") :]


def test_a_process_that_does_not_take_the_signal_is_not_ended_by_it() -> None:
    with subprocess.Popen(["sleep", "60"]) as process:
        try:
            assert not ask_for_stacks(process.pid)
            assert process.poll() is None
        finally:
            process.kill()
