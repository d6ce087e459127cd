"""What a server that somebody else runs is asked: by its kind, by the model's own files, by the model's name."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from fake_openai import FakeServer, completion, error, serving

from evalswap.engines.base import FinalAnswerError, MalformedAnswer
from evalswap.engines.openai import is_reasoning_model, openai_engine
from evalswap.inference.client import HttpClient
from evalswap.plan import EndpointPlan
from evalswap.records import Prompt, Request, Sampling
from evalswap.serving.endpoint import IdSupport, identify, one_for_all, takes_ids

Run = Callable[..., tuple[int, str]]


class KnownServer(FakeServer):
    """A fake server that says what it is, and gives token ids back, with a field of its own beside them."""

    def __init__(self, owner: str | None, name: str = "demo", field: str = "other") -> None:
        super().__init__()
        self.owner, self.name, self.field = owner, name, field

    async def models(self, request: web.Request) -> web.Response:
        return web.json_response({"data": [{"id": self.name, "owned_by": self.owner}]})

    async def completions(self, request: web.Request) -> web.Response:
        body = await request.json()
        choice = {"index": 0, "text": "x", "token_ids": [5], "finish_reason": "length", self.field: None}
        return web.json_response({"choices": [choice], "usage": {"prompt_tokens": len(body["prompt"])}})


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    """Run the command in a folder of its own, with a hub's cache of its own and no network."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    def command(*words: str | Path) -> tuple[int, str]:
        place = ["-w", "work"] if words[0] == "run" else []
        done = subprocess.run(
            [sys.executable, "-m", "evalswap", *map(str, words), *place],
            cwd=tmp_path, capture_output=True, text=True, env={**os.environ, "COLUMNS": "250"}, timeout=120,
        )  # fmt: skip
        output = done.stdout + done.stderr
        assert "Traceback" not in output, output
        return done.returncode, output

    yield command


def record(tmp_path: Path) -> dict[str, Any]:
    """Return what the last run's run.json says of its one model."""
    (model,) = json.loads((sorted((tmp_path / "work").glob("2*"))[-1] / "run.json").read_text())["models"].values()
    return dict(model)


# ---- whose fields go with token ids


@pytest.mark.parametrize(
    ("owner", "name", "taken_as"),
    [("vllm", "demo", "vllm"), ("sglang", "demo", "sglang"), ("sglang", "another", "sglang"), ("fake", "demo", None)],
)
def test_token_ids_go_to_servers_whose_fields_are_known(owner: str, name: str, taken_as: str | None) -> None:
    """SGLang answers to any name, so it is known by the others that it serves, too."""

    async def ask(url: str) -> IdSupport:
        async with HttpClient(url, timeout=20) as client:
            return await takes_ids(client, "demo", (await identify(client, "demo")).server)

    with serving(KnownServer(owner, name)) as server:
        support = asyncio.run(ask(server.url))
    assert support.taken_as == taken_as
    assert ("only of vllm and sglang is it known" in support.why_not) == (taken_as is None)


@pytest.mark.parametrize(("field", "taken_as"), [("stop_reason", "vllm"), ("matched_stop", "sglang"), ("other", None)])
@pytest.mark.parametrize("owner", ["openai", None])
def test_a_server_behind_a_proxy_is_known_by_what_it_answers(owner: str, field: str, taken_as: str | None) -> None:
    async def ask(url: str) -> IdSupport:
        async with HttpClient(url, timeout=20) as client:
            return await takes_ids(client, "demo", (await identify(client, "demo")).server)

    with serving(KnownServer(owner, field=field)) as server:
        support = asyncio.run(ask(server.url))
    assert support.taken_as == taken_as
    assert ("does not say what server it is" in support.why_not) == (taken_as is None and owner is None)


@pytest.mark.parametrize("owner", [["vllm"], {"a": 1}, 7])
def test_a_server_that_says_nonsense_of_itself_gets_messages(owner: Any) -> None:
    async def ask(url: str) -> IdSupport:
        async with HttpClient(url, timeout=20) as client:
            return await takes_ids(client, "demo", (await identify(client, "demo")).server)

    with serving(KnownServer(owner)) as server:
        assert asyncio.run(ask(server.url)).taken_as is None


def test_servers_that_share_the_work_are_asked_alike() -> None:
    vllm, sglang, none = IdSupport("vllm"), IdSupport("sglang"), IdSupport(why_not="it refuses them")
    assert one_for_all([vllm, vllm]) == vllm
    assert one_for_all([vllm, none, sglang]) == none
    assert one_for_all([vllm, sglang]) == IdSupport(why_not="the servers are of different kinds (sglang, vllm)")


