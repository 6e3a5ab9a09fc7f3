"""`holdfast explain`: why a volume is as it is, what comes next, and what would help."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from holdfast.cli.context import here, put_json


def add_to(app: typer.Typer) -> None:
    """Add this module's command to `holdfast`."""
    app.command()(explain)


def explain(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME", help="The volume's name.")],
) -> None:
    """Say why a volume is in its state, what is being done, what comes next, and what helps."""
    context = here(ctx)
    told = context.client().explain(name)
    if context.json:
        put_json(told)
        return
    from holdfast.cli import render

    render.show(render.explanation(told, time.time()))
