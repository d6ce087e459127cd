"""The complete sampling block of a model's requests, with HuggingFace's semantics.

``do_sample=False`` is greedy whatever the temperature says; a value comes from the config's
generation_kwargs, else from the model's generation_config.json, else it is HuggingFace's default.
https://huggingface.co/docs/transformers/main_classes/text_generation#transformers.GenerationConfig
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from evalswap.errors import ConfigError, ConversionError, did_you_mean
from evalswap.plan import SamplingPlan
from evalswap.records import Sampling

LEAST_TEMPERATURE = 1e-5  # below it the likeliest token is drawn all the same; configs for engines write 1e-6
HF_DEFAULTS: Mapping[str, Any] = {
    "temperature": 1.0,
    "top_p": 1.0,
    "top_k": 50,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
}
# Fields that an engine's sampling block cannot say, with the only value that means nothing: all by which a model
# without an encoder answers something else in transformers 5.19 (generate() in generation/utils.py).
UNTRANSLATABLE: Mapping[str, Any] = {
    "num_beams": 1,
    "num_return_sequences": 1,
    "no_repeat_ngram_size": 0,
    "encoder_no_repeat_ngram_size": 0,  # the "encoder's" are the prompt's tokens
    "encoder_repetition_penalty": 1.0,
    "min_length": 0,
    "max_time": None,
    "stop_strings": None,
    "typical_p": 1.0,
    "top_h": None,
    "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0,
    "penalty_alpha": 0.0,
    "dola_layers": None,
    "constraints": None,
    "force_words_ids": None,
    "guidance_scale": 1.0,
    "watermarking_config": None,
    "token_healing": False,
    "cache_implementation": None,  # see _means_nothing
    "bad_words_ids": [],
    "suppress_tokens": [],
    "begin_suppress_tokens": [],
    "forced_bos_token_id": None,
    "forced_eos_token_id": None,
    "sequence_bias": None,
    "exponential_decay_length_penalty": None,
}
MIN_OUT_LEN = "min_out_len"
GENERATION_CONFIG = "the model's generation_config.json"
DRAWN_FIELDS = (  # without effect on a greedy answer
    *("temperature", "top_p", "top_k", "min_p"),
    *("typical_p", "top_h", "epsilon_cutoff", "eta_cutoff"),
)
EFFECTLESS_FIELDS = ("pad_token_id", "use_cache")  # no token depends on them
FIELDS = {
    *HF_DEFAULTS,
    *EFFECTLESS_FIELDS,
    "do_sample",
    "max_new_tokens",
    "min_new_tokens",
    "presence_penalty",
    "frequency_penalty",
    "seed",
    "eos_token_id",
}
DEFAULT_MAX_OUT_LEN = 512  # where neither the dataset nor the model says


# Names of other libraries, some of which look like a field that means something else.
WRITTEN_OTHERWISE: Mapping[str, str] = {
    "stop_token_ids": "eos_token_id",
    "stop": "the model's stop_words=[…]",
    "stop_strings": "the model's stop_words=[…]",
    "max_tokens": "max_new_tokens",
    "max_out_len": "the model's max_out_len",
    "max_length": "max_new_tokens, which does not count the prompt",
    "min_tokens": "min_new_tokens",
    "n": "num_return_sequences",
}


def check_fields(generation_kwargs: Mapping[str, Any]) -> None:
    """Check the names in a config's ``generation_kwargs``, and that engines can say what they mean.

    Raises ConfigError for an unknown field and ConversionError for one that no engine's block can say.
    """
    for key, value in generation_kwargs.items():
        known = key in FIELDS or key in UNTRANSLATABLE
        if not known or (key in WRITTEN_OTHERWISE and value is not None):
            named = f"write {WRITTEN_OTHERWISE[key]}" if key in WRITTEN_OTHERWISE else did_you_mean(key, FIELDS)
            raise ConfigError(f"generation_kwargs.{key}: unknown field", named or f"known: {', '.join(sorted(FIELDS))}")
    if (do_sample := generation_kwargs.get("do_sample")) not in (None, True, False):
        text = f"generation_kwargs.do_sample={do_sample!r}: True or False is wanted"
        raise ConfigError(text, "a text like 'False' would count as true")
    _refuse_untranslatable(generation_kwargs, "generation_kwargs", sampled=_samples(generation_kwargs))


def max_new_tokens(plan: SamplingPlan, of_dataset: int | None) -> int:
    """Return how long an answer may become: the dataset's ``max_out_len``, else the model's, else a default.

    A plan's ``answer_limit`` comes before them. Raises ConfigError if generation_kwargs.max_new_tokens is no number.
    """
    of_model = plan.max_out_len or plan.generation_kwargs.get("max_new_tokens")
    given = plan.answer_limit or of_dataset or of_model or DEFAULT_MAX_OUT_LEN
    try:
        return int(given)
    except (TypeError, ValueError):
        raise ConfigError(f"generation_kwargs.max_new_tokens={given!r}: a number of tokens is wanted") from None


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

    Raises as :func:`check_fields`, also for the model's own generation config, and for values out of range.
    """
    kwargs = dict(plan.generation_kwargs)
    check_fields(kwargs)
    sampled = _samples(kwargs)
    of_model = dict(generation_config) if plan.apply_generation_config else {}
    unsaid = {key: value for key, value in of_model.items() if key not in kwargs}
    _refuse_untranslatable(unsaid, GENERATION_CONFIG, sampled=sampled)

    def value(name: str) -> Any:
        return _value(plan, of_model, name)[0]

    words = dict.fromkeys([*plan.stop_words, *extra_stops])
    single = single_token_stops or {}
    longest = max_new_tokens(plan, max_out_len)
    try:
        temperature = drawn_at(value("temperature")) if sampled else 0.0
        drawn = temperature > 0
        least, who = _least(plan, of_model, min_out_len)
        sampling = Sampling(
            max_new_tokens=longest,
            # A model's own file does not know how long answers may be here; transformers ends them all the same.
            min_new_tokens=min(int(least), longest) if who == GENERATION_CONFIG else int(least),
            temperature=temperature,
            top_p=float(value("top_p")) if drawn else 1.0,
            top_k=max(0, int(value("top_k"))) if drawn else 0,
            min_p=float(value("min_p")) if drawn else 0.0,
            repetition_penalty=float(value("repetition_penalty")),
            presence_penalty=float(kwargs.get("presence_penalty") or 0.0),
            frequency_penalty=float(kwargs.get("frequency_penalty") or 0.0),
            seed=None if kwargs.get("seed") is None else int(kwargs["seed"]),
            stop=tuple(word for word in words if word and word not in single),
            stop_token_ids=tuple(
                dict.fromkeys([*_eos_ids(plan, eos_token_ids), *(single[w] for w in words if w in single)])
            ),
        )
    except (TypeError, ValueError) as error:
        raise ConfigError(f"generation_kwargs: {error}") from None
    _check_ranges(sampling)
    return sampling


