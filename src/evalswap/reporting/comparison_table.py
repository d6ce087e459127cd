"""The table of a comparison, and what is said under it: on the console, and as cells for Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from evalswap.comparing.divergence import summed_up
from evalswap.comparing.records import Against, Comparison, Contender, DatasetComparison
from evalswap.comparing.verdict import verdict_words
from evalswap.reporting.wording import another_setup, duration, number, proof_words, share, signed, span, visible

HEADER = (
    "engine", "accuracy (95% CI)", "Δ (95% CI)", "flips ✓→✗ ✗→✓", "identical", "inference", "start", "tokens/s",
    "speed-up", "verdict",
)  # fmt: skip
COLOURS = {"equivalent": "green", "different": "red", "inconclusive": "yellow", "reference": "dim"}
DASH = "–"
MOST_TABLES = 4  # more datasets than these are shown in one
WIDE = 130  # columns of a console from which on there is room for all of a table's without breaking words


def header(dataset: DatasetComparison) -> list[str]:
    """Return the table's column names; the score is called what it is."""
    return [name.replace("accuracy", dataset.metric) for name in HEADER]


def cells(dataset: DatasetComparison) -> list[list[str]]:
    """Return the table's cells: the reference's row, then those compared with it, then the noise floor."""
    entries = [*dataset.others, *([dataset.noise_floor] if dataset.noise_floor else [])]
    first = [*_own(dataset.reference), DASH, DASH, DASH, *_times(dataset.reference), DASH, "reference"]
    return [first, *(_row(against) for against in entries)]


def sayings(dataset: DatasetComparison, against: Against) -> Iterator[str]:
    """Yield what is said of a contender under the table: its reasons, its differences in one line, its proof."""
    yield from against.reasons
    line = summed_up(against.compared, against.identical, against.counts) + _unasked(against) + "."
    yield line[:1].upper() + line[1:]
    if against.proof is not None:
        yield f"Wiring proof: {proof_words(against.proof)}."
    silent = [item.item for item in against.contract if item.kept is None]
    if silent:
        yield f"Not known on both sides: {', '.join(silent)}."


def show_comparison(console: Console, comparison: Comparison) -> None:
    """Print a comparison: a table for each dataset, then the reasons of each verdict.

    Many datasets are one table; reasons are then given of all datasets together, and where something is wrong.
    """
    many = len(comparison.datasets) > MOST_TABLES
    if many:
        console.print(_compact(comparison))
    for dataset in comparison.datasets:
        if not many:
            console.print(_view(dataset, comparison.margin, turned=console.width < WIDE))
        for against in dataset.others:
            if many and dataset is not comparison.datasets[0] and not _alarming(against):
                continue
            about = f" on {dataset.dataset}" if many else ""
            name = escape(visible(against.contender.name + about))
            console.print(f"[bold]{name}[/]: {verdict_of(against)}", highlight=False)
            for saying in sayings(dataset, against):
                console.print(f"  {visible(saying)}", highlight=False, markup=False, soft_wrap=True)
    for note in comparison.notes:
        console.print(f"note: {visible(note)}", highlight=False, markup=False, soft_wrap=True)


def _view(dataset: DatasetComparison, margin: float, *, turned: bool) -> Table:
    """Return a dataset's table: a row for each engine, or turned, for a narrow console, a column for each."""
    entries = [*dataset.others, *filter(None, [dataset.noise_floor])]
    verdicts = ["reference", *(against.verdict for against in entries)]
    about = f"{dataset.model} on {dataset.dataset}: the first {'column' if turned else 'row'} is the reference"
    table = _turned if turned else _table
    return table(f"{about}, margin ±{margin:g}", header(dataset), cells(dataset), verdicts)


def _compact(comparison: Comparison) -> Table:
    """Return one line for each contender on each dataset."""
    rows, verdicts = [], []
    for dataset in comparison.datasets:
        for against in dataset.others:
            _, score, delta, flips, identical, *_, verdict = _row(against)
            first = number(dataset.reference.score)
            rows.append(
                [dataset.dataset, against.contender.name, first, score.split(" (")[0], delta, flips, identical, verdict]
            )
            verdicts.append(against.verdict)
    names = ["dataset", "engine", "reference", "score", *HEADER[2:5], "verdict"]
    return _table(f"margin ±{comparison.margin:g}", names, rows, verdicts)


def _table(title: str, names: Sequence[str], rows: Sequence[Sequence[str]], verdicts: Sequence[str]) -> Table:
    view = Table(title=escape(visible(title)), title_justify="left", title_style="bold")
    for name in names:
        left = name in ("dataset", "engine", "verdict")
        view.add_column(escape(name), justify="left" if left else "right", overflow="fold")
    for row, verdict in zip(rows, verdicts, strict=True):
        *others, last = (escape(visible(text)) for text in row)
        view.add_row(*others, f"[{COLOURS[verdict]}]{last}[/]")
    return view


def _turned(title: str, names: Sequence[str], rows: Sequence[Sequence[str]], verdicts: Sequence[str]) -> Table:
    view = Table(title=escape(visible(title)), title_justify="left", title_style="bold")
    view.add_column(escape(names[0]))
    for row in rows:
        view.add_column(escape(visible(row[0])), overflow="fold")
    for place, name in enumerate(names[1:-1], start=1):
        view.add_row(escape(name), *(escape(visible(row[place])) for row in rows))
    last = (f"[{COLOURS[verdict]}]{escape(visible(row[-1]))}[/]" for row, verdict in zip(rows, verdicts, strict=True))
    view.add_row(escape(names[-1]), *last)
    return view


def _alarming(against: Against) -> bool:
    return against.verdict == "different" or another_setup(against)


def verdict_of(against: Against) -> str:
    """Return a contender's verdict in its fixed words, and whether its set-up is the reference's."""
    words = verdict_words(against.verdict, against.statistics)
    return f"{words}, not the same set-up" if another_setup(against) else words


def _unasked(against: Against) -> str:
    """Say so where nobody asked the reference about differing tokens."""
    open_ends = [d for d in against.differences if d.kind == "unexplained" and d.first.gap is None]
    by_ids = any(d.first.unit == "token" for d in open_ends)
    if not open_ends:
        return ""
    return " (the reference was not asked about them: --explain)" if by_ids else " (only texts are known)"


def _row(against: Against) -> list[str]:
    statistics = against.statistics
    delta, flips = DASH, DASH
    if statistics is not None:
        delta = f"{signed(statistics.delta)} ({span(statistics.delta_interval, sign=True)})"
        flips = f"{statistics.right_to_wrong} {statistics.wrong_to_right}"
    speedup = DASH if against.speedup is None else f"{number(against.speedup)}×"
    identical = share(against.identical, against.compared)
    last = verdict_words(against.verdict, statistics)
    return [*_own(against.contender), delta, flips, identical, *_times(against.contender), speedup, last]


def _own(contender: Contender) -> list[str]:
    score = number(contender.score) + (f" ({span(contender.interval)})" if contender.interval else "")
    if contender.answered < contender.total:
        score += f", partial: {contender.answered:,} of {contender.total:,}"
    engine = contender.engine if contender.engine.startswith(contender.name) else contender.name
    return ["\n".join([engine, ", ".join(filter(None, (contender.dtype, contender.device)))]).strip(), score]


def _times(contender: Contender) -> list[str]:
    return [
        duration(contender.infer_seconds),
        duration(contender.start_seconds),
        number(contender.tokens_per_second, 0),
    ]
