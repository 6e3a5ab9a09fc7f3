"""Run the system's storage tools, and say in a sentence which of them are missing."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping

import anyio

_SYSTEM = os.pathsep.join(["/usr/local/sbin", "/usr/sbin", "/sbin"])
"""Where storage tools are that the PATH of a plain user does not name."""


async def run(*command: str) -> tuple[int, str, str]:
    """Run `command` and return its exit code, its output, and what it said on standard error.

    Both texts are stripped. A program that cannot be started gives exit code 127, as in a shell.
    """
    try:
        path = program(command[0]) or command[0]
        done = await anyio.run_process([path, *command[1:]], check=False)
    except OSError as error:
        return 127, "", f"{command[0]}: {error.strerror}"
    return (
        done.returncode,
        done.stdout.decode(errors="replace").strip(),
        done.stderr.decode(errors="replace").strip(),
    )


def program(name: str) -> str | None:
    """Return the path of a program, also of one that only root usually calls; None without it."""
    return shutil.which(name) or shutil.which(name, path=_SYSTEM)


def clause(said: str) -> str:
    """Return what a tool said as one line that can stand inside a sentence of ours."""
    line = " ".join(said.removesuffix("Exiting.").split()).rstrip(".")
    return line or "it did not say why"


async def until(holds: Callable[[], bool], *, deadline_s: float = 30.0) -> bool:
    """Return True as soon as `holds()`, False when it does not within `deadline_s`."""
    with anyio.move_on_after(deadline_s):
        while not holds():  # noqa: ASYNC110 - what other processes do, nobody tells us.
            await anyio.sleep(0.02)
        return True
    return False


def missing_tools(tools: Mapping[str, str]) -> str | None:
    """Return a sentence naming the missing tools and how to install them, or None.

    Args:
        tools: Program name to the Debian package that has it.
    """
    missing = [tool for tool in tools if program(tool) is None]
    if not missing:
        return None
    packages = " ".join(sorted({tools[tool] for tool in missing}))
    return f"{' and '.join(missing)} not found; install with: apt install {packages}"
