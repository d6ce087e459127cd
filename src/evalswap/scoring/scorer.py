"""Scoring one dataset: post-process, evaluate, add up.

An answer that never came is not an answer: it is counted apart and makes the score partial.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from evalswap.benchmarks.registry import find_evaluator, find_postprocessor
from evalswap.config.specs import DatasetSpec
from evalswap.errors import ConfigError, DataError, did_you_mean

MOST_NAMED = 1000  # unanswered rows that a score names; it counts them all


@dataclass(frozen=True, slots=True)
class Scored:
    """One scored answer."""

    prediction: str
    metrics: Mapping[str, bool]


@dataclass
class Score:
    """A job's score: percentages over the answered rows, and how many rows there were."""

    metrics: dict[str, float] = field(default_factory=dict)
    total: int = 0
    answered: int = 0
    unanswered_rows: list[int] = field(default_factory=list)  # the first MOST_NAMED of them

    @property
    def partial(self) -> bool:
        return self.answered < self.total


class ScoreSum:
    """Adds up a job's score row by row; nothing of the rows is kept."""

    def __init__(self) -> None:
        self._score = Score()
        self._right: dict[str, int] = {}

    def add(self, row: int, scored: Scored | None) -> None:
        """Count a row; None is one without an answer."""
        score = self._score
        score.total += 1
        if scored is None:
            if len(score.unanswered_rows) < MOST_NAMED:
                score.unanswered_rows.append(row)
            return
        score.answered += 1
        for name, value in scored.metrics.items():
            self._right[name] = self._right.get(name, 0) + value

    def result(self) -> Score:
        """Return the score of the rows so far."""
        score = self._score
        if score.answered:
            score.metrics = {name: 100 * count / score.answered for name, count in self._right.items()}
        return score


class Scorer:
    """Scores the answers of one model on one dataset."""

    def __init__(self, dataset: DatasetSpec, model_postprocessor: Mapping[str, Any] | None = None) -> None:
        """Look up what the config names. Raises ConfigError for unknown names or keyword arguments."""
        cfg, where = dataset.eval_cfg, f"{dataset.abbr}: eval_cfg"
        self.abbr = dataset.abbr
        self.output_column = dataset.reader_cfg.output_column
        kwargs = dict(cfg.evaluator.model_extra or {})
        try:
            self.evaluator = find_evaluator(cfg.evaluator.type, f"{where}.evaluator.type")(**kwargs)
        except TypeError as error:
            raise ConfigError(f"{where}.evaluator: {error}") from None
        self._gold = None
        if cfg.dataset_postprocessor:
            self._gold = find_postprocessor(cfg.dataset_postprocessor.type, f"{where}.dataset_postprocessor.type")
        # Order of existing configs: the model's post-processor, then the dataset's.
        self._steps = []
        if model_postprocessor:
            name = str(model_postprocessor.get("type", ""))
            self._steps.append(find_postprocessor(name, "pred_postprocessor.type of the model"))
        if cfg.pred_postprocessor:
            self._steps.append(find_postprocessor(cfg.pred_postprocessor.type, f"{where}.pred_postprocessor.type"))

    @property
    def metrics(self) -> tuple[str, ...]:
        return self.evaluator.metrics

    def gold(self, row: Mapping[str, Any], number: int) -> str:
        """Return a row's right answer. Raises DataError if it has none."""
        if self.output_column is None:
            return ""
        try:
            value = str(row[self.output_column])
            return self._gold(value) if self._gold else value
        except KeyError as error:
            hint = did_you_mean(self.output_column, row) or f"its columns: {', '.join(map(str, row))}"
            raise DataError(f"{self.abbr}, row {number}: there is no column '{self.output_column}'", hint) from error
        except ValueError as error:
            where = f"{self.abbr}, row {number}"
            raise DataError(f"{where}: no right answer in column '{self.output_column}': {error}") from error

    def score(self, text: str, gold: str) -> Scored:
        """Score one answer."""
        prediction = text
        for step in self._steps:
            prediction = step(prediction)
        return Scored(prediction, self.evaluator.score(prediction, gold, text))
