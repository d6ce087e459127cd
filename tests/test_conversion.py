"""Tests of conversion: each field of a spec is a row of the translation table, or an error that says what to do."""

from __future__ import annotations

import dataclasses
import itertools
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evalswap.config.specs import MODEL_SPECS, parse_model
from evalswap.conversion import EngineOptions, convert
from evalswap.conversion.api import base_url
from evalswap.conversion.engine_sampling import LMDEPLOY_FIELDS, VLLM_FIELDS, EngineFields
from evalswap.conversion.translation import SETTLED
from evalswap.engines.base import Launch
from evalswap.engines.registry import managed_engine
from evalswap.errors import EXIT_USAGE, ConfigError, ConversionError
from evalswap.plan import EndpointPlan, LaunchPlan, ModelPlan, Role
from evalswap.prompting.sampling import resolve_sampling
from evalswap.records import Sampling

SECRET = "sk-THIS-IS-SECRET-1234567890"
CHAT: dict[str, Any] = {"type": "HuggingFacewithChatTemplate", "abbr": "llama-3-8b-instruct-hf", "path": "meta/llama"}
BASE: dict[str, Any] = {"type": "HuggingFaceBaseModel", "abbr": "llama-3-8b-hf", "path": "meta/llama"}
API: dict[str, Any] = {"type": "OpenAISDK", "abbr": "api", "path": "m", "openai_api_base": "http://h:1/v1"}
TURBOMIND: dict[str, Any] = {"type": "TurboMindModelwithChatTemplate", "abbr": "m-turbomind", "path": "org/m"}
ENGINES = ("transformers", "vllm", "sglang", "lmdeploy", "llamacpp", "openai")
API_TEMPLATE = {
    "round": [{"role": "HUMAN", "api_role": "HUMAN"}, {"role": "BOT", "api_role": "BOT", "generate": True}],
    "reserved_roles": [{"role": "SYSTEM", "api_role": "SYSTEM"}],
}


@pytest.fixture(autouse=True)
def no_server_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_BASE_URL", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)


def plan(entry: dict[str, Any], engine: str | None = None, **options: Any) -> ModelPlan:
    return convert(parse_model(entry, "models[0]"), EngineOptions(accelerator=engine, **options))


def launch(made: ModelPlan) -> LaunchPlan:
    assert made.launch is not None
    assert made.endpoint is None
    return made.launch


def endpoint(made: ModelPlan) -> EndpointPlan:
    assert made.endpoint is not None
    assert made.launch is None
    return made.endpoint


def refused(entry: dict[str, Any], engine: str | None = None, **options: Any) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        plan(entry, engine, **options)
    assert caught.value.exit_code == EXIT_USAGE
    return caught.value


def row(made: ModelPlan, start: str) -> tuple[str, str]:
    """Return target and note of the one row whose source is ``start`` or ``start=…``."""
    found = [r for r in made.translation if r.source == start or r.source.startswith((f"{start}=", f"{start} "))]
    assert len(found) == 1, [r.source for r in made.translation]
    return found[0].target, found[0].note


def started_with(made: ModelPlan) -> dict[str, str]:
    """Return the flags that the plan's engine is started with on GPUs."""
    planned = launch(made)
    given = Launch(
        model=Path("/model"),
        dtype="bfloat16",
        context_len=100,
        num_gpus=planned.num_gpus,
        batch_size=8,
        trust_remote_code=False,
        device="cuda",
        engine_args=planned.engine_args,
    )
    words = managed_engine(made.engine, planned).command(given, Path("python"), 1)
    return {flag: value for flag, value in itertools.pairwise(words) if flag.startswith("-")}


def answered(entry: dict[str, Any], of_dataset: int | None = None) -> Sampling:
    """Return the sampling block of a spec for a model whose own end is token 2."""
    return resolve_sampling(plan(entry).sampling, {}, max_out_len=of_dataset, eos_token_ids=[2])


# ---- HuggingFace specs


def test_without_a_flag_it_runs_on_transformers() -> None:
    made = plan({**CHAT, "batch_size": 4, "max_seq_len": 2048, "run_cfg": {"num_gpus": 2}})
    assert (made.engine, made.abbr, made.spec_type) == (
        "transformers",
        "llama-3-8b-instruct-hf",
        "HuggingFacewithChatTemplate",
    )
    assert (launch(made).path, launch(made).batch_size, launch(made).num_gpus) == ("meta/llama", 4, 2)
    assert row(made, "batch_size") == ("--batch-size 4", "")
    assert row(made, "max_seq_len")[0] == "context: 2048 + max_out_len"


@pytest.mark.parametrize("engine", ENGINES[1:])
def test_moving_keeps_prompt_and_sampling(engine: str) -> None:
    entry = {
        **CHAT,
        "max_out_len": 77,
        "stop_words": ["<|eot_id|>"],
        "generation_kwargs": {"do_sample": True, "temperature": 0.6},
        "chat_template_kwargs": {"enable_thinking": False},
        "max_seq_len": 512,
        "mode": "mid",
    }
    here, there = plan(entry), plan(entry, engine, api_base="http://h:1")
    assert there.engine == engine
    assert there.prompt == here.prompt
    assert there.sampling == here.sampling
    assert there.prompt.overlong == "middle"


@pytest.mark.parametrize(
    ("abbr", "engine", "swapped"),
    [
        ("llama-hf", "vllm", "llama-vllm"),
        ("llama-hf", "openai", "llama-openai"),
        ("llama", "vllm", "llama-vllm"),
        ("hf-llama", "vllm", "hf-llama-vllm"),
        ("llama-hf", None, "llama-hf"),
    ],
)
def test_the_abbr_says_the_engine(abbr: str, engine: str | None, swapped: str) -> None:
    made = plan({**CHAT, "abbr": abbr}, engine, api_base="http://h:1")
    assert (made.abbr, made.summary_abbr) == (swapped, swapped)
    assert row(made, "abbr")[0] == swapped
    assert plan({**CHAT, "abbr": abbr, "summarizer_abbr": "S"}, "vllm").summary_abbr == "S"


@pytest.mark.parametrize("engine", [None, "vllm", "openai"])
def test_base_models_get_no_template_ever(engine: str | None) -> None:
    template = {"round": [{"role": "HUMAN", "begin": "<s>"}, {"role": "BOT", "generate": True}]}
    made = plan({**BASE, "meta_template": template}, engine, api_base="http://h:1")
    assert made.prompt.template == "base"
    assert made.prompt.roles == ()
    assert made.sampling.stop_at_tokenizer_eos is False
    assert made.sampling.skip_special_tokens is True
    assert row(made, "meta_template") == ("", "base models get no template, as in the original")
    assert row(made, "(base model)")[1] == "no chat template, ever"


def test_chat_models_have_the_published_roles() -> None:
    made = plan(CHAT)
    assert made.prompt.template == "chat"
    assert {role.name: role.api_role for role in made.prompt.roles} == {
        "HUMAN": "user",
        "SYSTEM": "user",
        "BOT": "assistant",
    }
    with_template = plan({**CHAT, "meta_template": API_TEMPLATE})
    assert {role.name: role.api_role for role in with_template.prompt.roles}["SYSTEM"] == "system"
    assert plan({**CHAT, "meta_template": {}}).prompt.roles == made.prompt.roles


