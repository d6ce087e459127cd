"""Specs that name an engine directly: they run on it as they are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from evalswap.config.specs import (
    VLLM,
    ModelSpec,
    TurboMindModelwithChatTemplate,
    TurboMindSpec,
    VLLMwithChatTemplate,
)
from evalswap.conversion.engine_sampling import turbomind_sampling, vllm_sampling
from evalswap.conversion.options import EngineOptions
from evalswap.conversion.parallel import take_gpus
from evalswap.conversion.roles import CHAT_ROLES, parse_roles
from evalswap.conversion.translation import (
    Translation,
    context_row,
    engine_arg_rows,
    take_dtype,
    take_revision,
    take_trust_remote_code,
)
from evalswap.engines.flags import given
from evalswap.plan import LaunchPlan, ModelPlan, PromptPlan, SamplingPlan

FLAGS_OF: Mapping[str, Mapping[str, str]] = {  # engine → keys of a config that its command line calls otherwise
    "vllm": {},
    "lmdeploy": {"block_size": "cache_block_seq_len", "device_type": "device"},
}


def from_vllm(spec: VLLM | VLLMwithChatTemplate, options: EngineOptions) -> ModelPlan:
    table = Translation(spec, "vllm")
    launch = _launch(spec, dict(spec.model_kwargs), "model_kwargs", table, options)
    sampling = vllm_sampling(spec, table)
    return _plan(spec, table, launch, sampling, chat=isinstance(spec, VLLMwithChatTemplate))


def from_turbomind(spec: TurboMindSpec, options: EngineOptions) -> ModelPlan:
    table = Translation(spec, "lmdeploy")
    engine_config = dict(spec.engine_config)
    if engine_config.get("adapters"):
        table.adapter("engine_config.adapters", str(engine_config["adapters"]))
    room = engine_config.get("session_len")
    if "session_len" in engine_config and engine_config.pop("session_len") is None:
        table.add("engine_config.session_len", "", "unset")
    if room is not None:
        note = "max_seq_len is not set, so it bounds the prompts" if spec.max_seq_len is None else ""
        table.add(f"engine_config.session_len={room}", "--session-len max_seq_len + max_out_len", note)
        spec = spec.model_copy(update={"max_seq_len": spec.max_seq_len or room})
    if spec.backend != "turbomind":
        engine_config["backend"] = spec.backend
    table.add("backend", f"--backend {spec.backend}")
    launch = _launch(spec, engine_config, "engine_config", table, options)
    sampling = turbomind_sampling(spec, table)
    return _plan(spec, table, launch, sampling, chat=isinstance(spec, TurboMindModelwithChatTemplate))


def _plan(spec: ModelSpec, table: Translation, launch: LaunchPlan, sampling: SamplingPlan, *, chat: bool) -> ModelPlan:
    table.refuse("tokenizer_only", "a model that is never loaded cannot answer", "remove it")
    for key in ("fastchat_template", "use_fastchat_template"):
        table.refuse(key, "FastChat templates are not rendered", "remove it")
    table.settle("batch_size")
    table.add("(prompt)", "rendered and tokenised once, by evalswap", "the engine gets token ids")
    middle = getattr(spec, "mode", "none") == "mid" or getattr(spec, "drop_middle", False)
    default_roles = CHAT_ROLES if chat else ()
    return ModelPlan(
        abbr=spec.abbr,
        summary_abbr=spec.summarizer_abbr or spec.abbr,
        engine=table.engine,
        spec_type=spec.type,
        prompt=PromptPlan(
            template="chat" if chat else "base",
            roles=parse_roles(spec.meta_template, spec.abbr) if spec.meta_template else default_roles,
            tokenizer_path=getattr(spec, "tokenizer_path", None) or launch.path,
            chat_template_kwargs=getattr(spec, "chat_template_kwargs", {}),
            max_seq_len=spec.max_seq_len,
            overlong="middle" if middle else "left",
            trust_remote_code=launch.trust_remote_code,
        ),
        sampling=sampling,
        launch=launch,
        endpoint=None,
        pred_postprocessor=spec.pred_postprocessor,
        translation=table.rows(),
    )


def _launch(
    spec: ModelSpec, kwargs: dict[str, Any], where: str, table: Translation, options: EngineOptions
) -> LaunchPlan:
    """Read ``kwargs``, a config's ``where``: what evalswap settles itself, and the engine's own flags."""
    path = table.stripped_path(spec.path)
    table.add("path", f"--model {path}")
    dtype = take_dtype(kwargs, table, where)
    trust = take_trust_remote_code(kwargs, table, where)
    revision = take_revision(kwargs, table, where)
    gpus, tensor_flag = take_gpus(kwargs, spec, where, table, options)
    asked, renamed = given(options.engine_args), FLAGS_OF[table.engine]
    for key, value in kwargs.items():
        flag = renamed.get(key, key)
        if flag in asked:
            table.add(f"{where}.{key}", "", f"--engine-args {flag} comes first")
        elif value is None:
            table.add(f"{where}.{key}", "", "the engine's own default")
        elif key != "backend":
            table.add(f"{where}.{key}", f"--{flag.replace('_', '-')}")
    flags = {renamed.get(key, key): value for key, value in kwargs.items()}
    context_row(spec, table, {**flags, **options.engine_args})
    adapter = getattr(spec, "lora_path", None)
    if adapter:
        table.adapter("lora_path", adapter)
    engine_arg_rows(options, table)
    return LaunchPlan(
        path=path,
        revision=revision,
        dtype=dtype,
        num_gpus=gpus,
        batch_size=spec.batch_size,
        trust_remote_code=trust,
        peft_path=adapter,
        engine_args={**tensor_flag, **flags, **options.engine_args},
    )
