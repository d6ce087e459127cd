"""Asking one engine all requests: a bounded window in flight at each endpoint, refilled the moment an answer arrives.

There is no batch here and no barrier. A worker holds one place of one endpoint's window; when its answer is there it
takes the next request, and when there is none at the moment it ends. Whatever makes more possible (a larger window, a
pause that is over) starts workers again. So there are never more tasks than requests in flight, and
the requests are read only as far as answers come.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from evalswap.engines.base import Engine, FinalAnswerError, MalformedAnswer
from evalswap.errors import EvalswapError
from evalswap.inference.endpoints import Endpoint
from evalswap.inference.faults import REFUSING_FIRST_STATUS, FinalError, TransientError
from evalswap.inference.feed import Feed, Item, expected_cost
from evalswap.inference.limits import RateLimits
from evalswap.inference.load import follow_load
from evalswap.inference.pool import Pool
from evalswap.inference.retrying import RetryPolicy
from evalswap.inference.window import WindowControl
from evalswap.open_files import room_for_connections
from evalswap.records import Completion, Failure, Request

RETRY = RetryPolicy()
LOOK_AHEAD = 2048  # requests
PATIENCE = 120.0  # seconds
REJECTIONS_TO_LEAVE = 3  # 403s and 404s in a row before the first answer, until they are not the prompts' fault
REJECTION_PAUSE = 0.5  # seconds
MOST_TOKENS = 2**53  # that an answer may claim; JSON has larger numbers, the store has not

OnAttempt = Callable[[Request, int, EvalswapError | None, float], None]


@dataclass(frozen=True, slots=True)
class Timed:
    """A completion with when it was asked and how long it took."""

    completion: Completion
    started: float  # seconds since the epoch when the last attempt was sent
    seconds: float  # from there to the whole answer
    attempts: int


class Asker:
    """Asks one engine over one or more endpoints of it."""

    def __init__(
        self,
        engine: Engine,
        endpoints: Sequence[Endpoint],
        *,
        window: WindowControl,
        retry: RetryPolicy = RETRY,
        limits: RateLimits | None = None,
        max_in_flight: int | None = None,
        patience: float = PATIENCE,
        look_ahead: int = LOOK_AHEAD,
        cost: Callable[[Request], Any] | None = expected_cost,
        status_texts: Mapping[int, str] | None = None,
        on_attempt: OnAttempt | None = None,
        say: Callable[[str], None] | None = None,
        redact: Callable[[str], str] = str,
    ) -> None:
        """Each endpoint gets a ``window`` of its own; ``max_in_flight`` and ``limits`` bound all of them together.

        ``patience``: seconds after which endpoints that are all down end the asking. ``cost``: what a request is
        expected to take, as anything that can be compared; the dearest of the last ``look_ahead`` requests go first,
        so that no long one is left for the end. None keeps the order. ``status_texts``: HTTP statuses that the config
        counts as an answer.
        ``on_attempt`` hears of every attempt: the request, its number, what went wrong or None, and its seconds.
        ``say`` hears what a person should know while the asking goes on.
        """
        self.engine = engine
        self.endpoints = endpoints
        self.retry = retry
        self.limits = limits
        self.in_flight = 0
        self.unasked: list[Request] = []
        self._pool = Pool(self.endpoints, patience=patience, say=say or (lambda text: None), redact=redact)
        files = room_for_connections() or math.inf
        wanted = min(max_in_flight or math.inf, window.ceiling * len(endpoints))
        if say and files < wanted:
            say(f"at most {files} requests are in flight: a process may not open more files here (ulimit -Hn)")
        self._most = min(max_in_flight or math.inf, files)
        self._look_ahead = look_ahead
        self._cost = cost
        self._status_texts = status_texts or {}
        self._on_attempt = on_attempt
        self._redact = redact
        for endpoint in self.endpoints:
            endpoint.window = window.fresh()
            endpoint.changed = self._changed
        self._stopping = False
        self._workers: set[asyncio.Task[None]] = set()
        self._alarm: asyncio.Handle | None = None  # when more can start
        self._soon: asyncio.Handle | None = None  # or because something has changed
        self._end: asyncio.Future[None] | None = None  # while asking

    # -- the whole -------------------------------------------------------------------------------------

    async def ask_all(
        self,
        requests: Iterator[Request] | AsyncIterator[Request],
        on_answer: Callable[[Request, Timed], None],
        on_failure: Callable[[Failure], None],
    ) -> None:
        """Ask every request; each ends in exactly one call of ``on_answer`` or ``on_failure``.

        Only after :meth:`stop_taking`, an exception or a cancellation some end in neither; those of them that were
        read and are not in flight are then in ``unasked``. An exception of a callback (a full disk) or of the iterator
        ends the whole, and is raised. Raises EngineError if no endpoint can be used any more.
        """
        self._loop = asyncio.get_running_loop()
        self._end = self._loop.create_future()
        self._on_answer, self._on_failure = on_answer, on_failure
        self._feed = Feed(
            requests, look_ahead=self._look_ahead, cost=self._cost, changed=self._changed, broken=self.break_off
        )
        for endpoint in self.endpoints:
            endpoint.now = self._loop.time
        watchers = [self._loop.create_task(follow_load(e, self.engine, self._changed)) for e in self.endpoints]
        try:
            self._pump()
            await self._end
        finally:
            self._end = None
            for handle in (self._alarm, self._soon):
                if handle is not None:
                    handle.cancel()
            self._alarm = self._soon = None
            tasks = [*self._workers, *watchers]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self._feed.close()
            self.unasked = self._feed.rest()

    def stop_taking(self) -> None:
        """Ask nothing new: what is in flight finishes, then :meth:`ask_all` returns."""
        self._stopping = True
        self._changed()

    def break_off(self, error: BaseException) -> None:
        """End the asking with an error, which :meth:`ask_all` raises."""
        if self._end is not None and not self._end.done():
            self._end.set_exception(error)

    # -- what starts when ------------------------------------------------------------------------------

    def _changed(self) -> None:
        """Look soon whether more can start; once, however often it is called."""
        if self._end is not None and self._soon is None:
            self._soon = self._loop.call_soon(self._pump)

    def _pump(self) -> None:
        """Start all that can start now, and see to it that somebody looks again."""
        self._soon = None
        if self._end is None or self._end.done():
            return
        try:
            while (start := self._next()) is not None:
                task = self._loop.create_task(self._work(*start))
                self._workers.add(task)
                task.add_done_callback(self._workers.discard)
            self._settle()
        except Exception as error:  # of the iterator or of on_failure
            self.break_off(error)

    def _next(self) -> tuple[Item, Endpoint] | None:
        """Return what starts now, counted as in flight; None if nothing can."""
        if self._stopping or self.in_flight >= self._most:
            return None
        now = self._loop.time()
        if self.limits is not None and self.limits.ready_at() > now:
            return None
        endpoint = self._pool.least_loaded(now)
        item = self._take(now) if endpoint is not None else None
        if endpoint is None or item is None:
            return None
        tokens = item.size + item.request.sampling.max_new_tokens
        endpoint.start(now, tokens)
        if self.limits is not None:
            self.limits.take(now, tokens)
        self.in_flight += 1
        return item, endpoint

    def _take(self, now: float) -> Item | None:
        """Return the next request that has not failed by now."""
        while (item := self._feed.take(now)) is not None:
            if item.verdict is None:
                return item
            self._fail(item, item.verdict)
        return None

    def _settle(self) -> None:
        """End if everything is done; else set the alarm for the moment from which more can start."""
        assert self._end is not None
        if self.in_flight == 0 and (self._stopping or self._feed.empty):
            self._end.set_result(None)
            return
        if self._stopping or self.in_flight >= self._most:
            return  # the next answer will look
        moment = max(self._feed.ready_at(), self._pool.ready_at())
        if self.limits is not None:
            moment = max(moment, self.limits.ready_at())
        if self._alarm is not None:
            self._alarm.cancel()
        self._alarm = self._loop.call_at(moment, self._pump) if moment < math.inf else None

    # -- one place of a window -------------------------------------------------------------------------

    async def _work(self, item: Item, endpoint: Endpoint) -> None:
        """Ask one request after another, as long as there is one at once."""
        start: tuple[Item, Endpoint] | None = (item, endpoint)
        try:
            while start is not None:
                item, endpoint = start
                size = endpoint.window.size
                try:
                    await self._attempt(item, endpoint)
                finally:
                    endpoint.in_flight -= 1
                    self.in_flight -= 1
                if self._end is None or self._end.done():
                    return
                if endpoint.window.size > size:
                    self._changed()
                start = self._next()
            self._settle()
        except Exception as error:
            self.break_off(error)

    async def _attempt(self, item: Item, endpoint: Endpoint) -> None:
        """Send a request once, and settle what becomes of it."""
        request, clock = item.request, self._loop.time()
        if math.isnan(item.began):
            item.began = clock
        item.attempts += 1
        call = self.engine.call(request)
        started = time.time()
        error: EvalswapError | None = None
        try:
            completion = self._read(await endpoint.client.post(call.path, call.body), request)
        except FinalError as final:
            text = self._status_texts.get(final.status or 0)
            if text is None:
                error = final
            else:  # the config says what such a refusal counts as
                completion = Completion(None, text, "content_filter", 0, 0)
        except (TransientError, MalformedAnswer, FinalAnswerError) as problem:
            error = problem
        seconds = self._loop.time() - clock
        if self._on_attempt is not None:
            self._on_attempt(request, item.attempts, error, seconds)
        if error is None:
            endpoint.answered()
            self._count_tokens(item, endpoint, completion)
            self._on_answer(request, Timed(completion, started, seconds, item.attempts))
        elif isinstance(error, FinalError):
            self._refused(item, endpoint, error)
        elif isinstance(error, FinalAnswerError):
            endpoint.answered()
            self._fail(item, error)
        else:
            self._again(item, endpoint, error)

    def _read(self, answer: object, request: Request) -> Completion:
        try:
            completion = self.engine.read(answer, request)
            counts = (completion.prompt_tokens, completion.completion_tokens, completion.cached_tokens or 0)
            sound = isinstance(completion.text or "", str) and all(0 <= count < MOST_TOKENS for count in counts)
        except (LookupError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise MalformedAnswer(f"the answer cannot be read: {type(error).__name__}: {error}") from error
        if not sound:
            raise MalformedAnswer("the answer's text is no text, or its counts of tokens are none")
        return completion

    def _count_tokens(self, item: Item, endpoint: Endpoint, completion: Completion) -> None:
        used = completion.prompt_tokens + completion.completion_tokens
        for limits in (self.limits, endpoint.limits):
            if limits is not None and used:
                limits.settle(item.size + item.request.sampling.max_new_tokens, used)

    # -- what went wrong -------------------------------------------------------------------------------

    def _refused(self, item: Item, endpoint: Endpoint, error: FinalError) -> None:
        """A final error: of this request, or of the endpoint for all requests."""
        early = error.status in REFUSING_FIRST_STATUS and not endpoint.answers
        if not early and not error.refuses:
            endpoint.answered()
            self._fail(item, error)
            return
        item.attempts -= 1
        endpoint.rejected()
        if early and endpoint.rejections < REJECTIONS_TO_LEAVE:
            self._feed.put_off(item, self._loop.time() + REJECTION_PAUSE)
        else:
            self._feed.put_back(item)
            self._pool.leave(endpoint, error)

    def _again(self, item: Item, endpoint: Endpoint, error: EvalswapError) -> None:
        """A transient error: another attempt now or later, or the end of the request's chances."""
        now = self._loop.time()
        fault = error if isinstance(error, TransientError) else None
        endpoint.failed(fault, others=self._pool.others_work(endpoint))
        if endpoint.down:
            self._pool.check_patience(error, now)
        if fault is not None and (fault.retry_after or 0.0) > self.retry.longest_wish:
            item.attempts -= 1
            self._feed.put_back(item)
            self._pool.leave(endpoint, error)
            return
        pause = self.retry.after(item, endpoint, error, now)
        if pause is None:
            self._fail(item, error)
        else:
            self._feed.put_off(item, now + pause)

    def _fail(self, item: Item, error: EvalswapError) -> None:
        request = item.request
        message = self._redact(error.message)
        self._on_failure(Failure(request.key, request.job, request.row, message, max(item.attempts, 1)))
