"""A comparison as files: compare.md, compare.csv, compare.json, and its charts as SVG and PNG."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from evalswap.comparing.records import Against, Comparison, Contender, DatasetComparison
from evalswap.file_names import file_name
from evalswap.reporting import comparison_charts as charts
from evalswap.reporting.comparison_table import cells, header, sayings, verdict_of
from evalswap.reporting.folder import write_bytes, write_text
from evalswap.reporting.wording import visible

CHARTED_DATASETS = 8  # drawing one takes half a second
CSV_HEADER = (
    "dataset", "model", "contender", "run", "engine", "device", "dtype", "metric", "score", "score_low", "score_high",
    "answered", "total", "failed", "verdict", "needed_rows", "compared", "identical", "delta", "delta_low",
    "delta_high", "equivalence_low", "equivalence_high", "right_to_wrong", "wrong_to_right", "mcnemar_p",
    "mcnemar_p_adjusted", "equivalence_p", "excess_flips", "start_seconds", "infer_seconds", "output_tokens",
    "tokens_per_second", "speedup",
)  # fmt: skip


def write_files(comparison: Comparison, folder: Path) -> list[Path]:
    """Write everything into ``folder`` and return the paths. Raises StoreError if that is impossible."""
    drawn = [path for dataset in comparison.datasets[:CHARTED_DATASETS] for path in _draw(comparison, dataset, folder)]
    return [
        write_text(folder / "compare.md", as_markdown(comparison, [path.name for path in drawn])),
        write_text(folder / "compare.csv", as_csv(comparison)),
        write_text(folder / "compare.json", as_json(comparison)),
        *drawn,
    ]


def as_json(comparison: Comparison) -> str:
    """Return the records as they are."""
    return json.dumps(comparison, default=_plain, ensure_ascii=False, indent=1) + "\n"


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    return dict(value) if isinstance(value, Mapping) else str(value)


def as_csv(comparison: Comparison) -> str:
    """Return one line for each contender on each dataset, numbers unrounded."""
    stream = io.StringIO()
    writer = csv.DictWriter(stream, CSV_HEADER, lineterminator="\n")
    writer.writeheader()
    for dataset in comparison.datasets:
        about = {"dataset": dataset.dataset, "model": dataset.model, "metric": dataset.metric}
        writer.writerow({**about, **_contender(dataset.reference), "verdict": "reference"})
        for against in dataset.others:
            writer.writerow({**about, **_contender(against.contender), **_against(against)})
    return stream.getvalue()


def _contender(contender: Contender) -> dict[str, Any]:
    own = {name: getattr(contender, name) for name in CSV_HEADER if hasattr(contender, name)}
    interval = contender.interval
    ends = {"score_low": interval.low, "score_high": interval.high} if interval else {}
    return {"contender": contender.name, **own, **ends}


def _against(against: Against) -> dict[str, Any]:
    statistics = against.statistics
    found: dict[str, Any] = {
        "verdict": against.verdict,
        "compared": against.compared,
        "identical": against.identical,
        "speedup": against.speedup,
    }
    if statistics is None:
        return found
    found |= {name: getattr(statistics, name) for name in CSV_HEADER if hasattr(statistics, name)}
    for name, interval in (
        ("delta", statistics.delta_interval),
        ("equivalence", statistics.equivalence_interval),
    ):
        found |= {f"{name}_low": interval.low, f"{name}_high": interval.high}
    return found


def as_markdown(comparison: Comparison, pictures: list[str]) -> str:
    """Return the tables, the verdicts with their reasons, and the pictures, as Markdown."""
    lines = ["# Is it still the same score?", "", f"evalswap {comparison.evalswap}, {comparison.created}. "
             f"The first row of a table is the reference. Margin: ±{comparison.margin:g} points.", ""]  # fmt: skip
    for dataset in comparison.datasets:
        lines += [f"## {_text(f'{dataset.model} on {dataset.dataset}')}", "", _line(header(dataset))]
        lines += [_line(["---"] * len(header(dataset))), *(_line(row) for row in cells(dataset)), ""]
        for against in dataset.others:
            lines += [f"**{_text(against.contender.name)}**: {verdict_of(against)}", ""]
            lines += [*(f"- {_text(saying)}" for saying in sayings(dataset, against)), ""]
        of_this = {f"{_stem(comparison, dataset, name)}.svg" for name in charts.CHARTS}
        lines += [f"![{name}]({name})" for name in pictures if name in of_this] + [""]
    lines += [f"- {_text(note)}" for note in comparison.notes]
    return "\n".join(lines).rstrip() + "\n"


def _line(row: list[str]) -> str:
    return "| " + " | ".join(_text(cell) for cell in row) + " |"


def _text(text: str) -> str:
    """Return a text that stays one cell, or one line, and only text."""
    for character in "\\|<>*_`[]":
        text = text.replace(character, f"\\{character}")
    return " ".join(visible(text).split())


def _stem(comparison: Comparison, dataset: DatasetComparison, chart: str) -> str:
    several = len({each.model for each in comparison.datasets}) > 1
    return f"{chart}_{file_name(f'{dataset.model}_{dataset.dataset}' if several else dataset.dataset)}"


def _draw(comparison: Comparison, dataset: DatasetComparison, folder: Path) -> list[Path]:
    wanted = {
        "accuracy": dataset.reference.score is not None,
        "time": charts.has_times(dataset),
        "throughput": charts.has_throughput(dataset),
    }
    written = []
    for name, draw in charts.CHARTS.items():
        if wanted[name]:
            figure = draw(comparison, dataset)
            stem = _stem(comparison, dataset, name)
            written.append(write_text(folder / f"{stem}.svg", charts.svg(figure)))
            written.append(write_bytes(folder / f"{stem}.png", [charts.png(figure)]))
    return written
