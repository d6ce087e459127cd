"""Whole runs of the command against an OpenAI-compatible server: answers, faults, resuming, secrets."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from aiohttp import web
from fake_openai import FakeServer, completion, error, gold_answers, hang_up, serving

from evalswap.store import Store

QUESTIONS = 64
CONFIG = """
from mmengine.config import read_base
from opencompass.models import OpenAISDK

with read_base():
    from .datasets.demo.demo_gen import demo_datasets as datasets

models = [dict(
    type=OpenAISDK, abbr='demo-api', path='demo ', openai_api_base='{url}', key='{key}', retry={retry},
    query_per_second=None, batch_size={window}, max_out_len=64, max_seq_len=4096, temperature=0.01,
    rpm_verbose=True,
    meta_template=dict(round=[dict(role='HUMAN', api_role='HUMAN'), dict(role='BOT', api_role='BOT', generate=True)],
                       reserved_roles=[dict(role='SYSTEM', api_role='SYSTEM')]),
)]
"""


class Command:
    """Runs evalswap as a user would, in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.work = folder / "work"

    def config(self, server: FakeServer, *, key: str = "EMPTY", retry: int = 3, window: int = 16) -> Path:
        path = self.folder / "eval.py"
        path.write_text(CONFIG.format(url=server.url, key=key, retry=retry, window=window))
        return path

    def start(self, *arguments: str | Path) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "evalswap", *map(str, arguments)],
            cwd=self.folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            env={**os.environ, "COLUMNS": "200"},
        )  # fmt: skip

    def __call__(self, *arguments: str | Path) -> tuple[int, str]:
        process = self.start(*arguments)
        output, _ = process.communicate(timeout=120)
        assert "Traceback" not in output, output
        return process.returncode, output

    def run(self, config: Path, *arguments: str | Path) -> tuple[int, str]:
        return self("run", config, "-w", self.work, *arguments)

    def folders(self) -> list[Path]:
        return sorted(self.work.glob("2*"))

    def result(self) -> dict[str, object]:
        return json.loads((self.folders()[-1] / "results/demo-api/demo.json").read_text())

    def manifest(self) -> dict[str, object]:
        return json.loads((self.folders()[-1] / "run.json").read_text())


@pytest.fixture
def command(tmp_path: Path) -> Command:
    return Command(tmp_path)


def test_everything_is_asked_once_scored_and_filed(command: Command) -> None:
    with serving(FakeServer(latency=0.02)) as server:
        code, output = command.run(command.config(server, window=8))
    assert code == 0
    assert "100.00" in output
    assert set(server.asked.values()) == {1}
    assert len(server.asked) == QUESTIONS
    assert 2 <= server.most_in_flight <= 8
    body = server.bodies[0]
    assert body["model"] == "demo"  # the trailing space of the config is gone
    assert (body["temperature"], body["max_tokens"]) == (0.01, 128)  # the dataset's length wins
    assert [message["role"] for message in body["messages"]] == ["user"]
    folder = command.folders()[0]
    predictions = json.loads((folder / "predictions/demo-api/demo.json").read_text())
    assert list(predictions) == [str(i) for i in range(QUESTIONS)]
    assert set(predictions["0"]) == {"origin_prompt", "prediction", "gold"}
    assert command.result()["accuracy"] == 100.0
    assert {p.suffix for p in (folder / "summary").iterdir()} == {".txt", ".csv", ".md"}
    assert list((folder / "configs").glob("*.py"))
    assert command.manifest()["status"] == "complete"
    header = next((folder / "summary").glob("*.csv")).read_text().splitlines()[0]
    assert header == "dataset,version,metric,mode,demo-api"


def test_a_second_run_asks_nothing(command: Command) -> None:
    with serving(FakeServer()) as server:
        config = command.config(server)
        assert command.run(config)[0] == 0
        code, output = command.run(config)
        assert code == 0
        assert f"{QUESTIONS} from the store" in output or "100.00" in output
        assert sum(server.asked.values()) == QUESTIONS
    assert len(command.folders()) == 2


def test_the_store_does_not_mix_up_other_sampling(command: Command) -> None:
    with serving(FakeServer()) as server:
        config = command.config(server)
        command.run(config, "--limit", "3")
        config.write_text(config.read_text().replace("temperature=0.01", "temperature=0.5"))
        command.run(config, "--limit", "3")
    assert sum(server.asked.values()) == 6


def once(status: int, headers: dict[str, str] | None = None) -> Callable[..., web.StreamResponse | None]:
    return lambda request, question, attempt: error(status, headers=headers) if attempt == 1 else None


def _invalid_json_first(request: web.Request, question: str, attempt: int) -> web.StreamResponse | None:
    return web.Response(text='{"choices": [{"mess', content_type="application/json") if attempt == 1 else None


