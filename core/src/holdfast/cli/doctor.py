"""`holdfast doctor`: what this machine can and cannot do, and what to install for the rest."""

from __future__ import annotations

import os
import resource
import shutil
import sys
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import attrs
import typer

from holdfast import compiled
from holdfast.cli.context import Context, here, put, put_json
from holdfast.errors import HoldfastError, UnavailableError
from holdfast.node.local_cluster import NBD_PORT_BASE, TRANSPORT_PORT_BASE
from holdfast.node.ports import is_free
from holdfast.units import GIB, format_size

OK, MISSING, PROBLEM = "ok", "missing", "problem"


@attrs.frozen
class Finding:
    """One thing that was looked at."""

    what: str
    state: str
    """`ok`; `missing`: something optional cannot be done; `problem`: volumes cannot be served."""
    told: str
    remedy: str = ""


def add_to(app: typer.Typer) -> None:
    """Add this module's command to `holdfast`."""
    app.command()(doctor)


def doctor(ctx: typer.Context) -> None:
    """Say what this machine can and cannot do, and what to install.

    The exit code is 0 unless something is missing that every volume needs.
    """
    context = here(ctx)
    findings = list(examined(context))
    problems = [each for each in findings if each.state == PROBLEM]
    if context.json:
        put_json({"findings": [attrs.asdict(each) for each in findings]})
    else:
        from holdfast.cli import render

        rows = render.table("", "STATE", "FOUND", "WHAT TO DO", wrap=["FOUND", "WHAT TO DO"])
        for each in findings:
            rows.add_row(each.what, render.word(each.state), each.told, each.remedy)
        render.show(rows)
    if problems:
        raise UnavailableError(
            f"This machine cannot serve volumes: {problems[0].told}", hint=problems[0].remedy
        )
    if not context.json:
        put("This machine can run Holdfast.")


def examined(context: Context) -> Iterator[Finding]:
    """Yield what each check finds; a check that fails itself is a finding as well."""
    for check in _CHECKS:
        try:
            yield from check(context)
        except (OSError, HoldfastError) as error:
            yield Finding(check.__name__.strip("_").replace("_", " "), PROBLEM, str(error))


def _python(_context: Context) -> Iterator[Finding]:
    version = ".".join(map(str, sys.version_info[:3]))
    told = f"Python {version} on {sys.platform}"
    if not sys.platform.startswith("linux"):
        yield Finding("system", PROBLEM, told + "; only Linux is supported.", "Use Linux.")
    else:
        yield Finding("system", OK, told)


def _drivers(_context: Context) -> Iterator[Finding]:
    from holdfast.kernel import registry

    for each in registry.list_drivers():
        if each.status is not registry.DriverStatus.OK:
            yield Finding(
                f"{each.kind} {each.name}",
                MISSING,
                each.reason,
                f"pip install --force-reinstall {each.distribution}",
            )
    for kind, name, package in (
        ("transport", "tcp", "holdfast-transport-tcp"),
        ("policy", "hard", "holdfast-policy"),
        ("state", "sqlite", "holdfast-core"),
        ("frontend", "nbd", "holdfast-core"),
    ):
        if name in registry.names(kind):
            yield Finding(f"{kind} driver", OK, f"{name}, of {len(registry.names(kind))} installed")
        else:
            yield Finding(
                f"{kind} driver", PROBLEM, f"{name} is not installed.", f"pip install {package}"
            )


def _compiled(_context: Context) -> Iterator[Finding]:
    if compiled.IN_USE:
        yield Finding("compiled loops", OK, "small writes cost less processor time")
    elif compiled.IS_OFF:
        yield Finding("compiled loops", OK, f"switched off by {compiled.PURE_VARIABLE}")
    else:
        yield Finding(
            "compiled loops",
            MISSING,
            "Not built: small writes cost a sixth more processor time.",
            "install a C compiler and Python's headers (gcc and python3-dev), then"
            " pip install --force-reinstall --no-deps holdfast-core",
        )


def _libraries(_context: Context) -> Iterator[Finding]:
    for module, purpose in (
        ("uvloop", "the event loop; without it I/O takes twice as long"),
        ("lz4", "compression between nodes"),
        ("zstandard", "compression over slow links"),
    ):
        if find_spec(module) is None:
            yield Finding(module, MISSING, f"Not installed: {purpose}.", f"pip install {module}")
        else:
            yield Finding(module, OK, purpose)