class Dtype:
    """Prints like a torch.dtype."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __repr__(self) -> str:
        return f"torch.{self.name}"


@pytest.mark.parametrize("engine", [None, "vllm"])
@pytest.mark.parametrize("key", ["torch_dtype", "dtype"])
@pytest.mark.parametrize(
    ("value", "dtype"),
    [
        (Dtype("bfloat16"), "bfloat16"),
        ("torch.bfloat16", "bfloat16"),
        ("float16", "float16"),
        ("torch.float", "float32"),
        ("half", "float16"),
        ("auto", "auto"),
        (None, "auto"),
    ],
)
def test_dtypes_in_every_spelling(engine: str | None, key: str, value: object, dtype: str) -> None:
    made = plan({**CHAT, "model_kwargs": {key: value}}, engine)
    assert launch(made).dtype == dtype
    assert row(made, f"model_kwargs.{key}")[0] == f"--dtype {dtype}"
    assert launch(plan(CHAT, engine)).dtype == "auto"  # the checkpoint's, never a silent fp16


def test_an_unknown_dtype() -> None:
    error = refused({**CHAT, "model_kwargs": {"torch_dtype": "int4"}})
    assert "llama-3-8b-instruct-hf: model_kwargs.torch_dtype: unknown dtype 'int4'" in error.message
    assert "bfloat16" in (error.hint or "")


@pytest.mark.parametrize(
    ("change", "engine", "message", "hint"),
    [
        ({"fastchat_template": "vicuna"}, None, "fastchat_template", "remove it"),
        ({"fastchat_template": "vicuna"}, "vllm", "fastchat_template", "remove it"),
        ({"tokenizer_only": True}, "vllm", "tokenizer_only", "remove it"),
        ({"model_kwargs": {"load_in_8bit": True}}, "vllm", "load_in_8bit quantises", "quantised on disk"),
        ({"model_kwargs": {"load_in_4bit": True}}, "vllm", "load_in_4bit quantises", "run without -a"),
        ({"model_kwargs": {"quantization_config": {"bits": 4}}}, "vllm", "quantization_config", "run without -a"),
        ({"model_kwargs": {"rope_scaling": {}}}, "vllm", "model_kwargs.rope_scaling means nothing", "--engine-args"),
        ({"peft_path": "p"}, "lmdeploy", "peft_path: lmdeploy cannot be told to load an adapter", "merge"),
        ({"peft_path": "p", "peft_kwargs": {"a": 1}}, "vllm", "peft_kwargs: they are not passed on", "merge"),
        ({"peft_path": "p", "peft_kwargs": {"a": 1}}, None, "peft_kwargs: they are not passed on", "merge"),
        ({"generation_kwargs": {"num_beams": 4}}, "vllm", "num_beams=4", "remove it"),
        ({"generation_kwargs": {"num_beams": 4}}, None, "num_beams=4", "remove it"),
        ({"generation_kwargs": {"num_return_sequences": 2}}, "vllm", "num_return_sequences=2", "remove it"),
        ({"generation_kwargs": {"no_repeat_ngram_size": 3}}, "vllm", "no_repeat_ngram_size=3", "remove it"),
    ],
)
def test_what_would_change_the_answer_is_refused(
    change: dict[str, Any], engine: str | None, message: str, hint: str
) -> None:
    error = refused({**CHAT, **change}, engine)
    assert isinstance(error, ConversionError)
    assert error.message.startswith("llama-3-8b-instruct-hf: ")
    assert message in error.message
    assert hint in (error.hint or "")


def test_a_misspelt_generation_field_is_found_before_anything_starts() -> None:
    error = refused({**CHAT, "generation_kwargs": {"temprature": 1}}, "vllm")
    assert "llama-3-8b-instruct-hf: generation_kwargs.temprature: unknown field" in error.message
    assert error.hint == "did you mean 'temperature'?"
    error = refused({**CHAT, "generation_kwargs": {"stop_token_ids": [1]}}, "vllm")
    assert error.hint == "write eos_token_id"


def test_what_is_harmless_is_told() -> None:
    kwargs = {"device_map": "auto", "trust_remote_code": True, "attn_implementation": "sdpa", "load_in_8bit": False}
    made = plan({**CHAT, "model_kwargs": {**kwargs, "revision": "abc"}}, "vllm")
    for key in ("device_map", "attn_implementation", "load_in_8bit"):
        target, note = row(made, f"model_kwargs.{key}")
        assert target == ""
        assert note
    assert row(made, "model_kwargs.trust_remote_code")[0] == "--trust-remote-code True"
    assert (launch(made).trust_remote_code, launch(made).revision, launch(made).model_kwargs) == (True, "abc", {})
    assert made.prompt.trust_remote_code
    on_transformers = launch(plan({**CHAT, "model_kwargs": kwargs}))
    assert on_transformers.model_kwargs == {"device_map": "auto", "attn_implementation": "sdpa"}
    assert row(plan({**CHAT, "model_kwargs": kwargs}), "model_kwargs.load_in_8bit") == ("", "off")


def test_what_transformers_5_calls_otherwise_keeps_its_meaning() -> None:
    kwargs = {"load_in_4bit": True, "bnb_4bit_compute_dtype": "bfloat16", "load_in_8bit": False, "device_map": "auto"}
    made = plan({**CHAT, "model_kwargs": kwargs})
    quantised = {key: value for key, value in kwargs.items() if key != "device_map"}
    told = {"device_map": "auto", "quantization_config": {"quant_method": "bitsandbytes", **quantised}}
    assert launch(made).model_kwargs == told
    assert row(made, "model_kwargs.load_in_4bit")[0] == "BitsAndBytesConfig(load_in_4bit=…)"


def test_transformers_configs_cross_as_plain_values_and_other_objects_do_not() -> None:
    class LikeBitsAndBytesConfig:
        def to_dict(self) -> dict[str, Any]:
            return {"quant_method": "bitsandbytes", "load_in_8bit": True}

    made = launch(plan({**CHAT, "model_kwargs": {"quantization_config": LikeBitsAndBytesConfig()}}))
    assert made.model_kwargs == {"quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True}}
    error = refused({**CHAT, "model_kwargs": {"quantization_config": object()}}, "transformers")
    assert "model_kwargs.quantization_config: Object of type object is not JSON serializable" in error.message
    assert "plain values" in (error.hint or "")


def test_greedy_says_so_in_the_table() -> None:
    kwargs = {"temperature": 0.7, "top_p": 0.9, "pad_token_id": 0, "repetition_penalty": 1.1}
    made = plan({**CHAT, "generation_kwargs": kwargs}, "vllm")
    assert row(made, "generation_kwargs.temperature") == ("", "greedy, because do_sample is not set")
    assert row(made, "generation_kwargs.pad_token_id") == ("", "no token depends on it")
    assert row(made, "generation_kwargs.repetition_penalty") == ("the sampling block", "")
    made = plan({**CHAT, "generation_kwargs": {**kwargs, "do_sample": True}}, "vllm")
    assert row(made, "generation_kwargs.temperature") == ("the sampling block", "")


@pytest.mark.parametrize("entry", [CHAT, API, {"type": "VLLM", "path": "x"}])
def test_white_space_around_a_path(entry: dict[str, Any]) -> None:
    made = plan({**entry, "path": " org/name \n"})
    assert (launch(made).path if made.launch else endpoint(made).model) == "org/name"
    assert any(r.target == "'org/name'" and r.note == "white space around it removed" for r in made.translation)
    assert "path: it is empty" in refused({**entry, "path": " "}).message


# ---- -a openai


def test_a_server_must_be_named(monkeypatch: pytest.MonkeyPatch) -> None:
    error = refused(CHAT, "openai")
    assert "no server given" in error.message
    assert "--api-base" in (error.hint or "")
    assert "OPENAI_BASE_URL" in (error.hint or "")
    monkeypatch.setenv("OPENAI_BASE_URL", "http://from-env:8000")
    assert endpoint(plan(CHAT, "openai")).base_urls == ("http://from-env:8000/v1",)
    made = plan(CHAT, "openai", api_base="http://given:1/v1/", api_key=SECRET, api_model="other")
    assert endpoint(made).base_urls == ("http://given:1/v1",)
    assert (endpoint(made).keys, endpoint(made).model, endpoint(made).ids_wanted) == ((SECRET,), "other", True)
    assert row(made, "path")[0] == '"model": "other"'


@pytest.mark.parametrize(
    ("address", "base"),
    [
        ("http://h:23333/v1", "http://h:23333/v1"),
        ("http://h:23333/v1/", "http://h:23333/v1"),
        ("http://h:23333/v1/chat/completions", "http://h:23333/v1"),
        ("http://h:23333/v1/chat/completions/", "http://h:23333/v1"),
        ("http://h:23333/v1/completions", "http://h:23333/v1"),
        ("http://h:23333", "http://h:23333/v1"),
        ("http://h:23333/", "http://h:23333/v1"),
        (" https://api.x.com/openai/v4 ", "https://api.x.com/openai/v4"),
        ("https://[::1]:8000", "https://[::1]:8000/v1"),
    ],
)
def test_addresses_in_every_form(address: str, base: str) -> None:
    assert base_url(address) == base
    assert endpoint(plan({**API, "openai_api_base": address})).base_urls == (base,)
    assert endpoint(plan(CHAT, "openai", api_base=address)).base_urls == (base,)


@pytest.mark.parametrize("address", ["h:8000", "ftp://h/v1", "YOUR_API_BASE", "http://", "/v1", "http://[::1"])
def test_what_is_no_address(address: str) -> None:
    for error in (refused({**API, "openai_api_base": address}), refused(CHAT, "openai", api_base=address)):
        assert f"not an http address: '{address}'" in error.message
        assert "http://HOST:PORT/v1" in (error.hint or "")


@given(st.text(max_size=30))
def test_any_text_is_an_address_or_an_error(text: str) -> None:
    try:
        base = base_url(text)
    except ConfigError:
        return
    assert re.match(r"https?://", base, re.IGNORECASE)
    assert base_url(base) == base


# ---- engine specs


def test_the_api_config_of_the_issue() -> None:
    made = plan(
        {
            **API,
            "key": "EMPTY",
            "path": "Meta-Llama-3-8B-Instruct ",
            "tokenizer_path": "meta-llama/Meta-Llama-3-8B-Instruct",
            "rpm_verbose": True,
            "meta_template": API_TEMPLATE,
            "query_per_second": 1,
            "max_out_len": 1024,
            "max_seq_len": 4096,
            "temperature": 0.01,
            "batch_size": 8,
            "retry": 3,
        }
    )
    server = endpoint(made)
    assert (server.model, server.keys, server.retry, server.query_per_second, server.max_in_flight) == (
        "Meta-Llama-3-8B-Instruct",
        (),
        3,
        1,
        8,
    )
    assert made.sampling.generation_kwargs["temperature"] == 0.01
    assert made.sampling.generation_kwargs["do_sample"] is True
    assert made.sampling.apply_generation_config is False
    assert (made.prompt.max_seq_len, made.prompt.overlong) == (4096, "error")
    assert made.prompt.tokenizer_path == "meta-llama/Meta-Llama-3-8B-Instruct"
    assert "at most 1 request a second," in row(made, "query_per_second")[1]
    assert row(made, "rpm_verbose") == ("evalswap", "the progress line shows the requests of the last minute")


def test_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    def keys(**change: Any) -> tuple[str, ...]:
        return endpoint(plan({**API, **change})).keys

    assert keys(key="ENV") == ()
    monkeypatch.setenv("OPENAI_API_KEY", "a1, b2 ,,c3")
    assert keys() == keys(key="ENV") == keys(key=["ENV"]) == ("a1", "b2", "c3")
    assert keys(key="own") == ("own",)
    assert keys(key=["one", "two"]) == ("one", "two")
    assert keys(key="EMPTY") == keys(key=["EMPTY"]) == ()
    assert endpoint(plan(CHAT, "openai", api_base="http://h")).keys == ("a1", "b2", "c3")
    assert endpoint(plan(API, api_key="given")).keys == ("given",)


@pytest.mark.parametrize(("kind", "default"), [("OpenAI", "api.openai.com"), ("OpenAISDK", "api.openai.com")])
def test_where_an_api_is_when_nobody_says(kind: str, default: str, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = {"type": kind, "path": "m"}
    assert endpoint(plan(entry)).base_urls == (f"https://{default}/v1",)
    assert endpoint(plan({**entry, "openai_api_base": []})).base_urls == (f"https://{default}/v1",)
    monkeypatch.setenv("OPENAI_BASE_URL", "http://local:1/v1")
    assert endpoint(plan(entry)).base_urls == ("http://local:1/v1",)
    several = {**entry, "openai_api_base": ["http://a/v1", "http://b/v1/chat/completions"]}
    assert endpoint(plan(several)).base_urls == ("http://a/v1", "http://b/v1")
    assert endpoint(plan(several, api_base="http://c")).base_urls == ("http://c/v1",)


def test_the_temperature_of_an_api() -> None:
    unset = plan(API)
    assert not unset.sampling.generation_kwargs["do_sample"]
    assert row(unset, "temperature")[0] == '"temperature": 0'
    zero = plan({**API, "temperature": 0.0, "generation_kwargs": {"temperature": 0.7}})
    assert zero.sampling.generation_kwargs == {"do_sample": False, "top_k": 0, "top_p": 1.0, "temperature": 0.0}
    of_kwargs = plan({**API, "generation_kwargs": {"temperature": 0.7}})
    assert of_kwargs.sampling.generation_kwargs["do_sample"] is True
    assert not [r for r in of_kwargs.translation if "unset" in r.source]


OF_SPEC, OF_KWARGS, UNSET = "temperature", "generation_kwargs.temperature", "temperature (unset)"


@pytest.mark.parametrize(
    ("own", "kwargs", "source", "sent"),
    [
        (None, {"do_sample": True}, UNSET, 0),
        (None, {"do_sample": True, "temperature": None}, UNSET, 0),
        (None, {"do_sample": True, "temperature": 0}, OF_KWARGS, 0),
        (None, {"do_sample": True, "temperature": 1e-6}, OF_KWARGS, 0),
        (None, {"do_sample": False, "temperature": 0.7}, OF_KWARGS, 0.7),
        (None, {"temperature": "0.7"}, OF_KWARGS, 0.7),
        (0.3, {"do_sample": False}, OF_SPEC, 0.3),
        (0.3, {"temperature": 0}, OF_SPEC, 0.3),
        (0.0, {"do_sample": True, "temperature": 0.7}, OF_SPEC, 0),
    ],
)
def test_the_table_says_what_temperature_is_sent(
    own: float | None, kwargs: dict[str, Any], source: str, sent: float
) -> None:
    entry = {**API, "temperature": own, "generation_kwargs": {**kwargs, "top_p": 0.9, "seed": 3}}
    made = plan(entry)
    assert answered(entry).temperature == sent
    assert row(made, source)[0] == f'"temperature": {sent}'
    if "do_sample" in kwargs:
        how = f"drawn at temperature {sent}" if sent else "greedy"
        assert row(made, "generation_kwargs.do_sample") == ("", f"not looked at: {how}, as the temperature says")
    if own is not None and "temperature" in kwargs:
        assert row(made, OF_KWARGS) == ("", f"temperature={own} comes first")
    for name in ("top_p", "seed"):
        told = ("the sampling block", "") if sent else ("", "greedy, because the temperature is 0")
        assert row(made, f"generation_kwargs.{name}") == told
    assert len({r.source for r in made.translation}) == len(made.translation)


@pytest.mark.parametrize("kwargs", [{"do_sample": False}, {"do_sample": False, "temperature": 1}])
def test_a_reasoning_model_draws_whatever_a_config_says(kwargs: dict[str, Any]) -> None:
    entry = {**API, "path": "o3", "generation_kwargs": kwargs}
    assert answered(entry).temperature == 1.0
    made = plan(entry)
    assert "which draws at 1" in row(made, OF_KWARGS if "temperature" in kwargs else UNSET)[1]
    assert row(made, "generation_kwargs.do_sample")[1].startswith("not looked at: drawn at temperature 1")


@pytest.mark.parametrize(
    ("change", "message", "hint"),
    [
        ({"openai_proxy_url": "http://p:1"}, "openai_proxy_url is not supported", "HTTPS_PROXY"),
        ({"http_client_cfg": {"verify": False}}, "http_client_cfg", "timeout="),
        ({"generation_kwargs": {"max_tokens": 3}}, "generation_kwargs.max_tokens: unknown field", "max_new_tokens"),
        ({"generation_kwargs": {"zzz": None}}, "generation_kwargs.zzz: unknown field", "known: "),
        ({"generation_kwargs": {"temperature": "hot"}}, "generation_kwargs.temperature='hot': a number", "0 is greedy"),
        ({"generation_kwargs": {"temperature": -1}}, "generation_kwargs.temperature=-1: a number from 0 on", "greedy"),
    ],
)
def test_what_an_api_config_cannot_say(change: dict[str, Any], message: str, hint: str) -> None:
    error = refused({**API, **change})
    assert message in error.message
    assert hint in (error.hint or "")


def test_vllm_specs_run_as_they_are() -> None:
    entry = {
        "type": "VLLMwithChatTemplate",
        "abbr": "m-vllm",
        "path": "org/m",
        "model_kwargs": {"tensor_parallel_size": 2, "gpu_memory_utilization": 0.5, "dtype": "half"},
        "generation_kwargs": {"temperature": 0},
        "run_cfg": {"num_gpus": 4, "num_procs": 2},
    }
    for engine in (None, "vllm"):
        made = plan(entry, engine, engine_args={"enforce_eager": True})
        assert (made.engine, made.abbr) == ("vllm", "m-vllm")
        assert (launch(made).num_gpus, launch(made).dtype) == (2, "float16")
        assert launch(made).engine_args == {"gpu_memory_utilization": 0.5, "enforce_eager": True}
    assert row(made, "model_kwargs.tensor_parallel_size")[0] == "--tensor-parallel-size 2"
    assert row(made, "model_kwargs.gpu_memory_utilization")[0] == "--gpu-memory-utilization"
    assert row(made, "run_cfg.num_procs") == ("", "processes are the engine's own")
    del entry["model_kwargs"]
    assert launch(plan(entry)).num_gpus == 4


VLLM_SIZES = {"tp": "tensor_parallel_size", "pp": "pipeline_parallel_size", "dp": "data_parallel_size"}


@pytest.mark.parametrize("kind", ["VLLM", "VLLMwithChatTemplate"])
@pytest.mark.parametrize(
    ("sizes", "gpus"),
    [
        ({"tp": 8}, 8),
        ({"tp": 8, "pp": 2}, 16),
        ({"tp": 2, "pp": 2}, 4),
        ({"tp": 2, "pp": 4}, 8),
        ({"tp": 4, "dp": 2}, 8),
        ({"tp": 2, "dp": 3}, 6),
        ({"tp": 2, "pp": 3, "dp": 4}, 24),
        ({"tp": "2", "pp": "2"}, 4),
    ],
)
def test_vllm_starts_with_the_configs_own_numbers(kind: str, sizes: dict[str, Any], gpus: int) -> None:
    made = plan({"type": kind, "path": "m", "model_kwargs": {VLLM_SIZES[name]: n for name, n in sizes.items()}})
    assert launch(made).num_gpus == gpus
    flags = started_with(made)
    for name, size in sizes.items():
        assert flags[f"--{VLLM_SIZES[name].replace('_', '-')}"] == str(size)
    assert row(made, "model_kwargs.tensor_parallel_size")[0] == f"--tensor-parallel-size {sizes['tp']}"
    target, note = row(made, "run_cfg.num_gpus")
    assert (target, note.split(":")[0]) == ("", f"{gpus} GPUs")


@pytest.mark.parametrize(
    ("num_gpus", "pp", "gpus", "tp"), [(8, 2, 8, 4), (0, 2, 2, 1), (1, 4, 4, 1), (4, None, 4, 4), (4, 4, 4, 1)]
)
def test_where_no_tensor_parallel_size_is_given_num_gpus_are_shared(
    num_gpus: int, pp: int | None, gpus: int, tp: int
) -> None:
    kwargs = {"tensor_parallel_size": None, **({"pipeline_parallel_size": pp} if pp else {})}
    made = plan({"type": "VLLM", "path": "m", "model_kwargs": kwargs, "run_cfg": {"num_gpus": num_gpus}})
    assert (launch(made).num_gpus, started_with(made)["--tensor-parallel-size"]) == (gpus, str(tp))
    assert row(made, "run_cfg.num_gpus")[0] == f"--tensor-parallel-size {tp}"
    assert row(made, "model_kwargs.tensor_parallel_size") == ("", "unset")


def test_num_gpus_that_cannot_be_shared() -> None:
    error = refused(
        {"type": "VLLM", "path": "m", "model_kwargs": {"pipeline_parallel_size": 2}, "run_cfg": {"num_gpus": 3}}
    )
    assert "run_cfg.num_gpus=3 cannot be shared by 2" in error.message
    assert error.hint == "give a multiple of 2"


def test_the_command_lines_numbers_come_before_the_configs() -> None:
    entry = {"type": "VLLM", "path": "m", "model_kwargs": {"tensor_parallel_size": 8, "max_num_seqs": 9}}
    made = plan(entry, engine_args={"pipeline-parallel-size": 2})
    assert (launch(made).num_gpus, started_with(made)["--tensor-parallel-size"]) == (16, "8")
    made = plan(entry, engine_args={"tensor_parallel_size": 4, "max_num_seqs": 5})
    flags = started_with(made)
    assert (launch(made).num_gpus, flags["--tensor-parallel-size"], flags["--max-num-seqs"]) == (4, "4", "5")
    for key in ("tensor_parallel_size", "max_num_seqs"):
        assert row(made, f"model_kwargs.{key}") == ("", f"--engine-args {key} comes first")
    assert (
        "--engine-args pipeline_parallel_size=two"
        in refused(entry, engine_args={"pipeline_parallel_size": "two"}).message
    )


# What OpenCompass's classes hand to vLLM's SamplingParams, with a temperature of 1.0 where nobody says one.
@pytest.mark.parametrize(
    ("kwargs", "base", "chat"),
    [
        ({}, (1.0, 1.0, 0), (0.0, 1.0, 0)),
        ({"temperature": 0}, (0.0, 1.0, 0), (0.0, 1.0, 0)),
        ({"temperature": 1e-6, "top_p": 0.9}, (0.01, 0.9, 0), (0.01, 0.9, 0)),  # vLLM's own least
        ({"temperature": 0.001}, (0.01, 1.0, 0), (0.01, 1.0, 0)),
        ({"top_p": 0.9}, (1.0, 0.9, 0), (0.0, 1.0, 0)),
        ({"top_k": 1}, (1.0, 1.0, 1), (0.0, 1.0, 0)),
        ({"top_k": -1, "temperature": 0.5}, (0.5, 1.0, 0), (0.5, 1.0, 0)),
        ({"do_sample": False, "temperature": 0.7}, (0.7, 1.0, 0), (0.7, 1.0, 0)),
        ({"do_sample": False}, (1.0, 1.0, 0), (0.0, 1.0, 0)),
        ({"do_sample": True}, (1.0, 1.0, 0), (0.0, 1.0, 0)),
    ],
)
def test_a_vllm_spec_draws_as_it_does_in_opencompass(
    kwargs: dict[str, Any], base: tuple[float, float, int], chat: tuple[float, float, int]
) -> None:
    for kind, expected in (("VLLM", base), ("VLLMwithChatTemplate", chat)):
        made = answered({"type": kind, "path": "m", "generation_kwargs": kwargs})
        assert (made.temperature, made.top_p, made.top_k) == expected, kind


def test_the_table_says_whether_a_vllm_spec_draws() -> None:
    def rows(kind: str, **kwargs: Any) -> ModelPlan:
        return plan({"type": kind, "path": "m", "generation_kwargs": kwargs})

    made = rows("VLLM", top_p=0.9)
    target, note = row(made, "generation_kwargs.temperature")
    assert target == '"temperature": 1.0'
    assert note.startswith("drawn, not greedy")
    assert "temperature=0" in note
    assert row(made, "generation_kwargs.top_p") == ("the sampling block", "")
    made = rows("VLLMwithChatTemplate", top_p=0.9, seed=3)
    assert row(made, "generation_kwargs.temperature")[0] == '"temperature": 0'
    for key in ("top_p", "seed"):
        assert row(made, f"generation_kwargs.{key}") == ("", "greedy, because the temperature is 0")
    made = rows("VLLM", do_sample=False, temperature=0.7)
    assert row(made, "generation_kwargs.do_sample")[1] == (
        "not looked at, as in OpenCompass: drawn at temperature 0.7, as the temperature says"
    )
    assert row(made, "generation_kwargs.temperature") == ("the sampling block", "")
    assert row(rows("VLLM", temperature=0), "generation_kwargs.temperature")[1] == "greedy"
    assert row(rows("VLLM", temperature=0.001), "generation_kwargs.temperature")[1].startswith("0.01, not greedy")


OF_VLLM = {"stop_token_ids": [7, 8], "min_tokens": 3, "seed": 5, "temperature": 0.5, "skip_special_tokens": False}


@pytest.mark.parametrize("kind", ["VLLM", "VLLMwithChatTemplate"])
def test_vllms_own_names(kind: str) -> None:
    entry = {"type": kind, "path": "m", "generation_kwargs": {**OF_VLLM, "presence_penalty": 0.1, "max_tokens": 99}}
    made = answered(entry)
    assert made.stop_token_ids == (7, 8, 2)  # the model's own end stays
    assert (made.min_new_tokens, made.seed, made.presence_penalty, made.max_new_tokens) == (3, 5, 0.1, 99)
    assert not plan(entry).sampling.skip_special_tokens
    assert row(plan(entry), "generation_kwargs.stop_token_ids") == ("stop ids", "beside the model's own ends")
    assert row(plan(entry), "generation_kwargs.max_tokens")[0] == "max_new_tokens"
    assert answered({**entry, "generation_kwargs": {"stop_token_ids": None, "seed": None}}).stop_token_ids == (2,)


def test_what_has_the_last_word_about_stops_and_length_is_as_in_opencompass() -> None:
    """Its VLLM overwrites both with its own, its VLLMwithChatTemplate lets generation_kwargs overwrite its own."""
    keys = {
        "path": "m",
        "stop_words": ["</w>"],
        "max_out_len": 50,
        "generation_kwargs": {"stop": "Q:", "max_tokens": 99},
    }
    base, chat = {"type": "VLLM", **keys}, {"type": "VLLMwithChatTemplate", **keys}
    assert (answered(base).stop, answered(base).max_new_tokens) == (("</w>",), 50)
    assert (answered(chat).stop, answered(chat).max_new_tokens) == (("Q:",), 99)
    assert (answered(base, of_dataset=7).max_new_tokens, answered(chat, of_dataset=7).max_new_tokens) == (7, 99)
    target, note = row(plan(base), "generation_kwargs.stop")
    assert target == ""
    assert "put the words there" in note
    assert row(plan(base), "max_out_len")[0] == "max_new_tokens"
    assert row(plan(chat), "stop_words") == ("", "generation_kwargs.stop replaces them, as in OpenCompass")
    assert row(plan(chat), "max_out_len") == ("", "generation_kwargs.max_tokens comes first")
    assert answered({**chat, "generation_kwargs": {"stop": []}}).stop == ()


NAMES_OF_HUGGINGFACE = (
    *("pad_token_id", "num_beams", "max_length", "length_penalty", "use_cache", "num_return_sequences", "typical_p"),
    *(
        "bad_words_ids",
        "no_repeat_ngram_size",
        "suppress_tokens",
        "forced_eos_token_id",
        "min_length",
        "early_stopping",
    ),
)


@pytest.mark.parametrize(
    ("kind", "key"),
    [("VLLM", "generation_kwargs"), ("VLLMwithChatTemplate", "generation_kwargs"), (TURBOMIND["type"], "gen_config")],
)
@pytest.mark.parametrize("name", NAMES_OF_HUGGINGFACE)
def test_no_hint_names_a_field_of_another_meaning(kind: str, key: str, name: str) -> None:
    error = refused({"type": kind, "path": "m", key: {name: 2}})
    assert f"{key}.{name}: " in error.message
    assert "has no such field" in error.message
    assert (error.hint or "").startswith("remove it; evalswap understands ")


@pytest.mark.parametrize(
    ("kwargs", "message", "hint"),
    [
        ({"ignore_eos": True}, "generation_kwargs.ignore_eos=True", "remove it"),
        ({"n": 2}, "generation_kwargs.n=2", "remove it"),
        ({"bad_words": ["x"]}, "generation_kwargs.bad_words=['x']", "remove it"),
        ({"logit_bias": {5: 1}}, "generation_kwargs.logit_bias", "remove it"),
        ({"include_stop_str_in_output": True}, "include_stop_str_in_output=True", "remove it"),
        ({"stop_token_id": [3]}, "generation_kwargs.stop_token_id: vLLM has no such field", "'stop_token_ids'?"),
        ({"temprature": 1}, "generation_kwargs.temprature: vLLM has no such field", "did you mean 'temperature'?"),
        ({"max_new_tokens": 3}, "generation_kwargs.max_new_tokens: vLLM", "vLLM calls it 'max_tokens'"),
        ({"min_new_tokens": 3}, "generation_kwargs.min_new_tokens: vLLM", "vLLM calls it 'min_tokens'"),
        ({"eos_token_id": 3}, "generation_kwargs.eos_token_id: vLLM", "beside the model's own ends"),
        ({"temperature": "hot"}, "generation_kwargs.temperature: a number is wanted, not 'hot'", "0 is greedy"),
        ({"temperature": -1}, "generation_kwargs.temperature=-1: vLLM takes 0 to 2", "0 is greedy"),
        ({"temperature": 2.5}, "generation_kwargs.temperature=2.5: vLLM takes 0 to 2", "0 is greedy"),
        ({"temperature": float("nan")}, "generation_kwargs.temperature=nan: vLLM takes 0 to 2", "0 is greedy"),
        ({"stop": [3]}, "generation_kwargs.stop: a list of texts is wanted, not [3]", "stop_token_ids"),
    ],
)
def test_what_vllms_fields_cannot_say(kwargs: dict[str, Any], message: str, hint: str) -> None:
    error = refused({"type": "VLLMwithChatTemplate", "path": "m", "generation_kwargs": kwargs})
    assert message in error.message
    assert hint in (error.hint or "")


def test_vllm_base_models_have_the_templates_they_ask_for() -> None:
    entry = {"type": "VLLM", "path": "org/m"}
    assert plan(entry).prompt.roles == ()
    assert (plan(entry).prompt.template, plan(entry).prompt.max_seq_len) == ("base", 2048)
    template = {
        "round": [
            {"role": "HUMAN", "begin": "USER: ", "end": " "},
            {"role": "BOT", "begin": "ASSISTANT: ", "end": "</s>", "generate": True},
        ]
    }
    assert plan({**entry, "meta_template": template}).prompt.roles == (
        Role("HUMAN", "user", "USER: ", " "),
        Role("BOT", "assistant", "ASSISTANT: ", "</s>", generate=True),
    )


def test_an_adapter_is_loaded_by_the_engine() -> None:
    for kind in ("VLLM", "VLLMwithChatTemplate"):
        made = plan({"type": kind, "path": "org/m", "lora_path": "my/adapter"})
        assert launch(made).peft_path == "my/adapter"
        assert row(made, "lora_path")[0] == "--enable-lora --lora-modules evalswap=my/adapter"
    for engine, flag in (
        ("transformers", "--peft-path my/adapter"),
        ("vllm", "--enable-lora --lora-modules evalswap=my/adapter"),
        ("sglang", "--enable-lora --lora-paths evalswap=my/adapter"),
    ):
        made = plan({**CHAT, "peft_path": "my/adapter"}, engine)
        assert launch(made).peft_path == "my/adapter"
        assert row(made, "peft_path")[0] == flag


# ---- TurboMind specs


def test_turbomind_specs_run_as_they_are() -> None:
    entry = {
        **TURBOMIND,
        "engine_config": {"session_len": 16384, "max_batch_size": 16, "tp": 2, "block_size": 64, "dtype": "half"},
        "gen_config": {"top_k": 1, "temperature": 1e-6, "top_p": 0.9, "max_new_tokens": 4096},
        "max_seq_len": 8192,
        "max_out_len": 1024,
        "batch_size": 16,
        "run_cfg": {"num_gpus": 1},
    }
    for engine in (None, "lmdeploy"):
        made = plan(entry, engine, engine_args={"quant_policy": 8})
        assert (made.engine, made.abbr) == ("lmdeploy", "m-turbomind")
        assert (launch(made).num_gpus, launch(made).dtype) == (2, "float16")
        assert launch(made).engine_args == {"max_batch_size": 16, "cache_block_seq_len": 64, "quant_policy": 8}
        assert (made.prompt.template, made.prompt.max_seq_len, made.prompt.overlong) == ("chat", 8192, "left")
        assert made.sampling.max_out_len == 1024
    assert row(made, "engine_config.tp")[0] == "--tp 2"
    assert row(made, "engine_config.session_len")[0] == "--session-len max_seq_len + max_out_len"
    assert row(made, "gen_config.temperature")[1] == "greedy, as do_sample is not set"
    assert not made.sampling.generation_kwargs["do_sample"]


@pytest.mark.parametrize(
    ("tp", "dp", "there", "gpus"),
    [
        (2, 1, 1, 2),
        (8, 8, 0, 64),
        (8, 8, 64, 64),
        (8, 8, 8, 8),
        (8, 8, 20, 16),
        (4, 2, 8, 8),
        (4, 2, 4, 4),
        (1, 8, 8, 8),
        (2, 3, 4, 6),  # there is no layout for less
    ],
)
def test_turbomind_starts_with_the_configs_own_numbers(tp: int, dp: int, there: int, gpus: int) -> None:
    """The GPUs are those of LMDeploy 0.18.0's derive_parallel_config(dp, tp, 1, 1, None, there), where it has one."""
    made = plan({**TURBOMIND, "engine_config": {"tp": tp, "dp": dp}, "run_cfg": {"num_gpus": there}})
    assert launch(made).num_gpus == gpus
    flags = started_with(made)
    assert (flags["--tp"], flags["--dp"]) == (str(tp), str(dp))
    assert row(made, "engine_config.tp") == (f"--tp {tp}", "")
    assert row(made, "run_cfg.num_gpus")[1].startswith(f"{gpus} GPUs: ")


