"""A server that speaks the OpenAI protocol and misbehaves on demand: for faults that no real one shows at will.

It knows the demo questions and answers them rightly, so scores are exact.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from aiohttp import web
from served_app import served

from evalswap.benchmarks.gsm8k import DEMO_PATH, load

Fault = Callable[[web.Request, str, int], "web.StreamResponse | None"]


def gold_answers() -> dict[str, str]:
    return {row["question"]: row["answer"].split("#### ")[1].replace(",", "") for row in load(DEMO_PATH).rows}


@dataclass
class FakeServer:
    """``fault(request, question, attempt)`` may answer instead; attempts of a question count from 1."""

    fault: Fault | None = None
    latency: float = 0.0
    places: int | None = None  # what comes beyond them is refused with a 429
    refused: int = 0
    asked: Counter[str] = field(default_factory=Counter)  # question -> requests received
    bodies: list[dict[str, object]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    in_flight: int = 0
    most_in_flight: int = 0
    url: str = ""

    def __post_init__(self) -> None:
        self._gold = gold_answers()

    async def models(self, request: web.Request) -> web.Response:
        return web.json_response({"data": [{"id": "demo", "owned_by": "fake", "root": "demo"}]})

    async def completions(self, request: web.Request) -> web.Response:
        return web.json_response({"error": {"message": "chat only"}}, status=404)

    async def chat(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        if self.places is not None and self.in_flight >= self.places:
            self.refused += 1
            return error(429, headers={"Retry-After": "0.1"})
        question = body["messages"][-1]["content"].split("\n")[0]
        self.asked[question] += 1
        self.bodies.append(body)
        self.headers.append(dict(request.headers))
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            await asyncio.sleep(self.latency)
            if self.fault is not None:
                answer = self.fault(request, question, self.asked[question])
                if answer is not None:
                    return answer
            return completion(f"So the answer is \\boxed{{{self._gold.get(question, 0)}}}.")
        finally:
            self.in_flight -= 1


def completion(text: str, finish_reason: str = "stop") -> web.Response:
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish_reason}
    return web.json_response({"choices": [choice], "usage": {"prompt_tokens": 30, "completion_tokens": 10}})


def hang_up(request: web.Request) -> web.Response:
    """Drop the connection without a word."""
    if request.transport is not None:
        request.transport.abort()
    return web.Response()


@contextmanager
def serving(server: FakeServer) -> Iterator[FakeServer]:
    """Run a fake server on a free loopback port, in a thread of its own."""
    app = web.Application()
    app.router.add_get("/v1/models", server.models)
    app.router.add_post("/v1/completions", server.completions)
    app.router.add_post("/v1/chat/completions", server.chat)
    with served(app) as address:
        server.url = f"{address}/v1"
        yield server


def error(status: int, message: str = "overloaded", headers: dict[str, str] | None = None) -> web.Response:
    return web.Response(
        status=status,
        text=json.dumps({"error": {"message": message}}),
        headers=headers,
        content_type="application/json",
    )