def _no_choice_first(request: web.Request, question: str, attempt: int) -> web.StreamResponse | None:
    return web.json_response({"choices": []}) if attempt == 1 else None


def _hang_up_first(request: web.Request, question: str, attempt: int) -> web.StreamResponse | None:
    return hang_up(request) if attempt == 1 else None


def _broken_off_first(request: web.Request, question: str, attempt: int) -> web.StreamResponse | None:
    return completion("half", finish_reason="error") if attempt == 1 else None


@pytest.mark.parametrize(
    "fault",
    [once(500), once(429, {"Retry-After": "0.05"}), _hang_up_first, _invalid_json_first, _no_choice_first,
     _broken_off_first],
)  # fmt: skip
def test_passing_faults_cost_nothing(command: Command, fault: Callable[..., web.StreamResponse | None]) -> None:
    with serving(FakeServer(fault=fault)) as server:
        code, output = command.run(command.config(server), "--limit", "6")
    assert code == 0, output
    assert set(server.asked.values()) == {2}
    assert command.result()["accuracy"] == 100.0


@pytest.mark.parametrize(("status", "tries"), [(500, 2), (400, 1)])
def test_one_dead_question_makes_the_score_partial(command: Command, status: int, tries: int) -> None:
    row, bad = 7, list(gold_answers())[7]

    def fault(request: web.Request, question: str, attempt: int) -> web.StreamResponse | None:
        return error(status, "no such luck") if question == bad else None

    with serving(FakeServer(fault=fault)) as server:
        config = command.config(server, retry=1)
        code, output = command.run(config)
        assert code == 1
        assert server.asked[bad] == tries
        assert sum(server.asked.values()) == QUESTIONS - 1 + tries
        assert f"partial: {QUESTIONS - 1} of {QUESTIONS}" in output
        assert "no such luck" in output
        result = command.result()
        assert result["partial"] is True
        assert result["unanswered_rows"] == [row]
        assert command.manifest()["status"] == "partial"
        # mended, the next run asks that question alone
        server.fault = None
        server.asked.clear()
        code, output = command.run(config)
        assert code == 0
        assert dict(server.asked) == {bad: 1}
    assert "partial" not in command.result()


@pytest.mark.parametrize(
    ("content", "tokens"), [(["a", "list"], 10), (3, 10), ("fine", 10**30), ("fine", -1)], ids=repr
)
def test_an_answer_that_is_none_fails_its_own_question_alone(command: Command, content: object, tokens: int) -> None:
    bad = list(gold_answers())[7]

    def fault(request: web.Request, question: str, attempt: int) -> web.StreamResponse | None:
        choice = {"index": 0, "message": {"role": "assistant", "content": content}, "finish_reason": "stop"}
        answer = {"choices": [choice], "usage": {"prompt_tokens": 30, "completion_tokens": tokens}}
        return web.json_response(answer) if question == bad else None

    with serving(FakeServer(fault=fault)) as server:
        code, output = command.run(command.config(server, retry=1))
    assert code == 1
    assert f"partial: {QUESTIONS - 1} of {QUESTIONS}" in output
    assert "Traceback" not in output
    assert command.result()["unanswered_rows"] == [7]
    assert server.asked[bad] == 2


def test_a_status_that_the_config_maps_to_a_text_is_an_answer(command: Command) -> None:
    with serving(FakeServer(fault=lambda r, q, a: error(451))) as server:
        config = command.config(server)
        config.write_text(config.read_text().replace("retry=3", "retry=3, status_code_mappings={451: 'refused'}"))
        code, _ = command.run(config, "--limit", "2")
    assert code == 0
    assert command.result()["accuracy"] == 0.0


@pytest.mark.parametrize(
    ("field", "one", "other"),
    [
        ("status_code_mappings", {451: "refused"}, {451: "12"}),
        ("think_tag", "</think>", "<|end_of_thought|>"),
    ],
    ids=["statuses", "think tag"],
)
def test_what_changes_the_text_of_an_answer_is_asked_again(
    command: Command, field: str, one: object, other: object
) -> None:
    def fault(request: web.Request, question: str, attempt: int) -> web.StreamResponse:
        message = {"role": "assistant", "content": "so", "reasoning_content": "hm"}
        answer = {"choices": [{"index": 0, "message": message, "finish_reason": "stop"}], "usage": {}}
        return error(451) if field == "status_code_mappings" else web.json_response(answer)

    texts = []
    with serving(FakeServer(fault=fault)) as server:
        for value in (one, other, other):
            config = command.config(server)
            config.write_text(config.read_text().replace("retry=3", f"retry=3, {field}={value!r}"))
            code, output = command.run(config, "--limit", "1")
            assert code == 0, output
            predictions = (command.folders()[-1] / "predictions/demo-api/demo.json").read_text()
            texts.append(json.loads(predictions)["0"]["prediction"])
    assert (
        texts == ["refused", "12", "12"] if field == "status_code_mappings" else [f"hm{one}so", *[f"hm{other}so"] * 2]
    )
    assert server.asked.total() == 2