def test_copies_on_lmdeploys_pytorch_backend_are_refused() -> None:
    entry = {**TURBOMIND, "engine_config": {"tp": 4, "dp": 2}}
    chat = plan(CHAT, "lmdeploy", engine_args={"dp": 2, "backend": "pytorch"})
    for made in (plan({**entry, "backend": "pytorch"}), plan(entry, engine_args={"backend": "pytorch"}), chat):
        with pytest.raises(ConversionError, match="starts a server for each data-parallel copy") as caught:
            managed_engine("lmdeploy", launch(made))
        assert "backend=turbomind" in (caught.value.hint or "")
    assert launch(plan({**entry, "backend": "pytorch"}, engine_args={"dp": 1})).num_gpus == 4


def test_gpus_are_shared_by_the_parts_of_the_flags() -> None:
    entry = {**CHAT, "run_cfg": {"num_gpus": 8}}
    for engine, flag, told in (
        ("vllm", {"pipeline_parallel_size": 2}, "--tensor-parallel-size 4"),
        ("sglang", {"dp_size": 4}, "--tp-size 2"),
        ("lmdeploy", {"dp": 8}, "--tp 1"),
        ("transformers", {}, 'device_map="auto" over GPUs: 8'),
    ):
        made = plan(entry, engine, engine_args=flag)
        assert row(made, "run_cfg.num_gpus")[0] == told
        assert launch(made).num_gpus == 8


