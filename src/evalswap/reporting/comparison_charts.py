"""The charts of a comparison: accuracy with intervals, time and speed-up, throughput over time. By matplotlib.

The only colours in a chart are the constants here, as opaque hex values, so whoever embeds the SVG can replace each
by a CSS variable. Text stays text. The figures are made without pyplot: no global state, no display.
"""

from __future__ import annotations

import contextlib
import html
import io
import re
import warnings
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from evalswap.comparing.records import Comparison, Contender, DatasetComparison
from evalswap.reporting.progress import clock

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK = "#1f2328"  # text, axes, intervals
MUTED = "#656d76"  # secondary text
GRID = "#d8dee4"  # grid lines, unfilled parts
BAND = "#ddf4ff"  # the margin of equivalence around the reference
BACKGROUND = "#ffffff"
# One for each contender, the reference first; told apart also by people who see few colours (lightness differs).
SERIES = ("#57606b", "#0969da", "#bc4c00", "#1a7f64", "#8250df", "#9a6700", "#cf222e", "#0a7ea4")
START = "#afb8c1"  # the part of a time bar that is the engine's start

WIDTH = 7.2  # inches
ROW_HEIGHT = 0.42
LONGEST_NAME = 40  # characters
LOG_BEYOND = 8  # times as long as another, and the other's throughput would be a sliver of a linear axis


def accuracy_chart(comparison: Comparison, dataset: DatasetComparison) -> Figure:
    """Return scores as points with their 95% intervals; a band marks the reference ± the margin."""
    contenders = contenders_of(dataset)
    with _style():
        figure, axes = _rows_figure(contenders, f"{dataset.metric} on {dataset.dataset}, with 95% intervals")
        reference = dataset.reference.score
        if reference is not None:
            axes.axvspan(reference - comparison.margin, reference + comparison.margin, color=BAND, zorder=0, lw=0)
            axes.axvline(reference, color=GRID, zorder=1, lw=1)
        for place, contender in enumerate(contenders):
            colour = colour_of(place)
            if contender.score is None:
                axes.annotate("no score", (0.0, place), xycoords=("axes fraction", "data"), color=MUTED, va="center",
                              xytext=(4, 0), textcoords="offset points")  # fmt: skip
                continue
            if contender.interval is not None:
                axes.hlines(place, contender.interval.low, contender.interval.high, color=colour, lw=2, zorder=2)
            axes.plot(contender.score, place, "o", color=colour, ms=7, zorder=3)
            axes.annotate(f"{contender.score:.2f}", (contender.score, place), xytext=(0, 8),
                          textcoords="offset points", ha="center", color=INK, fontsize=9)  # fmt: skip
        axes.set_xlabel(f"{_label(dataset.metric)}, percent (band: the reference ± {comparison.margin:g})")
        axes.margins(x=0.08)
        # Near either end of the scale margin and band reach beyond it, where no score can be.
        axes.xaxis.set_major_formatter(lambda score, _: f"{round(score, 6) + 0.0:g}" if 0 <= score <= 100 else "")
    return figure


def time_chart(comparison: Comparison, dataset: DatasetComparison) -> Figure:
    """Return seconds of engine start and of inference as stacked bars, with the speed-up of the inference.

    A time that is not known has no bar and is a question mark; where it is the start, left of the axis.
    """
    contenders = contenders_of(dataset)
    speedups = [None, *(other.speedup for other in dataset.others)]
    with _style():
        figure, axes = _rows_figure(contenders, f"time on {dataset.dataset}: engine start, then inference")
        for place, (contender, speedup) in enumerate(zip(contenders, speedups, strict=True)):
            start, infer = times = contender.start_seconds, contender.infer_seconds
            if start is not None:
                axes.barh(place, start, color=START, height=0.56)
            elif infer is not None:
                axes.annotate("?", (0, place), xytext=(-9, 0), textcoords="offset points", ha="center", va="center",
                              color=MUTED, fontsize=9,
                              bbox={"boxstyle": "square,pad=0.3", "fc": "none", "ec": MUTED, "ls": ":"})  # fmt: skip
                axes.tick_params(axis="y", pad=20)  # room for it
            if infer is not None:
                axes.barh(place, infer, left=start or 0.0, color=colour_of(place), height=0.56)
            words = " + ".join("?" if seconds is None else clock(seconds) for seconds in times)
            words = "time not known" if times == (None, None) else words
            words += f"   {speedup:.2f}×" if speedup is not None else ""
            axes.annotate(words, (_seconds(contender), place), xytext=(5, 0), textcoords="offset points", va="center",
                          fontsize=9, color=MUTED if infer is None else INK)  # fmt: skip
        unknown = any(None in (contender.start_seconds, contender.infer_seconds) for contender in contenders)
        axes.set_xlabel(f"seconds: engine start + inference{' (?: not known)' if unknown else ''}")
        axes.set_xlim(left=0, right=1.32 * max([_seconds(contender) for contender in contenders] + [1e-3]))
    return figure


