"""Fuzzes the targets, by coverage where atheris is installed, by chance elsewhere; see the package."""

from __future__ import annotations

import argparse
import importlib.util
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from tests.fuzz.targets import CORPUS, TARGETS, inputs

SECONDS_MAX = 10
MEGABYTES_MAX = 1024
"""One input may take so much; a decoder needs a thousandth of it."""


def main(arguments: list[str] | None = None) -> int:
    """Return 1 when a target was broken."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("targets", nargs="*", choices=[[], *TARGETS], help="all when none is named")
    parser.add_argument("--minutes", type=float, default=10, help="for all of them together")
    parser.add_argument("--input", type=Path, help="only this file")
    parser.add_argument("--by-chance", action="store_true", help="leave atheris alone")
    options = parser.parse_args(arguments)
    names = options.targets or list(TARGETS)
    if options.input is not None:
        for name in names:
            TARGETS[name](options.input.read_bytes())
        return 0
    by_coverage = importlib.util.find_spec("atheris") is not None and not options.by_chance
    run = _by_coverage if by_coverage else _by_chance
    print("by coverage, with atheris" if by_coverage else "by chance, for there is no atheris")
    seconds = max(1, round(60 * options.minutes / len(names)))
    outcomes = [run(name, seconds) for name in names]
    return int(not all(outcomes))


def _by_coverage(name: str, seconds: int) -> bool:
    """Fuzz one target in a process of its own, which libFuzzer takes over."""
    command = [sys.executable, "-m", "tests.fuzz.coverage", name, f"-max_total_time={seconds}"]
    with tempfile.TemporaryDirectory() as found:
        done = subprocess.run(
            [
                *command,
                f"-timeout={SECONDS_MAX}",
                f"-rss_limit_mb={MEGABYTES_MAX}",
                f"-artifact_prefix={found}/",
                "-max_len=8192",
                found,
                str(CORPUS / name),
            ],
            check=False,
            capture_output=True,
            text=True,
        )
        crashes = [
            p for p in Path(found).iterdir() if p.name.split("-")[0] in {"crash", "timeout", "oom"}
        ]
        for path in crashes:
            kept = CORPUS / name / path.name
            kept.write_bytes(path.read_bytes())
            print(f"{name}: BROKEN by {kept}")
        lines = done.stderr.splitlines()
        if crashes or done.returncode:
            print("\n".join(lines[-40:]))
        counts = [line for line in lines if "cov:" in line]
        print(f"{name}: {seconds} s, {counts[-1].strip() if counts else 'no counts'}", flush=True)
        return not crashes and done.returncode == 0


def _by_chance(name: str, seconds: int) -> bool:
    """Change inputs of the corpus at random."""
    target, dice = TARGETS[name], random.Random(name)
    corpus = [path.read_bytes() for path in inputs(name)]
    ends = time.monotonic() + seconds
    runs = 0
    while time.monotonic() < ends:
        data = mutated(dice.choice(corpus), dice)
        runs += 1
        if not _survives(name, target, data):
            return False
    print(f"{name}: {seconds} s, {runs:,} inputs", flush=True)
    return True


def _survives(name: str, target: Callable[[bytes], None], data: bytes) -> bool:
    began = time.process_time()
    try:
        target(data)
    except Exception as error:  # noqa: BLE001  # Anything that leaves a target is a defect.
        what = f"{type(error).__name__}: {error}"
    else:
        if time.process_time() - began < SECONDS_MAX:
            return True
        what = f"it took {time.process_time() - began:.0f} s of processor time"
    kept = CORPUS / name / f"crash-{random.Random(data).randbytes(8).hex()}"
    kept.write_bytes(data)
    print(f"{name}: BROKEN by {kept}: {what}", flush=True)
    return False


def mutated(data: bytes, dice: random.Random) -> bytes:
    """Return `data` with a few changes: bits, numbers at their limits, pieces lost, doubled, added."""
    raw = bytearray(data)
    for _ in range(dice.choice([1, 1, 2, 4, 8])):
        at = dice.randrange(len(raw) + 1)
        width = dice.choice([1, 2, 4, 8])
        match dice.randrange(6):
            case 0 if at < len(raw):
                raw[at] ^= 1 << dice.randrange(8)
            case 1:
                raw[at : at + width] = dice.choice([0, 1, 127, 128, 255]).to_bytes(1, "big") * width
            case 2:
                raw[at : at + width] = dice.randrange(1 << 8 * width).to_bytes(width, "big")
            case 3:
                del raw[at : at + dice.randrange(1, 40)]
            case 4:
                raw[at:at] = raw[at : at + dice.randrange(1, 200)]
            case _:
                raw[at:at] = dice.randbytes(dice.randrange(1, 20))
    return bytes(raw)


if __name__ == "__main__":
    sys.exit(main())