def test_a_turbomind_spec_draws_as_lmdeploy_does() -> None:
    def drawn(**gen_config: Any) -> dict[str, Any]:
        return dict(plan({**TURBOMIND, "gen_config": gen_config}).sampling.generation_kwargs)

    assert drawn() == {"do_sample": False, "top_k": 50, "top_p": 1.0, "temperature": 0.8}
    assert drawn(do_sample=True, top_k=40, random_seed=7) == {
        "do_sample": True,
        "top_k": 40,
        "top_p": 1.0,
        "temperature": 0.8,
        "seed": 7,
    }
    assert drawn(stop_token_ids=[2], repetition_penalty=1.1) | {
        "eos_token_id": [2],
        "repetition_penalty": 1.1,
    } == drawn(stop_token_ids=[2], repetition_penalty=1.1)


def test_a_turbomind_base_model_is_greedy_whatever_it_says() -> None:
    made = plan({"type": "TurboMindModel", "path": "m", "gen_config": {"do_sample": True, "temperature": 0.7}})
    assert not made.sampling.generation_kwargs["do_sample"]
    for key in ("do_sample", "temperature"):
        assert row(made, f"gen_config.{key}") == ("", "greedy, which OpenCompass's TurboMindModel always is")
    assert (
        row(plan({**TURBOMIND, "gen_config": {"do_sample": True}}), "gen_config.do_sample")[0] == "the sampling block"
    )


