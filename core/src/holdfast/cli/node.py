"""`holdfast node …`: one node, as a process and as a member of the cluster."""

from __future__ import annotations

import datetime as dt
import json
import time
from pathlib import Path
from typing import Annotated

import typer

from holdfast.cli.context import Context, here, pairs, put, put_json, warn
from holdfast.cli.waiting import holders
from holdfast.errors import ConflictError, HoldfastError, NotFoundError, UsageError
from holdfast.node import supervisor
from holdfast.node.local_cluster import LocalNode, locked, names_text

app = typer.Typer(name="node", help="Run, start, stop and look at nodes.", no_args_is_help=True)

POLL_S = 0.2
"""How often the volumes are asked for while somebody waits for them."""
Node = Annotated[str, typer.Argument(metavar="NODE", help="The node's name, such as n1.")]


@app.command()
def run(
    config: Annotated[
        Path, typer.Option("--config", "-c", metavar="FILE", help="The node's TOML file.")
    ],
    pid_file: Annotated[
        Path | None, typer.Option("--pid-file", metavar="FILE", help="Where to put the process id.")
    ] = None,
) -> None:
    """Run a node in the foreground, until SIGTERM or Ctrl-C.

    A clean stop hands primaries over to other nodes first.
    """
    from holdfast.node.launch import launch

    raise typer.Exit(launch(config, pid_file))


@app.command()
def start(ctx: typer.Context, name: Node) -> None:
    """Start one node of the local cluster and return when it is ready."""
    context = here(ctx)
    cluster = context.cluster()
    node = cluster.node(name)
    with locked(cluster.dir):
        started = supervisor.start([node])
    if context.json:
        put_json({"started": started, "name": name, "pid": node.pid})
    else:
        put(f"Node {name} is ready." if started else f"Node {name} runs already.")


@app.command()
def stop(ctx: typer.Context, name: Node) -> None:
    """Stop one node of the local cluster; its primaries move to other nodes first."""
    from holdfast.cli.cluster import report

    context = here(ctx)
    cluster = context.cluster()
    node = cluster.node(name)
    with locked(cluster.dir):
        alone = [] if node.pid is None else _only_on(context, name)
        report(context, supervisor.stop([node], handover=True))
    if alone:
        warn(
            f"Nobody serves {names_text(alone)} until `holdfast node start {name}`: "
            f"no other node has an in-sync copy."
        )


def _only_on(context: Context, node: str) -> list[str]:
    """Return the volumes that go offline with a node, as far as that can be found out."""
    try:
        volumes = context.client().volumes()
    except HoldfastError:
        return []
    return [each["name"] for each in volumes if holders(each) == {node}]


@app.command("list")
def list_nodes(ctx: typer.Context) -> None:
    """List all nodes of the cluster."""
    context = here(ctx)
    nodes = context.client().nodes()
    if context.json:
        put_json({"nodes": list(nodes)})
        return
    from holdfast.cli import render

    right = ["COPIES", "PRIMARIES"]
    rows = render.table("NODE", "STATE", *right, "ADDRESS", "NBD", right=right, wrap=["STATE"])
    for node in nodes:
        state = render.node_state("running" if node["alive"] else "stopped", node)
        numbers = str(node["copies"]), str(node["primaries"])
        rows.add_row(
            node["name"], state, *numbers, node["address"], node["frontends"].get("nbd", "-")
        )
    render.show(rows)


@app.command()
def show(ctx: typer.Context, name: Node) -> None:
    """Show what one node says of itself."""
    context = here(ctx)
    described = context.client(name).node()
    if context.json:
        put_json(described)
        return
    from holdfast.cli import render

    render.show(render.node_page(described))


@app.command()
def cordon(ctx: typer.Context, name: Node) -> None:
    """Let a node take no new copies; those that it has stay."""
    _cordon(ctx, name, cordoned=True)


@app.command()
def uncordon(ctx: typer.Context, name: Node) -> None:
    """Let a node take new copies again."""
    _cordon(ctx, name, cordoned=False)


