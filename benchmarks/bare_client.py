"""The floor of benchmarks/asking.py: the least that asks every question and reads every answer.

    python benchmarks/bare_client.py ROWS.jsonl http://127.0.0.1:PORT/v1 --in-flight 64

Prints the seconds from the first request to the last answer; the interpreter's start and the reading of the file are
not in them, and nothing is stored or scored.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from collections.abc import Iterator
from pathlib import Path

import aiohttp

PROMPT = "{}\nPlease reason step by step, and put your final answer within \\boxed{{}}."
MOST_ATTEMPTS = 4


async def main() -> None:
    parser = argparse.ArgumentParser(description="A bare asynchronous client.")
    parser.add_argument("rows", type=Path)
    parser.add_argument("base_url")
    parser.add_argument("--in-flight", type=int, default=64)
    arguments = parser.parse_args()
    with arguments.rows.open(encoding="utf-8") as lines:
        questions = iter([json.loads(line)["question"] for line in lines])
    url = f"{arguments.base_url}/chat/completions"
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        began = time.perf_counter()
        await asyncio.gather(*(ask(session, url, questions) for _ in range(arguments.in_flight)))
        print(time.perf_counter() - began)


async def ask(session: aiohttp.ClientSession, url: str, questions: Iterator[str]) -> None:
    """Ask one question after another, each until it is answered."""
    for question in questions:
        message = {"role": "user", "content": PROMPT.format(question)}
        body = json.dumps({"model": "honest", "messages": [message], "max_tokens": 512, "temperature": 0.0}).encode()
        for attempt in range(MOST_ATTEMPTS):
            try:
                async with session.post(url, data=body, headers={"Content-Type": "application/json"}) as answer:
                    content = await answer.read()
                    if answer.status == 200:
                        json.loads(content)["choices"][0]["message"]["content"]
                        break
                    wait = float(answer.headers.get("Retry-After", 0.5 * 2**attempt))
            except aiohttp.ClientError:
                wait = 0.5 * 2**attempt
            if attempt + 1 < MOST_ATTEMPTS:
                await asyncio.sleep(wait)


if __name__ == "__main__":
    asyncio.run(main())
