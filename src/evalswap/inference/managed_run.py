"""A model on an engine that evalswap starts, watches, starts again and stops."""

from __future__ import annotations

import asyncio
import math
from contextlib import AsyncExitStack

from evalswap.errors import EngineError
from evalswap.file_names import file_name
from evalswap.inference.asking import LOOK_AHEAD, Asker
from evalswap.inference.client import HttpClient
from evalswap.inference.endpoints import Endpoint
from evalswap.inference.engine_times import engine_times
from evalswap.inference.feed import MOST_TOKENS, expected_cost
from evalswap.inference.model_run import ModelRun
from evalswap.inference.pending import PendingRequests
from evalswap.inference.rounds import Round, Rounds
from evalswap.inference.supervision import Supervisor, patience_with
from evalswap.inference.window import FixedWindow, LoadWindow, WindowControl
from evalswap.records import Failure
from evalswap.serving.launching import PreparedEngine, Workload, open_server, prepare_engine

QUEUE = 0.5  # of an engine's places: how many requests may wait in its own queue, so that no place is ever empty


class ManagedRun(ModelRun):
    """Asks a model that this run serves itself."""

    async def _ask(self, stack: AsyncExitStack) -> None:
        plan = self.plan.launch
        assert plan is not None
        prepared = await asyncio.to_thread(
            prepare_engine, self.plan, plan, self._workload(), self.context.engine_python
        )
        self._identify(prepared.identity, prepared.facts(), prepared.description())
        for note in prepared.notes:
            self.context.say(note)
        supervisor = await stack.enter_async_context(await self._supervisor(prepared))
        # The engine loads while prompts are rendered, unless everything may be stored already.
        if not self._knows_answers():
            await supervisor.start()
        kept = supervisor.server.tokenizers
        tokenizer = await asyncio.to_thread(self.context.tokenizers.load, self.plan.prompt, plan.revision, kept)
        pending = await self._prepare(prepared.engine, prepared.checkpoint, tokenizer, prepared.launch.context_len)
        if not pending.open:
            return
        try:
            client = await self._up_and_ready(supervisor, prepared, pending)
            async with self.context.watch(self.plan.abbr, self.tally):
                self._begin_asking()
                try:
                    await self._ask_in_rounds(supervisor, prepared, pending, client)
                finally:
                    self._end_asking()
        finally:
            self.outcome.restarts = supervisor.restarts
        if not supervisor.restarts and supervisor.client is not None and not supervisor.warm:
            self.outcome.timings |= await engine_times(prepared.engine, supervisor.client)

    def _workload(self) -> Workload:
        tokens = sum(len(job.rows.rows) * self._longest_answer_of(job) for job in self.jobs)
        return Workload(self.longest_answer, self.tally.total, tokens)

    async def _supervisor(self, prepared: PreparedEngine) -> Supervisor:
        log = self.context.logs / f"{file_name(self.plan.abbr)}.log"
        engine, launch = prepared.engine, prepared.launch
        hang_seconds = self.context.hang_seconds or patience_with(engine, launch, self.longest_answer)
        context = self.context
        server = await asyncio.to_thread(open_server, prepared, log, context.redact, context.say, warm=context.warm)
        return Supervisor(
            engine,
            server,
            lambda: prepared.server(log, context.redact, context.say),
            hang_seconds=hang_seconds,
            on_gpu=launch.device != "cpu",
            say=self.context.say,
        )

    async def _up_and_ready(
        self, supervisor: Supervisor, prepared: PreparedEngine, pending: PendingRequests
    ) -> HttpClient:
        """Wait for the engine, and render prompts as long as that takes."""
        up = asyncio.create_task(self._up(supervisor, prepared))
        ahead = asyncio.create_task(pending.read_ahead(LOOK_AHEAD, MOST_TOKENS))
        try:
            await asyncio.wait({up, ahead}, return_when=asyncio.FIRST_COMPLETED)
            if ahead.done():
                ahead.result()  # raises for a row that no prompt can be made of
            return await up
        finally:
            for task in (up, ahead):
                task.cancel()
            await asyncio.gather(up, ahead, return_exceptions=True)

    async def _up(self, supervisor: Supervisor, prepared: PreparedEngine) -> HttpClient:
        began = self._elapsed()
        await supervisor.start()
        server = supervisor.server
        if not supervisor.warm:
            self.context.say(f"starting {prepared.identity} … (log: {server.log_path})")
        client = await supervisor.ready()
        start = server.start_seconds or 0.0
        # "start" runs beside "load"; "wait" is what was left of it when the first prompt was ready.
        self.outcome.timings |= {"start": round(start, 3), "wait": round(self._elapsed() - began, 3)}
        if not supervisor.warm:
            self.context.say(f"{server.name} is up after {start:.1f} s")
        return client

    async def _ask_in_rounds(
        self, supervisor: Supervisor, prepared: PreparedEngine, pending: PendingRequests, client: HttpClient
    ) -> None:
        rounds, answered = Rounds(pending), 0
        loss, hope = None, True
        while not self.stopping and (now := rounds.next()) is not None:
            if loss is not None:
                client = await supervisor.restart(loss, progress=hope)
            asker = self._asker_of(prepared, client, now)
            loss = await self._ask_round(asker, now, supervisor)
            if loss is None:
                continue
            unasked = {request.key for request in asker.unasked}
            proven, progress = self.tally.answered > 0, self.tally.answered > answered
            culprit, hope = rounds.died(now, unasked, proven=proven, progress=progress)
            answered = self.tally.answered
            if culprit is not None:
                self.context.say(loss.message)
                text = f"{supervisor.server.name} was lost each of the {culprit.crashes} times that it was asked this"
                request = culprit.request
                self._failed(Failure(request.key, request.job, request.row, text, culprit.crashes))

    async def _ask_round(self, asker: Asker, now: Round, supervisor: Supervisor) -> EngineError | None:
        """Ask a round; return why the engine was lost, if it was."""
        (endpoint,) = asker.endpoints
        asking = asyncio.create_task(self._run_asker(asker, now.requests()))
        lost = asyncio.create_task(
            supervisor.lost(
                lambda: self.tally.answered, lambda: asker.in_flight > 0 or endpoint.down, lambda: endpoint.failing
            )
        )
        try:
            await asyncio.wait({asking, lost}, return_when=asyncio.FIRST_COMPLETED)
            if asking.done():
                asking.result()
                return None
            return lost.result()
        finally:
            for task in (asking, lost):
                task.cancel()
            await asyncio.gather(asking, lost, return_exceptions=True)
            if not asking.cancelled():
                asking.result()  # what could not be stored is no fault of the engine, even if that is lost

    def _asker_of(self, prepared: PreparedEngine, client: HttpClient, now: Round) -> Asker:
        engine = prepared.engine
        places = engine.window(prepared.launch)
        tells = engine.load_path is not None
        window: WindowControl = FixedWindow(places)
        if tells and engine.load_is_live:
            window = LoadWindow(ceiling=places + max(1, int(places * QUEUE)), start=places, least=places)
        return Asker(
            engine,
            [Endpoint(client, supervised=True)],
            window=window,
            max_in_flight=now.most,
            patience=math.inf,  # the supervisor's
            # An engine that does not tell its load makes batches of what comes, in the order of the rows.
            cost=expected_cost if tells else None,
            on_attempt=self._attempted,
            say=self.context.say,
            redact=self.context.redact,
        )
