"""The scheduler in virtual time: whatever latencies, faults and cancellations come, and in whatever order."""

from __future__ import annotations

import asyncio
import math
import random
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import virtual_time
from hypothesis import given, settings
from hypothesis import strategies as st
from multidict import CIMultiDict

from evalswap.engines.base import EngineLoad, HttpCall, Launch, ManagedEngine, SamplingTable
from evalswap.engines.openai import OpenAICompatible
from evalswap.errors import EngineError
from evalswap.inference.asking import Asker, Timed
from evalswap.inference.client import FinalError, HttpClient, TransientError
from evalswap.inference.endpoints import Endpoint
from evalswap.inference.limits import RateLimits
from evalswap.inference.retrying import RetryPolicy
from evalswap.inference.window import AdaptiveWindow, FixedWindow, LoadWindow, WindowControl
from evalswap.plan import EndpointPlan
from evalswap.records import Completion, Failure, Prompt, Request, Sampling

GOOD = {"choices": [{"message": {"content": "4"}, "finish_reason": "stop"}], "usage": {}}
FILTERED = {"choices": [{"message": {"content": None}, "finish_reason": "content_filter"}], "usage": None}
ABORTED = {"choices": [{"message": {"content": "h"}, "finish_reason": "abort"}], "usage": {}}
RETRIED = {"500", "503", "drop", "empty", "aborted", "nonsense"}  # each an attempt
WAITED = {"429", "unsent"}  # no attempts
ENDS = {"good", "filtered", "400"}
OUTCOMES = sorted(RETRIED | WAITED | ENDS)


@dataclass
class World:
    """What the servers do, and what they saw."""

    scripts: list[list[tuple[float, str]]] = field(default_factory=list)  # of each row: (seconds, outcome) of attempts
    attempts: Counter[int] = field(default_factory=Counter)
    started: list[float] = field(default_factory=list)
    in_flight: int = 0
    most: int = 0

    def step(self, row: int) -> tuple[float, str]:
        script = self.scripts[row] if row < len(self.scripts) else []
        attempt = self.attempts[row]
        self.attempts[row] += 1
        return script[attempt] if attempt < len(script) else (0.1, "good")


class Server(HttpClient):
    """One simulated server; it answers by the world's script, unless it is down."""

    def __init__(self, world: World, name: str = "one") -> None:
        super().__init__(f"http://{name}", timeout=3600)
        self.world = world
        self.alive = True
        self.in_flight = self.most = self.asked = 0

    async def post(self, path: str, body: Any) -> Any:
        if not self.alive:
            raise TransientError("refused", kind="unsent")
        world, row = self.world, int(body["messages"][0]["content"])
        seconds, outcome = world.step(row)
        world.started.append(asyncio.get_running_loop().time())
        self.asked += 1
        self.in_flight += 1
        world.in_flight += 1
        self.most, world.most = max(self.most, self.in_flight), max(world.most, world.in_flight)
        try:
            await asyncio.sleep(seconds)
        finally:
            self.in_flight -= 1
            world.in_flight -= 1
        return self.answer(outcome)

    def answer(self, outcome: str) -> Any:
        if outcome in ("500", "503", "drop", "429", "unsent"):
            kind = {"500": "failed", "503": "unavailable", "drop": "broken", "429": "busy", "unsent": "unsent"}[outcome]
            raise TransientError(outcome, 1.0 if outcome == "429" else None, kind=kind)  # type: ignore[arg-type]
        if outcome == "429 now":
            raise TransientError(outcome, 0.0, kind="busy")
        if outcome in ("400", "404"):
            raise FinalError(f"HTTP {outcome}", int(outcome))
        return {
            "good": GOOD,
            "filtered": FILTERED,
            "aborted": ABORTED,
            "empty": {"choices": []},
            "nonsense": {"choices": [{"message": {"content": "4"}, "finish_reason": "stop"}], "usage": 7},
        }[outcome]


