"""Whole runs on real engines with the real small model: the same ids in, the same ids out."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from evalswap.engines.base import Launch
from evalswap.engines.vllm import Vllm
from evalswap.serving import keeper
from evalswap.serving.server import ManagedServer
from evalswap.store import Answered, Store

pytestmark = pytest.mark.e2e

LIMIT = "8"
CONFIG = """
from mmengine.config import read_base
from opencompass.models import {kind}

with read_base():
    from .datasets.demo.demo_gen import demo_datasets as datasets

datasets[0]['infer_cfg']['inferencer']['max_out_len'] = {length}
models = [dict(type={kind}, abbr='smol-hf', path={path!r}, model_kwargs=dict(torch_dtype='float32'),
               max_seq_len=1024, batch_size=4, {more})]
"""


class Bench:
    """One work folder and a config on the demo model."""

    def __init__(self, folder: Path, model: Path) -> None:
        self.folder, self.model, self.work = folder, model, folder / "work"

    def config(self, kind: str = "HuggingFacewithChatTemplate", length: int = 24, more: str = "") -> Path:
        path = self.folder / f"eval_{kind}_{abs(hash((length, more)))}.py"
        path.write_text(CONFIG.format(kind=kind, path=str(self.model), length=length, more=more))
        return path

    def start(self, *arguments: str | Path) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "evalswap", *map(str, arguments)]
        env = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
        return subprocess.Popen(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=env)

    def run(self, config: Path, *arguments: str) -> str:
        process = self.start("run", config, "-w", self.work, "--limit", LIMIT, *arguments)
        output, _ = process.communicate(timeout=280)
        assert process.returncode == 0, output
        return output

    def last(self) -> Path:
        return sorted(self.work.glob("2*"))[-1]

    def answers(self, model: str) -> list[Answered]:
        store = Store(self.work)
        try:
            return list(store.answers(self.last().name, f"{model}/demo"))
        finally:
            store.close()

    def record(self, model: str) -> dict[str, object]:
        return json.loads((self.last() / "run.json").read_text())["models"][model]


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory, demo_model: Path) -> Bench:
    return Bench(tmp_path_factory.mktemp("engines"), demo_model)


@pytest.fixture(scope="module")
def reference(bench: Bench, transformers_python: str) -> list[Answered]:
    bench.run(bench.config())
    return bench.answers("smol-hf")


@pytest.fixture(scope="module")
def vllm_server(demo_model: Path, vllm_python: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A vLLM server that somebody else started."""
    engine = Vllm()
    launch = Launch(demo_model, "float32", 1048, 1, 4, False, "cpu", engine_args={"served_model_name": "smol"})
    server = ManagedServer(
        "vllm",
        lambda port: engine.command(launch, Path(vllm_python), port),
        log_path=tmp_path_factory.mktemp("log") / "vllm.log",
        env=engine.environment(launch) | {"OMP_NUM_THREADS": "1"},
    )

    async def up() -> None:
        await server.start()
        await server.ready()

    asyncio.run(up())
    yield server.url
    asyncio.run(server.stop())


