"""Each engine's own facts: its command line, how it is asked, what its answers, its load and its log mean."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from evalswap.cli import main
from evalswap.data_folder import data_folder
from evalswap.engines.answers import as_ids
from evalswap.engines.base import EngineLoad, FinalAnswerError, Launch, MalformedAnswer, ManagedEngine
from evalswap.engines.flags import flags, tensor_parallel
from evalswap.engines.prometheus import read_metrics
from evalswap.engines.registry import managed_engine, managed_engine_names
from evalswap.engines.start_modes import EAGER_TOKENS, GRAPHS_TOKENS, start_mode
from evalswap.errors import ConversionError, ModelFilesError
from evalswap.plan import LaunchPlan
from evalswap.records import Completion, Prompt, Request, Sampling
from evalswap.serving.environments import Interpreter

OURS = ("transformers", "vllm", "sglang", "lmdeploy", "llamacpp")
SERVED = ("vllm", "sglang", "lmdeploy", "llamacpp")
PROMPT = (1, 5, 6, 7)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EVALSWAP_HOME", str(tmp_path / "home"))
    for name in ("VLLM_CACHE_ROOT", "TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR", "TVM_FFI_CACHE_DIR"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "home"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Return a model's folder, as far as a command line looks into one."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "m.gguf").touch()
    return folder


def launch(model: Path, device: str = "cuda", **change: Any) -> Launch:
    values: dict[str, Any] = {
        "model": model, "dtype": "bfloat16", "context_len": 2048, "num_gpus": 1, "batch_size": 8,
        "trust_remote_code": False, "device": device,
    }  # fmt: skip
    return Launch(**(values | change))


def command(name: str, launch: Launch, port: int = 4321) -> dict[str, str]:
    """Return an engine's flags → values, "" for bare ones; the last of a kind counts, as for each argparse."""
    words = managed_engine(name).command(launch, Path("/bin/x"), port)
    assert words[0] == "/bin/x"
    found: dict[str, str] = {}
    for word, after in zip(words, [*words[1:], "--"], strict=True):
        if word.startswith("--"):
            found[word] = "" if after.startswith("--") else after
    return found


def request(**sampling: Any) -> Request:
    values = {"max_new_tokens": 4, "stop_token_ids": (2, 9)} | sampling
    return Request("key", "job", 0, Prompt((), None, PROMPT), Sampling(**values))


# ---- command lines


def test_the_engines_that_come_along() -> None:
    assert set(OURS) <= set(managed_engine_names())
    assert managed_engine_names()[0] == "transformers"
    for name in OURS:
        assert managed_engine(name).name == name


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("name", OURS)
def test_servers_listen_on_loopback_alone(name: str, device: str, model: Path) -> None:
    words = command(name, launch(model, device))
    assert words.get("--host", words.get("--server-name")) == "127.0.0.1"
    assert words.get("--port", words.get("--server-port")) == "4321"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("vllm", {"--generation-config": "vllm", "--seed": "0", "--max-model-len": "2048", "--dtype": "bfloat16"}),
        ("sglang", {"--sampling-defaults": "openai", "--random-seed": "0", "--dtype": "bfloat16"}),
        ("lmdeploy", {"--generation-config": "lmdeploy", "--backend": "turbomind", "--dtype": "bfloat16"}),
    ],
)
def test_nothing_is_left_to_a_servers_defaults(name: str, expected: dict[str, str], model: Path) -> None:
    words = command(name, launch(model))
    assert {flag: words.get(flag) for flag in expected} == expected


@pytest.mark.parametrize(
    ("name", "flag"), [("sglang", "--context-length"), ("lmdeploy", "--session-len"), ("llamacpp", "--ctx-size")]
)
def test_an_answer_may_fill_the_context_to_its_last_token(name: str, flag: str, model: Path) -> None:
    """These shorten an answer that comes within a few tokens of their limit, and say nothing."""
    slots = int(command(name, launch(model)).get("--parallel", 1))
    assert int(command(name, launch(model))[flag]) // slots >= 2048 + 2


@pytest.mark.parametrize("name", SERVED)
def test_code_of_a_checkpoint_runs_only_if_asked_for(name: str, model: Path) -> None:
    assert "--trust-remote-code" not in command(name, launch(model))
    if name != "llamacpp":
        assert "--trust-remote-code" in command(name, launch(model, trust_remote_code=True))


@pytest.mark.parametrize("name", SERVED)
def test_what_the_user_says_wins(name: str, model: Path) -> None:
    words = command(name, launch(model, engine_args={"host": "0.0.0.0", "--max-model-len": 7, "new_flag": True}))
    assert words["--host"] == "0.0.0.0"
    assert words["--max-model-len"] == "7"
    assert words["--new-flag"] == ""


