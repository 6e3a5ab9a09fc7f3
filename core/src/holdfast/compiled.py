"""Loops over single requests and operations that exist twice: in Python, and compiled.

A batch is handled by Python that runs once for all of it; a handful of loops runs once for every
request in it. Those few stand beside each other in `_loops.c`, which is built where a C compiler and
Python's headers are at hand and left out where they are not. The Python function is what tells what a
loop does; its compiled twin must give the same answers and raise the same kinds of errors, which
`tests/test_compiled.py` holds both to. This module knows none of them.

Nothing is compiled that decides anything: no state machine, no order of effects, no acknowledgement
(`docs/decisions/0023-compiled-loops.md`).
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from types import ModuleType
from typing import Any, Final, TypeVar

_Loop = TypeVar("_Loop", bound=Callable[..., Any])

PURE_VARIABLE: Final = "HOLDFAST_PURE_PYTHON"
"""The environment variable that, when it is neither empty nor 0, leaves the compiled loops alone."""


IS_OFF: Final = os.environ.get(PURE_VARIABLE, "0") not in {"", "0"}
"""Whether that variable leaves them alone."""


def _load() -> ModuleType | None:
    if IS_OFF:
        return None
    try:
        return importlib.import_module("holdfast._loops")
    except ImportError:
        return None


_module: Final = _load()

IN_USE: Final = _module is not None
"""Whether the compiled loops were built and are not switched off."""

PYTHON: Final[dict[str, Callable[..., Any]]] = {}
"""The Python of every loop that may be compiled, by name; for whoever compares the two."""


def compiled(function: _Loop) -> _Loop:
    """Return the compiled twin of `function` if there is one, else `function` itself."""
    name = function.__name__
    PYTHON[name] = function
    twin: _Loop = getattr(_module, name, function)
    return twin