def test_half_an_emoji_in_an_error_is_only_text(command: Command) -> None:
    bad = list(gold_answers())[3]

    def fault(request: web.Request, question: str, attempt: int) -> web.StreamResponse | None:
        return error(400, "a bad prompt: \ud83d") if question == bad else None

    with serving(FakeServer(fault=fault)) as server:
        code, output = command.run(command.config(server))
    assert code == 1
    assert "a bad prompt: \ufffd" in output
    assert command.result()["unanswered_rows"] == [3]


def test_two_models_that_ask_the_same_ask_once(command: Command) -> None:
    with serving(FakeServer(latency=0.01)) as server:
        config = command.config(server)
        twin = "\nmodels += [dict(models[0], abbr='twin', pred_postprocessor=dict(type='gsm8k_postprocess'))]\n"
        config.write_text(config.read_text() + twin)
        code, output = command.run(config)
    assert code == 0, output
    assert set(server.asked.values()) == {1}


def test_a_server_that_is_too_busy_to_say_what_it_serves_is_asked_again(command: Command) -> None:
    """Without what it says the key would be another, and all would be asked again."""

    class Busy(FakeServer):
        refusals = 0

        async def models(self, request: web.Request) -> web.Response:
            self.refusals -= 1
            return error(503) if self.refusals >= 0 else await super().models(request)

    with serving(Busy()) as server:
        for server.refusals in (0, 2, 99):
            code, output = command.run(command.config(server), "--limit", "3")
            assert code == (0 if server.refusals < 50 else 1), output
    assert "does not say what it serves: HTTP 503: overloaded" in output
    assert server.asked.total() == 3


def test_an_answer_that_the_tokenizer_cannot_decode_fails_its_own_row(command: Command, demo_model: Path) -> None:
    model = command.folder / "model"
    model.mkdir()
    for file in demo_model.iterdir():
        if file.suffix in (".json", ".jinja"):
            shutil.copy(file, model)
    settings = json.loads((model / "tokenizer_config.json").read_text())
    own = {"auto_map": {"AutoTokenizer": [None, "own.OwnTokenizer"]}, "tokenizer_class": "OwnTokenizer"}
    (model / "tokenizer_config.json").write_text(json.dumps(settings | own))
    (model / "own.py").write_text(
        "from transformers import PreTrainedTokenizerFast\n"
        "class OwnTokenizer(PreTrainedTokenizerFast):\n"
        "    def decode(self, ids, **kwargs):\n"
        "        if max(ids) >= len(self):\n"
        "            raise KeyError(f'Invalid token for decoding: {max(ids)}')\n"
        "        return super().decode(ids, **kwargs)\n"
    )

    class ByIds(FakeServer):
        async def models(self, request: web.Request) -> web.Response:
            return web.json_response({"data": [{"id": "demo", "owned_by": "vllm"}]})

        async def completions(self, request: web.Request) -> web.Response:
            prompt = tuple((await request.json())["prompt"])
            self.asked[str(prompt)] += len(prompt) > 3  # the first asks whether it takes ids
            ids = [10**6] if len(self.asked) == 20 and self.asked[str(prompt)] else [504, 2]
            choice = {"text": "", "finish_reason": "stop", "token_ids": ids, "stop_reason": None}
            usage = {"prompt_tokens": len(prompt), "completion_tokens": len(ids)}
            return web.json_response({"choices": [choice], "usage": usage})

    with serving(ByIds()) as server:
        code, output = command(
            "run", "--hf-path", model, "--hf-type", "chat", "--datasets", "demo", "-a", "openai", "-w", command.work,
            "--api-base", server.url, "--api-model", "demo", "--model-kwargs", "trust_remote_code=True",
            "--tokenizer-kwargs", "trust_remote_code=True",
        )  # fmt: skip
    assert code == 1, output
    assert f"partial: {QUESTIONS - 1} of {QUESTIONS}" in output
    assert "the tokenizer failed: KeyError('Invalid token for decoding: 1000000')" in output


def test_a_hostile_answer_is_only_text(command: Command) -> None:
    text = "\ud800 [bold red]x[/] <script>alert(1)</script> \x00 \x1b[31m " + "9" * 5000 + " ]" * 3 + " so 12"

    with serving(FakeServer(fault=lambda r, q, a: completion(text))) as server:
        code, output = command.run(command.config(server), "--limit", "3")
    assert code == 0, output
    assert "\x1b[31m" not in output
    predictions = json.loads((command.folders()[-1] / "predictions/demo-api/demo.json").read_text())
    assert predictions["0"]["prediction"] == text.replace("\ud800", "\ufffd")


