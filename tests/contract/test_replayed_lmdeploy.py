"""LMDeploy on a machine without a GPU: a Python that seems to have it, where it is a recording of the real one.

What is replaced is the package alone. evalswap finds the interpreter, starts the engine by its command line, renders
the questions, asks, decodes and scores as ever; and so does the recorder, whose recording of a recording is the same.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import cases
import pytest
from questions import DEMO_ROWS, load_questions
from recording import Exchange, Recording
from witness import HERE, RECORDINGS, REPO

from evalswap.store import Store

pytestmark = pytest.mark.e2e  # it needs the demo model's tokenizer

LMDEPLOY = [file for file in RECORDINGS if file.stem.startswith("lmdeploy")]
PACKAGE = {
    "torch.py": "",
    "lmdeploy/__init__.py": "",
    "lmdeploy/archs.py": "def autoget_backend(model, trust_remote_code=False):\n    return 'turbomind'\n",
    "lmdeploy/cli/__init__.py": "",
    "lmdeploy/cli/entrypoint.py": """
import os
import sys


def run():
    assert sys.argv[:3] == ["lmdeploy", "serve", "api_server"], sys.argv
    port = sys.argv[sys.argv.index("--server-port") + 1]
    os.execv(sys.executable, [sys.executable, REPLAY, RECORDING, "--port", port])
""",
}
CONFIG = """
from mmengine.config import read_base
from opencompass.models import HuggingFacewithChatTemplate

with read_base():
    from .datasets.demo.demo_gen import demo_datasets as datasets

datasets[0]['infer_cfg']['inferencer']['max_out_len'] = {length}
models = [dict(type=HuggingFacewithChatTemplate, abbr='smol', path={path!r}, max_seq_len=1024,
               model_kwargs=dict(torch_dtype={dtype!r}))]
"""


@pytest.fixture(params=LMDEPLOY, ids=lambda file: file.stem)
def file(request: pytest.FixtureRequest) -> Path:
    return Path(request.param)


@pytest.fixture
def recording(file: Path) -> Recording:
    return Recording.load(file)


@pytest.fixture
def python(file: Path, recording: Recording, tmp_path: Path) -> Path:
    """A Python whose LMDeploy answers from the recording."""
    site, version = tmp_path / "site", recording.facts["version"]
    places = f"REPLAY = {str(HERE / 'replay.py')!r}\nRECORDING = {str(file)!r}\n"
    metadata = f"Metadata-Version: 2.1\nName: lmdeploy\nVersion: {version}\n"
    for name, content in {**PACKAGE, f"lmdeploy-{version}.dist-info/METADATA": metadata}.items():
        module = site / name
        module.parent.mkdir(parents=True, exist_ok=True)
        module.write_text(places + content if name.endswith("entrypoint.py") else content)
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nPYTHONPATH="{site}" exec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    return python


def run(command: list[str | Path], recording: Recording, **variables: str) -> None:
    arguments = [f"{key}={value}" for key, value in recording.facts["engine_args"].items()]
    words = [sys.executable, *map(str, command), *(["--engine-args", *arguments] if arguments else [])]
    env = {**os.environ, "COLUMNS": "200", **variables}
    done = subprocess.run(words, capture_output=True, text=True, env=env, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr


def test_an_evaluation(recording: Recording, python: Path, demo_model: Path, tmp_path: Path) -> None:
    facts, work, config = recording.facts, tmp_path / "work", tmp_path / "eval_replayed.py"
    config.write_text(CONFIG.format(length=cases.LENGTH, path=str(demo_model), dtype=facts["dtype"]))
    command = ["-m", "evalswap", "run", config, "-a", "lmdeploy", "--limit", str(DEMO_ROWS), "-w", work]
    run(command, recording, EVALSWAP_LMDEPLOY_PYTHON=str(python))

    (folder,) = work.glob("2*")
    record = json.loads((folder / "run.json").read_text())["models"]["smol-lmdeploy"]
    assert (record["engine"]["name"], record["engine"]["version"]) == ("lmdeploy", facts["version"])
    store = Store(work)
    answers = list(store.answers(folder.name, "smol-lmdeploy/demo"))
    store.close()
    said: dict[tuple[int, ...], list[int]] = {}  # what the engine said first to a prompt: its greedy answer
    for exchange in recording.exchanges:
        if exchange.status == 200 and exchange.body:
            said.setdefault(tuple(exchange.body["input_ids"]), exchange.answer["output_ids"])
    prompts = load_questions()
    assert len(answers) == DEMO_ROWS
    for row, answer in enumerate(answers):
        assert answer.response is not None
        assert list(answer.response.token_ids or ()) == said[tuple(prompts[f"demo-{row}"])]
        assert answer.response.text


def test_recording_again(recording: Recording, python: Path, demo_model: Path, tmp_path: Path) -> None:
    out = tmp_path / "again.json"
    script = REPO / "scripts" / "record_engine.py"
    run([script, "lmdeploy", "--model", demo_model, "--out", out, "--engine-python", python], recording)
    again = Recording.load(out)
    for name in ("engine", "engine_args", "version", "dtype", "model_identity"):
        assert again.facts[name] == recording.facts[name], name

    def asked(source: Recording) -> list[Exchange]:
        return [exchange for exchange in source.exchanges if exchange.method == "POST"]

    assert asked(again) == asked(recording)
    assert str(tmp_path) not in out.read_text()
    assert str(demo_model) not in out.read_text()
