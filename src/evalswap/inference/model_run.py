"""One model's whole run, whoever serves it: what is not stored is asked, and every answer is stored.

:mod:`evalswap.inference.managed_run` and :mod:`evalswap.inference.endpoint_run` say how the model is served.
"""

from __future__ import annotations

import asyncio
import dataclasses
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from evalswap.checkpoint import Checkpoint
from evalswap.content_keys import ContentKeys
from evalswap.engines.base import Engine
from evalswap.errors import EvalswapError, TokenizerError
from evalswap.inference.answers import answer_texts
from evalswap.inference.asking import Asker
from evalswap.inference.faults import TransientError
from evalswap.inference.pending import Job, PendingRequests
from evalswap.inference.sampling_check import check_asked
from evalswap.inference.tally import Tally
from evalswap.inference.waves import Answer, Waves
from evalswap.plan import ModelPlan
from evalswap.prompting.requests import RequestMaker
from evalswap.prompting.sampling import max_new_tokens, resolve_sampling
from evalswap.prompting.tokenizer import Tokenizer
from evalswap.prompting.tokenizer_process import TokenizerProcess
from evalswap.records import EngineIdentity, Failure, Request, Response
from evalswap.redaction import Redactor
from evalswap.store import FailedAttempt, Store


@dataclass(frozen=True)
class RunContext:
    """What the models of a run share."""

    store: Store
    tokenizers: TokenizerProcess
    run: str  # the run's name in the store
    logs: Path
    say: Callable[[str], None]
    watch: Callable[[str, Tally], AbstractAsyncContextManager[None]]  # shows a tally while it is entered
    redact: Redactor
    engine_python: str | None = None
    hang_seconds: float | None = None  # None: by what the engine is
    warm: bool = True  # whether an engine that `evalswap serve` keeps may be used


@dataclass
class Outcome:
    """How the asking of one model went, for run.json and the summary."""

    tally: Tally
    engine: EngineIdentity | None = None
    facts: dict[str, Any] = field(default_factory=dict)  # what decides the answers
    timings: dict[str, float | None] = field(default_factory=dict)  # seconds, see docs/results.md
    error: EvalswapError | None = None
    restarts: int = 0  # of an engine that died or hung
    shortened: dict[str, int] = field(default_factory=dict)  # job -> answers with less room than asked for
    cut: dict[str, int] = field(default_factory=dict)  # job -> prompts that were too long
    empty: dict[str, int] = field(default_factory=dict)  # job -> answers without any text


