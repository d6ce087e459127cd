"""Answers are settled after the next requests are sent, soon, in order, and never lost."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from evalswap.errors import StoreError
from evalswap.inference.asking import Timed
from evalswap.inference.waves import MOST, Answer, Waves
from evalswap.records import Completion, Prompt, Request, Response, Sampling

TIMED = Timed(Completion((1,), None, "stop", 1, 1), 0.0, 1.0, 1)


def request(row: int) -> Request:
    return Request(f"key {row}", "job", row, Prompt((), None, (1,)), Sampling(8))


def response(asked: Request) -> Response:
    return Response(asked.key, "text", (1,), "stop", 1, 1, None, 0.0, 1.0, 1, "e 1")


class Settled:
    """Remembers what was stored together and what was counted; raises an error as often as it is told, or at a row."""

    def __init__(self, failures: int = 0, *, unstorable: int = -1, uncountable: int = -1) -> None:
        self.together: list[list[int]] = []
        self.counted: list[str] = []
        self.failures = failures
        self.unstorable, self.uncountable = unstorable, uncountable
        self.heard: list[BaseException] = []

    def store(self, answers: Sequence[Answer]) -> list[Response]:
        if self.failures:
            self.failures -= 1
            raise StoreError("the disk is full")
        rows = [asked.row for asked, _ in answers]
        if self.unstorable in rows:
            raise OverflowError(f"row {self.unstorable} cannot be stored")
        self.together.append(rows)
        return [response(asked) for asked, _ in answers]

    def count(self, stored: Response) -> None:
        if stored.key == f"key {self.uncountable}":
            raise ValueError(f"row {self.uncountable} cannot be counted")
        self.counted.append(stored.key)

    def waves(self) -> Waves:
        return Waves(self.store, self.count, self.heard.append)

    @property
    def rows(self) -> list[int]:
        return [row for rows in self.together for row in rows]


def test_a_wave_is_settled_after_everything_that_was_ready_to_run() -> None:
    settled, order = Settled(), []

    async def worker(waves: Waves, row: int) -> None:
        waves.add(request(row), TIMED)
        await asyncio.sleep(0)
        order.append((row, list(settled.rows)))  # where the next request is sent

    async def run() -> None:
        waves = settled.waves()
        await asyncio.gather(*(worker(waves, row) for row in range(10)))
        assert order == [(row, []) for row in range(10)]
        await asyncio.sleep(0.02)

    asyncio.run(run())
    assert settled.together == [list(range(10))]
    assert settled.counted == [f"key {row}" for row in range(10)]
    assert not settled.heard


def test_a_single_answer_is_settled_though_none_follows() -> None:
    settled = Settled()

    async def run() -> None:
        waves = settled.waves()
        for row in range(3):
            waves.add(request(row), TIMED)
            await asyncio.sleep(0.02)
            assert settled.rows == list(range(row + 1))

    asyncio.run(run())


def test_large_waves_are_settled_in_parts_between_which_others_run() -> None:
    settled, seen = Settled(), set()

    async def run() -> None:
        waves = settled.waves()
        for row in range(3 * MOST + 1):
            waves.add(request(row), TIMED)
        while len(settled.rows) < 3 * MOST + 1:
            await asyncio.sleep(0)
            seen.add(len(settled.together))

    asyncio.run(run())
    assert settled.rows == list(range(3 * MOST + 1))
    assert [len(rows) for rows in settled.together] == [MOST, MOST, MOST, 1]
    assert seen == {0, 1, 2, 3, 4}


def test_the_end_settles_at_once_what_is_left() -> None:
    settled = Settled()

    async def run() -> None:
        waves = settled.waves()
        for row in range(MOST + 5):
            waves.add(request(row), TIMED)
        waves.end()
        assert settled.rows == list(range(MOST + 5))
        await asyncio.sleep(0.02)

    asyncio.run(run())
    assert len(settled.rows) == MOST + 5  # and nothing twice


def test_what_could_not_be_stored_is_tried_once_more_at_the_end() -> None:
    settled = Settled(failures=1)

    async def run() -> None:
        waves = settled.waves()
        waves.add(request(0), TIMED)
        await asyncio.sleep(0.02)
        assert [str(error) for error in settled.heard] == ["the disk is full"]
        assert settled.rows == []
        waves.end()

    asyncio.run(run())
    assert settled.rows == [0]


def test_an_end_that_cannot_store_says_so() -> None:
    async def run() -> None:
        waves = Settled(failures=1).waves()
        waves.add(request(0), TIMED)
        waves.end()

    with pytest.raises(StoreError, match="the disk is full"):
        asyncio.run(run())


def test_an_answer_that_cannot_be_stored_takes_no_other_with_it() -> None:
    settled = Settled(unstorable=3)

    async def run() -> None:
        waves = settled.waves()
        for row in range(MOST + 6):
            waves.add(request(row), TIMED)
        while not settled.heard:
            await asyncio.sleep(0)
        waves.end()

    asyncio.run(run())
    assert [str(error) for error in settled.heard] == ["row 3 cannot be stored"]
    assert settled.rows == [row for row in range(MOST + 6) if row != 3]
    assert settled.counted == [f"key {row}" for row in settled.rows]


def test_the_end_settles_the_others_before_it_says_what_is_wrong() -> None:
    settled = Settled(unstorable=3)

    async def run() -> None:
        waves = settled.waves()
        for row in range(10):
            waves.add(request(row), TIMED)
        waves.end()

    with pytest.raises(OverflowError, match="row 3 cannot be stored"):
        asyncio.run(run())
    assert settled.rows == [0, 1, 2, 4, 5, 6, 7, 8, 9]


def test_what_is_stored_is_counted_once_though_counting_fails() -> None:
    settled = Settled(uncountable=3)

    async def run() -> None:
        waves = settled.waves()
        for row in range(5):
            waves.add(request(row), TIMED)
        while not settled.heard:
            await asyncio.sleep(0.001)
        waves.add(request(5), TIMED)
        waves.end()

    asyncio.run(run())
    assert [str(error) for error in settled.heard] == ["row 3 cannot be counted"]
    assert settled.rows == [0, 1, 2, 3, 4, 5]
    assert settled.counted == ["key 0", "key 1", "key 2", "key 5"]