@pytest.mark.parametrize(
    ("name", "flag"), [("vllm", "--tensor-parallel-size"), ("sglang", "--tp-size"), ("lmdeploy", "--tp")]
)
def test_num_gpus_is_tensor_parallel(name: str, flag: str, model: Path) -> None:
    assert command(name, launch(model, num_gpus=4))[flag] == "4"
    replicas = {"vllm": "data_parallel_size", "sglang": "dp-size", "lmdeploy": "dp"}[name]
    assert command(name, launch(model, num_gpus=4, engine_args={replicas: 2}))[flag] == "2"


@pytest.mark.parametrize("name", ["vllm", "sglang"])
def test_pipeline_parallel_shares_the_gpus(name: str, model: Path) -> None:
    flag = {"vllm": "--tensor-parallel-size", "sglang": "--tp-size"}[name]
    assert command(name, launch(model, num_gpus=8, engine_args={"pipeline_parallel_size": 2}))[flag] == "4"


def test_gpus_that_cannot_be_shared(model: Path) -> None:
    with pytest.raises(ConversionError, match=r"num_gpus=3 cannot be shared by 2 data-parallel"):
        tensor_parallel(launch(model, num_gpus=3), replicas=2)
    assert tensor_parallel(launch(model, num_gpus=1), replicas=2) == 1  # each replica has one of its own


def test_flags_of_every_kind() -> None:
    made = flags({"a_b": 1, "--c-d": True, "e": False, "f": None, "g": {"h": [1]}, "i": ["x", 2]})
    assert made == ["--a-b", "1", "--c-d", "--g", '{"h": [1]}', "--i", "x", "2"]


@pytest.mark.parametrize(("name", "words"), [("vllm", ["--no-on-by-default"]), ("llamacpp", ["--no-on-by-default"]),
                                             ("sglang", []), ("lmdeploy", []), ("transformers", [])])  # fmt: skip
def test_a_flag_can_be_switched_off(name: str, words: list[str], model: Path) -> None:
    command = managed_engine(name).command(launch(model, engine_args={"on_by_default": False}), Path("x"), 1)
    assert [word for word in command if "on-by-default" in word] == words
    assert "False" not in command
    assert not any(word.startswith("--no-") for word in command if word not in words)


def test_a_number_is_wanted(model: Path) -> None:
    with pytest.raises(ConversionError, match="--engine-args max_num_seqs=many: a whole number is wanted"):
        managed_engine("vllm").window(launch(model, engine_args={"max_num_seqs": "many"}))


# ---- windows


@pytest.mark.parametrize(
    ("name", "most", "flag"),
    [
        ("vllm", "max_num_seqs", "--max-num-seqs"),
        ("sglang", "max-running-requests", "--max-running-requests"),
        ("lmdeploy", "max_batch_size", "--max-batch-size"),
        ("llamacpp", "parallel", "--parallel"),
    ],
)
def test_the_window_is_what_the_server_works_on(name: str, most: str, flag: str, model: Path) -> None:
    engine = managed_engine(name)
    one = engine.window(launch(model))
    assert command(name, launch(model))[flag] == str(one)
    assert engine.window(launch(model, "cpu")) <= one
    few = launch(model, answers=5)
    assert (engine.window(few), command(name, few)[flag]) == (5, "5")  # nothing is made ready for more
    asked = launch(model, engine_args={most: 33})
    assert (engine.window(asked), command(name, asked)[flag]) == (33, "33")


@pytest.mark.parametrize(
    ("name", "replicas"), [("vllm", "data_parallel_size"), ("sglang", "dp_size"), ("lmdeploy", "dp")]
)
def test_replicas_widen_the_window(name: str, replicas: str, model: Path) -> None:
    engine = managed_engine(name)
    one = engine.window(launch(model))
    assert engine.window(launch(model, num_gpus=2, engine_args={replicas: 2})) == 2 * one
    assert engine.window(launch(model, engine_args={replicas: 2})) == 2 * one


@pytest.mark.parametrize(
    ("name", "replicas", "flag"),
    [("vllm", "data_parallel_size", "max_num_seqs"), ("sglang", "dp_size", "max_running_requests")],
)
def test_an_engine_s_limit_is_of_each_copy(name: str, replicas: str, flag: str, model: Path) -> None:
    """vLLM: config/scheduler.py, "applies per data-parallel rank"; SGLang divides it by attention's groups alone."""
    engine = managed_engine(name)
    word = "--" + flag.replace("_", "-")
    eight = launch(model, num_gpus=8, engine_args={replicas: 8, flag: 256})
    assert (engine.window(eight), command(name, eight)[word]) == (8 * 256, "256")
    few = launch(model, num_gpus=8, engine_args={replicas: 8}, answers=20)
    assert (engine.window(few), command(name, few)[word]) == (24, "3")
    split = launch(model, num_gpus=8)
    assert int(command(name, split)[word]) <= 1024  # a step has 2048 tokens on smaller GPUs, and vLLM refuses more


def test_data_parallel_attention_is_one_copy_over_all_gpus(model: Path) -> None:
    wanted = launch(model, num_gpus=4, engine_args={"enable_dp_attention": True, "dp_size": 4})
    words = command("sglang", wanted)
    assert (words["--tp-size"], words["--dp-size"]) == ("4", "4")  # SGLang: tp_size is a multiple of dp_size
    assert int(words["--max-running-requests"]) == managed_engine("sglang").window(wanted) == 4 * 1024


