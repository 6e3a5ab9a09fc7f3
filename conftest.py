"""What every test run needs: this tree's own drivers, and no traces behind it.

Tests import the tree through pytest's `pythonpath`, installed or not. Drivers, however, are found
by their distribution's metadata; so the metadata of every member is written out of its
`pyproject.toml` into a temporary folder that stands first on the path, for this process and for
child processes.

Every process that a test starts inherits a mark in its environment; one that carries it still when
all tests are done was forgotten, and fails the run.

With `--numprocesses 2` (pytest-xdist) two workers share the tests. Those of real clusters mostly wait,
for leases and for processes; some have deadlines, and some use what a machine has once, as loop devices.
They all go to one worker, one after the other as without workers, while the other takes the rest.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import os
import shutil
import signal
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator
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


def _only_distributes(config: pytest.Config) -> bool:
    """Return whether this process runs no tests itself, but workers that do."""
    return not _is_worker(config) and config.getoption("dist", "no") != "no"


def _is_worker(config: pytest.Config) -> bool:
    return hasattr(config, "workerinput")


def pytest_configure(config: pytest.Config) -> None:
    """Put the members' metadata and sources on the path, and caches into a temporary folder."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        # A shell has its background jobs ignore Ctrl-C, and what they start inherits that.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    # The mark of a worker is that of the run: it has it from the process that started it.
    if not _is_worker(config):
        os.environ[_MARK] = str(_FOLDER)
    if _only_distributes(config):
        return
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


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> object:
    """Give tests to workers file by file, and all files that go alone to the same one.

    By files and not by marks: `--dist loadgroup` of pytest-xdist 3.8 knows no group from pytest 9.2 on.
    """
    scheduler = importlib.import_module("xdist.scheduler").LoadFileScheduling(config, log)
    file_of = scheduler._split_scope  # noqa: SLF001 - what its subclasses are to replace.
    scheduler._split_scope = lambda nodeid: _unit_of(file_of(nodeid))  # noqa: SLF001 - the same.
    return scheduler


@functools.cache
def _unit_of(file: str) -> str:
    """Return what a file's tests go together with: those that may not run at once, or themselves."""
    text = (ROOT / file).read_text(encoding="utf-8")
    return "alone" if "start_cluster" in text or "mark.alone" in text else file


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


@pytest.hookimpl(wrapper=True, trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> Iterator[None]:
    """Fail the run when it leaves processes behind, and end them."""
    yield  # Workers end here.
    if _is_worker(session.config):
        return
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
