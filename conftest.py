"""What every test run needs: this tree's own drivers, and no traces behind it.

Tests import the tree through pytest's `pythonpath`, installed or not. Drivers, however, are found
by their distribution's metadata; so the metadata of every member is written out of its
`pyproject.toml` into a temporary folder that stands first on the path, for this process and for
child processes.

Every process that a test starts inherits a mark in its environment; one that carries it still when
all tests are done was forgotten, and fails the run.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
import tempfile
import time
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent
MEMBERS = [ROOT / "core", *sorted(p.parent for p in ROOT.glob("plugins/*/pyproject.toml"))]
_FOLDER = Path(tempfile.mkdtemp(prefix="holdfast-tests-"))
_MARK = "HOLDFAST_TESTS_SESSION"
_PATIENCE_S = 5.0
"""How long a process may take to end after the test that started it."""
_forgotten: list[str] = []


def _write_metadata(member: Path, target: Path) -> None:
    project = tomllib.loads((member / "pyproject.toml").read_text())["project"]
    folder = target / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    folder.mkdir(parents=True)
    (folder / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
    )
    sections = (
        f"[{group}]\n" + "".join(f"{name} = {value}\n" for name, value in points.items())
        for group, points in project.get("entry-points", {}).items()
    )
    (folder / "entry_points.txt").write_text("\n".join(sections))


def pytest_configure() -> None:
    """Put the members' metadata and sources on the path, and caches into a temporary folder."""
    for member in MEMBERS:
        _write_metadata(member, _FOLDER / "metadata")
    sys.path.insert(0, str(_FOLDER / "metadata"))
    path = [str(_FOLDER / "metadata"), *(str(member / "src") for member in MEMBERS)]
    if "PYTHONPATH" in os.environ:
        path.append(os.environ["PYTHONPATH"])
    os.environ["PYTHONPATH"] = os.pathsep.join(path)
    # stevedore's cache is not to know of the metadata above; pip's is what makes its tests quick.
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser())
    os.environ.setdefault("PIP_CACHE_DIR", str(caches / "pip"))
    os.environ["XDG_CACHE_HOME"] = str(_FOLDER / "cache")
    # Without a place for it, each of a thousand processes would compile anew what it imports.
    if os.environ.pop("PYTHONDONTWRITEBYTECODE", ""):
        os.environ["PYTHONPYCACHEPREFIX"] = str(_FOLDER / "bytecode")
    os.environ[_MARK] = str(_FOLDER)


def _marked() -> dict[int, str]:
    """Return the command lines of the living processes that carry this run's mark, by id."""
    mark = f"{_MARK}={_FOLDER}".encode()
    found = {}
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            line = (entry / "cmdline").read_bytes()
            # A zombie has no command line: it has ended, and only its parent has not asked yet.
            if line and mark in (entry / "environ").read_bytes().split(b"\0"):
                found[int(entry.name)] = line.replace(b"\0", b" ").decode(errors="replace").strip()
    found.pop(os.getpid(), None)
    return found


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail the run when it leaves processes behind, and end them."""
    end = time.monotonic() + _PATIENCE_S
    while (left := _marked()) and time.monotonic() < end:
        time.sleep(0.05)
    for pid, line in left.items():
        _forgotten.append(f"{pid}: {line}")
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    if left and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Name the processes that were left behind."""
    if _forgotten:
        terminalreporter.section("processes left running", red=True)
        for line in _forgotten:
            terminalreporter.line(line)


def pytest_unconfigure() -> None:
    """Leave nothing behind."""
    shutil.rmtree(_FOLDER, ignore_errors=True)


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """Asynchronous tests run on asyncio, as the node does."""
    return "asyncio"
