"""The sampling of specs that name an engine: the engine's own fields, which mean what they mean in OpenCompass.

https://github.com/open-compass/opencompass, opencompass/models: vllm.py, vllm_with_tf_above_v4_33.py, turbomind.py and
turbomind_with_tf_above_v4_33.py as of August 2026; vllm/sampling_params.py of vLLM 0.32; GenerationConfig in
lmdeploy/messages.py of LMDeploy 0.18.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from evalswap.config.specs import VLLM, TurboMindModel, TurboMindSpec, VLLMwithChatTemplate
from evalswap.conversion.translation import STOP_WORDS_TARGET, Translation, length_rows, stop_words_row
from evalswap.errors import ConfigError, ConversionError
from evalswap.plan import SamplingPlan
from evalswap.prompting.sampling import FIELDS, UNTRANSLATABLE

DRAWN = ("temperature", "top_p", "top_k", "min_p", "seed", "random_seed")  # without effect on a greedy answer
SIMILAR = 0.8  # of two names, from which on one is taken for the other misspelt


@dataclass(frozen=True)
class EngineFields:
    """The fields of an engine's sampling block."""

    engine: str
    names: Mapping[str, str]  # its names → HuggingFace's
    handled: tuple[str, ...]  # those that are read one by one
    neutral: Mapping[str, Any]  # those that evalswap cannot ask for, with the only value that means nothing
    unseen: tuple[str, ...]  # those that change no token of an answer
    elsewhere: Mapping[str, str]  # other engines' names → what it has instead


VLLM_FIELDS = EngineFields(
    engine="vLLM",
    names={
        **{name: name for name in ("top_p", "top_k", "min_p", "seed")},
        **{name: name for name in ("repetition_penalty", "presence_penalty", "frequency_penalty")},
        "min_tokens": "min_new_tokens",
        "max_tokens": "max_new_tokens",
        "stop_token_ids": "eos_token_id",
    },
    handled=("do_sample", "temperature", "stop", "skip_special_tokens"),
    neutral={
        "n": 1,
        "ignore_eos": False,
        "include_stop_str_in_output": False,
        "detokenize": True,
        "bad_words": [],
        **dict.fromkeys(("logit_bias", "allowed_token_ids", "logits_processors", "structured_outputs", "extra_args")),
        **dict.fromkeys(("guided_decoding", "thinking_token_budget", "repetition_detection", "truncate_prompt_tokens")),
        **dict.fromkeys(("watermarking", "trace_decode_token_ids")),
    },
    unseen=(
        *("logprobs", "prompt_logprobs", "prompt_logprob_token_ids", "prompt_logprob_start", "logprob_token_ids"),
        *("flat_logprobs", "spaces_between_special_tokens", "output_kind", "stream_interval", "skip_clone"),
        *("skip_reading_prefix_cache", "routed_experts_prompt_start"),
    ),
    elsewhere={
        "max_new_tokens": "vLLM calls it 'max_tokens'",
        "min_new_tokens": "vLLM calls it 'min_tokens'",
        "eos_token_id": "vLLM has 'stop_token_ids', which end an answer beside the model's own ends",
        "stop_words": "it is a key of the model, beside generation_kwargs",
    },
)
LMDEPLOY_FIELDS = EngineFields(
    engine="LMDeploy",
    names={
        **{name: name for name in ("top_p", "top_k", "min_p", "temperature", "repetition_penalty")},
        **{name: name for name in ("do_sample", "max_new_tokens", "min_new_tokens")},
        "random_seed": "seed",
        "stop_token_ids": "eos_token_id",
    },
    handled=("stop_words", "skip_special_tokens"),
    neutral={
        "n": 1,
        "ignore_eos": False,
        "include_stop_str_in_output": False,
        "repetition_ngram_size": 0,
        "repetition_ngram_threshold": 0,
        **dict.fromkeys(("bad_words", "bad_token_ids", "response_format", "logits_processors")),
    },
    unseen=(
        *("logprobs", "logprob_start_len", "output_logits", "output_last_hidden_state", "return_ppl"),
        *("spaces_between_special_tokens", "with_cache", "preserve_cache"),
    ),
    elsewhere={
        "max_tokens": "LMDeploy calls it 'max_new_tokens'",
        "min_tokens": "LMDeploy calls it 'min_new_tokens'",
        "seed": "LMDeploy calls it 'random_seed'",
        "stop": "LMDeploy calls it 'stop_words'",
        "eos_token_id": "LMDeploy has 'stop_token_ids', which end an answer beside the model's own ends",
    },
)
# What LMDeploy draws with where a gen_config says nothing; do_sample=False is greedy whatever the others say.
LMDEPLOY_DEFAULTS: Mapping[str, Any] = {"do_sample": False, "top_k": 50, "top_p": 1.0, "temperature": 0.8}
BEFORE_DATASET = "comes before max_out_len, also the dataset's, as in OpenCompass"
AFTER_DATASET = "max_out_len comes first: the dataset's, then the model's"
VLLM_TEMPERATURE = 1.0  # where nobody says one
VLLM_TEMPERATURES = (0.01, 2.0)  # the least, which it takes for all that is below but for 0, and the most


