"""Asking one engine all requests: a bounded window in flight, refilled the moment an answer arrives.

There is no batch here and no barrier: as many askers as the window is wide each take the next request from
one iterator, so the iterator is read only as fast as answers come.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from evalswap.engines.base import Engine, FinalAnswerError, MalformedAnswer
from evalswap.errors import EvalswapError
from evalswap.inference.client import FinalError, HttpClient, TransientError
from evalswap.records import Completion, Failure, Request

FIRST_BACKOFF = 0.5  # seconds; doubles with each attempt, with full jitter
LONGEST_BACKOFF = 60.0


@dataclass(frozen=True, slots=True)
class Timed:
    """A completion with when it was asked and how long it took."""

    completion: Completion
    started: float
    seconds: float
    attempts: int


class RateLimit:
    """Spaces requests evenly: at most ``per_second`` of them start each second."""

    def __init__(self, per_second: float | None = None) -> None:
        self._interval = 1.0 / per_second if per_second else 0.0
        self._next = 0.0
        self._sent: deque[float] = deque()  # when the requests of the last minute started

    async def wait(self) -> None:
        """Return when the next request may start."""
        now = time.monotonic()
        start = max(now, self._next)
        if self._interval:
            self._next = start + self._interval
            await asyncio.sleep(start - now)
        self._sent.append(start)
        while self._sent[0] < start - 60:
            self._sent.popleft()

    def last_minute(self) -> int:
        """Return how many requests started in the last 60 seconds."""
        since = time.monotonic() - 60
        return sum(start >= since for start in self._sent)


class Asker:
    """Asks one engine over one or more clients of it."""

    def __init__(
        self,
        engine: Engine,
        clients: list[HttpClient],
        *,
        window: int,
        retries: int,
        rate: RateLimit | None = None,
        status_texts: dict[int, str] | None = None,
        redact: Callable[[str], str] = str,
    ) -> None:
        self.engine = engine
        self.clients = clients
        self.window = window
        self.retries = retries
        self.rate = rate or RateLimit()
        self.status_texts = status_texts or {}
        self.redact = redact
        self.in_flight = 0
        self._turn = 0

    async def ask_all(
        self,
        requests: Iterator[Request],
        on_answer: Callable[[Request, Timed], None],
        on_failure: Callable[[Failure], None],
    ) -> None:
        """Ask every request; each ends in exactly one call of ``on_answer`` or ``on_failure``.

        An exception of a callback (a full disk) or of the iterator ends the whole, and is raised.
        """
        askers = [asyncio.create_task(self._asker(requests, on_answer, on_failure)) for _ in range(self.window)]
        try:
            await asyncio.gather(*askers)
        finally:
            for asker in askers:
                asker.cancel()
            await asyncio.gather(*askers, return_exceptions=True)

    async def _asker(
        self,
        requests: Iterator[Request],
        on_answer: Callable[[Request, Timed], None],
        on_failure: Callable[[Failure], None],
    ) -> None:
        for request in requests:
            self.in_flight += 1
            try:
                outcome = await self._ask(request)
            finally:
                self.in_flight -= 1
            if isinstance(outcome, Failure):
                on_failure(outcome)
            else:
                on_answer(request, outcome)

    async def _ask(self, request: Request) -> Timed | Failure:
        call = self.engine.call(request)
        attempt = 0
        while True:
            attempt += 1
            await self.rate.wait()
            started, clock = time.time(), time.perf_counter()
            try:
                answer = await self._client().post(call.path, call.body)
                completion = self.engine.read(answer, request)
                return Timed(completion, started, time.perf_counter() - clock, attempt)
            except FinalError as error:
                text = self.status_texts.get(error.status or 0)
                if text is not None:  # the config says what such a refusal counts as
                    completion = Completion(None, text, "content_filter", 0, 0)
                    return Timed(completion, started, time.perf_counter() - clock, attempt)
                return self._failure(request, error, attempt)
            except FinalAnswerError as error:
                return self._failure(request, error, attempt)
            except (TransientError, MalformedAnswer) as error:
                if attempt > self.retries:
                    return self._failure(request, error, attempt)
                wish = error.retry_after if isinstance(error, TransientError) else None
                await asyncio.sleep(_backoff(attempt, wish))

    def _client(self) -> HttpClient:
        self._turn += 1
        return self.clients[self._turn % len(self.clients)]

    def _failure(self, request: Request, error: EvalswapError, attempts: int) -> Failure:
        return Failure(request.key, request.job, request.row, self.redact(error.message), attempts)


def _backoff(attempt: int, wish: float | None) -> float:
    longest = min(LONGEST_BACKOFF, FIRST_BACKOFF * 2 ** (attempt - 1))
    delay = random.uniform(0, longest)
    return delay if wish is None else wish + delay / 4
