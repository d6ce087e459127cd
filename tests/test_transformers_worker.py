"""The transformers worker, for real: a subprocess with the small model, spoken to over HTTP.

The checkpoint's generation_config.json is spoiled first. Were any of it to leak into an answer, greedy
answers would no longer be the model's likeliest tokens, and nearly every test here would fail.
"""

from __future__ import annotations

import http.client
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import evalswap.engines

pytestmark = pytest.mark.e2e

WORKER = Path(evalswap.engines.__file__).parent / "transformers_worker"
BATCH_SIZE = 4
SPOILED = {
    "do_sample": True,
    "temperature": 5.0,
    "repetition_penalty": 1.9,
    "max_new_tokens": 1,
    "eos_token_id": 28,
}
QUESTIONS = [
    "What is 2 + 3?",
    "Name three colours of the rainbow, and say which of them you would paint a house in.",
    "Tom has 5 apples and eats 2. How many are left?\nPlease reason step by step.",
    "Write one sentence about the sea.",
]


class Worker:
    """A running worker process and its address."""

    def __init__(self, python: str, model: Path, *flags: str, through: tuple[str, ...] = ()) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        command = [str(python), str(WORKER), "--model", str(model), "--port", str(self.port), *flags]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        self.process = subprocess.Popen([*through, *command], stderr=subprocess.PIPE, env=environment, text=True)

    def ask(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request(method, path, body if isinstance(body, bytes | None) else json.dumps(body))
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read())
        finally:
            connection.close()

    def wait_for(self, status: int) -> None:
        """Wait until /health answers ``status``."""
        for _ in range(1200):
            try:
                if self.ask("GET", "/health")[0] == status:
                    return
            except OSError:
                assert self.process.poll() is None, self.process.stderr and self.process.stderr.read()
            time.sleep(0.05)
        raise TimeoutError(f"/health never answered {status}")

    def generate(self, input_ids: list[int], order: int = 0, **sampling: Any) -> Any:
        status, answer = self.ask("POST", "/generate", {"input_ids": input_ids, "order": order, "sampling": sampling})
        assert status == 200, answer
        return answer

    def generate_all(self, prompts: list[list[int]], **sampling: Any) -> list[Any]:
        """Ask all at once, shuffled, while the worker is busy: only ``order`` tells which comes first."""
        shuffled = random.sample(range(len(prompts)), len(prompts))
        with ThreadPoolExecutor(len(prompts) + 1) as pool:
            pool.submit(self.generate, [1], -1, max_new_tokens=10, top_k=7)
            time.sleep(0.02)
            futures = {i: pool.submit(self.generate, prompts[i], i, **sampling) for i in shuffled}
            return [futures[i].result() for i in range(len(prompts))]


@pytest.fixture(scope="module")
def worker(transformers_python: str, demo_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    model = tmp_path_factory.mktemp("spoiled")
    for file in Path(demo_model).iterdir():
        (model / file.name).symlink_to(file)
    (model / "generation_config.json").unlink()
    (model / "generation_config.json").write_text(json.dumps(SPOILED))
    worker = Worker(transformers_python, model, "--dtype", "float32", "--batch-size", str(BATCH_SIZE))
    worker.wait_for(200)
    yield worker
    worker.process.kill()
    worker.process.wait()


@pytest.fixture(scope="module")
def tokenizer(demo_model: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(demo_model)


@pytest.fixture(scope="module")
def prompts(tokenizer: Any) -> list[list[int]]:
    """Four prompts of four lengths."""
    ids = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": question}], add_generation_prompt=True, return_dict=False
        )
        for question in QUESTIONS
    ]
    assert len({len(prompt) for prompt in ids}) == len(ids)
    return ids


@pytest.fixture(scope="module")
def greedy(worker: Worker, prompts: list[list[int]]) -> list[list[int]]:
    """What the model answers, one prompt at a time, twelve tokens of it."""
    return [worker.generate(ids, max_new_tokens=12)["token_ids"] for ids in prompts]


def first(tokens: list[int], token: int) -> list[int]:
    return tokens[: tokens.index(token) + 1]


def test_info(worker: Worker) -> None:
    status, info = worker.ask("GET", "/info")
    assert status == 200
    assert {key: info[key] for key in ("engine", "device", "dtype", "batch_size", "model_type")} == {
        "engine": "transformers",
        "device": "cpu",
        "dtype": "float32",
        "batch_size": BATCH_SIZE,
        "model_type": "llama",
    }
    assert info["version"].startswith("5.")
    assert info["torch"]


def test_batched_answers_equal_answers_alone(worker: Worker, prompts: list[list[int]], greedy: list[list[int]]) -> None:
    answers = worker.generate_all(prompts, max_new_tokens=12)
    assert [answer["token_ids"] for answer in answers] == greedy
    assert [answer["prompt_tokens"] for answer in answers] == [len(ids) for ids in prompts]
    assert [answer["batch_size"] for answer in answers] == [4] * 4
    assert [answer["finish_reason"] for answer in answers] == ["length"] * 4
    assert [len(answer["token_ids"]) for answer in answers] == [12] * 4


