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
from evalswap.errors import ConfigError, ConversionError, did_you_mean
from evalswap.plan import LaunchPlan, ModelPlan, PromptPlan, SamplingPlan

# What LMDeploy draws with where a gen_config says nothing; do_sample=False is greedy whatever the others say.
LMDEPLOY_DEFAULTS: Mapping[str, Any] = {"do_sample": False, "top_k": 50, "top_p": 1.0, "temperature": 0.8}
GEN_CONFIG_NAMES: Mapping[str, str] = {  # LMDeploy's names → HuggingFace's
    **{name: name for name in ("do_sample", "top_p", "top_k", "min_p", "temperature", "repetition_penalty")},
    **{name: name for name in ("max_new_tokens", "min_new_tokens")},
    "random_seed": "seed",
    "stop_token_ids": "eos_token_id",
}
# Fields with the only value that means nothing here.
GEN_CONFIG_NEUTRAL: Mapping[str, Any] = {
    "n": 1,
    "ignore_eos": False,
    "bad_words": None,
    "bad_token_ids": None,
    "response_format": None,
    "logits_processors": None,
}
GEN_CONFIG_SHOWN = ("skip_special_tokens", "spaces_between_special_tokens", "logprobs")  # how an answer is shown
ENGINE_CONFIG_FLAGS: Mapping[str, str] = {"block_size": "cache_block_seq_len", "device_type": "device"}


def from_vllm(spec: VLLM | VLLMwithChatTemplate, options: EngineOptions) -> ModelPlan:
    table = Translation(spec, "vllm")
    launch = _launch(spec, dict(spec.model_kwargs), "model_kwargs", "tensor_parallel_size", table, options)
    sampling = _sampling(spec, engine_generation_kwargs(spec.generation_kwargs), tuple(spec.stop_words), table)
    return _plan(spec, table, launch, sampling, chat=isinstance(spec, VLLMwithChatTemplate))


def from_turbomind(spec: TurboMindSpec, options: EngineOptions) -> ModelPlan:
    table = Translation(spec, "lmdeploy")
    engine_config = {ENGINE_CONFIG_FLAGS.get(key, key): value for key, value in spec.engine_config.items()}
    if engine_config.get("adapters"):
        table.adapter("engine_config.adapters", str(engine_config["adapters"]))
    if "session_len" in engine_config:
        room = engine_config.pop("session_len")
        note = "max_seq_len is not set, so it bounds the prompts" if spec.max_seq_len is None else ""
        table.add(f"engine_config.session_len={room}", "--session-len max_seq_len + max_out_len", note)
        spec = spec.model_copy(update={"max_seq_len": spec.max_seq_len or room})
    if spec.backend != "turbomind":
        engine_config["backend"] = spec.backend
    table.add("backend", f"--backend {spec.backend}")
    launch = _launch(spec, engine_config, "engine_config", "tp", table, options)
    words = (*spec.stop_words, *_end_words(spec, table))
    generation_kwargs, more_words, skip_special = _gen_config(spec, table)
    sampling = _sampling(spec, {**LMDEPLOY_DEFAULTS, **generation_kwargs}, (*words, *more_words), table, skip_special)
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
    spec: ModelSpec, kwargs: dict[str, Any], where: str, gpus_key: str, table: Translation, options: EngineOptions
) -> LaunchPlan:
    """Read ``kwargs``, a config's ``where``: what evalswap settles itself, and the engine's own flags."""
    path = table.stripped_path(spec.path)
    table.add("path", f"--model {path}")
    dtype = take_dtype(kwargs, table, where)
    trust = take_trust_remote_code(kwargs, table, where)
    revision = take_revision(kwargs, table, where)
    gpus = _gpus(kwargs, spec, where, gpus_key, table)
    for key in kwargs:
        if key != "backend":
            table.add(f"{where}.{key}", f"--{key.replace('_', '-')}")
    context_row(spec, table)
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
        engine_args={**kwargs, **options.engine_args},
    )


def _gpus(kwargs: dict[str, Any], spec: ModelSpec, where: str, key: str, table: Translation) -> int:
    """Take the number of GPUs out of an engine's config, which says it twice."""
    given = kwargs.pop(key, None)
    try:
        gpus = max(int(spec.run_cfg.num_gpus if given is None else given), 1)
    except (TypeError, ValueError):
        raise ConfigError(f"{spec.abbr}: {where}.{key}: not a number: {given!r}") from None
    if given is not None:
        table.flag("num_gpus", gpus, source=f"{where}.{key}={given}")
    device_rows(spec, gpus, table)
    return gpus


def _sampling(
    spec: ModelSpec,
    generation_kwargs: Mapping[str, Any],
    stop_words: tuple[str, ...],
    table: Translation,
    skip_special_tokens: bool = True,
) -> SamplingPlan:
    sampling_rows(spec, table)
    return SamplingPlan(
        generation_kwargs=generation_kwargs,
        stop_words=stop_words,
        max_out_len=spec.max_out_len,
        min_out_len=spec.min_out_len,
        apply_generation_config=False,
        stop_at_tokenizer_eos=True,
        skip_special_tokens=skip_special_tokens,
    )


def _end_words(spec: TurboMindSpec, table: Translation) -> tuple[str, ...]:
    end = getattr(spec, "end_str", None)
    if not end:
        return ()
    table.add(f"end_str={end!r}", "a stop text", "cut once more by evalswap")
    return (end,)


def _gen_config(spec: TurboMindSpec, table: Translation) -> tuple[dict[str, Any], tuple[str, ...], bool]:
    """Return a gen_config's fields under HuggingFace's names, its stop words, and whether special tokens are dropped.

    Raises ConversionError for a field that cannot be asked of the engine by token ids.
    """
    kwargs: dict[str, Any] = {}
    words: tuple[str, ...] = ()
    greedy = not spec.gen_config.get("do_sample")
    for key, value in spec.gen_config.items():
        source = f"gen_config.{key}={value!r}"
        if key == "stop_words":
            words = tuple(value or ())
            table.add(source, "stop ids where a word is one special token, else stop texts")
        elif key in GEN_CONFIG_NAMES:
            kwargs[GEN_CONFIG_NAMES[key]] = value
            drawn = greedy and key in ("top_p", "top_k", "min_p", "temperature", "random_seed")
            table.add(source, "" if drawn else "the sampling block", "greedy, as do_sample is not set" if drawn else "")
        elif key in GEN_CONFIG_SHOWN:
            table.add(source, "evalswap, which decodes the answer" if key == "skip_special_tokens" else "")
        elif value not in (GEN_CONFIG_NEUTRAL.get(key), None):
            raise ConversionError(
                f"{spec.abbr}: gen_config.{key}={value!r}: evalswap has no such field",
                did_you_mean(key, GEN_CONFIG_NAMES) or f"remove it; it knows {', '.join(GEN_CONFIG_NAMES)}, stop_words",
            )
        else:
            table.add(source, "", "off")
    return kwargs, words, bool(spec.gen_config.get("skip_special_tokens", True))