class ModelRun(ABC):
    """Asks one model everything that the store does not know yet."""

    def __init__(self, plan: ModelPlan, jobs: list[Job], context: RunContext) -> None:
        self.plan = plan
        self.jobs = jobs
        self.context = context
        self.store = context.store
        self.tally = Tally(total=sum(len(job.rows.rows) for job in jobs))
        self.outcome = Outcome(self.tally)
        self.pending: PendingRequests | None = None
        self.asker: Asker | None = None
        self.stopping = False
        self._task: asyncio.Task[None] | None = None
        self._keys = ContentKeys({})
        self._tokenizer: Tokenizer | None = None
        self._began = self._cpu_began = 0.0  # seconds, of the clock and of this process's work
        self._asked = False  # asking is over, one way or the other

    async def ask(self) -> Outcome:
        """Ask everything that is pending.

        What is answered is stored whatever happens. An error that ends the asking as a whole (an engine that cannot
        be kept alive) is in the outcome's ``error``.
        """
        if self.stopping:
            return self.outcome
        self._began = time.perf_counter()
        self._task = asyncio.create_task(self._serve_and_ask())
        try:
            await asyncio.wait({self._task})
        finally:  # cancelled: whatever was started is ended first
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        if not self._task.cancelled() and (error := self._task.exception()) is not None:
            if not isinstance(error, EvalswapError):
                raise error
            self.outcome.error = error
        self.outcome.timings["total"] = self._elapsed()
        self.outcome.shortened = {job.name: job.shortened for job in self.jobs if job.shortened}
        self.outcome.cut = {job.name: job.cut for job in self.jobs if job.cut}
        self.outcome.empty = {job.name: job.empty for job in self.jobs if job.empty}
        return self.outcome

    def stop_taking(self) -> int:
        """Ask nothing new; return how many requests are in flight and will finish."""
        self.stopping = True
        if self.asker is None:
            if self._task is not None and not self._asked:  # an engine that is starting: nothing to wait for
                self._task.cancel()
            return 0
        in_flight = self.asker.in_flight
        self.asker.stop_taking()
        return in_flight

    async def _serve_and_ask(self) -> None:
        try:
            async with AsyncExitStack() as stack:
                await self._ask(stack)
                asked = self._elapsed()
            if self.plan.launch is not None:
                self.outcome.timings["stop"] = round(self._elapsed() - asked, 3)
        finally:
            if self.pending is not None:
                self.pending.close()

    @abstractmethod
    async def _ask(self, stack: AsyncExitStack) -> None:
        """Find or start what serves the model, and ask; the stack ends it."""

    # -- before asking ---------------------------------------------------------------------------------

    @property
    def longest_answer(self) -> int:
        """The most new tokens that a dataset asks for."""
        return max(map(self._longest_answer_of, self.jobs))

    def _longest_answer_of(self, job: Job) -> int:
        return max_new_tokens(self.plan.sampling, job.dataset.infer_cfg.inferencer.max_out_len)

    def _identify(self, engine: EngineIdentity, facts: Mapping[str, Any], description: Mapping[str, Any]) -> None:
        """Settle what the answers' keys are made of (``facts``), and what run.json says beside it."""
        self.outcome.engine = engine
        self._keys = ContentKeys(facts)
        self.outcome.facts = {**facts, **description}

    def _knows_answers(self) -> bool:
        """Whether any answer of this model and engine is stored."""
        return self.store.knows(self._keys.source)

    async def _prepare(
        self, engine: Engine, checkpoint: Checkpoint | None, tokenizer: Tokenizer | None, context_len: int | None
    ) -> PendingRequests:
        """Settle the sampling and make the first prompts; "load" ends with the first that is to be asked."""
        self._tokenizer = tokenizer
        self._resolve_sampling(engine, checkpoint, tokenizer)
        makers = []
        for job in self.jobs:
            assert job.sampling is not None
            maker = RequestMaker(
                self.plan.prompt, job.dataset, job.sampling, tokenizer, context_len, self.context.tokenizers.load
            )
            makers.append((job, maker))
        self.pending = PendingRequests(
            makers,
            self._keys,
            store=self.store,
            run=self.context.run,
            on_stored=self._found,
            on_failure=self._failed,
        )
        await self.pending.any()
        self.outcome.timings["load"] = self._elapsed()
        return self.pending

    def _resolve_sampling(self, engine: Engine, checkpoint: Checkpoint | None, tokenizer: Tokenizer | None) -> None:
        plan = self.plan.sampling
        eos = list(checkpoint.eos_token_ids) if checkpoint and tokenizer else []
        of_model = checkpoint.generation_config if checkpoint else {}
        single: Mapping[str, int] = {}
        for job in self.jobs:
            cfg = job.dataset.infer_cfg.inferencer
            if tokenizer is not None:
                single = tokenizer.single_token_words([*plan.stop_words, *cfg.stopping_criteria])
                if plan.stop_at_tokenizer_eos and tokenizer.eos_token_id is not None:
                    eos.append(tokenizer.eos_token_id)
            job.sampling = resolve_sampling(
                plan,
                of_model,
                max_out_len=cfg.max_out_len,
                min_out_len=cfg.min_out_len,
                extra_stops=cfg.stopping_criteria,
                eos_token_ids=eos,
                single_token_stops=single,
            )
            # Refused here, before anything is started or asked.
            check_asked(engine, job.sampling, plan, of_model, cfg.min_out_len)
        chat = tokenizer if self.plan.prompt.template == "chat" else None
        self.outcome.facts |= {
            "sampling": {job.dataset.abbr: dataclasses.asdict(job.sampling) for job in self.jobs if job.sampling},
            "chat_template_sha256": chat.template_hash if chat else None,
        }
        if tokenizer and tokenizer.adds_bos:
            self.outcome.facts["bos"] = "one, asserted"

    # -- asking ----------------------------------------------------------------------------------------

    async def _run_asker(self, asker: Asker, requests: AsyncIterator[Request]) -> None:
        """Ask until nothing is left, or until the user wants no more."""
        self.asker = asker
        if self.stopping:
            asker.stop_taking()
        waves = Waves(self._stored, self._count, asker.break_off)
        try:
            await asker.ask_all(requests, waves.add, self._failed)
        finally:
            self.asker = None
            waves.end()

    def _begin_asking(self) -> None:
        self.tally.started = time.perf_counter()
        self._cpu_began = time.process_time()

    def _end_asking(self) -> None:
        self._asked = True
        self.tally.ended = time.perf_counter()
        busy = time.process_time() - self._cpu_began
        self.outcome.timings |= {
            "infer": round(self.tally.seconds, 3),
            # Of this process, which may have asked other models meanwhile.
            "client_idle": round(max(0.0, self.tally.seconds - busy), 3),
            "requests": round(self.tally.request_seconds, 3),
            "retries": round(self.tally.retry_seconds, 3),
        }

    def _attempted(self, request: Request, number: int, error: EvalswapError | None, seconds: float) -> None:
        """Hear of one attempt at a request; those that brought no answer are put on record."""
        if error is None or self.pending is None or (entry := self.pending.open.get(request.key)) is None:
            return
        now = time.perf_counter()
        if entry.began is None:
            entry.began = now - seconds
        if not (isinstance(error, TransientError) and error.kind == "unsent"):
            entry.failed_at = now
        message = self.context.redact(error.message)
        attempt = FailedAttempt(request.job, request.row, number, time.time() - seconds, seconds, message)
        self.store.add_attempt(self.context.run, attempt)

    def _stored(self, answers: Sequence[Answer]) -> list[Response]:
        """Decode and store answers, all or none; but a row whose answer cannot be decoded has failed."""
        texts = self._texts(answers)
        engine = str(self.outcome.engine)
        responses = [
            Response(
                key=request.key,
                text=text,
                token_ids=timed.completion.token_ids,
                finish_reason=timed.completion.finish_reason,
                prompt_tokens=timed.completion.prompt_tokens,
                completion_tokens=timed.completion.completion_tokens,
                cached_tokens=timed.completion.cached_tokens,
                started=timed.started,
                seconds=timed.seconds,
                attempts=timed.attempts,
                engine=engine,
            )
            for (request, timed), text in zip(answers, texts, strict=True)
            if isinstance(text, str)
        ]
        self.store.add_responses(self._keys.source, responses)
        for (request, timed), error in zip(answers, texts, strict=True):
            if isinstance(error, TokenizerError):
                self._failed(Failure(request.key, request.job, request.row, error.message, timed.attempts))
        return responses

    def _texts(self, answers: Sequence[Answer]) -> Sequence[str | TokenizerError]:
        """Decode answers together; one by one, if the tokenizer fails at one of them."""
        try:
            return answer_texts(
                [(timed.completion, request.sampling) for request, timed in answers],
                self._tokenizer,
                skip_special_tokens=self.plan.sampling.skip_special_tokens,
            )
        except TokenizerError as error:
            if len(answers) == 1:
                return [error]
            return [text for answer in answers for text in self._texts([answer])]

    def _count(self, response: Response) -> None:
        """Score a new answer for all rows that waited for it."""
        assert self.pending is not None
        tally = self.tally
        tally.answered += 1
        tally.completion_tokens += response.completion_tokens
        tally.prompt_tokens += response.prompt_tokens
        tally.request_seconds += response.seconds
        entry = self.pending.open.pop(response.key)
        if entry.began is not None:
            tally.retry_seconds += max(0.0, time.perf_counter() - response.seconds - entry.began)
        (job, row, gold), *twins = entry.rows
        self._score(job, row, response, gold)
        for twin in twins:  # answered by the same answer
            self._found(twin[0], twin[1], response, twin[2])

    def _found(self, job: Job, row: int, response: Response, gold: str) -> None:
        self.tally.stored += 1
        self._score(job, row, response, gold)

    def _score(self, job: Job, row: int, response: Response, gold: str) -> None:
        job.empty += not response.text.strip()
        self.tally.right += job.scoring.right(row, response.text, gold)

    def _failed(self, failure: Failure) -> None:
        entry = self.pending.open.pop(failure.key, None) if self.pending is not None else None
        rows = [(job.name, row) for job, row, _ in entry.rows] if entry else [(failure.job, failure.row)]
        for job, row in rows:
            self.store.add_failure(self.context.run, dataclasses.replace(failure, job=job, row=row))
            self.tally.failed += 1
        if entry is not None and entry.began is not None:
            self.tally.retry_seconds += time.perf_counter() - entry.began

    def _elapsed(self) -> float:
        return round(time.perf_counter() - self._began, 3)
