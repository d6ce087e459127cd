"""``evalswap check``: what a run would meet is known before it is started."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import toy_engine
from fake_openai import FakeServer, error, serving
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.console import Console
from test_gguf import gguf

from evalswap.checking.architectures import Packages, architecture_support, packages_of
from evalswap.checking.findings import Finding, ModelCheck
from evalswap.checking.memory import GIB, gpu_memory, machine_memory, memory_need, weights_size
from evalswap.checking.prompts import MOST_CHARACTERS, MOST_ROWS, spread
from evalswap.checkpoint import Checkpoint, find_checkpoint
from evalswap.cli import main
from evalswap.config.specs import parse_model
from evalswap.conversion import EngineOptions, convert
from evalswap.engines.base import Launch
from evalswap.engines.registry import managed_engine
from evalswap.reporting.check_screen import show_checks
from evalswap.serving.environments import find_engine

LLAMA = {"architectures": ["LlamaForCausalLM"], "model_type": "llama"}


def launch(model: Path = Path(), **args: Any) -> Launch:
    options = {"dtype": "bfloat16", "context_len": 1000, "num_gpus": 1, "batch_size": 8, "trust_remote_code": False}
    chosen = {key: args.pop(key) for key in (*options, "device") if key in args}
    return Launch(model, **{"device": "cuda", **options, **chosen}, engine_args=args)


# -- the whole command -----------------------------------------------------------------------------------------


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data folder of its own, and a package that brings the engine "toy"."""
    toy_engine.install(tmp_path / "site", monkeypatch)
    monkeypatch.setenv("EVALSWAP_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("COLUMNS", "300")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")  # the command sets it for its process, which here is the tests'
    return tmp_path / "home"


def check(capsys: pytest.CaptureFixture[str], *words: str | Path) -> tuple[int, dict[str, Any]]:
    """Return the exit code and the JSON of the first model."""
    code = main(["check", "--json", *map(str, words)])
    said = json.loads(capsys.readouterr().out)
    assert said["ok"] == (code == 0)
    return code, said["models"][0]


def of(model: dict[str, Any], about: str) -> list[tuple[str, str]]:
    return [(finding["level"], finding["text"]) for finding in model["findings"] if finding["about"] == about]


def hints(model: dict[str, Any]) -> str:
    return "\n".join(finding["hint"] or "" for finding in model["findings"])