def vllm_sampling(spec: VLLM | VLLMwithChatTemplate, table: Translation) -> SamplingPlan:
    """Return how a vLLM spec's answers are drawn.

    Its ``generation_kwargs`` are vLLM's SamplingParams: the temperature alone decides whether an answer is drawn,
    and ``do_sample`` is not looked at. Unset, it is 1.0 for a base model and 0 for a chat model. A chat model's
    ``stop`` and ``max_tokens`` come before ``stop_words`` and any ``max_out_len``; a base model's do not.

    Raises ConfigError for an unknown field, ConversionError for one that evalswap cannot ask for.
    """
    chat = isinstance(spec, VLLMwithChatTemplate)
    said = {key: value for key, value in spec.generation_kwargs.items() if value is not None or key == "stop"}
    where = "generation_kwargs"
    temperature = _temperature(spec, table)
    longest = _length(said.get("max_tokens"), f"{spec.abbr}: {where}.max_tokens")
    length_rows(spec, table, first="generation_kwargs.max_tokens" if chat and longest else None)
    words = tuple(spec.stop_words)
    if chat and "stop" in said:
        words = _words(said["stop"], f"{spec.abbr}: {where}.stop")
        if spec.stop_words:
            table.add(f"stop_words={spec.stop_words}", "", "generation_kwargs.stop replaces them, as in OpenCompass")
    else:
        stop_words_row(spec.stop_words, table)
    how = f"drawn at temperature {temperature:g}" if temperature else "greedy"
    kwargs: dict[str, Any] = {"do_sample": temperature > 0, "temperature": temperature, "top_k": 0, "top_p": 1.0}
    for key, value in spec.generation_kwargs.items():
        source = f"{where}.{key}={value!r}"
        if key == "do_sample":
            table.add(source, "", f"not looked at, as in OpenCompass: {how}, as the temperature says")
        elif key == "stop" and chat:
            table.add(source, STOP_WORDS_TARGET, "cut once more by evalswap; the dataset's own come on top")
        elif key == "stop":
            note = "not looked at: OpenCompass's VLLM stops at stop_words, so put the words there"
            table.add(source, "", note)
        elif key == "skip_special_tokens":
            table.add(source, "evalswap, which decodes the answer")
        elif key != "temperature":
            taken = _taken(VLLM_FIELDS, key, value, f"{spec.abbr}: {where}")
            kwargs |= taken
            table.add(source, *_vllm_row(key, taken, chat=chat, greedy=temperature == 0))
    return SamplingPlan(
        generation_kwargs=kwargs,
        stop_words=words,
        max_out_len=spec.max_out_len,
        min_out_len=spec.min_out_len,
        answer_limit=longest if chat else None,
        apply_generation_config=False,
        stop_at_tokenizer_eos=True,
        skip_special_tokens=bool(said.get("skip_special_tokens", True)),
    )


def _vllm_row(key: str, taken: Mapping[str, Any], *, chat: bool, greedy: bool) -> tuple[str, str]:
    if not taken:
        return "", "no token depends on it" if key in VLLM_FIELDS.unseen else "off"
    if greedy and key in DRAWN:
        return "", "greedy, because the temperature is 0"
    if key == "stop_token_ids":
        return "stop ids", "beside the model's own ends"
    if key == "max_tokens":
        return "max_new_tokens", BEFORE_DATASET if chat else AFTER_DATASET
    if key == "min_tokens":
        return "min_new_tokens", "min_out_len of dataset or model comes first"
    return "the sampling block", ""


def _temperature(spec: VLLM | VLLMwithChatTemplate, table: Translation) -> float:
    """Return the temperature that vLLM draws with, 0 where it answers greedily."""
    given = spec.generation_kwargs.get("temperature")
    source = "generation_kwargs.temperature"
    if given is None:
        if isinstance(spec, VLLMwithChatTemplate):
            table.add(f"{source} (unset)", '"temperature": 0', "greedy, which is this type's default in OpenCompass")
            return 0.0
        note = (
            "drawn, not greedy, as with OpenCompass's VLLM, which leaves vLLM's default: set temperature=0 for greedy"
        )
        table.add(f"{source} (unset)", f'"temperature": {VLLM_TEMPERATURE}', note)
        return VLLM_TEMPERATURE
    try:
        temperature = float(given)
    except (TypeError, ValueError):
        raise ConfigError(f"{spec.abbr}: {source}: a number is wanted, not {given!r}", "0 is greedy") from None
    least, most = VLLM_TEMPERATURES
    if not 0 <= temperature <= most:
        raise ConfigError(f"{spec.abbr}: {source}={given!r}: vLLM takes 0 to {most:g}", "0 is greedy")
    if 0 < temperature < least:
        note = f"{least:g}, not greedy: vLLM takes what is below for it, but for 0"
        table.add(f"{source}={given!r}", "the sampling block", note)
        return least
    table.add(f"{source}={given!r}", "the sampling block", "" if temperature else "greedy")
    return temperature