def test_a_server_of_another_kind_gets_messages(run: Run) -> None:
    with serving(KnownServer("fake")) as server:
        code, output = run(
            "run", "--hf-path", "some/model", "--datasets", "demo", "-a", "openai", "--api-base", server.url,
            "--api-model", "demo", "--limit", "2",
        )  # fmt: skip
    assert code == 0, output
    assert f"{server.url} gets no token ids: it says that it is 'fake', and only of vllm and sglang" in output
    assert f"{server.url} gets messages" in output
    assert len(server.asked) == 2


def sglang_answer(ids: list[int], reason: str = "stop", matched: int | str | None = None) -> dict[str, Any]:
    choice = {"index": 0, "text": "x", "finish_reason": reason, "matched_stop": matched, "token_ids": ids}
    usage = {"prompt_tokens": 3, "completion_tokens": len(ids), "prompt_tokens_details": {"cached_tokens": 2}}
    return {"choices": [choice], "usage": usage}


def test_what_an_sglang_server_answers() -> None:
    """Its /v1/completions says how an answer ended, as its own endpoint does: "matched_stop"."""
    engine = openai_engine(EndpointPlan(("http://h/v1",), "m"), "sglang")
    sampling = Sampling(max_new_tokens=4, stop=("END",), stop_token_ids=(2, 9))
    request = Request("key", "job", 0, Prompt((), None, (1, 5, 6)), sampling)
    made = engine.read(sglang_answer([5, 2], matched=2), request)
    assert (made.token_ids, made.finish_reason, made.prompt_tokens, made.cached_tokens) == ((5, 2), "stop", 3, 2)
    assert engine.read(sglang_answer([5, 6], matched="END"), request).finish_reason == "stop"
    assert engine.read(sglang_answer([5, 6, 7, 8], "length"), request).finish_reason == "length"
    with pytest.raises(FinalAnswerError, match="an SGLang server ended the answer at token 99"):
        engine.read(sglang_answer([5, 99], matched=99), request)
    with pytest.raises(FinalAnswerError, match="ran out of room after 2 of 4 tokens"):
        engine.read(sglang_answer([5, 6], "length"), request)
    for broken in (sglang_answer([5], "abort"), {"choices": []}, {"choices": [{}], "usage": {}}, None, "x"):
        with pytest.raises(MalformedAnswer):
            engine.read(broken, request)


# ---- generation_config.json where the server gets messages


