"""What people are told when an engine cannot be asked for something: who asked for it, and what helps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from evalswap.config.specs import parse_dataset, parse_model
from evalswap.conversion import EngineOptions, convert
from evalswap.engines.base import Engine
from evalswap.engines.openai import openai_engine
from evalswap.engines.registry import managed_engine
from evalswap.errors import ConversionError
from evalswap.inference.sampling_check import check_asked, check_sampling
from evalswap.plan import ModelPlan
from evalswap.prompting.sampling import resolve_sampling

QWEN = {"repetition_penalty": 1.05, "do_sample": True, "temperature": 0.7, "top_p": 0.8, "top_k": 20}
SERVER = "http://127.0.0.1:9/v1"


def plan_of(engine: str | None, kind: str = "HuggingFacewithChatTemplate", **keys: Any) -> ModelPlan:
    options = EngineOptions(engine, api_base=SERVER if engine == "openai" else None)
    return convert(parse_model({"type": kind, "path": "org/m", **keys}, "m"), options)


def engine_of(plan: ModelPlan, ids_as: str | None = None) -> Engine:
    return openai_engine(plan.endpoint, ids_as) if plan.endpoint else managed_engine(plan.engine, plan.launch)


def refusal(
    plan: ModelPlan,
    generation_config: Mapping[str, Any] | None = None,
    *,
    ids_as: str | None = None,
    min_out_len: int | None = None,
) -> tuple[str, str]:
    """Return the message and the hint of an engine that refuses what a plan asks for."""
    config = generation_config or {}
    sampling = resolve_sampling(plan.sampling, config, max_out_len=9, min_out_len=min_out_len)
    with pytest.raises(ConversionError) as caught:
        check_asked(engine_of(plan, ids_as), sampling, plan.sampling, config, min_out_len)
    assert caught.value.hint is not None
    return caught.value.message, caught.value.hint


@pytest.mark.parametrize("keys", [{}, {"generation_kwargs": {"do_sample": False}}])
@pytest.mark.parametrize(
    ("engine", "ids_as", "takers"),
    [
        ("sglang", None, "transformers, llamacpp, lmdeploy, vllm"),
        ("openai", "sglang", "transformers, llamacpp, lmdeploy, vllm"),
        ("openai", None, "transformers, llamacpp, lmdeploy, vllm"),
    ],
)
def test_a_value_that_only_the_models_own_file_says(
    engine: str, ids_as: str | None, takers: str, keys: dict[str, Any]
) -> None:
    message, hint = refusal(plan_of(engine, **keys), QWEN, ids_as=ids_as)
    assert message.startswith("repetition_penalty=1.05 (the model's generation_config.json) cannot be asked of ")
    assert hint == f"generation_kwargs=dict(repetition_penalty=1.0) asks for none; engines that take it: {takers}"


@pytest.mark.parametrize(("engine", "ids_as"), [("sglang", None), ("openai", "sglang"), ("openai", None)])
def test_the_advice_can_be_followed(engine: str, ids_as: str | None) -> None:
    plan = plan_of(engine, generation_kwargs={"repetition_penalty": 1.0})
    sampling = resolve_sampling(plan.sampling, QWEN, max_out_len=9)
    check_asked(engine_of(plan, ids_as), sampling, plan.sampling, QWEN)


def test_a_default_that_nobody_wrote() -> None:
    plan = plan_of("openai", generation_kwargs={"do_sample": True})
    message, hint = refusal(plan)
    assert message.startswith("top_k=50 (HuggingFace's default) cannot be asked of openai: ")
    assert hint.startswith("generation_kwargs=dict(top_k=0) asks for none; ")
    assert refusal(plan, QWEN)[0].startswith("top_k=20 (the model's generation_config.json) cannot be asked of openai")


def test_a_value_of_the_users_own() -> None:
    message, hint = refusal(plan_of("sglang", generation_kwargs={"repetition_penalty": 1.2}), QWEN)
    assert message.startswith("repetition_penalty=1.2 cannot be asked of sglang: ")
    assert hint.startswith("generation_kwargs=dict(repetition_penalty=1.0) asks for none")


def test_a_shortest_answer_of_the_datasets() -> None:
    message, hint = refusal(plan_of("llamacpp"), min_out_len=3)
    assert message.startswith("min_new_tokens=3 (the dataset's min_out_len) cannot be asked of llamacpp")
    assert hint == "remove the dataset's min_out_len; engines that take it: transformers, sglang, vllm"
    assert refusal(plan_of("llamacpp", min_out_len=2))[1].startswith("remove the model's min_out_len; ")
    message, hint = refusal(plan_of("llamacpp", generation_kwargs={"min_new_tokens": 2}))
    assert hint.startswith("generation_kwargs=dict(min_new_tokens=0) asks for none; ")
    message, hint = refusal(plan_of("llamacpp"), {"min_new_tokens": 4})
    assert message.startswith("min_new_tokens=4 (the model's generation_config.json) cannot be asked of llamacpp")
    assert hint.startswith("generation_kwargs=dict(min_new_tokens=0) asks for none; ")


def test_two_that_exclude_each_other() -> None:
    plan = plan_of("openai", generation_kwargs={"do_sample": True, "top_p": 0.9})
    message, hint = refusal(plan, ids_as="sglang")
    assert message.startswith("top_k=50 (HuggingFace's default) with top_p=0.9 cannot be asked of an SGLang server: ")
    assert hint.startswith(
        "generation_kwargs=dict(top_k=0) or generation_kwargs=dict(top_p=1.0) asks for one of them; "
    )


def test_a_value_out_of_an_engines_range() -> None:
    plan = plan_of("vllm", generation_kwargs={"do_sample": True, "temperature": 2.5})
    message, hint = refusal(plan)
    assert message == "temperature=2.5 cannot be asked of vllm: it takes at most 2"
    assert hint == "choose another value; engines that take it: transformers, llamacpp, sglang"


def test_a_field_that_no_other_engine_has() -> None:
    plan = plan_of("llamacpp", generation_kwargs={"presence_penalty": 0.5, "min_new_tokens": 2})
    assert refusal(plan)[1].endswith("; engines that take it: sglang, vllm")
    plan = plan_of("transformers", generation_kwargs={"presence_penalty": 0.5, "repetition_penalty": 1.1, "seed": 1})
    assert refusal(plan)[1].endswith("; engines that take it: vllm")


# ---- before anything is started


DATASET = parse_dataset(
    {
        "type": "GSM8KDataset", "abbr": "d", "path": "p",
        "reader_cfg": {"input_columns": ["question"], "output_column": "answer"},
        "infer_cfg": {"prompt_template": {"template": "{question}"}, "inferencer": {"max_out_len": 9}},
        "eval_cfg": {"evaluator": {"type": "E"}},
    },
    "d",
)  # fmt: skip


@pytest.mark.parametrize(
    ("engine", "kwargs", "message"),
    [
        ("vllm", {"do_sample": True, "temperature": 2.5}, "it takes at most 2"),
        ("lmdeploy", {"do_sample": True, "top_k": 2000}, "it takes at most 1024"),
        ("sglang", {"repetition_penalty": 1.1}, "counts the answer's tokens only"),
    ],
)
def test_what_the_config_says_is_refused_before_the_start(engine: str, kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ConversionError, match=message):
        check_sampling(plan_of(engine, generation_kwargs=kwargs), [DATASET])


def test_a_server_is_asked_before_it_is_known_to_refuse() -> None:
    """A vLLM server takes the first, an SGLang server the second, one that gets messages the third."""
    for kwargs in (
        {"repetition_penalty": 1.1},
        {"top_k": 0, "top_p": 0.9, "min_p": 0.1},
        {"temperature": 2.5, "top_k": 0},
    ):
        check_sampling(plan_of("openai", generation_kwargs={"do_sample": True, **kwargs}), [DATASET])
    by_nobody = {"repetition_penalty": 1.1, "min_p": 0.1, "top_p": 0.9, "top_k": 0}
    with pytest.raises(ConversionError, match=r"top_p=0\.9 with min_p=0\.1 cannot be asked of a vLLM server"):
        check_sampling(plan_of("openai", generation_kwargs={"do_sample": True, **by_nobody}), [DATASET])
