"""Specs that name vLLM directly: they run as they are."""

from __future__ import annotations

from typing import Any

from evalswap.config.specs import VLLM, ModelSpec, VLLMwithChatTemplate
from evalswap.conversion.options import EngineOptions
from evalswap.conversion.roles import CHAT_ROLES, parse_roles
from evalswap.conversion.translation import (
    Translation,
    context_row,
    device_rows,
    engine_arg_rows,
    engine_generation_kwargs,
    sampling_rows,
    take_dtype,
    take_revision,
    take_trust_remote_code,
)
from evalswap.errors import ConfigError
from evalswap.plan import LaunchPlan, ModelPlan, PromptPlan, SamplingPlan


def from_vllm(spec: VLLM | VLLMwithChatTemplate, options: EngineOptions) -> ModelPlan:
    table = Translation(spec, "vllm")
    chat = isinstance(spec, VLLMwithChatTemplate)
    table.refuse("lora_path", "adapters are not loaded on vllm yet", "give a merged checkpoint")
    table.refuse("tokenizer_only", "a model that is never loaded cannot answer", "remove it")
    for key in ("fastchat_template", "use_fastchat_template"):
        table.refuse(key, "FastChat templates are not rendered", "remove it")
    path = table.stripped_path(spec.path)
    table.add("path", f"--model {path}")
    kwargs = dict(spec.model_kwargs)
    dtype = take_dtype(kwargs, table)
    trust = take_trust_remote_code(kwargs, table)
    revision = take_revision(kwargs, table)
    gpus = _tensor_parallel(kwargs, spec, table)
    for key in kwargs:
        table.add(f"model_kwargs.{key}", f"--{key.replace('_', '-')}")
    context_row(spec, table)
    table.settle("batch_size")
    engine_arg_rows(options, table)
    table.add("(prompt)", "rendered and tokenised once, by evalswap", "the engine gets token ids")
    sampling_rows(spec, table)
    default_roles = CHAT_ROLES if chat else ()
    return ModelPlan(
        abbr=spec.abbr,
        summary_abbr=spec.summarizer_abbr or spec.abbr,
        engine="vllm",
        spec_type=spec.type,
        prompt=PromptPlan(
            template="chat" if chat else "base",
            roles=parse_roles(spec.meta_template, spec.abbr) if spec.meta_template else default_roles,
            tokenizer_path=spec.tokenizer_path or path,
            chat_template_kwargs=getattr(spec, "chat_template_kwargs", {}),
            max_seq_len=spec.max_seq_len,
            overlong="middle" if getattr(spec, "mode", "none") == "mid" else "left",
            trust_remote_code=trust,
        ),
        sampling=SamplingPlan(
            generation_kwargs=engine_generation_kwargs(spec.generation_kwargs),
            stop_words=tuple(spec.stop_words),
            max_out_len=spec.max_out_len,
            min_out_len=spec.min_out_len,
            apply_generation_config=False,
            stop_at_tokenizer_eos=True,
            skip_special_tokens=True,
        ),
        launch=LaunchPlan(
            path=path,
            revision=revision,
            dtype=dtype,
            num_gpus=gpus,
            batch_size=spec.batch_size,
            trust_remote_code=trust,
            engine_args={**kwargs, **options.engine_args},
        ),
        endpoint=None,
        pred_postprocessor=spec.pred_postprocessor,
        translation=table.rows(),
    )


def _tensor_parallel(kwargs: dict[str, Any], spec: ModelSpec, table: Translation) -> int:
    """Take the number of GPUs out of a vLLM config, which says it twice."""
    given = kwargs.pop("tensor_parallel_size", None)
    try:
        gpus = max(int(spec.run_cfg.num_gpus if given is None else given), 1)
    except (TypeError, ValueError):
        raise ConfigError(f"{spec.abbr}: model_kwargs.tensor_parallel_size: not a number: {given!r}") from None
    if given is not None:
        table.add(f"model_kwargs.tensor_parallel_size={given}", f"--tensor-parallel-size {gpus}")
    device_rows(spec, gpus, table)
    return gpus
