"""Whether each row is right: as a run's results say, else by the scorer of its config or of the library's."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from evalswap.comparing.origin import experiments_of, is_model_of
from evalswap.comparing.outputs import Output, Side
from evalswap.errors import EvalswapError
from evalswap.scoring.scorer import Scorer
from evalswap.surrogates import storable


def take_details(outputs: Mapping[int, Output], details: Any) -> None:
    """Take each row's score from the ``details`` of a results file: by row, or as a list."""
    found = enumerate(details) if isinstance(details, list) else details.items() if isinstance(details, Mapping) else ()
    for row, detail in found:
        output = outputs.get(int(row)) if str(row).isdigit() else None
        if output is None or not isinstance(detail, Mapping):
            continue
        right = detail.get("correct")
        if isinstance(right, list) and len(right) == 1:
            right = right[0]
        if isinstance(right, bool):
            output.right = right
            output.answer = storable(str(detail.get("pred", detail.get("predictions", ""))))


def scorer_of_run(side: Side) -> Scorer | None:
    """Return the scorer that a side's own run would use, or None if that cannot be had any more.

    It is the dataset's and the model's: where the config does not tell which of its models this is, they must agree.
    """
    for experiment in experiments_of(side):
        models = [spec for spec in experiment.models if is_model_of(spec, side)] or experiment.models
        steps = [spec.pred_postprocessor for spec in models]
        dataset = next((spec for spec in experiment.datasets if spec.abbr == side.dataset), None)
        if dataset is None or any(step != steps[0] for step in steps):
            continue
        try:
            return Scorer(dataset, steps[0] if steps else None)
        except EvalswapError:
            continue
    return None


def scorer_of_library(dataset: str) -> Scorer | None:
    """Return the scorer of the bundled config whose dataset has this abbr, or None."""
    from evalswap.config.loading import ConfigLoader
    from evalswap.config.specs import parse_dataset

    loader = ConfigLoader()
    for name, path in sorted(loader.library_names("datasets").items()):
        if name.split("_")[0] != dataset.split("_")[0].split("-")[0]:
            continue
        for value in loader.load(path).values():
            entries = value if isinstance(value, list) else []
            for entry in entries:
                if isinstance(entry, dict) and entry.get("abbr") == dataset:
                    return Scorer(parse_dataset(entry, f"{path}"))
    return None


def score_unscored(outputs: Iterable[Output], scorer: Scorer | None) -> None:
    """Score the answers that nobody has scored; without a scorer they stay so."""
    if scorer is None:
        return
    metric = scorer.metrics[0]
    for output in outputs:
        if output.right is None:
            scored = scorer.score(output.text, output.gold)
            output.answer, output.right = scored.prediction, bool(scored.metrics[metric])
