"""The typed specs of a config file: what may be written there, checked before anything starts.

Key names and their meaning are those of existing configs, so files work unchanged. Unknown keys are refused
with the nearest known one; a wrong type says file, key, what was given and what is wanted.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from evalswap.config.names import TypeName, dotted_name, short_name
from evalswap.errors import ConfigError, did_you_mean

_Spec = TypeVar("_Spec", bound=BaseModel)


class Strict(BaseModel):
    """A spec that refuses keys it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True, protected_namespaces=())


class RunCfg(Strict):
    num_gpus: int = Field(default=0, ge=0)
    num_procs: int = 1


class ModelSpec(Strict):
    """Keys that every model of a config may have."""

    type: str
    path: str
    abbr: str = ""
    summarizer_abbr: str | None = None
    run_cfg: RunCfg = RunCfg()
    max_out_len: int | None = Field(default=None, gt=0)
    min_out_len: int | None = Field(default=None, ge=0)
    batch_size: int = Field(default=8, gt=0)
    max_seq_len: int | None = Field(default=None, gt=0)
    meta_template: dict[str, Any] | None = None
    pred_postprocessor: dict[str, Any] | None = None

    @field_validator("path", mode="before")
    @classmethod
    def _path_text(cls, value: object) -> object:
        return str(value) if hasattr(value, "__fspath__") else value

    @model_validator(mode="before")
    @classmethod
    def _default_abbr(cls, data: Any) -> Any:
        # The published default: the type and the last two parts of the path.
        if isinstance(data, Mapping) and not data.get("abbr"):
            path = str(data.get("path", cls.model_fields["path"].default))
            tail = "_".join(path.strip().strip("/").split("/")[-2:])
            return {**data, "abbr": f"{data.get('type', '')}_{tail}"}
        return data


class HuggingFaceSpec(ModelSpec):
    """Keys shared by chat and base models on transformers."""

    model_kwargs: dict[str, Any] = {}
    tokenizer_path: str | None = None
    tokenizer_kwargs: dict[str, Any] = {}
    peft_path: str | None = None
    peft_kwargs: dict[str, Any] = {}
    tokenizer_only: bool = False
    generation_kwargs: dict[str, Any] = {}
    pad_token_id: int | None = None
    stop_words: list[str] = []


class HuggingFacewithChatTemplate(HuggingFaceSpec):
    fastchat_template: str | None = None
    mode: Literal["none", "mid"] = "none"
    chat_template_kwargs: dict[str, Any] = {}


class HuggingFaceBaseModel(HuggingFaceSpec):
    drop_middle: bool = False


class VLLM(ModelSpec):
    """A base model on vLLM."""

    model_kwargs: dict[str, Any] = {}
    generation_kwargs: dict[str, Any] = {}
    max_seq_len: int | None = 2048
    mode: Literal["none", "mid"] = "none"
    use_fastchat_template: bool = False
    lora_path: str | None = None
    stop_words: list[str] = []
    tokenizer_path: str | None = None


class VLLMwithChatTemplate(ModelSpec):
    """A chat model on vLLM."""

    model_kwargs: dict[str, Any] = {}
    tokenizer_only: bool = False
    generation_kwargs: dict[str, Any] = {}
    fastchat_template: str | None = None
    stop_words: list[str] = []
    lora_path: str | None = None
    chat_template_kwargs: dict[str, Any] = {}
    tokenizer_path: str | None = None


class TurboMindSpec(ModelSpec):
    """Keys shared by chat and base models on LMDeploy, whichever of its backends."""

    backend: Literal["turbomind", "pytorch"] = "turbomind"
    engine_config: dict[str, Any] = {}
    gen_config: dict[str, Any] = {}
    stop_words: list[str] = []
    drop_middle: bool = False
    tokenizer_path: str | None = None


class TurboMindModel(TurboMindSpec):
    max_seq_len: int | None = 2048
    batch_padding: bool = False
    end_str: str | None = None


class TurboMindModelwithChatTemplate(TurboMindSpec):
    tokenizer_only: bool = False
    fastchat_template: str | None = None
    chat_template_kwargs: dict[str, Any] = {}


class OpenAI(ModelSpec):
    """A chat API; ``openai_api_base`` is the full address of its chat completions."""

    DEFAULT_BASE: ClassVar[str] = "https://api.openai.com/v1/chat/completions"

    path: str = "gpt-3.5-turbo"
    max_seq_len: int | None = 16384
    query_per_second: float | None = Field(default=1, gt=0)
    rpm_verbose: bool = False
    retry: int = Field(default=2, ge=0)
    key: str | list[str] = Field(default="ENV", repr=False)
    org: str | list[str] | None = None
    openai_api_base: str | list[str] = ""
    openai_proxy_url: str | None = None
    mode: Literal["none", "front", "mid", "rear"] = "none"
    logprobs: bool | None = False
    top_logprobs: int | None = None
    temperature: float | None = Field(default=None, ge=0)
    max_completion_tokens: int | None = Field(default=None, gt=0)
    tokenizer_path: str | None = None
    extra_body: dict[str, Any] | None = None
    verbose: bool = False
    think_tag: str = "</think>"
    max_workers: int | None = Field(default=None, gt=0)
    generation_kwargs: dict[str, Any] = {}
    stop_words: list[str] = []