def turbomind_sampling(spec: TurboMindSpec, table: Translation) -> SamplingPlan:
    """Return how a TurboMind spec's answers are drawn.

    Its ``gen_config`` is LMDeploy's GenerationConfig: greedy unless it says ``do_sample``. A base model is greedy even
    then, because OpenCompass's TurboMindModel sets it to False, and its ``max_new_tokens`` comes before any
    ``max_out_len``.

    Raises ConfigError for an unknown field, ConversionError for one that evalswap cannot ask for.
    """
    base = isinstance(spec, TurboMindModel)
    longest = _length(spec.gen_config.get("max_new_tokens"), f"{spec.abbr}: gen_config.max_new_tokens")
    length_rows(spec, table, first="gen_config.max_new_tokens" if base and longest else None)
    stop_words_row(spec.stop_words, table)
    asked = bool(spec.gen_config.get("do_sample"))
    greedy = base or not asked
    why = (
        "greedy, which OpenCompass's TurboMindModel always is" if base and asked else "greedy, as do_sample is not set"
    )
    kwargs, words = dict(LMDEPLOY_DEFAULTS), (*spec.stop_words, *_end_words(spec, table))
    for key, value in spec.gen_config.items():
        source = f"gen_config.{key}={value!r}"
        if key == "stop_words":
            words = (*words, *_words(value, f"{spec.abbr}: gen_config.stop_words"))
            table.add(source, STOP_WORDS_TARGET)
        elif key == "skip_special_tokens":
            table.add(source, "evalswap, which decodes the answer")
        else:
            taken = _taken(LMDEPLOY_FIELDS, key, value, f"{spec.abbr}: gen_config")
            kwargs |= taken
            if not taken:
                table.add(source, "", "no token depends on it" if key in LMDEPLOY_FIELDS.unseen else "off")
            elif greedy and (key in DRAWN or (key == "do_sample" and asked)):
                table.add(source, "", why)
            else:
                of_length = BEFORE_DATASET if base else AFTER_DATASET
                table.add(source, "the sampling block", of_length if key == "max_new_tokens" else "")
    return SamplingPlan(
        generation_kwargs={**kwargs, "do_sample": not greedy},
        stop_words=words,
        max_out_len=spec.max_out_len,
        min_out_len=spec.min_out_len,
        answer_limit=longest if base else None,
        apply_generation_config=False,
        stop_at_tokenizer_eos=True,
        skip_special_tokens=bool(spec.gen_config.get("skip_special_tokens", True)),
        written_in="gen_config",
    )


def _end_words(spec: TurboMindSpec, table: Translation) -> tuple[str, ...]:
    end = getattr(spec, "end_str", None)
    if not end:
        return ()
    table.add(f"end_str={end!r}", "a stop text", "cut once more by evalswap")
    return (end,)


def _length(value: object, place: str) -> int | None:
    if value is not None and (not isinstance(value, int) or value < 1):
        raise ConfigError(
            f"{place}={value!r}: a whole number of tokens from 1 on is wanted", "correct it, or leave it out"
        )
    return value


def _words(value: object, place: str) -> tuple[str, ...]:
    words = (value,) if isinstance(value, str) else value or ()
    if not isinstance(words, (list, tuple)) or not all(isinstance(word, str) for word in words):
        raise ConfigError(
            f"{place}: a list of texts is wanted, not {value!r}", "ids of tokens belong in stop_token_ids"
        )
    return tuple(words)


def _taken(fields: EngineFields, key: str, value: Any, where: str) -> dict[str, Any]:
    """Return a field under HuggingFace's name; nothing where no token of an answer depends on it.

    Raises ConfigError for an unknown field, ConversionError for one that evalswap cannot ask for.
    """
    if key in fields.names:
        return {} if value is None else {fields.names[key]: value}
    if key in fields.unseen:
        return {}
    if key in fields.neutral:
        if value is None or value == fields.neutral[key] or (value in ([], {}) and not fields.neutral[key]):
            return {}
        raise ConversionError(
            f"{where}.{key}={value!r}: evalswap has no such field in its requests, and the answers would be others",
            "remove it",
        )
    raise ConfigError(f"{where}.{key}: {fields.engine} has no such field", _name_hint(fields, key))


def _name_hint(fields: EngineFields, key: str) -> str:
    """Return what an unknown field should have been called. HuggingFace's names are no misspelt ones."""
    if key in fields.elsewhere:
        return fields.elsewhere[key]
    known = [*fields.handled, *fields.names, *fields.unseen, *fields.neutral]
    known = [] if key in FIELDS or key in UNTRANSLATABLE else known
    near = difflib.get_close_matches(key, known, n=1, cutoff=SIMILAR)
    understood = ", ".join(sorted({*fields.handled, *fields.names}))
    return f"did you mean '{near[0]}'?" if near else f"remove it; evalswap understands {understood}"
