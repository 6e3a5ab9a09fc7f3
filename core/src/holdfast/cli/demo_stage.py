"""How `holdfast demo` is told: steps that are ticked off, and a live line of writes a second."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.padding import Padding
from rich.panel import Panel
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from holdfast.cli import render
from holdfast.cli.demo_writer import Writer

_BARS = " ▁▂▃▄▅▆▇█"
_SAMPLES = 60
SAMPLE_S = 0.1


class Stage:
    """Where the story is told; silent when its console is."""

    def __init__(self, *, quiet: bool) -> None:
        """Choose the console."""
        self._console = Console(quiet=quiet, highlight=False)
        self._number = 0
        self._rates: deque[int] = deque([0] * _SAMPLES, maxlen=_SAMPLES)
        """Writes acknowledged in each of the last samples."""

    def title(self, text: str, below: str) -> None:
        """Open the story."""
        self._console.print(Panel(Text(below), title=f"[bold]{text}[/bold]", padding=(1, 2)))

    def chapter(self, text: str) -> None:
        """Begin a numbered part."""
        self._number += 1
        self._console.print(f"\n[bold cyan]{self._number}[/bold cyan]  [bold]{text}[/bold]")

    def tell(self, text: str) -> None:
        """Say something in passing."""
        self._console.print(Padding(f"[dim]{text}[/dim]", (0, 0, 0, 3)))

    def done(self, text: str, *, good: bool = True) -> None:
        """Say what came out."""
        line = Table.grid(padding=(0, 1, 0, 0))
        line.add_row("[green]✓[/green]" if good else "[red]✗[/red]", text)
        self._console.print(Padding(line, (0, 0, 0, 3)))

    @contextmanager
    def waiting(self, text: str) -> Iterator[None]:
        """Show that something is under way."""
        live = self._console.is_terminal and not self._console.quiet
        with self._console.status(f"[dim]{text}[/dim]") if live else nullcontext():
            yield

    @contextmanager
    def bar(self, text: str, total: int) -> Iterator[Callable[[int], None]]:
        """Show a bar of bytes; yields `advance(bytes)`."""
        if self._console.quiet:
            yield lambda _: None
            return
        with render.byte_progress(f"   {text}", total) as advance:
            yield advance

    def watch(
        self,
        writer: Writer,
        status: Callable[[], Any],
        until: Callable[[Any], bool],
        timeout_s: float,
    ) -> bool:
        """Show the writer and the copies until `until(status)`; return whether that came true.

        Args:
            writer: Whose acknowledgements are drawn.
            status: Returns the volume's status, or None while nobody answers.
            until: Told every status.
            timeout_s: When to give up.
        """
        deadline = time.monotonic() + timeout_s
        before = writer.acknowledged
        live = self._console.is_terminal and not self._console.quiet
        view = Live(console=self._console, transient=True, auto_refresh=False) if live else None
        with view or nullcontext():
            while time.monotonic() < deadline and writer.failure is None:
                volume = status()
                if until(volume):
                    return True
                time.sleep(SAMPLE_S)
                self._rates.append(writer.acknowledged - before)
                before = writer.acknowledged
                if view is not None:
                    view.update(_picture(self._rates, writer, volume), refresh=True)
        return False

    def summary(self, rows: Sequence[tuple[str, str, bool]], *, held: bool) -> None:
        """Close the story with what was promised and what came out."""
        made = Table.grid(padding=(0, 2))
        for what, told, good in rows:
            made.add_row(Text("✓" if good else "✗", style="green" if good else "red"), what, told)
        title = "[bold green]Everything held[/]" if held else "[bold red]Not everything held[/]"
        self._console.print()
        self._console.print(
            Panel(made, title=title, border_style="green" if held else "red", padding=(1, 2))
        )


def _picture(rates: Sequence[int], writer: Writer, volume: Any) -> RenderableType:
    top = max(*rates, 1)
    line = "".join(_BARS[-(-rate * (len(_BARS) - 1) // top)] for rate in rates)
    silent_s = writer.silence_s()
    head = Text("   ")
    head.append(line, style="cyan")
    if silent_s > 3 * SAMPLE_S:
        head.append(f"  waiting {silent_s:.1f} s", style="yellow")
    else:
        head.append(f"  {round(rates[-1] / SAMPLE_S)} writes/s")
    head.append(f"   {writer.acknowledged} acknowledged", style="dim")
    if volume is None:
        return Group(head, Spinner("dots", text=" looking for a primary"))
    return Group(head, render.copies_table(volume["copies"]))
