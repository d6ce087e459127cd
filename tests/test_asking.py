"""How each thing that a server can do wrong ends, on real sockets; and what servers say about their limits."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from email.utils import formatdate
from typing import Any

import pytest
from multidict import CIMultiDict

from evalswap.engines.base import EngineLoad
from evalswap.engines.openai import OpenAICompatible
from evalswap.errors import EngineError
from evalswap.inference.asking import Asker, Timed
from evalswap.inference.client import FinalError, HttpClient, TransientError
from evalswap.inference.endpoints import Endpoint
from evalswap.inference.limits import Bucket, RateLimits, ToldLimits
from evalswap.inference.rate_headers import allowance, duration, retry_after
from evalswap.inference.retrying import RetryPolicy
from evalswap.inference.window import AdaptiveWindow, FixedWindow, LoadWindow
from evalswap.plan import EndpointPlan
from evalswap.records import Failure, Prompt, Request, Sampling


def chat(content: str | None = "4", reason: str | None = "stop") -> bytes:
    choice = {"message": {"content": content}, "finish_reason": reason}
    return json.dumps({"choices": [choice], "usage": {"prompt_tokens": 3, "completion_tokens": 1}}).encode()


def odd_usage(usage: str) -> bytes:
    return b'{"choices": [{"message": {"content": "4"}, "finish_reason": "stop"}], "usage": ' + usage.encode() + b"}"


def http(status: int, body: bytes, *headers: str, kind: str = "application/json") -> bytes:
    head = [f"HTTP/1.1 {status} X", f"Content-Type: {kind}", f"Content-Length: {len(body)}", *headers, "", ""]
    return "\r\n".join(head).encode() + body


def refusal(message: str, code: str = "") -> bytes:
    return json.dumps({"error": {"message": message, "code": code}}).encode()


GOOD = http(200, chat())
HALF = GOOD[: len(GOOD) - 20]
SILENCE = b"never"

TRANSIENT = {
    "dropped before the answer": (b"", "broken"),
    "dropped within the headers": (GOOD[:20], "broken"),
    "dropped within the body": (HALF, "broken"),
    "no answer in time": (SILENCE, "broken"),
    "no HTTP": (b"what?\r\n\r\n", "broken"),
    "500": (http(500, refusal("an accident")), "failed"),
    "408": (http(408, b""), "failed"),
    "502": (http(502, b"<html>bad gateway</html>", kind="text/html"), "unavailable"),
    "503": (http(503, b""), "unavailable"),
    "529": (http(529, refusal("overloaded")), "unavailable"),
    "503 with a wish": (http(503, b"", "Retry-After: 0"), "busy"),
    "429": (http(429, refusal("slow down"), "Retry-After: 0"), "busy"),
    "429 without a wish": (http(429, refusal("slow down")), "busy"),
    "half a JSON": (http(200, chat()[:-9]), "failed"),
    "no JSON": (http(200, b"<html>hello</html>", kind="text/html"), "failed"),
    "an empty body": (http(200, b""), "failed"),
}
MALFORMED = {
    "no choice": http(200, b'{"choices": [], "usage": {}}'),
    "an error within a 200": http(200, refusal("the model fell over")),
    "a list": http(200, b"[]"),
    "no finish reason": http(200, chat(reason=None)),
    "broken off": http(200, chat("ha", "abort")),
    "an error as the reason": http(200, chat("ha", "error")),
    "a text for a number": http(200, odd_usage('{"prompt_tokens_details": {"cached_tokens": "0"}}')),
    "an endless number": http(200, odd_usage('{"completion_tokens": 1e999}')),
    "an absurd usage": http(
        200, b'{"choices": [{"message": {"content": "4"}, "finish_reason": "stop"}], "usage": "?"}'
    ),
}
FINAL = {
    "400": http(400, refusal("this model's maximum context length is 4096 tokens", "context_length_exceeded")),
    "413": http(413, b""),
    "422": http(422, refusal("a bad field")),
    "501": http(501, b""),
    "content policy": http(400, refusal("flagged", "content_policy_violation")),
    "a stream": http(200, b"data: {}\n\ndata: [DONE]\n\n", kind="text/event-stream"),
    "an unknown reason": http(200, chat(reason="tired")),
}
REFUSED = {
    "401": http(401, refusal("wrong key")),
    "402": http(402, refusal("pay")),
    "403": http(403, refusal("not you")),
    "404": http(404, refusal("no such model", "model_not_found")),
    "an empty account": http(429, refusal("you exceeded your quota", "insufficient_quota")),
    "another day": http(429, refusal("daily limit"), "Retry-After: 86400"),
}


@dataclass
class RawServer:
    """Answers each request with the next of its scripted bytes, then with a good answer."""

    script: list[bytes]
    received: list[str] = field(default_factory=list)
    url: str = ""

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                length = next((int(x.split(":")[1]) for x in head.split("\r\n") if "content-length" in x.lower()), 0)
                await reader.readexactly(length)
                self.received.append(head)
                answer = self.script.pop(0) if self.script else GOOD
                if answer is SILENCE:
                    await asyncio.sleep(60)
                writer.write(answer)
                await writer.drain()
                if not answer.startswith(b"HTTP") or answer in (GOOD[:20], HALF):
                    return
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


@asynccontextmanager
async def serving(*script: bytes) -> AsyncIterator[RawServer]:
    server = RawServer(list(script))
    listening = await asyncio.start_server(server.handle, "127.0.0.1", 0)
    server.url = f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}/v1"
    try:
        yield server
    finally:
        listening.close()


def request(row: int) -> Request:
    return Request(str(row), "job", row, Prompt(({"role": "user", "content": "2+2"},), None, None), Sampling(8))


@dataclass
class Ended:
    answers: list[Timed] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    received: int = 0


def ask(*script: bytes, retries: int = 1, timeout: float = 60.0, **options: Any) -> Ended:
    """Ask one request of a server that answers like this."""

    async def main() -> Ended:
        ended = Ended()
        async with serving(*script) as server, HttpClient(server.url, timeout=timeout) as client:
            engine = OpenAICompatible(EndpointPlan((server.url,), "m"))
            policy = RetryPolicy(retries, first_pause=0.01)
            asker = Asker(engine, [Endpoint(client)], window=FixedWindow(2), retry=policy, **options)
            try:
                await asker.ask_all(
                    iter([request(0)]), lambda request, timed: ended.answers.append(timed), ended.failures.append
                )
            finally:
                ended.received = len(server.received)
        return ended

    return asyncio.run(main())


@pytest.mark.parametrize("name", TRANSIENT)
def test_what_may_pass_is_asked_again(name: str) -> None:
    raw, kind = TRANSIENT[name]
    timeout = 2.0 if raw is SILENCE else 60.0

    async def once() -> None:
        async with serving(raw) as server, HttpClient(server.url, timeout=timeout) as client:
            with pytest.raises(TransientError) as caught:
                await client.post("/chat/completions", {})
            assert caught.value.kind == kind

    asyncio.run(once())
    ended = ask(raw, timeout=timeout)
    assert (len(ended.answers), ended.failures, ended.received) == (1, [], 2)
    assert ended.answers[0].attempts == (1 if kind == "busy" else 2)


@pytest.mark.parametrize("name", MALFORMED)
def test_an_answer_that_is_none_is_asked_again_and_then_fails(name: str) -> None:
    assert len(ask(MALFORMED[name]).answers) == 1
    ended = ask(MALFORMED[name], MALFORMED[name])
    assert (len(ended.answers), len(ended.failures), ended.received) == (0, 1, 2)
    assert ended.failures[0].attempts == 2


@pytest.mark.parametrize("name", FINAL)
def test_what_is_final_is_not_asked_again(name: str) -> None:
    ended = ask(FINAL[name])
    assert (len(ended.answers), len(ended.failures), ended.received) == (0, 1, 1)


@pytest.mark.parametrize("name", REFUSED)
def test_what_concerns_all_requests_ends_the_asking(name: str) -> None:
    with pytest.raises(EngineError, match="refuses all requests"):
        ask(*[REFUSED[name]] * 3)


def test_a_filtered_answer_is_an_answer() -> None:
    ended = ask(http(200, chat(None, "content_filter")))
    assert [timed.completion.finish_reason for timed in ended.answers] == ["content_filter"]


def test_a_status_that_the_config_maps_to_a_text_is_an_answer() -> None:
    ended = ask(FINAL["400"], status_texts={400: "refused"})
    assert [timed.completion.text for timed in ended.answers] == ["refused"]


def test_a_failure_has_the_reason_and_no_secret() -> None:
    text = refusal("the key sk-1 is too short")
    ended = ask(http(400, text), redact=lambda text: text.replace("sk-1", "***"))
    assert ended.failures[0].error == "HTTP 400: the key *** is too short"


def test_nobody_there_is_no_attempt_and_one_clear_error() -> None:
    async def main() -> None:
        async with HttpClient("http://127.0.0.1:9/v1", timeout=5, key="sk-secret") as client:
            engine = OpenAICompatible(EndpointPlan((client.base_url,), "m"))
            asker = Asker(engine, [Endpoint(client)], window=FixedWindow(9), patience=0.5)
            with pytest.raises(EngineError, match=r"no answer from http://127.0.0.1:9/v1 for"):
                await asker.ask_all(map(request, range(9)), lambda *_: None, lambda _: None)

    asyncio.run(main())


def test_the_limits_of_a_real_answer_are_heard() -> None:
    spent = ("x-ratelimit-limit-requests: 60", "x-ratelimit-remaining-requests: 0", "x-ratelimit-reset-requests: 30s")

    async def main() -> float:
        async with serving(http(200, chat(), *spent)) as server, HttpClient(server.url, timeout=5) as client:
            engine = OpenAICompatible(EndpointPlan((server.url,), "m"))
            asker = Asker(engine, [Endpoint(client)], window=FixedWindow(1))
            began = time.monotonic()
            await asker.ask_all(map(request, range(2)), lambda *_: None, lambda _: None)
            return time.monotonic() - began

    assert 0.5 <= asyncio.run(main()) < 20  # one of 60 comes back after half a second, all of them after 30


def test_no_cookies_and_the_key_only_as_a_header() -> None:
    async def main() -> list[str]:
        cookie = http(200, chat(), "Set-Cookie: a=b")
        async with serving(cookie) as server, HttpClient(server.url, timeout=5, key="sk-1") as client:
            await client.post("/chat/completions", {})
            await client.post("/chat/completions", {})
            return server.received

    for head in asyncio.run(main()):
        assert "Authorization: Bearer sk-1" in head
        assert "cookie" not in head.lower()


# -- what servers say ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("6m0s", 360.0), ("1.2s", 1.2), ("20ms", 0.02), ("1h2m3s", 3723.0), ("1d", 86400.0), ("90", 90.0), ("0s", 0.0),
     ("", None), ("soon", None), ("6m0x", None), ("-5", None), ("nan", None), ("inf", None)],
)  # fmt: skip
def test_durations(text: str, seconds: float | None) -> None:
    assert duration(text) == seconds


def test_moments_since_1970() -> None:
    assert duration(str(time.time() + 10)) == pytest.approx(10, abs=1)
    assert duration(str((time.time() + 10) * 1000)) == pytest.approx(10, abs=1)
    assert duration("1500000000") == 0.0


def test_retry_after() -> None:
    assert retry_after(CIMultiDict({"retry-after": "7"})) == 7.0
    assert retry_after(CIMultiDict({"Retry-After-Ms": "250", "Retry-After": "1"})) == 0.25
    date = formatdate(time.time() + 30, usegmt=True)
    assert retry_after(CIMultiDict({"Retry-After": date})) == pytest.approx(30, abs=2)
    assert retry_after(CIMultiDict({"Retry-After": formatdate(0, usegmt=True)})) == 0.0
    for nonsense in ({}, {"Retry-After": "soon"}, {"Retry-After": ""}, {"Retry-After": "-1"}):
        assert retry_after(CIMultiDict(nonsense)) is None


def test_allowances() -> None:
    headers = CIMultiDict({"X-RateLimit-Remaining-Tokens": "149984", "X-RateLimit-Reset-Tokens": "6ms"})
    told = allowance(headers, "tokens")
    assert told is not None
    assert (told.remaining, told.limit, told.reset) == (149984, None, 0.006)
    assert allowance(headers, "requests") is None


# -- the small parts ----------------------------------------------------------------------------------


def test_a_bucket_lets_a_burst_through_and_then_its_rate() -> None:
    bucket, starts, now = Bucket(2.0, burst=3), [], 100.0
    for _ in range(7):
        now = max(now, bucket.ready_at())
        bucket.take(now)
        starts.append(now - 100)
    assert starts == pytest.approx([0, 0, 0, 0.5, 1.0, 1.5, 2.0])


def test_requests_of_the_last_minute_are_counted() -> None:
    now = 1000.0
    limits = RateLimits(clock=lambda: now)
    for second in range(200):
        now = 1000.0 + second
        limits.take(now, 0)
        limits.take(now, 0)
    assert limits.last_minute() == 120
    now += 30
    assert limits.last_minute() == 60


def test_tokens_that_were_not_used_are_given_back() -> None:
    limits = RateLimits(tokens_per_minute=600)
    limits.take(0.0, 100)
    assert limits.ready_at() == pytest.approx(10.0)
    limits.settle(100, 10)
    assert limits.ready_at() == pytest.approx(1.0)


def test_pauses_grow_with_full_jitter_and_honour_a_wish() -> None:
    policy = RetryPolicy(first_pause=1.0, longest_pause=8.0)
    for times, longest in ((1, 1.0), (2, 2.0), (4, 8.0), (500, 8.0)):
        drawn = [policy.pause(times) for _ in range(300)]
        assert 0 <= min(drawn) < 0.2 * longest
        assert 0.8 * longest < max(drawn) <= longest
    assert all(5.0 <= policy.pause(9, 5.0) <= 5.5 for _ in range(100))


def test_what_headers_tell_holds_nothing_up_for_hours() -> None:
    told = ToldLimits()
    headers = {"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "24h"}
    told.hear(CIMultiDict(headers), now=100.0, on_the_way=0)
    assert 150.0 <= told.ready_at() <= 160.0
    told.take(160.0, 1)
    assert told.ready_at() <= 220.0


def test_windows_start_where_they_are_told() -> None:
    assert AdaptiveWindow(64).size == AdaptiveWindow.FIRST
    assert AdaptiveWindow(64, 64).size == 64
    assert AdaptiveWindow(4).size == 4
    assert LoadWindow(4096).size == LoadWindow.FIRST
    assert LoadWindow(64).size == 64
    with pytest.raises(ValueError, match="at least one"):
        FixedWindow(0)


def test_a_window_keeps_the_places_that_the_engine_was_started_with() -> None:
    late = EngineLoad(running=200, waiting=312)  # told twice, because the engine counts anew only now and then
    for window, size in ((LoadWindow(768, 512, least=512), 512), (LoadWindow(768, 512), 220)):
        window.loaded(late, 512)
        window.loaded(late, 512)
        assert window.size == size


def test_final_errors_know_whom_they_concern() -> None:
    assert FinalError("no", 401).refuses
    assert not FinalError("no", 400).refuses
