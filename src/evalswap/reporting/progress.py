"""Live progress: a bar for each model on a terminal, plain lines every few seconds elsewhere.

Answers only change numbers; drawing happens on its own clock, off the path of the requests.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Table

from evalswap.inference.tally import Tally

REDRAW = 0.25  # seconds, on a terminal
PLAIN_LINES = 10.0  # seconds, without one


def as_line(tally: Tally) -> str:
    """Return a tally as one line of text."""
    parts = [f"{tally.done}/{tally.total}", f"{tally.tokens_per_second:,.0f} tok/s", clock(tally.seconds)]
    if tally.eta is not None and tally.done < tally.total:
        parts.append(f"ETA {clock(tally.eta)}")
    scored = tally.answered + tally.stored
    if scored:
        parts.append(f"accuracy so far {100 * tally.right / scored:.2f}")
    if tally.requests_last_minute is not None:
        parts.append(f"{tally.requests_last_minute()} requests in the last minute")
    if tally.stored:
        parts.append(f"{tally.stored} from the store")
    if tally.failed:
        parts.append(f"{tally.failed} failed")
    return " · ".join(parts)


class Progress:
    """The tallies that are being asked right now, in one display. An asynchronous context manager."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._shown: dict[str, Tally] = {}
        self._live: Live | None = None
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Progress:
        if self._console.is_terminal:
            self._live = Live(self._bars(), console=self._console, auto_refresh=False, transient=True)
            self._live.start()
        self._task = asyncio.create_task(self._draw(self._live))
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        if self._live is not None:
            self._live.stop()

    @contextlib.asynccontextmanager
    async def watch(self, label: str, tally: Tally) -> AsyncIterator[None]:
        """Show a tally while the body runs, and print what it has come to afterwards."""
        self._shown[label] = tally
        try:
            yield
        finally:
            del self._shown[label]
            if self._live is not None:
                self._live.update(self._bars(), refresh=True)
            self._print(label, tally)

    async def _draw(self, live: Live | None) -> None:
        while True:
            if live is None:
                await asyncio.sleep(PLAIN_LINES)
                for label, tally in self._shown.items():
                    if tally.done < tally.total:  # the last line is printed by watch(), when its body ends
                        self._print(label, tally)
            else:
                live.update(self._bars(), refresh=True)
                await asyncio.sleep(REDRAW)

    def _print(self, label: str, tally: Tally) -> None:
        self._console.print(f"{label}: {as_line(tally)}", highlight=False, markup=False)

    def _bars(self) -> Table:
        grid = Table.grid(padding=(0, 1))
        grid.add_column(no_wrap=True)
        grid.add_column(width=30)
        grid.add_column()
        for label, tally in self._shown.items():
            bar = ProgressBar(total=max(1, tally.total), completed=tally.done, width=30)
            grid.add_row(escape(label), bar, as_line(tally))
        return grid


def clock(seconds: float) -> str:
    """Return a duration as people read it: 8.3 s, 2:05, 1:02:05."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
