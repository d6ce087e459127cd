"""Progress off a terminal: plain lines while questions are open, and one when all are answered."""

from __future__ import annotations

import asyncio
import io

import virtual_time
from rich.console import Console

from evalswap.inference.tally import Tally
from evalswap.reporting.progress import PLAIN_LINES, Progress


def printed(*steps: tuple[float, int]) -> list[str]:
    """Watch ten questions: after each pause, in seconds, so many are answered. Return how many each line counts."""
    output = io.StringIO()

    async def main() -> None:
        tally = Tally(total=10)
        async with Progress(Console(file=output, width=200)) as progress, progress.watch("model", tally):
            for pause, answers in steps:
                await asyncio.sleep(pause)
                tally.answered += answers

    virtual_time.run(main())
    lines = output.getvalue().splitlines()
    assert all(line.startswith("model: ") for line in lines)
    return [line.removeprefix("model: ").split(" · ")[0] for line in lines]


def test_open_questions_are_counted_every_few_seconds_and_all_of_them_at_the_end() -> None:
    assert printed((PLAIN_LINES / 2, 4), (PLAIN_LINES, 0), (PLAIN_LINES, 6)) == ["4/10", "4/10", "10/10"]


def test_the_last_line_comes_once_even_if_the_end_takes_its_time() -> None:
    assert printed((PLAIN_LINES / 2, 10), (3 * PLAIN_LINES, 0)) == ["10/10"]


def test_questions_left_open_are_counted_at_the_end_too() -> None:
    assert printed((PLAIN_LINES / 2, 4)) == ["4/10"]


def test_a_name_on_a_terminal_is_no_markup() -> None:
    output = io.StringIO()

    async def main() -> None:
        tally = Tally(total=10)
        async with Progress(Console(file=output, width=200, force_terminal=True)) as progress:
            async with progress.watch("llama[awq][/]", tally):
                await asyncio.sleep(1)
            output.truncate(output.tell() - len(output.getvalue().splitlines()[-1]) - 1)  # the line at the end

    virtual_time.run(main())
    assert "llama[awq][/]" in output.getvalue()
