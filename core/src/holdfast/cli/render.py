"""Tables, pages and progress for people; every colour and word choice of the output is here.

The functions take the dicts of the control API and return what rich can draw. rich is imported when
this module is, which is when something is to be drawn.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import attrs
from rich import box
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.measure import Measurement
from rich.padding import Padding
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.table import Table
from rich.text import Text

from holdfast.units import format_size

Json = Mapping[str, Any]

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)

FOLDED_MIN = 24
"""How narrow a column that may take several lines is made, if its words are no shorter."""
_WIDE = 10_000

_GOOD, _BUSY, _BAD, _DIM = "green", "yellow", "red", "dim"
_STYLES = {
    "healthy": _GOOD,
    "syncing": _BUSY,
    "degraded": _BUSY,
    "read-only": _BAD,
    "suspended": _BAD,
    "offline": _BAD,
    "deleting": _DIM,
    "in-sync": _GOOD,
    "read-write": _GOOD,
    "error": _BAD,
    "none": _BAD,
    "running": _GOOD,
    "stopped": _DIM,
    "silent": _BAD,
    "ok": _GOOD,
    "missing": _BUSY,
    "problem": _BAD,
}


def word(text: str) -> Text:
    """Return a state or health word in its colour."""
    return Text(text, style=_STYLES.get(text, ""))


def node_state(state: str, node: Json) -> Text:
    """Return how a node is and, if it takes no new copies, why: `running, draining`."""
    text = word(state)
    if node.get("cordoned"):
        text.append(", draining" if node.get("draining") else ", cordoned", style=_BUSY)
    return text


def show(what: RenderableType) -> None:
    """Draw on standard output."""
    # A line of text is left whole, for the terminal to wrap and for programs to search; so are the
    # lines of a table that has not enough room.
    out.print(what, soft_wrap=isinstance(what, Text), crop=False)


class _Table(Table):
    """A table that takes more room than there is, before it cuts words and numbers in two."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        needed = 3 * len(self.columns) - 1  # Edges, and what lies between columns.
        for column in self.columns:
            cells = [
                Measurement.get(console, options.update(width=_WIDE), cell)
                for cell in (column.header, *column.cells)
            ]
            whole = max(cell.maximum for cell in cells)
            words = max(cell.minimum for cell in cells)
            needed += whole if column.no_wrap else min(words, FOLDED_MIN)
        wide = options.update(width=max(options.max_width, needed))
        return super().__rich_console__(console, wide)


def table(*columns: str, right: Sequence[str] = (), wrap: Sequence[str] | None = None) -> Table:
    """Return an empty table in the house's form.

    Args:
        columns: The headings.
        right: Those that are set flush right.
        wrap: Those that may take several lines; None: the last one.
    """
    made = _Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    for column in columns:
        wraps = column in (columns[-1:] if wrap is None else wrap)
        side: Literal["left", "right"] = "right" if column in right else "left"
        made.add_column(column, justify=side, overflow="fold", no_wrap=not wraps)
    return made


def volume_table(volumes: Iterable[Json]) -> Table:
    """Return one line for each volume."""
    made = table(
        "VOLUME",
        "SIZE",
        "HEALTH",
        "ACCESS",
        "POLICY",
        "PRIMARY",
        "REPLICAS",
        "IN USE BY",
        right=["SIZE"],
        wrap=["VOLUME", "IN USE BY"],
    )
    for volume in volumes:
        replicas = [c for c in volume["copies"] if c["role"] == "replica"]
        in_sync = sum(c["state"] == "in-sync" for c in replicas)
        made.add_row(
            volume["name"],
            format_size(volume["size"]),
            word(volume["health"]),
            word(volume["access"]),
            volume["policy"],
            volume["primary"] or "-",
            f"{in_sync}/{volume['declared_replicas']}",
            volume["attached"] or "-",
        )
    return made


def md_table(volumes: Iterable[Json]) -> Table:
    """Return one line for each volume of the replicator md, in MD's words."""
    made = table(
        "VOLUME", "PHASE", "MDSTATE", "TOTAL", "ACTIVE", "FAILED", "DOWN", "SYNC", "NODE", "DEVICE",
        right=["TOTAL", "ACTIVE", "FAILED", "DOWN", "SYNC"],
    )  # fmt: skip
    for volume in volumes:
        words = volume["md"]
        counts = [str(words[key]) for key in ("total", "active", "failed", "down")]
        made.add_row(
            volume["name"], words["phase"], words["mdstate"], *counts, words["sync"],
            volume["attached"] or "-", words["mounted"] or words["device"],
        )  # fmt: skip
    return made


def _facts() -> Table:
    """Return an empty table for one fact a line, its name first."""
    made = Table.grid(padding=(0, 2))
    made.add_column(style="bold", no_wrap=True)
    made.add_column(overflow="fold")
    return made