def origin(plan: SamplingPlan, generation_config: Mapping[str, Any], name: str, *, min_out_len: int | None) -> str:
    """Return who says a field's value, for people: "generation_kwargs", "the model's generation_config.json", …

    ``min_out_len`` is the dataset's.
    """
    of_model = generation_config if plan.apply_generation_config else {}
    if name in HF_DEFAULTS:
        return _value(plan, of_model, name)[1]
    return _least(plan, of_model, min_out_len)[1] if name == "min_new_tokens" else plan.written_in


def drawn_at(temperature: Any) -> float:
    """Return the temperature that answers are drawn at; 0, which is greedy, also for one that comes to the same.

    Raises ValueError or TypeError if it is no number.
    """
    value = float(temperature)
    return 0.0 if 0 < value < LEAST_TEMPERATURE else value


def _least(plan: SamplingPlan, of_model: Mapping[str, Any], min_out_len: int | None) -> tuple[Any, str]:
    """Return the shortest answer in tokens and who says it: the dataset, the model's spec, else as for any field."""
    said = (
        (min_out_len, f"the dataset's {MIN_OUT_LEN}"),
        (plan.min_out_len, f"the model's {MIN_OUT_LEN}"),
        (plan.generation_kwargs.get("min_new_tokens"), plan.written_in),
        (of_model.get("min_new_tokens"), GENERATION_CONFIG),
    )
    return next((pair for pair in said if pair[0] is not None), (0, plan.written_in))


def _value(plan: SamplingPlan, of_model: Mapping[str, Any], name: str) -> tuple[Any, str]:
    """Return a field's value and who says it: the config's, else the model's, else HuggingFace's default."""
    if plan.generation_kwargs.get(name) is not None:
        return plan.generation_kwargs[name], plan.written_in
    if of_model.get(name) is not None:
        return of_model[name], GENERATION_CONFIG
    return HF_DEFAULTS[name], "HuggingFace's default"


def _samples(generation_kwargs: Mapping[str, Any]) -> bool:
    return bool(generation_kwargs.get("do_sample"))


def _eos_ids(plan: SamplingPlan, of_model: Sequence[int]) -> list[int]:
    """Return the ids that end an answer: the config's instead of the model's, but chat models keep theirs too."""
    eos = plan.generation_kwargs.get("eos_token_id")
    if eos is None:
        return list(of_model)
    given = [eos] if isinstance(eos, int) else [int(token) for token in eos]
    return [*given, *of_model] if plan.stop_at_tokenizer_eos else given


def _refuse_untranslatable(fields: Mapping[str, Any], where: str, *, sampled: bool) -> None:
    for key, neutral in UNTRANSLATABLE.items():
        if key in DRAWN_FIELDS and not sampled:
            continue
        if not _means_nothing(key, fields.get(key), neutral):
            instead = f"; in its place write {WRITTEN_OTHERWISE[key]}" if key in WRITTEN_OTHERWISE else ""
            raise ConversionError(
                f"{where}: {key}={fields[key]}: engines draw one answer token by token and have no such field",
                f"remove it, or set generation_kwargs=dict({key}={neutral}) for an answer without it{instead}",
            )


def _means_nothing(key: str, value: Any, neutral: Any) -> bool:
    if key == "cache_implementation":  # where it is kept ("hybrid", "static", …) decides no token
        return bool(value != "quantized")
    return value in (None, neutral)


def _check_ranges(sampling: Sampling) -> None:
    problems = {
        "temperature": not 0 <= sampling.temperature < math.inf,
        "top_p": not 0 < sampling.top_p <= 1,
        "min_p": not 0 <= sampling.min_p <= 1,
        "repetition_penalty": not 0 < sampling.repetition_penalty < math.inf,
        "max_new_tokens": sampling.max_new_tokens < 1,
        "min_new_tokens": not 0 <= sampling.min_new_tokens <= sampling.max_new_tokens,
    }
    for name, wrong in problems.items():
        if wrong:
            raise ConfigError(f"generation_kwargs: {name}={getattr(sampling, name)} is out of range")