class OpenAISDK(OpenAI):
    """A chat API; ``openai_api_base`` ends in /v1."""

    DEFAULT_BASE: ClassVar[str] = "https://api.openai.com/v1"

    http_client_cfg: dict[str, Any] = {}
    status_code_mappings: dict[int, str] = {}
    openai_extra_kwargs: dict[str, Any] | None = None
    timeout: float = Field(default=3600, gt=0)


AnyModelSpec = (
    HuggingFacewithChatTemplate
    | HuggingFaceBaseModel
    | VLLM
    | VLLMwithChatTemplate
    | TurboMindModel
    | TurboMindModelwithChatTemplate
    | OpenAI
    | OpenAISDK
)
MODEL_SPECS: dict[str, type[ModelSpec]] = {cls.__name__: cls for cls in get_args(AnyModelSpec)}


class ReaderCfg(Strict):
    input_columns: list[str]
    output_column: str | None = None
    test_range: str | int | float | None = None
    test_split: str = "test"
    train_split: str = "train"

    @field_validator("input_columns", mode="before")
    @classmethod
    def _one_column(cls, value: object) -> object:
        return value.split() if isinstance(value, str) else value


class TurnCfg(Strict):
    role: str
    prompt: str = ""
    fallback_role: str | None = None


class TemplateCfg(Strict):
    """A prompt's turns. Plain text, as the whole template or as one turn of it, is said by HUMAN."""

    begin: list[TurnCfg] = []
    round: list[TurnCfg]
    end: list[TurnCfg] = []

    @model_validator(mode="before")
    @classmethod
    def _text_alone(cls, data: Any) -> Any:
        return {"round": data} if isinstance(data, str) else data

    @field_validator("begin", "round", "end", mode="before")
    @classmethod
    def _turns(cls, value: object) -> object:
        items = value if isinstance(value, (list, tuple)) else [value]
        return [{"role": "HUMAN", "prompt": item} if isinstance(item, str) else item for item in items]


class PromptTemplateCfg(Strict):
    type: str = "PromptTemplate"
    template: TemplateCfg


class RetrieverCfg(Strict):
    type: str = "ZeroRetriever"


class InferencerCfg(Strict):
    type: str = "GenInferencer"
    max_out_len: int | None = Field(default=None, gt=0)
    min_out_len: int | None = Field(default=None, ge=0)
    stopping_criteria: list[str] = []
    batch_size: int | None = None


class InferCfg(Strict):
    prompt_template: PromptTemplateCfg
    retriever: RetrieverCfg = RetrieverCfg()
    inferencer: InferencerCfg = InferencerCfg()


class NamedCfg(BaseModel):
    """Something of the config that is looked up by its type, with keyword arguments of its own."""

    model_config = ConfigDict(extra="allow", frozen=True)
    type: str


class EvalCfg(Strict):
    evaluator: NamedCfg
    pred_postprocessor: NamedCfg | None = None
    dataset_postprocessor: NamedCfg | None = None
    pred_role: str | None = None
    num_gpus: int | None = None


class DatasetSpec(BaseModel):
    """One dataset. Keys beyond these belong to its loader and are checked by the benchmark."""

    model_config = ConfigDict(extra="allow", frozen=True, arbitrary_types_allowed=True)
    type: str
    abbr: str = ""
    path: str | None = None
    reader_cfg: ReaderCfg
    infer_cfg: InferCfg
    eval_cfg: EvalCfg
    version: str = ""  # first 6 hex of the prompt's hash, filled in on parsing

    @property
    def loader_kwargs(self) -> dict[str, Any]:
        return dict(self.model_extra or {})


# The parts of infer_cfg that a config may choose, and the choices there are.
INFER_PARTS = {
    "retriever": ("ZeroRetriever",),
    "inferencer": ("GenInferencer",),
    "prompt_template": ("PromptTemplate",),
}
# Keys whose value goes to a server as it is.
VERBATIM_KEYS = ("extra_body", "openai_extra_kwargs")
SECRET_KEYS = ("key", "http_client_cfg", *VERBATIM_KEYS)  # their values are not shown in errors
UNION_TAGS = ("str", "int", "float", "list[str]", "[key]")  # pydantic's, in the place of an error


def parse_model(data: object, where: str) -> ModelSpec:
    """Check one entry of ``models``; ``where`` names it in errors ("config.py: models[0]")."""
    entry = _mapping(data, where)
    kind = _type_of(entry, where)
    cls = MODEL_SPECS.get(kind)
    if cls is None:
        raise ConfigError(
            f"{where}: unknown model type '{kind}'",
            did_you_mean(kind, MODEL_SPECS) or f"known: {', '.join(MODEL_SPECS)}",
        )
    return _validated(cls, {**entry, "type": kind}, where)


