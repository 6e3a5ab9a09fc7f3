"""`holdfast volume promote|move|evict|attach|detach`: what moves copies and makes devices.

Nodes may be named by position or by option: `promote db n2` and `promote db --node n2` are the same.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from holdfast.cli.context import Context, here, put, put_json, size_in
from holdfast.errors import ConflictError, NotFoundError, UnavailableError, UsageError
from holdfast.node.control_client import Json
from holdfast.node.toml_files import write_atomically
from holdfast.units import format_size

RESIZE_PATIENCE_S = 30.0
RESIZE_POLL_S = 0.1

replicas = typer.Typer(
    name="replica",
    help="Take out copies of volumes; `volume move` moves them.",
    no_args_is_help=True,
)

Name = Annotated[str, typer.Argument(metavar="NAME", help="The volume's name.")]
EvictedNode = Annotated[
    str | None, typer.Argument(metavar="NODE", help="The node whose copy is to go.")
]
NodeOption = Annotated[str | None, typer.Option("--node", metavar="NODE", help="The same.")]


def add_to(app: typer.Typer) -> None:
    """Add this module's commands to `holdfast volume`."""
    app.command()(attach)
    app.command()(detach)
    app.command()(promote)
    app.command()(move)
    app.command()(evict)
    app.command()(resize)


def promote(
    ctx: typer.Context,
    name: Name,
    node: Annotated[
        str | None, typer.Argument(metavar="NODE", help="Where the primary is to be.")
    ] = None,
    node_option: NodeOption = None,
    force: Annotated[
        bool,
        typer.Option("--force", help="Though unflushed writes that another copy has may be lost."),
    ] = False,
) -> None:
    """Hand the primary over to another node that has an in-sync copy.

    Consumers see a pause of some milliseconds. After a loss of power a copy waits for those that
    may have kept more than it has; when they will not come back, --force lets it go on without them.
    """
    target = _said("NODE", node, "--node", node_option)
    context = here(ctx)
    status = context.client().promote(name, target, force=force)
    _told(context, status, f"The primary of volume {name} is on {status['primary']}.")


def move(
    ctx: typer.Context,
    name: Name,
    source: Annotated[
        str | None, typer.Argument(metavar="FROM", help="The node that has a copy.")
    ] = None,
    target: Annotated[
        str | None, typer.Argument(metavar="TO", help="The node that is to have it.")
    ] = None,
    from_option: Annotated[
        str | None, typer.Option("--from", metavar="NODE", help="As FROM.")
    ] = None,
    to_option: Annotated[str | None, typer.Option("--to", metavar="NODE", help="As TO.")] = None,
    call_off: Annotated[
        bool, typer.Option("--call-off", help="Leave the copy where it is after all.")
    ] = False,
) -> None:
    """Move a copy to another node: add and sync there first, then remove it here."""
    source = _said("FROM", source, "--from", from_option)
    if (target is None and to_option is None) is not call_off:
        raise UsageError(
            "Either a node to move to or --call-off is needed, and not both.",
            hint=f"Write `holdfast volume move {name} {source} TO`, or --call-off in place of TO.",
        )
    context = here(ctx)
    if call_off:
        status = context.client().move(name, source, source)
        _told(context, status, f"The copy of volume {name} on {source} stays there.")
        return
    target = _said("TO", target, "--to", to_option)
    if target == source:
        raise UsageError(f"A copy cannot be moved from {source} to {source}.")
    status = context.client().move(name, source, target)
    _told(context, status, f"The copy of volume {name} on {source} is moving to {target}.")


@replicas.command()
def evict(
    ctx: typer.Context, name: Name, node: EvictedNode = None, node_option: NodeOption = None
) -> None:
    """Take a node's copy out of a volume for good; a replacement is made elsewhere."""
    node = _said("NODE", node, "--node", node_option)
    context = here(ctx)
    client = context.client()
    before = _copies_on(node, client.volume(name))
    status = client.evict(name, node)
    after = _copies_on(node, status)
    if not after:
        _told(context, status, f"Volume {name} has no copy on {node} any more.")
    elif after == before:
        _told(context, status, f"The copy of volume {name} on {node} goes once another is in sync.")
    else:
        told = "is taken out, and a new one is made there: no other node can take it."
        _told(context, status, f"The copy of volume {name} on {node} {told}")


def _copies_on(node: str, status: Json) -> list[str | None]:
    """Return the ids of a volume's copies on a node; None for one without."""
    return [copy.get("copy") for copy in status["copies"] if copy["node"] == node]


def resize(
    ctx: typer.Context,
    name: Name,
    size: Annotated[
        str, typer.Option("--size", "-s", metavar="SIZE", help="The new size, such as 2TiB.")
    ],
) -> None:
    """Make a volume larger while it is in use.

    Every copy grows first; the command returns when the new size is served. It is declared at once,
    and what cannot grow now does so when it can.
    """
    wanted = size_in(size)
    context = here(ctx)
    client = context.client()
    status = client.change_volume(name, size_bytes=wanted)
    give_up = time.monotonic() + RESIZE_PATIENCE_S
    while (status.get("served_size") or 0) < wanted:
        if time.monotonic() > give_up:
            raise _not_grown(status, wanted)
        time.sleep(RESIZE_POLL_S)
        status = client.volume(name)
    _told(context, status, f"Volume {name} has {format_size(wanted)} now.")


