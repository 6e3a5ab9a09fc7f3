"""`holdfast whatif`: a layout and a failure mode, run through the loss of nodes and zones."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from holdfast.cli.context import file_error, here, pairs, put, put_json, warn
from holdfast.errors import ConfigError, DriverError, UsageError
from holdfast.model import VolumeSpec
from holdfast.units import MIB, VolumeId, parse_size

if TYPE_CHECKING:
    from holdfast.kernel.options import Where
    from holdfast.testing.whatif.layout import Layout, Volume
    from holdfast.testing.whatif.rehearsal import Told

_LOSES = ("nothing", "unflushed writes", "everything")
"""What a loss may take, the worst last."""


def add_to(app: typer.Typer) -> None:
    """Add this module's command to `holdfast`."""
    app.command()(whatif)


def whatif(
    ctx: typer.Context,
    topology: Annotated[
        Path,
        typer.Option(
            "--topology",
            "-t",
            metavar="FILE",
            help='TOML: `[nodes]` with lines like `a = { zone = "east" }`, and a table '
            "`[volumes.NAME]` for each volume with size, replicas, policy, set, nodes.",
        ),
    ],
    policy: Annotated[
        str, typer.Option("--policy", "-p", metavar="POLICY", help="Of volumes that name none.")
    ] = "hard",
    replicas: Annotated[
        int, typer.Option("--replicas", "-r", metavar="N", help="Of volumes that name none.")
    ] = 1,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="A parameter of --policy; repeat."),
    ] = None,
    faults: Annotated[
        str, typer.Option("--faults", metavar="KIND,…", help="node, zone, two-nodes.")
    ] = "node,zone",
    down: Annotated[
        float, typer.Option("--down", metavar="SECONDS", help="How long lost nodes are away.")
    ] = 120.0,
    for_good: Annotated[
        bool, typer.Option("--for-good", help="Lost nodes do not come back.")
    ] = False,
    gap: Annotated[
        float, typer.Option("--gap", metavar="SECONDS", help="Between two lost nodes.")
    ] = 0.0,
    rate: Annotated[
        str, typer.Option("--sync-rate", metavar="SIZE", help="Bytes a second of a sync.")
    ] = "200MiB",
    svg: Annotated[
        Path | None, typer.Option("--svg", metavar="FILE", help="Draw the timeline there.")
    ] = None,
) -> None:
    """Tell what the loss of nodes and zones would do to your volumes, by simulating it.

    The machines, timeouts and policies are those of real nodes; only hardware and time are made up.
    Nothing is contacted and nothing is changed.
    """
    from holdfast.node.policies import Policies
    from holdfast.testing.whatif import layout, rehearsal

    if down <= 0 or gap < 0:
        raise UsageError("--down must be above 0, and --gap not below.", hint="Write --down 120.")
    given = _layout(topology, policy, replicas, settings or [])
    plan = rehearsal.Plan(given, Policies({}).of, None if for_good else down, _rate(rate))
    _warn_of_shortage(given)
    losses: dict[tuple[str, ...], None] = {}
    for kind in faults.split(","):
        if kind not in layout.FAULTS:
            known = ", ".join(layout.FAULTS)
            raise UsageError(f"--faults {kind!r} is no kind.", hint=f"There are {known}.")
        losses |= dict.fromkeys(given.losses(kind))
    told: list[Told] = []
    for number, lost in enumerate(losses, start=1):
        if sys.stderr.isatty():
            sys.stderr.write(f"\r{number} of {len(losses)}: {given.called(lost)}\033[K")
        told += rehearsal.rehearse(plan, lost, gap_s=gap)
    if sys.stderr.isatty():
        sys.stderr.write("\r\033[K")
    if svg is not None:
        _draw(svg, topology, told, back_s=None if for_good else down)
    if here(ctx).json:
        put_json({"losses": [rehearsal.as_json(each) for each in told]})
    else:
        _show(told)
        if svg is not None:
            put(f"The timeline is in {svg}.")


