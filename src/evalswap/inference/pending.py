"""What a model has still to be asked: rows become prompts, and those whose answer is stored are done."""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from evalswap.benchmarks.registry import Rows
from evalswap.config.specs import DatasetSpec
from evalswap.content_keys import ContentKeys
from evalswap.inference.feed import prompt_tokens
from evalswap.prompting.requests import Prepared, RequestMaker
from evalswap.records import Failure, Request, Response, Sampling
from evalswap.scoring.behind import JobScoring
from evalswap.store import Item, Store


@dataclass
class Job:
    """One dataset of a model."""

    name: str  # "<model abbr>/<dataset abbr>"
    dataset: DatasetSpec
    rows: Rows
    scoring: JobScoring
    gold: Callable[..., str]  # (row, its number) -> the right answer
    sampling: Sampling | None = None
    shortened: int = 0  # rows whose answer has less room than asked for
    cut: int = 0  # rows whose prompt was too long
    empty: int = 0  # rows whose answer has no text


@dataclass(slots=True)
class Open:
    """A request without an answer yet, and the rows that wait for it."""

    request: Request
    rows: list[tuple[Job, int, str]]  # job, row, right answer: more than one where rows ask the same
    taken: bool = False  # handed out
    crashes: int = 0  # how often an engine died that was working on it
    began: float | None = None  # when an attempt at it first failed, time.perf_counter()
    failed_at: float = -math.inf  # when one last failed that had reached the engine


class PendingRequests:
    """An asynchronous iterator over the requests of a model's jobs that the store cannot answer.

    It may be left and taken up again, and reads only a chunk ahead of what is taken. Rows that ask the same thing
    as one on its way wait for that one's answer.
    """

    def __init__(
        self,
        jobs: Sequence[tuple[Job, RequestMaker]],
        keys: ContentKeys,
        *,
        store: Store,
        run: str,
        on_stored: Callable[[Job, int, Response, str], None],
        on_failure: Callable[[Failure], None],
    ) -> None:
        """``on_stored`` hears of each row whose answer is stored: its job, number, answer and right answer."""
        self.open: dict[str, Open] = {}  # by content key, in the order of the rows
        self.store_seconds = 0.0  # spent with the store
        self.exhausted = False
        self._keys = keys
        self._store = store
        self._run = run
        self._on_stored = on_stored
        self._on_failure = on_failure
        self._chunks = _chunks(jobs)
        self._reading: asyncio.Future[tuple[Job, list[Prepared]] | None] | None = None
        self._ready: deque[Request] = deque()
        self._lock = asyncio.Lock()

    def __aiter__(self) -> PendingRequests:
        return self

    async def __anext__(self) -> Request:
        """Return the next request. Raises ConfigError or DataError for a row of which none can be made."""
        if not await self.any():
            raise StopAsyncIteration
        request = self._ready.popleft()
        self.open[request.key].taken = True
        return request

    @property
    def left(self) -> bool:
        """Whether there may be more to take."""
        return bool(self._ready) or not self.exhausted

    async def any(self) -> bool:
        """Whether there is another request; returns as soon as that is known."""
        await self.read_ahead(1)
        return bool(self._ready)

    async def read_ahead(self, most: int, tokens: float = math.inf) -> None:
        """Have so many requests ready, or prompts of so many ``tokens``, or all that are left; may be cancelled.

        Raises as taking them does.
        """
        async with self._lock:
            while len(self._ready) < most and not self.exhausted and sum(map(prompt_tokens, self._ready)) < tokens:
                # Shielded: who waits here may be cancelled, and nothing that was read may be lost.
                chunk = await asyncio.shield(self._reading or self._read_on())
                if chunk is None:
                    self.exhausted = True
                else:
                    self._read_on()
                    self._sort(*chunk)

    def close(self) -> None:
        """Stop reading ahead."""
        if self._reading is not None:
            self._reading.cancel()

    def _read_on(self) -> asyncio.Future[tuple[Job, list[Prepared]] | None]:
        """Begin to make the next chunk, beside the asking."""
        self._reading = asyncio.ensure_future(asyncio.to_thread(next, self._chunks, None))
        self._reading.add_done_callback(lambda chunk: chunk.cancelled() or chunk.exception())  # it may never be awaited
        return self._reading

    def _sort(self, job: Job, chunk: list[Prepared]) -> None:
        """Record a chunk's rows, and sort out those that need no asking."""
        began = time.perf_counter()
        keys = [self._keys.key(item.prompt, item.sampling) for item in chunk]
        golds = [job.gold(item.data, item.row) for item in chunk]
        lines = list(zip(chunk, keys, golds, strict=True))
        items = [Item(item.row, key, gold, item.turns, item.prompt) for item, key, gold in lines]
        self._store.add_items(self._run, job.name, items)
        stored = self._store.responses(keys)
        self.store_seconds += time.perf_counter() - began
        for item, key, gold in lines:
            job.shortened += item.shortened
            job.cut += item.prompt.truncated_from is not None
            if key in stored:
                self._on_stored(job, item.row, stored[key], gold)
            elif item.problem is not None:
                self._on_failure(Failure(key, job.name, item.row, item.problem, attempts=0))
            elif key in self.open:
                self.open[key].rows.append((job, item.row, gold))
            else:
                request = Request(key, job.name, item.row, item.prompt, item.sampling)
                self.open[key] = Open(request, [(job, item.row, gold)])
                self._ready.append(request)


def _chunks(jobs: Sequence[tuple[Job, RequestMaker]]) -> Iterator[tuple[Job, list[Prepared]]]:
    for job, maker in jobs:
        for chunk in maker.prepare(job.rows.rows):
            yield job, chunk
