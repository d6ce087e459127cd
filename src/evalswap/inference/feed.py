"""The requests that are still to be asked: new ones, a little ahead of need, and those that come again."""

from __future__ import annotations

import asyncio
import heapq
import math
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from itertools import count
from typing import Any

from evalswap.errors import EvalswapError
from evalswap.records import Request

READ_AT_ONCE = 64  # requests; then answers have their turn
READ_PAUSE = 0.005  # seconds: a wave of answers goes before the reading ahead
MOST_TOKENS = 1_000_000  # of the prompts that are held, so that long prompts do not fill the memory


@dataclass(slots=True, eq=False)
class Item:
    """One request on its way."""

    request: Request
    size: int  # tokens of the prompt; an estimate where only text is known
    attempts: int = 0
    waits: int = 0  # how often the server said "later"
    began: float = math.nan  # when its first attempt started
    verdict: EvalswapError | None = None  # why it has failed, unless its server is found to be at fault


class Feed:
    """Reads an iterator only as far as needed, and hands out what is to be asked next.

    The order is the iterator's, in which prompts with a common beginning stand together. Only what is read ahead when
    the iterator ends goes the dearest first, so that no long one is left for the end, when all other places are empty.
    Simulated with 1319 lognormal times on 64 slots: 1.16 of the ideal time becomes 1.07 where cost and time correlate
    by 0.5 (as GSM8K's questions and solutions do), 1.00 where they are the same, and 1.17 where they have nothing to do
    with each other. Where datasets allow answers of different lengths, the longest allowed are the dearest.
    """

    def __init__(
        self,
        requests: Iterator[Request] | AsyncIterator[Request],
        *,
        look_ahead: int,
        cost: Callable[[Request], Any] | None,
        changed: Callable[[], None],
        broken: Callable[[BaseException], None],
    ) -> None:
        """``changed`` is called when there is something new to take, ``broken`` when the iterator raises."""
        self.exhausted = False
        self._look_ahead = look_ahead
        self._cost = cost
        self._changed = changed
        self._broken = broken
        self._numbers = count()
        self._ahead: deque[Item] = deque()
        self._back: deque[Item] = deque()  # to be asked again at once
        self._later: list[tuple[float, int, Item]] = []  # to be asked again at a moment, a heap
        self._held = 0  # prompt tokens read ahead
        self._loop = asyncio.get_running_loop()
        self._source = requests if isinstance(requests, Iterator) else None
        self._reading: asyncio.Handle | None = None
        self._task: asyncio.Task[None] | None = None
        self._wanted = asyncio.Event()
        self._hungry = False  # whether somebody came and found nothing
        if not isinstance(requests, Iterator):
            self._task = self._loop.create_task(self._read_async(requests))

    def take(self, now: float) -> Item | None:
        """Return the next request, those that come again first; None if there is none at the moment."""
        if self._later and self._later[0][0] <= now:
            return heapq.heappop(self._later)[2]
        if self._back:
            return self._back.popleft()
        if not self._ahead and self._source is not None and not self.exhausted:
            self._read(1)
        if not self._ahead:
            self._hungry = True
            self._wanted.set()
            return None
        if self.exhausted and self._cost is not None:
            self._sort()
        item = self._ahead.popleft()
        self._held -= item.size
        self._read_soon()
        return item

    def put_back(self, item: Item) -> None:
        """Ask it again as soon as possible."""
        self._back.append(item)

    def put_off(self, item: Item, due: float) -> None:
        """Ask it again from ``due`` on."""
        heapq.heappush(self._later, (due, next(self._numbers), item))

    def ready_at(self) -> float:
        """Return from when on there is something to take; inf if only an event can tell."""
        if self._ahead or self._back or (self._source is not None and not self.exhausted):
            return -math.inf
        return self._later[0][0] if self._later else math.inf

    @property
    def empty(self) -> bool:
        """Whether nothing is left and nothing will come."""
        return self.exhausted and not self._ahead and not self._back and not self._later

    def rest(self) -> list[Request]:
        """Return what was read and is not in flight."""
        return [item.request for item in (*self._back, *(entry[2] for entry in self._later), *self._ahead)]

    async def close(self) -> None:
        """Read no more."""
        if self._reading is not None:
            self._reading.cancel()
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    # -- reading ---------------------------------------------------------------------------------------

    @property
    def _short(self) -> bool:
        return len(self._ahead) < self._look_ahead and self._held < MOST_TOKENS

    def _read_soon(self) -> None:
        if self.exhausted or not self._short:
            return
        if self._source is None:
            if len(self._ahead) <= self._look_ahead - READ_AT_ONCE:  # many at once: each reading costs a turn
                self._wanted.set()
        elif self._reading is None:
            self._reading = self._loop.call_later(READ_PAUSE, self._read_ahead)

    def _read_ahead(self) -> None:
        self._reading = None
        try:
            self._read(READ_AT_ONCE)
        except Exception as error:
            self._broken(error)
        else:
            self._read_soon()
            if self.exhausted:
                self._changed()

    def _read(self, most: int) -> None:
        assert self._source is not None
        for _ in range(most):
            if self._ahead and not self._short:
                return
            request = next(self._source, None)
            if request is None:
                self.exhausted = True
                return
            self._add(request)

    async def _read_async(self, requests: AsyncIterator[Request]) -> None:
        read = 0
        try:
            async for request in requests:
                self._add(request)
                read += 1
                if self._hungry:
                    self._hungry = False
                    self._changed()
                if read == 1 or read % READ_AT_ONCE == 0:  # the first is on its way before the next is made
                    await asyncio.sleep(READ_PAUSE if len(self._ahead) > READ_AT_ONCE else 0)
                while not self._short:
                    self._wanted.clear()
                    await self._wanted.wait()
        except Exception as error:
            self._broken(error)
        self.exhausted = True
        self._changed()

    def _add(self, request: Request) -> None:
        item = Item(request, prompt_tokens(request))
        self._held += item.size
        self._ahead.append(item)

    def _sort(self) -> None:
        cost, self._cost = self._cost, None
        assert cost is not None
        self._ahead = deque(sorted(self._ahead, key=lambda item: cost(item.request), reverse=True))


def expected_cost(request: Request) -> tuple[int, int]:
    """Return what a request is expected to take, to be compared: by its longest answer, then by its prompt."""
    return request.sampling.max_new_tokens, prompt_tokens(request)


def prompt_tokens(request: Request) -> int:
    """Return a prompt's length in tokens, estimated at four characters each where it is text."""
    prompt = request.prompt
    if prompt.token_ids is not None:
        return len(prompt.token_ids)
    return sum(len(message["content"]) for message in prompt.messages) // 4
