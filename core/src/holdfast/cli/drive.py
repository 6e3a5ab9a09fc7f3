"""`holdfast drive …`: this machine's drives, as the replicators that use drives see them.

It asks drivers and no node, so it works before there is a cluster. Nothing is changed unless
`cleanup --apply` is given.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from holdfast.cli.context import Context, here, put, put_json, put_json_line
from holdfast.errors import UnavailableError
from holdfast.units import format_size

app = typer.Typer(
    name="drive",
    help="Look at this machine's drives, and at what nobody owns on them.",
    no_args_is_help=True,
)

Config = Annotated[
    Path | None,
    typer.Option(
        "--config", metavar="FILE", help="A node's configuration, which says what may be used."
    ),
]


@app.command("list")
def list_drives(ctx: typer.Context, config: Config = None) -> None:
    """List drives: model, serial, size, free space, sector size, and what is on them."""
    context = here(ctx)
    rows = [row for driver, options in _drivers(config) for row in _run(driver.drives(options))]
    if context.json:
        put_json({"drives": rows})
    elif not rows:
        put("This machine has no drives.")
    else:
        _show(rows)


@app.command()
def watch(ctx: typer.Context, config: Config = None) -> None:
    """Tell of drives as they come and go, until Ctrl-C."""
    context = here(ctx)
    driver, options = next(iter(_drivers(config)))

    async def follow() -> None:
        async for event in driver.drive_events(options):
            _told(context, event)

    asyncio.run(follow())


@app.command()
def cleanup(
    ctx: typer.Context,
    config: Annotated[
        Path, typer.Option("--config", metavar="FILE", help="The configuration of this node.")
    ],
    apply: Annotated[
        bool, typer.Option("--apply", help="Remove what is listed; without it, only list.")
    ] = False,
) -> None:
    """List what is ours on this node's drives and in no volume any more, and remove it on request.

    Each one is looked at again right before it is removed, and so are the volumes.
    """
    from holdfast.kernel.config import load_config

    context = here(ctx)
    loaded = load_config(config)
    rows: list[dict[str, Any]] = []

    async def work() -> None:
        store = await loaded.state.driver.open(loaded.state.options)
        try:
            for chosen in loaded.replicators.values():
                node = (loaded.cluster.name, loaded.node.name)
                rows.extend(await chosen.driver.cleanup(chosen.options, *node, store, apply=apply))
        finally:
            await store.aclose()

    asyncio.run(work())
    if context.json:
        put_json({"unowned": rows, "applied": apply})
        return
    for row in rows:
        put(f"{row['path']}  {format_size(row['size_bytes'])}  {row['label']}: {row['told']}")
    if not rows:
        put("There is nothing to clean up.")
    elif not apply:
        put("Nothing was removed; --apply removes these.")


def _drivers(config: Path | None) -> Iterator[tuple[Any, Any]]:
    """Yield the replicators that know drives, with their options."""
    from holdfast.kernel import registry
    from holdfast.kernel.config import load_config

    chosen = {} if config is None else load_config(config).replicators
    found = False
    for info in registry.list_drivers("replicator"):
        if info.status is registry.DriverStatus.OK:
            driver = registry.load("replicator", info.name)
            found = True
            yield driver, chosen[info.name].options if info.name in chosen else driver.Options()
    if not found:
        raise UnavailableError(
            "No replicator that uses drives is installed.",
            hint="pip install holdfast-transport-nvmeof",
        )


def _run(work: Any) -> list[dict[str, Any]]:
    async def wait() -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = await work
        return rows

    return asyncio.run(wait())


def _show(rows: list[dict[str, Any]]) -> None:
    from holdfast.cli import render

    made = render.table(
        "DRIVE", "MODEL", "SERIAL", "SIZE", "FREE", "SECTOR", "USABLE", "CONTENT",
        right=["SIZE", "FREE", "SECTOR"],
    )  # fmt: skip
    for row in rows:
        made.add_row(
            row["path"], row["model"] or "-", row["serial"] or "-", format_size(row["size_bytes"]),
            format_size(row["free_bytes"]), str(row["sector_bytes"]),
            "yes" if row["usable"] else "no", row["told"],
        )  # fmt: skip
    render.show(made)


def _told(context: Context, event: dict[str, Any]) -> None:
    if context.json:
        put_json_line(event)
    else:
        put(f"{event['action']} {event['path']}: {event['told']}")
