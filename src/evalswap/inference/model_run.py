"""All requests of one model: its engine, its prompts, its answers into the store."""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from evalswap.benchmarks.registry import Rows
from evalswap.checkpoint import Checkpoint, find_checkpoint
from evalswap.config.specs import DatasetSpec
from evalswap.engines.base import Engine
from evalswap.engines.openai import OpenAICompatible
from evalswap.engines.registry import managed_engine
from evalswap.errors import ConversionError, EvalswapError
from evalswap.inference.answers import answer_text
from evalswap.inference.asking import Asker, RateLimit, Timed
from evalswap.inference.client import HttpClient
from evalswap.inference.tally import Tally
from evalswap.plan import EndpointPlan, LaunchPlan, ModelPlan
from evalswap.prompting.requests import Prepared, RequestMaker
from evalswap.prompting.sampling import resolve_sampling
from evalswap.prompting.tokenizer import Tokenizer
from evalswap.records import EngineIdentity, Failure, Request, Response, Sampling
from evalswap.redaction import Redactor
from evalswap.scoring.scorer import Scorer
from evalswap.serving.endpoint import identify, takes_ids
from evalswap.serving.launching import Workload, context_len_of, prepare_engine
from evalswap.serving.server import ManagedServer
from evalswap.store import ContentKeys, Item, Store

MANAGED_TIMEOUT = 6 * 3600.0  # seconds one request may wait for a managed engine's answer
MANAGED_RETRIES = 3


@dataclass
class Job:
    """One dataset of the model."""

    name: str  # "<model abbr>/<dataset abbr>"
    dataset: DatasetSpec
    rows: Rows
    scorer: Scorer
    sampling: Sampling | None = None
    shortened: int = 0  # rows whose answer has less room than asked for


@dataclass
class Outcome:
    """How the asking of one model went, for run.json and the summary."""

    tally: Tally
    engine: EngineIdentity | None = None
    facts: dict[str, Any] = field(default_factory=dict)  # what decides the answers
    timings: dict[str, float | None] = field(default_factory=dict)  # seconds
    error: EvalswapError | None = None
    shortened: dict[str, int] = field(default_factory=dict)