def parse_dataset(data: object, where: str) -> DatasetSpec:
    """Check one entry of ``datasets``."""
    entry = _mapping(data, where)
    kind = _type_of(entry, where)
    _refuse_other_parts(entry.get("infer_cfg"), where)
    spec = _validated(DatasetSpec, {**entry, "type": kind}, where)
    abbr = spec.abbr or "_".join(filter(None, [kind, (spec.path or "").replace("/", "_")]))
    return spec.model_copy(update={"abbr": abbr, "version": prompt_version(entry["infer_cfg"])})


def _refuse_other_parts(infer_cfg: object, where: str) -> None:
    parts = infer_cfg if isinstance(infer_cfg, Mapping) else {}
    for key, known in INFER_PARTS.items():
        part = parts.get(key)
        if isinstance(part, Mapping) and "type" in part and short_name(part["type"]) not in known:
            raise ConfigError(
                f"{where}.infer_cfg.{key}.type: evalswap does not have '{short_name(part['type'])}'",
                f"it has: {', '.join(known)}",
            )


def prompt_version(infer_cfg: Mapping[str, Any]) -> str:
    """Return the prompt's version: 6 hex digits of SHA-256 over the sorted JSON with dotted type paths.

    This is the number that published config names end in (gsm8k_0shot_gen_a58960).
    """
    text = json.dumps(_dotted(infer_cfg), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:6]


def _dotted(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _dotted(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_dotted(item) for item in value]
    if isinstance(value, (str, int, float, bool, type(None))):
        return value
    return dotted_name(value)


def _plain(value: Any) -> Any:
    """Replace types by their short names, at any depth."""
    if isinstance(value, Mapping):
        return {key: _plain_item(key, item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, (TypeName, type)):
        return short_name(value)
    if callable(value):
        return getattr(value, "__name__", repr(value))
    return value


def _plain_item(key: str, value: Any) -> Any:
    if key in VERBATIM_KEYS:
        return value
    return short_name(value) if key == "type" and isinstance(value, (str, TypeName, type)) else _plain(value)


def _mapping(data: object, where: str) -> dict[str, Any]:
    if not isinstance(data, Mapping):
        raise ConfigError(f"{where}: a dict is wanted, not {type(data).__name__}")
    return {str(key): value for key, value in data.items()}


def _type_of(entry: Mapping[str, Any], where: str) -> str:
    if "type" not in entry:
        near = did_you_mean("type", entry)
        raise ConfigError(f"{where}: the key 'type' is missing", near)
    return short_name(entry["type"])


def _validated(cls: type[_Spec], data: Mapping[str, Any], where: str) -> _Spec:
    try:
        return cls.model_validate(_plain(data))
    except ValidationError as error:
        raise _readable(error, cls, where) from None


def _readable(error: ValidationError, cls: type[BaseModel], where: str) -> ConfigError:
    problems, hints = [], []
    for item in error.errors(include_url=False):
        kind, loc = item["type"], item["loc"]
        place = _place(where, loc)
        if kind == "extra_forbidden":
            problems.append(f"{place}: unknown key")
            known = _fields_at(cls, loc[:-1])
            hints.append(did_you_mean(str(loc[-1]), known) or f"known keys: {', '.join(sorted(known))}")
        elif kind == "missing":
            problems.append(f"{place}: this key is missing")
            hints += _misspelt(cls, item["input"], str(loc[0])) if len(loc) == 1 else []
        else:
            problem = "a dict is wanted" if kind == "model_type" else item["msg"][0].lower() + item["msg"][1:]
            shown = "" if loc[0] in SECRET_KEYS else f", not {item['input']!r:.80}"
            problems.append(f"{place}: {problem}{shown}")
    return ConfigError("\n".join(dict.fromkeys(problems)), "; ".join(dict.fromkeys(hints)) or None)


def _misspelt(cls: type[BaseModel], data: Mapping[str, Any], missing: str) -> list[str]:
    """Return a hint if a spec that takes any key was given one that looks like the missing one."""
    extra = [key for key in data if key not in cls.model_fields]
    near = difflib.get_close_matches(missing, extra if cls.model_config.get("extra") == "allow" else (), n=1)
    return [f"'{near[0]}' is there: did you mean '{missing}'?"] if near else []


def _place(where: str, loc: Sequence[str | int]) -> str:
    text = where
    for part in loc:
        if part not in UNION_TAGS:
            text += f"[{part}]" if isinstance(part, int) else f".{part}"
    return text


def _fields_at(cls: type[BaseModel], loc: Sequence[str | int]) -> list[str]:
    for part in loc:
        if isinstance(part, int):
            continue
        field = cls.model_fields.get(part)
        inner = field.annotation if field else None
        options = [inner, *get_args(inner)]
        nested = [o for o in options if isinstance(o, type) and issubclass(o, BaseModel)]
        if not nested:
            return []
        cls = nested[0]
    return list(cls.model_fields)