def _not_grown(status: Json, wanted: int) -> UnavailableError:
    """Return what to tell of a volume that does not serve the size that it was declared to have."""
    name = status["name"]
    away = [
        each["node"]
        for each in status["copies"]
        if each["state"] == "in-sync" and not each.get("alive", True)
    ]
    when = f"the copy on {' or '.join(away)} is back" if away else "every in-sync copy has grown"
    return UnavailableError(
        f"Volume {name} is declared to have {format_size(wanted)}, and does not serve that after "
        f"{RESIZE_PATIENCE_S:g} s; it will, by itself, once {when}.",
        hint=f"Look with `holdfast volume show {name}`, or `holdfast explain {name}`.",
    )


def attach(
    ctx: typer.Context,
    name: Name,
    node: Annotated[
        str | None,
        typer.Option(
            "--node", metavar="NODE", help="Through which node.", show_default="the best one"
        ),
    ] = None,
    driver: Annotated[
        str | None,
        typer.Option(
            "--driver",
            metavar="DRIVER",
            help="How.",
            show_default="the first that this machine can",
        ),
    ] = None,
    read_only: Annotated[bool, typer.Option("--read-only", help="Refuse writes.")] = False,
) -> None:
    """Make a volume a block device of this machine and print its path."""
    import anyio

    from holdfast.cli.addressing import served_uri
    from holdfast.cli.nbd_client import NbdClient

    context = here(ctx)
    uri = served_uri(context.client(), name, node)
    folder = _folder(context, name)
    if (record := _attached(folder)) is not None:
        raise ConflictError(
            f"Volume {name} is attached already, as {record['device']}.",
            hint=f"Detach it with `holdfast volume detach {name}`.",
        )
    chosen, made = _attach_driver(driver)
    folder.mkdir(parents=True, exist_ok=True)
    work = folder / "work"
    work.mkdir(exist_ok=True)

    async def run() -> str:
        device: str = await made.attach(uri, str(work), read_only=read_only)
        return device

    try:
        device = anyio.run(run)
    except UnavailableError:
        NbdClient(uri).close()  # Says why, where that is the volume's doing.
        raise
    record = {"name": name, "device": device, "driver": chosen, "uri": uri}
    write_atomically(folder / "attached.json", json.dumps(record) + "\n")
    if context.json:
        put_json(record)
    else:
        put(device)


def detach(ctx: typer.Context, name: Name) -> None:
    """Remove the block device that `attach` made."""
    import anyio

    from holdfast.kernel import registry

    context = here(ctx)
    folder = _folder(context, name)
    record = _attached(folder)
    if record is None:
        raise NotFoundError(
            f"Volume {name} is not attached on this machine.",
            hint=f"Attach it with `holdfast volume attach {name}`.",
        )
    anyio.run(registry.load("attach", record["driver"])().detach, str(folder / "work"))
    (folder / "attached.json").unlink(missing_ok=True)
    _told(context, record, f"{record['device']} is gone; volume {name} is detached.")


def attachments(context: Context) -> list[Json]:
    """Return what is attached on this machine through the cluster: `name`, `device`."""
    folders = sorted((context.dir / "attach").glob("*"))
    return [record for folder in folders if (record := _attached(folder)) is not None]


def _attach_driver(name: str | None) -> tuple[str, Any]:
    """Return the named driver, or the first that works here, kernel devices before others."""
    from holdfast.kernel import registry

    if name is not None:
        driver = registry.load("attach", name)()
        if (lack := driver.unavailable()) is not None:
            raise UnavailableError(f"This machine cannot attach by {name}: {lack}")
        return name, driver
    lacks = []
    for each in sorted(registry.names("attach"), key=lambda n: (n != "nbd", n)):
        driver = registry.load("attach", each)()
        lack = driver.unavailable()
        if lack is None:
            return each, driver
        lacks.append(f"{each}: {lack}")
    raise UnavailableError(
        "This machine cannot make block devices of volumes.", hint="\n".join(lacks)
    )


def _folder(context: Context, name: str) -> Path:
    return context.dir / "attach" / name


def _attached(folder: Path) -> Json | None:
    try:
        record: Json = json.loads((folder / "attached.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return record


def _said(what: str, word: str | None, option: str, value: str | None) -> str:
    """Return the node that was named, by position or by option; raises `UsageError` unless by one."""
    named = [each for each in (word, value) if each is not None]
    if len(named) != 1:
        lack = f"and {option} are both given" if named else "is missing"
        raise UsageError(f"{what} {lack}.", hint=f"Name the node once: {what}, or {option} NODE.")
    return named[0]


def _told(context: Context, status: Json, sentence: str) -> None:
    if context.json:
        put_json(status)
    else:
        put(sentence)
