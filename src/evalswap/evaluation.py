"""One run from plans to a summary: ask, score, report. The order of the steps, and nothing else."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import platform
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from rich.console import Console

from evalswap import __version__
from evalswap.benchmarks.registry import Rows, find_loader
from evalswap.config.experiment import Experiment
from evalswap.config.specs import DatasetSpec
from evalswap.errors import EXIT_FAILED, EXIT_OK, ConfigError, DataError, EvalswapError, StoreError
from evalswap.inference.model_run import Job, ModelRun, Outcome, check_sampling
from evalswap.plan import ModelPlan
from evalswap.redaction import Redactor, secrets_in
from evalswap.reporting import summary
from evalswap.reporting.folder import RunFolder, file_name
from evalswap.reporting.progress import clock, shown
from evalswap.reporting.screens import show_engine, show_error, show_failures, show_plan
from evalswap.scoring.scorer import Score, Scorer
from evalswap.store import FILE_NAME, Store

SHOWN_FAILURES = 5


@dataclass(frozen=True)
class RunOptions:
    """What the command line says about a run as a whole."""

    work_dir: Path
    mode: str = "all"  # all | infer | eval | viz
    reuse: str | None = None  # a timestamp or "latest"
    limit: int | None = None
    engine_python: str | None = None
    began: float = 0.0  # time.time() when the command started
    secrets: tuple[str, ...] = field(default=(), repr=False)  # never to be written or shown


class Evaluation:
    """One run of one experiment."""

    def __init__(
        self, experiment: Experiment, plans: Sequence[ModelPlan], options: RunOptions, console: Console
    ) -> None:
        self.experiment = experiment
        self.plans = plans
        self.options = options
        self.console = console
        self.redact = Redactor([*options.secrets, *secrets_of(experiment, plans)])
        self.outcomes: dict[str, Outcome] = {}
        self.scores: dict[str, dict[str, Score]] = {plan.summary_abbr: {} for plan in plans}
        self.rows: dict[str, Rows] = {}
        self.summarizer = summary.parse_summarizer(experiment.summarizer, [d.abbr for d in experiment.datasets])
        self.score_seconds: dict[str, float] = {}

    def run(self) -> int:
        """Do what the mode says and return the exit code: 0 only if everything was answered and scored."""
        options = self.options
        if options.mode in ("eval", "viz") and not options.reuse:
            raise ConfigError(f"--mode {options.mode} works on an earlier run", "add -r (the latest) or -r TIMESTAMP")
        for plan in self.plans:
            check_sampling(plan, self.experiment.datasets)
        scorers = {
            (plan.abbr, dataset.abbr): Scorer(dataset, plan.pred_postprocessor)
            for plan in self.plans
            for dataset in self.experiment.datasets
        }
        if options.reuse:
            folder = RunFolder.existing(options.work_dir, options.reuse)
        else:
            self._load_rows()  # before a folder is made: missing data leaves nothing behind
            folder = RunFolder.create(options.work_dir)
        if options.mode == "viz":
            self._read_results(folder)
            return self._report(folder)
        store = Store(options.work_dir)
        try:
            if options.mode != "eval":
                if not self.rows:
                    self._load_rows()
                folder.write_config(self.experiment, self.redact)
                store.begin_run(folder.name)
                asyncio.run(self._ask(store, folder, scorers))
            if options.mode != "infer":
                self._score(store, folder, scorers)
            else:
                for plan in self.plans:
                    for dataset in self.experiment.datasets:
                        folder.write_predictions(
                            plan.abbr, dataset.abbr, store.answers(folder.name, _job(plan, dataset))
                        )
            self._write_manifest(store, folder)
            self._show_unanswered(store, folder)
        finally:
            store.close()
        return self._report(folder)

    # -- steps -----------------------------------------------------------------------------------------

    def _load_rows(self) -> None:
        for dataset in self.experiment.datasets:
            self.rows[dataset.abbr] = load_rows(dataset, self.options.limit)

    async def _ask(self, store: Store, folder: RunFolder, scorers: dict[tuple[str, str], Scorer]) -> None:
        for plan in self.plans:
            jobs = [
                Job(_job(plan, dataset), dataset, self.rows[dataset.abbr], scorers[plan.abbr, dataset.abbr])
                for dataset in self.experiment.datasets
            ]
            show_plan(self.console, plan, [(job.dataset, job.rows) for job in jobs])
            model_run = ModelRun(
                plan,
                jobs,
                store=store,
                run=folder.name,
                logs=folder.logs / "infer",
                say=self._say,
                watch=lambda label, tally: shown(self.console, label, tally),
                redact=self.redact,
                engine_python=self.options.engine_python,
            )
            outcome = self.outcomes[plan.abbr] = model_run.outcome
            await model_run.ask()
            show_engine(self.console, outcome)
            if outcome.error is not None:
                if isinstance(outcome.error, (StoreError, DataError)):
                    raise outcome.error
                show_error(self.console, outcome.error, self.redact)

    def _score(self, store: Store, folder: RunFolder, scorers: dict[tuple[str, str], Scorer]) -> None:
        for plan in self.plans:
            began = time.perf_counter()
            for dataset in self.experiment.datasets:
                job = _job(plan, dataset)
                score = scorers[plan.abbr, dataset.abbr].score_all(store.answers(folder.name, job))
                if not score.total:
                    continue
                folder.write_predictions(plan.abbr, dataset.abbr, store.answers(folder.name, job))
                folder.write_results(plan.abbr, dataset.abbr, score)
                self.scores[plan.summary_abbr][dataset.abbr] = score
            self.score_seconds[plan.abbr] = round(time.perf_counter() - began, 3)

    def _read_results(self, folder: RunFolder) -> None:
        for plan in self.plans:
            for dataset in self.experiment.datasets:
                path = folder.results / file_name(plan.abbr) / f"{file_name(dataset.abbr)}.json"
                if path.is_file():
                    self.scores[plan.summary_abbr][dataset.abbr] = _read_score(path)

    def _report(self, folder: RunFolder) -> int:
        if self.options.mode == "infer":
            self._say(f"predictions are in {folder.predictions}")
        else:
            models = [plan.summary_abbr for plan in self.plans]
            rows = summary.table(self.experiment.datasets, models, self.scores, self.summarizer)
            files = summary.write(folder, rows)
            summary.show(self.console, rows)
            self._say(f"summary: {files[0]}")
        self._say(f"all files: {folder.path}")
        if self._complete():
            return EXIT_OK
        return max([EXIT_FAILED, *(o.error.exit_code for o in self.outcomes.values() if o.error)])

    def _complete(self) -> bool:
        if any(o.error or o.tally.failed or o.tally.done < o.tally.total for o in self.outcomes.values()):
            return False
        if self.options.mode == "infer":
            return True
        return all(
            dataset.abbr in self.scores[plan.summary_abbr] and not self.scores[plan.summary_abbr][dataset.abbr].partial
            for plan in self.plans
            for dataset in self.experiment.datasets
        )

    def _say(self, text: str) -> None:
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    # -- records ---------------------------------------------------------------------------------------

    def _write_manifest(self, store: Store, folder: RunFolder) -> None:
        before = folder.read_manifest()
        models = {}
        for plan in self.plans:
            known = before.get("models", {}).get(plan.abbr, {})
            models[plan.abbr] = {**known, **self._model_record(plan, store, folder)}
        folder.write_manifest(
            {
                **before,
                "evalswap": __version__,
                "python": platform.python_version(),
                "platform": platform.platform(),
                "command": self.redact(" ".join(sys.argv)),
                "config": self.experiment.source,
                "started": datetime.fromtimestamp(self.options.began, timezone.utc).isoformat(),
                "finished": datetime.now(timezone.utc).isoformat(),
                "status": "complete" if self._complete() else "partial",
                "store": FILE_NAME,
                "models": models,
            },
            self.redact,
        )

    def _model_record(self, plan: ModelPlan, store: Store, folder: RunFolder) -> dict[str, Any]:
        record: dict[str, Any] = {
            "spec_type": plan.spec_type,
            "translation": [dataclasses.asdict(row) for row in plan.translation],
        }
        datasets: dict[str, Any] = {}
        for dataset in self.experiment.datasets:
            score = self.scores[plan.summary_abbr].get(dataset.abbr)
            entry: dict[str, Any] = {
                "version": dataset.version,
                **store.prompt_hashes(folder.name, _job(plan, dataset)),
            }
            if dataset.abbr in self.rows:
                rows = self.rows[dataset.abbr]
                entry |= {"rows": len(rows.rows), "rows_source": rows.source, "rows_sha256": rows.sha256}
            if score is not None:
                entry |= {"answered": score.answered, "total": score.total, "metrics": score.metrics}
            datasets[dataset.abbr] = entry
        record["datasets"] = datasets
        outcome = self.outcomes.get(plan.abbr)
        if outcome is not None:
            tally = outcome.tally
            record |= {
                "engine": dataclasses.asdict(outcome.engine) if outcome.engine else None,
                "facts": outcome.facts,
                "answers": {
                    "total": tally.total,
                    "asked": tally.answered,
                    "from_store": tally.stored,
                    "failed": tally.failed,
                    "shortened": outcome.shortened,
                    "prompt_tokens": tally.prompt_tokens,
                    "completion_tokens": tally.completion_tokens,
                },
                "timings": {**outcome.timings, "score": self.score_seconds.get(plan.abbr)},
                "error": self.redact(outcome.error.message) if outcome.error else None,
            }
        return record

    def _show_unanswered(self, store: Store, folder: RunFolder) -> None:
        for plan in self.plans:
            for dataset in self.experiment.datasets:
                failures = store.failures(folder.name, _job(plan, dataset))
                show_failures(self.console, _job(plan, dataset), failures, SHOWN_FAILURES)
        for plan in self.plans:
            outcome = self.outcomes.get(plan.abbr)
            if outcome and outcome.timings:
                times = ", ".join(f"{k} {clock(v)}" for k, v in outcome.timings.items() if v is not None)
                score = self.score_seconds.get(plan.abbr)
                times += f", score {clock(score)}" if score is not None else ""
                self._say(f"time of {plan.abbr}: {times}")


def secrets_of(experiment: Experiment, plans: Sequence[ModelPlan]) -> list[str]:
    """Return every secret that a config or the environment brought in."""
    keys = [key for plan in plans if plan.endpoint for key in plan.endpoint.keys]
    return [*keys, *(secret for model in experiment.models for secret in secrets_in(model.model_dump()))]


def load_rows(dataset: DatasetSpec, limit: int | None) -> Rows:
    """Load a dataset's rows, the first ``limit`` of them. Raises ConfigError or DataError."""
    where = f"datasets '{dataset.abbr}'"
    load = find_loader(dataset.type, f"{where}.type")
    try:
        rows = load(dataset.path, **dataset.loader_kwargs)
    except TypeError as error:
        raise ConfigError(f"{where}: {error}", "this dataset has no such key") from None
    chosen = _slice(rows.rows, dataset.reader_cfg.test_range, where)
    if not chosen:
        raise DataError(f"{where}: no rows left in {rows.source}", "check reader_cfg.test_range and the file")
    return dataclasses.replace(rows, rows=chosen[:limit] if limit else chosen)