def test_greedy_answers_are_the_likeliest_tokens(
    worker: Worker, prompts: list[list[int]], greedy: list[list[int]]
) -> None:
    for prompt, answer in zip(prompts, greedy, strict=True):
        body = {"input_ids": prompt + answer, "top": 3, "start": len(prompt)}
        status, scores = worker.ask("POST", "/logprobs", body)
        assert status == 200
        assert scores["start"] == len(prompt)
        assert [entry["top"][0][0] for entry in scores["logprobs"]] == answer
        assert all(entry["top"][0][1] == pytest.approx(entry["logprob"]) for entry in scores["logprobs"])
        assert all(len(entry["top"]) == 3 for entry in scores["logprobs"])


def test_logprobs_of_the_whole_prompt(worker: Worker, prompts: list[list[int]]) -> None:
    status, scores = worker.ask("POST", "/logprobs", {"input_ids": prompts[0], "top": 0, "start": 0})
    assert (status, scores["start"], len(scores["logprobs"])) == (200, 1, len(prompts[0]) - 1)
    assert all(entry["logprob"] < 0 and entry["top"] == [] for entry in scores["logprobs"])


def test_batches_follow_the_order(worker: Worker, prompts: list[list[int]]) -> None:
    answers = worker.generate_all(prompts * 3, max_new_tokens=2)
    batches = [answer["seconds"] for answer in answers]  # the same for all that ran together
    assert len(set(batches)) == 3
    assert all(len(set(batches[start : start + 4])) == 1 for start in (0, 4, 8))


def test_a_partial_batch_goes_soon(worker: Worker, prompts: list[list[int]]) -> None:
    answers = worker.generate_all(prompts[:3], max_new_tokens=1)
    assert [answer["batch_size"] for answer in answers] == [3] * 3


def test_only_equal_sampling_shares_a_batch(worker: Worker, prompts: list[list[int]]) -> None:
    with ThreadPoolExecutor(2) as pool:
        two = pool.submit(worker.generate_all, prompts[:2], max_new_tokens=2)
        three = pool.submit(worker.generate_all, prompts[2:], max_new_tokens=3)
        answers = two.result() + three.result()
    assert [answer["batch_size"] for answer in answers] == [2] * 4
    assert [len(answer["token_ids"]) for answer in answers] == [2, 2, 3, 3]


def test_each_row_ends_at_its_own_stop_id(worker: Worker, prompts: list[list[int]], greedy: list[list[int]]) -> None:
    stops = [greedy[0][2], greedy[1][6]]
    answers = worker.generate_all(prompts, max_new_tokens=12, stop_token_ids=stops)
    for answer, whole in zip(answers, greedy, strict=True):
        expected = min((first(whole, stop) for stop in stops if stop in whole), key=len, default=whole)
        assert answer["token_ids"] == expected
        assert answer["finish_reason"] == ("stop" if expected[-1] in stops else "length")
    assert len(answers[0]["token_ids"]) <= 3


@pytest.mark.parametrize("stop_token_ids", [[], [2]], ids=["strings alone", "with stop ids"])
def test_each_row_ends_with_the_token_that_completes_a_stop_string(
    worker: Worker,
    tokenizer: Any,
    prompts: list[list[int]],
    greedy: list[list[int]],
    stop_token_ids: list[int],
) -> None:
    texts = [tokenizer.decode(ids) for ids in greedy]
    stops = [texts[0][3:11], texts[1][7:19], "never said"]
    answers = worker.generate_all(prompts, max_new_tokens=12, stop=stops, stop_token_ids=stop_token_ids)
    for answer, whole in zip(answers, greedy, strict=True):
        prefixes = [whole[:length] for length in range(1, 13)]
        complete = [ids for ids in prefixes if any(stop in tokenizer.decode(ids) for stop in stops)]
        expected = complete[0] if complete else whole
        assert answer["token_ids"] == expected
        assert answer["finish_reason"] == ("stop" if complete else "length")
    assert [answer["finish_reason"] for answer in answers[:2]] == ["stop", "stop"]


def test_a_stop_string_does_not_reach_back_into_the_prompt(
    worker: Worker, tokenizer: Any, prompts: list[list[int]], greedy: list[list[int]]
) -> None:
    assert tokenizer.decode(prompts[0]).endswith("assistant\n")
    across = "assistant\n" + tokenizer.decode(greedy[0][:1])
    answer = worker.generate(prompts[0], max_new_tokens=4, stop=[across])
    assert (answer["token_ids"], answer["finish_reason"]) == (greedy[0][:4], "length")


def test_min_new_tokens_holds_the_stop_ids_back(
    worker: Worker, prompts: list[list[int]], greedy: list[list[int]]
) -> None:
    stop = greedy[0][0]
    assert worker.generate(prompts[0], max_new_tokens=6, stop_token_ids=[stop])["token_ids"] == [stop]
    held = worker.generate(prompts[0], max_new_tokens=6, min_new_tokens=4, stop_token_ids=[stop])["token_ids"]
    assert len(held) >= 4
    assert stop not in held[:4]


