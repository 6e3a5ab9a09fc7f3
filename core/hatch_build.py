# noqa: INP001 - hatchling runs it by its path.
"""Builds the compiled loops into the wheel, where that can be done; `holdfast.compiled` says what they are.

A machine without a C compiler or without Python's headers gets the same wheel without them, and is
told so. Set HOLDFAST_PURE_PYTHON=1 to leave them out on purpose.
"""

from __future__ import annotations

import os
import platform
import shutil
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface
from setuptools import Distribution, Extension
from setuptools.command.build_ext import build_ext

NAME = "holdfast._loops"
SOURCE = "src/holdfast/_loops.c"


class CompiledLoops(BuildHookInterface[Any]):
    """Compiles one file, and goes on without it when that fails."""

    _folder: str | None = None

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile, and add what came of it to the wheel."""
        left_out = os.environ.get("HOLDFAST_PURE_PYTHON", "0") not in {"", "0"}
        if left_out or platform.python_implementation() != "CPython":
            return
        self._folder = tempfile.mkdtemp(prefix="holdfast-loops-")
        try:
            built = compile_into(Path(self._folder), Path(self.root) / SOURCE)
        except Exception as error:  # noqa: BLE001 - whatever a compiler or its absence comes up with.
            self.app.display_warning(
                f"holdfast-core is built without its compiled loops: {error}."
                " Writes cost a sixth more processor time. A C compiler and Python's headers are needed"
                " (on Debian: apt install gcc python3-dev)."
            )
            return
        if version == "editable":
            # The tree itself is imported, so that is where it belongs.
            shutil.copy2(built, Path(self.root) / "src/holdfast" / built.name)
        else:
            build_data["force_include"][str(built)] = f"holdfast/{built.name}"
            build_data["pure_python"] = False
            build_data["infer_tag"] = True

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Leave nothing behind."""
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)


def compile_into(folder: Path, source: Path) -> Path:
    """Compile `source` for the running interpreter and return the module that it has become."""
    extension = Extension(
        NAME, [str(source)], extra_compile_args=["-O2", "-std=c11", "-D_GNU_SOURCE"]
    )
    command = build_ext(Distribution({"name": "holdfast-core", "ext_modules": [extension]}))
    command.build_lib = str(folder / "lib")
    command.build_temp = str(folder / "temp")
    command.ensure_finalized()
    command.run()
    return Path(command.get_ext_fullpath(NAME))