def _slice(rows: Sequence[Any], test_range: str | int | float | None, where: str) -> Sequence[Any]:
    """Apply ``reader_cfg.test_range``: "[10:20]", a number of rows, or a share of them."""
    if test_range is None or test_range == "":
        return rows
    if isinstance(test_range, float) and 0 < test_range < 1:
        return rows[: int(len(rows) * test_range)]
    if isinstance(test_range, (int, float)):
        return rows[: int(test_range)]
    try:
        parts = [int(p) if p.strip() else None for p in test_range.strip().strip("[]").split(":")]
        return rows[slice(*parts)]
    except (TypeError, ValueError):
        raise ConfigError(f"{where}: reader_cfg.test_range: '{test_range}' is no range", "write [0:100]") from None


def _job(plan: ModelPlan, dataset: DatasetSpec) -> str:
    return f"{plan.abbr}/{dataset.abbr}"


def _read_score(path: Path) -> Score:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        details = data.pop("details", {})
        metrics = {k: float(v) for k, v in data.items() if isinstance(v, (int, float)) and not isinstance(v, bool)}
        answered = int(metrics.pop("answered", len(details)))
        total = int(metrics.pop("total", answered))
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise EvalswapError(f"{path}: not readable: {error}") from error
    return Score(metrics, total, answered, list(data.get("unanswered_rows", [])), details)
