"""`holdfast demo`: the main job, told as a story."""

from __future__ import annotations

import typer


def add_to(app: typer.Typer) -> None:
    """Add this module's command to `holdfast`."""
