"""Tests of the sampling block: complete, explicit, and with HuggingFace's meaning of each field."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evalswap.checkpoint import find_checkpoint
from evalswap.config.specs import parse_model
from evalswap.conversion import EngineOptions, convert
from evalswap.errors import EXIT_USAGE, ConfigError, ConversionError
from evalswap.plan import SamplingPlan
from evalswap.prompting.sampling import FIELDS, UNTRANSLATABLE, resolve_sampling
from evalswap.records import Sampling

# What Llama-3-8B-Instruct and Qwen2.5 say about themselves.
LLAMA = {"do_sample": True, "temperature": 0.6, "top_p": 0.9, "max_length": 4096, "eos_token_id": [128001, 128009]}
QWEN = {"do_sample": True, "temperature": 0.7, "top_p": 0.8, "top_k": 20, "repetition_penalty": 1.05}


def hf(generation_config: dict[str, Any] | None = None, /, **kwargs: Any) -> Sampling:
    return resolve_sampling(SamplingPlan(generation_kwargs=kwargs), generation_config or {}, max_out_len=10)


def of_spec(kind: str, generation_config: dict[str, Any], **keys: Any) -> Sampling:
    plan = convert(parse_model({"type": kind, "path": "m", **keys}, "m"), EngineOptions()).sampling
    return resolve_sampling(plan, generation_config, max_out_len=10)


def drawn(sampling: Sampling) -> tuple[float, float, int, float]:
    return sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p


GREEDY = (0.0, 1.0, 0, 0.0)


# ---- do_sample


@pytest.mark.parametrize(
    ("kwargs", "expected"),
    [
        ({}, GREEDY),
        ({"temperature": 0.7, "top_p": 0.5, "top_k": 3, "min_p": 0.1}, GREEDY),
        ({"do_sample": False, "temperature": 0.7}, GREEDY),
        ({"do_sample": None, "temperature": 0.7}, GREEDY),
        ({"do_sample": True, "temperature": 0.0, "top_p": 0.5}, GREEDY),
        ({"do_sample": True, "temperature": 0}, GREEDY),
        ({"do_sample": True}, (1.0, 1.0, 50, 0.0)),  # HuggingFace's defaults
        ({"do_sample": True, "temperature": 0.7}, (0.7, 1.0, 50, 0.0)),
        ({"do_sample": True, "top_k": 0, "top_p": 0.5}, (1.0, 0.5, 0, 0.0)),
        ({"do_sample": True, "top_k": -1}, (1.0, 1.0, 0, 0.0)),  # vLLM's way to say off
        ({"do_sample": True, "min_p": 0.05}, (1.0, 1.0, 50, 0.05)),
        ({"do_sample": True, "temperature": None, "top_p": None}, (1.0, 1.0, 50, 0.0)),
    ],
)
def test_the_truth_table_of_huggingface(kwargs: dict[str, Any], expected: tuple[float, ...]) -> None:
    assert drawn(hf(**kwargs)) == expected
    assert hf(**kwargs).greedy == (expected == GREEDY)


def test_the_models_own_generation_config() -> None:
    assert drawn(hf(LLAMA)) == GREEDY  # its do_sample is not obeyed: evaluation is greedy unless a config says so
    assert drawn(hf(LLAMA, do_sample=True)) == (0.6, 0.9, 50, 0.0)
    assert drawn(hf(QWEN, do_sample=True)) == (0.7, 0.8, 20, 0.0)
    assert drawn(hf(QWEN, do_sample=True, temperature=0.1, top_k=5)) == (0.1, 0.8, 5, 0.0)


def test_the_repetition_penalty_of_the_model() -> None:
    """HuggingFace applies it even to greedy answers; engines and APIs never see the file."""
    for kind in ("HuggingFacewithChatTemplate", "HuggingFaceBaseModel"):
        assert of_spec(kind, QWEN).repetition_penalty == 1.05
        assert of_spec(kind, QWEN, generation_kwargs={"repetition_penalty": 1.0}).repetition_penalty == 1.0
        assert of_spec(kind, {"repetition_penalty": None}).repetition_penalty == 1.0
    for kind in ("VLLM", "VLLMwithChatTemplate", "OpenAI", "OpenAISDK"):
        assert of_spec(kind, QWEN) == of_spec(kind, {})
        assert of_spec(kind, QWEN).repetition_penalty == 1.0


@pytest.mark.parametrize("kind", ["OpenAI", "OpenAISDK"])
def test_api_configs_sample_as_soon_as_they_name_a_temperature(kind: str) -> None:
    assert drawn(of_spec(kind, LLAMA)) == GREEDY
    assert drawn(of_spec(kind, LLAMA, generation_kwargs={"temperature": 0})) == GREEDY
    # nothing of HuggingFace's defaults (top_k=50) or of the model's own config
    assert drawn(of_spec(kind, QWEN, generation_kwargs={"temperature": 0.7})) == (0.7, 1.0, 0, 0.0)
    assert drawn(of_spec(kind, QWEN, generation_kwargs={"temperature": 0.7, "top_p": 0.9})) == (0.7, 0.9, 0, 0.0)
    # a server is told a temperature and nothing else of the kind
    kwargs = {"temperature": 0.7, "do_sample": False, "top_k": None}
    assert drawn(of_spec(kind, QWEN, generation_kwargs=kwargs)) == (0.7, 1.0, 0, 0.0)
    assert drawn(of_spec(kind, QWEN, generation_kwargs={"do_sample": True})) == GREEDY


@pytest.mark.parametrize("kind", ["OpenAI", "OpenAISDK"])
def test_the_temperature_of_an_api_config(kind: str) -> None:
    assert drawn(of_spec(kind, {}, temperature=0.01)) == (0.01, 1.0, 0, 0.0)
    assert drawn(of_spec(kind, {}, temperature=0)) == GREEDY


# ---- lengths


@pytest.mark.parametrize(
    ("dataset", "model", "kwargs", "expected"),
    [
        (512, 1024, {"max_new_tokens": 7}, 512),  # the dataset's wins
        (None, 1024, {"max_new_tokens": 7}, 1024),
        (None, None, {"max_new_tokens": 7}, 7),
        (None, None, {}, 512),
    ],
)
def test_the_longest_answer(dataset: int | None, model: int | None, kwargs: dict[str, Any], expected: int) -> None:
    plan = SamplingPlan(generation_kwargs=kwargs, max_out_len=model)
    assert (
        resolve_sampling(plan, {"max_new_tokens": 3, "max_length": 20}, max_out_len=dataset).max_new_tokens == expected
    )


def test_the_shortest_answer() -> None:
    def least(dataset: int | None, model: int | None, **kwargs: Any) -> int:
        plan = SamplingPlan(generation_kwargs=kwargs, min_out_len=model)
        return resolve_sampling(plan, {}, max_out_len=99, min_out_len=dataset).min_new_tokens

    assert (least(1, 2, min_new_tokens=3), least(None, 2, min_new_tokens=3)) == (1, 2)
    assert (least(None, None, min_new_tokens=3), least(None, None)) == (3, 0)


def test_the_shortest_answer_of_the_models_own_file() -> None:
    def least(generation_config: dict[str, Any], model: int | None = None, **kwargs: Any) -> int:
        plan = SamplingPlan(generation_kwargs=kwargs, min_out_len=model)
        return resolve_sampling(plan, generation_config, max_out_len=99).min_new_tokens

    config = {"min_new_tokens": 64}
    assert least(config) == 64
    assert (least(config, 2), least(config, 0)) == (2, 0)
    assert (least(config, min_new_tokens=3), least(config, min_new_tokens=0)) == (3, 0)
    assert least({"min_new_tokens": 640}) == 99  # transformers, too, ends an answer at max_new_tokens
    assert least({"min_new_tokens": None}) == 0
    assert of_spec("VLLM", config) == of_spec("VLLM", {})


# ---- stops


def stops(plan: SamplingPlan, **facts: Any) -> tuple[tuple[str, ...], tuple[int, ...]]:
    sampling = resolve_sampling(plan, {}, max_out_len=1, **facts)
    return sampling.stop, sampling.stop_token_ids


def test_stop_words_that_are_one_special_token_become_ids() -> None:
    plan = SamplingPlan(stop_words=("<|eot_id|>", "Question:", "</s>", ""))
    assert stops(
        plan,
        extra_stops=["\n\n", "Question:"],
        eos_token_ids=[128001, 128009],
        single_token_stops={"<|eot_id|>": 128009, "</s>": 2, "unused": 5},
    ) == (("Question:", "\n\n"), (128001, 128009, 2))
    assert stops(plan) == (("<|eot_id|>", "Question:", "</s>"), ())  # without a tokenizer they are texts


@pytest.mark.parametrize("given", [92542, [2, 92542]])
def test_eos_ids_of_the_config(given: int | list[int]) -> None:
    ids = (92542,) if given == 92542 else (2, 92542)
    chat = SamplingPlan(generation_kwargs={"eos_token_id": given}, stop_at_tokenizer_eos=True)
    base = SamplingPlan(generation_kwargs={"eos_token_id": given}, stop_at_tokenizer_eos=False)
    assert stops(chat, eos_token_ids=[7])[1] == (*ids, 7)  # a chat model's own eos ends its turn in any case
    assert stops(base, eos_token_ids=[7])[1] == ids
    unset = SamplingPlan(generation_kwargs={"eos_token_id": None})
    assert stops(unset, eos_token_ids=[7])[1] == (7,)


@pytest.mark.parametrize(
    ("generation_config", "ids"),
    [
        (None, (5,)),  # no such file: transformers makes one of config.json
        ({}, ()),
        ({"repetition_penalty": 1.1}, ()),
        ({"eos_token_id": None}, ()),
        ({"eos_token_id": 7}, (7,)),
        ({"eos_token_id": [7, 8]}, (7, 8)),
    ],
)
@pytest.mark.parametrize("config", [{"eos_token_id": 5}, {"text_config": {"eos_token_id": 5}}])
def test_the_ids_that_end_an_answer_are_those_of_transformers(
    tmp_path: Path, config: dict[str, Any], generation_config: dict[str, Any] | None, ids: tuple[int, ...]
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"torch_dtype": "float32", **config}))
    if generation_config is not None:
        (tmp_path / "generation_config.json").write_text(json.dumps(generation_config))
    assert find_checkpoint(str(tmp_path)).eos_token_ids == ids


# ---- what is refused


@pytest.mark.parametrize(
    ("kwargs", "field", "hint"),
    [
        ({"temprature": 1}, "temprature", "did you mean 'temperature'?"),
        ({"max_tokens": 1}, "max_tokens", "write max_new_tokens"),
        ({"max_out_len": 1}, "max_out_len", "write the model's max_out_len"),
        ({"stop_words": ["x"]}, "stop_words", "known: "),
        ({"zzz": 1}, "zzz", "known: do_sample, eos_token_id, "),
    ],
)
def test_an_unknown_field(kwargs: dict[str, Any], field: str, hint: str) -> None:
    with pytest.raises(ConfigError, match=f"generation_kwargs.{field}: unknown field") as caught:
        hf(**kwargs)
    assert hint in (caught.value.hint or "")
    assert caught.value.exit_code == EXIT_USAGE


@pytest.mark.parametrize(
    ("field", "value", "neutral"),
    [
        ("num_beams", 4, 1),
        ("num_return_sequences", 2, 1),
        ("no_repeat_ngram_size", 3, 0),
        ("bad_words_ids", [[5]], []),
        ("forced_eos_token_id", 5, None),
        ("encoder_repetition_penalty", 1.5, 1.0),
        ("encoder_no_repeat_ngram_size", 3, 0),
        ("max_time", 1.0, None),
        ("dola_layers", "high", None),
        ("constraints", [], None),
        ("force_words_ids", [[3]], None),
        ("watermarking_config", {"bias": 2.5}, None),
        ("token_healing", True, False),
        ("cache_implementation", "quantized", None),
    ],
)
def test_what_no_engine_can_say(field: str, value: object, neutral: object) -> None:
    with pytest.raises(ConversionError, match=rf"generation_kwargs: {field}=") as caught:
        hf(**{field: value})
    assert "remove it" in (caught.value.hint or "")
    with pytest.raises(ConversionError, match=r"generation_config\.json: "):
        hf({field: value})
    assert hf({field: value}, **{field: neutral}) == hf({field: None}) == hf()  # the config switches it off
    assert of_spec("VLLM", {field: value}) == of_spec("VLLM", {})  # nobody reads the file for an engine's config


@pytest.mark.parametrize("field", ["typical_p", "top_h", "epsilon_cutoff", "eta_cutoff"])
def test_what_only_matters_when_sampling(field: str) -> None:
    assert hf({field: 0.9}) == hf(**{field: 0.9}) == hf()
    with pytest.raises(ConversionError, match=rf"{field}=0\.9"):
        hf({field: 0.9}, do_sample=True)
    assert hf({field: UNTRANSLATABLE[field]}, do_sample=True) == hf(do_sample=True)


def test_the_stop_strings_of_the_model() -> None:
    with pytest.raises(ConversionError, match=r"generation_config\.json: stop_strings=") as caught:
        hf({"stop_strings": ["\n"]})
    assert (caught.value.hint or "").endswith("in its place write the model's stop_words=[…]")
    assert hf({"stop_strings": ["\n"]}, stop_strings=None) == hf()
    with pytest.raises(ConfigError, match="unknown field"):
        hf(stop_strings=["\n"])


def test_what_changes_nothing_in_transformers_is_not_refused() -> None:
    harmless = {
        "renormalize_logits": True,
        "remove_invalid_values": True,
        "length_penalty": 2.0,  # of beams
        "early_stopping": True,
        "diversity_penalty": 0.5,
        "prompt_lookup_num_tokens": 3,  # faster, and the same
        "cache_implementation": "hybrid",
        "max_length": 20,
        "max_new_tokens": 3,
        "decoder_start_token_id": 3,
    }
    assert hf(harmless) == hf()


@pytest.mark.parametrize(
    "kwargs",
    [
        {"do_sample": True, "temperature": -1},
        {"do_sample": True, "temperature": float("nan")},
        {"do_sample": True, "temperature": float("inf")},
        {"do_sample": True, "temperature": "hot"},
        {"do_sample": True, "temperature": [1]},
        {"do_sample": True, "top_p": 0},
        {"do_sample": True, "top_p": 1.5},
        {"do_sample": True, "top_k": "x"},
        {"do_sample": True, "min_p": 2},
        {"repetition_penalty": 0},
        {"repetition_penalty": -1.0},
        {"min_new_tokens": 11},
        {"min_new_tokens": -1},
        {"seed": "x"},
        {"eos_token_id": "</s>"},
    ],
)
def test_values_out_of_range(kwargs: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="generation_kwargs: "):
        hf(**kwargs)


def test_fields_without_effect() -> None:
    assert hf(use_cache=False, pad_token_id=0) == hf()


# ---- rules with many inputs

_values: dict[str, st.SearchStrategy[Any]] = {
    "do_sample": st.booleans(),
    "temperature": st.none() | st.floats(0, 2),
    "top_p": st.none() | st.floats(0.01, 1),
    "top_k": st.none() | st.integers(-1, 100),
    "min_p": st.none() | st.floats(0, 1),
    "repetition_penalty": st.none() | st.floats(0.5, 2),
    "presence_penalty": st.none() | st.floats(-2, 2),
    "frequency_penalty": st.none() | st.floats(-2, 2),
    "seed": st.none() | st.integers(0, 2**31),
    "eos_token_id": st.none() | st.integers(0, 9) | st.lists(st.integers(0, 9), max_size=3),
    "max_new_tokens": st.none() | st.integers(1, 99),
}
_kwargs = st.fixed_dictionaries({}, optional=_values)
_config = st.fixed_dictionaries(
    {}, optional={**{key: _values[key] for key in ("do_sample", "temperature", "top_p", "top_k", "repetition_penalty")}}
)
_plans = st.builds(
    SamplingPlan,
    generation_kwargs=_kwargs,
    stop_words=st.lists(st.sampled_from(["a", "b", ""]), max_size=3).map(tuple),
    max_out_len=st.none() | st.integers(1, 99),
    min_out_len=st.none() | st.just(0) | st.just(1),
    apply_generation_config=st.booleans(),
    stop_at_tokenizer_eos=st.booleans(),
)


@given(plan=_plans, config=_config, eos=st.lists(st.integers(0, 9), max_size=3), single=st.booleans())
def test_a_block_is_always_complete(plan: SamplingPlan, config: dict[str, Any], eos: list[int], single: bool) -> None:
    made = resolve_sampling(
        plan, config, max_out_len=None, eos_token_ids=eos, single_token_stops={"a": 77} if single else None
    )
    values = dataclasses.asdict(made)
    assert not [name for name, value in values.items() if value is None and name != "seed"]
    types = {name: type(value) for name, value in values.items() if name != "seed"}
    assert {types[name] for name in ("temperature", "top_p", "min_p", "repetition_penalty")} == {float}
    assert {types[name] for name in ("max_new_tokens", "min_new_tokens", "top_k")} == {int}
    if not plan.generation_kwargs.get("do_sample"):
        assert made.greedy
    if made.greedy:
        assert drawn(made) == GREEDY
    if not plan.apply_generation_config:
        assert made == resolve_sampling(
            plan, {}, max_out_len=None, eos_token_ids=eos, single_token_stops={"a": 77} if single else None
        )
    assert "" not in made.stop
    assert len(set(made.stop)) == len(made.stop)
    assert len(set(made.stop_token_ids)) == len(made.stop_token_ids)
    if single:
        assert "a" not in made.stop
        assert (77 in made.stop_token_ids) == ("a" in plan.stop_words)


@given(kwargs=_kwargs, config=_config)
def test_the_configs_value_wins_then_the_models_then_the_default(
    kwargs: dict[str, Any], config: dict[str, Any]
) -> None:
    made = hf(config, **kwargs)
    for name, default in (("temperature", 1.0), ("top_p", 1.0), ("top_k", 50), ("repetition_penalty", 1.0)):
        if made.greedy and name != "repetition_penalty":
            continue
        first = next((fields[name] for fields in (kwargs, config) if fields.get(name) is not None), default)
        assert getattr(made, name) == (max(first, 0) if name == "top_k" else first)


@given(st.text("abcdefghijklmnopqrstuvwxyz_", min_size=1, max_size=20))
def test_only_known_fields_are_taken(field: str) -> None:
    if field in FIELDS or field in UNTRANSLATABLE:
        return
    with pytest.raises(ConfigError, match="unknown field"):
        hf(**{field: None})