def test_everything_is_there(home: Path, demo_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--hf-path", demo_model, "--datasets", "demo", "-a", "toy"]
    code, model = check(capsys, *words)
    assert code == 0
    assert {finding["level"] for finding in model["findings"]} == {"good", "note"}
    assert of(model, "architecture")[0][0] == "note"  # a third party's engine has no table to read
    ((level, text),) = of(model, "engine")
    assert level == "good"
    assert text.startswith("toy 1.0 on cpu")
    assert model["figures"]["work"] == {"answers": 64, "answer_tokens": 64 * 128}
    prompts = model["figures"]["datasets"]["demo"]["prompts"]
    assert prompts["rows"] == prompts["looked_at"] == 64
    assert prompts["begins_with"] == "<|im_start|>"
    assert prompts["adds_bos"] is False
    assert model["first_prompt"].startswith("<|im_start|>system\n")
    assert "toy_engine.py" in model["figures"]["start"]["command"]
    assert model["translation"][0]["source"] == "path"

    assert main(["check", *map(str, words)]) == 0
    shown = capsys.readouterr().out
    for text in ("it can run", "│ <|im_start|>system", "translation of", "64 answers, 8192 tokens at most"):
        assert text in shown
    assert not home.exists()  # nothing is written


def test_it_imports_no_torch(home: Path, demo_model: Path) -> None:
    program = (
        "import sys; from evalswap.cli import main; code = main(sys.argv[1:]); "
        "assert not {'torch', 'vllm', 'sglang', 'lmdeploy'} & set(sys.modules); sys.exit(code)"
    )
    words = ["check", "--hf-path", str(demo_model), "--datasets", "demo", "-a", "toy"]
    done = subprocess.run([sys.executable, "-c", program, *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_an_engine_that_is_not_there(home: Path, demo_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, model = check(capsys, "--hf-path", demo_model, "--datasets", "demo", "-a", "sglang")
    assert code == 1
    assert of(model, "engine") == [("problem", "sglang is not installed")]
    assert "EVALSWAP_SGLANG_PYTHON=PATH" in hints(model)
    # All that can be known without it is known.
    for about in ("model", "dataset", "sampling", "prompts", "work"):
        assert of(model, about)[0][0] == "good"


@pytest.mark.parametrize(
    ("words", "missing", "refused"),
    [
        (["lmdeploy", "--model-kwargs", "dtype=float32"], "lmdeploy is not installed", "lmdeploy has no float32"),
        (["llamacpp", "--peft-path", "my/adapter"], "llamacpp needs llama-server", "my/adapter is no GGUF file"),
    ],
)
def test_an_engine_that_is_not_there_and_could_not_do_it(
    words: Sequence[str], missing: str, refused: str,
    home: Path, demo_model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.delenv("EVALSWAP_LLAMACPP_SERVER", raising=False)
    monkeypatch.setenv("PATH", str(home))
    code, model = check(capsys, "--hf-path", demo_model, "--datasets", "demo", "-a", *words)
    assert code == 1
    first, second = of(model, "engine")
    assert (first[0], second[0]) == ("problem", "problem")
    assert missing in first[1]
    assert refused in second[1]


def test_an_adapter_that_vllm_cannot_load_is_said_once(
    home: Path, demo_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, version in (("vllm", "0.26.0"), ("torch", "2.11.0")):
        info = tmp_path / "site" / f"{name}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    monkeypatch.setattr("evalswap.serving.environments.has_cuda", lambda: True)
    words = ["--hf-path", demo_model, "--datasets", "demo", "-a", "vllm", "--peft-path", tmp_path]
    code, model = check(capsys, *words, "--model-kwargs", "dtype=float32")
    assert code == 1
    (there, problem) = of(model, "engine")
    assert there[1].startswith("vllm 0.26.0 on cuda")
    assert problem == (
        "problem",
        "vllm loads no adapter in float32 on a GPU: its LoRA kernels take half precision only",
    )
    assert not of(model, "start")
    assert of(model, "sampling")[0][0] == "good"


def test_a_model_that_is_not_there(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, model = check(capsys, "--hf-path", "/no/such/model", "--datasets", "demo", "-a", "toy")
    assert code == 1
    assert of(model, "model") == [("problem", "model folder not found: /no/such/model")]
    assert not of(model, "tokenizer")  # said once
    code, model = check(capsys, "--hf-path", "no-such/model", "--datasets", "demo", "-a", "toy")
    assert code == 1
    assert "hf download no-such/model" in hints(model)


def test_a_model_without_weights_or_tokenizer(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "config.json").write_text(json.dumps(LLAMA))
    code, model = check(capsys, "--hf-path", tmp_path / "empty", "--datasets", "demo", "-a", "toy")
    assert code == 1
    assert of(model, "memory") == [("problem", f"{tmp_path / 'empty'}: no weights in it")]
    assert "no usable tokenizer" in of(model, "tokenizer")[0][1]


def test_data_that_is_not_there(
    home: Path, demo_model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("EVALSWAP_DATA", raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    code, model = check(capsys, "--hf-path", demo_model, "--datasets", "demo", "gsm8k", "-a", "toy")
    assert code == 1
    levels = {text.split(":")[0]: level for level, text in of(model, "dataset")}
    assert levels == {"demo": "good", "gsm8k": "problem"}
    assert "EVALSWAP_DATA" in hints(model)


def test_a_column_that_the_rows_lack(
    home: Path, demo_model: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    config = tmp_path / "eval.py"
    config.write_text(
        "from mmengine.config import read_base\nfrom opencompass.models import HuggingFacewithChatTemplate\n"
        "with read_base():\n    from .datasets.demo.demo_gen import demo_datasets as datasets\n"
        "datasets[0]['reader_cfg']['output_column'] = 'answers'\n"
        f"models = [dict(type=HuggingFacewithChatTemplate, abbr='m', path={str(demo_model)!r}, max_out_len=8)]\n"
    )
    code, model = check(capsys, config, "-a", "toy")
    assert code == 1
    ((_, text),) = [found for found in of(model, "scoring") if found[0] == "problem"]
    assert text.endswith("row 0: there is no column 'answers'")
    assert "did you mean 'answer'?" in hints(model)


def test_sampling_that_is_refused_or_emulated(home: Path, demo_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    drawn = ["--generation-kwargs", "do_sample=True", "temperature=0.7", "presence_penalty=0.5"]
    code, model = check(capsys, "--hf-path", demo_model, "--datasets", "demo", *drawn)
    assert code == 1
    assert "presence_penalty=0.5 cannot be asked of transformers" in of(model, "sampling")[0][1]
    code, model = check(capsys, "--hf-path", demo_model, "--datasets", "demo", "-a", "llamacpp")
    level, text = of(model, "sampling")[1]
    assert level == "note"
    assert text.startswith("demo: stop_token_ids is emulated: it ends answers")


def test_prompts_that_are_too_long_are_counted(
    home: Path, demo_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--hf-path", demo_model, "--datasets", "demo", "-a", "toy", "--max-seq-len", "80"]
    code, model = check(capsys, *words)
    assert code == 0
    prompts = model["figures"]["datasets"]["demo"]["prompts"]
    assert 0 < prompts["cut"] < 64
    assert prompts["longest"] > 80
    told = f"demo: {prompts['cut']} of 64 prompts are too long for max_seq_len=80 and are cut"
    assert ("note", told) in of(model, "prompts")


def test_a_base_model_shows_its_plain_prompt(home: Path, demo_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, model = check(capsys, "--hf-path", demo_model, "--hf-type", "base", "--datasets", "demo", "-a", "toy")
    assert "<|im_start|>" not in model["first_prompt"]


def test_limit_is_the_runs_limit(home: Path, demo_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, model = check(capsys, "--hf-path", demo_model, "--datasets", "demo", "-a", "toy", "--limit", "3")
    assert model["figures"]["work"] == {"answers": 3, "answer_tokens": 3 * 128}


def test_a_wrong_config_is_told_as_json_too(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "/no/such/config.py", "--json"]) == 2
    said = json.loads(capsys.readouterr().out)
    assert said["ok"] is False
    assert "/no/such/config.py" in said["error"]


def test_no_secret_is_shown(home: Path, demo_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--hf-path", str(demo_model), "--datasets", "demo", "-a", "toy", "--engine-args", "hf_token=hf_verysecret"]
    for form in (["check"], ["check", "--json"], ["run", "--dry-run"]):
        main([form[0], *words, *form[1:]])
        said = capsys.readouterr()
        assert "toy" in said.out
        assert "hf_verysecret" not in said.out + said.err


def test_answers_are_as_long_as_a_run_would_let_them_be(
    home: Path, demo_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "eval.py"
    text = (
        "from mmengine.config import read_base\n"
        "with read_base():\n    from .datasets.demo.demo_gen import demo_datasets as datasets\n"
        "datasets = [{{**d, 'infer_cfg': {{**d['infer_cfg'], 'inferencer': dict(type='GenInferencer')}}}}"
        " for d in datasets]\n"
        "models = [dict(type='HuggingFacewithChatTemplate', abbr='m', path={model!r}, max_seq_len=128, {more})]\n"
    )
    for more, length in (("", 512), ("generation_kwargs=dict(max_new_tokens=300)", 300), ("max_out_len=70", 70)):
        config.write_text(text.format(model=str(demo_model), more=more))
        code, model = check(capsys, config, "-a", "toy")
        assert code == 0
        assert f"up to {length} tokens" in of(model, "sampling")[0][1]
        assert model["figures"]["work"]["answer_tokens"] == 64 * length
        assert f'"context": {128 + length}' in model["figures"]["start"]["command"]
        assert "get less room" not in str(model["findings"])


def test_what_is_no_adapter_is_found(
    home: Path, demo_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("transformers", "torch"):
        info = tmp_path / "site" / f"{name}-9.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 9.0\n")
    monkeypatch.setenv("EVALSWAP_TRANSFORMERS_PYTHON", sys.executable)
    words = ["--hf-path", demo_model, "--datasets", "demo", "--peft-path"]
    (tmp_path / "empty").mkdir()
    for path, said in ((tmp_path / "gone", "adapter not found"), (tmp_path / "empty", "no adapter_config.json")):
        code, model = check(capsys, *words, path)
        assert code == 1
        ((level, text),) = of(model, "launch")
        assert level == "problem"
        assert said in text
    (tmp_path / "empty" / "adapter_config.json").write_text("{}")
    assert check(capsys, *words, tmp_path / "empty")[0] == 0


def test_a_warm_server_is_named(home: Path, demo_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--hf-path", str(demo_model), "-a", "toy", "--detach"]) == 0
    capsys.readouterr()
    try:
        code, model = check(capsys, "--hf-path", demo_model, "--datasets", "demo", "-a", "toy")
        assert code == 0
        assert model["figures"]["start"]["warm"].startswith("http://127.0.0.1:")
        assert of(model, "start")[0][1].startswith("using the warm toy 1.0")
        assert not of(model, "memory")  # it has its memory
    finally:
        assert main(["serve", "--stop", "all"]) == 0


# -- GGUF files, for llama.cpp ----------------------------------------------------------------------------------


@pytest.fixture
def gguf_folder(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a GGUF and nothing else, and a program that says of itself what a llama-server says."""
    program = tmp_path / "llama-server"
    program.write_text("#!/bin/sh\necho 'version: 6789 (0123456)' >&2\n")
    program.chmod(0o755)
    monkeypatch.setenv("EVALSWAP_LLAMACPP_SERVER", str(program))
    folder = tmp_path / "models"
    folder.mkdir()
    (folder / "m-f16.gguf").write_bytes(gguf({"general.architecture": "llama", "general.file_type": 1}))
    return folder


def test_a_gguf_file_says_what_it_is(gguf_folder: Path, demo_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = gguf_folder / "m-f16.gguf"
    words = ["--datasets", "demo", "-a", "llamacpp"]
    code, model = check(capsys, "--hf-path", file, "--tokenizer-path", demo_model, *words)
    assert code == 0
    assert of(model, "model") == [("good", f"{file} (llama (GGUF), float16)")]
    assert model["figures"]["architecture"]["names"] == ["llama (GGUF)"]
    assert model["figures"]["memory"]["weights"] == file.stat().st_size
    # A config.json and a tokenizer beside it are used, and the weights are still the file's.
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (gguf_folder / name).symlink_to(demo_model / name)
    code, model = check(capsys, "--hf-path", file, *words)
    assert code == 0
    assert of(model, "model") == [("good", f"{file} (llama (GGUF), float16)")]
    assert of(model, "prompts")[0][0] == "good"


def test_a_gguf_without_a_tokenizer(gguf_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, model = check(capsys, "--hf-path", gguf_folder / "m-f16.gguf", "--datasets", "demo", "-a", "llamacpp")
    assert code == 1
    told = f"no tokenizer in {gguf_folder}; the one inside a GGUF is not read"
    assert [finding["text"] for finding in model["findings"] if finding["level"] == "problem"] == [told]
    assert "--tokenizer-path" in hints(model)


@pytest.mark.parametrize(
    ("name", "told", "hint"),
    [
        ("m-f32.gguf", "no such GGUF file: {folder}/m-f32.gguf", "did you mean 'm-f16.gguf'?"),
        ("broken.gguf", "{folder}/broken.gguf: not a whole GGUF file", "get it again"),
        (
            "big-00001-of-00003.gguf",
            "of its 3 parts 2 are not beside it",
            "get big-00002-of-00003.gguf, big-00003-of-00003.gguf",
        ),
        ("", "{folder}: which of big-00001-of-00003.gguf, broken.gguf, m-f16.gguf?", "--engine-args model="),
    ],
)
def test_a_gguf_that_cannot_be_loaded_is_said_once(
    name: str, told: str, hint: str, gguf_folder: Path, demo_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (gguf_folder / "broken.gguf").write_bytes(b"GGUF")
    (gguf_folder / "big-00001-of-00003.gguf").write_bytes(b"GGUF")
    words = ["--tokenizer-path", demo_model, "--datasets", "demo", "-a", "llamacpp"]
    code, model = check(capsys, "--hf-path", gguf_folder / name, *words)
    assert code == 1
    (problem,) = (finding for finding in model["findings"] if finding["level"] == "problem")
    assert problem["about"] == "model"
    assert told.format(folder=gguf_folder) in problem["text"]
    assert hint in problem["hint"]
    assert of(model, "prompts")[0][0] == "good"  # what can be known without it is known


def test_a_folder_without_a_gguf(gguf_folder: Path, demo_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, model = check(capsys, "--hf-path", demo_model, "--datasets", "demo", "-a", "llamacpp")
    assert code == 1
    assert of(model, "model") == [
        ("problem", f"{demo_model.resolve()}: no .gguf file, and llama.cpp reads nothing else")
    ]
    assert not of(model, "start")


# -- servers that somebody else runs ---------------------------------------------------------------------------


def endpoint(url: str, name: str = "demo") -> list[str]:
    return ["--hf-path", "any", "--datasets", "demo", "-a", "openai", "--api-base", url, "--api-model", name]


def test_a_server_that_takes_messages(home: Path, demo_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with serving(FakeServer()) as server:
        code, model = check(capsys, *endpoint(server.url), "--tokenizer-path", str(demo_model))
        assert code == 0
        assert of(model, "server") == [("good", f"{server.url} serves demo (fake)")]
        assert ("good", "it gets messages; template applied by the server") in of(model, "protocol")
        assert model["first_prompt"].startswith("user: Amina")
        code, model = check(capsys, *endpoint(server.url), "--hf-type", "base")
        assert code == 1
        assert "chat template around a base model's prompt" in of(model, "protocol")[-1][1]


def test_a_wrong_model_name_lists_what_is_served(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with serving(FakeServer(fault=lambda *_: error(404, "The model `demmo` does not exist."))) as server:
        code, model = check(capsys, *endpoint(server.url, "demmo"))
    assert code == 1
    ((level, text),) = of(model, "server")
    assert level == "problem"
    assert "serves no model 'demmo'" in text
    assert "did you mean 'demo'? it serves: demo" in hints(model)
    assert model["figures"]["server"]["serves"] == ["demo"]


def test_no_server_at_the_address(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, model = check(capsys, *endpoint("http://127.0.0.1:9/v1"))
    assert code == 1
    assert "no server answers at http://127.0.0.1:9/v1" in of(model, "server")[0][1]


# -- architectures ---------------------------------------------------------------------------------------------

TRANSFORMERS_TABLE = """
from collections import OrderedDict
MODEL_MAPPING_NAMES = OrderedDict([("bert", "BertModel")])
MODEL_FOR_CAUSAL_LM_MAPPING_NAMES = OrderedDict(
    [("llama", "LlamaForCausalLM"), ("two", ("TwoForCausalLM", "TwoForOther")), ("niche", "NicheForCausalLM")]
)
"""
VLLM_TABLE = """
import torch
_TEXT_GENERATION_MODELS = {
    # a comment
    "LlamaForCausalLM": ("llama", "LlamaForCausalLM"),
}
_EMBEDDING_MODELS: dict = {"BertModel": ("bert", "BertModel")}
_MULTIMODAL_MODELS = {"SeesForConditionalGeneration": ("sees", "Sees")}
_TRANSFORMERS_SUPPORTED_MODELS = {"TwoForCausalLM": ("transformers", "TransformersForCausalLM")}
_PREVIOUSLY_SUPPORTED_MODELS = {"OldForCausalLM": "0.9.2"}
"""
SGLANG_MODELS = {
    "llama.py": "import x\nEntryClass = [\n    LlamaForCausalLM,  # and Gone\n    Phi3ForCausalLM,\n]\n",
    "one.py": "EntryClass = TwoForCausalLM\n",
    "typed.py": "EntryClass: list = [TypedForCausalLM]\n",
    "broken.py": "def (:\nEntryClass = BrokenForCausalLM",
}
LMDEPLOY_TABLES = {
    "turbomind/supported_models.py": "SUPPORTED_ARCHS = dict(\n    LlamaForCausalLM='llama',\n)\n",
    "pytorch/models/module_map.py": (
        "MODULE_MAP = dict()\nOTHER = {'NotThisOne': 1}\nMODULE_MAP.update({'TwoForCausalLM': f'{1}.two'})\n"
        "OTHER.update({'NorThis': 1})\n"
    ),
}


@pytest.fixture
def packages(tmp_path: Path) -> Packages:
    """Packages with tables in the shape of the real ones."""
    files = {
        "transformers/models/auto/modeling_auto.py": TRANSFORMERS_TABLE,
        "vllm/model_executor/models/registry.py": VLLM_TABLE,
        **{f"sglang/srt/models/{name}": text for name, text in SGLANG_MODELS.items()},
        **{f"lmdeploy/{name}": text for name, text in LMDEPLOY_TABLES.items()},
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return Packages({name: tmp_path / name for name in ("transformers", "vllm", "sglang", "lmdeploy")})


@pytest.mark.parametrize(
    ("engine", "name", "supported", "told"),
    [
        ("transformers", "LlamaForCausalLM", True, ""),
        ("transformers", "TwoForOther", True, ""),
        ("transformers", "BertModel", False, "generates text"),
        ("vllm", "LlamaForCausalLM", True, ""),
        ("vllm", "SeesForConditionalGeneration", True, ""),
        ("vllm", "TwoForCausalLM", True, "by transformers' implementation"),
        ("vllm", "NicheForCausalLM", None, "its transformers backend may run it"),
        ("vllm", "OldForCausalLM", False, "was in vLLM until 0.9.2"),
        ("vllm", "BertModel", False, "not as a model that generates text"),
        ("vllm", "NoSuchForCausalLM", False, "neither vLLM nor the transformers beside it"),
        ("sglang", "Phi3ForCausalLM", True, ""),
        ("sglang", "TwoForCausalLM", True, ""),
        ("sglang", "TypedForCausalLM", True, ""),
        ("sglang", "BrokenForCausalLM", True, ""),
        ("sglang", "Gone", False, ""),
        ("sglang", "NicheForCausalLM", None, "its transformers backend may run it"),
        ("lmdeploy", "LlamaForCausalLM", True, "TurboMind"),
        ("lmdeploy", "TwoForCausalLM", False, "backend=pytorch"),
        ("lmdeploy", "NorThis", False, "-a vllm"),
        ("llamacpp", "LlamaForCausalLM", None, "does not tell before it loads"),
        ("somebodys", "LlamaForCausalLM", None, "does not tell before it loads"),
    ],
)
def test_what_an_engines_tables_say(
    packages: Packages, engine: str, name: str, supported: bool | None, told: str
) -> None:
    support = architecture_support(engine, launch(), {"architectures": [name]}, packages)
    assert support.supported is supported
    assert told in f"{support.text} {support.hint}"
    assert name in support.text
    assert supported is not False or support.hint


def test_the_backend_that_is_asked_for_counts(packages: Packages) -> None:
    asked = launch(backend="pytorch")
    assert architecture_support("lmdeploy", asked, {"architectures": ["TwoForCausalLM"]}, packages).supported
    assert architecture_support("lmdeploy", asked, LLAMA, packages).supported is False


def test_a_models_own_code_is_run_only_where_it_is_trusted(packages: Packages) -> None:
    config = {"architectures": ["OwnForCausalLM"], "auto_map": {"AutoModelForCausalLM": "own.Own"}}
    refused = architecture_support("transformers", launch(), config, packages)
    assert refused.supported is False
    assert "trust_remote_code=True" in (refused.hint or "")
    trusted = launch(trust_remote_code=True)
    assert architecture_support("transformers", trusted, config, packages).supported is None
    assert architecture_support("vllm", trusted, config, packages).supported is None


@pytest.mark.parametrize("engine", ["transformers", "vllm", "sglang", "lmdeploy"])
@pytest.mark.parametrize("text", ["", "def (:", "_TEXT_GENERATION_MODELS = make()\nSUPPORTED_ARCHS = f()\n", "\0"])
def test_tables_that_cannot_be_read_are_unknown(packages: Packages, engine: str, text: str) -> None:
    for name in ("transformers", engine):
        for file in packages.folders[name].rglob("*.py"):
            file.write_text(text)
    assert architecture_support(engine, launch(), LLAMA, packages).supported is None
    assert architecture_support(engine, launch(), LLAMA, Packages({})).supported is None
    assert architecture_support(engine, launch(), {}, packages).supported is None


@pytest.mark.e2e
@pytest.mark.parametrize("engine", ["transformers", "vllm"])
def test_the_tables_of_the_installed_engines_are_read(engine: str, request: pytest.FixtureRequest) -> None:
    request.getfixturevalue(f"{engine}_python")
    found = packages_of(find_engine(managed_engine(engine)), (engine, "transformers"))
    assert set(found.folders) == {engine, "transformers"}
    assert architecture_support(engine, launch(), LLAMA, found).supported is True
    assert architecture_support(engine, launch(), {"architectures": ["NoSuchForCausalLM"]}, found).supported is False


# -- memory ----------------------------------------------------------------------------------------------------

SIZES = {"F32": 4, "BF16": 2, "F16": 2, "I8": 1, "U8": 1, "I32": 4}
LLAMA_8B = {"num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "hidden_size": 4096}


def test_what_a_finding_is_about_is_no_markup() -> None:
    found = ModelCheck("llama[awq]", "toy", "HuggingFacewithChatTemplate", (), [Finding("good", "a[b][/]", "c[d]")])
    console = Console(record=True, width=120)
    plan = convert(parse_model({"type": "HuggingFacewithChatTemplate", "abbr": "m", "path": "m"}, "m"), EngineOptions())
    show_checks(console, [plan], [found], str)
    text = console.export_text()
    assert "a[b][/]" in text
    assert "c[d]" in text


def write_safetensors(file: Path, tensors: Sequence[tuple[str, int]]) -> None:
    """Write a file with a header of (dtype, elements) and no data behind it: nothing else is read."""
    header, place = {}, 0
    for number, (dtype, elements) in enumerate(tensors):
        end = place + elements * SIZES[dtype]
        header[f"t{number}"] = {"dtype": dtype, "shape": [elements], "data_offsets": [place, end]}
        place = end
    text = json.dumps({"__metadata__": {"format": "pt"}, **header}).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text)


def checkpoint(folder: Path, tensors: Sequence[tuple[str, int]] = (("BF16", 1000),), **config: Any) -> Checkpoint:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"torch_dtype": "bfloat16", **config}))
    write_safetensors(folder / "model.safetensors", tensors)
    return find_checkpoint(str(folder))


def need(model: Checkpoint, engine: str = "vllm", **options: Any) -> Any:
    return memory_need(managed_engine(engine), launch(model.folder, **options), model)


def test_weights_count_in_the_dtype_that_they_are_loaded_in(tmp_path: Path) -> None:
    model = checkpoint(tmp_path / "m", [("BF16", 1000), ("F32", 10), ("I8", 100)])
    assert need(model, dtype="float32").weights == 4000 + 40 + 100
    assert need(model, dtype="bfloat16").weights == 2000 + 20 + 100
    assert need(model, dtype="auto").weights == 2000 + 20 + 100  # the checkpoint's: bfloat16
    quantised = checkpoint(tmp_path / "q", [("F16", 10), ("I32", 100)], quantization_config={"quant_method": "awq"})
    assert need(quantised, dtype="float32").weights == 20 + 400


def test_weights_that_lie_there_twice_count_once(tmp_path: Path) -> None:
    model = checkpoint(tmp_path / "m", [("BF16", 1000)])
    write_safetensors(model.folder / "consolidated.safetensors", [("BF16", 1000)])
    (model.folder / "pytorch_model.bin").write_bytes(b"x" * 2000)
    assert weights_size(model, 2) == 2000
    write_safetensors(model.folder / "a.safetensors", [("BF16", 30)])
    index = {"weight_map": {"t0": "a.safetensors", "t1": "a.safetensors"}}
    (model.folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert weights_size(model, 2) == 60


def test_llama_cpp_loads_one_file_as_it_is(tmp_path: Path) -> None:
    model = checkpoint(tmp_path / "m", [("BF16", 1000)])
    (model.folder / "m.Q4.gguf").write_bytes(b"x" * 123)
    assert need(model, "llamacpp", dtype="float32").weights == 123
    for part in (1, 2):
        (model.folder / f"m-0000{part}-of-00002.gguf").write_bytes(b"x" * 1000)
    first_of_two = replace(launch(model.folder), engine_args={"model": "m-00001-of-00002.gguf"})
    assert memory_need(managed_engine("llamacpp"), first_of_two, model).weights == 2000


def test_the_cache_of_llama_cpp_is_of_a_dtype_of_its_own(tmp_path: Path) -> None:
    model = checkpoint(tmp_path / "m", **LLAMA_8B)
    (model.folder / "m.gguf").write_bytes(b"x")
    for dtype, asked, kib in (("float32", {}, 256), ("auto", {}, 128), ("float32", {"cache_type_k": "q8_0"}, 64)):
        assert need(model, "llamacpp", dtype=dtype, **asked).cache_per_token == kib * 1024


def test_the_cache_of_known_models(tmp_path: Path) -> None:
    """Llama-3-8B takes 128 KiB a token in bfloat16; DeepSeek-V2's latent cache 576 elements in each of 60 layers."""
    llama = checkpoint(tmp_path / "llama", **LLAMA_8B)
    found = need(llama, context_len=8192)
    assert found.cache_per_token == 128 * 1024
    assert found.one_sequence == GIB
    assert found.full_load == GIB * found.in_flight
    assert need(llama, dtype="float32").cache_per_token == 256 * 1024
    assert need(llama, kv_cache_dtype="fp8").cache_per_token == 64 * 1024
    heads = {"num_attention_heads": 128, "hidden_size": 5120}
    latent = checkpoint(tmp_path / "mla", num_hidden_layers=60, kv_lora_rank=512, qk_rope_head_dim=64, **heads)
    assert need(latent).cache_per_token == 60 * 576 * 2
    old = checkpoint(tmp_path / "gpt2", n_layer=12, n_head=12, n_embd=768)
    assert need(old).cache_per_token == 2 * 12 * 768 * 2
    nested = checkpoint(tmp_path / "sees", text_config=LLAMA_8B, hidden_size=1)
    assert need(nested).cache_per_token == 128 * 1024


def test_windows_and_layers_without_a_cache(tmp_path: Path) -> None:
    shape = {"num_hidden_layers": 4, "num_attention_heads": 2, "head_dim": 8, "hidden_size": 16, "sliding_window": 100}
    kinds = ["sliding_attention", "full_attention", "sliding_attention", "full_attention"]
    element = 2 * 2 * 8 * 2
    mixed = checkpoint(tmp_path / "mixed", layer_types=kinds, **shape)
    assert need(mixed, context_len=1000).one_sequence == element * (100 + 1000 + 100 + 1000)
    linear = ["linear_attention", "full_attention", "mamba", "full_attention"]
    assert need(checkpoint(tmp_path / "linear", layer_types=linear, **shape)).one_sequence == element * 2000
    # It does not say for which layers the window holds: the safe side.
    assert need(checkpoint(tmp_path / "said", **shape)).one_sequence == element * 4000


def test_what_config_json_does_not_tell_is_unknown(tmp_path: Path) -> None:
    found = need(checkpoint(tmp_path / "m"))
    assert (found.cache_per_token, found.one_sequence, found.full_load) == (None, None, None)


STRANGE = st.recursive(
    st.none() | st.integers() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["a", "dtype", "data_offsets"]), inner),
    max_leaves=8,
)


def with_length(value: Any) -> bytes:
    text = json.dumps(value).encode()
    return len(text).to_bytes(8, "little") + text


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=64) | STRANGE.map(with_length))
def test_no_header_breaks_the_counting(tmp_path: Path, data: bytes) -> None:
    model = checkpoint(tmp_path / "m")
    (model.folder / "model.safetensors").write_bytes(data)
    # A header of no tensors is one. Else the file's size is what is known.
    assert weights_size(model, 2) == (0 if data[8:] == b"{}" else len(data))


NVIDIA_SMI = """#!{python} -S
import sys
gpus = {gpus!r}
if "-L" in sys.argv:
    print("".join(f"GPU {{index}}: NVIDIA Toy ({{uuid}})\\n" for index, uuid, *_ in gpus), end="")
else:
    print("".join(", ".join(map(str, gpu)) + "\\n" for gpu in gpus), end="")
"""


def pretend_gpus(folder: Path, monkeypatch: pytest.MonkeyPatch, *memory: tuple[int, int]) -> None:
    """Put an nvidia-smi on the PATH that tells of GPUs with so many MiB in all and free."""
    gpus = [(index, f"GPU-{index}abc", total, free) for index, (total, free) in enumerate(memory)]
    folder.mkdir(exist_ok=True)
    (folder / "nvidia-smi").write_text(NVIDIA_SMI.format(python=sys.executable, gpus=gpus))
    (folder / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def test_the_gpus_that_a_run_would_see(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_gpus(tmp_path / "bin", monkeypatch, (80000, 70000), (40000, 40000))
    found = gpu_memory()
    assert found is not None
    assert (found.devices, found.total, found.free) == (2, 40000 << 20, 40000 << 20)
    for visible, total in (("0", 80000), ("GPU-0abc", 80000), ("1", 40000)):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        found = gpu_memory()
        assert found is not None
        assert (found.devices, found.total) == (1, total << 20)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert gpu_memory() is None
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    (tmp_path / "bin" / "nvidia-smi").write_text("#!/bin/sh\necho 'NVIDIA-SMI has failed'; exit 9\n")
    assert gpu_memory() is None


def test_this_machines_memory() -> None:
    found = machine_memory()
    assert found is not None
    assert 0 < found.free <= found.total


def test_each_copy_of_a_model_needs_its_weights(
    home: Path, demo_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pretend_gpus(tmp_path / "bin", monkeypatch, (400, 400), (400, 400))
    words = ["--hf-path", demo_model, "--datasets", "demo", "-a", "toy", "--hf-num-gpus", "2"]
    assert of(check(capsys, *words)[1], "memory")[0][0] == "good"
    ((level, text), *_) = of(check(capsys, *words, "--engine-args", "copies=2")[1], "memory")
    assert (level, "too little" in text) == ("problem", True)


@pytest.mark.parametrize(
    ("gpu", "words", "level", "told", "hint"),
    [
        ((80000, 79000), [], "good", "a GPU has 78.1 GiB, 77.1 GiB free", ""),
        ((300, 300), [], "problem", "too little", "max_seq_len"),
        ((80000, 100), [], "problem", "another program holds the rest", "CUDA_VISIBLE_DEVICES"),
        ((80000, 79000), ["--engine-args", "copies=3"], "problem", "3 GPUs are wanted", "copies"),
        ((80000, 79000), ["--hf-num-gpus", "2"], "problem", "2 GPUs are wanted, but this machine shows 1", "num_gpus"),
    ],
)
def test_memory_on_a_gpu(
    home: Path, demo_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str], gpu: tuple[int, int], words: list[str], level: str, told: str, hint: str,
) -> None:  # fmt: skip
    pretend_gpus(tmp_path / "bin", monkeypatch, gpu)
    code, model = check(capsys, "--hf-path", demo_model, "--datasets", "demo", "-a", "toy", *words)
    assert code == (0 if level == "good" else 1)
    assert of(model, "memory")[0][0] == level
    assert told in of(model, "memory")[0][1]
    assert hint in hints(model)


def test_a_cache_that_is_too_small_on_a_cpu(
    home: Path, demo_model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("toy_engine.ENVIRONMENT", {"VLLM_CPU_KVCACHE_SPACE": "0.1"})
    code, model = check(capsys, "--hf-path", demo_model, "--datasets", "demo", "-a", "toy")
    assert code == 1
    assert "not even one fits" in of(model, "memory")[0][1]
    assert "VLLM_CPU_KVCACHE_SPACE=1" in hints(model)


# -- the sample of rows ----------------------------------------------------------------------------------------


@settings(deadline=None)
@given(number=st.integers(1, 5000), length=st.sampled_from([1, 100, 5000]))
def test_rows_are_spread_evenly_and_few(number: int, length: int) -> None:
    rows = [{"question": "x" * length, "number": index} for index in range(number)]
    chosen = [row["number"] for row in spread(rows)]
    assert chosen[0] == 0
    assert 1 <= len(chosen) <= MOST_ROWS
    assert len({later - earlier for earlier, later in pairwise(chosen)}) <= 1
    assert len(chosen) == 1 or len(chosen) * length <= MOST_CHARACTERS
    if number <= MOST_ROWS and number * (length + 4) < MOST_CHARACTERS:
        assert len(chosen) == number
