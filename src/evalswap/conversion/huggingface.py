"""HuggingFace specs, on transformers, on another engine, or on somebody's server."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

from evalswap.config.specs import HuggingFaceSpec, HuggingFacewithChatTemplate
from evalswap.conversion.api import endpoint_for
from evalswap.conversion.options import EngineOptions
from evalswap.conversion.parallel import gpu_rows
from evalswap.conversion.roles import CHAT_ROLES, parse_roles
from evalswap.conversion.translation import (
    Translation,
    context_row,
    engine_arg_rows,
    sampling_rows,
    take_dtype,
    take_revision,
    take_trust_remote_code,
    trusts,
)
from evalswap.errors import ConfigError, ConversionError
from evalswap.plan import EndpointPlan, LaunchPlan, ModelPlan, PromptPlan, Role, SamplingPlan

HARMLESS_MODEL_KWARGS = {
    "device_map": "placement is the engine's own",
    "low_cpu_mem_usage": "loading is the engine's own",
    "use_safetensors": "loading is the engine's own",
    "attn_implementation": "the engine has its own attention kernels",
    "max_memory": "placement is the engine's own",
}
WEIGHT_CHANGING_KWARGS = ("load_in_8bit", "load_in_4bit", "quantization_config")
BITSANDBYTES_KWARGS = ("load_in_8bit", "load_in_4bit", "bnb_", "llm_int8_")
HARMLESS_TOKENIZER_KWARGS = ("padding_side", "truncation_side", "use_fast", "trust_remote_code")


def from_huggingface(spec: HuggingFaceSpec, options: EngineOptions) -> ModelPlan:
    engine = options.accelerator or "transformers"
    chat = isinstance(spec, HuggingFacewithChatTemplate)
    table = Translation(spec, engine)
    table.refuse("tokenizer_only", "a model that is never loaded cannot answer", "remove it")
    table.refuse(
        "fastchat_template",
        "FastChat templates are another text than the model's own chat template",
        "remove it to use the checkpoint's chat template, or put the template into the tokenizer's folder",
    )
    path, gguf = _gguf_apart(table.stripped_path(spec.path), table)
    if not gguf:
        table.add("path", f'"model": "{options.api_model or path}"' if engine == "openai" else f"--model {path}")
    prompt = _huggingface_prompt(spec, chat, path, table)
    sampling_rows(spec, table)
    launch: LaunchPlan | None = None
    endpoint: EndpointPlan | None = None
    if engine == "openai":
        endpoint = endpoint_for(spec, path, options, table)
    else:
        launch = _launch(spec, engine, path, {**gguf, **options.engine_args}, table)
        engine_arg_rows(options, table)
    abbr = spec.abbr if engine == "transformers" else _swapped_abbr(spec.abbr, engine)
    table.add("abbr", abbr, "names the results")
    return ModelPlan(
        abbr=abbr,
        summary_abbr=spec.summarizer_abbr or abbr,
        engine=engine,
        spec_type=spec.type,
        prompt=prompt,
        sampling=SamplingPlan(
            generation_kwargs=spec.generation_kwargs,
            stop_words=tuple(spec.stop_words),
            max_out_len=spec.max_out_len,
            min_out_len=spec.min_out_len,
            apply_generation_config=True,
            stop_at_tokenizer_eos=chat,
            skip_special_tokens=not chat,
        ),
        launch=launch,
        endpoint=endpoint,
        pred_postprocessor=spec.pred_postprocessor,
        translation=table.rows(),
    )


def _huggingface_prompt(spec: HuggingFaceSpec, chat: bool, path: str, table: Translation) -> PromptPlan:
    for key in spec.tokenizer_kwargs:
        if key in HARMLESS_TOKENIZER_KWARGS:
            table.add(f"tokenizer_kwargs.{key}", "evalswap's tokenizer", "prompts are tokenised once, by evalswap")
        else:
            table.add(f"tokenizer_kwargs.{key}", f"AutoTokenizer(…, {key}=…)")
    roles: tuple[Role, ...] = ()
    if chat:
        if table.engine == "openai":
            table.add(
                "(chat template)", "evalswap's where the server takes token ids", "else the server applies its own"
            )
        else:
            table.add("(chat template)", "rendered and tokenised once, by evalswap", "the engine gets token ids")
        roles = parse_roles(spec.meta_template, spec.abbr) if spec.meta_template else CHAT_ROLES
    else:
        table.add("(base model)", "plain text, tokenised once, by evalswap", "no chat template, ever")
        if spec.meta_template is not None:
            table.add("meta_template", "", "base models get no template, as in the original")
    middle = getattr(spec, "drop_middle", False) or getattr(spec, "mode", "none") == "mid"
    return PromptPlan(
        template="chat" if chat else "base",
        roles=roles,
        tokenizer_path=spec.tokenizer_path or path,
        tokenizer_kwargs=spec.tokenizer_kwargs,
        chat_template_kwargs=getattr(spec, "chat_template_kwargs", {}),
        max_seq_len=spec.max_seq_len,
        overlong="middle" if middle else "left",
        trust_remote_code=trusts(spec.model_kwargs) or trusts(spec.tokenizer_kwargs),
    )


def _gguf_apart(path: str, table: Translation) -> tuple[str, dict[str, str]]:
    """Return the model's folder, and the flag for the file in it, where the path names a GGUF file."""
    file = PurePath(path)
    if file.suffix != ".gguf" or table.engine == "openai":
        return path, {}
    if table.engine != "llamacpp":
        raise ConversionError(
            f"{table.abbr}: path={path}: {table.engine} reads a HuggingFace folder, not a GGUF file",
            "give the model's folder, or run the file with -a llamacpp",
        )
    note = "tokenizer and template come from its folder, or from tokenizer_path"
    table.add(f"path={path}", f"--model {file.name}", note)
    return str(file.parent), {"model": file.name}


