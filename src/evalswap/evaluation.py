"""One run from plans to a summary: ask, score, report. The order of the steps, and nothing else."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import Collection, Coroutine, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from evalswap.benchmarks.loading import load_rows
from evalswap.benchmarks.registry import Rows
from evalswap.config.experiment import Experiment
from evalswap.config.specs import DatasetSpec
from evalswap.errors import EXIT_FAILED, EXIT_OK, ConfigError, DataError, StoreError
from evalswap.inference.endpoint_run import EndpointRun, asking_the_same
from evalswap.inference.managed_run import ManagedRun
from evalswap.inference.model_run import ModelRun, Outcome, RunContext
from evalswap.inference.pending import Job
from evalswap.inference.sampling_check import check_sampling
from evalswap.interrupts import handled
from evalswap.plan import ModelPlan
from evalswap.prompting.tokenizer_process import TokenizerProcess
from evalswap.redaction import Redactor, secrets_in
from evalswap.reporting import summary
from evalswap.reporting.answer_files import AnswerFiles
from evalswap.reporting.folder import RunFolder
from evalswap.reporting.manifest import dataset_record, model_record, run_record, score_of
from evalswap.reporting.progress import Progress
from evalswap.reporting.screens import show_engine, show_error, show_plan, show_times, show_unanswered
from evalswap.scoring.behind import JobScoring
from evalswap.scoring.scorer import Score, Scorer
from evalswap.store import FILE_NAME, Store

SHOWN_FAILURES = 5
SHOWN_JOBS = 5  # in one line
SCORE_SECONDS = 0.25  # between two looks at what can be scored behind the asking
SCORED_AT_ONCE = 256  # rows; then answers have their turn


@dataclass(frozen=True)
class RunOptions:
    """What the command line says about a run as a whole."""

    work_dir: Path
    mode: str = "all"  # all | infer | eval | viz
    reuse: str | None = None  # a timestamp or "latest"
    limit: int | None = None
    engine_python: str | None = None
    hang_seconds: float | None = None  # until an engine without any progress is restarted
    warm: bool = True  # use an engine that `evalswap serve` keeps, if there is one
    began: float = 0.0  # time.time() when the command started
    secrets: tuple[str, ...] = field(default=(), repr=False)  # never to be written or shown


@dataclass(frozen=True)
class _Cell:
    """One model on one dataset."""

    plan: ModelPlan
    dataset: DatasetSpec
    scorer: Scorer

    @property
    def job(self) -> str:
        return f"{self.plan.abbr}/{self.dataset.abbr}"


class Evaluation:
    """One run of one experiment."""

    def __init__(
        self,
        experiment: Experiment,
        plans: Sequence[ModelPlan],
        options: RunOptions,
        console: Console,
        tokenizers: TokenizerProcess,
    ) -> None:
        self.experiment = experiment
        self.plans = plans
        self.options = options
        self.console = console
        self.tokenizers = tokenizers
        self.redact = Redactor([*options.secrets, *secrets_of(experiment, plans)])
        self.outcomes: dict[str, Outcome] = {}
        self.scores: dict[str, dict[str, Score]] = {plan.summary_abbr: {} for plan in plans}
        self.rows: dict[str, Rows] = {}
        self.summarizer = summary.parse_summarizer(experiment.summarizer, [d.abbr for d in experiment.datasets])
        self.interrupted = False
        self._cells: list[_Cell] = []
        self._scoring: dict[str, JobScoring] = {}  # by job
        self._files: dict[str, AnswerFiles] = {}  # by job

    def run(self) -> int:
        """Do what the mode says and return the exit code: 0 only if everything was answered and scored.

        Raises KeyboardInterrupt, after what there is was scored and shown, if the user wanted no more.
        """
        options = self.options
        if options.mode in ("eval", "viz") and not options.reuse:
            raise ConfigError(f"--mode {options.mode} works on an earlier run", "add -r (the latest) or -r TIMESTAMP")
        for plan in self.plans:
            check_sampling(plan, self.experiment.datasets)
        self._cells = [
            _Cell(plan, dataset, Scorer(dataset, plan.pred_postprocessor))
            for plan in self.plans
            for dataset in self.experiment.datasets
        ]
        asks = options.mode in ("all", "infer")
        if asks and any(plan.launch for plan in self.plans):
            self.tokenizers.begin()
        if asks:  # before a folder is made: missing data leaves nothing behind
            self.rows = {dataset.abbr: load_rows(dataset, options.limit) for dataset in self.experiment.datasets}
        if options.reuse:
            folder = RunFolder.existing(options.work_dir, options.reuse)
        else:
            folder = RunFolder.create(options.work_dir)
        if options.mode == "viz":
            self._read_scores(folder)
            return self._report(folder)
        if not (asks or (options.work_dir / FILE_NAME).exists()):  # it would be made anew
            self._refuse_others(folder, ())
        store = Store(options.work_dir)
        try:
            if not asks:
                self._refuse_others(folder, store.jobs(folder.name))
            self._open_files(store, folder)
            if asks:
                folder.write_config(self.experiment, self.redact)
                store.begin_run(folder.name, {cell.job: len(self.rows[cell.dataset.abbr].rows) for cell in self._cells})
                self._run_until_stopped(self._ask(store, folder))
            for plan in self.plans:
                self._finish(plan)
            self._write_manifest(store, folder)
            self._show_ends(store, folder)
        finally:
            for files in self._files.values():
                files.discard()
            store.close()
        code = self._report(folder)
        if self.interrupted and code != EXIT_OK:
            raise KeyboardInterrupt
        return code

    # -- asking ----------------------------------------------------------------------------------------

    def _run_until_stopped(self, asking: Coroutine[Any, Any, None]) -> None:
        try:
            asyncio.run(asking)
        except asyncio.CancelledError:
            raise KeyboardInterrupt from None

    async def _ask(self, store: Store, folder: RunFolder) -> None:
        """Ask all models: servers of others all at once, and beside them those that need this machine, in turn."""
        task = asyncio.current_task()
        assert task is not None
        async with Progress(self.console) as progress:
            context = RunContext(
                store=store,
                tokenizers=self.tokenizers,
                run=folder.name,
                logs=folder.logs / "infer",
                say=self._say,
                watch=progress.watch,
                redact=self.redact,
                engine_python=self.options.engine_python,
                hang_seconds=self.options.hang_seconds,
                warm=self.options.warm,
            )
            runs = [self._model_run(plan, context) for plan in self.plans]
            with handled(lambda: self._finish_in_flight(runs), lambda: _cancel(task)):
                await _beside(
                    _together(
                        *map(self._ask_in_turn, asking_the_same([r for r in runs if isinstance(r, EndpointRun)])),
                        self._ask_in_turn([run for run in runs if isinstance(run, ManagedRun)]),
                    ),
                    self._score_behind(),
                )

    def _model_run(self, plan: ModelPlan, context: RunContext) -> ModelRun:
        jobs = [
            Job(cell.job, cell.dataset, self.rows[cell.dataset.abbr], self._scoring[cell.job], cell.scorer.gold)
            for cell in self._cells_of(plan)
        ]
        show_plan(self.console, plan, [(job.dataset, job.rows) for job in jobs], self.redact)
        if len(self.plans) > 1:
            context = dataclasses.replace(context, say=lambda text: self._say(f"{plan.abbr}: {text}"))
        kind = ManagedRun if plan.launch is not None else EndpointRun
        return kind(plan, jobs, context)

    async def _ask_in_turn(self, runs: Sequence[ModelRun]) -> None:
        for run in runs:
            self.outcomes[run.plan.abbr] = run.outcome
            outcome = await run.ask()
            show_engine(self.console, outcome, self.redact)
            if outcome.error is not None:
                if isinstance(outcome.error, (StoreError, DataError)):
                    raise outcome.error
                show_error(self.console, outcome.error, self.redact)

    def _finish_in_flight(self, runs: Sequence[ModelRun]) -> None:
        self.interrupted = True
        in_flight = sum(run.stop_taking() for run in runs)
        waiting = f"waiting for {in_flight} in flight (Ctrl-C again stops now)" if in_flight else "stopping"
        self._say(f"interrupted: nothing new is asked, {waiting}")

    async def _score_behind(self) -> None:
        while True:
            done = 0
            for scoring in self._scoring.values():
                done += scoring.advance(SCORED_AT_ONCE)
                await asyncio.sleep(0)
            await asyncio.sleep(SCORE_SECONDS if done < SCORED_AT_ONCE else 0)

    # -- scores ----------------------------------------------------------------------------------------

    def _open_files(self, store: Store, folder: RunFolder) -> None:
        scored = self.options.mode != "infer"
        for cell in self._cells:
            files = AnswerFiles(folder, cell.plan.abbr, cell.dataset.abbr, results=scored)
            self._files[cell.job] = files
            self._scoring[cell.job] = JobScoring(store, folder.name, cell.job, cell.scorer, files, score=scored)

    def _finish(self, plan: ModelPlan) -> None:
        """Score what is left of a model's rows, and put its files in their places."""
        began = time.perf_counter()
        for cell in self._cells_of(plan):
            score = self._scoring[cell.job].finish()
            if score.total:
                self._files[cell.job].finish(score)
                self.scores[plan.summary_abbr][cell.dataset.abbr] = score
        outcome = self.outcomes.get(plan.abbr)
        if outcome is not None:
            scorings = [self._scoring[cell.job] for cell in self._cells_of(plan)]
            finish = time.perf_counter() - began
            outcome.timings |= {
                "score": round(sum(scoring.score_seconds for scoring in scorings), 3),
                "write": round(sum(scoring.write_seconds for scoring in scorings), 3),
                "finish": round(finish, 3),
                "total": round((outcome.timings.get("total") or 0.0) + finish, 3),
            }

    def _read_scores(self, folder: RunFolder) -> None:
        manifest = folder.read_manifest()
        self._refuse_others(
            folder,
            [
                f"{model}/{dataset}"
                for model, record in manifest.get("models", {}).items()
                for dataset, entry in record.get("datasets", {}).items()
                if "metrics" in entry
            ],
        )
        for cell in self._cells:
            score = score_of(manifest, cell.plan.abbr, cell.dataset.abbr)
            if score is not None:
                self.scores[cell.plan.summary_abbr][cell.dataset.abbr] = score

    def _refuse_others(self, folder: RunFolder, jobs: Collection[str]) -> None:
        """Raise ConfigError if an earlier run, which has these jobs, has none of the wanted ones."""
        wanted = [cell.job for cell in self._cells]
        if not set(wanted).isdisjoint(jobs):
            return
        if self.options.mode == "viz":
            what, first = "scores", f"score it first: -m eval -r {folder.name}"
        else:
            what, first = "answers", f"ask first: -r {folder.name} without -m"
        has, hint = (f"those of {_listed(jobs)}", "give the same config and -a") if jobs else ("none at all", first)
        raise ConfigError(f"run {folder.name} has no {what} of {_listed(wanted)}; it has {has}", hint)

    def _cells_of(self, plan: ModelPlan) -> list[_Cell]:
        return [cell for cell in self._cells if cell.plan is plan]

    # -- the end ---------------------------------------------------------------------------------------

    def _write_manifest(self, store: Store, folder: RunFolder) -> None:
        before = folder.read_manifest()
        asked = self.options.mode in ("all", "infer")
        kept = {} if asked else dict(before.get("models", {}))  # what is not asked anew stays a part of the run
        others_complete = kept.keys() <= {plan.abbr for plan in self.plans} or before.get("status") == "complete"
        models = kept
        for plan in self.plans:
            scores = self.scores[plan.summary_abbr] if self.options.mode != "infer" else {}
            datasets = {
                cell.dataset.abbr: dataset_record(
                    cell.dataset.version,
                    self.rows.get(cell.dataset.abbr),
                    scores.get(cell.dataset.abbr),
                    store,
                    folder.name,
                    cell.job,
                )
                for cell in self._cells_of(plan)
            }
            models[plan.abbr] = model_record(plan, datasets, self.outcomes.get(plan.abbr), self.redact)
        record = run_record(
            before,
            self.experiment,
            models,
            began=self.options.began,
            status="complete" if self._complete() and others_complete else "partial",
            interrupted=self.interrupted,
            redact=self.redact,
        )
        folder.write_manifest(record, self.redact)

    def _show_ends(self, store: Store, folder: RunFolder) -> None:
        for cell in self._cells:
            score = self.scores[cell.plan.summary_abbr].get(cell.dataset.abbr)
            unanswered = score.total - score.answered if score else 0
            show_unanswered(self.console, cell.job, unanswered, store.failures(folder.name, cell.job, SHOWN_FAILURES))
        for plan in self.plans:
            if plan.abbr in self.outcomes:
                show_times(self.console, plan.abbr, self.outcomes[plan.abbr])

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
        if any(outcome.error for outcome in self.outcomes.values()):
            return False
        found = [self.scores[cell.plan.summary_abbr].get(cell.dataset.abbr) for cell in self._cells]
        return all(score is not None and not score.partial for score in found)

    def _say(self, text: str) -> None:
        self.console.print(self.redact(text), highlight=False, markup=False, soft_wrap=True)


def _listed(jobs: Collection[str]) -> str:
    more = f" and {len(jobs) - SHOWN_JOBS} more" if len(jobs) > SHOWN_JOBS else ""
    return ", ".join(f"'{job}'" for job in list(jobs)[:SHOWN_JOBS]) + more


def _cancel(task: asyncio.Task[Any]) -> None:
    task.cancel()


async def _together(*parts: Coroutine[Any, Any, None]) -> None:
    """Wait for all; when one fails, cancel the others and raise its error."""
    tasks = [asyncio.ensure_future(part) for part in parts]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _beside(work: Coroutine[Any, Any, None], other: Coroutine[Any, Any, None]) -> None:
    """Wait for the work while the other goes on, which never ends but with an error; that ends the work."""
    tasks = [asyncio.ensure_future(part) for part in (work, other)]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def secrets_of(experiment: Experiment, plans: Sequence[ModelPlan]) -> list[str]:
    """Return every secret that a config or the environment brought in."""
    keys = [key for plan in plans if plan.endpoint for key in plan.endpoint.keys]
    flags = [dict(plan.launch.engine_args) for plan in plans if plan.launch]
    return [*keys, *secrets_in([*(model.model_dump() for model in experiment.models), *flags])]
