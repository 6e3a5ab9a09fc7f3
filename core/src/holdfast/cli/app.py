"""The root of the command line: global options, and the one place where errors become text.

A `HoldfastError` becomes a sentence, a hint and its exit code; a slip in the arguments likewise.
What was not foreseen goes to a file with all its details, and the user is told where.
"""

from __future__ import annotations

import datetime as dt
import functools
import json
import os
import sys
import textwrap
import traceback
from collections.abc import Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import Annotated, Any, Protocol, runtime_checkable

import typer

from holdfast import __version__
from holdfast.cli import (
    audit,
    cluster,
    config,
    demo,
    doctor,
    drive,
    explain,
    node,
    plugin,
    simulate,
    volume,
    volume_admin,
    whatif,
)
from holdfast.cli.context import NOT_OUR_FAULT, Context
from holdfast.errors import HoldfastError, UnavailableError, UsageError
from holdfast.node.control_errors import to_json
from holdfast.node.local_cluster import default_dir

EXIT_BUG = 70
"""`EX_SOFTWARE` of sysexits.h."""
EXIT_INTERRUPTED = 130
"""As shells report SIGINT."""
EXIT_PIPE = 141
"""As shells report SIGPIPE."""

_MEANT = {
    **dict.fromkeys(("remove", "rm", "destroy", "del"), "delete"),
    **dict.fromkeys(("info", "inspect", "describe", "get", "status"), "show"),
    **dict.fromkeys(("new", "make", "add"), "create"),
    **dict.fromkeys(("grow", "extend", "expand"), "resize"),
    **dict.fromkeys(("update", "edit", "modify", "change"), "set"),
    **dict.fromkeys(("mount", "map"), "attach"),
    **dict.fromkeys(("unmount", "umount", "unmap"), "detach"),
    **dict.fromkeys(("load", "restore"), "import"),
    **dict.fromkeys(("dump", "backup"), "export"),
    **dict.fromkeys(("log", "logs", "history"), "events"),
    "undrain": "uncordon",
    "validate": "check",
}
"""What other tools call a command of ours; it is named where there is one of that name."""
_HERE_AND_THERE = "--json, --dir and --control may stand before or after the command."

