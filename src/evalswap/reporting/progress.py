"""Live progress: a bar on a terminal, a plain line every few seconds elsewhere.

Answers only change numbers; drawing happens on its own clock, off the path of the requests.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table

from evalswap.inference.tally import Tally

REDRAW = 0.25  # seconds, on a terminal
PLAIN_LINE = 10.0  # seconds, without one


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


@contextlib.asynccontextmanager
async def shown(console: Console, label: str, tally: Tally) -> AsyncIterator[None]:
    """Show a tally while the body runs."""
    if not console.is_terminal:
        task = asyncio.create_task(_plain(console, label, tally))
        try:
            yield
        finally:
            task.cancel()
            console.print(f"{label}: {as_line(tally)}", highlight=False, markup=False)
        return
    with Live(_bar(label, tally), console=console, auto_refresh=False, transient=True) as live:
        task = asyncio.create_task(_redraw(live, label, tally))
        try:
            yield
        finally:
            task.cancel()
    console.print(f"{label}: {as_line(tally)}", highlight=False, markup=False)


async def _plain(console: Console, label: str, tally: Tally) -> None:
    while True:
        await asyncio.sleep(PLAIN_LINE)
        console.print(f"{label}: {as_line(tally)}", highlight=False, markup=False)


async def _redraw(live: Live, label: str, tally: Tally) -> None:
    while True:
        live.update(_bar(label, tally), refresh=True)
        await asyncio.sleep(REDRAW)


def _bar(label: str, tally: Tally) -> Table:
    grid = Table.grid(padding=(0, 1))
    grid.add_column(no_wrap=True)
    grid.add_column(width=30)
    grid.add_column()
    grid.add_row(label, ProgressBar(total=max(1, tally.total), completed=tally.done, width=30), as_line(tally))
    return grid


def clock(seconds: float) -> str:
    """Return a duration as people read it: 8.3 s, 2:05, 1:02:05."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
