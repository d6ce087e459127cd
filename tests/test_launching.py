"""What an engine is started with, once the model's files are known: dtype, context, weights, adapters."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from test_gguf import gguf

from evalswap.checkpoint import find_checkpoint
from evalswap.config.specs import parse_model
from evalswap.conversion import EngineOptions, convert
from evalswap.engines.base import Launch
from evalswap.engines.registry import managed_engine
from evalswap.errors import ConfigError, ConversionError, ModelFilesError
from evalswap.serving.environments import Interpreter
from evalswap.serving.launching import PreparedEngine, Workload, is_context_known, resolve_launch

CONFIG = {"architectures": ["LlamaForCausalLM"], "max_position_embeddings": 131072}
PHI = {**CONFIG, "rope_scaling": {"type": "longrope"}, "original_max_position_embeddings": 4096}


def make_model(folder: Path, config: Mapping[str, Any] = CONFIG, dtype: str = "F16") -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    header = json.dumps({
        "__metadata__": {"format": "pt"},
        "ids": {"dtype": "I64", "shape": [1], "data_offsets": [0, 8]},
        "w": {"dtype": dtype, "shape": [2], "data_offsets": [8, 12]},
    }).encode()  # fmt: skip
    (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"\0" * 12)
    return folder


def prepared(path: Path, engine: str, **spec: Any) -> PreparedEngine:
    """Return an engine as a run would start it on a GPU, for answers of 512 tokens unless said."""
    args, longest_answer = spec.pop("engine_args", {}), spec.pop("longest_answer", 512)
    entry = {"type": "HuggingFacewithChatTemplate", "abbr": "m", "path": str(path), **spec}
    plan = convert(parse_model(entry, "models[0]"), EngineOptions(accelerator=engine, engine_args=args))
    assert plan.launch is not None
    gguf = engine == "llamacpp"
    named = str(plan.launch.engine_args.get("model") or "")
    checkpoint = find_checkpoint(plan.launch.path, gguf=gguf, gguf_name=named)
    found = Interpreter(engine, Path("/bin/python"), "installed", "1", {}, "cuda")
    launch = resolve_launch(plan.launch, plan, checkpoint, found, Workload(longest_answer))
    engine_of_it = managed_engine(plan.engine).configured(plan.launch, "cuda")
    return PreparedEngine(engine_of_it, found, checkpoint, launch, is_context_known(plan, checkpoint))


def launch(path: Path, engine: str, **spec: Any) -> Launch:
    return prepared(path, engine, **spec).launch


# -- dtype ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["transformers", "vllm", "sglang", "lmdeploy"])
def test_all_engines_take_the_dtype_of_the_weights_where_the_config_has_none(tmp_path: Path, engine: str) -> None:
    model = make_model(tmp_path / "m", dtype="BF16")
    assert launch(model, engine).dtype == "bfloat16"
    assert launch(model, engine, model_kwargs={"torch_dtype": "float16"}).dtype == "float16"
    make_model(tmp_path / "m", {**CONFIG, "torch_dtype": "float16"}, dtype="BF16")
    assert launch(model, engine).dtype == "float16"


def test_of_several_dtypes_the_first_by_name_counts_as_for_transformers(tmp_path: Path) -> None:
    model = make_model(tmp_path / "m")
    header = json.dumps({
        "model.A_log": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},
        "lm_head.weight": {"dtype": "BF16", "shape": [1], "data_offsets": [4, 6]},
    }).encode()  # fmt: skip
    (model / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"\0" * 6)
    assert launch(model, "transformers").dtype == "bfloat16"


def test_a_dtype_that_nobody_knows_must_be_said(tmp_path: Path) -> None:
    model = make_model(tmp_path / "m")
    (model / "model.safetensors").rename(model / "pytorch_model.bin")
    with pytest.raises(ModelFilesError, match="tell their dtype, and vllm would take") as caught:
        launch(model, "vllm")
    assert "--model-kwargs torch_dtype=float16" in (caught.value.hint or "")
    assert launch(model, "vllm", model_kwargs={"torch_dtype": "float32"}).dtype == "float32"
    assert launch(model, "transformers").dtype == "auto"  # loading them tells


# -- context -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("engine", "flag", "value", "context"),
    [
        ("vllm", "max_model_len", 4096, 4096),
        ("sglang", "context-length", 4104, 4096),
        ("lmdeploy", "session_len", 4104, 4096),
        ("llamacpp", "ctx_size", 4 * 4104, 4096),
    ],
)
def test_prompts_are_cut_to_the_context_that_the_users_flags_give(
    tmp_path: Path, engine: str, flag: str, value: int, context: int
) -> None:
    model = make_model(tmp_path / "m", {**CONFIG, "dtype": "bfloat16"})
    (model / "m.gguf").write_bytes(gguf({"general.architecture": "llama"}))
    args = {flag: value, **({"parallel": 4} if engine == "llamacpp" else {})}
    assert launch(model, engine, engine_args=args).context_len == context
    assert launch(model, engine, engine_args=args, max_seq_len=1000).context_len == 1512
    assert launch(model, engine, engine_args=args, max_seq_len=4000).context_len == context


def test_a_context_that_flags_stretch_may_be_longer_than_the_models(tmp_path: Path) -> None:
    model = make_model(tmp_path / "m", {**CONFIG, "dtype": "bfloat16"})
    assert launch(model, "lmdeploy", max_seq_len=1000000).context_len == 131072
    stretched = {"rope_scaling_factor": 8.0}
    assert launch(model, "lmdeploy", max_seq_len=1000000, engine_args=stretched).context_len == 1000512
    assert launch(model, "lmdeploy", engine_args=stretched).context_len == 131072
    for value, context in (({"architectures": ["X"]}, 131072), ({"max_position_embeddings": 10**6}, 200512)):
        assert launch(model, "vllm", max_seq_len=200000, engine_args={"hf_overrides": value}).context_len == context


def test_a_context_without_room_is_refused(tmp_path: Path) -> None:
    model = make_model(tmp_path / "m", {**CONFIG, "dtype": "bfloat16"})
    (model / "m.gguf").write_bytes(gguf({"general.architecture": "llama"}))
    for engine, args in (("llamacpp", {"ctx_size": 64}), ("sglang", {"context_length": 8})):
        with pytest.raises(ConversionError, match="leaves no room for a prompt"):
            launch(model, engine, engine_args=args)


def test_llama_cpps_slots_are_those_that_share_the_context(tmp_path: Path) -> None:
    model = make_model(tmp_path / "m", {**CONFIG, "dtype": "bfloat16"})
    (model / "m.gguf").write_bytes(gguf({"general.architecture": "llama"}))
    made = prepared(model, "llamacpp", engine_args={"ctx_size": 65536})
    words = made.engine.command(made.launch, Path("/bin/x"), 1)
    assert made.launch.context_len == 65536 // int(words[words.index("--parallel") + 1]) - 8


def test_llama_cpp_reserves_no_whole_context_for_each_slot(tmp_path: Path) -> None:
    model = make_model(tmp_path / "m", {**CONFIG, "dtype": "bfloat16"})
    (model / "m.gguf").write_bytes(gguf({"general.architecture": "llama"}))
    assert launch(model, "llamacpp").context_len == 8192 + 512
    assert launch(model, "vllm").context_len == 131072


@pytest.mark.parametrize(("engine", "longest"), [("vllm", 4096), ("llamacpp", 3840), ("sglang", 131072)])
def test_longrope_means_what_it_means_to_transformers(tmp_path: Path, engine: str, longest: int) -> None:
    model = make_model(tmp_path / "m", {**PHI, "dtype": "bfloat16"})
    (model / "m.gguf").write_bytes(gguf({"general.architecture": "phi3"}))
    assert launch(model, engine).context_len == longest
    assert launch(model, engine, max_seq_len=3000).context_len == 3512
    if longest < 131072:
        with pytest.raises(ConversionError, match=f"{engine} would take LongRoPE's long factors for short") as caught:
            launch(model, engine, max_seq_len=8000)
        assert f"at most {longest}" in (caught.value.hint or "")
        with pytest.raises(ConversionError, match="a length of its own choice"):
            launch(model, engine, engine_args={"max_model_len" if engine == "vllm" else "ctx_size": "auto"})
        with pytest.raises(ConversionError, match="to have room for 5001 tokens"):
            launch(model, engine, longest_answer=5000)
        assert any(str(longest) in note for note in prepared(model, engine).notes)
    else:
        assert launch(model, engine, max_seq_len=8000).context_len == 8512
        assert prepared(model, engine).notes == []


def test_a_gguf_says_that_it_has_longrope(tmp_path: Path) -> None:
    said = {"general.architecture": "phi3", "phi3.context_length": 131072}
    original = {"phi3.rope.scaling.original_context_length": 4096}
    unstretched = {"phi3.rope.scaling.original_context_length": 131072}  # the converter writes it for every Phi-3
    hostile = {"phi3.rope.scaling.original_context_length": "4096"}
    yarn = {**original, "phi3.rope.scaling.type": "yarn"}
    for more, context in (({}, 8704), (original, 3840), (unstretched, 8704), (hostile, 8704), (yarn, 8704)):
        (tmp_path / "m.gguf").write_bytes(gguf({**said, **more}))
        assert launch(tmp_path / "m.gguf", "llamacpp").context_len == context


# -- what a model is -----------------------------------------------------------------------------------------


def test_a_gguf_is_known_by_what_is_in_it_wherever_it_lies(tmp_path: Path) -> None:
    model = make_model(tmp_path / "m", {**CONFIG, "dtype": "bfloat16"})
    for file in (tmp_path / "m" / "q4" / "w.gguf", tmp_path / "elsewhere" / "w.gguf"):
        file.parent.mkdir()
        file.write_bytes(gguf({"general.architecture": "llama"}))
        first = prepared(model, "llamacpp", engine_args={"model": str(file)}).facts()["model"]
        file.write_bytes(gguf({"general.architecture": "llama", "general.file_type": 1}))
        assert prepared(model, "llamacpp", engine_args={"model": str(file)}).facts()["model"] != first


def test_each_part_of_a_split_gguf_counts(tmp_path: Path) -> None:
    model = make_model(tmp_path / "m", {**CONFIG, "dtype": "bfloat16"})
    parts = [tmp_path / f"w-0000{i}-of-00002.gguf" for i in (1, 2)]
    parts[0].write_bytes(gguf({"general.architecture": "llama"}))
    with pytest.raises(ModelFilesError, match="of its 2 parts 1 are not beside it"):
        prepared(model, "llamacpp", engine_args={"model": str(parts[0])})
    parts[1].write_bytes(b"one")
    first = prepared(model, "llamacpp", engine_args={"model": str(parts[0])}).facts()["model"]
    parts[1].write_bytes(b"two")
    assert prepared(model, "llamacpp", engine_args={"model": str(parts[0])}).facts()["model"] != first


def test_an_adapter_that_was_trained_again_is_another(tmp_path: Path) -> None:
    model = make_model(tmp_path / "m", {**CONFIG, "dtype": "bfloat16"})
    (model / "m.gguf").write_bytes(gguf({"general.architecture": "llama"}))
    adapter = tmp_path / "lora.gguf"
    adapter.write_bytes(b"one")
    first = prepared(model, "llamacpp", peft_path=str(adapter)).facts()["peft"]
    adapter.write_bytes(b"two")
    assert prepared(model, "llamacpp", peft_path=str(adapter)).facts()["peft"] != first


# -- GPUs and flags --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["transformers", "llamacpp"])
def test_an_engine_that_takes_all_gpus_sees_those_of_the_config(
    tmp_path: Path, engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model(tmp_path / "m", {**CONFIG, "dtype": "bfloat16"})
    (model / "m.gguf").write_bytes(gguf({"general.architecture": "llama"}))

    def seen(gpus: int) -> str:
        made = prepared(model, engine, run_cfg={"num_gpus": gpus})
        return made.engine.environment(made.launch)["CUDA_VISIBLE_DEVICES"]

    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert (seen(1), seen(2)) == ("0", "0,1")
    its_own = {"model_kwargs": {"device_map": "cuda:1"}} if engine == "transformers" else {"engine_args": {"mg": 1}}
    made = prepared(model, engine, **its_own)
    assert "CUDA_VISIBLE_DEVICES" not in made.engine.environment(made.launch)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-5,7,1")
    assert (seen(1), seen(3)) == ("GPU-5", "GPU-5,7,1")
    with pytest.raises(ConversionError, match="num_gpus=8, but CUDA_VISIBLE_DEVICES=GPU-5,7,1 shows 3"):
        seen(8)


@pytest.mark.parametrize(("engine", "name"), [("vllm", "dp"), ("llamacpp", "ngl")])
def test_short_flags_have_one_dash(tmp_path: Path, engine: str, name: str) -> None:
    model = make_model(tmp_path / "m", {**CONFIG, "dtype": "bfloat16"})
    (model / "m.gguf").write_bytes(gguf({"general.architecture": "llama"}))
    made = prepared(model, engine, engine_args={name: 2, "seed": 3})
    words = made.engine.command(made.launch, Path("/bin/x"), 1)
    assert words[words.index(f"-{name}") + 1] == "2"
    assert words[words.index("--seed") + 1] == "3"


def test_lmdeploy_sees_its_gpus(tmp_path: Path) -> None:
    model = make_model(tmp_path / "m", {**CONFIG, "dtype": "bfloat16"})
    for args, gpus, seen in (({"tp": 2}, 1, None), ({"dp": 2}, 2, None), ({"tp": 4, "dp": 2}, 4, "0,1,2,3")):
        made = prepared(model, "lmdeploy", engine_args=args, run_cfg={"num_gpus": gpus})
        assert made.engine.environment(made.launch).get("CUDA_VISIBLE_DEVICES") == seen


# -- what is said before the start ------------------------------------------------------------------------------


def test_a_context_that_nobody_names_is_said(tmp_path: Path) -> None:
    """Gemma 3's config.json leaves it to transformers' class."""
    model = make_model(tmp_path / "m", {"architectures": ["Gemma3ForConditionalGeneration"], "dtype": "bfloat16"})
    (said,) = prepared(model, "vllm").notes
    assert "config.json does not name the longest context" in said
    assert "4096 tokens" in said
    assert prepared(model, "vllm", max_seq_len=2048).notes == []
    assert prepared(model, "vllm", engine_args={"max_model_len": 9000}).notes == []


def test_gpus_that_are_not_there_are_said(tmp_path: Path) -> None:
    made = prepared(make_model(tmp_path / "m", {**CONFIG, "dtype": "bfloat16"}), "vllm", run_cfg={"num_gpus": 2})
    assert made.notes == []
    on_cpu = dataclasses.replace(made, launch=dataclasses.replace(made.launch, device="cpu"))
    assert on_cpu.notes == ["num_gpus=2 has no effect: vllm runs on the CPU here"]


def test_vllm_reads_the_weights_that_transformers_reads(tmp_path: Path) -> None:
    """Mistral's checkpoints have them twice, and vLLM would take the other form, with its own config."""
    model = make_model(tmp_path / "m", {**CONFIG, "dtype": "bfloat16"})
    plain = prepared(model, "vllm")
    assert "--load-format" not in plain.engine.command(plain.launch, Path("python"), 1)
    (model / "consolidated.safetensors").write_bytes(b"")
    made = prepared(model, "vllm")
    words = made.engine.command(made.launch, Path("python"), 1)
    assert words[words.index("--load-format") + 1] == "safetensors"
    assert words[words.index("--config-format") + 1] == "hf"


@pytest.mark.parametrize("name", ["port", "--served-model-name", "api_key"])
def test_flags_that_would_hide_its_server_from_evalswap_are_refused(tmp_path: Path, name: str) -> None:
    model = make_model(tmp_path / "m", {**CONFIG, "dtype": "bfloat16"})
    with pytest.raises(ConversionError, match=f"--engine-args {name}: evalswap sets up how it speaks"):
        prepared(model, "vllm", engine_args={name: "7"})


@pytest.mark.parametrize(
    ("engine", "flag"),
    [
        ("vllm", "tensor_parallel_size"),
        ("vllm", "tp"),
        ("vllm", "pp"),
        ("vllm", "dp"),
        ("sglang", "tp_size"),
        ("sglang", "dp_size"),
        ("lmdeploy", "tp"),
        ("lmdeploy", "dp"),
    ],
)
def test_nothing_is_split_into_no_parts(tmp_path: Path, engine: str, flag: str) -> None:
    model = make_model(tmp_path / "m", {**CONFIG, "dtype": "bfloat16"})
    with pytest.raises(ConfigError, match=f"--engine-args {flag}=0: a whole number from 1 on is wanted"):
        prepared(model, engine, engine_args={flag: 0})