app = typer.Typer(
    name="holdfast",
    help="Replicated block volumes: a write is kept on several machines before it is answered.\n\n"
    "Begin with `holdfast demo`, or with `holdfast up` and `holdfast volume create`.",
    epilog=f"{_HERE_AND_THERE} Every command takes -h.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
cluster.add_to(app)
explain.add_to(app)
app.add_typer(volume.app)
app.add_typer(volume_admin.replicas)
app.add_typer(node.app)
app.add_typer(drive.app)
app.add_typer(plugin.app)
app.add_typer(config.app)
doctor.add_to(app)
demo.add_to(app)
audit.add_to(app)
simulate.add_to(app)
whatif.add_to(app)


@app.callback()
def _globals(
    ctx: typer.Context,
    directory: Annotated[
        Path | None,
        typer.Option(
            "--dir",
            metavar="DIR",
            envvar="HOLDFAST_DIR",
            help="The local cluster's folder.",
            show_default="below the user's state directory",
        ),
    ] = None,
    control: Annotated[
        Path | None,
        typer.Option(
            "--control",
            metavar="SOCKET",
            envvar="HOLDFAST_CONTROL",
            help="Talk to the node with this control socket instead of a local cluster.",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for programs.")] = False,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        sys.stdout.write(f"holdfast {__version__}\n")
        raise typer.Exit
    where = default_dir() if directory is None else directory
    ctx.obj = Context(dir=where.expanduser().absolute(), json=as_json, control=control)


@runtime_checkable
class _Slip(Protocol):
    """What typer raises for arguments that make no sense, whichever click it is built on."""

    ctx: Any

    def format_message(self) -> str: ...


def run(arguments: Sequence[str]) -> int:
    """Run one command and return its exit code."""
    as_json = "--json" in arguments
    try:
        words = hoisted(arguments)
        _add_observers()
        code = app(words, prog_name="holdfast", standalone_mode=False)
        sys.stdout.flush()
    except HoldfastError as error:
        return _fail(error, as_json=as_json)
    except (KeyboardInterrupt, typer.Abort):
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader has gone, as `head` does; nothing more may be written at exit either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_PIPE
    except SystemExit as error:
        if isinstance(error.__context__, BrokenPipeError):
            return EXIT_PIPE  # rich noticed it first.
        return error.code if isinstance(error.code, int) else 1
    except OSError as error:
        if error.errno not in NOT_OUR_FAULT:
            return _bug(error, as_json=as_json)
        return _refused(error, as_json=as_json)
    except Exception as error:  # noqa: BLE001 - the last place; told as a sentence.
        if isinstance(error, _Slip):
            return _slip(error, arguments, as_json=as_json)
        return _bug(error, as_json=as_json)
    return code if isinstance(code, int) else 0


@functools.cache
def _add_observers() -> None:
    """Let observers add their commands, once; without any, nothing is imported for it."""
    if entry_points(group="holdfast.hooks"):
        from holdfast.kernel.hooks import load_hooks

        load_hooks().tell("cli_commands", app=app)


def hoisted(arguments: Sequence[str]) -> list[str]:
    """Return the arguments with the options of every command in front, wherever they stood.

    Raises:
        UsageError: One that needs a value is the last word.
    """
    first: list[str] = []
    rest: list[str] = []
    words = iter(arguments)
    for word in words:
        if word == "--":
            rest += [word, *words]
        elif word == "--json" or word.startswith(("--dir=", "--control=")):
            first.append(word)
        elif word in {"--dir", "--control"}:
            value = next(words, None)
            if value is None:
                raise UsageError(f"{word} needs a value.", hint="`holdfast -h` shows which.")
            first += [word, value]
        else:
            rest.append(word)
    return [*first, *rest]


def _refused(error: OSError, *, as_json: bool) -> int:
    """Tell what the operating system does not let us do, without calling it a bug."""
    what = error.filename if error.filename is not None else "Its output or a file"
    failure = UnavailableError(
        f"{what} cannot be used: {error.strerror}.",
        hint="Check the permissions and the space left.",
    )
    return _fail(failure, as_json=as_json)


def _fail(error: HoldfastError, *, as_json: bool) -> int:
    if as_json:
        sys.stderr.write(json.dumps(to_json(error)) + "\n")
    else:
        sys.stderr.write(f"holdfast: {error.message}\n")
        if error.hint:
            sys.stderr.write(textwrap.indent(error.hint, "  ") + "\n")
    return error.exit_code


def _slip(error: _Slip, words: Sequence[str], *, as_json: bool) -> int:
    root = typer.main.get_command(app)
    path = "holdfast" if error.ctx is None else error.ctx.command_path
    if error.ctx is None:
        # What goes wrong while words are sorted into options does not know its command.
        group: Any = root
        for word in words:
            if word in getattr(group, "commands", ()):
                group = group.commands[word]
                path += f" {word}"
    if type(error).__name__ == "NoArgsIsHelpError":
        # With rich it was drawn when it was asked for, and nothing is left to be said.
        if help_text := error.format_message().strip():
            sys.stdout.write(f"{help_text}\n")
        return UsageError.exit_code
    sentence = error.format_message().strip()
    if not sentence.endswith((".", "?", "!")):
        sentence += "."
    hint = f"`{path} -h` shows how."
    wanted = sentence.removeprefix("No such command '").partition("'")[0]
    if wanted != sentence:
        meant = _MEANT.get(wanted)
        if found := _paths_of(wanted, root):
            hint = f"Perhaps {' or '.join(f'`holdfast {each}`' for each in found)}?"
        elif meant is not None and meant in getattr(error.ctx.command, "commands", ()):
            # What is spelled alike may be something else: `remove` is not `move`.
            sentence = f"No such command '{wanted}'."
            hint = f"Perhaps `{path} {meant}`?"
    elif path == "holdfast volume set" and "--size" in sentence:
        hint = "Perhaps `holdfast volume resize`?"
    return _fail(UsageError(sentence, hint=hint), as_json=as_json)


def _paths_of(name: str, group: Any) -> list[str]:
    """Return where in the tree of commands there is one of that name, such as `volume list`."""
    found = []
    for each, command in group.commands.items():
        found += [each] if each == name else []
        found += (
            [f"{each} {below}" for below in _paths_of(name, command)]
            if hasattr(command, "commands")
            else []
        )
    return found


def _bug(error: Exception, *, as_json: bool) -> int:
    """Keep the details in a file and say where it is."""
    details = "".join(traceback.format_exception(error))
    told = f"{type(error).__name__}: {error}"
    path = default_dir().parent / "holdfast-errors.log"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        now = dt.datetime.now(tz=dt.UTC).isoformat(timespec="seconds")
        with path.open("a", encoding="utf-8") as log:
            log.write(f"{now} {sys.argv}\n{details}\n")
        hint = f"The details are in {path}; please report them."
    except OSError:
        hint = "Please report this."
    failure = HoldfastError(f"Something unexpected happened: {told}.", hint=hint)
    failure.exit_code = EXIT_BUG
    return _fail(failure, as_json=as_json)
