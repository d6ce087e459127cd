"""run.json: the record of a run. What is in it is listed in docs/results.md."""

from __future__ import annotations

import dataclasses
import platform
import sys
from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from evalswap import __version__
from evalswap.benchmarks.registry import Rows
from evalswap.config.experiment import Experiment
from evalswap.plan import ModelPlan
from evalswap.scoring.scorer import Score
from evalswap.store import FILE_NAME, Store

if TYPE_CHECKING:
    from evalswap.inference.model_run import Outcome


def run_record(
    before: Mapping[str, Any],
    experiment: Experiment,
    models: Mapping[str, Mapping[str, Any]],
    *,
    began: float,
    status: str,
    interrupted: bool,
    redact: Callable[[str], str],
) -> dict[str, Any]:
    """Return what run.json says; ``before`` is what it said until now, for a run that goes on in its folder."""
    known = before.get("models", {})
    return {
        **before,
        "evalswap": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "command": redact(" ".join(sys.argv)),
        "config": experiment.source,
        "started": datetime.fromtimestamp(began, timezone.utc).isoformat(),
        "finished": datetime.now(timezone.utc).isoformat(),
        "status": status,
        "interrupted": interrupted,
        "store": FILE_NAME,
        "models": {abbr: _merged(known.get(abbr, {}), record) for abbr, record in models.items()},
    }


def _merged(before: Mapping[str, Any], record: Mapping[str, Any]) -> dict[str, Any]:
    datasets = {
        abbr: {**before.get("datasets", {}).get(abbr, {}), **entry} for abbr, entry in record["datasets"].items()
    }
    return {**before, **record, "datasets": datasets}


def model_record(
    plan: ModelPlan,
    datasets: Mapping[str, Mapping[str, Any]],
    outcome: Outcome | None,
    redact: Callable[[str], str],
) -> dict[str, Any]:
    """Return what run.json says of a model; without ``outcome`` nothing was asked now, and that part stays."""
    record: dict[str, Any] = {
        "spec_type": plan.spec_type,
        "translation": [dataclasses.asdict(row) for row in plan.translation],
        "datasets": dict(datasets),
    }
    if outcome is None:
        return record
    tally = outcome.tally
    return record | {
        "engine": dataclasses.asdict(outcome.engine) if outcome.engine else None,
        "facts": outcome.facts,
        "answers": {
            "total": tally.total,
            "asked": tally.answered,
            "from_store": tally.stored,
            "failed": tally.failed,
            "shortened": outcome.shortened,
            "empty": outcome.empty,
            "prompt_tokens": tally.prompt_tokens,
            "completion_tokens": tally.completion_tokens,
        },
        "timings": outcome.timings,
        "restarts": outcome.restarts,
        "error": redact(outcome.error.message) if outcome.error else None,
    }


def dataset_record(
    version: str, rows: Rows | None, score: Score | None, store: Store, run: str, job: str
) -> dict[str, Any]:
    """Return what run.json says of a model's dataset."""
    entry: dict[str, Any] = {"version": version, **store.prompt_hashes(run, job)}
    if rows is not None:
        entry |= {"rows": len(rows.rows), "rows_source": rows.source, "rows_sha256": rows.sha256}
    if score is not None:
        entry |= {"answered": score.answered, "total": score.total, "metrics": score.metrics}
    return entry


def score_of(manifest: Mapping[str, Any], model: str, dataset: str) -> Score | None:
    """Return a score as run.json has it, or None."""
    entry = manifest.get("models", {}).get(model, {}).get("datasets", {}).get(dataset, {})
    if "metrics" not in entry:
        return None
    return Score(dict(entry["metrics"]), int(entry["total"]), int(entry["answered"]))
