"""Checking the models of an experiment: the order of the questions, and nothing else.

What can be asked without the engine, without a GPU and without a network is asked of files and of the engine's
own tables. A server that somebody else runs is asked itself.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evalswap.benchmarks.loading import load_rows
from evalswap.benchmarks.registry import Rows
from evalswap.checking.architectures import architecture_support, packages_of
from evalswap.checking.findings import ModelCheck
from evalswap.checking.judging import judge_memory, say_prompts
from evalswap.checking.memory import Memory, gpu_memory
from evalswap.checking.model_files import find_model, lacks_tokenizer
from evalswap.checking.prompts import sample_prompts
from evalswap.checkpoint import Checkpoint, find_checkpoint, find_generation_config
from evalswap.config.experiment import Experiment
from evalswap.config.specs import DatasetSpec
from evalswap.engines.base import Emulated, Engine, ManagedEngine
from evalswap.engines.openai import openai_engine
from evalswap.engines.registry import managed_engine
from evalswap.errors import DataError, EvalswapError, ModelFilesError
from evalswap.inference.sampling_check import check_asked
from evalswap.plan import LaunchPlan, ModelPlan
from evalswap.prompting.requests import RequestMaker
from evalswap.prompting.sampling import max_new_tokens, resolve_sampling
from evalswap.prompting.tokenizer import Tokenizer
from evalswap.prompting.tokenizer_process import TokenizerProcess
from evalswap.records import Sampling
from evalswap.scoring.scorer import Scorer
from evalswap.serving.environments import Interpreter, find_engine
from evalswap.serving.launching import PreparedEngine, Workload, context_len_of, is_context_known, resolve_launch
from evalswap.serving.warm import find_warm

if TYPE_CHECKING:
    from evalswap.checking.endpoints import EndpointReport


@dataclass
class Checker:
    """Checks the models of one experiment."""

    experiment: Experiment
    plans: Sequence[ModelPlan]
    tokenizers: TokenizerProcess
    limit: int | None = None
    engine_python: str | None = None
    _rows: dict[str, Rows | EvalswapError] = field(default_factory=dict)

    def check(self) -> list[ModelCheck]:
        """Return what was found of each model. What a run would stop at is among the findings, not raised."""
        with ThreadPoolExecutor(max_workers=2) as pool:
            # The slow ones first: nvidia-smi and the tokenizers are other processes.
            gpus = pool.submit(gpu_memory) if any(plan.launch for plan in self.plans) else None
            tokenizers = {plan.abbr: pool.submit(self._tokenizer, plan) for plan in self.plans if _wants_ids(plan)}
            for dataset in self.experiment.datasets:
                self._rows[dataset.abbr] = _rows(dataset, self.limit)
            checks = []
            for plan in self.plans:
                check = ModelCheck(plan.abbr, plan.engine, plan.spec_type, plan.translation)
                checks.append(check)
                if plan.launch is not None:
                    assert gpus is not None
                    self._managed(check, plan, plan.launch, tokenizers[plan.abbr], gpus)
                else:
                    self._endpoint(check, plan, tokenizers.get(plan.abbr))
            return checks

    # -- engines that evalswap starts ------------------------------------------------------------------

    def _managed(
        self,
        check: ModelCheck,
        plan: ModelPlan,
        launch: LaunchPlan,
        tokenizer: Future[Tokenizer | EvalswapError],
        gpus: Future[Memory | None],
    ) -> None:
        engine, found = self._engine(check, plan, launch)
        checkpoint, weights = find_model(check, launch, engine)
        prepared = loaded = None
        if engine is not None and found is not None and checkpoint is not None and weights is not None:
            try:
                launched = resolve_launch(launch, plan, checkpoint, found, self._workload(plan))
            except EvalswapError as error:
                check.failed("launch", error)
            else:
                prepared = PreparedEngine(engine, found, checkpoint, launched, is_context_known(plan, checkpoint))
                for note in prepared.notes:
                    check.note("launch", note)
                loaded = dataclasses.replace(prepared, checkpoint=weights)
                self._architecture(check, loaded)
        context_len = context_len_of(plan, checkpoint, self._longest_answer(plan)) if checkpoint else None
        beside = plan.engine == "llamacpp" and plan.prompt.tokenizer_path == launch.path
        usable = _settled(check, tokenizer, Path(launch.path).expanduser() if beside else None)
        longest = self._datasets(check, plan, engine, checkpoint, usable, context_len)
        refused = any(finding.about == "engine" for finding in check.problems)  # it is there, but not for this plan
        warm = self._start(check, prepared) if prepared is not None and not refused else False
        if loaded is not None and not warm:
            judge_memory(check, loaded, gpus.result(), longest)
        self._work(check, plan)

    def _engine(
        self, check: ModelCheck, plan: ModelPlan, launch: LaunchPlan
    ) -> tuple[ManagedEngine | None, Interpreter | None]:
        """Return the engine and what would run it, None where there is none; say what is wrong with either."""
        engine = found = None
        try:
            engine = managed_engine(plan.engine)
            found = find_engine(engine, self.engine_python)
            check.good("engine", f"{engine.name} {found.version} on {found.device}, {found.path} ({found.source})")
            check.figures["engine"] = {
                "version": found.version,
                "device": found.device,
                "interpreter": str(found.path),
                "source": found.source,
                "packages": dict(found.packages),
            }
        except EvalswapError as error:
            check.failed("engine", error)
        if engine is not None:
            try:
                engine = engine.configured(launch, found.device if found else None)
            except EvalswapError as error:
                check.failed("engine", error)
        return engine, found

    def _architecture(self, check: ModelCheck, prepared: PreparedEngine) -> None:
        names = (prepared.engine.name, "transformers")
        config, packages = prepared.checkpoint.config, packages_of(prepared.found, names)
        support = architecture_support(prepared.engine.name, prepared.launch, config, packages)
        if support.supported:
            check.good("architecture", support.text)
        elif support.supported is None:
            check.note("architecture", f"unknown: {support.text}", support.hint)
        else:
            check.problem("architecture", support.text, support.hint)
        check.figures["architecture"] = {
            "names": prepared.checkpoint.config.get("architectures"),
            "supported": support.supported,
        }

    def _start(self, check: ModelCheck, prepared: PreparedEngine) -> bool:
        """Say how the engine would start; True if a warm one would be used."""
        try:
            command = prepared.description()["command"]
        except EvalswapError as error:
            check.failed("start", error)
            return False
        said: list[str] = []
        warm = find_warm(prepared, said.append)
        mode = getattr(prepared.engine, "start_mode", lambda launch: None)(prepared.launch)
        check.figures["start"] = {"command": command, "mode": mode, "warm": warm.url if warm else None}
        for text in said:
            check.note("start", text)
        if warm is None:
            check.good("start", f"{f'mode {mode}: ' if mode else ''}{command}")
        return warm is not None

    # -- servers that somebody else runs ---------------------------------------------------------------

    def _endpoint(
        self, check: ModelCheck, plan: ModelPlan, tokenizer: Future[Tokenizer | EvalswapError] | None
    ) -> None:
        from evalswap.checking.endpoints import ask_endpoint  # aiohttp: only where somebody is to be asked

        assert plan.endpoint is not None
        report = asyncio.run(ask_endpoint(plan.endpoint))
        check.figures["server"] = dataclasses.asdict(report)
        self._server(check, plan, report)
        engine = openai_engine(plan.endpoint, report.ids_as)
        by_ids = report.by_ids and tokenizer is not None
        usable = _settled(check, tokenizer) if by_ids and tokenizer is not None else None
        checkpoint = context_len = None
        if usable is not None:
            checkpoint = find_checkpoint(str(usable.folder))
            context_len = context_len_of(plan, checkpoint, self._longest_answer(plan))
        elif not report.by_ids:
            checkpoint = self._known_config(check, plan)
        self._datasets(check, plan, engine, checkpoint, usable, context_len)
        self._work(check, plan)

    def _known_config(self, check: ModelCheck, plan: ModelPlan) -> Checkpoint | None:
        """Return what the sampling of questions by messages depends on of the model's files."""
        path = plan.prompt.tokenizer_path
        if path is None or not plan.sampling.apply_generation_config:
            return None
        try:
            config = find_generation_config(path)
        except ModelFilesError as error:
            check.failed("sampling", error)
            return None
        if config is None:
            check.note("sampling", f"generation_config.json of {path} is not known here, so it is not applied")
            return None
        return Checkpoint(Path(path), path, {}, config)

    def _server(self, check: ModelCheck, plan: ModelPlan, report: EndpointReport) -> None:
        for url, problem, hint in report.problems:
            check.problem("server", problem if url in problem else f"{url}: {problem}", hint)
        for url, what in report.listing_others:
            check.note("server", f"{url} {what}")
        if report.answering:
            owner = f" ({report.owner})" if report.owner else ""
            check.good("server", f"{', '.join(report.answering)} serves {report.model}{owner}")
        if report.answering or report.listing_others:
            ids, messages = "token ids, rendered and tokenised by evalswap", "messages; template applied by the server"
            check.good("protocol", f"it gets {ids if report.by_ids else messages}")
            if report.why_no_ids:
                check.note("protocol", f"it gets no token ids: {report.why_no_ids}")
            if plan.prompt.template == "base" and not report.by_ids:
                check.problem(
                    "protocol",
                    "its chat endpoint would put a chat template around a base model's prompt",
                    "use a vLLM or an SGLang server, which get token ids, or -a vllm",
                )

    # -- both ------------------------------------------------------------------------------------------

    def _tokenizer(self, plan: ModelPlan) -> Tokenizer | EvalswapError:
        try:
            return self.tokenizers.load(plan.prompt, plan.launch.revision if plan.launch else None)
        except EvalswapError as error:
            return error

    def _datasets(
        self,
        check: ModelCheck,
        plan: ModelPlan,
        engine: Engine | None,
        checkpoint: Checkpoint | None,
        tokenizer: Tokenizer | None,
        context_len: int | None,
    ) -> int | None:
        """Check each dataset's rows, sampling, prompts and scoring; return the tokens of the longest prompt seen."""
        longest: list[int] = []
        check.figures["datasets"] = {}
        for dataset in self.experiment.datasets:
            figures: dict[str, Any] = {}
            check.figures["datasets"][dataset.abbr] = figures
            rows = self._rows[dataset.abbr]
            if isinstance(rows, EvalswapError):
                hints = [rows.hint, "a check uses no network" if isinstance(rows, DataError) else None]
                hint = "; ".join(hint for hint in hints if hint)
                check.problem("dataset", f"{dataset.abbr}: {rows.message}", hint or None)
                continue
            check.good("dataset", f"{dataset.abbr}: {len(rows.rows)} rows from {rows.source}")
            try:
                scorer = Scorer(dataset, plan.pred_postprocessor)
                for number, row in enumerate(rows.rows):
                    scorer.gold(row, number)
            except EvalswapError as error:
                check.failed("scoring", error)
                continue
            try:
                sampling = _sampling(plan, dataset, checkpoint, tokenizer)
            except EvalswapError as error:
                check.failed("sampling", error)
                continue
            figures |= {"rows": len(rows.rows), "source": rows.source, "sampling": dataclasses.asdict(sampling)}
            self._say_sampling(check, plan, dataset, engine, checkpoint, sampling)
            if tokenizer is None and plan.launch is not None:
                continue  # the problem with the tokenizer is on record
            maker = RequestMaker(plan.prompt, dataset, sampling, tokenizer, context_len, self.tokenizers.load)
            try:
                sample = sample_prompts(maker, rows.rows)
            except EvalswapError as error:
                check.failed("prompts", error)
                continue
            figures["prompts"] = dataclasses.asdict(sample)
            check.first_prompt = check.first_prompt or sample.first
            if sample.longest is not None:
                longest.append(sample.longest)
            say_prompts(check, dataset.abbr, sample, plan.prompt.max_seq_len)
        return max(longest, default=None)

    def _say_sampling(
        self,
        check: ModelCheck,
        plan: ModelPlan,
        dataset: DatasetSpec,
        engine: Engine | None,
        checkpoint: Checkpoint | None,
        sampling: Sampling,
    ) -> None:
        if engine is None:
            return
        of_model = checkpoint.generation_config if checkpoint else {}
        try:
            check_asked(engine, sampling, plan.sampling, of_model, dataset.infer_cfg.inferencer.min_out_len)
        except EvalswapError as error:
            check.failed("sampling", error)
            return
        how = "greedy" if sampling.greedy else f"drawn at temperature {sampling.temperature:g}"
        check.good("sampling", f"{dataset.abbr}: {how}, up to {sampling.max_new_tokens} tokens; nothing is refused")
        neutral = Sampling(max_new_tokens=1)
        for name, entry in engine.sampling.items():
            if isinstance(entry, Emulated) and getattr(sampling, name) != getattr(neutral, name):
                check.note("sampling", f"{dataset.abbr}: {name} is emulated: {entry.how}")

    def _workload(self, plan: ModelPlan) -> Workload:
        lengths = [
            (len(rows.rows), max_new_tokens(plan.sampling, dataset.infer_cfg.inferencer.max_out_len))
            for dataset in self.experiment.datasets
            if isinstance(rows := self._rows[dataset.abbr], Rows)
        ]
        answers = sum(number for number, _ in lengths)
        return Workload(self._longest_answer(plan), answers, sum(number * length for number, length in lengths))

    def _longest_answer(self, plan: ModelPlan) -> int:
        datasets = self.experiment.datasets
        return max(max_new_tokens(plan.sampling, dataset.infer_cfg.inferencer.max_out_len) for dataset in datasets)

    def _work(self, check: ModelCheck, plan: ModelPlan) -> None:
        work = self._workload(plan)
        check.figures["work"] = {"answers": work.answers, "answer_tokens": work.answer_tokens}
        if work.answers:
            check.good("work", f"{work.answers} answers, {work.answer_tokens} tokens at most")