@app.command()
def label(
    ctx: typer.Context,
    name: Node,
    changes: Annotated[
        list[str] | None,
        typer.Argument(metavar="CHANGE", help="KEY=VALUE sets a label, KEY- removes one; repeat."),
    ] = None,
) -> None:
    """Set or remove labels of a node, or list them; placement spreads over them.

    They hold over restarts, and in place of what the node's configuration says. Copies that are there
    stay where they are.
    """
    context = here(ctx)
    removed = [word for word in changes or [] if word.endswith("-") and "=" not in word]
    wanted: dict[str, str | None] = dict.fromkeys((word[:-1] for word in removed), None)
    for key, value in pairs(
        [w for w in changes or [] if w not in removed], f"node label {name}"
    ).items():
        if key in wanted:
            raise UsageError(f"Label {key!r} is both set and removed.", hint="Say one of them.")
        wanted[key] = value
    client = context.client(name)
    before = client.node()["labels"]
    missing = sorted(key for key, value in wanted.items() if value is None and key not in before)
    if missing:
        known = ", ".join(sorted(before)) or "none"
        raise NotFoundError(f"Node {name} has no label {missing[0]!r}.", hint=f"It has: {known}.")
    labels = client.label(wanted)["labels"] if wanted else before
    if context.json:
        put_json({"name": name, "labels": labels})
        return
    for key, value in sorted(labels.items()):
        put(f"{key}={value}")
    if not labels:
        put(f"Node {name} has no labels.")


@app.command()
def drain(
    ctx: typer.Context,
    name: Node,
    wait: Annotated[
        bool, typer.Option("--wait", help="Return when the node has no copies any more.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only show what would be done.")
    ] = False,
) -> None:
    """Move all copies of a node to other nodes, and let it take no new ones.

    Primaries go to other copies at once. A copy is removed only when another one is in sync in its
    place; a node whose copies nobody can take is not drained. `uncordon` calls it off.
    """
    context = here(ctx)
    told = context.client(name).drain(dry_run=dry_run)
    if not context.json:
        from holdfast.cli import render

        if told["plan"]:
            render.show(render.drain_plan(told["plan"]))
        elif not wait:
            put(f"Node {name} has no copies; it takes no new ones.")
    if wait and not dry_run:
        _wait_drained(context, name)
        if not context.json:
            put(f"Node {name} has no copies any more.")
    if context.json:
        put_json(told)


def _wait_drained(context: Context, name: str) -> None:
    """Return when no volume has a copy on the node, showing the syncs meanwhile."""
    from holdfast.cli import render

    with render.sync_progress() as progress:
        while True:
            client = context.client()
            volumes = client.volumes()
            left = [v for v in volumes if any(c["node"] == name for c in v["copies"])]
            if not left:
                return
            if not any(node["draining"] for node in client.nodes() if node["name"] == name):
                raise ConflictError(
                    f"Node {name} is not drained any more; it keeps copies of "
                    f"{', '.join(volume['name'] for volume in left)}.",
                    hint=f"Somebody has called it off with `holdfast node uncordon {name}`.",
                )
            if not context.json:
                for volume in left:
                    progress.show(volume)
            time.sleep(POLL_S)


@app.command()
def log(
    ctx: typer.Context,
    name: Node,
    lines: Annotated[
        int, typer.Option("--lines", "-n", metavar="COUNT", min=1, help="How many.")
    ] = 20,
) -> None:
    """Print the last lines of the log of a node of the local cluster; with --json as they are."""
    context = here(ctx)
    for line in _tail(context.cluster().node(name), lines):
        put(line if context.json else _readable(line))


def _tail(node: LocalNode, count: int) -> list[str]:
    from collections import deque

    try:
        with node.log.open(encoding="utf-8", errors="replace") as file:
            return [line.rstrip("\n") for line in deque(file, maxlen=count)]
    except FileNotFoundError:
        return []


def _readable(line: str) -> str:
    """Return a line of the log for people; one that is not JSON stays as it is."""
    try:
        fields = json.loads(line)
        at = dt.datetime.fromisoformat(fields.pop("timestamp")).astimezone()
        told = f"{at:%Y-%m-%d %H:%M:%S}  {fields.pop('level'):<8} {fields.pop('event')}"
    except (ValueError, KeyError, TypeError, AttributeError):
        return line
    return "  ".join([told, *(f"{key}={value}" for key, value in fields.items())])


def _cordon(ctx: typer.Context, name: str, *, cordoned: bool) -> None:
    context = here(ctx)
    described = context.client(name).cordon(cordoned=cordoned)
    if context.json:
        put_json(described)
    else:
        put(f"Node {name} takes {'no' if cordoned else ''} new copies.".replace("  ", " "))
