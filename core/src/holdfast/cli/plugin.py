"""`holdfast plugin …`: which drivers are installed, and whether they work."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from holdfast.cli.context import here, pairs, put, put_json
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
def check(
    ctx: typer.Context,
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="A driver.", show_default="all")
    ] = None,
    kind: Kind = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="Set an option of the driver for the trial."
        ),
    ] = None,
) -> None:
    """Load every installed driver, or try one: hold it to each promise of its kind.

    The exit code is 0 only when all of them work, or every promise is kept.
    """
    if name is not None:
        _try(ctx, name, kind, pairs(settings or [], "--set"))
        return
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


def _try(ctx: typer.Context, name: str, kind: str | None, settings: dict[str, str]) -> None:
    """Run the kit of each kind that has a driver of this name."""
    from holdfast.kernel import registry

    kinds = [kind] if kind else [each for each in registry.KINDS if name in registry.names(each)]
    if not kinds:
        raise DriverError(
            f"There is no driver {name!r}.", hint="`holdfast plugin list` shows what is installed."
        )
    tried = [_tried(each, name, settings) for each in kinds]
    if here(ctx).json:
        put_json({"plugins": tried})
    else:
        for each in tried:
            _show_tried(each)
    failed = sum(bool(each["failure"]) for plugin in tried for each in plugin["checks"])
    if failed:
        raise DriverError(
            f"The driver {name!r} breaks {failed} of its promises.",
            hint="Its author would like to know.",
        )


def _tried(kind: str, name: str, settings: dict[str, str]) -> dict[str, Any]:
    import functools
    import logging
    import tempfile
    from pathlib import Path

    import anyio

    from holdfast.kernel import registry
    from holdfast.kernel.config import asked_for, options_from_strings
    from holdfast.testing import trial

    # What drivers log of strangers and broken links belongs to the trial.
    logging.getLogger().addHandler(logging.NullHandler())
    driver = registry.load(kind, name)
    checks = []
    if kind in trial.KINDS:
        with tempfile.TemporaryDirectory(prefix="holdfast-check-") as folder:
            options = None
            if getattr(driver, "Options", None) is not None:
                given = trial.trial_options(driver, Path(folder)) | settings
                with asked_for():
                    options = options_from_strings(driver.Options, given)
            checks = anyio.run(
                functools.partial(trial.run_kit, kind, driver, options),
                # As a node has it.
                backend_options={"use_uvloop": True},
            )
    return {
        "kind": kind,
        "name": name,
        "checks": [
            {"name": each.name, "promise": each.promise, "failure": each.failure} for each in checks
        ],
    }


def _show_tried(plugin: dict[str, Any]) -> None:
    from holdfast.cli import render

    title = f"{plugin['kind']} {plugin['name']!r}"
    if not plugin["checks"]:
        put(f"{title} loads; there is no kit for drivers of its kind.")
        return
    rows = render.table("KEPT", "PROMISE")
    for each in plugin["checks"]:
        failure = f"\n{each['failure']}" if each["failure"] else ""
        rows.add_row(render.word("broken" if failure else "ok"), each["promise"] + failure)
    render.show(rows)
    kept_count = sum(not each["failure"] for each in plugin["checks"])
    put(f"{title} keeps {kept_count} of {len(plugin['checks'])} promises.")


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