def _wants_ids(plan: ModelPlan) -> bool:
    named = plan.prompt.tokenizer_path is not None
    return named and (plan.launch is not None or (plan.endpoint is not None and plan.endpoint.ids_wanted))


def _settled(
    check: ModelCheck, future: Future[Tokenizer | EvalswapError], beside_gguf: Path | None = None
) -> Tokenizer | None:
    """Return the tokenizer, or say what is wrong; ``beside_gguf`` is the GGUF's folder where it should be there."""
    found = future.result()
    if isinstance(found, EvalswapError):
        if beside_gguf is not None and lacks_tokenizer(beside_gguf):
            hint = "--tokenizer-path (tokenizer_path): the folder or hub id of the model that the GGUF was made of"
            check.problem("tokenizer", f"no tokenizer in {beside_gguf}; the one inside a GGUF is not read", hint)
            return None
        # Where the whole model is not there, that was said already.
        if not any(finding.about == "model" for finding in check.problems):
            check.failed("tokenizer", found)
        return None
    return found


def _rows(dataset: DatasetSpec, limit: int | None) -> Rows | EvalswapError:
    try:
        return load_rows(dataset, limit)
    except EvalswapError as error:
        return error


def _sampling(
    plan: ModelPlan, dataset: DatasetSpec, checkpoint: Checkpoint | None, tokenizer: Tokenizer | None
) -> Sampling:
    cfg = dataset.infer_cfg.inferencer
    of_model: Mapping[str, object] = checkpoint.generation_config if checkpoint else {}
    words = [*plan.sampling.stop_words, *cfg.stopping_criteria]
    return resolve_sampling(
        plan.sampling,
        of_model,
        max_out_len=cfg.max_out_len,
        min_out_len=cfg.min_out_len,
        extra_stops=cfg.stopping_criteria,
        eos_token_ids=checkpoint.eos_token_ids if checkpoint and tokenizer else (),
        single_token_stops=tokenizer.single_token_words(words) if tokenizer else None,
    )
