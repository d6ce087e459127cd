"""Which requests are asked again, and how, in an engine that dies of some of them: simulated."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from evalswap.inference.pending import Open
from evalswap.inference.rounds import Round, Rounds
from evalswap.inference.supervision import MOST_LOSSES
from evalswap.records import Prompt, Request, Sampling

WINDOW, LOOK_AHEAD = 16, 32


class Pending:
    """As many requests as wanted, as PendingRequests has them."""

    def __init__(self, count: int) -> None:
        prompt, sampling = Prompt((), None, (1,)), Sampling(max_new_tokens=1)
        requests = [Request(f"k{row}", "job", row, prompt, sampling) for row in range(count)]
        self.open = {request.key: Open(request, []) for request in requests}
        self.left = True
        self._requests = iter(requests)

    def __aiter__(self) -> AsyncIterator[Request]:
        return self

    async def __anext__(self) -> Request:
        for request in self._requests:
            self.open[request.key].taken = True
            return request
        self.left = False
        raise StopAsyncIteration


@dataclass
class Engine:
    """Dies of its poisons the moment it has one in flight; else it answers in any order."""

    poison: set[int]
    chance: random.Random
    answered: list[int] = field(default_factory=list)
    starts: int = 1

    async def ask(self, pending: Pending, of: Round) -> set[str] | None:
        """Ask a round; return the keys that were not in flight when it died, or None if it lives."""
        source, ahead, in_flight = of.requests(), [], []
        while True:
            while len(ahead) < LOOK_AHEAD and (request := await anext(source, None)) is not None:
                ahead.append(request)
            while ahead and len(in_flight) < (of.most or WINDOW):
                in_flight.append(ahead.pop(0))
            if not in_flight:
                return None
            if any(request.row in self.poison for request in in_flight):
                return {request.key for request in ahead}
            done = in_flight.pop(self.chance.randrange(len(in_flight)))
            self.answered.append(done.row)
            del pending.open[done.key]


async def run(rows: int, engine: Engine) -> tuple[set[int], bool]:
    """Return the rows that failed, and whether the engine was given up: what ManagedRun does, without processes."""
    pending, failed, losses = Pending(rows), set(), 0
    rounds = Rounds(pending)  # type: ignore[arg-type]
    while (now := rounds.next()) is not None:
        before = len(engine.answered)
        unasked = await engine.ask(pending, now)
        if unasked is None:
            continue
        progress = len(engine.answered) > before
        culprit, hope = rounds.died(now, unasked, proven=bool(engine.answered), progress=progress)
        if culprit is not None:
            failed.add(culprit.request.row)
            del pending.open[culprit.request.key]
        losses = 1 if hope else losses + 1
        if losses >= MOST_LOSSES:
            return failed, True
        engine.starts += 1
    return failed, False


@settings(max_examples=300, deadline=None)
@given(rows=st.integers(1, 200), poison=st.sets(st.integers(0, 199), max_size=6), seed=st.integers(0, 10**6))
def test_only_what_kills_the_engine_fails(rows: int, poison: set[int], seed: int) -> None:
    engine = Engine({row for row in poison if row < rows}, random.Random(seed))
    failed, given_up = asyncio.run(run(rows, engine))
    assert failed <= engine.poison
    assert len(engine.answered) == len(set(engine.answered))
    assert not set(engine.answered) & engine.poison
    if not given_up:
        assert set(engine.answered) | failed == set(range(rows))
    assert engine.starts < 12 + 8 * len(engine.poison)


@settings(max_examples=100, deadline=None)
@given(rows=st.integers(3 * WINDOW, 300), row=st.integers(0, 299), seed=st.integers(0, 10**6))
def test_one_poison_among_many_is_found(rows: int, row: int, seed: int) -> None:
    engine = Engine({row % rows}, random.Random(seed))
    failed, given_up = asyncio.run(run(rows, engine))
    assert not given_up
    assert failed == engine.poison
    assert len(engine.answered) == rows - 1
    assert engine.starts <= 6


def test_one_that_dies_of_everything_is_given_up_soon() -> None:
    engine = Engine(set(range(100)), random.Random(0))
    failed, given_up = asyncio.run(run(100, engine))
    assert (failed, given_up, engine.starts) == (set(), True, MOST_LOSSES)
