"""The summary table: one row a dataset and metric, one column a model."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from evalswap.config.specs import DatasetSpec
from evalswap.reporting.folder import TIME_FORMAT, RunFolder, write_text
from evalswap.scoring.scorer import Score

Scores = Mapping[str, Mapping[str, Score]]  # model abbr -> dataset abbr -> score
HEADER = ("dataset", "version", "metric", "mode")


def table(datasets: Sequence[DatasetSpec], models: Sequence[str], scores: Scores) -> list[list[str]]:
    """Return the table's cells, header first; '-' where there is no score."""
    rows = [[*HEADER, *models]]
    for dataset in datasets:
        of_models = [scores.get(model, {}).get(dataset.abbr) for model in models]
        metrics = list(dict.fromkeys(name for score in of_models if score for name in score.metrics))
        if not metrics:
            rows.append([dataset.abbr, "-", "-", "-", *("-" for _ in models)])
        for metric in metrics:
            cells = [cell(score, metric) for score in of_models]
            rows.append([dataset.abbr, dataset.version, metric, "gen", *cells])
    return rows


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
        view.add_column(name, justify="right" if i >= len(HEADER) else "left", overflow="fold")
    for row in rows[1:]:
        view.add_row(*row)
    console.print(view)


def _line(cells: Sequence[Any]) -> str:
    return "| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |"