def request(row: int, tokens: int = 8) -> Request:
    return Request(str(row), "job", row, Prompt(({"role": "user", "content": str(row)},), None, None), Sampling(tokens))


def requests(count: int) -> Iterator[Request]:
    return map(request, range(count))


async def slow_requests(count: int) -> AsyncIterator[Request]:
    for row in range(count):
        await asyncio.sleep(0.01 * (row % 3))
        yield request(row)


@dataclass
class Ended:
    """How each row ended; twice is an error at once."""

    answers: dict[int, Timed] = field(default_factory=dict)
    failures: dict[int, Failure] = field(default_factory=dict)

    def answered(self, request: Request, timed: Timed) -> None:
        assert request.row not in self.answers
        assert request.row not in self.failures
        self.answers[request.row] = timed

    def failed(self, failure: Failure) -> None:
        assert failure.row not in self.answers
        assert failure.row not in self.failures
        self.failures[failure.row] = failure

    @property
    def rows(self) -> set[int]:
        return self.answers.keys() | self.failures.keys()


ENGINE = OpenAICompatible(EndpointPlan(("http://nowhere",), "m"))


def ask(asker: Asker, count: int, source: Any = None) -> Ended:
    ended = Ended()
    random.seed(1)
    virtual_time.run(asker.ask_all(requests(count) if source is None else source, ended.answered, ended.failed))
    assert asker.in_flight == 0
    assert all(endpoint.in_flight == 0 for endpoint in asker.endpoints)
    return ended


scripts = st.lists(
    st.lists(st.tuples(st.sampled_from([0.0, 0.1, 1.0, 30.0]), st.sampled_from(OUTCOMES)), max_size=5), max_size=25
)
windows = st.one_of(
    st.builds(FixedWindow, st.integers(1, 8)),
    st.builds(AdaptiveWindow, st.integers(1, 40), st.integers(1, 40) | st.none()),
    st.builds(LoadWindow, st.integers(1, 40), st.integers(1, 40)),
)


@settings(deadline=None, max_examples=150)
@given(scripts=scripts, window=windows, retries=st.integers(0, 4), places=st.integers(1, 3), lazy=st.booleans(),
       total=st.integers(1, 12) | st.none())  # fmt: skip
def test_every_request_ends_once_and_rightly(
    scripts: list[list[tuple[float, str]]],
    window: WindowControl,
    retries: int,
    places: int,
    lazy: bool,
    total: int | None,
) -> None:
    world = World(scripts)
    servers = [Server(world, str(number)) for number in range(places)]
    asker = Asker(
        ENGINE, [Endpoint(server) for server in servers], window=window, max_in_flight=total,
        retry=RetryPolicy(retries), patience=math.inf,
    )  # fmt: skip
    count = len(scripts)
    ended = ask(asker, count, slow_requests(count) if lazy else None)
    assert ended.rows == set(range(count))
    assert max((server.most for server in servers), default=0) <= window.ceiling
    assert world.most <= (total or math.inf)
    for row, script in enumerate(scripts):
        outcomes = [outcome for _, outcome in script if outcome not in WAITED]
        end = next((i for i, outcome in enumerate(outcomes) if outcome not in RETRIED), len(outcomes))
        bad = end > retries or (end < len(outcomes) and outcomes[end] == "400")
        assert (row in ended.failures) == bad
        attempts = min(end, retries) + 1
        assert (ended.failures[row].attempts if bad else ended.answers[row].attempts) == attempts


@settings(deadline=None, max_examples=100)
@given(scripts=scripts, window=windows, moment=st.floats(0, 40), how=st.sampled_from(["stop", "cancel", "full disk"]),
       lazy=st.booleans())  # fmt: skip
