"""`holdfast volume import|export|zero|verify|scrub`: what moves or reads a volume's bytes.

Import and export go through the NBD frontend like any other consumer's I/O; `file_copy.py` does the
copying.
"""

from __future__ import annotations

import contextlib
import os
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from holdfast.cli.context import Context, file_error, here, put, put_json, size_in, warn
from holdfast.cli.file_copy import BLOCK_BYTES, ZEROS, copy_in, copy_out
from holdfast.cli.nbd_client import NbdClient
from holdfast.cli.volume_admin import attachments
from holdfast.cli.waiting import POLL_S
from holdfast.errors import (
    ConflictError,
    CopiesDifferError,
    HoldfastError,
    UsageError,
)
from holdfast.node.control_client import ControlClient, Json
from holdfast.units import MIB, SECTOR_BYTES, counted, format_size

RELEASE_PATIENCE_S = 3.0
"""How long a client that has just gone may take to let go of a volume."""

Name = Annotated[str, typer.Argument(metavar="NAME", help="The volume's name.")]
Node = Annotated[
    str | None,
    typer.Option("--node", metavar="NODE", help="Through which node.", show_default="the best one"),
]


def add_to(app: typer.Typer) -> None:
    """Add this module's commands to `holdfast volume`."""
    app.command("import")(import_file)
    app.command("export")(export_file)
    app.command()(zero)
    app.command()(verify)
    app.command()(scrub)


def import_file(
    ctx: typer.Context,
    name: Name,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A disk image or any other file.")],
    node: Node = None,
    force: Annotated[bool, typer.Option("--force", help="Though it is in use.")] = False,
) -> None:
    """Copy a file onto a volume, from its first byte on.

    A volume that is in use is refused: it would change under whoever has it open. What it holds
    beyond the end of the file stays. When this returns, all of the file is on stable storage on the
    primary and every in-sync replica.
    """
    from holdfast.cli import render
    from holdfast.cli.addressing import served_uri

    context = here(ctx)
    if not file.exists() and Path(name).is_file():
        raise UsageError(
            f"{name} is a file, and {file} is none.",
            hint=f"The volume's name comes first: holdfast volume import {file} {name}",
        )
    client = context.client()
    if not force:
        _refuse_in_use(context, client, name)
    uri = served_uri(client, name, node)
    with _file_errors(file), file.open("rb", buffering=0) as source, NbdClient(uri) as volume:
        size = _size(file, source.fileno())
        if size > volume.size_bytes:
            raise ConflictError(
                f"{file} has {format_size(size)}, volume {name} only "
                f"{format_size(volume.size_bytes)}.",
                hint=f"Make it larger: holdfast volume resize {name} --size {-(-size // MIB)}MiB",
            )
        if volume.read_only:
            raise ConflictError(
                f"Volume {name} is read-only now.",
                hint=f"`holdfast volume show {name}` says why.",
            )
        with (
            _told_if_partial(name, file),
            render.byte_progress(f"importing {file.name}", size) as advance,
        ):
            sent = copy_in(source.fileno(), size, volume, advance)
    if context.json:
        put_json({"name": name, "file": str(file), "bytes": size, "bytes_written": sent})
    else:
        put(f"{file} is on volume {name}: {format_size(size)}, {format_size(sent)} without holes.")


def _refuse_in_use(context: Context, client: ControlClient, name: str) -> None:
    """Raise `ConflictError` when a volume would change under somebody: a device, or any client.

    All clients of one node share its session, so their node would let the import in.
    """
    for each in attachments(context):
        if each["name"] == name:
            raise ConflictError(
                f"Volume {name} is attached as {each['device']}, and would change under its user.",
                hint=f"First: holdfast volume detach {name}",
            )
    give_up = time.monotonic() + RELEASE_PATIENCE_S
    while (holder := client.volume(name)["attached"]) is not None:
        alive = {each["name"]: each["alive"] for each in client.nodes()}
        if not alive.get(holder, True):
            return  # Whether its client lives on is for the primary to say.
        if time.monotonic() > give_up:
            who = f"a client of node {holder}" if holder in alive else holder
            raise ConflictError(
                f"Volume {name} is in use by {who}, and would change under it.",
                hint="Close what has it open first, or import with --force.",
            )
        time.sleep(POLL_S)


@contextlib.contextmanager
def _told_if_partial(name: str, file: Path) -> Iterator[None]:
    """Say so, whatever ends an import in its midst: the volume is neither the old nor the new."""
    told = f"Volume {name} may hold only a part of {file} now: import it again."
    try:
        yield
    except HoldfastError as error:
        error.hint = f"{error.hint}\n{told}".lstrip()
        raise
    except KeyboardInterrupt:
        warn(told)
        raise


def _size(file: Path, source: int) -> int:
    mode = os.fstat(source).st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode)):
        raise UsageError(
            f"{file} is neither a file nor a block device, so its size is not known.",
            hint="Put its bytes into a file first, or send them with a client such as nbdcopy.",
        )
    return os.lseek(source, 0, os.SEEK_END)


