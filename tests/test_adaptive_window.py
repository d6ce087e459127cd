"""How many requests are in flight at a server that does not tell its load: as many as help, found by trial."""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass
from typing import Any

import pytest
import virtual_time
from test_asking_simulated import ENGINE, GOOD, Ended, Server, World, requests

from evalswap.inference.asking import Asker
from evalswap.inference.client import TransientError
from evalswap.inference.endpoints import Endpoint
from evalswap.inference.window import AdaptiveWindow

FIRST, MOST, TIMEOUT = 64, 1024, 3600.0


class Queueing(Server):
    """A server that works on ``slots`` requests, and lets the others wait; who waits too long hangs up."""

    def __init__(self, slots: int, seconds: float, *, spread: float = 0.5) -> None:
        super().__init__(World())
        self.slots = asyncio.Semaphore(slots)
        self.seconds, self.spread = seconds, spread
        self.chance = random.Random(3)
        self.timeouts = 0

    async def post(self, path: str, body: Any) -> Any:
        self.in_flight += 1
        self.most = max(self.most, self.in_flight)
        try:
            return await asyncio.wait_for(self.work(), TIMEOUT)
        except asyncio.TimeoutError:
            self.timeouts += 1
            raise TransientError("no answer in time", kind="broken") from None
        finally:
            self.in_flight -= 1

    async def work(self) -> Any:
        async with self.slots:
            await asyncio.sleep(self.chance.uniform(1 - self.spread, 1 + self.spread) * self.seconds)
        return GOOD


class Refusing(Server):
    """A server that works on ``slots`` requests, and refuses the others at once with a 429."""

    def __init__(self, slots: int, seconds: float, wish: float | None) -> None:
        super().__init__(World())
        self.slots, self.seconds, self.wish = slots, seconds, wish
        self.chance = random.Random(3)
        self.refused = 0

    async def post(self, path: str, body: Any) -> Any:
        if self.in_flight >= self.slots:
            self.refused += 1
            await asyncio.sleep(0.01)
            raise TransientError("HTTP 429", self.wish, kind="busy")
        self.in_flight += 1
        self.most = max(self.most, self.in_flight)
        try:
            await asyncio.sleep(self.chance.uniform(0.5, 1.5) * self.seconds)
        finally:
            self.in_flight -= 1
        return GOOD


@dataclass
class Asked:
    seconds: float
    size: int  # of the window, at the end


def ask(server: Server, count: int, most: int = MOST) -> Asked:
    async def main() -> Asked:
        ended, clock = Ended(), asyncio.get_running_loop().time
        window = AdaptiveWindow(most, FIRST, patience=TIMEOUT / 4, clock=clock)
        asker = Asker(ENGINE, [Endpoint(server)], window=window, max_in_flight=most)
        await asker.ask_all(requests(count), ended.answered, ended.failed)
        assert len(ended.answers) == count
        return Asked(clock(), asker.endpoints[0].window.size)

    random.seed(1)
    return virtual_time.run(main())


@pytest.mark.parametrize(("slots", "least"), [(128, 128), (256, 256), (512, 512), (2000, 800)])
def test_it_grows_as_long_as_answers_come_faster(slots: int, least: int) -> None:
    server = Queueing(slots, 4.0)
    asked = ask(server, 3000)
    assert server.most >= least
    assert asked.seconds <= 3000 * 4.0 / min(slots, MOST) + 5 * 4.0  # five latencies until it is wide enough
    assert asked.seconds < 0.6 * 3000 * 4.0 / FIRST


def test_it_doubles_when_all_answers_come_at_once() -> None:
    """64, 128, 256, 512 and 1,024 at a time, and what is left."""
    assert ask(Queueing(2000, 4.0, spread=0.0), 2500).seconds <= 6 * 4.0 + 0.1


@pytest.mark.parametrize("slots", [8, 32, 64])
def test_it_ends_growing_at_a_server_that_only_queues(slots: int) -> None:
    server = Queueing(slots, 1.0)
    asked = ask(server, 4000)
    assert server.most <= 9 * FIRST  # and not MOST
    assert asked.seconds <= 1.05 * 4000 / slots


@pytest.mark.parametrize(("slots", "seconds"), [(1, 30.0), (2, 30.0), (4, 60.0), (16, 300.0)])
def test_nobody_waits_in_the_queue_of_a_slow_server_until_the_time_is_up(slots: int, seconds: float) -> None:
    server = Queueing(slots, seconds)
    ask(server, 400)
    assert server.timeouts == 0
    assert server.most < TIMEOUT * slots / seconds


def test_long_answers_are_no_long_queue() -> None:
    """Ten minutes for each answer, of a model that thinks: the server bears more, and gets more."""
    asked = ask(Queueing(2000, 600.0), 2000)
    assert asked.seconds < 0.3 * 2000 * 600.0 / FIRST


@pytest.mark.parametrize("wish", [None, 1.0])
@pytest.mark.parametrize("slots", [20, 64, 100, 200, 400])
def test_a_server_that_refuses_is_used_and_not_stormed(slots: int, wish: float | None) -> None:
    server, count = Refusing(slots, 1.0, wish), 3000
    asked = ask(server, count)
    assert server.refused <= count / 4
    assert asked.seconds <= 1.6 * count / slots + 5
