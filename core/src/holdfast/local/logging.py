"""Where the daemon's log goes: one line per event, JSON for machines or plain text for people.

Who logs says what happened and nothing of the form; cluster, node, volume, copy and epoch are bound
once, in `logger`. A line never waits: the stream may be a pipe to a collector that stalls, and a node
that stops answering heartbeats because of its log would be taken for dead. So a thread writes, behind
a bounded queue, and lines beyond it are dropped and counted.
"""

from __future__ import annotations

import atexit
import json
import logging
import queue
import sys
import threading
from collections.abc import MutableMapping, Sequence
from typing import Any, Literal, TextIO, cast

import structlog

from holdfast.errors import HoldfastError
from holdfast.units import CopyId, Epoch, NodeName, VolumeId

CONTEXT = ("cluster", "node", "volume", "copy", "epoch")
"""The fields that every line may carry, in the order of the console form."""
LINES_MAX = 10_000
"""Lines that wait for a stalled stream, about 3 MB; what comes then is dropped and counted."""

_SECRET = ("token", "secret", "password", "passphrase", "hash_key", "private_key")
_HIDDEN = "(hidden)"

Form = Literal["json", "console"]
Level = Literal["debug", "info", "warning", "error"]


class LineWriter:
    """A text stream whose `write` never waits; a thread of its own feeds the real one."""

    def __init__(self, stream: TextIO, *, lines_max: int = LINES_MAX) -> None:
        """Begin to write to `stream`; at most `lines_max` lines wait for it."""
        self._stream = stream
        self._lines: queue.Queue[str | None] = queue.Queue(lines_max)
        self._dropped = 0
        self._told = 0
        self._thread = threading.Thread(target=self._run, name="holdfast-log", daemon=True)
        self._thread.start()

    def write(self, line: str) -> int:
        """Take a line with its end, or drop it when too many wait; returns its length."""
        try:
            self._lines.put_nowait(line)
        except queue.Full:
            self._dropped += 1
        return len(line)

    def flush(self) -> None:
        """Do nothing: the thread flushes whenever it has caught up."""

    def close(self, timeout_s: float = 2.0) -> None:
        """Write what waits, for at most `timeout_s` seconds. Idempotent; the stream stays open."""
        if self._thread.is_alive():
            try:
                self._lines.put(None, timeout=timeout_s)
            except queue.Full:
                return
            self._thread.join(timeout_s)

    def _run(self) -> None:
        while (line := self._lines.get()) is not None:
            try:
                self._stream.write(line)
                if dropped := self._dropped - self._told:
                    self._told += dropped
                    self._stream.write(_dropped_line(dropped))
                if self._lines.empty():
                    self._stream.flush()
            except (OSError, ValueError):
                # The collector is gone, or the stream closed: there is nowhere to say so.
                continue


def set_up(
    *, form: Form = "json", level: Level = "info", stream: TextIO | None = None
) -> LineWriter:
    """Send this process's log lines, and those of the libraries it uses, to `stream`.

    Libraries are heard from "warning" on. May be called again, as a reload of the configuration does.

    Args:
        form: "json" is one object per line; "console" is for a person at a terminal.
        level: The least level that is written.
        stream: Standard error if None.

    Returns:
        What writes the lines; it is closed at exit, or by the caller before that, who also closes
        the one of an earlier call.
    """
    target = sys.stderr if stream is None else stream
    writer = LineWriter(target)
    atexit.register(writer.close)
    shared: list[structlog.types.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        _explain_errors,
        _hide_secrets,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    ending = _ending(form, is_terminal=target.isatty())
    structlog.configure(
        processors=[*shared, *ending],
        wrapper_class=structlog.make_filtering_bound_logger(
            logging.getLevelNamesMapping()[level.upper()]
        ),
        logger_factory=structlog.WriteLoggerFactory(file=cast("TextIO", writer)),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(cast("TextIO", writer))
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *ending],
        )
    )
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    logging.getLogger("holdfast").setLevel(level.upper())
    return writer


def logger(
    *,
    cluster: str | None = None,
    node: NodeName | None = None,
    volume: VolumeId | None = None,
    copy: CopyId | None = None,
    epoch: Epoch | None = None,
) -> structlog.typing.FilteringBoundLogger:
    """Return a logger whose lines carry what is given; `.bind(epoch=…)` makes a narrower one."""
    given = {"cluster": cluster, "node": node, "volume": volume, "copy": copy, "epoch": epoch}
    bound = {name: value for name, value in given.items() if value is not None}
    return cast("structlog.typing.FilteringBoundLogger", structlog.get_logger(**bound))


def _ending(form: Form, *, is_terminal: bool) -> Sequence[structlog.types.Processor]:
    """Return the processors that turn a line's fields into text."""
    if form == "json":
        return (
            # Without the local variables of each frame, which may hold secrets.
            structlog.processors.ExceptionRenderer(
                structlog.tracebacks.ExceptionDictTransformer(show_locals=False)
            ),
            _put_in_order,
            structlog.processors.JSONRenderer(sort_keys=False),
        )
    return (
        _put_in_order,
        structlog.dev.ConsoleRenderer(
            colors=is_terminal,
            sort_keys=False,
            exception_formatter=structlog.dev.plain_traceback,
        ),
    )


def _put_in_order(_: Any, __: str, fields: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Begin every line alike: when, how bad, what, where; then the rest as it was given."""
    first = ("timestamp", "level", "event", *CONTEXT)
    return {name: fields[name] for name in first if name in fields} | {
        name: value for name, value in fields.items() if name not in first
    }


def _explain_errors(_: Any, __: str, fields: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Spell out an `error=` field: its sentence, its code and its hint."""
    error = fields.get("error")
    if isinstance(error, HoldfastError):
        fields["error"], fields["code"] = error.message, error.code
        if error.hint:
            fields["hint"] = error.hint
    elif isinstance(error, BaseException):
        fields["error"] = f"{type(error).__name__}: {error}"
    return fields


def _hide_secrets(_: Any, __: str, fields: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Hide what bears a secret's name, should it ever be logged by mistake."""
    for name in fields:
        if name.lower().endswith(_SECRET):
            fields[name] = _HIDDEN
    return fields


def _dropped_line(count: int) -> str:
    fields = {"level": "warning", "event": "Log lines were dropped: the log stood still."}
    return json.dumps({**fields, "dropped": count}) + "\n"
