"""One target under atheris: `python -m tests.fuzz.coverage TARGET [libFuzzer's options]`.

A module of its own, because atheris must see the decoders being imported, and takes the process.
"""

from __future__ import annotations

import sys

import atheris

with atheris.instrument_imports(
    include=["holdfast", "holdfast_transport_tcp", "holdfast_transport_nvmeof"]
):
    from tests.fuzz.targets import TARGETS


def main() -> None:
    """Fuzz until libFuzzer has enough; it ends the process."""
    name = sys.argv.pop(1)
    atheris.Setup(sys.argv, TARGETS[name])
    atheris.Fuzz()


if __name__ == "__main__":
    main()
