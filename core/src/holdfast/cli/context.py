"""What every command needs: which cluster, which form of output, and a node that answers.

The global options become one `Context`, which typer hands to each command. Nothing here knows a
command by name.
"""

from __future__ import annotations

import errno
import json
import sys
from pathlib import Path
from typing import Any

import attrs
import typer

from holdfast.errors import HoldfastError, NotFoundError, UnavailableError, UsageError
from holdfast.node.control_client import ControlClient
from holdfast.node.local_cluster import LocalCluster
from holdfast.units import parse_size

PROBE_TIMEOUT_S = 2.0
"""How long a node may take to say that it lives before the next one is asked."""
NAMED_TIMEOUT_S = 5.0
"""The same for a node that no other one can stand in for."""


NOT_OUR_FAULT = frozenset(
    {errno.EACCES, errno.EDQUOT, errno.EIO, errno.EMFILE, errno.ENOSPC, errno.EPERM, errno.EROFS}
)
"""What the operating system may answer however right the program is."""


@attrs.define
class Context:
    """The global options of one run of the command line."""

    dir: Path
    json: bool = False
    control: Path | None = None
    """The control socket of one node, instead of a local cluster."""

    def cluster(self) -> LocalCluster:
        """Return the local cluster; raises `NotFoundError` with what to do when there is none."""
        return LocalCluster.open(self.dir)

    def client(self, node: str | None = None) -> ControlClient:
        """Return a client of `node`, or of the first node that answers.

        Raises:
            UnavailableError: It does not, or none does; says how to start them.
        """
        if self.control is not None:
            asked = ControlClient(self.control, hint="Is the path of --control right?")
            if node is not None:
                name = asked.node(timeout_s=NAMED_TIMEOUT_S)["name"]
                if name != node:
                    raise UsageError(
                        f"--control is the socket of node {name}, which cannot act for {node}.",
                        hint=f"Name the control socket of {node}.",
                    )
            return asked
        cluster = self.cluster()
        if node is not None:
            named = cluster.node(node).client()
            named.node(timeout_s=NAMED_TIMEOUT_S)
            return named
        running = [each for each in cluster.nodes if each.pid is not None]
        silent: HoldfastError | None = None
        for each in running:
            client = each.client()
            try:
                client.node(timeout_s=PROBE_TIMEOUT_S)
            except UnavailableError as error:
                silent = error
            else:
                return client
        if silent is not None:
            raise silent
        raise UnavailableError(
            f"No node of the cluster in {self.dir} is running.", hint="Start it with `holdfast up`."
        )


def here(ctx: typer.Context) -> Context:
    """Return the global options of this run."""
    context = ctx.find_root().obj
    assert isinstance(context, Context)
    return context


def put(text: str) -> None:
    """Write a line to standard output."""
    sys.stdout.write(f"{text}\n")


def put_json(value: Any) -> None:
    """Write a value to standard output as JSON for people and programs."""
    put(json.dumps(value, indent=2, ensure_ascii=False))


def put_json_line(value: Any) -> None:
    """Write a value as one line, at once, for streams."""
    put(json.dumps(value, ensure_ascii=False))
    sys.stdout.flush()


def warn(sentence: str) -> None:
    """Write a warning to standard error."""
    sys.stderr.write(f"Warning: {sentence}\n")


def pairs(words: list[str], option: str) -> dict[str, str]:
    """Return `key=value` words as a dict; raises `UsageError` for what is none, or comes twice."""
    found: dict[str, str] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or not key:
            lack = "nothing before its '='" if equals else "no '='"
            raise UsageError(f"{option} {word!r} has {lack}.", hint=f"Write {option} key=value.")
        if key in found:
            raise UsageError(f"{option} {key} is given twice.", hint="Give it once.")
        found[key] = value
    return found


def file_error(file: Path, error: OSError) -> HoldfastError:
    """Return what to tell of a file that was named and that cannot be used."""
    told = f"{file} cannot be used: {error.strerror or error}."
    if isinstance(error, FileNotFoundError):
        return NotFoundError(told, hint="Check its name.")
    if error.errno in NOT_OUR_FAULT:
        return UnavailableError(told, hint="Check its permissions and the space left.")
    return UsageError(told, hint="Name another file.")


def size_in(text: str) -> int:
    """Return a size as a person writes it, in bytes; raises `UsageError` for what is none."""
    try:
        return parse_size(text)
    except ValueError as error:
        raise UsageError(f"{error}.") from error