@pytest.mark.parametrize("where", ["folder", "hub"])
def test_the_models_own_penalty_is_not_dropped(where: str, run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "m"
    if where == "hub":
        repo = tmp_path / "hf" / "hub" / "models--some--model"
        folder = repo / "snapshots" / "abc"
        (repo / "refs").mkdir(parents=True)
        (repo / "refs" / "main").write_text("abc")
    folder.mkdir(parents=True)
    (folder / "generation_config.json").write_text(json.dumps({"repetition_penalty": 1.05}))
    with serving(FakeServer()) as server:
        words = (
            "run", "--hf-path", folder if where == "folder" else "some/model", "--datasets", "demo", "-a", "openai",
            "--api-base", server.url, "--api-model", "demo", "--limit", "2",
        )  # fmt: skip
        code, output = run(*words)
        assert code != 0
        assert "repetition_penalty=1.05 (the model's generation_config.json) cannot be asked of openai" in output
        assert "generation_kwargs=dict(repetition_penalty=1.0) asks for none" in output
        assert not server.asked
        assert "repetition_penalty=1.05 (the model's generation_config.json)" in run("check", *words[1:-2])[1]
        code, output = run(*words, "--generation-kwargs", "repetition_penalty=1.0")
    assert code == 0, output
    assert "is not known here" not in output
    assert len(server.asked) == 2


def test_a_file_that_cannot_be_read_is_said(run: Run, tmp_path: Path) -> None:
    with serving(FakeServer()) as server:
        words = (
            "--hf-path", "some/model", "--datasets", "demo", "-a", "openai", "--api-base", server.url, "--api-model",
            "demo",
        )  # fmt: skip
        code, output = run("run", *words, "--limit", "2")
        assert code == 0, output
        assert "generation_config.json of some/model is not known here" in output
        assert "hf download some/model generation_config.json" in output
        assert "some/model is not known here" in record(tmp_path)["facts"]["generation_config"]
        assert "generation_config.json of some/model is not known here" in run("check", *words)[1]


# ---- reasoning models


@pytest.mark.parametrize(
    ("model", "reasons"),
    [
        *((name, True) for name in ("o1", "o1-mini-2024-09-12", "o3", "o4-mini", "openai/o3-mini", "gpt-5", "gpt-5.1")),
        *((name, True) for name in ("gpt-5-mini", "gpt-5.5-pro")),
        *(
            (name, False)
            for name in ("gpt-4o", "gpt-4.1", "gpt-3.5-turbo", "gpt-35-turbo", "gpt-oss-20b", "gpt-5-chat-latest")
        ),
        *((name, False) for name in ("AIDC-AI/Marco-o1", "yolo1", "o1mini", "org/foo3-mini", "gpt-50b")),
    ],
)
def test_the_names_of_reasoning_models(model: str, reasons: bool) -> None:
    assert is_reasoning_model(model) is reasons


CONFIG = """
from mmengine.config import read_base
from opencompass.models import OpenAISDK

with read_base():
    from .datasets.demo.demo_gen import demo_datasets as datasets

models = [dict(type=OpenAISDK, abbr='m', openai_api_base='{url}', key='EMPTY', query_per_second=None, **{keys!r})]
"""
NOT_TAKEN = ("max_tokens", "temperature", "top_p", "presence_penalty", "frequency_penalty", "stop")


class ReasoningServer(KnownServer):
    """OpenAI's API as it answers for a reasoning model: fields that such a model does not take are a 400."""

    def __init__(self, name: str) -> None:
        super().__init__("openai", name)

    async def chat(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.bodies.append(body)
        for name in NOT_TAKEN:
            if name in body:
                return error(400, f"Unsupported parameter: '{name}' is not supported with this model.")
        return completion("The answer is 1.")


@pytest.mark.parametrize(
    ("keys", "limit"),
    [
        ({"path": "o1-mini-2024-09-12", "temperature": 1, "max_completion_tokens": 8192}, 8192),  # OpenCompass's own
        ({"path": "gpt-5-mini"}, 128),  # the dataset's
        ({"path": "o3", "temperature": 0.01}, 128),
        ({"path": "my-deployment", "temperature": 1, "max_completion_tokens": 4096}, 4096),
    ],
)
def test_a_reasoning_model_is_told_only_what_it_takes(
    keys: dict[str, Any], limit: int, run: Run, tmp_path: Path
) -> None:
    config = tmp_path / "eval.py"
    with serving(ReasoningServer(keys["path"])) as server:
        config.write_text(CONFIG.format(url=server.url, keys=keys))
        code, output = run("run", config, "--limit", "2")
    assert code == 0, output
    assert [set(body) for body in server.bodies] == [{"model", "messages", "max_completion_tokens"}] * 2
    assert {body["max_completion_tokens"] for body in server.bodies} == {limit}
    rows = {row["source"]: row for row in record(tmp_path)["translation"]}
    limit_row = rows[
        f"max_completion_tokens={limit}" if "max_completion_tokens" in keys else "max_completion_tokens (unset)"
    ]
    assert "the reasoning counts" in limit_row["note"]
    temperature = rows[
        "temperature (unset)" if "temperature" not in keys else f"temperature={float(keys['temperature'])}"
    ]
    assert not temperature["target"]
    assert "no temperature, top_p, penalty or stop is sent" in temperature["note"]
    assert record(tmp_path)["facts"]["sampling"]["demo"]["temperature"] == 1.0  # what such a model draws at


def test_a_field_that_a_reasoning_model_does_not_take_is_refused(run: Run, tmp_path: Path) -> None:
    config = tmp_path / "eval.py"
    keys = {"path": "o3", "generation_kwargs": {"presence_penalty": 0.5}}
    with serving(ReasoningServer("o3")) as server:
        config.write_text(CONFIG.format(url=server.url, keys=keys))
        code, output = run("run", config, "--limit", "2")
    assert code == 2
    assert "presence_penalty=0.5 cannot be asked of o3: a reasoning model takes no penalties" in output
    assert not server.bodies


def test_another_model_may_be_told_the_length_of_an_answer_too(run: Run, tmp_path: Path) -> None:
    """With a temperature it is no reasoning model, and is told all that it takes."""
    config = tmp_path / "eval.py"
    keys = {"path": "demo", "temperature": 0.001, "max_completion_tokens": 300}
    with serving(FakeServer()) as server:
        config.write_text(CONFIG.format(url=server.url, keys=keys))
        assert run("run", config, "--limit", "2")[0] == 0
    body = server.bodies[0]
    assert (body["temperature"], body["max_tokens"]) == (0.001, 300)
    assert "max_completion_tokens" not in body
