"""What a run will do, engine-neutral: the step between config specs and requests.

A ``ModelPlan`` says how prompts are made, how answers are drawn and what serves them. Conversion makes it
from a spec; nothing in it has touched the disk or the network yet, so a dry run can print it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from evalswap.records import TranslationRow


@dataclass(frozen=True, slots=True)
class Role:
    """What becomes of a role of a config's prompt (one entry of ``meta_template``)."""

    name: str  # "HUMAN", "BOT", "SYSTEM"
    api_role: Literal["user", "assistant", "system"]
    begin: str = ""
    end: str = ""
    generate: bool = False


@dataclass(frozen=True, slots=True)
class PromptPlan:
    """How a row becomes token ids."""

    template: Literal["chat", "base"]
    roles: tuple[Role, ...]  # empty: a base model without meta_template, whose turns are plain text
    tokenizer_path: str | None
    tokenizer_kwargs: Mapping[str, Any] = field(default_factory=dict, repr=False)  # may hold a hub token
    chat_template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    max_seq_len: int | None = None
    overlong: Literal["left", "middle", "error"] = "left"
    trust_remote_code: bool = False


@dataclass(frozen=True, slots=True)
class SamplingPlan:
    """How an answer is drawn, before the model's own generation config is known."""

    generation_kwargs: Mapping[str, Any] = field(default_factory=dict)
    stop_words: tuple[str, ...] = ()
    max_out_len: int | None = None
    min_out_len: int | None = None
    answer_limit: int | None = None  # wins over what a dataset says: an answer with the reasoning before it
    # HuggingFace applies generation_config.json (repetition_penalty, …); configs for engines and APIs do not.
    apply_generation_config: bool = True
    # HuggingFace chat models also stop at the tokenizer's eos token, base models do not.
    stop_at_tokenizer_eos: bool = True
    # Chat answers keep special tokens in their text up to the stop, base answers drop them.
    skip_special_tokens: bool = False
    written_in: str = "generation_kwargs"  # what the config calls them


@dataclass(frozen=True, slots=True)
class LaunchPlan:
    """What a managed engine has to load and how."""

    path: str  # a folder or a hub id
    revision: str | None = None
    dtype: str = "auto"  # "auto" is the checkpoint's own
    num_gpus: int = 1
    batch_size: int = 8
    trust_remote_code: bool = False
    peft_path: str | None = None
    pad_token_id: int | None = None
    model_kwargs: Mapping[str, Any] = field(default_factory=dict, repr=False)  # for transformers; may hold a hub token
    engine_args: Mapping[str, Any] = field(default_factory=dict, repr=False)  # flags for this engine alone


THINK_TAG = "</think>"  # between a model's reasoning and its answer, unless the config says otherwise
MOST_AT_ONE_ADDRESS = 1024  # requests in flight, where nobody says; a run begins with fewer and tries


@dataclass(frozen=True, slots=True)
class EndpointPlan:
    """A server that somebody else runs."""

    base_urls: tuple[str, ...]  # ".../v1"
    model: str
    keys: tuple[str, ...] = field(default=(), repr=False)
    organizations: tuple[str, ...] = ()
    query_per_second: float | None = None
    rpm_verbose: bool = False
    max_in_flight: int = 64
    retry: int = 3
    timeout: float = 3600.0
    extra_body: Mapping[str, Any] = field(default_factory=dict, repr=False)
    status_code_mappings: Mapping[int, str] = field(default_factory=dict)
    think_tag: str = THINK_TAG
    ids_wanted: bool = False  # send token ids where the server takes them
    reasoning: bool = False  # one of OpenAI's reasoning models, which take other fields


@dataclass(frozen=True, slots=True)
class ModelPlan:
    """One model of a run, served by one engine."""

    abbr: str
    summary_abbr: str
    engine: str
    spec_type: str  # the config's type, "HuggingFacewithChatTemplate"
    prompt: PromptPlan
    sampling: SamplingPlan
    launch: LaunchPlan | None  # None where somebody else runs the server
    endpoint: EndpointPlan | None
    pred_postprocessor: Mapping[str, Any] | None
    translation: tuple[TranslationRow, ...]
