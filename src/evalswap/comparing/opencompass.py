"""Reading the output folder of OpenCompass, so that an old pair of runs can be audited: texts, no token ids.

``predictions/<model>/<dataset>.json`` holds ``{"0": {origin_prompt, prediction, gold}}``, split over ``…_0.json``,
``…_1.json`` where its partitioner did so; ``results/<model>/<dataset>.json`` holds the scores and, if it was run
with ``--dump-eval-details``, what became of each row. Layout: https://github.com/open-compass/opencompass, its tasks
``openicl_infer.py`` and ``openicl_eval.py``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from evalswap.benchmarks.gsm8k_rules import gold_answer
from evalswap.comparing.outputs import Output, Side, prompt_text
from evalswap.comparing.scorers import score_unscored, scorer_of_library, take_details
from evalswap.errors import ConfigError, StoreError
from evalswap.surrogates import storable

_PART = re.compile(r"(?P<dataset>.+)_(?P<number>\d+)")


def read_opencompass(folder: Path) -> list[Side]:
    """Return each model and dataset that the folder has predictions of; an empty list if it has none.

    Raises StoreError for a file that cannot be read or is missing between others, ConfigError for one that is no
    predictions file.
    """
    sides = []
    for model in sorted(path for path in (folder / "predictions").glob("*") if path.is_dir()):
        scored = {path.stem for path in (folder / "results" / model.name).glob("*.json")}
        for dataset, files in sorted(_by_dataset(sorted(model.glob("*.json")), scored).items()):
            sides.append(_side(folder, model.name, dataset, files))
    return sides


def _by_dataset(files: list[Path], scored: set[str]) -> dict[str, list[Path]]:
    """Group the parts of a dataset: ``gsm8k_0.json`` and ``gsm8k_1.json`` are gsm8k's, in this order.

    ``scored`` are the datasets that have results: those are of whole datasets. Raises StoreError for a missing part,
    as all rows after it would get wrong numbers.
    """
    names = {file.stem: file for file in files}
    found: dict[str, dict[int, Path]] = {}
    for name, file in names.items():
        part = _PART.fullmatch(name)
        whole = part["dataset"] if part else name
        in_parts = whole not in names and name not in scored and (f"{whole}_0" in names or whole in scored)
        if part and in_parts:
            found.setdefault(whole, {})[int(part["number"])] = file
        else:
            found[name] = {0: file}
    for dataset, parts in found.items():
        missing = next((number for number in range(len(parts)) if number not in parts), None)
        if missing is not None:
            file = files[0].with_name(f"{dataset}_{missing}.json")
            raise StoreError(f"{file}: missing, though there are later parts", "copy all parts of the predictions")
    return {name: [parts[number] for number in sorted(parts)] for name, parts in found.items()}


def _side(folder: Path, model: str, dataset: str, files: list[Path]) -> Side:
    outputs: dict[int, Output] = {}
    for file in files:
        first = max(outputs, default=-1) + 1
        for row, entry in _entries(file):
            outputs[first + row] = _output(first + row, entry, file)
    path = folder / "results" / model / f"{dataset}.json"
    results = _read(path) if path.is_file() else {}
    results = results if isinstance(results, dict) else {}
    scores = {name: float(value) for name, value in results.items() if type(value) in (int, float)}
    metric = next(iter(scores), "accuracy")
    take_details(outputs, results.get("details"))
    if any(output.right is None for output in outputs.values()):
        score_unscored(outputs.values(), scorer_of_library(dataset))
    return Side(folder, model, dataset, metric, scores.get(metric), outputs, foreign=True)


def _output(row: int, entry: Any, file: Path) -> Output:
    if not isinstance(entry, Mapping) or not isinstance(entry.get("prediction"), str):
        raise ConfigError(f"{file}: row {row} has no text as its prediction", "compare reads generated answers only")
    return Output(
        row=row,
        gold=storable(_gold(entry.get("gold"))),
        prompt=storable(prompt_text(entry.get("origin_prompt"))),
        prompt_ids=None,
        token_ids=None,
        text=storable(entry["prediction"]),
        finish="",
        tokens=0,
        started=None,
        seconds=0.0,
    )


def _gold(gold: Any) -> str:
    """Return the right answer; GSM8K's is recorded with its whole solution."""
    text = "" if gold is None else str(gold)
    return gold_answer(text) if "#### " in text else text


def _entries(file: Path) -> list[tuple[int, Any]]:
    found = _read(file)
    if not isinstance(found, dict) or not all(key.isdigit() for key in found):
        raise ConfigError(f"{file}: not a predictions file", 'it looks like {"0": {"prediction": …}, …}')
    return sorted((int(row), entry) for row, entry in found.items())


def _read(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8", errors="surrogatepass"))
    except (OSError, ValueError) as error:
        raise StoreError(f"{file}: not readable: {error}", "the file may have been cut off: copy it again") from error