def throughput_chart(comparison: Comparison, dataset: DatasetComparison) -> Figure:
    """Return output tokens a second over the time since each contender's first request.

    Where one took ``LOG_BEYOND`` times as long as another, the time is on a logarithmic axis.
    """
    with _style():
        from matplotlib.figure import Figure

        figure = Figure(figsize=(WIDTH, 2.9), layout="constrained", facecolor=BACKGROUND)
        figure.set_label(f"throughput on {_label(dataset.dataset)}")
        axes = figure.subplots()
        _bare(axes)
        axes.grid(axis="both", color=GRID, lw=0.7)
        axes.set_title(_label(f"throughput on {dataset.dataset}"), loc="left", color=INK, fontsize=10)
        drawn = 0
        for place, contender in enumerate(contenders_of(dataset)):
            if contender.throughput:
                # Each point is the middle of a while; the first of them begins at 0.
                first = (0.0, contender.throughput[0][1])
                seconds, tokens = zip(first, *contender.throughput, strict=True)
                axes.plot(seconds, tokens, color=colour_of(place), lw=1.8, drawstyle="steps-mid",
                          label=_label(contender.name))  # fmt: skip
                drawn += 1
        ends = [contender.throughput[-1][0] for contender in contenders_of(dataset) if contender.throughput]
        if drawn and max(ends) > LOG_BEYOND * min(ends):
            _log_seconds(axes, min(ends) / 100, max(ends))
            axes.set_xlabel("seconds since the first request, logarithmic")
        else:
            axes.set_xlim(left=0)
            axes.set_xlabel("seconds since the first request")
        axes.set_ylabel("output tokens/s")
        axes.set_ylim(bottom=0)
        if drawn:
            axes.legend(frameon=False, fontsize=9, labelcolor=INK)
    return figure


CHARTS: dict[str, Callable[[Comparison, DatasetComparison], Figure]] = {
    "accuracy": accuracy_chart,
    "time": time_chart,
    "throughput": throughput_chart,
}


def has_times(dataset: DatasetComparison) -> bool:
    """Whether any contender was timed, so that a time chart would show something."""
    return any(contender.infer_seconds is not None for contender in contenders_of(dataset))


def has_throughput(dataset: DatasetComparison) -> bool:
    """Whether any contender's throughput over time is known."""
    return any(contender.throughput for contender in contenders_of(dataset))


def contenders_of(dataset: DatasetComparison) -> list[Contender]:
    """Return the reference and the others, in the order that all charts and tables show."""
    return [dataset.reference, *(other.contender for other in dataset.others)]


def colour_of(place: int) -> str:
    """Return the colour of a contender by its place; the reference's place is 0."""
    return SERIES[place % len(SERIES)]


def svg(figure: Figure) -> str:
    """Return a figure as an ``<svg>`` element for a page: text as text, ids of its own, the same bytes each time."""
    name = str(figure.get_label())
    prefix = f"c{zlib.crc32(name.encode()):08x}"
    stream = io.StringIO()
    with _style({"svg.hashsalt": prefix}):
        figure.savefig(stream, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    text = stream.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.DOTALL)
    # Several of them stand in one page, and matplotlib calls the parts of each the same.
    text = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{prefix}-", text)
    return text.replace("<svg", f'<svg role="img" aria-label="{html.escape(name, quote=True)}"', 1)


def png(figure: Figure, dots_per_inch: int = 160) -> bytes:
    """Return a figure as a PNG file."""
    stream = io.BytesIO()
    with _style():
        figure.savefig(stream, format="png", dpi=dots_per_inch)
    return stream.getvalue()


@contextlib.contextmanager
def _style(more: dict[str, Any] | None = None) -> Iterator[None]:
    import matplotlib

    settings: Any = {
        "svg.fonttype": "none",
        "text.parse_math": False,  # a model's name may have dollar signs
        "axes.edgecolor": GRID,
        "axes.labelcolor": MUTED,
        "axes.facecolor": BACKGROUND,
        "axes.labelsize": 9,
        "text.color": INK,
        "xtick.color": MUTED,
        "ytick.color": INK,
        "xtick.labelsize": 9,
        "ytick.labelsize": 9,
        "savefig.facecolor": BACKGROUND,
        **(more or {}),
    }
    with matplotlib.rc_context(settings), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # a name in letters that the font lacks: a box in the PNG
        yield


def _rows_figure(contenders: Sequence[Contender], title: str) -> tuple[Figure, Axes]:
    """Return a figure with one row for each contender, the reference on top."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, 1.1 + ROW_HEIGHT * len(contenders)), layout="constrained", facecolor=BACKGROUND)
    figure.set_label(_label(title, longest=120))
    axes = figure.subplots()
    _bare(axes)
    axes.grid(axis="x", color=GRID, lw=0.7)
    axes.set_title(_label(title, longest=90), loc="left", color=INK, fontsize=10)
    axes.set_yticks(range(len(contenders)), [_label(contender.name) for contender in contenders])
    axes.set_ylim(len(contenders) - 0.5, -0.7)
    axes.tick_params(axis="y", length=0)
    return figure, axes


def _bare(axes: Axes) -> None:
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)


def _seconds(contender: Contender) -> float:
    """Return the length of what is known of a contender's time."""
    return (contender.start_seconds or 0.0) + (contender.infer_seconds or 0.0)


def _log_seconds(axes: Axes, first: float, last: float) -> None:
    """Make the horizontal axis logarithmic, with plain numbers at 1, 3, 10, 30, … as far as there is room."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axes.set_xscale("log")
    axes.set_xlim(first, 1.2 * last)
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 3.0) if last < 10_000 * first else (1.0,)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda seconds, _: f"{seconds:,g}"))


def _label(text: str, longest: int = LONGEST_NAME) -> str:
    """Return a text as a chart can hold it: no control characters (XML has none), and not too long."""
    clean = "".join(c if c.isprintable() else " " for c in text)
    return clean if len(clean) <= longest else f"{clean[: longest - 1]}…"
