"""`holdfast demo`: the main job as a story, with proof.

Four real node processes, a real file, a writer, a SIGKILL. Everything claimed at the end was
measured by the consumer's own books (`demo_writer.py`), and nothing stays behind: no process, no
folder, whatever happens on the way.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any

import attrs
import typer

from holdfast.cli.context import Context, here, put_json
from holdfast.errors import HoldfastError, UnavailableError
from holdfast.node import ports, supervisor
from holdfast.node.control_client import ControlClient, Json
from holdfast.node.local_cluster import LocalCluster, LocalNode
from holdfast.units import MIB, format_size

if TYPE_CHECKING:
    from holdfast.cli.demo_stage import Stage
    from holdfast.cli.demo_writer import Writer

VOLUME = "demo"
REPLICAS = 2
NODES = 4
FILE_BYTES = 256 * MIB
PAUSE_S_MAX = 6.0
"""What is promised with default settings: three seconds of lease and margin, then a promotion."""
WRITE_FIRST_S = 3.0
WRITE_AFTER_S = 3.0
HEAL_TIMEOUT_S = 120.0
_SETTINGS = """\
# A node that is back within a minute is waited for, so that the delta sync can be seen.
[volumes.defaults]
member_missing_timeout_s = 60.0
"""


@attrs.define
class Result:
    """What the demonstration found; `held` only when all of it did."""

    nodes: int = NODES
    volume_bytes: int = 0
    file_bytes: int = 0
    import_s: float = 0.0
    primary_before: str = ""
    primary_after: str = ""
    acknowledged: int = 0
    lost: int = 0
    file_intact: bool = False
    pause_s: float = 0.0
    changed_bytes: int = 0
    """What the writer wrote while the node was away."""
    sync_sent_bytes: int = 0
    sync_s: float = 0.0
    copies_equal: bool = False
    copies: int = 0
    error: str = ""

    @property
    def held(self) -> bool:
        """Whether every promise was kept."""
        return not self.error and all(good for _, _, good in self.rows())

    def rows(self) -> list[tuple[str, str, bool]]:
        """Return what was promised, what came out, and whether it held."""
        share = self.sync_sent_bytes / self.volume_bytes if self.volume_bytes else 1.0
        took = f"in {self.sync_s:.1f} s"
        moved = self.primary_after not in {"", self.primary_before}
        return [
            (
                "Acknowledged writes lost",
                f"{self.lost} of {self.acknowledged}, each read back and compared",
                self.acknowledged > 0 and self.lost == 0,
            ),
            (
                "The imported file",
                f"{format_size(self.file_bytes)}, checksum "
                + ("equal" if self.file_intact else "differs"),
                self.file_intact,
            ),
            (
                "Pause when the primary was killed",
                f"{self.pause_s:.2f} s (promised: {PAUSE_S_MAX:g} s), no error",
                0 < self.pause_s <= PAUSE_S_MAX,
            ),
            (
                "Primary",
                f"from {self.primary_before or '-'} to {self.primary_after or '-'}, by itself",
                moved,
            ),
            (
                "Sent to bring the node back",
                f"{format_size(self.sync_sent_bytes)}, {share:.1%} of the volume, {took}",
                share <= 0.5,
            ),
            (
                "Copies compared by hash",
                f"{self.copies}, " + ("all equal" if self.copies_equal else "not equal"),
                self.copies_equal and self.copies == REPLICAS + 1,
            ),
        ]


def add_to(app: typer.Typer) -> None:
    """Add this module's command to `holdfast`."""
    app.command()(demo)


