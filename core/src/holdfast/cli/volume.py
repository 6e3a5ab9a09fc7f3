"""`holdfast volume …`: make, look at, change and delete volumes.

What moves bytes (import, export, verify) is in `volume_data.py`, what moves copies and devices in
`volume_admin.py`; this module only asks nodes and prints.
"""

from __future__ import annotations

import time
from typing import Annotated, Any

import typer

from holdfast.cli import volume_admin, volume_data
from holdfast.cli.addressing import transports_in, uri_of
from holdfast.cli.context import here, pairs, put, put_json, put_json_line, size_in, warn
from holdfast.cli.waiting import POLL_S, again, wait_healthy
from holdfast.errors import UsageError
from holdfast.node.local_cluster import names_text
from holdfast.sync.placement import SPREAD_LABEL
from holdfast.units import counted, format_size

app = typer.Typer(
    name="volume",
    help="Make, use, check and delete volumes.",
    no_args_is_help=True,
)

Name = Annotated[str, typer.Argument(metavar="NAME", help="The volume's name.")]
NewReplicas = Annotated[
    int | None,
    typer.Option(
        "--replicas",
        "-r",
        metavar="COUNT",
        help="Copies beside the primary, 0 to 5.",
        show_default="as configured: 1",
    ),
]
NewPolicy = Annotated[
    str | None,
    typer.Option(
        "--policy",
        "-p",
        metavar="POLICY",
        help="The failure mode.",
        show_default="as configured: hard",
    ),
]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="A parameter of the policy, such as grace_s=30; repeat."
    ),
]
Labels = Annotated[
    list[str] | None, typer.Option("--label", metavar="KEY=VALUE", help="A label; repeat.")
]

MissingTimeout = Annotated[
    float | None,
    typer.Option(
        "--member-missing-timeout",
        metavar="SECONDS",
        min=0,
        help="How long a lost copy is waited for before a replacement is made; 0: not at all.",
        show_default="as configured: 0",
    ),
]

Transports = Annotated[
    list[str] | None,
    typer.Option(
        "--transport",
        metavar="[NODE=]NAME",
        help="What carries the replication, or that to the copy on one node; repeat.",
        show_default="the nodes' own",
    ),
]
Spread = Annotated[
    str | None,
    typer.Option(
        "--spread",
        metavar="KEY",
        help="Put copies on nodes that differ in this node label, such as zone.",
    ),
]
Replicator = Annotated[
    str | None,
    typer.Option(
        "--replicator",
        metavar="NAME",
        help="What keeps the copies equal: lockstep, or md.",
        show_default="lockstep",
    ),
]
ReplicatorSettings = Annotated[
    list[str] | None,
    typer.Option(
        "--replicator-set",
        metavar="KEY=VALUE",
        help="A parameter of the replicator, such as drivesPerCopy=2; repeat.",
    ),
]

ReadFrom = Annotated[
    str | None,
    typer.Option(
        "--read-from",
        metavar="WHERE",
        help="Who answers reads: primary, or local, the in-sync copy on the consumer's node.",
        show_default="primary",
    ),
]


@app.command()
def create(
    ctx: typer.Context,
    name: Name,
    size: Annotated[
        str,
        typer.Option(
            "--size",
            "-s",
            metavar="SIZE",
            help="Such as 512MiB or 1GiB; 1G is 1GiB, 1GB is 10^9 bytes.",
        ),
    ],
    replicas: NewReplicas = None,
    policy: NewPolicy = None,
    settings: Settings = None,
    label: Labels = None,
    spread: Spread = None,
    missing: MissingTimeout = None,
    transport: Transports = None,
    replicator: Replicator = None,
    replicator_settings: ReplicatorSettings = None,
    read_from: ReadFrom = None,
    shared: Annotated[
        bool,
        typer.Option("--shared", help="Let several nodes write at once (cluster file systems)."),
    ] = False,
    node: Annotated[
        str | None,
        typer.Option(
            "--node",
            metavar="NODE",
            help="Where the first copy is to be.",
            show_default="the best node",
        ),
    ] = None,
    wait: Annotated[
        bool, typer.Option("--wait", help="Return when all copies are in sync.")
    ] = False,
) -> None:
    """Make a volume.

    It can be used at once; its replicas join while it is in use.
    """
    context = here(ctx)
    client = context.client()
    status, warnings = client.create_volume(
        name=name,
        size_bytes=size_in(size),
        replicas=replicas,
        policy=policy,
        policy_options=pairs(settings or [], "--set"),
        labels=_labels(label, spread),
        member_missing_timeout_s=missing,
        shared=shared or None,
        read_from=read_from,
        primary_node=node,
        **transports_in(transport),
        replicator=replicator,
        replicator_options=pairs(replicator_settings or [], "--replicator-set") or None,
    )
    for warning in warnings:
        warn(warning)
    if wait:
        status = wait_healthy(context, client, name, is_new=True)
    if context.json:
        put_json(status | {"warnings": list(warnings)})
        return
    put(
        f"Volume {name}: {format_size(status['size'])}, primary on {status['primary']}, "
        f"{counted(status['declared_replicas'], 'replica')}, {status['health']}."
    )
    if not wait and status["health"] != "healthy":
        put(f"`holdfast volume watch {name}` shows it becoming healthy.")