def test_killed_at_any_moment_nothing_is_asked_twice(command: Command) -> None:
    with serving(FakeServer(latency=0.05)) as server:
        config = command.config(server, window=4)
        asked_before: set[str] = set()
        for _ in range(4):
            process = command.start("run", config, "-w", command.work)
            deadline = time.monotonic() + 60
            wanted = min(QUESTIONS, len(asked_before) + 12)
            while len(server.asked) < wanted and process.poll() is None and time.monotonic() < deadline:
                time.sleep(0.01)
            process.send_signal(signal.SIGKILL)
            process.communicate()
            stored = sqlite3.connect(command.work / "responses.sqlite").execute("SELECT count(*) FROM responses")
            finished = stored.fetchone()[0]
            assert finished >= len(server.asked) - 2 * 4  # all but what was in flight
            asked_before = set(server.asked)
        code, _ = command.run(config)
        assert code == 0
    # asked again is only what was in flight at one of the four kills, or had come in that very millisecond
    assert sum(server.asked.values()) <= QUESTIONS + 4 * 2 * 4
    assert command.result()["accuracy"] == 100.0


def when_asked(server: FakeServer, process: subprocess.Popen[str], count: int) -> None:
    deadline = time.monotonic() + 60
    while sum(server.asked.values()) < count and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)


def test_ctrl_c_finishes_what_is_in_flight(command: Command) -> None:
    with serving(FakeServer(latency=0.6)) as server:
        config = command.config(server, window=4)
        process = command.start("run", config, "-w", command.work)
        when_asked(server, process, 6)
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=20)
        assert process.returncode == 130
        assert "nothing new is asked, waiting for 4 in flight (Ctrl-C again stops now)" in output
        assert "the same command goes on" in output
        assert "Traceback" not in output
        asked = sum(server.asked.values())
        result = command.result()
        assert (result["accuracy"], result["partial"], result["answered"]) == (100.0, True, asked)
        assert len(result["unanswered_rows"]) == QUESTIONS - asked
        assert f"(partial: {asked} of {QUESTIONS})" in output
        assert (command.manifest()["status"], command.manifest()["interrupted"]) == ("partial", True)
        server.latency = 0.0
        code, _ = command.run(config)
    assert code == 0
    assert set(server.asked.values()) == {1}


def test_ctrl_c_ends_a_comparison_even_if_all_of_the_first_run_was_in_flight(command: Command) -> None:
    with serving(FakeServer(latency=1.0)) as server:
        process = command.start(
            "compare", "--hf-path", "some/model", "--datasets", "demo", "--limit", "4", "-w", command.work,
            "-a", "openai,vllm", "--api-base", server.url, "--api-model", "demo",
        )  # fmt: skip
        when_asked(server, process, 4)
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=60)
    assert process.returncode == 130, output
    assert "waiting for 4 in flight" in output
    assert "the same command goes on" in output
    assert "vllm is not compared" not in output
    assert len(command.folders()) == 1


@pytest.mark.parametrize("signals", [(signal.SIGINT, signal.SIGINT), (signal.SIGTERM,)])
def test_ctrl_c_twice_and_sigterm_stop_now(command: Command, signals: tuple[signal.Signals, ...]) -> None:
    with serving(FakeServer(latency=0.1)) as server:
        config = command.config(server, window=4)
        process = command.start("run", config, "-w", command.work)
        when_asked(server, process, 10)
        server.latency = 60.0
        when_asked(server, process, sum(server.asked.values()) + 4)
        began = time.monotonic()
        for number in signals:
            process.send_signal(number)
            time.sleep(0.2)
        output, _ = process.communicate(timeout=20)
        assert time.monotonic() - began < 5
        assert process.returncode == 130
        assert "the same command goes on" in output
        assert "Traceback" not in output
        assert not list(command.work.rglob("*.part"))
        server.latency, asked = 0.0, sum(server.asked.values())
        code, _ = command.run(config, "-r")
    assert code == 0
    assert sum(server.asked.values()) <= QUESTIONS + 2 * 4
    assert sum(server.asked.values()) > asked
    assert command.result()["accuracy"] == 100.0


