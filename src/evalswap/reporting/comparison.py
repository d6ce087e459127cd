"""Finished runs side by side: scores, identical answers, times. The first is the reference.

Two answers are identical when their token ids are; where a server gave no ids, when their texts are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from evalswap.errors import ConfigError
from evalswap.reporting.folder import RunFolder
from evalswap.reporting.progress import clock
from evalswap.store import FILE_NAME, Answered, Store


@dataclass(frozen=True)
class Side:
    """One model of one run on one dataset, against the reference."""

    dataset: str
    model: str
    engine: str
    metric: str
    score: float | None
    answered: int
    total: int
    same_prompts: int  # rows whose prompt is the reference's
    identical: int  # of those, answers identical to the reference's
    compared: int  # rows answered on both sides
    start_seconds: float | None
    infer_seconds: float | None  # None where answers came from the store
    tokens_per_second: float | None
    speedup: float | None


def compare_runs(paths: Sequence[Path]) -> list[Side]:
    """Compare runs' models, dataset by dataset, with the first run's first model.

    Raises ConfigError for a folder that is no finished run, or runs without a common dataset.
    """
    sides = [side for path in paths for side in _sides(path)]
    if len({(s.folder.path, s.model) for s in sides}) < 2:
        raise ConfigError("compare needs at least two models", "name two run folders")
    reference = sides[0]
    datasets = [s.dataset for s in sides if s.folder.path == reference.folder.path and s.model == reference.model]
    result = []
    for dataset in datasets:
        of_dataset = [side for side in sides if side.dataset == dataset]
        if len(of_dataset) < 2:
            continue
        first, first_rows = of_dataset[0], of_dataset[0].rows()
        result += [_against(side, side.rows(), first, first_rows) for side in of_dataset]
    if not result:
        raise ConfigError("these runs have no dataset in common", f"the first has: {', '.join(datasets)}")
    return result


def show_comparison(console: Console, sides: Sequence[Side]) -> None:
    """Print the comparison."""
    view = Table(title="the first row of each dataset is the reference", title_justify="left", title_style="dim")
    for name in ("dataset", "model", "engine"):
        view.add_column(name, overflow="fold")
    for name in ("score", "same prompts", "identical answers", "start", "inference", "tokens/s", "speed-up"):
        view.add_column(name, justify="right", overflow="fold")
    for side in sides:
        view.add_row(
            side.dataset,
            side.model,
            side.engine,
            "-" if side.score is None else f"{side.score:.2f}" + _of(side),
            f"{side.same_prompts} of {side.compared}",
            f"{side.identical} of {side.compared} ({_percent(side.identical, side.compared)})",
            "-" if side.start_seconds is None else clock(side.start_seconds),
            "from the store" if side.infer_seconds is None else clock(side.infer_seconds),
            "-" if side.tokens_per_second is None else f"{side.tokens_per_second:,.0f}",
            "-" if side.speedup is None else f"{side.speedup:.2f}x",
        )
    console.print(view)


@dataclass(frozen=True)
class _Stored:
    folder: RunFolder
    model: str
    dataset: str
    record: dict[str, Any]

    def rows(self) -> dict[int, Answered]:
        store = Store(self.folder.path.parent)
        try:
            return {a.row: a for a in store.answers(self.folder.name, f"{self.model}/{self.dataset}")}
        finally:
            store.close()


def _sides(path: Path) -> list[_Stored]:
    folder = RunFolder(path.resolve())
    record = folder.read_manifest()
    if not record or not (folder.path.parent / FILE_NAME).is_file():
        raise ConfigError(f"{path}: not the folder of a finished run", "it holds run.json, beside responses.sqlite")
    return [
        _Stored(folder, model, dataset, entry)
        for model, entry in record["models"].items()
        for dataset in entry["datasets"]
    ]


def _against(side: _Stored, rows: dict[int, Answered], first: _Stored, first_rows: dict[int, Answered]) -> Side:
    both = [
        (rows[i], first_rows[i])
        for i in rows.keys() & first_rows.keys()
        if rows[i].response is not None and first_rows[i].response is not None
    ]
    dataset = side.record["datasets"][side.dataset]
    metrics = dataset.get("metrics") or {}
    metric = next(iter(metrics), "-")
    engine = side.record.get("engine") or {}
    seconds, tokens = _pace(side)
    first_seconds, _ = _pace(first)
    return Side(
        dataset=side.dataset,
        model=side.model,
        engine=" ".join(
            filter(None, [engine.get("name", "?"), engine.get("version"), side.record["facts"].get("dtype")])
        ),
        metric=metric,
        score=metrics.get(metric),
        answered=dataset.get("answered", 0),
        total=dataset.get("total", 0),
        same_prompts=sum(a.prompt_ids == b.prompt_ids and a.prompt_ids is not None for a, b in both),
        identical=sum(_identical(a, b) for a, b in both),
        compared=len(both),
        start_seconds=side.record["timings"].get("start"),
        infer_seconds=seconds,
        tokens_per_second=tokens / seconds if seconds and tokens else None,
        speedup=first_seconds / seconds if seconds and first_seconds and side is not first else None,
    )


def _pace(side: _Stored) -> tuple[float | None, int | None]:
    """Return a model's inference seconds and new tokens, unless some answers were stored before."""
    answers = side.record.get("answers") or {}
    if answers.get("from_store") or not answers.get("asked"):
        return None, None
    return side.record["timings"].get("infer"), answers.get("completion_tokens")


def _identical(a: Answered, b: Answered) -> bool:
    assert a.response is not None
    assert b.response is not None
    if a.response.token_ids is not None and b.response.token_ids is not None:
        return a.response.token_ids == b.response.token_ids
    return a.response.text == b.response.text


def _of(side: Side) -> str:
    return "" if side.answered == side.total else f" (partial: {side.answered} of {side.total})"


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f}%" if whole else "-"