@app.command("list")
def list_volumes(
    ctx: typer.Context,
    wide: Annotated[
        bool, typer.Option("--wide", help="Also what MD says of volumes of the replicator md.")
    ] = False,
) -> None:
    """List all volumes."""
    context = here(ctx)
    volumes = context.client().volumes()
    if context.json:
        put_json({"volumes": list(volumes)})
    elif not volumes:
        put("There are no volumes yet. Make one: holdfast volume create NAME --size 1GiB")
    else:
        from holdfast.cli import render

        if wide and (arrays := [each for each in volumes if "md" in each]):
            render.show(render.md_table(arrays))
            volumes = [each for each in volumes if "md" not in each]
        if volumes:
            render.show(render.volume_table(volumes))


@app.command()
def show(ctx: typer.Context, name: Name) -> None:
    """Show one volume: its health and why, its primary, and every copy."""
    context = here(ctx)
    status = context.client().volume(name)
    if context.json:
        put_json(status)
        return
    from holdfast.cli import render

    render.show(render.volume_page(status))


@app.command("set")
def change(
    ctx: typer.Context,
    name: Name,
    replicas: Annotated[
        int | None,
        typer.Option(
            "--replicas", "-r", metavar="COUNT", help="Copies beside the primary, 0 to 5."
        ),
    ] = None,
    policy: Annotated[
        str | None, typer.Option("--policy", "-p", metavar="POLICY", help="The failure mode.")
    ] = None,
    settings: Settings = None,
    label: Annotated[
        list[str] | None,
        typer.Option("--label", metavar="KEY=VALUE", help="A label; KEY= takes it away; repeat."),
    ] = None,
    missing: MissingTimeout = None,
    transport: Transports = None,
    read_from: ReadFrom = None,
) -> None:
    """Change what is declared of a volume, while it is in use.

    A change that the present state does not satisfy is refused, with the reason.
    """
    context = here(ctx)
    changes: dict[str, Any] = {
        "replicas": replicas,
        "policy": policy,
        "policy_options": pairs(settings, "--set") if settings else None,
        "labels": pairs(label, "--label") if label else None,
        "member_missing_timeout_s": missing,
        **transports_in(transport),
        "read_from": read_from,
    }
    if all(value is None for value in changes.values()):
        raise UsageError("Nothing is to be changed.", hint="See `holdfast volume set -h`.")
    status = context.client().change_volume(name, **changes)
    for warning in status.get("warnings", ()):
        warn(warning)
    if context.json:
        put_json(status)
        return
    from holdfast.cli import render

    render.show(render.volume_page(status))


@app.command()
def delete(
    ctx: typer.Context,
    name: Name,
    force: Annotated[bool, typer.Option("--force", help="Though it is in use.")] = False,
) -> None:
    """Delete a volume and all its copies for good."""
    context = here(ctx)
    context.client().delete_volume(name, force=force)
    if context.json:
        put_json({"deleted": name})
    else:
        put(f"Volume {name} is deleted.")


@app.command()
def url(
    ctx: typer.Context,
    name: Name,
    node: Annotated[
        str | None,
        typer.Option(
            "--node",
            metavar="NODE",
            help="The node that is to serve it; any can.",
            show_default="the one that uses it, or its primary's",
        ),
    ] = None,
    frontend: Annotated[
        str, typer.Option("--frontend", "-f", metavar="NAME", help="Such as nbd or nvme-tcp.")
    ] = "nbd",
) -> None:
    """Print the URI of a volume: for qemu, nbdcopy, fio and the like, or another frontend's."""
    context = here(ctx)
    uri = uri_of(context, name, frontend, node)
    if context.json:
        put_json({"name": name, "uri": uri})
    else:
        put(uri)


@app.command()
def events(
    ctx: typer.Context,
    name: Name,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on as they happen.")] = False,
) -> None:
    """Tell what happened to a volume, oldest first."""
    context = here(ctx)
    client = context.client()
    stream = client.events(name, follow=follow)
    if context.json:
        for event in stream:
            put_json_line(event)
        return
    from holdfast.cli import render

    if away := [node["name"] for node in client.nodes() if not node["alive"]]:
        warn(f"{names_text(away)} cannot be asked, so what was noted there is missing.")
    for event in stream:
        render.show(render.event_line(event))


@app.command()
def watch(ctx: typer.Context, name: Name) -> None:
    """Show a volume live, until Ctrl-C."""
    context = here(ctx)
    client = context.client()
    status = client.volume(name)
    if context.json:
        put_json_line(status)
        while True:
            time.sleep(POLL_S)
            before, (client, status) = status, again(context, client, name)
            if status != before:
                put_json_line(status)
    from holdfast.cli import render
    from holdfast.cli.live import live

    with live() as draw:
        while True:
            draw(render.volume_page(status))
            time.sleep(POLL_S)
            client, status = again(context, client, name)


@app.command()
def wait(
    ctx: typer.Context,
    name: Name,
    timeout_s: Annotated[
        float | None,
        typer.Option("--timeout", metavar="SECONDS", min=0, help="Give up after this long."),
    ] = None,
) -> None:
    """Wait until all declared copies of a volume are in sync, showing how far they are."""
    context = here(ctx)
    status = wait_healthy(context, context.client(), name, timeout_s=timeout_s)
    if context.json:
        put_json(status)
    else:
        put(f"Volume {name} is healthy.")


volume_data.add_to(app)
volume_admin.add_to(app)


def _labels(words: list[str] | None, spread: str | None) -> dict[str, str]:
    labels = pairs(words or [], "--label")
    return labels if spread is None else labels | {SPREAD_LABEL: spread}
