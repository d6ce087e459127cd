"""Scoring one dataset: post-process, evaluate, add up.

An answer that never came is not an answer: it is counted apart and makes the score partial.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from evalswap.benchmarks.registry import find_evaluator, find_postprocessor
from evalswap.config.specs import DatasetSpec
from evalswap.errors import ConfigError, DataError
from evalswap.store import Answered


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
    unanswered_rows: list[int] = field(default_factory=list)
    details: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def partial(self) -> bool:
        return self.answered < self.total


class Scorer:
    """Scores the answers of one model on one dataset."""

    def __init__(self, dataset: DatasetSpec, model_postprocessor: Mapping[str, Any] | None = None) -> None:
        """Look up what the config names. Raises ConfigError for unknown names or keyword arguments."""
        cfg, where = dataset.eval_cfg, f"{dataset.abbr}: eval_cfg"
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
        except (KeyError, ValueError) as error:
            raise DataError(f"row {number}: no right answer in column '{self.output_column}': {error}") from error

    def score(self, text: str, gold: str) -> Scored:
        """Score one answer."""
        prediction = text
        for step in self._steps:
            prediction = step(prediction)
        return Scored(prediction, self.evaluator.score(prediction, gold, text))

    def score_all(self, answers: Iterable[Answered]) -> Score:
        """Score a job's rows."""
        score = Score()
        right: dict[str, int] = dict.fromkeys(self.metrics, 0)
        for answer in answers:
            score.total += 1
            if answer.response is None:
                score.unanswered_rows.append(answer.row)
                continue
            score.answered += 1
            scored = self.score(answer.response.text, answer.gold)
            for name, value in scored.metrics.items():
                right[name] += value
            first, *others = scored.metrics.items()
            score.details[str(answer.row)] = {
                "pred": scored.prediction,
                "answer": answer.gold,
                "correct": first[1],
                **{f"correct ({name})": value for name, value in others},
            }
        if score.answered:
            score.metrics = {name: 100 * count / score.answered for name, count in right.items()}
        return score