def _launch(
    spec: HuggingFaceSpec, engine: str, path: str, engine_args: Mapping[str, Any], table: Translation
) -> LaunchPlan:
    kwargs = dict(spec.model_kwargs)
    dtype = take_dtype(kwargs, table)
    revision = take_revision(kwargs, table)
    trust = take_trust_remote_code(kwargs, table)
    table.refuse("peft_kwargs", "they are not passed on yet", "remove it, or merge the adapter into the checkpoint")
    if engine == "transformers":
        table.flag("batch_size", spec.batch_size)
        if spec.pad_token_id is not None:
            table.flag("pad_token_id", spec.pad_token_id)
        kwargs = _from_pretrained_kwargs(kwargs, table)
    else:
        _engine_model_kwargs(kwargs, engine, table)
        table.settle("batch_size")
    if spec.peft_path:
        table.adapter("peft_path", spec.peft_path)
    context_row(spec, table, engine_args)
    gpu_rows(spec, max(spec.run_cfg.num_gpus, 1), table, engine_args)
    return LaunchPlan(
        path=path,
        revision=revision,
        dtype=dtype,
        num_gpus=max(spec.run_cfg.num_gpus, 1),
        batch_size=spec.batch_size,
        trust_remote_code=trust,
        peft_path=spec.peft_path,
        pad_token_id=spec.pad_token_id,
        model_kwargs=kwargs if engine == "transformers" else {},
        engine_args=engine_args,
    )


def _from_pretrained_kwargs(kwargs: Mapping[str, Any], table: Translation) -> dict[str, Any]:
    """Return what transformers' from_pretrained is told, as plain values.

    transformers 5 has no ``load_in_8bit`` any more, which configs still say; it means a quantization_config.
    Raises ConfigError for a value that cannot be handed to another process.
    """
    told: dict[str, Any] = {}
    quantised = {key: value for key, value in kwargs.items() if key.startswith(BITSANDBYTES_KWARGS)}
    for key, value in kwargs.items():
        if key in quantised:
            target = "BitsAndBytesConfig" if _quantises(quantised) else ""
            table.add(f"model_kwargs.{key}", target and f"{target}({key}=…)", "" if target else "off")
            continue
        as_dict = getattr(value, "to_dict", None)  # transformers' own configs have it
        told[key] = as_dict() if callable(as_dict) else value
        try:
            json.dumps(told[key])
        except (TypeError, ValueError) as error:
            raise ConfigError(
                f"{table.abbr}: model_kwargs.{key}: {error}",
                "write it as plain values: text, numbers, lists, dicts",
            ) from None
        table.add(f"model_kwargs.{key}", f"from_pretrained(…, {key}=…)")
    if _quantises(quantised):
        told.setdefault("quantization_config", {"quant_method": "bitsandbytes", **quantised})
    return told


def _quantises(bitsandbytes: Mapping[str, Any]) -> bool:
    return bool(bitsandbytes.get("load_in_8bit") or bitsandbytes.get("load_in_4bit"))


def _engine_model_kwargs(kwargs: Mapping[str, Any], engine: str, table: Translation) -> None:
    """Settle what transformers' from_pretrained would have been told. Raises ConversionError where it matters."""
    for key, value in kwargs.items():
        if key in HARMLESS_MODEL_KWARGS:
            table.add(f"model_kwargs.{key}", "", HARMLESS_MODEL_KWARGS[key])
        elif key not in WEIGHT_CHANGING_KWARGS:
            raise ConversionError(
                f"{table.abbr}: model_kwargs.{key} means nothing to {engine}",
                f"remove it, or give {engine}'s own flag with --engine-args NAME=VALUE",
            )
        elif value:
            raise ConversionError(
                f"{table.abbr}: model_kwargs.{key} quantises the weights inside transformers; "
                f"{engine} would load other weights",
                "evaluate a checkpoint that is quantised on disk, or run without -a",
            )
        else:
            table.add(f"model_kwargs.{key}", "", "off")


def _swapped_abbr(abbr: str, engine: str) -> str:
    return abbr[: -len("-hf")] + f"-{engine}" if abbr.endswith("-hf") else f"{abbr}-{engine}"