def test_whatever_ends_it_early_nothing_is_left_behind(
    scripts: list[list[tuple[float, str]]], window: WindowControl, moment: float, how: str, lazy: bool
) -> None:
    world, ended, count = World(scripts), Ended(), len(scripts)
    asker = Asker(ENGINE, [Endpoint(Server(world))], window=window, retry=RetryPolicy(2), patience=math.inf)

    def answered(request: Request, timed: Timed) -> None:
        if how == "full disk" and asyncio.get_running_loop().time() >= moment:
            raise OSError("disk full")
        ended.answered(request, timed)

    async def main() -> None:
        source = slow_requests(count) if lazy else requests(count)
        asking = asyncio.create_task(asker.ask_all(source, answered, ended.failed))
        await asyncio.wait([asking], timeout=moment)
        if how == "cancel":
            asking.cancel()
        if how == "stop":
            begun = {row for row in world.attempts if world.attempts[row]}
            asker.stop_taking()
            await asking
            # What was in flight has ended, or came back and waits; nothing new was begun.
            assert {row for row in world.attempts if world.attempts[row]} <= begun
            read = ended.rows | {request.row for request in asker.unasked}
            assert len(read) == len(ended.rows) + len(asker.unasked)
            assert begun <= read
        elif how == "full disk":
            await asyncio.gather(asking, return_exceptions=True)
            if asking.exception() is not None:
                with pytest.raises(OSError, match="disk full"):
                    asking.result()
        else:
            await asyncio.gather(asking, return_exceptions=True)

    virtual_time.run(main())
    assert world.in_flight == 0


@settings(deadline=None, max_examples=60)
@given(count=st.integers(1, 60), per_second=st.sampled_from([0.5, 3.0, 50.0]), per_minute=st.sampled_from([2, 7, 240]),
       tokens=st.sampled_from([None, 600, 5000]), latency=st.sampled_from([0.0, 0.3, 5.0]))  # fmt: skip
def test_rate_limits_are_kept(
    count: int, per_second: float, per_minute: int, tokens: int | None, latency: float
) -> None:
    world = World([[(latency, "good")]] * count)
    own = RateLimits(requests_per_minute=per_minute, tokens_per_minute=tokens)
    asker = Asker(ENGINE, [Endpoint(Server(world), limits=own)], window=FixedWindow(64), limits=RateLimits(per_second))
    assert len(ask(asker, count).answers) == count
    for place, start in enumerate(world.started):
        later = world.started[place:]
        assert sum(moment < start + 1 - 1e-6 for moment in later) <= math.ceil(per_second)
        assert sum(moment < start + 60 - 1e-6 for moment in later) <= per_minute
        if tokens:  # each may cost 8; the one that empties the bucket is let through
            assert sum(8 for moment in later if moment < start + 60 - 1e-6) <= tokens + 8


def test_limits_are_used_up() -> None:
    """A limit is not only kept, it is reached."""
    world = World()
    asker = Asker(ENGINE, [Endpoint(Server(world))], window=FixedWindow(64),
                  limits=RateLimits(requests_per_minute=600))  # fmt: skip
    ask(asker, 1800)
    assert 170 <= world.started[-1] <= 185  # 1800 at 600 a minute


class Limited(Server):
    """A server that works on ``slots`` requests and refuses the others."""

    slots = 30
    refused = 0

    async def post(self, path: str, body: Any) -> Any:
        if self.in_flight >= self.slots:
            self.refused += 1
            await asyncio.sleep(0.01)
            raise TransientError("HTTP 429", kind="busy")
        return await super().post(path, body)


def test_an_adaptive_window_finds_what_a_server_bears() -> None:
    count, latency = 3000, 1.0
    server = Limited(World([[(latency, "good")]] * count))
    ended = Ended()

    async def main() -> float:
        clock = asyncio.get_running_loop().time
        asker = Asker(ENGINE, [Endpoint(server)], window=AdaptiveWindow(512, clock=clock))
        await asker.ask_all(requests(count), ended.answered, ended.failed)
        return clock()

    random.seed(1)
    seconds = virtual_time.run(main())
    assert len(ended.answers) == count
    assert seconds <= 1.3 * count * latency / Limited.slots
    assert server.refused <= count / 2