def test_sampling_follows_the_seed(worker: Worker, prompts: list[list[int]]) -> None:
    def draw(seed: int) -> Any:
        return worker.generate(prompts[3], max_new_tokens=6, temperature=1.5, seed=seed)["token_ids"]

    assert draw(1) == draw(1)
    assert draw(1) != draw(2)


def test_sampling_narrowed_to_one_token_is_greedy(
    worker: Worker, prompts: list[list[int]], greedy: list[list[int]]
) -> None:
    for narrow in ({"top_k": 1}, {"top_p": 1e-6}, {"min_p": 1.0}):
        assert worker.generate(prompts[0], max_new_tokens=4, temperature=2, **narrow)["token_ids"] == greedy[0][:4]


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"{not json", "Expecting"),
        ([1, 2], "input_ids"),
        ({"sampling": {"max_new_tokens": 1}}, "input_ids"),
        ({"input_ids": [], "sampling": {"max_new_tokens": 1}}, "input_ids"),
        ({"input_ids": [10**6], "sampling": {"max_new_tokens": 1}}, "input_ids"),
        ({"input_ids": ["1"], "sampling": {"max_new_tokens": 1}}, "input_ids"),
        ({"input_ids": [1]}, "max_new_tokens"),
        ({"input_ids": [1], "sampling": {"max_new_tokens": 1, "beams": 4}}, "unknown sampling fields: beams"),
        ({"input_ids": [1], "sampling": {"max_new_tokens": 0}}, "out of range"),
        ({"input_ids": [1], "sampling": {"max_new_tokens": 1, "temperature": "hot"}}, "out of range"),
        ({"input_ids": [1], "sampling": {"max_new_tokens": 1, "stop": "text"}}, "out of range"),
    ],
)
def test_bad_requests_are_refused_with_a_reason(worker: Worker, body: Any, reason: str) -> None:
    status, answer = worker.ask("POST", "/generate", body)
    assert status == 400
    assert reason in answer["error"]


def test_unknown_paths(worker: Worker) -> None:
    assert worker.ask("GET", "/nothing")[0] == 404
    assert worker.ask("POST", "/v1/completions", {})[0] == 404


def test_an_error_fails_its_own_batch_alone(worker: Worker, prompts: list[list[int]]) -> None:
    sampling = {"max_new_tokens": 1, "stop_token_ids": [2**70]}  # no tensor holds that
    status, answer = worker.ask("POST", "/generate", {"input_ids": prompts[0], "sampling": sampling})
    assert status == 500
    assert answer["error"]
    assert len(worker.generate(prompts[0], max_new_tokens=1)["token_ids"]) == 1


def test_connections_stay_open(worker: Worker) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", worker.port, timeout=60)
    connection.connect()
    sock = connection.sock
    for _ in range(3):
        connection.request("GET", "/health")
        connection.getresponse().read()
    assert connection.sock is sock
    connection.close()


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def within(seconds: float, condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)
    return condition()


def test_no_orphan_is_left_behind(transformers_python: str, demo_model: Path) -> None:
    """Kill the parent, -9, so that it can tell its child nothing."""
    parent = "import subprocess, sys; p = subprocess.Popen(sys.argv[1:]); print(p.pid, file=sys.stderr); p.wait()"
    worker = Worker(transformers_python, demo_model, through=(sys.executable, "-c", parent))
    assert worker.process.stderr
    child = int(worker.process.stderr.readline())
    worker.wait_for(503)  # the port opens before the model is loaded
    worker.process.kill()
    worker.process.wait()
    assert within(5.0, lambda: gone(child))


def test_it_exits_when_told_to(transformers_python: str, demo_model: Path) -> None:
    worker = Worker(transformers_python, demo_model)
    worker.wait_for(503)
    assert worker.ask("POST", "/generate", {})[0] == 503
    worker.process.terminate()
    assert worker.process.wait(timeout=3) != 0


def test_it_exits_when_told_to_while_generating(transformers_python: str, demo_model: Path) -> None:
    worker = Worker(transformers_python, demo_model)
    worker.wait_for(200)
    assert worker.ask("GET", "/info")[1]["dtype"] == "bfloat16"  # the checkpoint's
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(worker.generate, [1, 2, 3], max_new_tokens=1000)
        time.sleep(0.3)
        worker.process.send_signal(signal.SIGINT)
        assert worker.process.wait(timeout=3) != 0
        assert isinstance(asked.exception(), OSError | http.client.HTTPException)


def test_a_model_that_does_not_load_is_named(transformers_python: str, tmp_path: Path) -> None:
    worker = Worker(transformers_python, tmp_path)
    _, errors = worker.process.communicate(timeout=60)
    assert worker.process.returncode == 1
    line = next(line for line in errors.splitlines() if line.startswith("transformers worker: "))
    assert f"could not load {tmp_path}: " in line
    assert "Traceback" not in errors[: errors.index(line)]
    assert "Traceback" in errors