def export_file(
    ctx: typer.Context,
    name: Name,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The file to be made.")],
    node: Node = None,
    force: Annotated[bool, typer.Option("--force", help="Replace FILE if it exists.")] = False,
) -> None:
    """Copy a volume into a file; what the volume does not hold becomes holes.

    FILE appears complete or not at all.
    """
    from holdfast.cli import render
    from holdfast.cli.addressing import served_uri

    context = here(ctx)
    uri = served_uri(context.client(), name, node)
    if file.exists() and not force:
        raise ConflictError(f"{file} exists already.", hint="Replace it with --force.")
    partial = file.with_name(f"{file.name}.partial")
    try:
        with NbdClient(uri) as volume, _file_errors(file):
            size = volume.size_bytes
            with (
                partial.open("wb", buffering=0) as target,
                render.byte_progress(f"exporting {name}", size) as advance,
            ):
                got = copy_out(volume, target.fileno(), advance)
            partial.replace(file)
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
    if context.json:
        put_json({"name": name, "file": str(file), "bytes": size, "bytes_read": got})
    else:
        put(f"Volume {name} is in {file}: {format_size(size)}, {format_size(got)} without holes.")


def zero(
    ctx: typer.Context,
    name: Name,
    offset: Annotated[
        str, typer.Option("--offset", metavar="BYTES", help="Where it begins, such as 448KiB.")
    ],
    length: Annotated[
        str, typer.Option("--length", metavar="BYTES", help="How long it is, such as 64KiB.")
    ],
    node: Node = None,
) -> None:
    """Overwrite a range of a volume with zeros, such as one that no disk can read any more.

    What it held is lost for good. When this returns, the zeros are on stable storage on the primary
    and every in-sync replica.
    """
    from holdfast.cli.addressing import served_uri

    context = here(ctx)
    first, count = size_in(offset), size_in(length)
    with NbdClient(served_uri(context.client(), name, node)) as volume:
        if first % SECTOR_BYTES or count % SECTOR_BYTES or not count:
            raise UsageError(
                f"--offset {offset} and --length {length} are not whole sectors, one or more.",
                hint=f"Give multiples of {SECTOR_BYTES} bytes.",
            )
        if first + count > volume.size_bytes:
            raise UsageError(
                f"--offset {offset} and --length {length} go beyond the end of volume {name}, "
                f"which has {format_size(volume.size_bytes)}.",
                hint="Give a smaller range.",
            )
        # Data, not a hole: a sector that cannot be read is cured by what is written to it.
        for at in range(first, first + count, BLOCK_BYTES):
            volume.write(at, ZEROS[: min(BLOCK_BYTES, first + count - at)])
        volume.flush()
    if context.json:
        put_json({"name": name, "offset": first, "length": count})
    else:
        put(f"{format_size(count)} of volume {name} at {offset} are zeros now.")


def verify(ctx: typer.Context, name: Name) -> None:
    """Compare all copies of a volume by hash, while it is in use.

    Exit code 0 means that every copy is equal; otherwise every chunk that differs is named.
    """
    from holdfast.cli import render

    context = here(ctx)
    result = verified(context.client().verify(name), render)
    if context.json:
        put_json(result)
    if result["equal"]:
        if not context.json:
            put(_equal(name, result))
        return
    if not context.json:
        render.show(render.findings(result))
    raise CopiesDifferError(
        f"Volume {name}: {_found(result)}.",
        hint=f"`holdfast volume scrub {name}` repairs what can be repaired.",
    )


def scrub(ctx: typer.Context, name: Name) -> None:
    """Compare all copies of a volume while it is in use, and repair what is wrong.

    Bytes that no longer match their own hash have rotted; they are repaired from a good copy.
    Copies that differ without rot are made equal to the primary. Exit code 0 means that nothing
    wrong is left.
    """
    from holdfast.cli import render

    context = here(ctx)
    result = verified(context.client().scrub(name), render)
    if context.json:
        put_json(result)
    elif result["repaired"] or not result["equal"]:
        render.show(render.findings(result))
    if not result["equal"]:
        raise CopiesDifferError(
            f"Volume {name}: {_found(result)}, and not all of it could be repaired.",
            hint="Restore those ranges from elsewhere, or write them anew.",
        )
    if not context.json:
        repaired = counted(result["repaired"], "chunk")
        put(_equal(name, result) + (f" Repaired: {repaired}." if result["repaired"] else ""))


def _equal(name: str, result: Json) -> str:
    if result["copies"] == 1:
        return f"The only copy of volume {name} is sound."
    return f"All {result['copies']} copies of volume {name} are equal."


def _found(result: Json) -> str:
    parts = []
    if result.get("rotten"):
        parts.append(counted(len(result["rotten"]), "rotten chunk"))
    if result["differences"]:
        parts.append(counted(len(result["differences"]), "chunk") + " not the same on all copies")
    return " and ".join(parts)


def verified(lines: Iterator[Json], render: Any) -> Json:
    """Show the progress of a verification and return its last line."""
    from holdfast.units import CHUNK_BYTES

    result: Json = {}
    done = 0
    with contextlib.ExitStack() as stack:
        advance: Callable[[int], None] | None = None
        for result in lines:
            if "equal" in result:
                break
            if advance is None:
                total = result["chunks_total"] * CHUNK_BYTES
                advance = stack.enter_context(render.byte_progress("comparing hashes", total))
            advance((result["chunks_done"] - done) * CHUNK_BYTES)
            done = result["chunks_done"]
    return result


@contextlib.contextmanager
def _file_errors(file: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise file_error(file, error) from error
