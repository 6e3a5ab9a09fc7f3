"""`holdfast audit`: what the nodes have written down, held against the rules of the protocol."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from holdfast.cli.context import Context, here, put, put_json, warn
from holdfast.errors import NotFoundError, RuleBrokenError, UsageError

if TYPE_CHECKING:
    from holdfast.node.audit import Audit


def add_to(app: typer.Typer) -> None:
    """Add this module's command to `holdfast`."""
    app.command()(audit)


def audit(
    ctx: typer.Context,
    directory: Annotated[
        Path | None,
        typer.Argument(
            metavar="DIR",
            help="A folder with the data directories, or copies of the `events` folders, of the nodes.",
            show_default="the local cluster's folder",
        ),
    ] = None,
    skew: Annotated[
        float,
        typer.Option("--skew", metavar="SECONDS", help="How far the nodes' clocks may be apart."),
    ] = 1.0,
) -> None:
    """Hold the event logs of a cluster against the rules: epochs, records, leases, roles.

    The exit code is 0 only when no rule was broken. An audit sees what was written down; it is the
    more complete the more nodes' logs are there.
    """
    import attrs

    from holdfast.node import audit as audits

    if skew < 0:
        raise UsageError(f"--skew {skew} is negative.", hint="Write --skew 1.")
    context = here(ctx)
    elsewhere = _data_elsewhere(context) if directory is None else []
    done = audits.audit(directory or context.dir, *elsewhere, skew_s=skew)
    if context.json:
        put_json(attrs.asdict(done))
    else:
        _show(done)
    if done.findings:
        first = done.findings[0]
        raise RuleBrokenError(
            f"{len(done.findings)} times a rule was broken; first {first.rule}, of volume "
            f"{first.volume}: {first.sentence} ({first.file}, line {first.line}).",
            hint="Keep the logs, and report this.",
        )


def _data_elsewhere(context: Context) -> list[Path]:
    """Return the data directories of a local cluster's nodes that are not in its folder."""
    try:
        nodes = context.cluster().nodes
    except NotFoundError:
        return []  # Of which the audit says more.
    paths = [Path(path) for node in nodes for path in node.settings()["node"]["data"]]
    return [path for path in paths if not path.is_relative_to(context.dir)]


def _show(done: Audit) -> None:
    from holdfast.cli import render

    if done.findings:
        rows = render.table("RULE", "WHAT AND WHERE")
        for each in done.findings:
            told = f"volume {each.volume}", each.sentence, f"{each.file}:{each.line}"
            rows.add_row(each.rule, "\n".join(told))
        render.show(rows)
    put(
        f"{done.events} events and {done.records} changes of {len(done.volumes)} group records, by "
        f"{', '.join(done.nodes) or 'nobody'}: "
        + (f"{len(done.findings)} rules broken." if done.findings else "no rule was broken.")
    )
    if done.damaged:
        warn(f"{done.damaged} lines could not be read and were left out.")
    if done.missing:
        warn(f"There are no logs of {', '.join(done.missing)}; what they alone did is not seen.")