def test_single_faults_do_not_shrink_an_adaptive_window() -> None:
    """5% of all requests fail for reasons of their own; a window that halves for each would starve the server."""
    chance = random.Random(1)
    bad = [[(0.2, "500")] if chance.random() < 0.05 else [] for _ in range(3000)]
    world = World(bad)
    window = AdaptiveWindow(64, 64)
    asker = Asker(ENGINE, [Endpoint(Server(world))], window=window, retry=RetryPolicy(3))
    assert len(ask(asker, 3000).answers) == 3000
    assert asker.endpoints[0].window.size >= 40


class LoadedEngine(ManagedEngine):
    """An engine that runs ``slots`` requests and tells its load."""

    name = "loaded"
    sampling: SamplingTable = OpenAICompatible.sampling
    distributions = ()
    load_path = "/load"

    def call(self, request: Request) -> HttpCall:
        return ENGINE.call(request)

    def read(self, answer: Any, request: Request) -> Completion:
        return ENGINE.read(answer, request)

    def command(self, *_: Any) -> list[str]:
        return []

    def environment(self, launch: Launch) -> dict[str, str]:
        return {}

    def window(self, launch: Launch) -> int:
        return 4096

    def read_load(self, content: str) -> EngineLoad | None:
        running, waiting = map(int, content.split())
        return EngineLoad(running, waiting)


class Slots(Server):
    """A server with a queue, like an engine."""

    def __init__(self, world: World, slots: int) -> None:
        super().__init__(world)
        self.slots = asyncio.Semaphore(slots)
        self.waiting: list[int] = []  # at each look
        self.queued = self.looks = 0

    async def post(self, path: str, body: Any) -> Any:
        self.queued += 1
        async with self.slots:
            self.queued -= 1
            return await super().post(path, body)

    async def get_text(self, path: str, timeout: float | None = None) -> str:
        assert path == "/load"
        self.waiting.append(self.queued)
        return f"{self.in_flight} {self.queued}"


