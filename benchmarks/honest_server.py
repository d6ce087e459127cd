"""An OpenAI-compatible server with a known floor, for benchmarks/asking.py.

    python benchmarks/honest_server.py ROWS.jsonl --mode fixed --slots 64 [--faults 0.05] [--poison 7]

It answers chat completions about the rows of a GSM8K file, 64 at a time like an engine with 64 slots; what comes
beyond them waits in its queue. How long a row takes is fixed beforehand and never depends on who asks:

zero              no time, no slots
fixed             200 ms
lognormal         mean 1 s, longest about 7.4 s, dealt out to the rows at random (seeded)
lognormal-prompt  the same times, the longest question takes longest
lognormal-answer  the same times, the longest published solution takes longest: what a client cannot see

With ``--faults 0.05`` one row in twenty meets, at its first attempt, a 429 with Retry-After 1, a 500 or a dropped
connection. A poisoned row always gets a 500. About 70% of the answers are right, and which ones is fixed too.
With ``--tokenizer tokenizer.json`` it takes token ids, too, and gives ids. ``GET /stats`` tells what was received.
HTTP/1.1 is parsed here by hand, so that the server is never what is measured.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import random
import statistics
import sys
import time
from collections import Counter, deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FIXED = 0.2  # seconds
SIGMA = 0.66  # of the lognormal: mean 1 s and, over 1319 rows, 7.4 s at most
MODES = ("zero", "fixed", "lognormal", "lognormal-prompt", "lognormal-answer")
FAULTS = ("429", "500", "drop")
SEED = 20261122
PROBE = 3  # a prompt of so few token ids is about no row


@dataclass
class Row:
    """What the server knows about one question."""

    number: int
    text: str  # its answer, right or wrong
    right: bool
    seconds: float
    fault: str | None
    attempts: int = 0
    answered: float | None = None  # when its last answer left, time.time()


def make_rows(path: Path, mode: str, faults: float) -> dict[str, Row]:
    """Return the rows by question."""
    with path.open(encoding="utf-8") as lines:
        data = [json.loads(line) for line in lines]
    chance = random.Random(SEED)
    seconds = latencies(data, mode)
    rows = {}
    for number, entry in enumerate(data):
        gold = entry["answer"].split("#### ")[-1].replace(",", "").strip()
        right = chance.random() < 0.7
        said = gold if right else f"{gold}1"
        fault = chance.choice(FAULTS) if chance.random() < faults else None
        text = f"Step by step it comes to \\boxed{{{said}}}."
        rows[entry["question"]] = Row(number, text, right, seconds[number], fault)
    return rows


def latencies(data: list[dict[str, str]], mode: str) -> list[float]:
    """Return each row's seconds in the engine."""
    count = len(data)
    if mode == "zero":
        return [0.0] * count
    if mode == "fixed":
        return [FIXED] * count
    normal = statistics.NormalDist()
    times = [math.exp(SIGMA * normal.inv_cdf((i + 0.5) / count) - SIGMA**2 / 2) for i in range(count)]
    order = list(range(count))
    random.Random(SEED + 1).shuffle(order)
    if mode != "lognormal":
        column = "question" if mode == "lognormal-prompt" else "answer"
        order.sort(key=lambda number: len(data[number][column]))
    seconds = [0.0] * count
    for rank, number in enumerate(order):
        seconds[number] = times[rank]
    return seconds


class Server:
    """The slots, the queue before them, and what was counted."""

    def __init__(self, rows: dict[str, Row], slots: int, poison: int | None, tokenizer: Any = None) -> None:
        self.rows = rows
        self.tokenizer = tokenizer
        self.free = slots
        self.queue: deque[tuple[Row, Connection]] = deque()
        self.poison = poison
        self.loop = asyncio.get_running_loop()
        self.counts: Counter[str] = Counter()
        self.in_flight = self.most_in_flight = 0
        self.first: float | None = None  # time.time() of the first question
        self.last: float | None = None  # … and of the last answer

    def ask(self, connection: Connection, question: str) -> None:
        row = self.rows.get(question)
        if row is None:
            connection.send(400, {"error": {"message": "a question that is not in the file"}})
            return
        row.attempts += 1
        self.counts["received"] += 1
        self.first = self.first or time.time()
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        if (row.attempts == 1 and row.fault == "429") or not row.seconds:
            self.finish(row, connection)
        elif self.free:
            self.start(row, connection)
        else:
            self.queue.append((row, connection))

    def start(self, row: Row, connection: Connection) -> None:
        self.free -= 1
        self.loop.call_later(row.seconds, self.leave_slot, row, connection)

    def leave_slot(self, row: Row, connection: Connection) -> None:
        self.free += 1
        self.finish(row, connection)
        while self.queue and self.free:
            self.start(*self.queue.popleft())

    def finish(self, row: Row, connection: Connection) -> None:
        self.in_flight -= 1
        if row.number == self.poison:
            self.counts["poisoned"] += 1
            connection.send(500, {"error": {"message": "this prompt always fails"}})
        elif row.attempts == 1 and row.fault == "429":
            self.counts["429"] += 1
            connection.send(429, {"error": {"message": "slow down"}}, "Retry-After: 1\r\n")
        elif row.attempts == 1 and row.fault == "500":
            self.counts["500"] += 1
            connection.send(500, {"error": {"message": "an accident"}})
        elif row.attempts == 1 and row.fault == "drop":
            self.counts["drop"] += 1
            connection.drop()
        elif not connection.alive:
            self.counts["abandoned"] += 1
        else:
            if row.answered is not None:
                self.counts["answered again"] += 1
            row.answered = self.last = time.time()
            self.counts["answered"] += 1
            connection.send(200, self.by_ids(row) if connection.by_ids else by_messages(row))

    def by_ids(self, row: Row) -> dict[str, Any]:
        """Return a completion with token ids."""
        ids = self.tokenizer.encode(row.text, add_special_tokens=False).ids
        choice = {"index": 0, "text": row.text, "token_ids": ids, "finish_reason": "stop"}
        usage = {"prompt_tokens": 100, "completion_tokens": len(ids), "total_tokens": 100 + len(ids)}
        return {"id": f"row-{row.number}", "model": "honest", "choices": [choice], "usage": usage}

    def stats(self) -> dict[str, Any]:
        return {
            **self.counts,
            "rows": len(self.rows),
            "right": sum(row.right for row in self.rows.values()),
            "asked": sum(row.attempts > 0 for row in self.rows.values()),
            "most_in_flight": self.most_in_flight,
            "first": self.first,
            "last": self.last,
            "busy_seconds": sum(row.seconds for row in self.rows.values()),
        }

    def finished_before(self, moment: float) -> list[str]:
        """Return the questions whose answer had left by then."""
        return [q for q, row in self.rows.items() if row.answered is not None and row.answered <= moment]


