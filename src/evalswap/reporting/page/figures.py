"""The comparison's charts as they stand in the page: narrow enough for a phone, in the page's own colours."""

from __future__ import annotations

import re
from dataclasses import dataclass
from textwrap import fill
from typing import Any

from evalswap.comparing.records import Comparison, Contender, DatasetComparison
from evalswap.reporting import comparison_charts as charts
from evalswap.reporting.wording import duration, number, span

WIDTH = 4.2  # inches: text of 9 points is then as large on a phone of 375 pixels, and three charts fit side by side
NAME_WIDTH = 16  # characters of a line
VARIABLES = {
    charts.INK: "--ink",
    charts.MUTED: "--muted",
    charts.GRID: "--line",
    charts.BAND: "--band",
    charts.BACKGROUND: "--paper",
    charts.START: "--start",
    **{colour: f"--series-{place}" for place, colour in enumerate(charts.SERIES)},
}


@dataclass(frozen=True)
class PageFigure:
    """A chart and the same in words."""

    title: str
    svg: Any  # Markup
    words: tuple[str, ...]  # one for each contender


def figures(comparison: Comparison, dataset: DatasetComparison) -> list[PageFigure]:
    """Return the charts of a dataset that have something to show."""
    contenders = charts.contenders_of(dataset)
    speedups = [None, *(other.speedup for other in dataset.others)]
    title = f"{dataset.metric} with 95% intervals"
    words = tuple(_score(contender) for contender in contenders)
    found = [PageFigure(title, _inline(charts.accuracy_chart(comparison, dataset)), words)]
    if charts.has_times(dataset):
        title = "Time: engine start, then inference; speed-up"
        words = tuple(_time(*pair) for pair in zip(contenders, speedups, strict=True))
        found.append(PageFigure(title, _inline(charts.time_chart(comparison, dataset)), words))
    if charts.has_throughput(dataset):
        title = "Throughput: output tokens a second, over time"
        words = tuple(_throughput(contender) for contender in contenders if contender.throughput)
        found.append(PageFigure(title, _inline(charts.throughput_chart(comparison, dataset), named=False), words))
    return found


def _inline(figure: Any, named: bool = True) -> Any:
    """Return a figure as SVG that scales with the page and takes its colours from the page's variables.

    ``named``: the vertical axis has the contenders' names, which are broken into lines.
    """
    from markupsafe import Markup

    axes = figure.axes[0]
    axes.set_title("", loc="left")  # the page has it as text that wraps
    if named:
        axes.set_yticks(axes.get_yticks(), [fill(label.get_text(), NAME_WIDTH) for label in axes.get_yticklabels()])
    figure.set_size_inches(WIDTH, figure.get_figheight())
    text = charts.svg(figure)
    text = re.sub(r' (?:width|height)="[\d.]+pt"', "", text, count=2)
    text = re.sub(r"#[0-9a-fA-F]{6}\b", _variable, text)
    return Markup(text)  # matplotlib escapes the names in it


def _variable(colour: re.Match[str]) -> str:
    name = VARIABLES.get(colour[0].lower())
    return f"var({name})" if name else colour[0]


def _score(contender: Contender) -> str:
    interval = f" ({span(contender.interval)})" if contender.interval else ""
    return f"{contender.name}: {number(contender.score)}{interval}"


def _time(contender: Contender, speedup: float | None) -> str:
    start, infer = (
        "not known" if seconds is None else duration(seconds)
        for seconds in (contender.start_seconds, contender.infer_seconds)
    )
    faster = "" if speedup is None else f", speed-up {number(speedup)}×"
    return f"{contender.name}: start {start}, inference {infer}{faster}"


def _throughput(contender: Contender) -> str:
    highest = max(tokens for _, tokens in contender.throughput)
    mean = "" if contender.tokens_per_second is None else f"{number(contender.tokens_per_second, 0)} on average, "
    return f"{contender.name}: {mean}{number(highest, 0)} at most"
