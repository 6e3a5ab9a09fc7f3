"""`holdfast up`, `down` and `status`: a cluster of node processes on this machine."""

from __future__ import annotations

import signal
import time
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer

from holdfast.cli.context import PROBE_TIMEOUT_S, Context, here, put, put_json, warn
from holdfast.cli.volume_admin import attachments
from holdfast.errors import ConflictError, UnavailableError
from holdfast.node import ports, supervisor
from holdfast.node.control_client import Json
from holdfast.node.local_cluster import LocalCluster, choose_ports_anew, locked, names_text

REFRESH_S = 0.5
"""How often a live view asks."""


def add_to(app: typer.Typer) -> None:
    """Add this module's commands to `holdfast`."""
    app.command()(up)
    app.command()(down)
    app.command()(status)


def up(
    ctx: typer.Context,
    nodes: Annotated[
        int | None,
        typer.Option(
            "--nodes",
            "-n",
            metavar="COUNT",
            help="How many nodes.",
            show_default="4, or those there are",
        ),
    ] = None,
    detach: Annotated[
        bool, typer.Option("--detach", "-d", help="Return when all are ready.")
    ] = False,
    config: Annotated[
        Path | None,
        typer.Option("--config", metavar="FILE", help="A TOML file with settings for every node."),
    ] = None,
    new_ports: Annotated[
        bool, typer.Option("--new-ports", help="Choose other ports where others took them.")
    ] = False,
) -> None:
    """Start a local cluster: several node processes on this machine.

    A cluster that exists is started as it is. Without --detach it runs until Ctrl-C.
    """
    context = here(ctx)
    began = time.monotonic()
    with locked(context.dir), ports.choosing():
        cluster = LocalCluster.create(context.dir, count=nodes, extra=config)
        if new_ports:
            choose_ports_anew(cluster)
        started = supervisor.start(cluster.nodes)
    took_s = time.monotonic() - began
    if context.json:
        put_json(cluster_status(context) | {"started": started})
    elif not started:
        put(f"{names_text(cluster.names)} run{'s' * (len(cluster.names) == 1)} already.")
    else:
        put(f"Started {names_text(started)} in {took_s:.1f} s. The cluster is in {cluster.dir}.")
    if config is not None and (old := [each for each in cluster.names if each not in started]):
        warn(f"The settings of {config} hold for {names_text(old)} when they are started again.")
    if detach:
        if not context.json:
            replicas = min(2, len(cluster.names) - 1)
            put(f"Next: holdfast volume create NAME --size 1GiB --replicas {replicas} --wait")
        return
    try:
        _run_until_interrupted(context)
    finally:
        for each in attachments(context):
            warn(f"Volume {each['name']} was still attached as {each['device']}.")
        _down(context, cluster)


def down(
    ctx: typer.Context,
    force: Annotated[
        bool, typer.Option("--force", help="Though volumes are attached as devices.")
    ] = False,
) -> None:
    """Stop the local cluster; its volumes keep their data."""
    context = here(ctx)
    cluster = context.cluster()
    attached = attachments(context)
    if attached and not force:
        each = attached[0]
        raise ConflictError(
            f"Volume {each['name']} is attached as {each['device']}.",
            hint=f"First: holdfast volume detach {each['name']}",
        )
    _down(context, cluster)


def status(
    ctx: typer.Context,
    watch: Annotated[
        bool, typer.Option("--watch", "-w", help="Show it live, until Ctrl-C.")
    ] = False,
) -> None:
    """Show the nodes and volumes of the cluster."""
    context = here(ctx)
    now = cluster_status(context)
    if watch and not context.json:
        _watch(context)
    if not context.json:
        from holdfast.cli import render

        render.show(render.cluster_page(now))
        return
    put_json(now)
    while watch:
        time.sleep(REFRESH_S)
        before, now = now, cluster_status(context)
        if now != before:
            put_json(now)


def cluster_status(context: Context) -> Json:
    """Return what is known of the cluster's processes, nodes and volumes.

    A node's `state` is `running`, `stopped`, or `silent`: its process lives and does not answer.
    `volumes` is None while no node answers. Of a cluster that is not local one node tells all that
    it knows; no process ids are among that.
    """
    if context.control is not None:
        client = context.client()
        told = [
            {"pid": None, "state": "running" if node["alive"] else "stopped", **node}
            for node in client.nodes()
        ]
        name = client.node()["cluster"]
        return {"dir": None, "cluster": name, "nodes": told, "volumes": list(client.volumes())}
    cluster = context.cluster()
    rows = []
    known: dict[str, Json] = {}
    volumes = None
    for node in cluster.nodes:
        row: Json = {"name": node.name, "state": "stopped", "pid": node.pid}
        rows.append(row)
        if row["pid"] is None:
            continue
        try:
            row |= node.client().node(timeout_s=PROBE_TIMEOUT_S)
            row["state"] = "running"
            if volumes is None:
                known = {each["name"]: each for each in node.client().nodes()}
                volumes = list(node.client().volumes())
        except UnavailableError:
            row["state"] = "silent"
    nodes = [known.get(row["name"], {}) | row for row in rows]
    return {"dir": str(cluster.dir), "cluster": cluster.id, "nodes": nodes, "volumes": volumes}


def _watch(context: Context) -> None:
    from holdfast.cli import render
    from holdfast.cli.live import live

    with live() as draw:
        while True:
            draw(render.cluster_page(cluster_status(context)))
            time.sleep(REFRESH_S)


def _run_until_interrupted(context: Context) -> None:
    """Show the cluster until Ctrl-C or SIGTERM; both end it in order."""

    def on_term(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, on_term)
    try:
        from holdfast.cli import render

        if render.out.is_terminal and not context.json:
            _watch(context)
        if not context.json:
            put("Running until Ctrl-C.")
        while True:
            signal.pause()
    except KeyboardInterrupt:
        pass
    finally:
        signal.signal(signal.SIGTERM, before)


def _down(context: Context, cluster: LocalCluster) -> None:
    with locked(cluster.dir):
        stopped = supervisor.stop(cluster.nodes, handover=False)
    report(context, stopped)


def report(context: Context, stopped: list[supervisor.Stopped]) -> None:
    """Tell how nodes ended."""
    for each in stopped:
        if each.how == "killed":
            warn(f"Node {each.name} (process {each.pid}) did not stop and was killed.")
    if context.json:
        put_json({"stopped": [{"name": s.name, "pid": s.pid, "how": s.how} for s in stopped]})
    elif stopped:
        put(f"Stopped {names_text([each.name for each in stopped])}.")
    else:
        put("Nothing was running.")