def demo(
    ctx: typer.Context,
    keep: Annotated[bool, typer.Option("--keep", help="Keep the cluster's folder.")] = False,
) -> None:
    """Show the main job: kill a primary under load, lose nothing, and bring it back.

    Starts a cluster of its own in a temporary folder and removes it again. It takes about a minute
    and one GiB of disk space. The exit code is 0 only if everything held.
    """
    from holdfast.cli.demo_stage import Stage

    context = here(ctx)
    result = Result()
    stage = Stage(quiet=context.json)
    folder = Path(tempfile.mkdtemp(prefix="holdfast-demo-"))
    try:
        with _ending_in_order():
            _Demo(folder, stage, result).play()
    except HoldfastError as error:
        result.error = str(error)
        raise
    finally:
        _tidy(folder, keep=keep)
        if context.json:
            put_json(attrs.asdict(result) | {"held": result.held})
    stage.summary(result.rows(), held=result.held)
    if keep:
        stage.tell(f"The cluster is kept: holdfast --dir {folder}/cluster up")
    if not result.held:
        raise typer.Exit(1)


class _Demo:
    """One performance."""

    def __init__(self, folder: Path, stage: Stage, result: Result) -> None:
        self._folder = folder
        self._stage = stage
        self._result = result
        self._file = folder / "file"
        self._digest = b""
        self._context = Context(dir=folder / "cluster")
        self._cluster: LocalCluster

    def play(self) -> None:
        stage = self._stage
        stage.title(
            "Holdfast",
            "Four nodes. A volume with two replicas. A writer that never stops.\n"
            "Then the primary is killed, and nothing is lost.",
        )
        self._start()
        self._import()
        killed, writer = self._write_and_kill()
        try:
            self._bring_back(killed, writer)
            writer.stop()
        finally:
            writer.abandon()
        self._check(writer)

    def _start(self) -> None:
        self._stage.chapter(f"Start {NODES} nodes, each a process of its own")
        settings = self._folder / "settings.toml"
        settings.write_text(_SETTINGS, encoding="utf-8")
        began = time.monotonic()
        with self._stage.waiting("starting"), ports.choosing():
            self._cluster = LocalCluster.create(self._context.dir, count=NODES, extra=settings)
            supervisor.start(self._cluster.nodes)
        pids = ", ".join(f"{node.name} is {node.pid}" for node in self._cluster.nodes)
        self._stage.done(f"ready in {time.monotonic() - began:.1f} s ({pids})")

    def _import(self) -> None:
        from holdfast.cli.file_copy import copy_in
        from holdfast.cli.nbd_client import NbdClient

        stage, result = self._stage, self._result
        stage.chapter(f"Make a volume with {REPLICAS} replicas and put a real file on it")
        with stage.bar("gathering this Python's own files", FILE_BYTES) as advance:
            self._digest = make_file(self._file, advance)
        result.file_bytes, result.volume_bytes = FILE_BYTES, 2 * FILE_BYTES
        client = self._client()
        client.create_volume(name=VOLUME, size_bytes=result.volume_bytes, replicas=REPLICAS)
        with stage.waiting("the replicas join"):
            self._wait(lambda volume: volume["health"] == "healthy", HEAL_TIMEOUT_S)
        status = client.volume(VOLUME)
        result.primary_before = status["primary"]
        others = [c["node"] for c in status["copies"] if c["role"] == "replica"]
        stage.done(
            f"Volume of {format_size(result.volume_bytes)}: primary on {status['primary']}, "
            f"replicas on {' and '.join(others)}"
        )
        began = time.monotonic()
        with (
            self._file.open("rb") as source,
            NbdClient(self._uri(client, result.primary_before), timeout_s=60) as volume,
            stage.bar("importing", result.file_bytes) as advance,
        ):
            copy_in(source.fileno(), result.file_bytes, volume, advance)
        result.import_s = time.monotonic() - began
        rate = result.file_bytes / max(result.import_s, 1e-9)
        stage.done(
            f"{format_size(result.file_bytes)} imported in {result.import_s:.1f} s, "
            f"{format_size(rate)}/s, flushed on all three"
        )

    def _write_and_kill(self) -> tuple[LocalNode, Writer]:
        from holdfast.cli.demo_writer import Writer

        stage, result = self._stage, self._result
        client = self._client()
        status = client.volume(VOLUME)
        result.primary_before = status["primary"]
        holders = {copy["node"] for copy in status["copies"]}
        through = next(name for name in self._cluster.names if name not in holders)
        stage.chapter(f"Write without end, through {through}, which has no copy at all")
        # The file ends on a block, so the records begin right behind it.
        writer = Writer(
            self._uri(client, through), result.file_bytes, result.volume_bytes - result.file_bytes
        )
        writer.start()
        self._watch_for(writer, WRITE_FIRST_S)
        stage.done(f"{writer.acknowledged} numbered, checksummed records acknowledged so far")

        killed = self._cluster.node(result.primary_before)
        pid = killed.pid
        assert pid is not None
        stage.chapter(f"Kill the primary, {killed.name}: SIGKILL to process {pid}")
        writer.mark()
        before = writer.acknowledged
        os.kill(pid, signal.SIGKILL)
        found = self._watch(
            writer, lambda volume: volume is not None and volume["primary"] != killed.name, 30
        )
        if not found:
            raise writer.failure or UnavailableError("No other node took over within 30 s.")
        self._watch_for(writer, WRITE_AFTER_S)
        status = self._client().volume(VOLUME)
        result.primary_after = status["primary"]
        result.pause_s = writer.pause_s
        if writer.failure is not None:
            raise writer.failure
        stage.done(
            f"{result.primary_after} took over; the writer saw a pause of "
            f"{result.pause_s:.2f} s and no error, and went on for "
            f"{writer.acknowledged - before} records"
        )
        stage.tell(status["reason"])
        return killed, writer

    def _bring_back(self, killed: LocalNode, writer: Writer) -> None:
        stage, result = self._stage, self._result
        stage.chapter(f"Start {killed.name} again; only what changed travels")
        began = time.monotonic()
        with self._cluster.locked():
            supervisor.start([killed])
        healed = self._watch(
            writer,
            lambda volume: volume is not None and volume["health"] == "healthy",
            HEAL_TIMEOUT_S,
        )
        if not healed:
            raise writer.failure or UnavailableError(
                f"The volume was not healthy again within {HEAL_TIMEOUT_S:g} s."
            )
        result.sync_s = time.monotonic() - began
        status = self._client().volume(VOLUME)
        sync = next((c["sync"] for c in status["copies"] if c["node"] == killed.name), None)
        result.sync_sent_bytes = sync["bytes_sent"] if sync else 0
        result.changed_bytes = writer.area_used_bytes
        stage.done(
            f"{killed.name} is in sync again: {format_size(result.sync_sent_bytes)} sent, "
            f"the volume has {format_size(result.volume_bytes)}"
        )

    def _check(self, writer: Writer) -> None:
        from holdfast.cli import render
        from holdfast.cli.nbd_client import NbdClient
        from holdfast.cli.volume_data import verified

        stage, result = self._stage, self._result
        stage.chapter("Read everything back and compare")
        client = self._client()
        with NbdClient(self._uri(client, result.primary_after), timeout_s=60) as volume:
            with stage.bar("reading the records", writer.area_used_bytes) as advance:
                lost = writer.check(volume, advance)
            with stage.bar("reading the file", result.file_bytes) as advance:
                digest = digest_of(volume, result.file_bytes, advance)
        result.acknowledged, result.lost = writer.acknowledged, len(lost)
        result.file_intact = digest == self._digest
        stage.done(f"{result.acknowledged} acknowledged records, {result.lost} lost", good=not lost)
        stage.done("The file's checksum", good=result.file_intact)
        with stage.waiting("comparing the hashes of all copies"):
            outcome = verified(client.verify(VOLUME), render)
        result.copies_equal, result.copies = outcome["equal"], outcome["copies"]
        stage.done(f"{result.copies} copies compared chunk by chunk", good=result.copies_equal)

    # --- small things --------------------------------------------------------------------------

    def _client(self) -> ControlClient:
        return self._context.client()

    def _uri(self, client: ControlClient, node: str) -> str:
        from holdfast.cli.addressing import nbd_uri

        return nbd_uri(client, VOLUME, node)

    def _status(self) -> Json | None:
        """Return the volume's status, or None while nobody can say."""
        try:
            return self._client().volume(VOLUME)
        except UnavailableError:
            return None

    def _wait(self, condition: Callable[[Any], bool], timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        while (volume := self._status()) is None or not condition(volume):
            if time.monotonic() > deadline:
                raise UnavailableError(
                    f"Volume {VOLUME} did not become healthy within {timeout_s:g} s: "
                    f"{volume['reason'] if volume else 'no node answers.'}"
                )
            time.sleep(0.1)

    def _watch(self, writer: Writer, until: Callable[[Any], bool], timeout_s: float) -> bool:
        return self._stage.watch(writer, self._status, until, timeout_s)

    def _watch_for(self, writer: Writer, seconds: float) -> None:
        end = time.monotonic() + seconds
        self._watch(writer, lambda _: time.monotonic() >= end, seconds + 30)
        if writer.failure is not None:
            raise writer.failure


def make_file(path: Path, advance: Callable[[int], None] = lambda _: None) -> bytes:
    """Put this Python installation's files, one behind the other, into `path`.

    Real content compresses and repeats as real content does. Small installations are taken several
    times. The file has `FILE_BYTES` bytes; returns its SHA-256.
    """
    digest = hashlib.sha256()
    left = FILE_BYTES
    with path.open("wb") as target:
        for whole in _installed_blocks():
            block = whole[:left]
            target.write(block)
            digest.update(block)
            advance(len(block))
            left -= len(block)
            if not left:
                break
    return digest.digest()


def _installed_blocks() -> Iterator[bytes]:
    roots = [Path(sys.prefix, "lib"), Path(os.__file__).parent]
    while True:
        for root in roots:
            for folder, folders, files in os.walk(root):
                folders.sort()
                for name in sorted(files):
                    with contextlib.suppress(OSError):
                        data = Path(folder, name).read_bytes()
                        yield from (data[i : i + MIB] for i in range(0, len(data), MIB))


def digest_of(volume: Any, size: int, advance: Callable[[int], None]) -> bytes:
    """Return the SHA-256 of the first `size` bytes of `volume`, read through NBD."""
    from holdfast.cli.nbd_client import READ, Request

    digest = hashlib.sha256()
    early: dict[int, bytes] = {}
    due = 0
    reads = (Request(READ, at, min(MIB, size - at)) for at in range(0, size, MIB))
    for request, data in volume.pipeline(reads):
        # Answers may come in any order; the sum wants them in one.
        early[request.offset] = data
        while due in early:
            block = early.pop(due)
            digest.update(block)
            due += len(block)
            advance(len(block))
    return digest.digest()


@contextlib.contextmanager
def _ending_in_order() -> Iterator[None]:
    """Let SIGTERM and SIGHUP unwind like Ctrl-C, so that they clean up as well."""

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = {s: signal.signal(s, interrupt) for s in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for which, handler in before.items():
            signal.signal(which, handler)


def _tidy(folder: Path, *, keep: bool) -> None:
    """End every process of the demonstration and remove its folder; cannot be interrupted."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with contextlib.suppress(HoldfastError):
            cluster = LocalCluster.open(folder / "cluster")
            with cluster.locked():
                supervisor.stop(cluster.nodes, handover=False)
            if cluster.sockets is not None:
                shutil.rmtree(cluster.sockets, ignore_errors=True)
        if keep:
            (folder / "file").unlink(missing_ok=True)
        else:
            shutil.rmtree(folder, ignore_errors=True)
    finally:
        signal.signal(signal.SIGINT, before)
