"""Pages that are watched: drawn in place at a terminal, written when they change anywhere else."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import RenderableType
from rich.live import Live

from holdfast.cli import render


@contextmanager
def live() -> Iterator[Callable[[RenderableType], None]]:
    """Yield what draws a page in the place of the one before, until the context ends.

    Where nobody sees it being drawn, as in a pipe, each page that is another one is written.
    """
    if not render.out.is_terminal:
        yield _show_changed()
        return
    with Live(console=render.out, auto_refresh=False, transient=False) as view:
        yield lambda page: view.update(page, refresh=True)


def _show_changed() -> Callable[[RenderableType], None]:
    before = ""

    def draw(page: RenderableType) -> None:
        nonlocal before
        with render.out.capture() as captured:
            render.show(page)
        if captured.get() != before:
            before = captured.get()
            render.show(page)
            render.out.file.flush()

    return draw
