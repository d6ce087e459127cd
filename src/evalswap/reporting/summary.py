"""The summary table: one row a dataset and metric, one column a model."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from evalswap.config.specs import DatasetSpec
from evalswap.errors import ConfigError, did_you_mean
from evalswap.reporting.folder import TIME_FORMAT, RunFolder, write_text
from evalswap.scoring.scorer import Score

Scores = Mapping[str, Mapping[str, Score]]  # model abbr -> dataset abbr -> score
SUMMARIZER_KEYS = ("type", "dataset_abbrs", "summary_groups", "prompt_db")
GROUP_KEYS = ("name", "subsets", "weights", "metric")
HEADER = ("dataset", "version", "metric", "mode")


@dataclass(frozen=True)
class Group:
    """An average over datasets, as a config's ``summary_groups`` ask for it."""

    name: str
    subsets: tuple[tuple[str, str | None], ...]  # dataset abbr, metric (None: its first)
    weights: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Summarizer:
    """What a config's ``summarizer`` asks for."""

    wanted: tuple[tuple[str, str | None], ...] | None = None  # rows in this order; None: every dataset and group
    groups: tuple[Group, ...] = ()


def parse_summarizer(config: Mapping[str, Any], datasets: Sequence[str]) -> Summarizer:
    """Read a config's ``summarizer``. Raises ConfigError for what this table cannot show."""
    for key in config:
        if key not in SUMMARIZER_KEYS:
            hint = did_you_mean(key, SUMMARIZER_KEYS) or f"known keys: {', '.join(SUMMARIZER_KEYS)}"
            raise ConfigError(f"summarizer.{key}: unknown key", hint)
    groups = []
    for i, entry in enumerate(config.get("summary_groups") or ()):
        where = f"summarizer.summary_groups[{i}]"
        if not isinstance(entry, Mapping) or "name" not in entry or "subsets" not in entry:
            raise ConfigError(f"{where}: a dict with 'name' and 'subsets' is wanted")
        for key in entry:
            if key not in GROUP_KEYS:
                raise ConfigError(f"{where}.{key}: unknown key", f"evalswap averages: {', '.join(GROUP_KEYS)}")
        metric = entry.get("metric")
        subsets = tuple((abbr, own or metric) for abbr, own in map(_wanted, entry["subsets"]))
        groups.append(Group(str(entry["name"]), subsets, dict(entry.get("weights") or {})))
    names = config.get("dataset_abbrs")
    wanted = None if names is None else tuple(map(_wanted, names))
    known = [*datasets, *(group.name for group in groups)]
    for abbr, _ in wanted or ():
        if abbr not in known and did_you_mean(abbr, known):
            raise ConfigError(f"summarizer.dataset_abbrs: no dataset '{abbr}'", did_you_mean(abbr, known))
    return Summarizer(wanted, tuple(groups))


def table(
    datasets: Sequence[DatasetSpec], models: Sequence[str], scores: Scores, summarizer: Summarizer
) -> list[list[str]]:
    """Return the table's cells, header first; '-' where there is no score."""
    by_abbr: dict[str, list[list[str]]] = {}
    for dataset in datasets:
        of_models = [scores.get(model, {}).get(dataset.abbr) for model in models]
        metrics = list(dict.fromkeys(name for score in of_models if score for name in score.metrics))
        by_abbr[dataset.abbr] = [
            [dataset.abbr, dataset.version, metric, "gen", *(cell(score, metric) for score in of_models)]
            for metric in metrics
        ]
    for group in summarizer.groups:
        averages = [_average(group, scores.get(model, {})) for model in models]
        if any(average is not None for average in averages):
            metric = "weighted_average" if group.weights else "naive_average"
            cells = ["-" if average is None else f"{average:.2f}" for average in averages]
            by_abbr[group.name] = [[group.name, "-", metric, "gen", *cells]]
    rows = [[*HEADER, *models]]
    for abbr, wanted in summarizer.wanted or [(abbr, "*") for abbr in by_abbr]:
        found = by_abbr.get(abbr) or [[abbr, "-", "-", "-", *("-" for _ in models)]]
        if wanted is None:
            found = found[:1]
        elif wanted != "*":
            found = [row for row in found if row[2] == wanted] or [[abbr, "-", wanted, "-", *("-" for _ in models)]]
        rows += found
    return rows


def _wanted(entry: Any) -> tuple[str, str | None]:
    if isinstance(entry, str):
        return entry, None
    if isinstance(entry, (list, tuple)) and len(entry) == 2:
        return str(entry[0]), str(entry[1])
    raise ConfigError(f"summarizer: {entry!r} is neither a dataset's abbr nor a pair of abbr and metric")


def _average(group: Group, scores: Mapping[str, Score]) -> float | None:
    """Return a group's average, or None unless every dataset of it is scored whole."""
    values: list[tuple[float, float]] = []  # value, weight
    for abbr, metric in group.subsets:
        score = scores.get(abbr)
        if score is None or score.partial or not score.metrics:
            return None
        value = score.metrics.get(metric) if metric else next(iter(score.metrics.values()))
        if value is None:
            return None
        values.append((value, group.weights.get(abbr, 0.0) if group.weights else 1.0))
    total = sum(weight for _, weight in values)
    return sum(value * weight for value, weight in values) / total if total else None


def cell(score: Score | None, metric: str) -> str:
    """Return a score as text; one over answered rows only says of how many."""
    if score is None or metric not in score.metrics:
        return "-"
    number = f"{score.metrics[metric]:.2f}"
    return f"{number} (partial: {score.answered} of {score.total})" if score.partial else number


def write(folder: RunFolder, rows: Sequence[Sequence[str]]) -> list[Path]:
    """Write the table as txt, csv and md; returns the files."""
    stem = folder.summary / f"summary_{datetime.now().strftime(TIME_FORMAT)}"
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows(rows)
    markdown = [_line(rows[0]), _line(["---"] * len(rows[0])), *(_line(row) for row in rows[1:])]
    contents = {".txt": as_text(rows), ".csv": buffer.getvalue(), ".md": "\n".join(markdown) + "\n"}
    return [write_text(stem.with_name(stem.name + suffix), text) for suffix, text in contents.items()]


def as_text(rows: Sequence[Sequence[str]]) -> str:
    """Return the table in aligned columns."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(lines) + "\n"


def show(console: Console, rows: Sequence[Sequence[str]]) -> None:
    """Print the table."""
    view = Table(title="summary", title_justify="left", title_style="bold")
    for i, name in enumerate(rows[0]):
        view.add_column(escape(name), justify="right" if i >= len(HEADER) else "left", overflow="fold")
    for row in rows[1:]:
        view.add_row(*map(escape, row))
    console.print(view)


def _line(cells: Sequence[Any]) -> str:
    return "| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |"