def test_models_and_datasets_are_asked_side_by_side(command: Command) -> None:
    """Two APIs at once, and two datasets of each in one window: the time of one dataset, and no barrier."""
    with serving(FakeServer(latency=0.5)) as server:
        config = command.config(server, window=QUESTIONS)
        more = "models = [models[0], dict(models[0], abbr='other-api', temperature=0.5)]"
        config.write_text(f"{config.read_text()}\n{more}\ndatasets = [datasets[0], dict(datasets[0], abbr='again')]\n")
        code, output = command.run(config)
    assert code == 0, output
    assert server.most_in_flight > QUESTIONS  # more than one model's window
    # The rows of the second dataset ask the same, and wait for the same answers.
    assert set(server.asked.values()) == {2}
    for model in ("demo-api", "other-api"):
        for dataset in ("demo", "again"):
            file = command.folders()[0] / "results" / model / f"{dataset}.json"
            assert json.loads(file.read_text())["accuracy"] == 100.0
        assert re.search(rf"^{model}: 128/128 · ", output, re.MULTILINE)
        assert re.search(rf"^time of {model}: load ", output, re.MULTILINE)


def test_one_model_without_a_server_costs_the_others_nothing(command: Command) -> None:
    with serving(FakeServer()) as server:
        config = command.config(server)
        lost = "dict(models[0], abbr='lost', openai_api_base='http://127.0.0.1:9/v1')"
        config.write_text(f"{config.read_text()}\nmodels = [{lost}, models[0]]\n")
        code, output = command.run(config)
    assert code == 1
    assert "no server answers at http://127.0.0.1:9/v1" in output
    assert command.result()["accuracy"] == 100.0
    assert f"lost/demo: {QUESTIONS} without an answer" in output


def test_where_the_time_went(command: Command) -> None:
    with serving(FakeServer(latency=0.2)) as server:
        code, output = command.run(command.config(server, window=16))
    assert code == 0
    times = command.manifest()["models"]["demo-api"]["timings"]
    assert {"load", "infer", "score", "write", "finish", "total", "client_idle", "requests", "retries"} <= set(times)
    assert 4 * 0.2 <= times["infer"] <= times["total"]
    assert QUESTIONS * 0.2 <= times["requests"] <= 16 * times["infer"]
    assert times["load"] + times["infer"] + times["finish"] == pytest.approx(times["total"], abs=0.5)
    assert times["client_idle"] <= times["infer"]
    assert re.search(r"time of demo-api: load .*, asking .*, total .*; (behind it .*; )?client idle ", output)
    assert "engine stop" not in output and " 0.0 s, " not in output.partition("total")[0].partition("load ")[2]


def test_every_attempt_that_failed_is_on_record(command: Command) -> None:
    with serving(FakeServer(fault=once(500))) as server:
        assert command.run(command.config(server), "--limit", "3")[0] == 0
    store = Store(command.work)
    attempts = store.attempts(command.folders()[0].name, "demo-api/demo")
    store.close()
    assert sorted((attempt.row, attempt.attempt) for attempt in attempts) == [(0, 1), (1, 1), (2, 1)]
    assert {attempt.error for attempt in attempts} == {"HTTP 500: overloaded"}


def test_what_throttles_a_server_of_ones_own_is_said(command: Command) -> None:
    with serving(FakeServer()) as server:
        config = command.config(server, window=2)
        code, output = command.run(config)
        assert code == 0
        assert "hint: at most 2 requests are in flight (batch_size, max_workers or --api-in-flight)" in output
        assert server.most_in_flight <= 2
        config.write_text(config.read_text().replace("query_per_second=None", "query_per_second=1"))
        process = command.start("run", config, "-w", command.folder / "slow")
        assert process.stdout is not None
        line = ""
        while not line.startswith("hint: query_per_second=1 makes 64 questions take at least 1 minutes"):
            line = process.stdout.readline()
            assert line, "no hint"
        process.kill()
        process.communicate()


def test_a_name_that_the_server_does_not_serve(command: Command) -> None:
    def fault(request: web.Request, question: str, attempt: int) -> web.StreamResponse | None:
        return error(404, "The model `demmo` does not exist.")

    with serving(FakeServer(fault=fault)) as server:
        config = command.config(server)
        config.write_text(config.read_text().replace("path='demo '", "path='demmo'"))
        code, output = command.run(config)
        assert code == 1
        assert "serves no model 'demmo': HTTP 404: The model `demmo` does not exist." in output
        assert "did you mean 'demo'? it serves: demo" in output
        assert sum(server.asked.values()) == 1
        server.fault = None  # one that answers to any name is taken at its word
        assert command.run(config)[0] == 0


def test_a_server_that_answers_to_any_name_is_told_of(command: Command) -> None:
    with serving(FakeServer()) as server:
        config = command.config(server)
        config.write_text(config.read_text().replace("path='demo '", "path='demmo'"))
        code, output = command.run(config, "--limit", "1")
    assert code == 0
    assert f"{server.url} lists demo, not 'demmo', and answers to that name all the same" in output