def test_the_length_of_a_turbomind_answer_is_as_in_opencompass() -> None:
    """Its TurboMindModel lets gen_config overwrite its own, its TurboMindModelwithChatTemplate does not."""
    keys = {"path": "m", "max_out_len": 50, "gen_config": {"max_new_tokens": 99}}
    base, chat = {"type": "TurboMindModel", **keys}, {**TURBOMIND, **keys}
    assert (answered(base, of_dataset=7).max_new_tokens, answered(base).max_new_tokens) == (99, 99)
    assert (answered(chat, of_dataset=7).max_new_tokens, answered(chat).max_new_tokens) == (7, 50)
    assert row(plan(base), "max_out_len") == ("", "gen_config.max_new_tokens comes first")
    assert row(plan(chat), "gen_config.max_new_tokens")[1].startswith("max_out_len comes first")
    error = refused({**base, "gen_config": {"max_new_tokens": 0}})
    assert "gen_config.max_new_tokens=0: a whole number of tokens" in error.message


def test_the_ends_of_a_turbomind_answer() -> None:
    entry = {
        "type": "TurboMindModel",
        "path": "org/m",
        "end_str": "<eoa>",
        "gen_config": {"stop_words": ["</s>"], "skip_special_tokens": False},
        "drop_middle": True,
    }
    made = plan(entry)
    assert made.sampling.stop_words == ("<eoa>", "</s>")
    assert not made.sampling.skip_special_tokens
    assert (made.prompt.template, made.prompt.roles, made.prompt.max_seq_len) == ("base", (), 2048)
    assert made.prompt.overlong == "middle"