def _space(context: Context) -> Iterator[Finding]:
    folder = context.dir
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    told = f"{format_size(free)} free in {folder}"
    if not os.access(folder, os.W_OK):
        yield Finding("data folder", PROBLEM, f"{folder} is not writable.", "Choose --dir.")
    elif free < 2 * GIB:
        yield Finding("data folder", MISSING, told, "1 GiB is kept free; choose another --dir.")
    else:
        yield Finding("data folder", OK, told)


def _holes(context: Context) -> Iterator[Finding]:
    import tempfile

    folder = context.dir
    while not folder.exists():
        folder = folder.parent
    with tempfile.TemporaryFile(dir=folder) as file:
        file.truncate(1 << 20)
        sparse = os.fstat(file.fileno()).st_blocks == 0
    if sparse:
        yield Finding("sparse files", OK, "Volumes take only the space that is written.")
    else:
        yield Finding(
            "sparse files", MISSING, "This file system has no holes.", "Use ext4, xfs or btrfs."
        )


def _files(_context: Context) -> Iterator[Finding]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    told = f"{soft} open files a process (at most {hard})"
    if soft < 1024:
        yield Finding("open files", MISSING, told, "ulimit -n 4096")
    else:
        yield Finding("open files", OK, told)


def _ports(_context: Context) -> Iterator[Finding]:
    for port, purpose in ((TRANSPORT_PORT_BASE, "replication"), (NBD_PORT_BASE, "NBD")):
        if is_free(port):
            yield Finding("port", OK, f"{port} ({purpose}) is free.")
        else:
            told = f"{port} ({purpose}) is in use."
            yield Finding("port", OK, f"{told} A local cluster takes another one.")


def _devices(_context: Context) -> Iterator[Finding]:
    from holdfast.kernel import registry

    for info in registry.list_drivers("attach"):
        if info.status is not registry.DriverStatus.OK:
            continue
        lack = registry.load("attach", info.name)().unavailable()
        if lack is None:
            yield Finding(f"attach by {info.name}", OK, "Volumes can be block devices here.")
        else:
            yield Finding(f"attach by {info.name}", MISSING, lack)


def _replicators(_context: Context) -> Iterator[Finding]:
    from holdfast.kernel import registry

    for info in registry.list_drivers("replicator"):
        if info.status is not registry.DriverStatus.OK:
            continue
        lacks = registry.load("replicator", info.name).lacks()
        if not lacks:
            yield Finding(f"replicator {info.name}", OK, "This machine has all that it needs.")
        for told, remedy in lacks:
            yield Finding(f"replicator {info.name}", MISSING, told, remedy)


def _programs(_context: Context) -> Iterator[Finding]:
    for program, package, purpose in (
        ("nbdinfo", "libnbd-bin", "looks at NBD servers"),
        ("nbdcopy", "libnbd-bin", "copies volumes"),
        ("qemu-img", "qemu-utils", "converts disk images"),
        ("fio", "fio", "measures and verifies I/O"),
        ("nvme", "nvme-cli", "attaches volumes of the frontend nvme-tcp, with the module nvme-tcp"),
    ):
        # Some are an administrator's, whose folders plain users often do not have in theirs.
        path = shutil.which(program) or shutil.which(program, path="/usr/sbin:/sbin")
        if path is None:
            told = f"Not installed; {purpose}."
            yield Finding(program, MISSING, told, f"apt-get install {package}")
        else:
            yield Finding(program, OK, f"{path}; {purpose}")


def _local_cluster(context: Context) -> Iterator[Finding]:
    path: Path = context.dir / "cluster.json"
    if not path.exists():
        yield Finding("local cluster", OK, f"None in {context.dir} yet.", "holdfast up")
        return
    cluster = context.cluster()
    running = [node.name for node in cluster.nodes if node.pid is not None]
    told = f"{len(running)} of {len(cluster.names)} nodes run."
    yield Finding("local cluster", OK, told, "" if running else "holdfast up")


_CHECKS: tuple[Callable[[Context], Iterator[Finding]], ...] = (
    _python,
    _drivers,
    _libraries,
    _compiled,
    _space,
    _holes,
    _files,
    _ports,
    _devices,
    _replicators,
    _programs,
    _local_cluster,
)
