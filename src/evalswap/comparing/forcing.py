"""What the reference thinks of two tokens at the place where outputs part: teacher forcing, one prefill for each row.

The transformers worker is asked (``/logprobs``), in the reference's dtype: it is started when the first question
comes that nobody asked before, and stopped at the end. Answers are kept in the work folder, so that the next
comparison of the same outputs asks nothing.
"""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from evalswap.comparing.divergence import Logprobs, Question
from evalswap.comparing.outputs import Side
from evalswap.errors import EvalswapError, StoreError
from evalswap.file_names import file_name
from evalswap.plan import ModelPlan
from evalswap.store import pack_ids

FILE_NAME = "logprobs.jsonl"
WINDOW = 8  # requests in flight: the worker does one prefill after the other
TOP = 20  # likeliest tokens asked for at once; another token costs a second prefill
MOST_ASKED = 2000  # places at once; the next comparison asks the next ones
ANSWER_DEADLINE = 600.0  # seconds
PLAIN_LINE = 10.0  # seconds between two lines on how far it is

PlanOf = Callable[[Side], "ModelPlan | None"]


class ReferenceLogprobs:
    """Answers from the file, and from a worker where asking is allowed.

    Args:
        folder: the work folder that keeps the answers.
        plan_of: a side → its model on transformers, or None where that cannot be had. None: nothing is asked.
        say: tells the user what takes time.
        redact: masks secrets in the worker's log.
    """

    def __init__(
        self,
        folder: Path,
        plan_of: PlanOf | None = None,
        *,
        say: Callable[[str], None] = lambda text: None,
        redact: Callable[[str], str] = str,
        python: str | None = None,
    ) -> None:
        self._file = folder / FILE_NAME
        self._plan_of = plan_of
        self._say = say
        self._redact = redact
        self._python = python
        self._known = _read(self._file)
        self._worker: Any = None  # one at a time: two may not fit into memory
        self._of: tuple[str, str] | None = None  # the model and dtype that it serves

    def __enter__(self) -> ReferenceLogprobs:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._worker is not None:
            asyncio.run(self._worker.stop())

    def logprobs(self, reference: Side, questions: Sequence[Question]) -> Mapping[Question, Logprobs]:
        """Return what is known or can be asked. A worker that fails is said, and leaves its questions open."""
        if self._plan_of is None and not self._known:
            return {}
        keys = {question: _key(reference, question) for question in questions}
        missing = [question for question in questions if keys[question] not in self._known]
        if missing and self._plan_of is not None:
            try:
                self._ask(reference, missing, keys)
            except EvalswapError as error:
                self._say(f"the reference cannot be asked about differing tokens: {error.message}")
        return {question: self._known[key] for question, key in keys.items() if key in self._known}

    def _ask(self, reference: Side, questions: Sequence[Question], keys: Mapping[Question, str]) -> None:
        assert self._plan_of is not None
        plan = self._plan_of(reference)
        if plan is None or plan.launch is None:
            self._say(
                f"{reference.model} cannot be asked about differing tokens: no transformers model is known for it"
            )
            return
        asyncio.run(self._ask_worker(reference, plan, questions, keys))

    async def _ask_worker(
        self, reference: Side, plan: ModelPlan, questions: Sequence[Question], keys: Mapping[Question, str]
    ) -> None:
        from evalswap.inference.client import HttpClient

        server = await self._server(reference, plan)
        asked = questions[:MOST_ASKED]
        some = f"the first {len(asked)} of " if len(asked) < len(questions) else ""
        self._say(f"asking the reference about {some}{len(questions)} places where outputs part …")
        penalty = _penalty(reference)
        free = asyncio.Semaphore(WINDOW)
        done, told = 0, time.monotonic()

        async with HttpClient(server.url, timeout=ANSWER_DEADLINE) as client:

            async def one(question: Question) -> None:
                nonlocal done, told
                async with free:
                    self._keep(keys[question], await _forced(client, question, penalty))
                done += 1
                if time.monotonic() - told > PLAIN_LINE:
                    told = time.monotonic()
                    self._say(f"{done} of {len(asked)} places")

            await asyncio.gather(*map(one, asked))

    async def _server(self, reference: Side, plan: ModelPlan) -> Any:
        from evalswap.serving.launching import Workload, prepare_engine

        assert plan.launch is not None
        dtype = str(reference.facts.get("dtype") or plan.launch.dtype)
        if self._of == (reference.model, dtype):
            return self._worker
        if self._worker is not None:
            await self._worker.stop()
        launch = dataclasses.replace(plan.launch, dtype=dtype)
        prepared = await asyncio.to_thread(prepare_engine, plan, launch, Workload(1), self._python)
        log = self._file.parent / "logs" / f"logprobs_{file_name(reference.model)}.log"
        self._worker, self._of = prepared.server(log, self._redact, self._say), (reference.model, dtype)
        self._say(f"starting {prepared.identity} to look at differing tokens … (log: {log})")
        await self._worker.start()
        await self._worker.ready()
        return self._worker

    def _keep(self, key: str, found: Logprobs) -> None:
        self._known[key] = found
        line = json.dumps({"key": key, "reference": found.reference, "other": found.other})
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            with self._file.open("a", encoding="utf-8") as stream:
                stream.write(line + "\n")
        except OSError as error:
            raise StoreError(f"{self._file}: {error.strerror or error}", "free disk space") from error


async def _forced(client: Any, question: Question, penalty: float) -> Logprobs:
    """Ask for both tokens after the same ids: the reference's as the last of them, the other's among the likeliest."""

    async def ask(token: int, top: int) -> dict[str, Any]:
        body = {"input_ids": [*question.before, token], "start": len(question.before), "top": top}
        if penalty != 1:
            body["repetition_penalty"] = penalty
        answer = await client.post("/logprobs", body)
        return dict(answer["logprobs"][0])

    first = await ask(question.reference_token, TOP)
    likeliest = {int(token): float(value) for token, value in first["top"]}
    other = likeliest.get(question.other_token)
    if other is None:
        other = float((await ask(question.other_token, 0))["logprob"])
    return Logprobs(float(first["logprob"]), other)


def _penalty(reference: Side) -> float:
    """Return the repetition penalty: the reference chose its tokens from what it leaves of their probabilities."""
    return float(reference.sampling.get("repetition_penalty") or 1.0)


def _key(reference: Side, question: Question) -> str:
    """Return a hash of what decides the answer: the model, how it computes, the repetition penalty, the ids."""
    facts, penalty = reference.facts, _penalty(reference)
    source = {name: facts.get(name) for name in ("model", "dtype", "device", "peft_path", "model_kwargs")}
    if penalty != 1:  # keys without one stay what they were before it was asked for
        source["repetition_penalty"] = penalty
    digest = hashlib.sha256(json.dumps(source, sort_keys=True, default=str).encode())
    digest.update(pack_ids((*question.before, question.reference_token, question.other_token)))
    return digest.hexdigest()


def _read(file: Path) -> dict[str, Logprobs]:
    """Return the kept answers; a line that was cut off by a full disk or a kill is left out."""
    found: dict[str, Logprobs] = {}
    try:
        lines = file.read_text(encoding="utf-8").split("\n")
    except FileNotFoundError:
        return found
    except (OSError, UnicodeDecodeError) as error:
        raise StoreError(f"{file}: not readable: {error}", "delete it: it only saves asking again") from error
    for line in lines:
        try:
            entry = json.loads(line)
            found[str(entry["key"])] = Logprobs(float(entry["reference"]), float(entry["other"]))
        except (ValueError, KeyError, TypeError):
            continue
    return found