@pytest.mark.parametrize("status", [401, 503])
def test_a_server_that_answered_nothing_yet_is_not_said_to_have(command: Command, status: int) -> None:
    with serving(FakeServer(fault=lambda r, q, a: error(status) if q == "1" else None)) as server:
        config = command.config(server)
        config.write_text(config.read_text().replace("path='demo '", "path='demmo'"))
        code, output = command.run(config, "--limit", "1")
    assert code == 0
    assert f"{server.url} lists demo, not 'demmo'" in output
    assert "all the same" not in output


@pytest.mark.parametrize("mode", ["run", "check"])
def test_a_prompt_without_a_column_is_one_clear_error(command: Command, mode: str) -> None:
    with serving(FakeServer()) as server:
        config = command.config(server)
        template = "datasets[0]['infer_cfg']['prompt_template']['template']['round'][0]['prompt']"
        config.write_text(config.read_text() + f"\n{template} = '{{qestion}}, in short'\n")
        code, output = command(mode, config, *(["-w", command.work] if mode == "run" else []))
    assert code != 0
    assert "the prompt has no column of row 0, so all rows would ask the same" in output
    assert "did you mean 'question'?" in output
    assert not server.asked


def test_a_password_in_an_address_is_never_shown(command: Command) -> None:
    with serving(FakeServer()) as server:
        url = server.url
        server.url = url.replace("http://", "http://joe:pass0word0pass@")
        code, output = command.run(command.config(server), "--limit", "1")
        assert code == 0, output
        both, said = command.run(command.config(server, key="sk-secretsecretsecret"), "--limit", "2")
    assert "***@127.0.0.1" in output
    assert both == 1
    assert "the request cannot be sent" in said
    for text in (output, said, *(path.read_text() for path in command.work.rglob("*.json"))):
        assert "pass0word" not in text and "secretsecret" not in text


@pytest.mark.parametrize("content", [None, "", " \n"], ids=repr)
def test_answers_without_text_are_counted(command: Command, content: str | None) -> None:
    choice = {"index": 0, "message": {"role": "assistant", "content": content}, "finish_reason": "stop"}
    answer = {"choices": [choice], "usage": {"completion_tokens": 4}}
    with serving(FakeServer(fault=lambda r, q, a: web.json_response(answer) if a == 1 else None)) as server:
        for _ in range(2):  # the second time from the store
            code, output = command.run(command.config(server), "--limit", "2")
            assert code == 0
            assert "demo-api/demo: 2 answers are empty, and scored so" in output
            assert command.manifest()["models"]["demo-api"]["answers"]["empty"] == {"demo-api/demo": 2}


def test_a_comparison_with_a_question_that_nobody_answered_fails(command: Command) -> None:
    bad = list(gold_answers())[1]
    with serving(FakeServer(fault=lambda r, q, a: error(400) if q == bad else None)) as server:
        assert command.run(command.config(server), "--limit", "2")[0] == 1
        server.fault, elsewhere = None, command.folder / "elsewhere"
        assert command("run", command.config(server), "-w", elsewhere, "--limit", "2")[0] == 0
    (partial,), (whole,) = command.folders(), elsewhere.glob("2*")
    assert command("compare", whole, whole)[0] == 0
    for pair in ((whole, partial), (partial, whole)):
        code, output = command("compare", *pair)
        assert code == 1, output
        assert "1 of 2 questions have no answer" in output


def test_a_server_that_refuses_ids_is_named(command: Command) -> None:
    with serving(FakeServer()) as server:
        code, output = command(
            "run", "--hf-path", "some/model", "--datasets", "demo", "-a", "openai", "--api-base", server.url,
            "--api-model", "demo", "--limit", "1", "-w", command.work,
        )  # fmt: skip
    assert code == 0, output
    assert f"{server.url} gets no token ids: it refuses them (HTTP 404: chat only); it gets messages" in output


def test_a_key_reaches_the_server_and_nothing_else(command: Command) -> None:
    secret = "very-secret-value-0123456789"

    def fault(request: web.Request, question: str, attempt: int) -> web.StreamResponse | None:
        return error(400, f"your key {secret} is bad: {request.headers['Authorization']}")

    with serving(FakeServer(fault=fault)) as server:
        code, output = command.run(command.config(server, key=secret), "--limit", "3", "--debug")
    assert code == 1
    assert server.headers[0]["Authorization"] == f"Bearer {secret}"
    assert secret not in output
    for file in command.work.rglob("*"):
        if file.is_file():
            assert secret.encode() not in file.read_bytes(), file