def volume_page(volume: Json) -> RenderableType:
    """Return all that is known of one volume."""
    head = _facts()
    options = ", ".join(f"{k}={v}" for k, v in volume["policy_options"].items())
    head.add_row("Volume", volume["name"])
    head.add_row("Health", word(volume["health"]))
    if volume.get("reason"):
        head.add_row("", volume["reason"])
    head.add_row("Access", word(volume["access"]))
    served = volume.get("served_size") or volume["size"]
    grows = f" declared, {format_size(served)} served" if served < volume["size"] else ""
    head.add_row("Size", format_size(volume["size"]) + grows)
    head.add_row("Policy", volume["policy"] + (f" ({options})" if options else ""))
    head.add_row("Replicas", f"{volume['declared_replicas']} declared")
    if volume.get("read_from", "primary") != "primary":
        head.add_row("Reads", "from the copy on the consumer's node")
    head.add_row("Epoch", str(volume["epoch"]))
    head.add_row("In use by", volume["attached"] or "nobody")
    if "md" in volume:
        return Group(
            head,
            Text(),
            md_table([volume]),
            Text(),
            copies_table(volume["copies"]),
        )
    return Group(head, Text(), copies_table(volume["copies"]))


def copies_table(copies: Iterable[Json]) -> Table:
    """Return one line for each copy, with the progress of its sync."""
    made = table("NODE", "ROLE", "STATE", "SYNC")
    for copy in copies:
        role = Text(copy["role"], style="bold" if copy["role"] == "primary" else "")
        state = word(copy["state"])
        if not copy.get("alive", True):
            state.append(", node down", style=_BAD)
        made.add_row(copy["node"], role, state, sync_text(copy.get("sync")))
    return made


def sync_text(sync: Json | None) -> str:
    """Return how far a sync is, in a few words."""
    if sync is None:
        return ""
    if not sync["bytes_left"]:
        return f"done, {format_size(sync['bytes_sent'])} sent" if sync["bytes_sent"] else "done"
    text = f"{format_size(sync['bytes_left'])} left of {format_size(sync['bytes_total'])}"
    if sync["rate"]:
        text += f", {format_size(sync['rate'])}/s"
    if sync["seconds_left"] is not None:
        text += f", {duration(sync['seconds_left'])}"
    return text