def test_a_turbomind_session_bounds_the_prompts() -> None:
    made = plan({**TURBOMIND, "engine_config": {"session_len": 4096}})
    assert made.prompt.max_seq_len == 4096
    assert "session_len" not in launch(made).engine_args
    assert "bounds the prompts" in row(made, "engine_config.session_len")[1]


def test_the_pytorch_backend() -> None:
    made = plan({**TURBOMIND, "backend": "pytorch", "engine_config": {"eager_mode": True}})
    assert launch(made).engine_args == {"eager_mode": True, "backend": "pytorch"}
    assert row(made, "backend")[0] == "--backend pytorch"
    assert row(made, "engine_config.eager_mode")[0] == "--eager-mode"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gen_config": {"ignore_eos": True}}, "gen_config.ignore_eos=True"),
        ({"gen_config": {"n": 2}}, "gen_config.n=2"),
        ({"gen_config": {"bad_words": ["x"]}}, "gen_config.bad_words"),
        ({"gen_config": {"temprature": 1}}, "gen_config.temprature: LMDeploy has no such field"),
        ({"gen_config": {"seed": 1}}, "gen_config.seed: LMDeploy has no such field"),
        ({"gen_config": {"stop_words": [5]}}, "gen_config.stop_words: a list of texts is wanted, not [5]"),
        ({"engine_config": {"adapters": {"a": "p"}}}, "engine_config.adapters: lmdeploy cannot be told"),
        ({"engine_config": {"tp": "two"}}, "engine_config.tp=two: a whole number from 1 on is wanted"),
        ({"engine_config": {"tp": 0}}, "engine_config.tp=0: a whole number from 1 on is wanted"),
        ({"engine_config": {"dtype": "int4"}}, "engine_config.dtype: unknown dtype 'int4'"),
        ({"fastchat_template": "x"}, "fastchat_template"),
        ({"tokenizer_only": True}, "tokenizer_only"),
    ],
)
def test_what_a_turbomind_config_cannot_say(change: dict[str, Any], message: str) -> None:
    error = refused({**TURBOMIND, **change})
    assert message in error.message
    assert error.hint


def test_neutral_fields_of_a_turbomind_config_are_rows() -> None:
    made = plan({**TURBOMIND, "gen_config": {"n": 1, "ignore_eos": False, "bad_words": None, "logprobs": 5}})
    for key in ("n", "ignore_eos", "bad_words", "logprobs"):
        assert row(made, f"gen_config.{key}")[0] == ""


# ---- GGUF files


def test_a_gguf_file_is_a_folder_and_a_flag() -> None:
    made = plan({**CHAT, "path": "models/m/m-q8.gguf"}, "llamacpp", engine_args={"parallel": 4})
    assert launch(made).path == "models/m"
    assert launch(made).engine_args == {"model": "m-q8.gguf", "parallel": 4}
    assert made.prompt.tokenizer_path == "models/m"
    assert row(made, "path") == (
        "--model m-q8.gguf",
        "tokenizer and template come from its folder, or from tokenizer_path",
    )
    assert launch(plan({**CHAT, "path": "/m.gguf"}, "llamacpp")).path == "/"
    assert launch(plan({**CHAT, "path": "m.gguf"}, "llamacpp")).path == "."
    assert plan({**CHAT, "path": "m.gguf", "tokenizer_path": "t"}, "llamacpp").prompt.tokenizer_path == "t"


@pytest.mark.parametrize("engine", ["transformers", "vllm", "sglang", "lmdeploy"])
def test_other_engines_read_no_gguf_file(engine: str) -> None:
    error = refused({**CHAT, "path": "models/m.gguf"}, engine)
    assert "not a GGUF file" in error.message
    assert "-a llamacpp" in (error.hint or "")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"type": "VLLM", "use_fastchat_template": True}, "use_fastchat_template"),
        ({"type": "VLLMwithChatTemplate", "fastchat_template": "x"}, "fastchat_template"),
        ({"type": "VLLMwithChatTemplate", "tokenizer_only": True}, "tokenizer_only"),
        ({"type": "VLLM", "model_kwargs": {"tensor_parallel_size": "many"}}, "tensor_parallel_size=many: a whole"),
        ({"type": "VLLM", "model_kwargs": {"pipeline_parallel_size": 2.5}}, "pipeline_parallel_size=2.5: a whole"),
    ],
)
def test_what_a_vllm_config_cannot_say(change: dict[str, Any], message: str) -> None:
    assert message in refused({"path": "m", **change}).message


