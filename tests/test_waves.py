"""Answers are settled after the next requests are sent, soon, in order, and never lost."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from evalswap.errors import StoreError
from evalswap.inference.asking import Timed
from evalswap.inference.waves import MOST, Answer, Waves
from evalswap.records import Completion, Prompt, Request, Sampling

TIMED = Timed(Completion((1,), None, "stop", 1, 1), 0.0, 1.0, 1)


def request(row: int) -> Request:
    return Request(f"key {row}", "job", row, Prompt((), None, (1,)), Sampling(8))


class Settled:
    """Remembers what was settled together; fails as often as it is told."""

    def __init__(self, failures: int = 0) -> None:
        self.together: list[list[int]] = []
        self.failures = failures
        self.heard: list[BaseException] = []

    def __call__(self, answers: Sequence[Answer]) -> None:
        if self.failures:
            self.failures -= 1
            raise StoreError("the disk is full")
        self.together.append([asked.row for asked, _ in answers])

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
        waves = Waves(settled, pytest.fail)
        await asyncio.gather(*(worker(waves, row) for row in range(10)))
        assert order == [(row, []) for row in range(10)]
        await asyncio.sleep(0.02)

    asyncio.run(run())
    assert settled.together == [list(range(10))]


def test_a_single_answer_is_settled_though_none_follows() -> None:
    settled = Settled()

    async def run() -> None:
        waves = Waves(settled, pytest.fail)
        for row in range(3):
            waves.add(request(row), TIMED)
            await asyncio.sleep(0.02)
            assert settled.rows == list(range(row + 1))

    asyncio.run(run())


def test_large_waves_are_settled_in_parts_between_which_others_run() -> None:
    settled, seen = Settled(), set()

    async def run() -> None:
        waves = Waves(settled, pytest.fail)
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
        waves = Waves(settled, pytest.fail)
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
        waves = Waves(settled, settled.heard.append)
        waves.add(request(0), TIMED)
        await asyncio.sleep(0.02)
        assert [str(error) for error in settled.heard] == ["the disk is full"]
        assert settled.rows == []
        waves.end()

    asyncio.run(run())
    assert settled.rows == [0]


def test_an_end_that_cannot_store_says_so() -> None:
    async def run() -> None:
        waves = Waves(Settled(failures=1), pytest.fail)
        waves.add(request(0), TIMED)
        waves.end()

    with pytest.raises(StoreError, match="the disk is full"):
        asyncio.run(run())
