"""Asking the reference about tokens: each place once, never again what is known, and failing without harm."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from served_app import served
from stored_runs import FACTS, SAMPLING
from test_transformers_worker import Worker as RealWorker

from evalswap.comparing.divergence import Logprobs, Question
from evalswap.comparing.forcing import FILE_NAME, TOP, ReferenceLogprobs
from evalswap.comparing.outputs import Side
from evalswap.errors import EngineError
from evalswap.plan import LaunchPlan, ModelPlan, PromptPlan, SamplingPlan

SIDE = Side(Path("run"), "tiny-hf", "gsm8k", "accuracy", None, {}, record={"facts": FACTS})
PLAN = ModelPlan(
    "tiny-hf", "tiny-hf", "transformers", "HuggingFacewithChatTemplate", PromptPlan("chat", (), "tiny"),
    SamplingPlan(), LaunchPlan("tiny", dtype="float32"), None, None, (),
)  # fmt: skip
LIKELY, UNLIKELY = 7, 99
QUESTIONS = [Question(0, (1, 5), 6, LIKELY), Question(1, (1, 5, 6), 3, UNLIKELY)]


class Worker:
    """Stands in for the transformers worker: token t has log-probability -t/100, and UNLIKELY is among no top."""

    def __init__(self) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.dtypes: list[str] = []
        self.running = 0
        self.broken = False
        self.url = ""

    async def logprobs(self, request: web.Request) -> web.Response:
        body = await request.json()
        self.bodies.append(body)
        if self.broken:
            return web.json_response({"error": "out of memory"}, status=400)
        top = [[token, -token / 100] for token in range(body["top"]) if token != UNLIKELY]
        return web.json_response(
            {"start": body["start"], "logprobs": [{"logprob": -body["input_ids"][-1] / 100, "top": top}]}
        )

    # what forcing.py sees of a prepared engine and its server

    identity = "transformers 5"

    def server(self, log: Path, redact: object, say: object) -> Worker:
        return self

    async def start(self) -> None:
        self.running += 1

    async def ready(self) -> None:
        pass

    async def stop(self) -> None:
        self.running -= 1


@pytest.fixture
def worker(monkeypatch: pytest.MonkeyPatch) -> Iterator[Worker]:
    found = Worker()

    def prepare(plan: ModelPlan, launch: LaunchPlan, work: object, python: object) -> Worker:
        found.dtypes.append(launch.dtype)
        return found

    monkeypatch.setattr("evalswap.serving.launching.prepare_engine", prepare)
    with _serving(found):
        yield found


@contextmanager
def _serving(worker: Worker) -> Iterator[None]:
    app = web.Application()
    app.router.add_post("/logprobs", worker.logprobs)
    with served(app) as address:
        worker.url = address
        yield


def _ask(folder: Path, **options: Any) -> Mapping[Question, Logprobs]:
    with ReferenceLogprobs(folder, **options) as asked:
        return asked.logprobs(SIDE, QUESTIONS)


def test_each_place_is_one_prefill_in_the_reference_s_dtype(tmp_path: Path, worker: Worker) -> None:
    found = _ask(tmp_path, plan_of=lambda side: PLAN)
    assert found == {QUESTIONS[0]: Logprobs(-0.06, -0.07), QUESTIONS[1]: Logprobs(-0.03, -0.99)}
    asked = sorted((body["input_ids"], body["start"], body["top"]) for body in worker.bodies)
    # the one that is not among the likeliest costs a second
    assert asked == [([1, 5, 6], 2, TOP), ([1, 5, 6, 3], 3, TOP), ([1, 5, 6, 99], 3, 0)]
    assert worker.dtypes == ["bfloat16"]  # the run's, not the plan's
    assert worker.running == 0


def test_a_repetition_penalty_goes_with_the_question_and_its_answers_are_kept_apart(
    tmp_path: Path, worker: Worker
) -> None:
    _ask(tmp_path, plan_of=lambda side: PLAN)
    assert not any("repetition_penalty" in body for body in worker.bodies)
    worker.bodies.clear()
    sampling = {"gsm8k": {**SAMPLING, "repetition_penalty": 1.1}}
    penalised = Side(
        Path("run"), "tiny-hf", "gsm8k", "accuracy", None, {}, record={"facts": {**FACTS, "sampling": sampling}}
    )
    assert ReferenceLogprobs(tmp_path).logprobs(penalised, QUESTIONS) == {}
    with ReferenceLogprobs(tmp_path, plan_of=lambda side: PLAN) as asked:
        assert len(asked.logprobs(penalised, QUESTIONS)) == 2
    assert [body["repetition_penalty"] for body in worker.bodies] == [1.1] * 3
    assert len(ReferenceLogprobs(tmp_path).logprobs(penalised, QUESTIONS)) == 2


@pytest.mark.e2e
def test_with_a_repetition_penalty_the_likeliest_tokens_are_those_of_the_answer(
    transformers_python: str, demo_model: Path
) -> None:
    prompt = [1, 9690, 198, 2683, 359, 253, 5356, 5646, 11173, 3365, 3511, 308, 34519, 28, 7018, 411, 407, 19712, 2]
    real = RealWorker(transformers_python, demo_model, "--dtype", "float32", "--batch-size", "1")
    try:
        real.wait_for(200)
        answer = real.generate(prompt, max_new_tokens=24, repetition_penalty=1.3)["token_ids"]
        body = {"input_ids": prompt + answer, "start": len(prompt), "top": 1}
        raw, penalised = (
            [place["top"][0][0] for place in real.ask("POST", "/logprobs", {**body, **penalty})[1]["logprobs"]]
            for penalty in ({}, {"repetition_penalty": 1.3})
        )
        refused, _ = real.ask("POST", "/logprobs", {**body, "repetition_penalty": 0})
    finally:
        real.process.kill()
        real.process.wait()
    assert penalised == answer
    assert raw != answer
    assert refused == 400


def test_what_is_known_is_not_asked_again_and_no_engine_is_started(tmp_path: Path, worker: Worker) -> None:
    first = _ask(tmp_path, plan_of=lambda side: PLAN)
    worker.bodies.clear()
    assert _ask(tmp_path, plan_of=lambda side: PLAN) == first
    assert _ask(tmp_path) == first  # also where nothing may be asked
    assert (worker.bodies, worker.dtypes) == ([], ["bfloat16"])


def test_a_reference_in_another_dtype_is_another_worker(tmp_path: Path, worker: Worker) -> None:
    sample = Side(
        Path("run"), "tiny-hf", "gsm8k", "accuracy", None, {}, record={"facts": {**FACTS, "dtype": "float32"}}
    )
    with ReferenceLogprobs(tmp_path, lambda side: PLAN) as asked:
        for side in (sample, SIDE, SIDE):
            assert len(asked.logprobs(side, QUESTIONS)) == 2
            assert worker.running == 1  # never two of them
    assert worker.dtypes == ["float32", "bfloat16"]
    assert worker.running == 0


def test_very_many_places_are_asked_in_parts(tmp_path: Path, worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("evalswap.comparing.forcing.MOST_ASKED", 1)
    said: list[str] = []
    assert list(_ask(tmp_path, plan_of=lambda side: PLAN, say=said.append)) == QUESTIONS[:1]
    assert "the first 1 of 2 places" in said[-1]
    assert len(_ask(tmp_path, plan_of=lambda side: PLAN)) == 2


def test_a_file_that_was_cut_off_costs_only_what_is_lost(tmp_path: Path, worker: Worker) -> None:
    first = _ask(tmp_path, plan_of=lambda side: PLAN)
    file = tmp_path / FILE_NAME
    lines = file.read_text().splitlines()
    file.write_text(lines[0] + "\n" + lines[1][:20])
    worker.bodies.clear()
    assert len(_ask(tmp_path)) == 1
    assert _ask(tmp_path, plan_of=lambda side: PLAN) == first
    assert 1 <= len(worker.bodies) <= 2


def test_another_model_s_answers_are_not_taken(tmp_path: Path, worker: Worker) -> None:
    _ask(tmp_path, plan_of=lambda side: PLAN)
    other = Side(Path("run"), "tiny-hf", "gsm8k", "accuracy", None, {}, record={"facts": {**FACTS, "model": "other"}})
    assert ReferenceLogprobs(tmp_path).logprobs(other, QUESTIONS) == {}


@pytest.mark.parametrize("plan", [None, PLAN])
def test_a_reference_that_cannot_be_asked_is_said_and_harms_nothing(
    tmp_path: Path, worker: Worker, plan: ModelPlan | None
) -> None:
    worker.broken = True
    said: list[str] = []
    assert _ask(tmp_path, plan_of=lambda side: plan, say=said.append) == {}
    assert "cannot be asked" in said[-1]
    assert worker.running == 0


def test_an_engine_that_is_missing_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def prepare(*_: object) -> None:
        raise EngineError("transformers is not installed")

    monkeypatch.setattr("evalswap.serving.launching.prepare_engine", prepare)
    said: list[str] = []
    assert _ask(tmp_path, plan_of=lambda side: PLAN, say=said.append) == {}
    assert "transformers is not installed" in said[-1]


def test_nothing_is_asked_unless_allowed(tmp_path: Path, worker: Worker) -> None:
    assert _ask(tmp_path) == {}
    assert worker.bodies == []
    assert not (tmp_path / FILE_NAME).exists()


def test_the_file_says_what_a_reader_needs(tmp_path: Path, worker: Worker) -> None:
    _ask(tmp_path, plan_of=lambda side: PLAN)
    for line in (tmp_path / FILE_NAME).read_text().splitlines():
        assert set(json.loads(line)) == {"key", "reference", "other"}