@pytest.mark.parametrize("slots", [8, 200, 800])
def test_a_window_that_follows_the_load_neither_starves_nor_floods(slots: int) -> None:
    count = max(3000, slots * 30)
    chance = random.Random(2)
    world = World([[(chance.uniform(0.5, 3.5), "good")] for _ in range(count)])
    server = Slots(world, slots)
    asker = Asker(LoadedEngine(), [Endpoint(server)], window=LoadWindow(4096))
    ended = Ended()

    async def main() -> float:
        await asker.ask_all(requests(count), ended.answered, ended.failed)
        return asyncio.get_running_loop().time()

    seconds = virtual_time.run(main())
    floor = sum(script[0][0] for script in world.scripts) / slots
    assert len(ended.answers) == count
    assert seconds <= 1.06 * floor
    settled = server.waiting[len(server.waiting) // 3 : -len(server.waiting) // 5]
    assert max(settled) <= max(40, slots)


def test_requests_are_read_only_as_far_as_needed() -> None:
    read = 0

    def source() -> Iterator[Request]:
        nonlocal read
        for row in range(100_000):
            read += 1
            yield request(row)

    world = World()
    asker = Asker(ENGINE, [Endpoint(Server(world))], window=FixedWindow(8), look_ahead=100)
    ended = Ended()

    def answered(request: Request, timed: Timed) -> None:
        assert read <= len(ended.answers) + 8 + 100 + 1
        ended.answered(request, timed)
        if len(ended.answers) == 2000:
            asker.stop_taking()

    virtual_time.run(asker.ask_all(source(), answered, ended.failed))
    assert 2000 <= len(ended.rows) <= 2008


def test_the_longest_of_the_last_go_first() -> None:
    chance = random.Random(3)
    seconds = [chance.lognormvariate(0, 1) for _ in range(1000)]

    def total(known: bool) -> float:
        world = World([[(s, "good")] for s in seconds])
        cost = (lambda request: seconds[request.row]) if known else None
        asker = Asker(ENGINE, [Endpoint(Server(world))], window=FixedWindow(64), cost=cost)

        async def main() -> float:
            await asker.ask_all(requests(1000), lambda request, timed: None, lambda failure: None)
            return asyncio.get_running_loop().time()

        return virtual_time.run(main())

    floor = max(sum(seconds) / 64, max(seconds))
    assert total(known=True) <= 1.02 * floor
    assert total(known=False) > 1.1 * floor


def test_the_longest_answers_go_first_and_of_those_the_longest_prompts() -> None:
    sizes = [(8, 3), (8, 9), (64, 2), (8, 5), (64, 7)]  # tokens of the longest answer, of the prompt
    prompts = [
        Request(
            f"k{row}",
            "job",
            row,
            Prompt(({"role": "user", "content": str(row)},), None, (1,) * prompt),
            Sampling(answer),
        )
        for row, (answer, prompt) in enumerate(sizes)
    ]
    world = World([[(1.0, "good")] for _ in sizes])
    asked: list[int] = []
    asker = Asker(ENGINE, [Endpoint(Server(world))], window=FixedWindow(1))
    virtual_time.run(asker.ask_all(iter(prompts), lambda request, timed: asked.append(request.row), pytest.fail))
    assert asked == [0, 4, 2, 1, 3]  # the first goes before the others are read


# -- endpoints ----------------------------------------------------------------------------------------


def test_least_loaded_endpoints_get_the_work() -> None:
    world = World()
    fast, slow = Server(world, "fast"), Server(world, "slow")
    fast.world, slow.world = World([[(0.1, "good")]] * 400), World([[(1.0, "good")]] * 400)
    asker = Asker(ENGINE, [Endpoint(fast), Endpoint(slow)], window=FixedWindow(10))
    assert len(ask(asker, 400).answers) == 400
    assert fast.asked >= 5 * slow.asked > 0


def test_a_dead_endpoint_is_left_alone_and_taken_up_again() -> None:
    world = World([[(1.0, "good")]] * 300)
    good, dead = Server(world, "good"), Server(world, "dead")
    tries = 0

    class Refusing(Server):
        async def post(self, path: str, body: Any) -> Any:
            nonlocal tries
            if asyncio.get_running_loop().time() < 20:
                tries += 1
                raise TransientError("refused", kind="unsent")
            return await super().post(path, body)

    dead = Refusing(world, "dead")
    asker = Asker(ENGINE, [Endpoint(good), Endpoint(dead)], window=FixedWindow(5))
    ended = ask(asker, 300)
    assert len(ended.answers) == 300
    assert {timed.attempts for timed in ended.answers.values()} == {1}
    assert tries <= 5 + 5 + 6  # until the circuit opens, with what was in flight, and one probe after each pause
    assert dead.asked > 20


def test_drops_with_answers_between_are_no_outage() -> None:
    world = World([[(0.1, "drop")] if row % 3 == 0 else [] for row in range(60)])
    endpoint, seen = Endpoint(Server(world)), []
    asker = Asker(ENGINE, [endpoint], window=FixedWindow(1), on_attempt=lambda *_: seen.append(endpoint.down))
    assert len(ask(asker, 60).answers) == 60
    assert seen == [False] * 80


def test_all_endpoints_down_for_long_is_one_clear_error() -> None:
    servers = [Server(World(), "a"), Server(World(), "b")]
    for server in servers:
        server.alive = False
    asker = Asker(ENGINE, [Endpoint(s) for s in servers], window=FixedWindow(9), patience=100.0)
    ended = Ended()
    seconds: list[float] = []

    async def main() -> None:
        try:
            await asker.ask_all(requests(500), ended.answered, ended.failed)
        finally:
            seconds.append(asyncio.get_running_loop().time())

    with pytest.raises(EngineError, match=r"no answer from http://a, http://b for 1[0-9]{2} s: refused"):
        virtual_time.run(main())
    assert 100 <= seconds[0] <= 200
    assert not ended.rows
    assert asker.in_flight == 0


class Refuses(Server):
    status = 401

    async def post(self, path: str, body: Any) -> Any:
        self.asked += 1
        await asyncio.sleep(0.1)
        raise FinalError(f"HTTP {self.status}: who are you", self.status)


@pytest.mark.parametrize("status", [401, 402, 403, 404])
def test_a_wrong_key_ends_the_asking_and_is_not_a_thousand_failures(status: int) -> None:
    server = Refuses(World(), "a")
    server.status = status
    ended = Ended()
    asker = Asker(ENGINE, [Endpoint(server)], window=FixedWindow(16))
    with pytest.raises(EngineError, match=f"http://a refuses all requests: HTTP {status}") as caught:
        virtual_time.run(asker.ask_all(requests(1319), ended.answered, ended.failed))
    assert caught.value.hint
    assert server.asked <= 16 + 2  # what was in flight, and two that were not believed
    assert not ended.rows


def test_one_wrong_key_of_two_is_left() -> None:
    said: list[str] = []
    wrong = Refuses(World(), "wrong")
    asker = Asker(ENGINE, [Endpoint(Server(World(), "right")), Endpoint(wrong)], window=FixedWindow(4), say=said.append)
    ended = ask(asker, 100)
    assert len(ended.answers) == 100
    assert wrong.asked <= 4
    assert len(said) == 1
    assert "http://wrong refuses all requests" in said[0]


def test_a_403_after_answers_is_about_one_prompt() -> None:
    class Moderated(Server):
        async def post(self, path: str, body: Any) -> Any:
            if body["messages"][0]["content"] in ("0", "7"):
                raise FinalError("HTTP 403: flagged", 403)
            return await super().post(path, body)

    ended = ask(Asker(ENGINE, [Endpoint(Moderated(World()))], window=FixedWindow(2)), 20)
    assert set(ended.failures) == {0, 7}
    assert len(ended.answers) == 18


def test_one_429_stalls_nobody_else() -> None:
    world = World([[(0.0, "429")], *([[(0.1, "good")]] * 99)])
    asker = Asker(ENGINE, [Endpoint(Server(world))], window=FixedWindow(4))
    ended = ask(asker, 100)
    assert len(ended.answers) == 100
    assert world.started[-2] < 2.6  # 99 requests, 4 at a time
    assert 1.0 <= world.started[-1] - world.started[0] <= 2.8


def test_an_exhausted_key_pauses_as_long_as_asked_and_no_longer() -> None:
    class Exhausted(Server):
        refused: list[float]

        async def post(self, path: str, body: Any) -> Any:
            now = asyncio.get_running_loop().time()
            if now < 10:
                self.refused.append(now)
                raise TransientError("HTTP 429", 10 - now, kind="busy")
            return await super().post(path, body)

    world = World()
    one, other = Exhausted(world, "one"), Server(world, "other")
    one.refused = []
    asker = Asker(ENGINE, [Endpoint(one), Endpoint(other)], window=FixedWindow(3))
    ended = ask(asker, 700)
    assert len(ended.answers) == 700
    assert len(one.refused) <= 6
    assert world.started[6] <= 0.3  # the other key did not wait
    assert one.asked > 50  # and the first one was taken up again


@pytest.mark.parametrize("limit", [True, False])
def test_what_the_headers_say_is_kept(limit: bool) -> None:
    class Metered(Server):
        """20 requests at once, 10 more each second; without ``limit`` all 20 come back after 2 s."""

        left, at = 20.0, 0.0
        refused = 0

        async def post(self, path: str, body: Any) -> Any:
            now = asyncio.get_running_loop().time()
            if limit:
                self.left = min(20.0, self.left + 10 * (now - self.at))
                self.at = now
            elif now - self.at >= 2:
                self.left, self.at = 20.0, now
            if self.left < 1:
                self.refused += 1
                raise TransientError("HTTP 429", 0.5, kind="busy")
            self.left -= 1
            reset = f"{(20 - self.left) / 10:.3f}s" if limit else f"{max(0.0, self.at + 2 - now) * 1000:.0f}ms"
            headers = CIMultiDict({"X-RateLimit-Remaining-Requests": f"{int(self.left)}"})
            headers["X-RateLimit-Reset-Requests"] = reset
            if limit:
                headers["X-RateLimit-Limit-Requests"] = "20"
            answer = await super().post(path, body)
            assert self.on_headers is not None
            self.on_headers(headers)
            return answer

    world = World()
    server = Metered(world)
    asker = Asker(ENGINE, [Endpoint(server)], window=FixedWindow(3))
    assert len(ask(asker, 200).answers) == 200
    assert server.refused <= 20
    assert world.started[-1] <= 25  # about 180 of them at 10 a second


def test_a_wish_beyond_all_patience_is_an_error() -> None:
    class Tomorrow(Server):
        async def post(self, path: str, body: Any) -> Any:
            raise TransientError("HTTP 429: daily limit", 86400.0, kind="busy")

    asker = Asker(ENGINE, [Endpoint(Tomorrow(World()))], window=FixedWindow(3))
    with pytest.raises(EngineError, match="daily limit"):
        ask(asker, 10)


def test_a_request_has_a_deadline() -> None:
    world = World([[(1.0, "429")] * 1000])
    asker = Asker(ENGINE, [Endpoint(Server(world))], window=FixedWindow(1), retry=RetryPolicy(waits=999, deadline=60.0))
    ended = ask(asker, 2)
    assert set(ended.failures) == {0}
    assert world.started[-1] <= 61


def test_every_attempt_can_be_recorded() -> None:
    log: list[tuple[int, int, str]] = []
    world = World([[(0.1, "500"), (0.1, "429"), (0.2, "good")]])
    asker = Asker(
        ENGINE, [Endpoint(Server(world))], window=FixedWindow(1),
        on_attempt=lambda request, attempt, error, seconds: log.append(
            (request.row, attempt, error.message if error else f"{seconds:.1f}")
        ),
    )  # fmt: skip
    ask(asker, 1)
    assert log == [(0, 1, "500"), (0, 2, "429"), (0, 2, "0.2")]


def test_a_supervised_server_that_fails_without_dying_is_judged_all_the_same() -> None:
    world = World([[(0.1, "500")] * 99])
    asker = Asker(ENGINE, [Endpoint(Server(world), supervised=True)], window=FixedWindow(2), retry=RetryPolicy(2))
    ended = ask(asker, 5)
    assert set(ended.failures) == {0}
    assert ended.failures[0].attempts == 3


class Phases(World):
    """Whatever is asked: one outcome until a moment, then the next, at last good."""

    def __init__(self, *phases: tuple[float, str]) -> None:
        super().__init__()
        self.phases = phases

    def step(self, row: int) -> tuple[float, str]:
        now = asyncio.get_running_loop().time()
        return 0.01, next((outcome for until, outcome in self.phases if now < until), "good")


def test_a_gateway_whose_backend_starts_is_tried_again() -> None:
    """The request that tries whether it is back may get a 404, too."""
    world = Phases((0.3, "503"), (1.2, "404"))
    asker = Asker(ENGINE, [Endpoint(Server(world))], window=FixedWindow(12))
    assert set(ask(asker, 20).answers) == set(range(20))


@pytest.mark.parametrize("wish", ["429", "429 now"])
def test_a_server_that_says_later_at_once_is_not_asked_at_once(wish: str) -> None:
    world = Phases((5.0, wish))
    ended = ask(Asker(ENGINE, [Endpoint(Server(world))], window=FixedWindow(40)), 40)
    assert set(ended.answers) == set(range(40))
    assert len(world.started) < 40 * 20
