"""The tutorial's commands, run one after the other by a shell against a real local cluster.

A line that begins with `$ ` is a command; the lines below it are what it prints, where `…` stands
for anything, alone for any number of lines, and a number for any number. A block whose first
command is not installed here is left out.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.alone
PAGE = Path(__file__).parent.parent / "docs" / "tutorial.md"


def blocks() -> list[list[tuple[str, list[str]]]]:
    """Return for each fenced block its commands with the output expected of each."""
    found = []
    page = PAGE.read_text(encoding="utf-8")
    for text in re.findall(r"^```console\n(.*?)^```", page, re.MULTILINE | re.DOTALL):
        block: list[tuple[str, list[str]]] = []
        for line in text.splitlines():
            if line.startswith("$ "):
                block.append((line[2:], []))
            else:
                block[-1][1].append(line)
        found.append(block)
    return found


def pattern(lines: list[str]) -> str:
    """Return a regular expression for output that looks like `lines`."""
    made = ""
    for line in lines:
        if line == "…":
            made += r"(?:.*\n)*"
            continue
        text = re.escape(line).replace("…", ".*")
        made += re.sub(r"\d+(?:\\\.\d+)?", r"\\d+(?:\\.\\d+)?", text) + r" *\n"
    return made


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A shell with `holdfast` on its path and a cluster folder of its own."""
    programs = tmp_path / "bin"
    programs.mkdir()
    holdfast = programs / "holdfast"
    holdfast.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -P -m holdfast "$@"\n')
    holdfast.chmod(0o755)
    env = os.environ | {
        "PATH": f"{programs}:{os.environ['PATH']}",
        "HOLDFAST_DIR": str(tmp_path / "cluster"),
        "COLUMNS": "100",
    }
    with subprocess.Popen(
        ["bash"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        cwd=tmp_path,
        env=env,
        text=True,
    ) as process:
        yield process
        process.kill()
    subprocess.run([holdfast, "down"], env=env, check=False, capture_output=True)


def run(shell: subprocess.Popen[str], command: str) -> tuple[int, str]:
    """Run one command in the shell; return its exit code and what it printed."""
    assert shell.stdin is not None
    assert shell.stdout is not None
    shell.stdin.write(f"{command}\nCODE=$?; echo; echo END-OF-COMMAND $CODE\n")
    shell.stdin.flush()
    printed = ""
    for line in shell.stdout:
        if line.startswith("END-OF-COMMAND "):
            return int(line.split()[1]), printed.removesuffix("\n")
        printed += line
    pytest.fail(f"the shell ended at {command!r}: {printed}")


def test_the_tutorial_does_what_it_says(shell: subprocess.Popen[str]) -> None:
    done = 0
    for block in blocks():
        program = block[0][0].split()[0]
        if "=" not in program and program != "holdfast" and shutil.which(program) is None:
            continue
        for command, expected in block:
            code, printed = run(shell, command)
            assert code == 0, f"$ {command}\n{printed}"
            assert re.fullmatch(pattern(expected), printed), f"$ {command}\n{printed}"
            done += 1
    assert done > 12
