"""`holdfast config …`: what configuration is in force, and whether a file is right."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from holdfast.cli.context import Context, here, put, put_json
from holdfast.errors import UsageError

app = typer.Typer(name="config", help="Show and check configuration.", no_args_is_help=True)
File = Annotated[
    Path | None,
    typer.Option(
        "--config",
        "-c",
        metavar="FILE",
        help="A node's TOML file.",
        show_default="the local cluster's",
    ),
]
NodeOption = Annotated[
    str | None,
    typer.Option(
        "--node", metavar="NODE", help="Which node of the local cluster.", show_default="the first"
    ),
]


@app.command()
def show(ctx: typer.Context, file: File = None, node: NodeOption = None) -> None:
    """Print every setting of a node, with its value and where it came from."""
    from holdfast.kernel.config import load_config, provenance

    context = here(ctx)
    path = _file(context, file, node)
    settings = provenance(load_config(path))
    if context.json:
        rows = [{"path": s.path, "value": s.value, "source": s.source} for s in settings]
        put_json({"config": rows})
        return
    from holdfast.cli import render

    made = render.table("SETTING", "VALUE", "FROM", wrap=["VALUE"])
    for setting in settings:
        origin = setting.source.removeprefix(str(path)).lstrip(":")
        made.add_row(
            setting.path,
            json.dumps(setting.value),
            "default" if setting.source == "default" else f"line {origin}" if origin else "file",
        )
    render.show(made)
    put(str(path))


@app.command()
def check(ctx: typer.Context, file: File = None, node: NodeOption = None) -> None:
    """Say whether a configuration is right, or what is wrong, where, and what was meant."""
    from holdfast.kernel.config import load_config

    context = here(ctx)
    paths = [_file(context, file, node)]
    if file is None and node is None:
        paths = [each.config for each in context.cluster().nodes]
    for path in paths:
        load_config(path)
    if context.json:
        put_json({"checked": [str(path) for path in paths]})
    else:
        for path in paths:
            put(f"{path} is right.")


def _file(context: Context, file: Path | None, node: str | None) -> Path:
    if file is not None and node is not None:
        raise UsageError("--config and --node name two different things.", hint="Give one of them.")
    if file is not None:
        return file
    cluster = context.cluster()
    return cluster.node(node or cluster.names[0]).config
