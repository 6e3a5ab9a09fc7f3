"""Steps: everything that is ever done to the kernel or to a drive, as values.

A plan is a list of these. It can be compared in a test, printed as shell commands, and carried out;
this module does the last two and knows nothing of why a step is there.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shlex
import shutil
from collections.abc import Iterable
from pathlib import Path

import attrs

from holdfast.errors import HoldfastError

FABRICS = "/dev/nvme-fabrics"
PATH = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"
"""Where programs are looked for: what an administrator has, plain users often do not have in theirs."""
COMMAND_TIMEOUT_S = 3600.0
"""A zeroing of a large drive is the longest command; the others take seconds."""


class StepError(HoldfastError):
    """A command or a write to the kernel failed; the plan stops there and is made anew."""

    exit_code = 9
    code = "kernel"


@attrs.frozen
class Run:
    """A program with its arguments."""

    argv: tuple[str, ...]
    stdin: str = ""
    """What the program reads, such as a script of sfdisk."""


@attrs.frozen
class Write:
    """A text for a file of configfs or sysfs."""

    path: str
    text: str


@attrs.frozen
class MakeDir:
    """A directory that is not there; in configfs, a new object."""

    path: str


@attrs.frozen
class RemoveDir:
    """An empty directory; in configfs, the end of an object."""

    path: str


@attrs.frozen
class Link:
    """A symbolic link, which in configfs ties two objects together."""

    path: str
    target: str


@attrs.frozen
class Unlink:
    """The end of a link, or of a file of ours."""

    path: str


@attrs.frozen
class Connect:
    """A line for /dev/nvme-fabrics, which makes a controller."""

    options: str


Step = Run | Write | MakeDir | RemoveDir | Link | Unlink | Connect


def run(*argv: str, stdin: str = "") -> Run:
    """Return the step that runs `argv`."""
    return Run(argv, stdin)


def shell(step: Step) -> str:
    """Return a step as a line that a person could type."""
    match step:
        case Run(argv, ""):
            return shlex.join(argv)
        case Run(argv, stdin):
            return f"printf %s {shlex.quote(stdin)} | {shlex.join(argv)}"
        case Write(path, text):
            return f"printf %s {shlex.quote(text)} > {shlex.quote(path)}"
        case MakeDir(path):
            return shlex.join(["mkdir", path])
        case RemoveDir(path):
            return shlex.join(["rmdir", path])
        case Link(path, target):
            return shlex.join(["ln", "-s", target, path])
        case Unlink(path):
            return shlex.join(["rm", path])
        case Connect(options):
            return f"printf %s {shlex.quote(options)} > {FABRICS}"


async def carry_out(steps: Iterable[Step]) -> None:
    """Carry steps out in their order, and stop at the first that fails.

    Raises:
        StepError: Names the step and what the kernel or the program said.
    """
    for step in steps:
        if isinstance(step, Run):
            await output(*step.argv, stdin=step.stdin)
        else:
            # A connect waits for the other machine; the loop must not.
            await asyncio.to_thread(_touch, step)


async def output(*argv: str, stdin: str = "", timeout_s: float = COMMAND_TIMEOUT_S) -> str:
    """Run a program and return what it printed.

    Raises:
        StepError: It cannot be started, fails, or does not end within `timeout_s`.
    """
    try:
        process = await asyncio.create_subprocess_exec(
            shutil.which(argv[0], path=PATH) or argv[0],
            *argv[1:],
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env={**os.environ, "LC_ALL": "C", "PATH": PATH},
        )
    except OSError as error:
        raise StepError(f"{argv[0]} cannot be run: {error.strerror}.") from error
    try:
        async with asyncio.timeout(timeout_s):
            out, said = await process.communicate(stdin.encode())
    except TimeoutError:
        raise StepError(
            f"`{shlex.join(argv)}` did not end within {timeout_s:.0f} s; it was stopped."
        ) from None
    finally:
        # Also when we are cancelled: no program of ours outlives us.
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
    if process.returncode:
        words = " ".join((said or out).decode(errors="replace").split()).rstrip(".")
        raise StepError(f"`{shlex.join(argv)}` failed with {process.returncode}: {words}.")
    return out.decode(errors="replace")


def _touch(step: Write | MakeDir | RemoveDir | Link | Unlink | Connect) -> None:
    try:
        match step:
            case Write(path, text):
                # Configfs takes a value in one write, and no O_CREAT.
                _write(path, text)
            case MakeDir(path):
                Path(path).mkdir()
            case RemoveDir(path):
                Path(path).rmdir()
            case Link(path, target):
                Path(path).symlink_to(target)
            case Unlink(path):
                Path(path).unlink()
            case Connect(options):
                _write(FABRICS, options)
    except (FileExistsError, FileNotFoundError):
        if isinstance(step, Write | Connect | Link):
            raise _failed(step, "it is not there") from None
        # Somebody else has made or removed just this; the next look shows whether it fits.
    except OSError as error:
        raise _failed(step, error.strerror or str(error)) from error


def _write(path: str, text: str) -> None:
    handle = os.open(path, os.O_WRONLY)
    try:
        os.write(handle, text.encode())
    finally:
        os.close(handle)


def _failed(step: Step, why: str) -> StepError:
    return StepError(f"`{shell(step)}` failed: {why}.")