class ModelRun:
    """Asks one model everything that the store does not know yet."""

    def __init__(
        self,
        plan: ModelPlan,
        jobs: list[Job],
        *,
        store: Store,
        run: str,
        logs: Path,
        say: Callable[[str], None],
        watch: Callable[[str, Tally], AbstractAsyncContextManager[None]],
        redact: Redactor,
        engine_python: str | None = None,
    ) -> None:
        self.plan = plan
        self.jobs = jobs
        self.store = store
        self.run = run
        self.logs = logs
        self._say = say
        self._watch = watch
        self.redact = redact
        self.engine_python = engine_python
        self.tally = Tally(total=sum(len(job.rows.rows) for job in jobs))
        self.outcome = Outcome(self.tally)
        self._keys = ContentKeys({})
        self._tokenizer: Tokenizer | None = None
        self._scorers = {job.name: job.scorer for job in jobs}
        self._began = 0.0
        self._golds: dict[tuple[str, int], str] = {}

    async def ask(self) -> Outcome:
        """Ask everything that is pending.

        What is answered is stored whatever happens. An error that ends the asking as a whole (an engine that
        dies) is in the outcome's ``error``.
        """
        self._began = time.perf_counter()
        try:
            async with AsyncExitStack() as stack:
                if self.plan.launch is not None:
                    await self._ask_managed(self.plan.launch, stack)
                else:
                    assert self.plan.endpoint is not None
                    await self._ask_endpoint(self.plan.endpoint, stack)
        except EvalswapError as error:
            self.outcome.error = error
        self.outcome.timings["total"] = round(time.perf_counter() - self._began, 3)
        self.outcome.shortened = {job.name: job.shortened for job in self.jobs if job.shortened}
        return self.outcome

    # -- engines that evalswap starts ------------------------------------------------------------------

    async def _ask_managed(self, plan: LaunchPlan, stack: AsyncExitStack) -> None:
        prepared = await asyncio.to_thread(prepare_engine, self.plan, plan, self._workload(), self.engine_python)
        engine, launch, checkpoint = prepared.engine, prepared.launch, prepared.checkpoint
        self.outcome.engine = prepared.identity
        facts = prepared.facts()
        self._keys = ContentKeys(facts)
        self.outcome.facts = facts | prepared.description()
        server = prepared.server(self.logs / f"{self.plan.abbr.replace('/', '_')}.log", self.redact)
        stack.push_async_callback(server.stop)
        # The engine loads while prompts are rendered, unless everything may be stored already.
        if not self.store.knows(self._keys.source):
            await server.start()
        tokenizer = await asyncio.to_thread(Tokenizer.for_plan, self.plan.prompt, plan.revision)
        self._resolve_sampling(engine, checkpoint, tokenizer)
        pending, anything = self._first_of(self._pending(tokenizer, launch.context_len))
        if not anything:
            return
        if not server.alive:
            await server.start()
        self._say(f"starting {prepared.identity} … (log: {server.log_path})")
        try:
            await server.ready()
        except EvalswapError:
            _drain(pending)
            raise
        self.outcome.timings["start"] = round(server.start_seconds or 0.0, 3)
        self._say(f"{engine.name} is up after {server.start_seconds or 0:.1f} s")
        client = await stack.enter_async_context(HttpClient(server.url, timeout=MANAGED_TIMEOUT))
        asker = Asker(engine, [client], window=engine.window(launch), retries=MANAGED_RETRIES, redact=self.redact)
        await self._ask_all(asker, pending, server)

    # -- servers that somebody else runs ---------------------------------------------------------------

    async def _ask_endpoint(self, plan: EndpointPlan, stack: AsyncExitStack) -> None:
        organizations = itertools.cycle(plan.organizations or (None,))
        clients = [
            await stack.enter_async_context(
                HttpClient(url, key=key, timeout=plan.timeout, organization=next(organizations))
            )
            for url in plan.base_urls
            for key in plan.keys or (None,)
        ]
        described = await identify(clients[0], plan.model)
        by_ids = plan.ids_wanted and await takes_ids(clients[0], plan.model)
        if self.plan.prompt.template == "base" and not by_ids:
            raise ConversionError(
                f"{self.plan.abbr}: {plan.base_urls[0]} takes no token ids, and its chat endpoint would put a "
                "chat template around a base model's prompt",
                "use a server whose /v1/completions takes and returns token ids (vLLM does), or -a vllm",
            )
        engine = OpenAICompatible(plan, by_ids)
        version = str(described.get("owned_by", "unknown server"))
        self.outcome.engine = EngineIdentity(
            "openai", version, ", ".join(plan.base_urls), "remote", {"by_ids": by_ids, **described}
        )
        facts = {
            "model": plan.model,
            # The whole address: two servers of one host may serve one model in two dtypes, and do not say so.
            "servers": sorted(plan.base_urls),
            "server": described,
            "by_ids": by_ids,
            "extra_body": dict(plan.extra_body),
        }
        self._keys = ContentKeys(facts)
        self.outcome.facts = facts
        tokenizer, checkpoint, context_len = None, None, None
        if by_ids:
            tokenizer = await asyncio.to_thread(Tokenizer.for_plan, self.plan.prompt)
            checkpoint = find_checkpoint(str(tokenizer.folder))
            context_len = context_len_of(self.plan, checkpoint, self._longest_answer())
            how = "token ids, rendered and tokenised by evalswap"
        else:
            how = "messages; template applied by the server"
            path = Path(self.plan.prompt.tokenizer_path or "")
            if self.plan.sampling.apply_generation_config and path.is_dir():
                checkpoint = find_checkpoint(str(path))
        self.outcome.facts = facts | {"prompts": how}
        self._say(f"{plan.base_urls[0]} gets {how}")
        self._resolve_sampling(engine, checkpoint, tokenizer)
        pending, anything = self._first_of(self._pending(tokenizer, context_len))
        if not anything:
            return
        rate = RateLimit(plan.query_per_second)
        if plan.rpm_verbose:
            self.tally.requests_last_minute = rate.last_minute
        asker = Asker(
            engine,
            clients,
            window=plan.max_in_flight,
            retries=plan.retry,
            rate=rate,
            status_texts=dict(plan.status_code_mappings),
            redact=self.redact,
        )
        await self._ask_all(asker, pending, None)

    # -- both ------------------------------------------------------------------------------------------

    def _workload(self) -> Workload:
        of_model = self.plan.sampling.max_out_len or 0
        lengths = [(len(job.rows.rows), job.dataset.infer_cfg.inferencer.max_out_len or of_model) for job in self.jobs]
        tokens = sum(rows * length for rows, length in lengths)
        return Workload(self._longest_answer(), self.tally.total, tokens)

    def _longest_answer(self) -> int:
        """Return the most new tokens that a dataset asks for."""
        of_model = self.plan.sampling.max_out_len or 0
        return max(job.dataset.infer_cfg.inferencer.max_out_len or of_model for job in self.jobs)

    def _resolve_sampling(self, engine: Engine, checkpoint: Checkpoint | None, tokenizer: Tokenizer | None) -> None:
        self._tokenizer = tokenizer
        plan = self.plan.sampling
        eos = list(checkpoint.eos_token_ids) if checkpoint and tokenizer else []
        single: Mapping[str, int] = {}
        for job in self.jobs:
            cfg = job.dataset.infer_cfg.inferencer
            if tokenizer is not None:
                single = tokenizer.single_token_words([*plan.stop_words, *cfg.stopping_criteria])
                if plan.stop_at_tokenizer_eos and tokenizer.eos_token_id is not None:
                    eos.append(tokenizer.eos_token_id)
            job.sampling = resolve_sampling(
                plan,
                checkpoint.generation_config if checkpoint else {},
                max_out_len=cfg.max_out_len,
                min_out_len=cfg.min_out_len,
                extra_stops=cfg.stopping_criteria,
                eos_token_ids=eos,
                single_token_stops=single,
            )
            engine.native_sampling(job.sampling)  # refused here, before anything is started or asked
        self.outcome.facts |= {
            "sampling": {job.dataset.abbr: dataclasses.asdict(job.sampling) for job in self.jobs if job.sampling},
            "chat_template_sha256": tokenizer.template_hash
            if tokenizer and self.plan.prompt.template == "chat"
            else None,
        }
        if tokenizer and tokenizer.adds_bos:
            self.outcome.facts["bos"] = "one, asserted"

    def _first_of(self, requests: Iterator[Request]) -> tuple[Iterator[Request], bool]:
        """Return the same requests, and whether there are any; "load" ends with the first."""
        first = next(requests, None)
        self.outcome.timings["load"] = round(time.perf_counter() - self._began, 3)
        if first is None:
            return iter(()), False
        return itertools.chain([first], requests), True

    def _pending(self, tokenizer: Tokenizer | None, context_len: int | None) -> Iterator[Request]:
        """Yield what is not stored yet; record every row of every job on the way."""
        for job in self.jobs:
            assert job.sampling is not None
            maker = RequestMaker(self.plan.prompt, job.dataset, job.sampling, tokenizer, context_len)
            for chunk in maker.prepare(job.rows.rows):
                yield from self._pending_of(job, chunk)

    def _pending_of(self, job: Job, chunk: list[Prepared]) -> Iterator[Request]:
        keys = [self._keys.key(item.prompt, item.sampling) for item in chunk]
        golds = [job.scorer.gold(item.data, item.row) for item in chunk]
        self.store.add_items(
            self.run,
            job.name,
            (
                Item(item.row, key, gold, item.turns, item.prompt)
                for item, key, gold in zip(chunk, keys, golds, strict=True)
            ),
        )
        stored = self.store.responses(keys)
        for item, key, gold in zip(chunk, keys, golds, strict=True):
            job.shortened += item.shortened
            if key in stored:
                self.tally.stored += 1
                self._count(job.scorer, stored[key].text, gold)
            elif item.problem is not None:
                self._failed(Failure(key, job.name, item.row, item.problem, attempts=0))
            else:
                self._golds[job.name, item.row] = gold
                yield Request(key, job.name, item.row, item.prompt, item.sampling)

    async def _ask_all(self, asker: Asker, pending: Iterator[Request], server: ManagedServer | None) -> None:
        self.tally.started = time.perf_counter()
        asking = asyncio.create_task(asker.ask_all(pending, self._answered, self._failed))
        tasks = {asking}
        if server is not None:
            tasks.add(asyncio.create_task(_raise_when_dead(server)))
        try:
            async with self._watch(self.plan.abbr, self.tally):
                await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in tasks:
                if task.done():
                    task.result()
        except EvalswapError:
            _drain(pending)  # so that the rows never asked are on record as unanswered
            raise
        finally:
            self.outcome.timings["infer"] = round(self.tally.seconds, 3)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _answered(self, request: Request, timed: Timed) -> None:
        completion = timed.completion
        text = answer_text(
            completion,
            request.sampling,
            self._tokenizer,
            skip_special_tokens=self.plan.sampling.skip_special_tokens,
        )
        response = Response(
            key=request.key,
            text=text,
            token_ids=completion.token_ids,
            finish_reason=completion.finish_reason,
            prompt_tokens=completion.prompt_tokens,
            completion_tokens=completion.completion_tokens,
            cached_tokens=completion.cached_tokens,
            started=timed.started,
            seconds=timed.seconds,
            attempts=timed.attempts,
            engine=str(self.outcome.engine),
        )
        self.store.add_response(self._keys.source, response)
        self.tally.answered += 1
        self.tally.completion_tokens += completion.completion_tokens
        self.tally.prompt_tokens += completion.prompt_tokens
        self._count(self._scorers[request.job], text, self._golds.pop((request.job, request.row)))

    def _failed(self, failure: Failure) -> None:
        self.store.add_failure(self.run, failure)
        self._golds.pop((failure.job, failure.row), None)
        self.tally.failed += 1

    def _count(self, scorer: Scorer, text: str, gold: str) -> None:
        scored = scorer.score(text, gold)
        self.tally.right += bool(scored.metrics[scorer.metrics[0]])


def check_sampling(plan: ModelPlan, datasets: Sequence[DatasetSpec]) -> None:
    """Raise ConversionError now, not minutes later, for sampling that the engine refuses.

    What only the model's files say (its generation_config.json) is checked when they are read.
    """
    engine: Engine
    if plan.endpoint is not None:
        engine = OpenAICompatible(plan.endpoint, by_ids=plan.endpoint.ids_wanted)
    else:
        engine = managed_engine(plan.engine)
    for dataset in datasets:
        cfg = dataset.infer_cfg.inferencer
        engine.native_sampling(
            resolve_sampling(plan.sampling, {}, max_out_len=cfg.max_out_len, min_out_len=cfg.min_out_len)
        )


def _drain(requests: Iterator[Request]) -> None:
    for _ in requests:
        pass


async def _raise_when_dead(server: ManagedServer) -> None:
    await server.wait_dead()
    raise server.failure()