@pytest.fixture(scope="module")
def adapter(demo_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA adapter for the demo model, drawn by a seed: it moves most answers."""
    config = json.loads((demo_model / "config.json").read_text())
    size, heads = config["hidden_size"], config["num_attention_heads"]
    wide = {"q_proj": size, "v_proj": size // heads * config["num_key_value_heads"]}
    rng, tensors = np.random.default_rng(0), {}
    for layer in range(config["num_hidden_layers"]):
        for name, width in wide.items():
            place = f"base_model.model.model.layers.{layer}.self_attn.{name}"
            tensors[f"{place}.lora_A.weight"] = rng.normal(0, 0.04, (4, size)).astype(np.float32)
            tensors[f"{place}.lora_B.weight"] = rng.normal(0, 0.04, (width, 4)).astype(np.float32)
    folder = tmp_path_factory.mktemp("adapter")
    save_file(tensors, folder / "adapter_model.safetensors")
    told = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 4, "lora_alpha": 8, "target_modules": list(wide)}
    (folder / "adapter_config.json").write_text(json.dumps(told))
    return folder


def ids(answers: list[Answered]) -> list[tuple[int, ...] | None]:
    return [answer.response.token_ids if answer.response else None for answer in answers]


def test_the_reference_answers_everything(bench: Bench, reference: list[Answered]) -> None:
    assert len(reference) == int(LIMIT)
    for answer in reference:
        assert answer.response is not None
        assert answer.response.token_ids
        assert len(answer.response.token_ids) <= 24
        assert answer.response.text
        assert "<|im_end|>" not in answer.response.text
    record = bench.record("smol-hf")
    assert record["engine"]["name"] == "transformers"
    assert record["facts"]["dtype"] == "float32"
    assert record["datasets"]["demo"]["prompt_ids_sha256"]


def test_vllm_gives_the_same_ids_in_float32(bench: Bench, reference: list[Answered], vllm_python: str) -> None:
    hashes = bench.record("smol-hf")["datasets"]["demo"]["prompt_ids_sha256"]
    first = bench.last()
    output = bench.run(bench.config(), "-a", "vllm")
    assert "engine: vllm" in output
    assert bench.record("smol-vllm")["datasets"]["demo"]["prompt_ids_sha256"] == hashes
    assert ids(bench.answers("smol-vllm")) == ids(reference)

    process = bench.start("compare", first, bench.last())
    table, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert "100.0%" in table

    # Everything is stored: no engine is started again.
    output = bench.run(bench.config(), "-a", "vllm")
    assert "starting" not in output
    assert not list((bench.last() / "logs").rglob("*.log"))


def test_a_running_server_gives_the_same_ids(bench: Bench, reference: list[Answered], vllm_server: str) -> None:
    output = bench.run(bench.config(), "-a", "openai", "--api-base", vllm_server, "--api-model", "smol")
    assert "token ids, rendered and tokenised by evalswap" in output
    assert ids(bench.answers("smol-openai")) == ids(reference)


def test_stop_words_and_base_models_agree(bench: Bench, vllm_server: str, transformers_python: str) -> None:
    config = bench.config("HuggingFaceBaseModel", length=32, more="stop_words=['.', 'the number']")
    bench.run(config)
    reference = bench.answers("smol-hf")
    bench.run(config, "-a", "openai", "--api-base", vllm_server, "--api-model", "smol")
    swapped = bench.answers("smol-openai")
    assert ids(swapped) == ids(reference)
    assert [a.response.text for a in swapped if a.response] == [a.response.text for a in reference if a.response]
    stopped = [a.response for a in reference if a.response and a.response.finish_reason == "stop"]
    assert stopped, "no answer met a stop word: choose other words"
    assert all("." not in response.text and "the number" not in response.text for response in stopped)
    # A base model's prompt is the plain text, no template around it.
    store = Store(bench.work)
    query = "SELECT prompt FROM items WHERE run = ? AND row = 0"
    (prompt,) = store._db.execute(query, (bench.last().name,)).fetchone()
    store.close()
    assert "<|im_start|>" not in prompt


def test_an_engine_that_dies_mid_run_is_started_again(
    bench: Bench, reference: list[Answered], transformers_python: str, tmp_path: Path
) -> None:
    mine = Bench(tmp_path, bench.model)
    process = mine.start("run", mine.config(length=24), "-w", mine.work, "--limit", LIMIT)
    wait_for_answers(mine, process)
    before = stored(mine.work)
    for pid in engine_pids(process):
        os.kill(pid, signal.SIGKILL)
    output, _ = process.communicate(timeout=180)
    assert process.returncode == 0, output
    assert 0 < before < int(LIMIT)
    assert "transformers died while running (killed by SIGKILL)" in output
    assert "transformers is up again" in output
    assert "Traceback" not in output
    answers = mine.answers("smol-hf")
    assert ids(answers) == ids(reference)
    assert mine.record("smol-hf")["restarts"] == 1
    assert mine.record("smol-hf")["answers"]["asked"] == int(LIMIT)  # each once


def test_an_engine_that_dies_while_loading(bench: Bench, transformers_python: str, tmp_path: Path) -> None:
    broken = tmp_path / "model"
    broken.mkdir()
    for file in bench.model.iterdir():
        if file.suffix != ".safetensors":
            (broken / file.name).write_bytes(file.read_bytes())
    (broken / "model.safetensors").write_bytes(b"not weights")
    mine = Bench(tmp_path, broken)
    process = mine.start("run", mine.config(), "-w", mine.work, "--limit", LIMIT)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "transformers died while starting" in output
    assert "the whole log" in output
    assert f"smol-hf/demo: {LIMIT} without an answer" in output


@pytest.mark.parametrize("times", [1, 2])
def test_ctrl_c_leaves_no_engine_behind(bench: Bench, transformers_python: str, tmp_path: Path, times: int) -> None:
    mine = Bench(tmp_path, bench.model)
    process = mine.start("run", mine.config(length=24), "-w", mine.work, "--limit", "24")
    wait_for_answers(mine, process)
    engine = engine_pids(process)
    assert engine
    for _ in range(times):
        process.send_signal(signal.SIGINT)
        time.sleep(0.3)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130, output
    assert "the same command goes on from there" in output
    assert ("(partial: " in output) == (times == 1)
    assert not set(engine) & set(keeper.processes())  # a zombie that init has yet to reap is not there


def wait_for_answers(mine: Bench, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None and not stored(mine.work):
        time.sleep(0.05)


def engine_pids(process: subprocess.Popen[str]) -> list[int]:
    """Return the processes that a running evalswap has started, its keeper left out."""
    pids = []
    for pid in keeper.family(process.pid):
        command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        if pid != process.pid and keeper.__file__.encode() not in command:
            pids.append(pid)
    return pids


def stored(work: Path) -> int:
    if not (work / "responses.sqlite").is_file():
        return 0
    store = Store(work)
    try:
        (count,) = store._db.execute("SELECT count(*) FROM responses").fetchone()
        return int(count)
    finally:
        store.close()


def test_an_adapter_gives_the_same_ids_on_both(
    bench: Bench, reference: list[Answered], adapter: Path, vllm_python: str
) -> None:
    config = bench.config(more=f"peft_path={str(adapter)!r}")
    bench.run(config)
    ours = ids(bench.answers("smol-hf"))
    bench.run(config, "-a", "vllm")
    assert ids(bench.answers("smol-vllm")) == ours
    assert None not in ours
    moved = sum(one != other for one, other in zip(ours, ids(reference), strict=True))
    assert moved >= len(ours) // 2  # it was loaded at all