def test_no_server_is_one_clear_error(command: Command) -> None:
    server = FakeServer()
    server.url = "http://127.0.0.1:9/v1"
    code, output = command.run(command.config(server), "--limit", "2")
    assert code == 1
    assert "no server answers at http://127.0.0.1:9/v1" in output


def test_swapping_to_an_api_without_model_files(command: Command) -> None:
    """-a openai on a chat-only server: messages, no tokenizer, and it is said who applied the template."""
    with serving(FakeServer()) as server:
        code, output = command(
            "run", "--hf-path", "some/model", "--datasets", "demo", "-a", "openai", "--api-base", server.url,
            "--api-model", "demo", "--limit", "4", "-w", command.work,
        )  # fmt: skip
    assert code == 0, output
    assert "template applied by the server" in output
    assert sum(server.asked.values()) == 4
    assert server.bodies[0]["temperature"] == 0.0


MANY = """
from mmengine.config import read_base
from opencompass.models import HuggingFacewithChatTemplate

with read_base():
    from .datasets.demo.demo_gen import demo_datasets

models = [dict(type=HuggingFacewithChatTemplate, abbr='m-hf', path='demo')]
demo = demo_datasets[0]
datasets = []
for number in range(10):  # the same questions, with room for longer answers: none is another's
    infer_cfg = dict(demo['infer_cfg'], inferencer=dict(demo['infer_cfg']['inferencer'], max_out_len=100 + number))
    datasets.append(dict(demo, abbr=f'demo-{number}', infer_cfg=infer_cfg))
"""


@pytest.fixture
def many(command: Command) -> Path:
    """A HuggingFace model and ten times the demo's questions."""
    path = command.folder / "many.py"
    path.write_text(MANY)
    return path


def test_a_server_of_ones_own_gets_as_many_requests_as_it_bears(command: Command, many: Path) -> None:
    with serving(FakeServer(latency=0.5)) as server:
        code, output = command.run(many, "-a", "openai", "--api-base", server.url)
    assert code == 0, output
    assert sum(server.asked.values()) == 10 * QUESTIONS
    assert server.most_in_flight > 2 * 64  # with which it begins
    assert "hint:" not in output


def test_a_server_that_limits_what_it_takes_loses_nothing(command: Command, many: Path) -> None:
    with serving(FakeServer(latency=0.5, places=96)) as server:
        code, output = command.run(many, "-a", "openai", "--api-base", server.url)
    assert code == 0, output
    assert server.refused > 0  # it was tried
    assert 64 < server.most_in_flight <= 96
    assert sum(server.asked.values()) == 10 * QUESTIONS
    assert command.manifest()["status"] == "complete"


def test_the_most_in_flight_is_the_users(command: Command, many: Path) -> None:
    with serving(FakeServer(latency=0.01)) as server:
        words = ("-a", "openai", "--api-base", server.url, "--limit", "8")
        code, output = command.run(many, *words, "--api-in-flight", "3")
        assert code == 0, output
        assert server.most_in_flight == 3
        assert "hint: at most 3 requests are in flight" in output
        # An API model's own number comes second.
        server.most_in_flight = 0
        code, output = command.run(command.config(server, window=16), "--limit", "30", "--api-in-flight", "5")
        assert code == 0, output
        assert server.most_in_flight == 5
        assert re.search(r"batch_size=16 +│ 5 requests in flight +│ --api-in-flight 5 comes first", output)