def test_transformers_window_follows_a_batch_size_among_its_flags(model: Path) -> None:
    wanted = launch(model, engine_args={"batch_size": 32})
    assert command("transformers", wanted)["--batch-size"] == "32"
    assert managed_engine("transformers").window(wanted) == 64


def test_threads_are_an_engine_s_own_matter_beside_a_gpu(model: Path) -> None:
    for name in OURS:
        assert "OMP_NUM_THREADS" not in managed_engine(name).environment(launch(model))


def test_a_vllm_of_several_copies_may_start_as_slowly_as_one(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = managed_engine("vllm")
    assert float(engine.environment(launch(model))["VLLM_ENGINE_READY_TIMEOUT_S"]) >= 4 * engine.start_deadline
    monkeypatch.setenv("VLLM_ENGINE_READY_TIMEOUT_S", "60")
    assert engine.environment(launch(model))["VLLM_ENGINE_READY_TIMEOUT_S"] == "60"


@pytest.mark.parametrize(
    ("log", "hint"),
    [
        ("ValueError: Model architectures ['X'] are not supported for now.", "does not have this architecture"),
        ("ValueError: Model architectures ['X'] failed to be inspected. Please check the logs", "has this arch"),
        ("max_num_batched_tokens (2048) must be greater than or equal to max_num_seqs (4096).", "lower --engine-args"),
    ],
)
def test_what_vllm_s_complaints_mean(log: str, hint: str) -> None:
    assert hint in (managed_engine("vllm").explain(log) or "")


@pytest.mark.parametrize(("answers", "sizes"), [(5, "1 2 4 5"), (12, "1 2 4 8 12")])
def test_sglang_captures_no_larger_graphs_than_there_is_work(answers: int, sizes: str, model: Path) -> None:
    wanted = launch(model, answers=answers, engine_args={"start_mode": "graphs"})
    words = managed_engine("sglang").command(wanted, Path("python"), 1)
    place = words.index("--cuda-graph-bs-decode")
    assert words[place + 1 : place + 1 + len(sizes.split())] == sizes.split()
    assert words[place + 1 + len(sizes.split())].startswith("--")


def test_sglang_makes_ready_what_the_work_is_worth(model: Path) -> None:
    eager = command("sglang", launch(model, answer_tokens=200_000))
    assert eager["--cuda-graph-backend-decode"] == eager["--cuda-graph-backend-prefill"] == "disabled"
    graphs = command("sglang", launch(model, answer_tokens=200_001))
    assert "--cuda-graph-bs-decode" in graphs and "--cuda-graph-bs-prefill" in graphs
    full = command("sglang", launch(model, answer_tokens=GRAPHS_TOKENS + 1))
    assert "--cuda-graph-bs-decode" in full and "--cuda-graph-bs-prefill" not in full
    for own in ({"cuda_graph_max_bs_decode": 8}, {"disable_cuda_graph": True}):
        words = command("sglang", launch(model, engine_args=own, answer_tokens=1))
        assert [word for word in words if "cuda-graph" in word] == [f"--{next(iter(own)).replace('_', '-')}"]
    on_cpu = command("sglang", launch(model, "cpu", engine_args={"start_mode": "graphs"}))
    assert not [word for word in on_cpu if "cuda-graph" in word or "start-mode" in word]


def test_transformers_knows_its_own_flags() -> None:
    engine = managed_engine("transformers")
    engine.configured(LaunchPlan("m", engine_args={"--batch-size": 4, "dtype": "float32"}))
    with pytest.raises(ConversionError, match="--engine-args batch_sise: transformers has no such flag") as caught:
        engine.configured(LaunchPlan("m", engine_args={"batch_sise": 4}))
    assert caught.value.hint == "did you mean 'batch_size'?"


def test_sglang_has_no_float32_on_a_gpu(model: Path) -> None:
    with pytest.raises(ConversionError, match="no float32 on a GPU"):
        command("sglang", launch(model, dtype="float32"))
    assert command("sglang", launch(model, "cpu", dtype="float32"))["--dtype"] == "float32"
    engine = managed_engine("sglang")
    with pytest.raises(ConversionError, match="no float32 on a GPU"):
        engine.configured(LaunchPlan("m", dtype="float32"), "cuda")
    engine.configured(LaunchPlan("m", dtype="float32"), "cpu")


def test_vllm_loads_no_adapter_in_float32_on_a_gpu(model: Path) -> None:
    (model / "adapter_config.json").write_text('{"r": 8}')
    engine, adapter = managed_engine("vllm"), str(model)
    refused = "vllm loads no adapter in float32 on a GPU"
    with pytest.raises(ConversionError, match=refused) as caught:
        engine.configured(LaunchPlan("m", dtype="float32", peft_path=adapter), "cuda")
    assert "dtype=bfloat16" in (caught.value.hint or "")
    with pytest.raises(ConversionError, match=refused):
        command("vllm", launch(model, dtype="float32", peft_path=adapter))  # the checkpoint's own
    for device, dtype, path in (("cpu", "float32", adapter), ("cuda", "bfloat16", adapter), ("cuda", "float32", None)):
        engine.configured(LaunchPlan("m", dtype=dtype, peft_path=path), device)
        assert command("vllm", launch(model, device, dtype=dtype, peft_path=path))["--dtype"] == dtype


# ---- how much an engine makes ready before the first question


@pytest.mark.parametrize(
    ("tokens", "device", "mode"),
    [
        (None, "cuda", "full"),
        (GRAPHS_TOKENS + 1, "cuda", "full"),
        (GRAPHS_TOKENS, "cuda", "graphs"),
        (EAGER_TOKENS + 1, "cuda", "graphs"),
        (EAGER_TOKENS, "cuda", "eager"),
        (None, "cpu", "eager"),
    ],
)
def test_the_start_mode_follows_the_work(tokens: int | None, device: str, mode: str, model: Path) -> None:
    wanted = launch(model, device, answer_tokens=tokens)
    assert start_mode(wanted) == mode
    words = command("vllm", wanted)
    assert ("--enforce-eager" in words) == (mode == "eager")
    assert ("--compilation-config" in words) == (mode == "graphs")
    if mode == "graphs":
        config = json.loads(words["--compilation-config"])
        assert (config["mode"], config["cudagraph_mode"]) == (0, "FULL_DECODE_ONLY")
        assert config["cudagraph_capture_sizes"][-1] <= int(words["--max-num-seqs"])


@pytest.mark.parametrize(("answers", "sizes"), [(1, [1]), (5, [1, 2, 4, 5]), (8, [1, 2, 4, 8])])
def test_vllm_makes_no_larger_graphs_than_there_is_work(answers: int, sizes: list[int], model: Path) -> None:
    words = command("vllm", launch(model, answers=answers, engine_args={"start_mode": "graphs"}))
    assert json.loads(words["--compilation-config"])["cudagraph_capture_sizes"] == sizes


def test_the_start_mode_can_be_chosen(model: Path) -> None:
    little = {"answer_tokens": 1}
    for mode, flag in (("full", None), ("graphs", "--compilation-config"), ("eager", "--enforce-eager")):
        words = command("vllm", launch(model, engine_args={"start_mode": mode}, **little))
        assert [f for f in ("--compilation-config", "--enforce-eager") if f in words] == [flag] * bool(flag)
        assert "--start-mode" not in words
    for own in ({"enforce_eager": False}, {"compilation_config": {"mode": 3}}, {"optimization_level": 1}):
        words = command("vllm", launch(model, engine_args=own, **little))
        assert "--enforce-eager" not in words
        assert words.get("--compilation-config") in (None, '{"mode": 3}')
    with pytest.raises(ConversionError, match="start_mode=eagre: unknown") as caught:
        command("vllm", launch(model, engine_args={"start_mode": "eagre"}))
    assert caught.value.hint == "did you mean 'eager'?"


# ---- environments


@pytest.mark.parametrize("name", ["vllm", "sglang", "lmdeploy"])
def test_what_was_compiled_is_kept(name: str, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = managed_engine(name)
    kept = data_folder() / "caches" / name
    assert engine.environment(launch(model))["TRITON_CACHE_DIR"] == str(kept / "triton")
    monkeypatch.setenv("TRITON_CACHE_DIR", "/mine")
    assert "TRITON_CACHE_DIR" not in engine.environment(launch(model))


@pytest.mark.parametrize("name", OURS)
def test_no_engine_looks_into_the_network(name: str, model: Path) -> None:
    env = managed_engine(name).environment(launch(model))
    assert "1" in (env.get("HF_HUB_OFFLINE"), env.get("LLAMA_ARG_OFFLINE"))


@pytest.mark.parametrize("name", ["transformers", "vllm"])
def test_float32_on_a_gpu_has_no_tf32_in_it(name: str, model: Path) -> None:
    tf32 = {"NVIDIA_TF32_OVERRIDE": "0", "TRITON_F32_DEFAULT": "ieee"}
    engine = managed_engine(name)
    assert tf32.items() <= engine.environment(launch(model, dtype="float32")).items()
    assert not tf32.keys() & engine.environment(launch(model)).keys()
    assert not tf32.keys() & engine.environment(launch(model, "cpu", dtype="float32")).keys()


@pytest.mark.parametrize("flag", ["tensor_parallel_size", "pipeline-parallel-size", "tp"])
def test_on_a_cpu_the_parts_of_a_model_have_a_process_each(
    flag: str, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """vLLM's executor for one process would wait for the other for ever."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    engine = managed_engine("vllm")
    whole, halves = launch(model, "cpu"), launch(model, "cpu", engine_args={flag: 2})
    assert command("vllm", whole)["--distributed-executor-backend"] == "uni"
    assert engine.environment(whole)["VLLM_ENABLE_V1_MULTIPROCESSING"] == "0"
    assert command("vllm", halves)["--distributed-executor-backend"] == "mp"
    assert "VLLM_ENABLE_V1_MULTIPROCESSING" not in engine.environment(halves)
    assert (engine.environment(whole)["OMP_NUM_THREADS"], engine.environment(halves)["OMP_NUM_THREADS"]) == ("8", "4")


def test_copies_of_a_model_share_a_cpus_cores(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    engine = managed_engine("vllm")
    copies = launch(model, "cpu", engine_args={"data_parallel_size": 16})
    assert engine.environment(copies)["OMP_NUM_THREADS"] == "1"
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "auto")
    assert engine.environment(copies)["OMP_NUM_THREADS"] == "3"
    assert engine.environment(copies)["VLLM_CPU_OMP_THREADS_BIND"] == "auto"


# ---- adapters


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 12}))
    return folder


def test_vllm_serves_the_adapter_under_the_name_that_is_asked_for(model: Path, adapter: Path) -> None:
    words = command("vllm", launch(model, peft_path=str(adapter)))
    assert words["--lora-modules"] == f"evalswap={adapter}"
    assert words["--served-model-name"] == "base"
    assert words["--max-lora-rank"] == "16"
    assert managed_engine("vllm").call(request()).body["model"] == "evalswap"
    assert command("vllm", launch(model))["--served-model-name"] == "evalswap"


def test_sglang_is_asked_for_the_adapter(model: Path, adapter: Path) -> None:
    words = command("sglang", launch(model, peft_path=str(adapter)))
    assert words["--lora-paths"] == f"evalswap={adapter}"
    plain, adapted = (managed_engine("sglang", LaunchPlan("m", peft_path=path)) for path in (None, str(adapter)))
    assert "lora_path" not in plain.call(request()).body
    assert adapted.call(request()).body["lora_path"] == "evalswap"


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (None, "no adapter in"),
        ("{", "not an adapter's config"),
        ('{"peft_type": "LORA"}', "not an adapter's config"),
        ('{"peft_type": "PROMPT_TUNING", "r": 8}', "LoRA adapters, not PROMPT_TUNING"),
        ('{"r": 4096}', "up to rank 512, not 4096"),
    ],
)
def test_what_is_no_adapter(config: str | None, message: str, model: Path, adapter: Path) -> None:
    file = adapter / "adapter_config.json"
    file.unlink() if config is None else file.write_text(config)
    with pytest.raises((ModelFilesError, ConversionError), match=message) as caught:
        command("vllm", launch(model, peft_path=str(adapter)))
    assert caught.value.hint


@pytest.mark.parametrize(
    ("extra", "refused_by"),
    [
        ({}, ()),
        ({"use_rslora": False, "rank_pattern": {}, "alpha_pattern": None, "modules_to_save": None, "bias": "none"}, ()),
        ({"init_lora_weights": True}, ()),
        ({"init_lora_weights": "gaussian"}, ()),
        ({"use_rslora": True}, ("sglang",)),  # it scales by alpha/r; vLLM and peft by alpha/sqrt(r)
        ({"rank_pattern": {"q_proj": 4}}, ("sglang", "vllm")),
        ({"alpha_pattern": {"q_proj": 4}}, ("sglang", "vllm")),
        ({"modules_to_save": ["lm_head"]}, ("sglang", "vllm")),
        ({"trainable_token_indices": [5]}, ("sglang", "vllm")),
        ({"use_dora": True}, ("sglang", "vllm")),
        ({"bias": "all"}, ("sglang", "vllm")),
        ({"init_lora_weights": "pissa_niter_16"}, ("sglang", "vllm")),
    ],
)
@pytest.mark.parametrize("name", ["sglang", "vllm"])
def test_what_an_adapter_asks_for_is_done_or_refused(
    name: str, extra: dict[str, Any], refused_by: tuple[str, ...], model: Path, adapter: Path
) -> None:
    (adapter / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 8, **extra}))
    for act in (
        lambda: managed_engine(name, LaunchPlan("m", peft_path=str(adapter))),  # when a config is converted
        lambda: command(name, launch(model, peft_path=str(adapter))),
    ):
        if name not in refused_by:
            act()
            continue
        with pytest.raises(ConversionError, match=f"{name} does not do what this adapter asks for: ") as caught:
            act()
        assert f"{next(iter(extra))}={next(iter(extra.values()))!r}" in caught.value.message
        others = "transformers" if "vllm" in refused_by else "transformers, vllm"
        assert (caught.value.hint or "").startswith("merge it into the checkpoint")
        assert (caught.value.hint or "").endswith(f"; engines that do it: {others}")


@pytest.mark.parametrize("name", ["sglang", "vllm"])
def test_an_adapter_of_the_hub_is_looked_at_in_its_cache(
    name: str, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    engine = managed_engine(name, LaunchPlan("m", peft_path="org/adapter"))  # it is looked for before the start
    with pytest.raises(ModelFilesError, match="no adapter in org/adapter"):
        engine.command(launch(model, peft_path="org/adapter"), Path("x"), 1)
    repo = tmp_path / "hub" / "models--org--adapter"
    config = repo / "snapshots" / "abc" / "adapter_config.json"
    config.parent.mkdir(parents=True)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text("abc")
    config.write_text(json.dumps({"r": 12}))
    assert command(name, launch(model, peft_path="org/adapter"))
    config.write_text(json.dumps({"r": 12, "use_dora": True}))
    with pytest.raises(ConversionError, match="use_dora=True"):
        managed_engine(name, LaunchPlan("m", peft_path="org/adapter"))


def test_llamacpp_takes_adapters_of_its_own_kind(model: Path) -> None:
    assert command("llamacpp", launch(model, peft_path="a.gguf"))["--lora"] == "a.gguf"
    with pytest.raises(ConversionError, match="the adapter my/adapter is no GGUF file") as caught:
        managed_engine("llamacpp", LaunchPlan("m", peft_path="my/adapter"))
    assert "convert_lora_to_gguf.py" in (caught.value.hint or "")


# ---- LMDeploy


def test_lmdeploy_has_no_float32(model: Path) -> None:
    for act in (
        lambda: managed_engine("lmdeploy", LaunchPlan("m", dtype="float32")),
        lambda: command("lmdeploy", launch(model, dtype="float32")),  # the checkpoint's own
    ):
        with pytest.raises(ConversionError, match="lmdeploy has no float32") as caught:
            act()
        assert "dtype=bfloat16" in (caught.value.hint or "")


STAND_INS = {
    "torch.py": "",
    "lmdeploy/__init__.py": "import sys\nassert 'torch' in sys.modules, 'torch comes first'\n",
    "lmdeploy/archs.py": (
        "def autoget_backend(model, trust_remote_code=False):\n"
        "    return 'pytorch' if 'unsupported' in model else 'turbomind'\n"
    ),
    "lmdeploy/cli/__init__.py": "",
    "lmdeploy/cli/entrypoint.py": "import sys\ndef run():\n    print(*sys.argv)\n",
}


@pytest.mark.parametrize(
    ("folder", "backend", "works"),
    [("fine", "turbomind", True), ("unsupported", "turbomind", False), ("unsupported", "pytorch", True)],
)
def test_lmdeploy_never_changes_its_backend_in_silence(
    folder: str, backend: str, works: bool, tmp_path: Path, model: Path
) -> None:
    """Its start module runs in a Python whose lmdeploy is a stand-in: the real one needs a GPU."""
    for name, source in STAND_INS.items():
        file = tmp_path / "site" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(source)
    wanted = launch(tmp_path / folder, engine_args={"backend": backend})
    words = managed_engine("lmdeploy").command(wanted, Path(sys.executable), 1)
    env = {"PYTHONPATH": str(tmp_path / "site"), "PYTHONSAFEPATH": "1"}
    done = subprocess.run(words, capture_output=True, text=True, env=env, timeout=60)
    assert (done.returncode == 0) == works, done.stderr
    if works:
        assert done.stdout.startswith(f"lmdeploy serve api_server {tmp_path / folder} --backend {backend} ")
    else:
        assert done.stderr.strip() == "ERROR: TurboMind does not run this model"
        assert "backend=pytorch" in (managed_engine("lmdeploy").explain(done.stderr) or "")


# ---- llama.cpp


def test_the_gguf_to_load(model: Path) -> None:
    assert command("llamacpp", launch(model))["--model"] == str(model / "m.gguf")
    (model / "other.gguf").touch()
    with pytest.raises(ModelFilesError, match=r"which of m\.gguf, other\.gguf\?") as caught:
        command("llamacpp", launch(model))
    assert caught.value.hint == "name it: --engine-args model=m.gguf"
    named = command("llamacpp", launch(model, engine_args={"model": "other.gguf"}))
    assert named["--model"] == str(model / "other.gguf")
    elsewhere = launch(model.parent, engine_args={"model": str(model / "m.gguf")})
    assert command("llamacpp", elsewhere)["--model"] == str(model / "m.gguf")
    with pytest.raises(ModelFilesError, match="no such GGUF file"):
        command("llamacpp", launch(model, engine_args={"model": "no.gguf"}))
    for file in model.glob("*.gguf"):
        file.unlink()
    with pytest.raises(ModelFilesError, match=r"no \.gguf file") as caught:
        command("llamacpp", launch(model))
    assert "convert_hf_to_gguf.py" in (caught.value.hint or "")


def test_float32_means_the_kv_cache_too(model: Path) -> None:
    exact = command("llamacpp", launch(model, dtype="float32"))
    assert (exact["--cache-type-k"], exact["--cache-type-v"], exact["--flash-attn"]) == ("f32", "f32", "off")
    assert not {"--cache-type-k", "--flash-attn"} & set(command("llamacpp", launch(model)))


# ---- answers


def generated(ids: list[int], kind: str = "stop", **finish: Any) -> dict[str, Any]:
    meta = {"finish_reason": {"type": kind, **finish}, "prompt_tokens": 4, "cached_tokens": 3}
    return {"text": "x", "output_ids": ids, "meta_info": meta}


def completion(ids: list[int], kind: str = "eos", **more: Any) -> dict[str, Any]:
    return {"content": "x", "tokens": ids, "stop_type": kind, "tokens_evaluated": 4, "timings": {"cache_n": 3}, **more}


def read(name: str, answer: Any, **sampling: Any) -> Completion:
    return managed_engine(name).read(answer, request(**sampling))


def test_an_answer_with_its_end() -> None:
    for name, answer in (
        ("sglang", generated([5, 2], matched=2)),
        ("lmdeploy", generated([5, 2])),
        ("llamacpp", completion([5, 2])),
    ):
        made = read(name, answer)
        assert (made.token_ids, made.finish_reason, made.prompt_tokens, made.cached_tokens) == ((5, 2), "stop", 4, 3)


@pytest.mark.parametrize("name", ["sglang", "lmdeploy"])
def test_an_answer_as_long_as_it_may_be(name: str) -> None:
    assert read(name, generated([5, 5, 5, 5], "length", length=4)).finish_reason == "length"
    # SGLang says "length" also where the last token that fits is a stop; transformers and vLLM say "stop".
    assert read(name, generated([5, 5, 5, 2], "length", length=4)).finish_reason == "stop"
    with pytest.raises(FinalAnswerError, match=r"ran out of room after 2 of 4 tokens"):
        read(name, generated([5, 5], "length", length=2))


@pytest.mark.parametrize("name", ["sglang", "lmdeploy", "llamacpp"])
def test_an_end_that_nobody_asked_for(name: str) -> None:
    """The server ends answers at tokens of its own choice, too; transformers would have written on."""
    answer = completion([5, 99]) if name == "llamacpp" else generated([5, 99], matched=99)
    with pytest.raises(FinalAnswerError, match=rf"{name} ended the answer at token 99, .* \(2, 9\)") as caught:
        read(name, answer)
    assert "eos_token_id" in (caught.value.hint or "")


def test_an_answer_that_ends_at_a_text() -> None:
    assert read("sglang", generated([5, 6], matched="END"), stop=("END",)).finish_reason == "stop"
    assert read("llamacpp", completion([5, 6], "word"), stop=("END",)).finish_reason == "stop"
    with pytest.raises(FinalAnswerError, match="NaN happened"):
        read("sglang", generated([5, 6], matched="NaN happened"), stop=("END",))


def test_llamacpp_writes_past_a_stop_that_it_does_not_know() -> None:
    """evalswap cuts there, so it was long enough."""
    assert read("llamacpp", completion([5, 9, 6, 99])).finish_reason == "stop"
    assert read("llamacpp", completion([5, 9, 6, 7], "limit")).finish_reason == "stop"
    assert read("llamacpp", completion([5, 5, 5, 5], "limit")).finish_reason == "length"
    with pytest.raises(FinalAnswerError, match="ran out of room"):
        read("llamacpp", completion([5], "limit", truncated=True))


def test_llamacpp_may_write_a_token_too_many() -> None:
    assert read("llamacpp", completion([5, 5, 5, 5, 6], "limit")).token_ids == (5, 5, 5, 5)


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("sglang", generated([5], "abort", message="out of memory")),
        ("lmdeploy", generated([5], "error")),
        ("lmdeploy", generated([5], "abort")),
        ("llamacpp", completion([5], "none")),
        *((name, broken) for name in ("sglang", "lmdeploy", "llamacpp") for broken in ({}, [], None, "x", 7)),
        ("sglang", {"output_ids": "5", "meta_info": {}}),
        ("sglang", {**generated([5]), "meta_info": {"finish_reason": None, "prompt_tokens": 1}}),
        ("llamacpp", {**completion([5]), "tokens": [5, "x"]}),
    ],
)
def test_what_is_no_answer_is_asked_again(name: str, answer: Any) -> None:
    with pytest.raises(MalformedAnswer):
        read(name, answer)


def test_ids_are_whole_numbers() -> None:
    assert as_ids([1, 2], "x") == (1, 2)
    for wrong in (None, "12", [1.5], [True], {}):
        with pytest.raises(MalformedAnswer, match="no list of token ids"):
            as_ids(wrong, "x")


# ---- load

VLLM_METRICS = """\
# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="evalswap"} 61.0
vllm:num_requests_running{engine="1",model_name="evalswap"} 3.0
vllm:num_requests_waiting{engine="0",model_name="evalswap"} 7.0
vllm:num_requests_waiting{engine="1",model_name="evalswap"} 0.0
vllm:num_requests_waiting_by_reason{engine="0",reason="capacity"} 7.0
vllm:kv_cache_usage_perc{engine="0",model_name="evalswap"} 0.25
vllm:kv_cache_usage_perc{engine="1",model_name="evalswap"} 0.5
vllm:request_success_created{engine="0",finished_reason="stop"} 1.7e+09
"""
LMDEPLOY_METRICS = """\
lmdeploy:num_requests_running{model_name="evalswap"} 64.0
lmdeploy:num_requests_waiting{model_name="evalswap"} 7.0
lmdeploy:gpu_cache_usage_perc{model_name="evalswap"} 0.5
"""
LLAMACPP_METRICS = """\
llamacpp:kv_cache_usage_ratio 0.5
llamacpp:requests_processing 64
llamacpp:requests_deferred 7
"""
SGLANG_LOADS = json.dumps(
    {"loads": [{"dp_rank": 0, "num_running_reqs": 61, "num_waiting_reqs": 7, "token_usage": 0.5},
               {"dp_rank": 1, "num_running_reqs": 3, "num_waiting_reqs": 0, "token_usage": 0.25}]}
)  # fmt: skip


@pytest.mark.parametrize(
    ("name", "content"),
    [("vllm", VLLM_METRICS), ("lmdeploy", LMDEPLOY_METRICS), ("llamacpp", LLAMACPP_METRICS), ("sglang", SGLANG_LOADS)],
)
def test_how_busy_an_engine_is(name: str, content: str) -> None:
    engine = managed_engine(name)
    assert engine.load_path
    assert engine.read_load(content) == EngineLoad(running=64, waiting=7, cache_used=0.5)
    for nothing in ("", "<html>", "{}", "[]", "null", "lmdeploy:num_requests_running x"):
        assert engine.read_load(nothing) is None


def test_metrics_as_prometheus_writes_them() -> None:
    content = '# TYPE a gauge\na{b="}",c="x y"} 1.5 1700000000\na 2\nd 1e3\ne nothing\nf NaN\n'
    assert read_metrics(content) == {"a": [1.5, 2.0], "d": [1000.0]}


# ---- what the log of a dead engine is taken for


@pytest.mark.parametrize(
    ("name", "line", "help"),
    [
        ("vllm", "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.", "gpu_memory_utilization"),
        ("vllm", "ValueError: No available memory for the cache blocks. Try increasing", "num_gpus"),
        ("vllm", "cache is needed, which is larger than the available KV cache memory (0.2 GiB).", "max_seq_len"),
        ("vllm", "Free memory on device is less than desired GPU memory utilization (0.9", "gpu_memory_utilization"),
        ("vllm", "Model architectures ['Foo'] are not supported for now. Supported", "this architecture"),
        ("sglang", "RuntimeError: Not enough memory. Please try to increase --mem-fraction-static.", "mem_fraction"),
        ("sglang", "ValueError: Model architectures ['Foo'] are not supported for now.", "this architecture"),
        ("lmdeploy", "RuntimeError: No enough gpu memory for kv cache.", "cache_max_entry_count"),
        ("lmdeploy", "RuntimeError: Can not found rewrite for architectures: ['Foo']", "this architecture"),
        ("llamacpp", "llama_model_load: error loading model: unknown model architecture: 'foo'", "a newer one"),
        ("llamacpp", "ggml_backend_cuda_buffer_type_alloc_buffer: failed to allocate CUDA0 buffer", "parallel"),
        ("llamacpp", "gguf_init_from_file_impl: invalid magic characters: 'abcd', expected 'GGUF'", "no GGUF"),
    ],
)
def test_known_complaints_have_a_remedy(name: str, line: str, help: str) -> None:
    log = f"INFO loading\n{line}\nbye\n"
    assert help in (managed_engine(name).explain(log) or "")
    assert managed_engine(name).explain("INFO all is well\n") is None


# ---- by name, on the command line


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (["python", "openai"], 1, "evalswap does not start an engine 'openai' → it starts transformers, llamacpp, "),
        (["python", "vlm"], 2, "unknown engine 'vlm' → did you mean 'vllm'?"),
        (["install", "turbomind"], 1, "lmdeploy cannot be installed here"),
        (["install", "llama.cpp"], 1, "llamacpp needs no installation"),
        (["install", "openai"], 1, "openai needs no installation"),
        (["install", "vlm"], 2, "unknown engine 'vlm' → did you mean 'vllm'?"),
    ],
)
def test_an_engine_that_cannot_be_had(
    words: list[str], code: int, told: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert main(["engines", *words]) == code
    assert told in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("name", ["hf", "HuggingFace", "transformers"])
def test_an_engine_is_installed_by_any_of_its_names(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def install(engine: str, *_: Any, **__: Any) -> Interpreter:
        asked.append(engine)
        return Interpreter(engine, Path("python"), "installed", "1", {}, "cpu")

    monkeypatch.setattr("evalswap.serving.environments.install", install)
    assert main(["engines", "install", name]) == 0
    assert asked == ["transformers"]


def test_every_engine_settles_every_field_of_a_plan() -> None:
    for name in OURS:
        engine: ManagedEngine = managed_engine(name)
        assert {"dtype", "num_gpus", "max_seq_len", "trust_remote_code"} <= set(engine.flag_names)
        assert (engine.program is None) == bool(engine.distributions)
