"""The complete sampling block of a model's requests, with HuggingFace's semantics.

``do_sample=False`` is greedy whatever the temperature says; a value comes from the config's
generation_kwargs, else from the model's generation_config.json, else it is HuggingFace's default.
https://huggingface.co/docs/transformers/main_classes/text_generation#transformers.GenerationConfig
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from evalswap.errors import ConfigError, ConversionError, did_you_mean
from evalswap.plan import SamplingPlan
from evalswap.records import Sampling

HF_DEFAULTS: Mapping[str, Any] = {
    "temperature": 1.0,
    "top_p": 1.0,
    "top_k": 50,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
}
DRAWN_FIELDS = ("temperature", "top_p", "top_k", "min_p")  # without effect on a greedy answer
NAMED_FIELDS = {
    *HF_DEFAULTS,
    "do_sample",
    "max_new_tokens",
    "min_new_tokens",
    "max_out_len",
    "presence_penalty",
    "frequency_penalty",
    "seed",
    "eos_token_id",
    "pad_token_id",
    "num_beams",
    "num_return_sequences",
    "use_cache",
    "stop_words",
}
DEFAULT_MAX_OUT_LEN = 512  # where neither the dataset nor the model says


def resolve_sampling(
    plan: SamplingPlan,
    generation_config: Mapping[str, Any],
    *,
    max_out_len: int | None,
    min_out_len: int | None = None,
    extra_stops: Sequence[str] = (),
    eos_token_ids: Sequence[int] = (),
    single_token_stops: Mapping[str, int] | None = None,
) -> Sampling:
    """Return the sampling of one job.

    ``max_out_len`` is the dataset's; it wins over the model's. ``eos_token_ids`` are the model's own.
    ``single_token_stops`` maps stop words that are exactly one special token to its id.

    Raises ConfigError for an unknown field and ConversionError for one that changes how answers are searched.
    """
    kwargs = dict(plan.generation_kwargs)
    _refuse_unknown(kwargs)
    defaults = {**HF_DEFAULTS, **(_set_values(generation_config) if plan.apply_generation_config else {})}

    def value(name: str) -> Any:
        given = kwargs.get(name)
        return defaults.get(name, HF_DEFAULTS.get(name)) if given is None else given

    sampled = bool(kwargs.get("do_sample", False))
    words = dict.fromkeys([*plan.stop_words, *extra_stops])
    single = single_token_stops or {}
    eos = kwargs.get("eos_token_id")
    eos_ids = list(eos_token_ids) if eos is None else [eos] if isinstance(eos, int) else list(eos)
    limit = max_out_len or kwargs.get("max_new_tokens") or plan.max_out_len or DEFAULT_MAX_OUT_LEN
    least = min_out_len or kwargs.get("min_new_tokens") or plan.min_out_len or 0
    try:
        return Sampling(
            max_new_tokens=int(limit),
            min_new_tokens=int(least),
            temperature=float(value("temperature")) if sampled else 0.0,
            top_p=float(value("top_p")) if sampled else 1.0,
            top_k=int(value("top_k") or 0) if sampled else 0,
            min_p=float(value("min_p") or 0.0) if sampled else 0.0,
            repetition_penalty=float(value("repetition_penalty") or 1.0),
            presence_penalty=float(kwargs.get("presence_penalty") or 0.0),
            frequency_penalty=float(kwargs.get("frequency_penalty") or 0.0),
            seed=kwargs.get("seed"),
            stop=tuple(word for word in words if word and word not in single),
            stop_token_ids=tuple(dict.fromkeys([*eos_ids, *(single[w] for w in words if w in single)])),
        )
    except (TypeError, ValueError) as error:
        raise ConfigError(f"generation_kwargs: {error}") from None


def _refuse_unknown(kwargs: Mapping[str, Any]) -> None:
    for key, given in kwargs.items():
        if key not in NAMED_FIELDS:
            raise ConfigError(
                f"generation_kwargs.{key}: unknown field",
                did_you_mean(key, NAMED_FIELDS) or f"known: {', '.join(sorted(NAMED_FIELDS))}",
            )
        if key in ("num_beams", "num_return_sequences") and given not in (None, 1):
            raise ConversionError(
                f"generation_kwargs.{key}={given}: engines draw one answer token by token",
                f"remove {key}: one answer a question is scored",
            )


def _set_values(generation_config: Mapping[str, Any]) -> dict[str, Any]:
    return {key: item for key, item in generation_config.items() if key in HF_DEFAULTS and item is not None}