def duration(seconds: float) -> str:
    """Return a duration for people: `3 s`, `2 min 5 s`, `1 h 10 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def findings(result: Json) -> Table:
    """Return the chunks that a verification found wrong."""
    made = table("CHUNK", "OFFSET", "WHAT", "ON", "REPAIRED", right=["CHUNK", "OFFSET"])
    for what, key in (("rotten", "rotten"), ("differs", "differences")):
        for each in result.get(key, ()):
            repaired = "yes" if each.get("repaired") else "no"
            chunk, offset = str(each["chunk"]), str(each["offset"])
            made.add_row(chunk, offset, what, ", ".join(each["nodes"]), repaired)
    return made


def node_page(node: Json) -> RenderableType:
    """Return what one node says of itself."""
    head = _facts()
    head.add_row("Node", node["name"])
    head.add_row("State", node_state("running" if node["ready"] else "starting", node))
    started = dt.datetime.fromtimestamp(node["started_at"]).astimezone()
    head.add_row("Process", f"{node['pid']}, since {started:%Y-%m-%d %H:%M:%S}")
    head.add_row("Version", node["version"])
    head.add_row("Cluster", node["cluster"])
    labels = [f"{key}={value}" for key, value in sorted(node["labels"].items())]
    head.add_row("Labels", ", ".join(labels) or "none")
    head.add_row("Copies", str(node["copies"]))
    free, capacity = format_size(node["free_bytes"]), format_size(node["capacity_bytes"])
    head.add_row("Space", f"{free} free of {capacity}")
    head.add_row("Data", "\n".join(node["data"]) or "none")
    parts: list[RenderableType] = [head]
    listens = table("SERVES", "AT")
    for name, address in sorted(node["transports"].items()):
        listens.add_row(f"transport {name}", address)
    for name, uri in sorted(node["uris"].items()):
        listens.add_row(f"frontend {name}", uri)
    parts += [Text(), listens]
    if node.get("workers"):
        right = ["WORKER", "PID", "RESTARTS"]
        workers = table("WORKER", "STATE", "PID", "RESTARTS", right=right)
        for at, each in enumerate(node["workers"]):
            how = word("running" if each["ready"] else "starting")
            workers.add_row(str(at), how, _text(each["pid"]), str(each["restarts"]))
        parts.append(workers)
    if node["orphans"]:
        orphans = table("FOLDER NOT USED", "WHY")
        for path, why in sorted(node["orphans"].items()):
            orphans.add_row(path, why)
        parts.append(orphans)
    return Group(*parts)


def drain_plan(steps: Iterable[Json]) -> Table:
    """Return what draining a node does to each of its volumes."""
    made = table("VOLUME", "ROLE", "STATE", "PRIMARY GOES TO", "COPY GOES TO")
    for step in steps:
        if step["why_not"]:
            goes = Text(f"nowhere: {step['why_not']}", style=_BAD)
        else:
            goes = Text(step["copy_to"] or "- (enough others are in sync)")
        role = step["role"]
        heir = step["promote"] or ("the new copy, once in sync" if role == "primary" else "-")
        made.add_row(step["volume"], role, word(step["state"]), heir, goes)
    return made


def cluster_page(status: Json) -> RenderableType:
    """Return the nodes and the volumes of a local cluster."""
    right = ["PID", "COPIES", "PRIMARIES", "FREE"]
    columns = ("NODE", "STATE", "PID", "COPIES", "PRIMARIES", "FREE", "NBD")
    nodes = table(*columns, right=right, wrap=["STATE"])
    for node in status["nodes"]:
        free = node.get("free_bytes")
        nodes.add_row(
            node["name"],
            node_state(node["state"], node),
            _text(node["pid"]),
            _text(node.get("copies")),
            _text(node.get("primaries")),
            "-" if free is None else format_size(free),
            _text((node.get("frontends") or {}).get("nbd")),
        )
    where = f"in {status['dir']}" if status["dir"] else status["cluster"]
    parts: list[RenderableType] = [Text(f"Cluster {where}", style=_DIM), nodes]
    if status["volumes"]:
        parts.append(volume_table(status["volumes"]))
    elif status["volumes"] is not None:
        parts.append(Text("No volumes yet: holdfast volume create NAME --size 1GiB", style=_DIM))
    return Group(*parts)


def _text(value: object) -> str:
    return "-" if value in {None, ""} else str(value)


def event_line(event: Json) -> Text:
    """Return one event: when, where, what."""
    at = dt.datetime.fromtimestamp(event["at"]).astimezone()
    line = Text()
    line.append(f"{at:%Y-%m-%d %H:%M:%S}  ", style=_DIM)
    line.append(f"{event['node'] or '-':<6}")
    line.append(event["sentence"])
    return line


def explanation(told: Json, now: float) -> RenderableType:
    """Return why a volume is as it is; `now` is in Unix seconds."""
    head = Text(f"Volume {told['name']} is ")
    head.append_text(word(told["health"]))
    head.append(", access ")
    head.append_text(word(told["access"]))
    if told["since"] is not None:
        head.append(f", since {_moment(told['since'], now)}", style=_DIM)
    if told["told_by"] == "record":
        head.append(" (told by the group record; its primary cannot be asked)", style=_DIM)
    parts: list[RenderableType] = [head]
    coming = [
        ("" if each["at"] is None else f"{_moment(each['at'], now)}: ") + each["sentence"]
        for each in told["next"]
    ]
    sections = [("Why", told["why"]), ("Now", told["doing"]), ("Next", coming)]
    for title, sentences in sections:
        if sentences:
            parts.append(Text(f"\n{title}", style="bold"))
            parts += [Padding(Text(each), (0, 0, 0, 2)) for each in sentences]
    if told["help"]:
        parts.append(Text("\nWhat would help", style="bold"))
    for each in told["help"]:
        parts.append(Padding(Text(each["sentence"]), (0, 0, 0, 2)))
        if each["command"]:
            # In one piece, to be copied.
            command = f"{'':6}{each['command']}"
            parts.append(Text(command, style="cyan", no_wrap=True, overflow="ignore"))
    return Group(*parts)


def _moment(at: float, now: float) -> str:
    clock = dt.datetime.fromtimestamp(at).astimezone()
    away = duration(abs(at - now))
    distance = f"in {away}" if at > now else f"{away} ago"
    return f"{clock:%Y-%m-%d %H:%M:%S} ({distance})"


@attrs.define
class SyncProgress:
    """A bar for each copy that is being synced."""

    _bars: Progress
    _tasks: dict[str, TaskID] = attrs.field(factory=dict)
    _told: str = ""
    """What was said last of a volume whose copies are not being synced."""

    def show(self, volume: Json) -> None:
        """Bring the bars up to what `volume` says."""
        for copy in volume["copies"]:
            sync = copy.get("sync")
            if not sync or not sync["bytes_total"]:
                continue
            node = copy["node"]
            if node not in self._tasks:
                self._tasks[node] = self._bars.add_task(f"syncing {node}", total=None)
            done = sync["bytes_total"] - sync["bytes_left"]
            self._bars.update(self._tasks[node], total=sync["bytes_total"], completed=done)
        stuck = volume["health"] == "offline"  # Said to a pipe too: nothing else would be.
        moving = self._bars.disable or self._tasks
        if (stuck or not moving) and volume["reason"] != self._told:
            self._told = volume["reason"]
            self._bars.console.print(f"Waiting: {self._told}")


@contextmanager
def sync_progress() -> Iterator[SyncProgress]:
    """Open bars for the copies of a volume on standard error."""
    with _bars() as bars:
        yield SyncProgress(bars)


@contextmanager
def byte_progress(what: str, total: int) -> Iterator[Any]:
    """Open one bar that counts bytes on standard error; yields `advance(bytes)`."""
    with _bars() as bars:
        task = bars.add_task(what, total=total)
        yield lambda count: bars.advance(task, count)


def _bars() -> Progress:
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=err,
        transient=True,
        disable=not err.is_terminal,
    )
