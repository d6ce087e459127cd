"""What a model has still to be asked: each row once, however often the reading is broken off."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from evalswap.benchmarks.registry import Rows
from evalswap.content_keys import ContentKeys
from evalswap.inference.pending import Job, PendingRequests
from evalswap.inference.rounds import Rounds
from evalswap.prompting.requests import Prepared
from evalswap.records import Failure, Prompt, Request, Response, Sampling
from evalswap.store import Store

SAMPLING = Sampling(max_new_tokens=8)
CHUNK = 10
Found = list[tuple[str, int]]


class Maker:
    """Makes a prompt of each row's question, a chunk at a time, and not at once."""

    def __init__(self) -> None:
        self.chunks = 0

    def prepare(self, rows: list[dict[str, Any]]) -> Iterator[list[Prepared]]:
        for start in range(0, len(rows), CHUNK):
            time.sleep(0.002)
            self.chunks += 1
            yield [
                Prepared(start + i, row, [], Prompt(({"role": "user", "content": row["q"]},), None, None), SAMPLING,
                         problem=row.get("problem"))
                for i, row in enumerate(rows[start : start + CHUNK])
            ]  # fmt: skip


class Bench:
    def __init__(self, store: Store, *datasets: list[dict[str, Any]]) -> None:
        self.makers = [Maker() for _ in datasets]
        self.stored: Found = []
        self.failed: list[Failure] = []
        jobs = []
        for number, (rows, maker) in enumerate(zip(datasets, self.makers, strict=True)):
            job: Any = Job(f"m/d{number}", None, Rows(rows, "", ""), None, lambda row, number: row["q"])  # type: ignore[arg-type]
            jobs.append((job, maker))
        self.keys = ContentKeys({"model": "m"})
        self.pending = PendingRequests(
            jobs, self.keys, store=store, run="run", on_stored=self.found, on_failure=self.failed.append
        )

    def found(self, job: Job, row: int, response: Response, gold: str) -> None:
        assert response.text == gold
        self.stored.append((job.name, row))


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store(tmp_path)
    yield store
    store.close()


def rows(*questions: str) -> list[dict[str, Any]]:
    return [{"q": question} for question in questions]


async def all_of(pending: PendingRequests) -> list[Request]:
    return [request async for request in pending]


def test_rows_that_ask_the_same_wait_for_one_answer(store: Store) -> None:
    bench = Bench(store, rows("a", "b", "a"), rows("b", "c"))
    requests = asyncio.run(all_of(bench.pending))
    assert [(request.job, request.row) for request in requests] == [("m/d0", 0), ("m/d0", 1), ("m/d1", 1)]
    waiting = [[(job.name, row, gold) for job, row, gold in entry.rows] for entry in bench.pending.open.values()]
    assert waiting == [[("m/d0", 0, "a"), ("m/d0", 2, "a")], [("m/d0", 1, "b"), ("m/d1", 0, "b")], [("m/d1", 1, "c")]]
    assert store.jobs("run") == ["m/d0", "m/d1"]
    assert len(list(store.answers("run", "m/d0"))) == 3


def test_what_is_stored_or_cannot_be_asked_is_not_asked(store: Store) -> None:
    bench = Bench(store, [*rows("a", "b"), {"q": "c", "problem": "too long"}])
    key = bench.keys.key(Prompt(({"role": "user", "content": "b"},), None, None), SAMPLING)
    store.add_responses(bench.keys.source, [Response(key, "b", None, "stop", 1, 1, None, 0.0, 0.0, 1, "e")])
    requests = asyncio.run(all_of(bench.pending))
    assert [request.row for request in requests] == [0]
    assert bench.stored == [("m/d0", 1)]
    assert [(failure.row, failure.error) for failure in bench.failed] == [(2, "too long")]


def test_only_a_chunk_is_read_ahead(store: Store) -> None:
    bench = Bench(store, rows(*map(str, range(10 * CHUNK))))

    async def some() -> None:
        assert await bench.pending.any()
        for _ in range(3):
            await bench.pending.__anext__()
        await asyncio.sleep(0.1)
        assert bench.makers[0].chunks == 2

    asyncio.run(some())


def test_nothing_is_lost_when_whoever_waits_is_cancelled(store: Store) -> None:
    bench = Bench(store, rows(*map(str, range(10 * CHUNK))))

    async def broken_off() -> list[int]:
        seen: list[int] = []

        async def take() -> None:
            async for request in bench.pending:
                seen.append(request.row)
                await asyncio.sleep(0)

        while not bench.pending.exhausted:
            taking = asyncio.ensure_future(take())
            await asyncio.sleep(0.001)
            taking.cancel()
            await asyncio.gather(taking, return_exceptions=True)
        return seen

    assert asyncio.run(broken_off()) == list(range(10 * CHUNK))


@pytest.mark.parametrize("seconds", [0.003, 5.0])
def test_more_can_be_read_ahead_while_an_engine_starts(seconds: float, store: Store) -> None:
    bench = Bench(store, rows(*map(str, range(10 * CHUNK))))

    async def start_and_ask() -> list[int]:
        try:
            await asyncio.wait_for(bench.pending.read_ahead(5 * CHUNK), seconds)
            assert 5 <= bench.makers[0].chunks <= 6
        except asyncio.TimeoutError:
            assert seconds < 1
        return [request.row for request in await all_of(bench.pending)]

    assert asyncio.run(start_and_ask()) == list(range(10 * CHUNK))


def test_long_prompts_are_not_read_ahead_without_end(store: Store) -> None:
    bench = Bench(store, rows(*(f"{i} " + "long " * 4000 for i in range(10 * CHUNK))))  # some 5,000 tokens each
    asyncio.run(bench.pending.read_ahead(1000, tokens=25 * 5000))
    assert bench.makers[0].chunks <= 4  # three, and the next is being made


def test_what_was_all_read_ahead_is_still_asked(store: Store) -> None:
    bench = Bench(store, rows(*map(str, range(3 * CHUNK))))

    async def start_and_ask() -> list[int]:
        await bench.pending.read_ahead(1000)
        assert bench.pending.exhausted and bench.pending.left
        now = Rounds(bench.pending).next()
        assert now is not None
        return [request.row async for request in now.requests()]

    assert asyncio.run(start_and_ask()) == list(range(3 * CHUNK))
    assert not bench.pending.left