@pytest.mark.parametrize(
    ("entry", "engine"),
    [
        (API, "vllm"),
        (API, "transformers"),
        ({"type": "VLLM", "path": "m"}, "openai"),
        ({"type": "VLLM", "path": "m"}, "lmdeploy"),
        (TURBOMIND, "vllm"),
    ],
)
def test_an_engine_spec_cannot_be_moved(entry: dict[str, Any], engine: str) -> None:
    error = refused(entry, engine)
    assert f"cannot be moved to '{engine}'" in error.message
    assert "leave -a out" in (error.hint or "")
    own = {"OpenAISDK": "openai", "VLLM": "vllm"}.get(entry["type"], "lmdeploy")
    assert plan(entry, own) == plan(entry)


def test_engine_flags_are_told_where_they_do_nothing() -> None:
    assert launch(plan(CHAT, "vllm", engine_args={"x": 1})).engine_args == {"x": 1}
    assert row(plan(CHAT, "vllm", engine_args={"x": 1}), "--engine-args")[0] == "the engine's flag, verbatim"
    for made in (plan(API, engine_args={"x": 1}), plan(CHAT, "openai", api_base="http://h", engine_args={"x": 1})):
        assert row(made, "--engine-args") == ("", "evalswap does not start this server")


@pytest.mark.parametrize(
    ("engine", "key", "value", "target"),
    [
        ("vllm", "start_mode", "eager", "evalswap: how much is made ready at the start"),
        ("sglang", "--start-mode", "full", "evalswap: how much is made ready at the start"),
        ("llamacpp", "model", "m-q8.gguf", "evalswap: which GGUF file"),
        ("vllm", "model", "m", "the engine's flag, verbatim"),
        ("llamacpp", "start_mode", "eager", "the engine's flag, verbatim"),
    ],
)
def test_what_of_the_engine_args_is_evalswaps_own(engine: str, key: str, value: str, target: str) -> None:
    made = plan(CHAT, engine, engine_args={key: value})
    assert row(made, f"--engine-args {key}") == (target, "")


# ---- meta_template


@pytest.mark.parametrize(
    ("template", "message", "hint"),
    [
        ({"round": [{"role": "HUMAN", "api_role": "USER"}]}, "round[0]: unknown api_role 'USER'", "known: HUMAN"),
        ({"round": [{"role": "HUMAN", "api_role": "human"}]}, "unknown api_role 'human'", "did you mean 'HUMAN'?"),
        ({"round": [{"role": "A", "api_role": ["B"]}]}, "unknown api_role", "known: "),
        ({"round": ["HUMAN"]}, "meta_template.round[0]: a dict with 'role' is wanted", None),
        ({"round": [{"api_role": "HUMAN"}]}, "meta_template.round[0]: a dict with 'role' is wanted", None),
        ({"round": {"role": "HUMAN"}}, "meta_template.round: a list is wanted, not dict", None),
        ({"round": [{"role": "HUMAN", "beginn": "x"}]}, "round[0].beginn: unknown key", "did you mean 'begin'?"),
        ({"round": [{"role": "HUMAN", "begin": ["x"]}]}, "round[0].begin: a text is wanted, not list", None),
        ({"rounds": [{"role": "HUMAN"}]}, "meta_template.rounds: unknown key", "did you mean 'round'?"),
        ({"begin": "<s>", "round": [{"role": "HUMAN"}]}, "meta_template.begin: unknown key", "known: round"),
        ({"reserved_roles": [{"role": "SYSTEM"}]}, "meta_template has no round", None),
    ],
)
@pytest.mark.parametrize("entry", [API, CHAT, {"type": "VLLM", "abbr": "v", "path": "m"}], ids=lambda e: str(e["type"]))
def test_a_wrong_meta_template(entry: dict[str, Any], template: dict[str, Any], message: str, hint: str | None) -> None:
    error = refused({**entry, "meta_template": template})
    assert error.message.startswith(f"{entry['abbr']}: meta_template")
    assert message in error.message
    assert hint is None or hint in (error.hint or "")


# ---- secrets


@pytest.mark.parametrize(
    "entry",
    [
        {**API, "key": SECRET},
        {**API, "key": [SECRET, "other"]},
        {**API, "extra_body": {"api_key": SECRET}},
        {**CHAT, "model_kwargs": {"token": SECRET}, "tokenizer_kwargs": {"token": SECRET}},
    ],
)
def test_a_secret_is_in_no_repr_and_no_table(entry: dict[str, Any]) -> None:
    made = plan(entry)
    assert SECRET not in repr(made)
    assert SECRET not in str(made.translation)
    assert SECRET in str(dataclasses.asdict(made))  # it is there, where the client needs it


def test_the_key_of_the_command_line_is_in_no_repr() -> None:
    options = EngineOptions("openai", api_base="http://h", api_key=SECRET)
    assert SECRET not in repr(options)
    assert SECRET not in repr(convert(parse_model(CHAT, "m"), options))


# ---- nothing is dropped in silence

_text = st.text("abc/-", min_size=1, max_size=6).filter(lambda t: bool(t.strip("/")))
HF_FIELDS: dict[str, st.SearchStrategy[Any]] = {
    "abbr": _text,
    "summarizer_abbr": _text,
    "run_cfg": st.fixed_dictionaries({"num_gpus": st.integers(2, 8), "num_procs": st.integers(2, 3)}),
    "max_out_len": st.integers(1, 999),
    "min_out_len": st.integers(1, 9),
    "batch_size": st.integers(1, 99),
    "max_seq_len": st.integers(1, 9999),
    "meta_template": st.just(API_TEMPLATE),
    "pred_postprocessor": st.just({"type": "gsm8k_postprocess"}),
    "model_kwargs": st.dictionaries(
        st.sampled_from(
            ["device_map", "torch_dtype", "revision", "trust_remote_code", "load_in_8bit", "max_memory", "x"]
        ),
        st.sampled_from(["auto", None, False]),
        min_size=1,
    ),
    "tokenizer_path": _text,
    "tokenizer_kwargs": st.dictionaries(
        st.sampled_from(["padding_side", "use_fast", "x"]), st.just("left"), min_size=1
    ),
    "peft_path": _text,
    "peft_kwargs": st.just({"a": 1}),
    "tokenizer_only": st.just(True),
    "generation_kwargs": st.dictionaries(
        st.sampled_from(["temperature", "top_p", "do_sample", "num_beams", "use_cache", "eos_token_id", "seed"]),
        st.sampled_from([1, 2]),
        min_size=1,
    ),
    "pad_token_id": st.integers(0, 9),
    "stop_words": st.lists(_text, min_size=1, max_size=2),
}
CHAT_FIELDS = {
    **HF_FIELDS,
    "fastchat_template": _text,
    "mode": st.just("mid"),
    "chat_template_kwargs": st.just({"enable_thinking": False}),
}
BASE_FIELDS = {**HF_FIELDS, "drop_middle": st.just(True)}


def unnamed(entry: dict[str, Any], made: ModelPlan) -> list[str]:
    """Return the fields of a config, and the keys of its kwargs, that no row of the table is about."""
    sources = [row.source for row in made.translation]
    wanted = []
    for key, value in entry.items():
        nested = key in ("model_kwargs", "generation_kwargs", "tokenizer_kwargs", "engine_config", "gen_config")
        wanted += [f"{key}.{inner}" for inner in value] if nested else [key]
    return [w for w in wanted if not any(re.match(rf"{re.escape(w)}(\W|$)", source) for source in sources)]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("kind", ["HuggingFacewithChatTemplate", "HuggingFaceBaseModel"])
@settings(max_examples=60)
@given(data=st.data())
def test_each_field_of_a_huggingface_config_is_a_row_or_an_error(kind: str, engine: str, data: st.DataObject) -> None:
    fields = CHAT_FIELDS if kind == "HuggingFacewithChatTemplate" else BASE_FIELDS
    chosen = data.draw(st.sets(st.sampled_from(sorted(fields)), max_size=6))
    entry = {name: data.draw(fields[name], label=name) for name in sorted(chosen)}
    try:
        made = plan({"type": kind, "path": "org/m", **entry}, engine, api_base="http://h:1")
    except ConfigError as error:
        assert error.hint
        # it names something that the config says
        assert any(key in error.message for key in entry)
        return
    assert unnamed(entry, made) == []


