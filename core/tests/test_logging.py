"""The log: its forms, its fields, and that it never holds anybody up."""

from __future__ import annotations

import io
import json
import logging
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import structlog

from holdfast.errors import StateError
from holdfast.local.logging import LineWriter, logger, set_up
from holdfast.units import CopyId, Epoch, NodeName, VolumeId


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    structlog.reset_defaults()
    root.handlers[:] = handlers
    root.setLevel(level)


def _lines(stream: io.StringIO, writer: LineWriter) -> list[dict[str, Any]]:
    writer.close()
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_line_is_one_json_object_that_begins_with_when_what_and_where() -> None:
    stream = io.StringIO()
    writer = set_up(stream=stream)
    log = logger(cluster="c", node=NodeName("n1"), volume=VolumeId("v"), copy=CopyId("k"))
    log.bind(epoch=Epoch(3)).info("A copy was dropped.", reason="link-lost")
    (line,) = _lines(stream, writer)
    assert list(line) == [
        *("timestamp", "level", "event", "cluster", "node", "volume", "copy", "epoch", "reason")
    ]
    assert (line["level"], line["event"], line["epoch"]) == ("info", "A copy was dropped.", 3)
    assert line["timestamp"].endswith("Z")


def test_what_is_not_given_is_not_in_the_line() -> None:
    stream = io.StringIO()
    writer = set_up(stream=stream)
    logger().info("Hello.")
    (line,) = _lines(stream, writer)
    assert list(line) == ["timestamp", "level", "event"]


def test_an_error_is_spelled_out_with_its_hint() -> None:
    stream = io.StringIO()
    writer = set_up(stream=stream)
    logger().error("No state.", error=StateError("It is gone.", hint="Bring it back."))
    logger().error("No luck.", error=OSError(5, "io"))
    first, second = _lines(stream, writer)
    assert (first["error"], first["code"], first["hint"]) == (
        *("It is gone.", "state-store", "Bring it back."),
    )
    assert second["error"] == "OSError: [Errno 5] io"


def test_a_bugs_traceback_stays_on_one_line() -> None:
    stream = io.StringIO()
    writer = set_up(stream=stream)
    passphrase = "abracadabra"  # noqa: S105
    try:
        int(passphrase)
    except ValueError:
        logger().exception("A bug.")
    (line,) = _lines(stream, writer)
    assert line["exception"][0]["exc_type"] == "ValueError"
    assert "locals" not in line["exception"][0]["frames"][0], "they may hold secrets"


def test_secrets_are_hidden() -> None:
    stream = io.StringIO()
    writer = set_up(stream=stream)
    logger().info("Joined.", join_token="abc", password="abc", hash_key="abc")  # noqa: S106
    assert "abc" not in json.dumps(_lines(stream, writer))


def test_less_than_the_level_is_not_written() -> None:
    stream = io.StringIO()
    writer = set_up(stream=stream, level="warning")
    logger().info("Quiet.")
    logger().warning("Loud.")
    assert [line["event"] for line in _lines(stream, writer)] == ["Loud."]


def test_libraries_speak_in_the_same_form_from_warning_on() -> None:
    stream = io.StringIO()
    writer = set_up(stream=stream)
    logging.getLogger("somebody").info("chatter")
    logging.getLogger("somebody").warning("watch %s", "out")
    (line,) = _lines(stream, writer)
    assert (line["level"], line["event"]) == ("warning", "watch out")


def test_the_console_form_is_for_people() -> None:
    stream = io.StringIO()
    writer = set_up(form="console", stream=stream)
    logger(node=NodeName("n1")).info("A copy was dropped.")
    writer.close()
    (line,) = stream.getvalue().splitlines()
    assert "A copy was dropped." in line
    assert "node=n1" in line
    assert "\x1b" not in line


class _StalledStream(io.StringIO):
    """A pipe whose reader stands still until `go` is set."""

    def __init__(self) -> None:
        super().__init__()
        self.go = threading.Event()
        self.waits = threading.Event()

    def write(self, text: str) -> int:
        self.waits.set()
        self.go.wait()
        return super().write(text)


def test_a_stalled_stream_holds_nobody_and_the_loss_is_counted() -> None:
    stream = _StalledStream()
    writer = LineWriter(stream, lines_max=3)
    writer.write("0\n")
    stream.waits.wait()
    for number in range(1, 11):
        writer.write(f"{number}\n")
    stream.go.set()
    writer.close()
    lines = stream.getvalue().splitlines()
    assert [line for line in lines if line.isdigit()] == ["0", "1", "2", "3"]
    assert [json.loads(line)["dropped"] for line in lines if "dropped" in line] == [7]


def test_a_stream_that_breaks_breaks_nothing_else() -> None:
    stream = io.StringIO()
    writer = LineWriter(stream)
    stream.close()
    writer.write("x\n")
    writer.close()
    writer.close()