def _layout(path: Path, policy: str, replicas: int, settings: list[str]) -> Layout:
    import attrs

    from holdfast.kernel import toml_lines
    from holdfast.kernel.options import Where
    from holdfast.node.policies import Policies
    from holdfast.testing.whatif import layout

    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise file_error(path, error) from error
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{path} is not UTF-8 text: {error.reason}.", hint="--topology names a TOML file."
        ) from error
    content, lines = toml_lines.parse(text, str(path))
    root = Where(str(path), lines=lines)
    given = layout.parse(content, lambda key: str(root.key(key)), policy=policy, replicas=replicas)
    policies = Policies({})
    common = policies.options(policy, pairs(settings, "--set"))
    volumes = []
    for volume in given.volumes:
        where = root.key(f"volumes.{volume.name}")
        own = _set_in_file(volume, where)
        asked = {**(common if volume.policy == policy else {}), **own}
        try:
            options = policies.options(volume.policy, asked)
            policies.refuse(volume.policy, volume.replicas, options)
        except UsageError as error:
            kind = ConfigError if own or volume.policy != policy else UsageError
            raise kind(f"{where}: {error.message}", hint=error.hint) from error
        volumes.append(attrs.evolve(volume, options=options))
    return attrs.evolve(given, volumes=tuple(volumes))


def _set_in_file(volume: Volume, where: Where) -> dict[str, Any]:
    """Return what the file sets for a volume's policy, each value checked by itself."""
    from holdfast.kernel import registry
    from holdfast.kernel.options import checked_mapping

    try:
        driver = registry.load("policy", volume.policy)
    except DriverError as error:
        raise ConfigError(f"{where.key('policy')}: {error.message}", hint=error.hint) from error
    return checked_mapping(driver.Options, volume.options, where=where.key("set"))


def _warn_of_shortage(given: Layout) -> None:
    """Say which volumes cannot heal on the nodes that there are, as `volume create` would."""
    from holdfast.node.policies import Policies

    for each in given.volumes:
        spec = VolumeSpec(
            VolumeId(each.name),
            each.name,
            each.size_bytes,
            each.replicas,
            policy=each.policy,
            policy_options=each.options,
        )
        short = Policies({}).shortage(spec, len(given.zones))
        if short is not None:
            warn(f"Volume {each.name}: {short}")


def _rate(text: str) -> float:
    try:
        rate = parse_size(text)
    except ValueError as error:
        raise UsageError(
            f"--sync-rate {text!r}: {error}", hint="Write --sync-rate 200MiB."
        ) from error
    if rate < MIB:
        raise UsageError(f"--sync-rate {text} is below 1MiB.", hint="Write --sync-rate 200MiB.")
    return float(rate)


def _draw(svg: Path, topology: Path, told: list[Told], *, back_s: float | None) -> None:
    from holdfast.testing.whatif import timeline

    try:
        picture = timeline.draw(f"What if: {topology.name}", told, back_s=back_s)
        svg.write_text(picture, encoding="utf-8")
    except OSError as error:
        raise file_error(svg, error) from error


def _show(losses: list[Told]) -> None:
    from holdfast.cli import render

    rows = render.table(
        *("WITHOUT", "VOLUME", "LEFT", "SILENT", "READ-ONLY", "LAST COPY", "WHOLE", "LOSES"),
        right=["SILENT", "READ-ONLY", "LAST COPY", "WHOLE"],
        wrap=["WITHOUT"],
    )
    hurt = [told for told in losses if told.copies_lost]
    for before, told in zip([None, *hurt], hurt, strict=False):
        same = before is not None and before.lost == told.lost
        rows.add_row("" if same else told.without, told.volume, *_cells([told]))
    rows.add_section()
    for at, volume in enumerate(dict.fromkeys(told.volume for told in hurt)):
        those = [told for told in hurt if told.volume == volume]
        rows.add_row("" if at else "at worst", volume, *_cells(those))
    render.show(rows)
    put("LEFT: of the declared copies. SILENT: writes were not answered. LAST COPY: one more loss")
    put("would have lost writes. WHOLE: all copies are in sync again, so long after the loss.")
    calm = len(losses) - len(hurt)
    if calm:
        put(f"{calm} times a volume had no copy on what was lost; nothing happened to it.")


def _cells(losses: list[Told]) -> list[str]:
    """Return what the worst of some losses of one volume did, column by column."""
    whole = [told.whole_after_s for told in losses]
    return [
        min(f"{told.copies - told.copies_lost}/{told.copies}" for told in losses),
        _seconds(max(told.unavailable_s for told in losses)),
        _seconds(max(told.read_only_s for told in losses)),
        _seconds(max(told.exposed_s for told in losses)),
        "not yet" if None in whole else _seconds(max(each or 0.0 for each in whole)),
        max((told.loses for told in losses), key=_LOSES.index).removesuffix(" writes"),
    ]


def _seconds(seconds: float) -> str:
    return f"{seconds:.{int(seconds < 100)}f} s" if seconds else "-"