def test_several_servers_share_the_work(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ("run", "--hf-path", "some/model", "--datasets", "demo", "-a", "openai", "--api-model", "demo")
    with serving(FakeServer(latency=0.05)) as one, serving(FakeServer(latency=0.05)) as two:
        both = f"{one.url}, {two.url}/chat/completions,{one.url}"
        code, output = command(*words, "-w", command.work, "--api-base", both)
        assert code == 0, output
        assert f"{one.url}, {two.url} gets messages" in output
        assert sum(one.asked.values()) + sum(two.asked.values()) == QUESTIONS
        assert min(sum(one.asked.values()), sum(two.asked.values())) > QUESTIONS / 4
        # One that is not there costs nothing.
        monkeypatch.setenv("OPENAI_BASE_URL", f"http://127.0.0.1:9,{one.url}")
        code, output = command(*words, "-w", command.folder / "other")
        assert code == 0, output
        assert "no server answers at http://127.0.0.1:9/v1" in output
        assert "going on with the others" in output


def test_addresses_that_are_none(command: Command) -> None:
    words = ("run", "--hf-path", "some/model", "--datasets", "demo", "-a", "openai")
    for given, wrong in (("http://a,b:8000", "b:8000"), (",", ",")):
        code, output = command(*words, "--api-base", given)
        assert code == 2
        assert f"not an http address: '{wrong}'" in output
    code, output = command("run", "--hf-path", "some/model", "--datasets", "demo", "--api-base", "http://a")
    assert code == 2
    assert "--api-base is about a server that runs already" in output
    assert "add -a openai" in output


def test_a_base_model_is_never_sent_to_a_chat_template(command: Command) -> None:
    with serving(FakeServer()) as server:
        code, output = command(
            "run", "--hf-path", "some/model", "--hf-type", "base", "--datasets", "demo", "-a", "openai",
            "--api-base", server.url, "--api-model", "demo", "--limit", "2", "-w", command.work,
        )  # fmt: skip
    assert code != 0
    assert "gets no token ids" in output
    assert not server.asked


def test_eval_and_viz_work_on_what_is_stored(command: Command) -> None:
    with serving(FakeServer()) as server:
        config = command.config(server)
        assert command.run(config, "-m", "infer", "--limit", "5")[0] == 0
        assert not (command.folders()[-1] / "results").exists()
        code, output = command.run(config, "-m", "eval", "-r")
        assert (code, "100.00" in output) == (0, True), output
        code, output = command.run(config, "-m", "viz", "-r", command.folders()[-1].name)
        assert (code, "100.00" in output) == (0, True), output
        assert command.run(config, "-m", "eval")[0] == 2
        assert sum(server.asked.values()) == 5
    assert len(command.folders()) == 1


@pytest.mark.parametrize("mode", ["eval", "viz"])
def test_eval_and_viz_of_another_model_leave_the_run_as_it_is(command: Command, mode: str) -> None:
    with serving(FakeServer()) as server:
        config = command.config(server)
        assert command.run(config, "--limit", "5")[0] == 0
        before = command.manifest()
        config.write_text(config.read_text().replace("demo-api", "other"))
        code, output = command.run(config, "-m", mode, "-r")
    assert code == 2
    assert "of 'other/demo'; it has those of 'demo-api/demo'" in output
    assert "give the same config and -a" in output
    assert command.manifest() == before


def test_eval_of_one_model_keeps_the_others_of_the_run(command: Command) -> None:
    with serving(FakeServer()) as server:
        config = command.config(server)
        alone = config.read_text()
        config.write_text(alone + "models.append({**models[0], 'abbr': 'second'})\n")
        assert command.run(config, "--limit", "5")[0] == 0
        before = command.manifest()
        config.write_text(alone)
        assert command.run(config, "-m", "eval", "-r")[0] == 0
        after = command.manifest()
        assert (after["status"], after["models"]) == ("complete", before["models"])
        config.write_text(alone.replace("demo-api", "second"))
        code, output = command.run(config, "-m", "viz", "-r")
    assert (code, "100.00" in output) == (0, True), output


def test_eval_without_a_store_and_viz_without_a_record_say_so(command: Command) -> None:
    with serving(FakeServer()) as server:
        config = command.config(server)
        command.run(config, "--limit", "5")
    (run,) = command.folders()
    for file in command.work.glob("*.sqlite*"):
        file.unlink()
    code, output = command.run(config, "-m", "eval", "-r")
    assert (code, "has no answers of 'demo-api/demo'; it has none at all" in output) == (2, True), output
    assert not list(command.work.glob("*.sqlite*"))
    assert command.manifest()["status"] == "complete"
    (run / "run.json").unlink()
    code, output = command.run(config, "-m", "viz", "-r")
    assert (code, f"score it first: -m eval -r {run.name}" in output) == (2, True), output


def test_a_config_behind_r_is_no_timestamp(command: Command) -> None:
    code, output = command("run", "-r", "eval.py")
    assert (code, "put the config first: evalswap run eval.py -r" in output) == (2, True), output


def test_work_folders_that_cannot_be_written(command: Command, tmp_path: Path) -> None:
    file = tmp_path / "a-file"
    file.write_text("")
    with serving(FakeServer()) as server:
        config = command.config(server)
        code, output = command("run", config, "-w", file)
        assert code == 1
        assert "-w" in output
        code, output = command("run", config, "-w", "/proc/evalswap")
        assert code == 1
        assert "-w" in output
    assert not server.asked


def test_the_first_request_is_early_and_needs_no_tokenizer(command: Command) -> None:
    script = (
        "import sys; from evalswap.cli import main; code = main(sys.argv[1:]);"
        "print('heavy:', sorted({'torch', 'transformers', 'tokenizers'} & set(sys.modules))); sys.exit(code)"
    )
    with serving(FakeServer()) as server:
        config = command.config(server)
        arguments = ["run", str(config), "-w", str(command.work), "--limit", "3"]
        done = subprocess.run(
            [sys.executable, "-c", script, *arguments], cwd=command.folder, capture_output=True, text=True
        )
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"heavy: \[\]", done.stdout)
