"""What every test run needs: this tree's own drivers, and no traces outside temporary folders.

Tests import the tree through pytest's `pythonpath`, installed or not. Drivers, however, are found by
their distribution's metadata; so the metadata of every member is written out of its `pyproject.toml`
into a temporary folder that stands first on the path, for this process and for child processes.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent
MEMBERS = [ROOT / "core", *sorted(p.parent for p in ROOT.glob("plugins/*/pyproject.toml"))]
_FOLDER = Path(tempfile.mkdtemp(prefix="holdfast-tests-"))


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
    os.environ["XDG_CACHE_HOME"] = str(_FOLDER / "cache")


def pytest_unconfigure() -> None:
    """Leave nothing behind."""
    shutil.rmtree(_FOLDER, ignore_errors=True)


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """Asynchronous tests run on asyncio, as the node does."""
    return "asyncio"
