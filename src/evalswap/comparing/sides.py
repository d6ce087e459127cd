"""Reading finished runs: a folder of evalswap, or the output folder of OpenCompass. Nothing is changed or asked."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from evalswap.comparing.opencompass import read_opencompass
from evalswap.comparing.outputs import Output, Side, prompt_text
from evalswap.comparing.scorers import score_unscored, scorer_of_run, take_details
from evalswap.errors import ConfigError, StoreError
from evalswap.file_names import file_name
from evalswap.reporting.folder import RunFolder
from evalswap.store import FILE_NAME, Answered, Store


def read_sides(path: Path) -> list[Side]:
    """Return each model and dataset of a run's folder, in the order of its record.

    A folder of predictions without a record is read as OpenCompass's, outputs only.

    Raises:
        ConfigError: this is no run's folder, or the run never came to its end.
        StoreError: a file of it cannot be read.
    """
    folder = RunFolder(path.resolve())
    if not folder.path.is_dir():
        raise ConfigError(f"{path}: no such folder", "give the folder of a run, like outputs/default/20261122_101500")
    manifest = folder.read_manifest()
    stored = (folder.path.parent / FILE_NAME).is_file()
    if manifest and not stored:
        raise ConfigError(
            f"{path}: the answers of this run are not here: beside it there is no {FILE_NAME}",
            f"copy {FILE_NAME} of its work folder, too",
        )
    if manifest:
        if not _is_stored(folder):
            raise ConfigError(
                f"{path}: the {FILE_NAME} beside it has no run named {folder.name}",
                "was the folder renamed, or copied from another work folder? Give it its name again, in its own folder",
            )
        sides = _read_run(folder, manifest)
        if not sides:
            raise ConfigError(
                f"{path}: its run.json names no model with a dataset",
                f"give the run's command again with -r {folder.name}: what is stored is not asked again",
            )
        return sides
    if stored and _is_stored(folder):
        raise ConfigError(
            f"{path}: this run has not come to its end",
            f"give its command again with -r {folder.name}: it goes on from what is stored",
        )
    sides = read_opencompass(folder.path)
    if not sides:
        raise ConfigError(
            f"{path}: not the folder of a finished run",
            "a run of evalswap has run.json in it and responses.sqlite beside it; one of OpenCompass has predictions/",
        )
    return sides


def _with_start(side: Side) -> Side:
    """Return a side whose record tells the engine's start, where all its answers came from the store.

    It is that of the latest run in the work folder that started the same engine for the same model.
    """
    timings, answers = side.record.get("timings") or {}, side.record.get("answers") or {}
    if timings.get("start") is not None or answers.get("asked") or side.foreign:
        return side
    for manifest in sorted(side.folder.parent.glob("*/run.json"), reverse=True):
        other = (RunFolder(manifest.parent).read_manifest().get("models") or {}).get(side.model) or {}
        start = (other.get("timings") or {}).get("start")
        if start is not None and _engine_facts(other) == _engine_facts(side.record):
            return dataclasses.replace(side, record={**side.record, "timings": {**timings, "start": start}})
    return side


def _engine_facts(record: Mapping[str, Any]) -> list[Any]:
    facts = record.get("facts") or {}
    return [facts.get(name) for name in ("model", "engine", "engine_version", "dtype", "device", "engine_args")]


def _is_stored(folder: RunFolder) -> bool:
    store = Store(folder.path.parent)
    try:
        return store.has_run(folder.name)
    finally:
        store.close()


def _read_run(folder: RunFolder, manifest: Mapping[str, Any]) -> list[Side]:
    store = Store(folder.path.parent)
    try:
        return [
            _with_start(_side(folder, manifest, store, model, dataset))
            for model, record in (manifest.get("models") or {}).items()
            for dataset in record.get("datasets") or {}
        ]
    finally:
        store.close()


def _side(folder: RunFolder, manifest: Mapping[str, Any], store: Store, model: str, dataset: str) -> Side:
    record = manifest["models"][model]
    job = f"{model}/{dataset}"
    outputs: dict[int, Output] = {}
    rows = set(range(int(record["datasets"][dataset].get("rows") or 0)))  # a run that ended early has not recorded all
    for answered in store.answers(folder.name, job):
        rows.add(answered.row)
        if answered.response is not None:
            outputs[answered.row] = _output(answered)
    results = _read_results(folder, model, dataset)
    take_details(outputs, results.get("details"))
    metrics = record["datasets"][dataset].get("metrics") or {}
    metric = next(iter(metrics), "accuracy")
    side = Side(
        folder=folder.path,
        model=model,
        dataset=dataset,
        metric=metric,
        score=metrics.get(metric),
        outputs=outputs,
        unanswered=tuple(sorted(rows - outputs.keys())),
        failures={failure.row: failure.error for failure in store.failures(folder.name, job)},
        record=record,
        evalswap=str(manifest.get("evalswap") or ""),
    )
    if any(output.right is None for output in outputs.values()):  # asked with -m infer: nobody has scored it yet
        score_unscored(outputs.values(), scorer_of_run(side))
    return side


def _output(answered: Answered) -> Output:
    response = answered.response
    assert response is not None
    return Output(
        row=answered.row,
        gold=str(answered.gold),
        prompt=prompt_text(answered.turns),
        prompt_ids=answered.prompt_ids,
        token_ids=response.token_ids,
        text=response.text,
        finish=response.finish_reason,
        tokens=response.completion_tokens,
        started=response.started,
        seconds=response.seconds,
    )


def _read_results(folder: RunFolder, model: str, dataset: str) -> dict[str, Any]:
    path = folder.results / file_name(model) / f"{file_name(dataset)}.json"
    try:
        found = json.loads(path.read_text(encoding="utf-8", errors="surrogatepass"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise StoreError(f"{path}: not readable: {error}", "score the run again: evalswap run … -m eval -r") from error
    return found if isinstance(found, dict) else {}