@pytest.mark.parametrize("kind", ["HuggingFacewithChatTemplate", "HuggingFaceBaseModel"])
@pytest.mark.parametrize("engine", ENGINES)
def test_the_fields_of_the_test_above_are_all_there_are(kind: str, engine: str) -> None:
    fields = CHAT_FIELDS if kind == "HuggingFacewithChatTemplate" else BASE_FIELDS
    assert {"type", "path", *fields} == set(MODEL_SPECS[kind].model_fields)


def fields_of(fields: EngineFields, handled: dict[str, st.SearchStrategy[Any]]) -> st.SearchStrategy[dict[str, Any]]:
    """Return dicts of an engine's sampling fields: with meaning, without one here, refused, and unknown."""
    values = st.sampled_from([None, 0, 1, 0.5, True, [], [3], {"a": 1}])
    names = [*fields.names, *fields.neutral, *fields.unseen, *fields.elsewhere, "unknown", "temprature"]
    drawn = {**dict.fromkeys(names, values), **handled}
    chosen = st.sets(st.sampled_from(sorted(drawn)), max_size=4)
    return chosen.flatmap(lambda keys: st.fixed_dictionaries({key: drawn[key] for key in sorted(keys)}))


_number = st.sampled_from([None, 0, 1e-6, 0.001, 0.7, -1, "x"])
_texts = st.sampled_from([None, [], ["Q:"], "Q:", [5]])
VLLM_KWARGS = fields_of(
    VLLM_FIELDS,
    {"temperature": _number, "do_sample": st.booleans(), "stop": _texts, "skip_special_tokens": st.booleans()},
)
LMDEPLOY_CONFIG = fields_of(LMDEPLOY_FIELDS, {"stop_words": _texts, "skip_special_tokens": st.booleans()})
VLLM_MODEL_KWARGS = st.dictionaries(
    st.sampled_from([*VLLM_SIZES.values(), "max_model_len", "dtype", "revision", "trust_remote_code"]),
    st.sampled_from([None, 1, 2, "auto"]),
)
TURBOMIND_CONFIG = st.dictionaries(
    st.sampled_from(["tp", "dp", "session_len", "block_size", "dtype"]), st.sampled_from([None, 1, 2, "auto"])
)


@pytest.mark.parametrize(
    ("kind", "launched", "launching", "drawn", "drawing"),
    [
        ("VLLM", "model_kwargs", VLLM_MODEL_KWARGS, "generation_kwargs", VLLM_KWARGS),
        ("VLLMwithChatTemplate", "model_kwargs", VLLM_MODEL_KWARGS, "generation_kwargs", VLLM_KWARGS),
        ("TurboMindModel", "engine_config", TURBOMIND_CONFIG, "gen_config", LMDEPLOY_CONFIG),
        ("TurboMindModelwithChatTemplate", "engine_config", TURBOMIND_CONFIG, "gen_config", LMDEPLOY_CONFIG),
    ],
)
@settings(max_examples=100)
@given(data=st.data())
def test_each_key_of_an_engine_config_is_a_row_or_an_error(
    kind: str,
    launched: str,
    launching: st.SearchStrategy[dict[str, Any]],
    drawn: str,
    drawing: st.SearchStrategy[dict[str, Any]],
    data: st.DataObject,
) -> None:
    entry: dict[str, Any] = {launched: data.draw(launching), drawn: data.draw(drawing), "stop_words": ["</w>"]}
    try:
        made = plan({"type": kind, "path": "m", **entry})
    except ConfigError as error:
        assert error.hint
        assert any(key in error.message for field in (launched, drawn) for key in entry[field])
        return
    assert unnamed(entry, made) == []
    kept = {name: n for name, n in entry[launched].items() if name in VLLM_SIZES or name in VLLM_SIZES.values()}
    flags = started_with(made)
    assert {name: flags[f"--{name.replace('_', '-')}"] for name, n in kept.items() if n} == {
        name: str(n) for name, n in kept.items() if n
    }


REFUSED = {
    "fastchat_template",
    "http_client_cfg",
    "openai_proxy_url",
    "peft_kwargs",
    "tokenizer_only",
    "use_fastchat_template",
}
SAMPLES: tuple[Any, ...] = (None, True, 3, 0.5, "x", "mid", ["x"], {"num_procs": 2}, {500: "x"}, {"x": 1})
SPECIAL_SAMPLES: dict[str, Any] = {
    "backend": "pytorch",
    "gen_config": {"do_sample": True, "random_seed": 1},
    "meta_template": API_TEMPLATE,
    "model_kwargs": {"revision": "x"},
    "generation_kwargs": {"seed": 1},
    "pred_postprocessor": {"type": "x"},
    "openai_api_base": "http://h/v1",
}


def values_of(kind: str, name: str) -> list[Any]:
    """Return values that a field takes, other than its default."""
    taken = []
    for value in [SPECIAL_SAMPLES[name]] if name in SPECIAL_SAMPLES else SAMPLES:
        try:
            parsed = getattr(parse_model({"type": kind, "path": "m", name: value}, "m"), name)
        except ConfigError:
            continue
        if parsed != MODEL_SPECS[kind].model_fields[name].get_default(call_default_factory=True):
            taken.append(value)
    return taken


@pytest.mark.parametrize(
    ("kind", "name"),
    [(kind, name) for kind in sorted(MODEL_SPECS) for name in MODEL_SPECS[kind].model_fields if name != "type"],
)
def test_each_field_of_each_spec_is_a_row_or_refused(kind: str, name: str) -> None:
    values = values_of(kind, name)
    assert values
    for value in values:
        entry = {"type": kind, "path": "m", name: value}
        if name in REFUSED:
            error = refused(entry)
            assert name in error.message
            assert error.hint
        else:
            assert unnamed({name: value}, plan(entry)) == []


def test_the_fields_settled_by_evalswap_are_fields() -> None:
    known = {name for spec in MODEL_SPECS.values() for name in spec.model_fields}
    assert set(SETTLED) <= known


def test_a_plan_touches_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Conversion reads no file and opens no connection: a dry run needs neither model nor network."""

    def fail(*_: object, **__: object) -> None:
        raise AssertionError("not pure")

    for name in ("builtins.open", "socket.create_connection", "socket.socket.connect", "pathlib.Path.is_file"):
        monkeypatch.setattr(name, fail)
    plan(CHAT, "vllm")
    plan(API)
    plan(CHAT, "openai", api_base="http://h:1")


def test_a_dtype_among_the_engines_flags_is_the_models_dtype() -> None:
    made = plan(CHAT, "vllm", engine_args={"--dtype": "half", "max-num-seqs": 7})
    assert (launch(made).dtype, launch(made).engine_args) == ("float16", {"max-num-seqs": 7})
    targets = [entry.target for entry in made.translation if entry.target.startswith("--dtype")]
    assert set(targets) == {"--dtype float16"}
    assert "unknown dtype 'fp4'" in refused(CHAT, "sglang", engine_args={"dtype": "fp4"}).message


@pytest.mark.parametrize(
    ("extra", "hint"),
    [
        ({"extra_headers": {"x-api-key": "secret"}}, "a key goes in key="),
        ({"extra_query": {"v": 1}}, "without a query"),
        ({"timeout": 5}, "write timeout= of the model"),
    ],
)
def test_arguments_of_openais_library_are_no_fields(extra: dict[str, object], hint: str) -> None:
    error = refused({**API, "openai_extra_kwargs": extra})
    assert error.message.endswith(f"openai_extra_kwargs.{next(iter(extra))} is not supported")
    assert hint in (error.hint or "")


def test_an_extra_body_of_openais_library_is_the_requests_own() -> None:
    extra = {"logit_bias": {"1": 2}, "extra_body": {"top_k": 3}}
    endpoint = plan({**API, "extra_body": {"min_p": 0.1}, "openai_extra_kwargs": extra}).endpoint
    assert endpoint is not None
    assert endpoint.extra_body == {"min_p": 0.1, "logit_bias": {"1": 2}, "top_k": 3}


@pytest.mark.parametrize("value", ["False", "no", 2, [True]])
def test_a_do_sample_that_is_no_bool_is_refused(value: object) -> None:
    error = refused({**CHAT, "generation_kwargs": {"do_sample": value, "temperature": 0.7}}, "vllm")
    assert f"generation_kwargs.do_sample={value!r}: True or False is wanted" in error.message
