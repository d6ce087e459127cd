"""Asking: every request ends exactly once, the window is never exceeded, whatever the server does."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evalswap.engines.openai import OpenAICompatible
from evalswap.inference import asking
from evalswap.inference.asking import Asker, RateLimit, Timed
from evalswap.inference.client import FinalError, HttpClient, TransientError
from evalswap.plan import EndpointPlan
from evalswap.records import Failure, Prompt, Request, Sampling

GOOD = {"choices": [{"message": {"content": "4"}, "finish_reason": "stop"}], "usage": {}}
OUTCOMES = ("good", "transient", "final", "empty", "filtered", "aborted")
ENDS_BADLY = {"final"}
RETRIED = {"transient", "empty", "aborted"}


class Script(HttpClient):
    """A client whose server follows a script: for each request, what its attempts meet."""

    def __init__(self, scripts: list[list[str]]) -> None:
        super().__init__("http://nowhere", timeout=1)
        self.scripts = scripts
        self.attempts: Counter[int] = Counter()
        self.in_flight = self.most = 0

    async def post(self, path: str, body: Any) -> Any:
        row = int(body["messages"][0]["content"])
        attempt = self.attempts[row]
        self.attempts[row] += 1
        self.in_flight += 1
        self.most = max(self.most, self.in_flight)
        await asyncio.sleep(0)
        self.in_flight -= 1
        outcome = self.scripts[row][attempt] if attempt < len(self.scripts[row]) else "good"
        if outcome == "transient":
            raise TransientError("HTTP 500", retry_after=0.0)
        if outcome == "final":
            raise FinalError("HTTP 400", 400)
        if outcome == "empty":
            return {"choices": []}
        if outcome == "filtered":
            return {"choices": [{"message": {"content": None}, "finish_reason": "content_filter"}], "usage": None}
        if outcome == "aborted":
            return {"choices": [{"message": {"content": "h"}, "finish_reason": "abort"}], "usage": {}}
        return GOOD


def requests(count: int) -> list[Request]:
    return [
        Request(str(i), "job", i, Prompt(({"role": "user", "content": str(i)},), None, None), Sampling(8))
        for i in range(count)
    ]


def ask(client: HttpClient, count: int, window: int, retries: int) -> tuple[dict[int, Timed], dict[int, Failure]]:
    engine = OpenAICompatible(EndpointPlan(("http://nowhere",), "m"))
    answers: dict[int, Timed] = {}
    failures: dict[int, Failure] = {}

    def answered(request: Request, timed: Timed) -> None:
        assert request.row not in answers
        answers[request.row] = timed

    def failed(failure: Failure) -> None:
        assert failure.row not in failures
        failures[failure.row] = failure

    asker = Asker(engine, [client], window=window, retries=retries)
    asyncio.run(asker.ask_all(iter(requests(count)), answered, failed))
    assert asker.in_flight == 0
    return answers, failures


@settings(deadline=None, max_examples=60)
@given(
    scripts=st.lists(st.lists(st.sampled_from(OUTCOMES), max_size=5), max_size=25),
    window=st.integers(1, 8),
    retries=st.integers(0, 4),
)
def test_every_request_ends_once(scripts: list[list[str]], window: int, retries: int) -> None:
    before = asking.FIRST_BACKOFF
    asking.FIRST_BACKOFF = 0.0
    try:
        client = Script(scripts)
        answers, failures = ask(client, len(scripts), window, retries)
    finally:
        asking.FIRST_BACKOFF = before
    assert client.most <= window
    assert answers.keys() | failures.keys() == set(range(len(scripts)))
    assert not answers.keys() & failures.keys()
    for row, script in enumerate(scripts):
        ends = next((i for i, outcome in enumerate(script) if outcome not in RETRIED), len(script))
        attempts = min(ends, retries) + 1
        assert client.attempts[row] == attempts
        bad = ends > retries or (ends < len(script) and script[ends] in ENDS_BADLY)
        assert (row in failures) == bad
        assert (failures[row].attempts if bad else answers[row].attempts) == attempts


def test_an_exception_in_a_callback_ends_the_asking() -> None:
    engine = OpenAICompatible(EndpointPlan(("http://nowhere",), "m"))

    def full(request: Request, timed: Timed) -> None:
        raise OSError("disk full")

    async def run() -> None:
        with pytest.raises(OSError, match="disk full"):
            await Asker(engine, [Script([[]] * 9)], window=3, retries=0).ask_all(
                iter(requests(9)), full, lambda failure: None
            )
        assert len(asyncio.all_tasks()) == 1  # no asker is left running

    asyncio.run(run())


def test_requests_go_round_over_several_servers() -> None:
    engine = OpenAICompatible(EndpointPlan(("http://a", "http://b"), "m"))
    clients = [Script([[]] * 20), Script([[]] * 20)]
    asker = Asker(engine, list(clients), window=4, retries=0)
    asyncio.run(asker.ask_all(iter(requests(20)), lambda request, timed: None, lambda failure: None))
    assert [sum(client.attempts.values()) for client in clients] == [10, 10]


def test_a_rate_limit_spaces_requests() -> None:
    async def run() -> float:
        rate = RateLimit(100)
        loop = asyncio.get_running_loop()
        began = loop.time()
        await asyncio.gather(*(rate.wait() for _ in range(11)))
        assert rate.last_minute() == 11
        return loop.time() - began

    assert asyncio.run(run()) >= 0.1