def by_messages(row: Row) -> dict[str, Any]:
    """Return a chat completion."""
    return {
        "id": f"row-{row.number}",
        "object": "chat.completion",
        "model": "honest",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": row.text}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 100, "completion_tokens": 20, "total_tokens": 120},
    }


class Connection(asyncio.Protocol):
    """One keep-alive connection; one request at a time on it."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.buffer = b""
        self.alive = False
        self.by_ids = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: Any = transport
        self.alive = True

    def connection_lost(self, error: Exception | None) -> None:
        self.alive = False

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        end = self.buffer.find(b"\r\n\r\n")
        if end < 0:
            return
        head = self.buffer[:end].lower()
        place = head.find(b"content-length:")
        length = int(head[place + 15 :].split(b"\r\n", 1)[0]) if place >= 0 else 0
        if len(self.buffer) < end + 4 + length:
            return
        path = self.buffer.split(b" ", 2)[1].partition(b"?")
        body = self.buffer[end + 4 : end + 4 + length]
        self.buffer = self.buffer[end + 4 + length :]
        self.answer(path[0].decode(), path[2].decode(), body)

    def answer(self, path: str, query: str, body: bytes) -> None:
        if path.endswith("/chat/completions"):
            content = json.loads(body)["messages"][-1]["content"]
            self.server.ask(self, content.rsplit("\nPlease reason", 1)[0])
        elif path.endswith("/completions") and self.server.tokenizer is not None:
            self.by_ids, ids = True, json.loads(body)["prompt"]
            if len(ids) <= PROBE:  # only whether ids are understood
                choice = {"index": 0, "text": "", "token_ids": ids[:1], "finish_reason": "length"}
                self.send(200, {"choices": [choice], "usage": {"prompt_tokens": len(ids), "completion_tokens": 1}})
            else:
                self.server.ask(self, self.server.tokenizer.decode(ids).rsplit("\nPlease reason", 1)[0])
        elif path == "/stats":
            self.send(200, self.server.stats())
        elif path == "/finished":  # ?MOMENT
            self.send(200, self.server.finished_before(float(query)))
        elif path == "/right":  # ?NUMBER: is that row's answer right?
            self.send(200, next(int(row.right) for row in self.server.rows.values() if row.number == int(query)))
        elif path == "/again":  # somebody else asks from now on
            self.server.first = None
            self.send(200, {})
        elif path == "/attempts":
            self.send(200, {question: row.attempts for question, row in self.server.rows.items()})
        elif path.endswith("/models"):
            self.send(200, {"object": "list", "data": [{"id": "honest", "object": "model", "owned_by": "vllm"}]})
        else:
            self.send(404, {"error": {"message": f"no {path} here"}})

    def send(self, status: int, body: Any, headers: str = "") -> None:
        if not self.alive:
            return
        data = json.dumps(body).encode()
        head = f"HTTP/1.1 {status} X\r\nContent-Type: application/json\r\n{headers}Content-Length: {len(data)}\r\n\r\n"
        self.transport.write(head.encode() + data)

    def drop(self) -> None:
        if self.alive:
            self.transport.abort()


async def main() -> None:
    parser = argparse.ArgumentParser(description="A chat server with a known floor.")
    parser.add_argument("rows", type=Path)
    parser.add_argument("--mode", choices=MODES, default="fixed")
    parser.add_argument("--slots", type=int, default=64)
    parser.add_argument("--faults", type=float, default=0.0)
    parser.add_argument("--poison", type=int)
    parser.add_argument("--tokenizer", type=Path)
    arguments = parser.parse_args()
    tokenizer = None
    if arguments.tokenizer:
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(str(arguments.tokenizer))
    rows = make_rows(arguments.rows, arguments.mode, arguments.faults)
    server = Server(rows, arguments.slots, arguments.poison, tokenizer)
    loop = asyncio.get_running_loop()
    listening = await loop.create_server(lambda: Connection(server), "127.0.0.1", 0, backlog=2048)
    print(listening.sockets[0].getsockname()[1], flush=True)
    await loop.run_in_executor(None, sys.stdin.read)  # until the benchmark is done, or gone


if __name__ == "__main__":
    asyncio.run(main())
