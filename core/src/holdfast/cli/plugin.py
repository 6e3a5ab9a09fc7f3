"""`holdfast plugin …`: which drivers are installed, and whether they work."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from holdfast.cli.context import here, put, put_json
from holdfast.errors import DriverError

app = typer.Typer(name="plugin", help="List and check the installed drivers.", no_args_is_help=True)
Kind = Annotated[
    str | None,
    typer.Option(
        "--kind",
        "-k",
        metavar="KIND",
        help="Only this kind, such as policy.",
        show_default="all kinds",
    ),
]


@app.command("list")
def list_plugins(ctx: typer.Context, kind: Kind = None) -> None:
    """List every installed driver with its distribution, version, and what is wrong with it."""
    _show(ctx, _drivers(kind))


@app.command()
def check(ctx: typer.Context, kind: Kind = None) -> None:
    """Load every installed driver; the exit code is 0 only when all of them work."""
    drivers = _drivers(kind)
    _show(ctx, drivers)
    broken = [f"{each['kind']} {each['name']!r}" for each in drivers if each["status"] != "ok"]
    if broken:
        raise DriverError(
            f"{len(broken)} of {len(drivers)} drivers do not work: {', '.join(broken)}.",
            hint="The reasons are in the list.",
        )
    if not here(ctx).json:
        put(f"All {len(drivers)} drivers work.")


def _drivers(kind: str | None) -> list[dict[str, Any]]:
    from holdfast.kernel import registry

    return [
        {
            "kind": each.kind,
            "name": each.name,
            "distribution": each.distribution,
            "version": each.version,
            "status": each.status.value,
            "reason": each.reason,
        }
        for each in registry.list_drivers(kind)
    ]


def _show(ctx: typer.Context, drivers: list[dict[str, Any]]) -> None:
    if here(ctx).json:
        put_json({"plugins": drivers})
        return
    from holdfast.cli import render

    rows = render.table("KIND", "NAME", "DISTRIBUTION", "VERSION", "STATE")
    for each in drivers:
        state = render.word(each["status"])
        if each["reason"]:
            state.append(f": {each['reason']}")
        rows.add_row(each["kind"], each["name"], each["distribution"], each["version"], state)
    render.show(rows)
