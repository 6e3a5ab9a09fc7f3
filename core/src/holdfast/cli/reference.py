"""The command line's reference as Markdown, printed from the commands themselves.

`docs/cli.md` is this module's output, and a test compares the two.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import typer.main

from holdfast.cli.app import EXIT_BUG, EXIT_INTERRUPTED, EXIT_PIPE, app
from holdfast.errors import HoldfastError

_INTRODUCTION = """\
# Command line

`holdfast` talks to the nodes of the local cluster in `--dir` (or `HOLDFAST_DIR`), or to the one
node whose control socket is `--control` (or `HOLDFAST_CONTROL`). `--json` prints JSON for
programs, on every command; errors then are JSON on standard error: `{"error": {"code", "message",
"hint", "exit_code"}}`. `--json`, `--dir` and `--control` may stand before or after the command.
What is under way (progress, warnings, errors) goes to standard error, what was asked for to
standard output.

This page is generated from the commands; do not edit it.
"""


def render_reference() -> str:
    """Return the reference as Markdown."""
    root = typer.main.get_command(app)
    parts = [_INTRODUCTION, _options("Options of every command", root.params)]
    parts.extend(_command(path, command) for path, command in _walk("holdfast", root))
    parts.append(_exit_codes())
    return "\n".join(parts)


def commands() -> list[str]:
    """Return the names of all commands: `holdfast volume create` and so on."""
    return [path for path, _ in _walk("holdfast", typer.main.get_command(app))]


def _walk(path: str, command: Any) -> Iterator[tuple[str, Any]]:
    for name, child in getattr(command, "commands", {}).items():
        if hasattr(child, "commands"):
            yield from _walk(f"{path} {name}", child)
        else:
            yield f"{path} {name}", child


def _command(path: str, command: Any) -> str:
    arguments = [each for each in command.params if each.param_type_name == "argument"]
    named = (_name(each) if each.required else f"[{_name(each)}]" for each in arguments)
    usage = " ".join([path, *named, "[OPTIONS]"])
    lines = [f"## `{path}`\n", f"    {usage}\n", (command.help or "").strip() + "\n"]
    rows = [_row(f"`{_name(each)}`", each) for each in arguments]
    rows += [_row(_flags(each), each) for each in command.params if each not in arguments]
    rows = [row for row in rows if row]
    if rows:
        lines += ["| | |", "|---|---|", *rows, ""]
    return "\n".join(lines)


def _options(title: str, params: Any) -> str:
    rows = [_row(_flags(each), each) for each in params]
    return "\n".join([f"## {title}\n", "| | |", "|---|---|", *filter(None, rows), ""])


def _row(name: str, param: Any) -> str:
    if "--help" in param.opts:
        return ""
    text = (param.help or "").replace("|", "\\|")
    if param.required and param.param_type_name != "argument":
        text += " Required."
    if isinstance(param.show_default, str):
        text += f" Default: {param.show_default}."
    elif param.default not in {None, False} and not callable(param.default):
        text += f" Default: {param.default}."
    if param.envvar:
        text += f" Also `{param.envvar}`."
    return f"| {name} | {text.strip()} |"


def _flags(param: Any) -> str:
    names = ", ".join(f"`{name}`" for name in sorted(param.opts, key=len, reverse=True))
    value = "" if param.is_flag else f" {_name(param)}"
    return names + (f" `{value.strip()}`" if value else "")


def _name(param: Any) -> str:
    return str(param.metavar or (param.name or "").upper().replace("_", "-"))


def _exit_codes() -> str:
    lines = ["## Exit codes\n", "| exit code | `code` in JSON | meaning |", "|---|---|---|"]
    rows = {(0, "", "It worked.")}
    for kind in _tree(HoldfastError):
        meaning = (kind.__doc__ or "").split("\n\n", 1)[0].replace("\n", " ")
        if "Base of" not in meaning:
            rows.add((kind.exit_code, f"`{kind.code}`", " ".join(meaning.split())))
    rows |= {
        (1, "`error`", "What has no code of its own."),
        (EXIT_BUG, "`error`", "Something unexpected; the message says which file has the details."),
        (EXIT_INTERRUPTED, "", "Ctrl-C."),
        (EXIT_PIPE, "", "The reader of the output has gone."),
    }
    lines += [f"| {code} | {word} | {meaning} |" for code, word, meaning in sorted(rows)]
    return "\n".join([*lines, ""])


def _tree(kind: type[HoldfastError]) -> Iterator[type[HoldfastError]]:
    yield kind
    for child in kind.__subclasses__():
        # Drivers and tests may have added their own; these pages are about Holdfast's.
        if child.__module__ == HoldfastError.__module__:
            yield from _tree(child)
