"""From a config's spec to a plan for an engine: its own, or the one asked for with ``-a``.

Pure: nothing here reads a file or opens a connection. Each field of the spec ends as a row of the
translation table: carried over, done by evalswap itself, without a counterpart (and why that is harmless),
or a ConversionError that says what to do. Nothing is dropped in silence.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import urlsplit

from evalswap.config.specs import (
    VLLM,
    HuggingFaceBaseModel,
    HuggingFaceSpec,
    HuggingFacewithChatTemplate,
    ModelSpec,
    OpenAI,
    OpenAISDK,
    VLLMwithChatTemplate,
)
from evalswap.errors import ConfigError, ConversionError
from evalswap.plan import EndpointPlan, LaunchPlan, ModelPlan, PromptPlan, Role, SamplingPlan
from evalswap.records import TranslationRow

API_ROLES: Mapping[str, Literal["user", "assistant", "system"]] = {
    "HUMAN": "user",
    "BOT": "assistant",
    "SYSTEM": "system",
}
# HuggingFace chat configs map SYSTEM to the user on purpose: many chat templates refuse a system role.
CHAT_ROLES: tuple[Role, ...] = (Role("HUMAN", "user"), Role("SYSTEM", "user"), Role("BOT", "assistant", generate=True))
BASE_ROLES: tuple[Role, ...] = (
    Role("HUMAN", "user"),
    Role("SYSTEM", "system"),
    Role("BOT", "assistant", generate=True),
)

HARMLESS_MODEL_KWARGS = {
    "device_map": "placement is the engine's own",
    "low_cpu_mem_usage": "loading is the engine's own",
    "use_safetensors": "loading is the engine's own",
    "attn_implementation": "the engine has its own attention kernels",
    "max_memory": "placement is the engine's own",
}
WEIGHT_CHANGING_KWARGS = ("load_in_8bit", "load_in_4bit", "quantization_config")
HARMLESS_TOKENIZER_KWARGS = ("padding_side", "truncation_side", "use_fast", "trust_remote_code")


@dataclass(frozen=True)
class EngineOptions:
    """What the command line says about the engine."""

    accelerator: str | None = None  # -a
    engine_args: Mapping[str, Any] = field(default_factory=dict)
    api_base: str | None = None
    api_key: str | None = field(default=None, repr=False)
    api_model: str | None = None


def convert(spec: ModelSpec, options: EngineOptions) -> ModelPlan:
    """Plan a model for the asked engine, or for the spec's own when none is asked.

    Raises ConversionError where the answer of the engine could not mean the same.
    """
    if isinstance(spec, HuggingFaceSpec):
        return _from_huggingface(spec, options)
    if isinstance(spec, (VLLM, VLLMwithChatTemplate)):
        _refuse_accelerator(spec, options, own="vllm")
        return _from_vllm(spec, options)
    if isinstance(spec, OpenAI):
        _refuse_accelerator(spec, options, own="openai")
        return _from_api(spec, options)
    raise ConversionError(f"{spec.abbr}: evalswap cannot run a model of type {spec.type}")


def _refuse_accelerator(spec: ModelSpec, options: EngineOptions, own: str) -> None:
    if options.accelerator not in (None, own):
        raise ConversionError(
            f"{spec.abbr}: a {spec.type} model cannot be moved to '{options.accelerator}'",
            "-a moves HuggingFacewithChatTemplate and HuggingFaceBaseModel specs; "
            f"leave -a out to run this one as it is ({own})",
        )


# -- HuggingFace specs -------------------------------------------------------------------------------------


def _from_huggingface(spec: HuggingFaceSpec, options: EngineOptions) -> ModelPlan:
    engine = options.accelerator or "transformers"
    chat = isinstance(spec, HuggingFacewithChatTemplate)
    table = _Table(spec, engine)
    table.refuse("tokenizer_only", spec.tokenizer_only, "a model that is never loaded cannot answer", "remove it")
    if isinstance(spec, HuggingFacewithChatTemplate):
        table.refuse(
            "fastchat_template",
            spec.fastchat_template,
            "FastChat templates are another text than the model's own chat template",
            "remove it to use the checkpoint's chat template, or put the template into the tokenizer's folder",
        )
    if isinstance(spec, HuggingFaceBaseModel) and spec.meta_template is not None:
        table.add("meta_template", "", "base models get no template, as in the original")

    path = table.stripped_path(spec.path)
    prompt = _huggingface_prompt(spec, chat, path, table)
    sampling = SamplingPlan(
        generation_kwargs=spec.generation_kwargs,
        stop_words=tuple(spec.stop_words),
        max_out_len=spec.max_out_len,
        min_out_len=spec.min_out_len,
        apply_generation_config=True,
        stop_at_tokenizer_eos=chat,
        skip_special_tokens=not chat,
    )
    table.add("path", _path_target(engine, path, options))
    _sampling_rows(spec, table)
    launch: LaunchPlan | None = None
    endpoint: EndpointPlan | None = None
    if engine == "openai":
        endpoint = _endpoint_for(spec, options, table)
    else:
        launch = _launch(spec, engine, path, options, table)
    abbr = spec.abbr if engine == "transformers" else _swapped_abbr(spec.abbr, engine)
    return ModelPlan(
        abbr=abbr,
        summary_abbr=spec.summarizer_abbr or abbr,
        engine=engine,
        spec_type=spec.type,
        prompt=prompt,
        sampling=sampling,
        launch=launch,
        endpoint=endpoint,
        pred_postprocessor=spec.pred_postprocessor,
        translation=table.rows(),
    )


def _huggingface_prompt(spec: HuggingFaceSpec, chat: bool, path: str, table: _Table) -> PromptPlan:
    for key, value in spec.tokenizer_kwargs.items():
        if key in HARMLESS_TOKENIZER_KWARGS:
            table.add(f"tokenizer_kwargs.{key}", "evalswap's tokenizer", "prompts are tokenised once, by evalswap")
        else:
            table.add(f"tokenizer_kwargs.{key}", f"AutoTokenizer(…, {key}={value!r})")
    middle = (isinstance(spec, HuggingFaceBaseModel) and spec.drop_middle) or (
        isinstance(spec, HuggingFacewithChatTemplate) and spec.mode == "mid"
    )
    template_kwargs = spec.chat_template_kwargs if isinstance(spec, HuggingFacewithChatTemplate) else {}
    if template_kwargs:
        table.add("chat_template_kwargs", "the chat template, rendered by evalswap")
    if chat:
        table.add("chat template", "rendered and tokenised once, by evalswap", "the engine gets token ids")
    else:
        table.add("(base model)", "plain text, tokenised once, by evalswap", "no chat template, ever")
    if spec.tokenizer_path:
        table.add("tokenizer_path", "evalswap's tokenizer")
    roles = CHAT_ROLES if chat else BASE_ROLES
    if chat and spec.meta_template is not None:
        roles = parse_roles(spec.meta_template, spec.abbr)
        table.add("meta_template", "roles, mapped by evalswap")
    return PromptPlan(
        template="chat" if chat else "base",
        roles=roles,
        tokenizer_path=spec.tokenizer_path or path,
        tokenizer_kwargs=spec.tokenizer_kwargs,
        chat_template_kwargs=template_kwargs,
        max_seq_len=spec.max_seq_len,
        overlong="middle" if middle else "left",
        trust_remote_code=_trusts(spec.model_kwargs) or _trusts(spec.tokenizer_kwargs),
    )


def _launch(spec: HuggingFaceSpec, engine: str, path: str, options: EngineOptions, table: _Table) -> LaunchPlan:
    kwargs = dict(spec.model_kwargs)
    dtype = _dtype(kwargs.pop("dtype", None) or kwargs.pop("torch_dtype", None), table)
    kwargs.pop("torch_dtype", None)
    revision = kwargs.pop("revision", None)
    trust = _trusts(kwargs)
    kwargs.pop("trust_remote_code", None)
    table.engine_row("dtype", dtype, "the checkpoint's dtype" if dtype == "auto" else "")
    if revision:
        table.add("model_kwargs.revision", "the revision of the files")
    if trust:
        table.engine_row("trust_remote_code", True, "the checkpoint's own code is run because the config asks for it")
    if engine != "transformers":
        kwargs = _engine_model_kwargs(kwargs, engine, table)
        table.refuse(
            "peft_path",
            spec.peft_path,
            f"adapters are not loaded on {engine} yet",
            "merge the adapter into the checkpoint (peft's merge_and_unload) and give the merged folder",
        )
        table.add("batch_size", "", "no batches: the engine schedules continuously")
        if spec.pad_token_id is not None:
            table.add("pad_token_id", "", "nothing is padded")
    else:
        table.engine_row("batch_size", spec.batch_size)
        if spec.pad_token_id is not None:
            table.engine_row("pad_token_id", spec.pad_token_id)
        for key in kwargs:
            table.add(f"model_kwargs.{key}", f"from_pretrained(…, {key}=…)")
        if spec.peft_path:
            table.engine_row("peft_path", spec.peft_path)
    context = f"{spec.max_seq_len} + max_out_len" if spec.max_seq_len else "the model's own limit"
    table.engine_row("max_seq_len", context, "overlong prompts are cut by evalswap, and counted")
    table.engine_row("num_gpus", max(spec.run_cfg.num_gpus, 1))
    for key, value in options.engine_args.items():
        table.add(f"--engine-args {key}={value}", "the engine's flag, verbatim")
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
        engine_args=options.engine_args,
    )


def _engine_model_kwargs(kwargs: dict[str, Any], engine: str, table: _Table) -> dict[str, Any]:
    for key, value in kwargs.items():
        if key in HARMLESS_MODEL_KWARGS:
            table.add(f"model_kwargs.{key}", "", HARMLESS_MODEL_KWARGS[key])
        elif key in WEIGHT_CHANGING_KWARGS:
            if value:
                raise ConversionError(
                    f"{table.abbr}: model_kwargs.{key} quantises the weights inside transformers; "
                    f"{engine} would load other weights",
                    "evaluate a checkpoint that is quantised on disk, or run without -a",
                )
        else:
            raise ConversionError(
                f"{table.abbr}: model_kwargs.{key} means nothing to {engine}",
                f"remove it, or give {engine}'s own flag with --engine-args NAME=VALUE",
            )
    return {}


def _path_target(engine: str, path: str, options: EngineOptions) -> str:
    if engine == "openai":
        return f'"model": "{options.api_model or path}"'
    return {"transformers": "--model", "vllm": "--model"}.get(engine, "the model") + f" {path}"


def _swapped_abbr(abbr: str, engine: str) -> str:
    return abbr[: -len("-hf")] + f"-{engine}" if abbr.endswith("-hf") else f"{abbr}-{engine}"


# -- engine specs ------------------------------------------------------------------------------------------


def _from_vllm(spec: VLLM | VLLMwithChatTemplate, options: EngineOptions) -> ModelPlan:
    table = _Table(spec, "vllm")
    chat = isinstance(spec, VLLMwithChatTemplate)
    path = table.stripped_path(spec.path)
    table.refuse("lora_path", spec.lora_path, "adapters are not loaded on vllm yet", "give a merged checkpoint")
    if isinstance(spec, VLLMwithChatTemplate):
        table.refuse("tokenizer_only", spec.tokenizer_only, "a model that is never loaded cannot answer", "remove it")
        table.refuse("fastchat_template", spec.fastchat_template, "FastChat templates are not rendered", "remove it")
    else:
        table.refuse("use_fastchat_template", spec.use_fastchat_template, "FastChat templates are not rendered",
                     "remove it")  # fmt: skip
    kwargs = dict(spec.model_kwargs)
    dtype = _dtype(kwargs.pop("dtype", None), table)
    gpus = int(kwargs.pop("tensor_parallel_size", 0) or spec.run_cfg.num_gpus or 1)
    trust = bool(kwargs.pop("trust_remote_code", False))
    revision = kwargs.pop("revision", None)
    engine_args = {**kwargs, **options.engine_args}
    table.add("path", f"--model {path}")
    table.engine_row("dtype", dtype, "the checkpoint's dtype" if dtype == "auto" else "")
    table.engine_row("num_gpus", gpus)
    for key in kwargs:
        table.add(f"model_kwargs.{key}", f"--{key.replace('_', '-')}")
    table.add("prompt", "rendered and tokenised once, by evalswap", "the engine gets token ids")
    _sampling_rows(spec, table)
    if chat:
        roles = parse_roles(spec.meta_template, spec.abbr) if spec.meta_template else CHAT_ROLES
    else:
        roles = parse_roles(spec.meta_template, spec.abbr) if spec.meta_template else BASE_ROLES
    return ModelPlan(
        abbr=spec.abbr,
        summary_abbr=spec.summarizer_abbr or spec.abbr,
        engine="vllm",
        spec_type=spec.type,
        prompt=PromptPlan(
            template="chat" if chat else "base",
            roles=roles,
            tokenizer_path=spec.tokenizer_path or path,
            chat_template_kwargs=spec.chat_template_kwargs if isinstance(spec, VLLMwithChatTemplate) else {},
            max_seq_len=spec.max_seq_len,
            overlong="middle" if isinstance(spec, VLLM) and spec.mode == "mid" else "left",
            trust_remote_code=trust,
        ),
        sampling=SamplingPlan(
            generation_kwargs=_engine_generation_kwargs(spec.generation_kwargs),
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
            engine_args=engine_args,
        ),
        endpoint=None,
        pred_postprocessor=spec.pred_postprocessor,
        translation=table.rows(),
    )


def _engine_generation_kwargs(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Engine configs sample as soon as they name a temperature; HuggingFace's need do_sample as well."""
    if kwargs.get("temperature"):
        return {"do_sample": True, "top_k": 0, "top_p": 1.0, **kwargs}
    return dict(kwargs)


def _from_api(spec: OpenAI, options: EngineOptions) -> ModelPlan:
    table = _Table(spec, "openai")
    model = table.stripped_path(spec.path)
    bases = [spec.openai_api_base] if isinstance(spec.openai_api_base, str) else spec.openai_api_base
    base_urls = tuple(base_url(base or type(spec).DEFAULT_BASE) for base in bases)
    if options.api_base:
        base_urls = (base_url(options.api_base),)
    keys = _keys(spec.key, options)
    if spec.openai_proxy_url and spec.openai_proxy_url != "ENV":
        raise ConversionError(
            f"{spec.abbr}: openai_proxy_url is not supported",
            "set HTTPS_PROXY in the environment; it is honoured",
        )
    if spec.logprobs:
        table.add("logprobs", "", "not used by any score")
    extra = dict(spec.extra_body or {})
    timeout, codes = 3600.0, {}
    if isinstance(spec, OpenAISDK):
        extra |= spec.openai_extra_kwargs or {}
        timeout, codes = spec.timeout, spec.status_code_mappings
        table.refuse("http_client_cfg", spec.http_client_cfg or None, "these are another client's settings",
                     "remove it; proxies come from the environment, the deadline from timeout=")  # fmt: skip
    table.add("openai_api_base", ", ".join(f"POST {url}/chat/completions" for url in base_urls))
    table.add("path", f'"model": "{options.api_model or model}"')
    table.add("messages", "sent as they are", "template applied by the server")
    if spec.tokenizer_path:
        table.add("tokenizer_path", "counts tokens against max_seq_len", "loaded only if a prompt might be too long")
    if spec.temperature is None:
        table.add("temperature (unset)", '"temperature": 0', "greedy; nothing is left to the server's default")
    else:
        table.add(f"temperature={spec.temperature}", f'"temperature": {spec.temperature}')
    window = spec.max_workers or spec.batch_size
    table.add(f"batch_size={spec.batch_size}", f"{window} requests in flight")
    if spec.query_per_second is not None:
        note = (
            f"at most {spec.query_per_second:g} requests a second, however fast the server is: raise it for a local one"
        )
        table.add(f"query_per_second={spec.query_per_second:g}", "rate limit", note)
    _sampling_rows(spec, table)
    generation_kwargs = dict(spec.generation_kwargs)
    if spec.temperature:
        generation_kwargs |= {"do_sample": True, "temperature": spec.temperature}
    roles = parse_roles(spec.meta_template, spec.abbr) if spec.meta_template else BASE_ROLES
    return ModelPlan(
        abbr=spec.abbr,
        summary_abbr=spec.summarizer_abbr or spec.abbr,
        engine="openai",
        spec_type=spec.type,
        prompt=PromptPlan(
            template="chat",
            roles=roles,
            tokenizer_path=spec.tokenizer_path,
            max_seq_len=spec.max_seq_len,
            overlong="error",
        ),
        sampling=SamplingPlan(
            generation_kwargs=_engine_generation_kwargs(generation_kwargs),
            stop_words=tuple(spec.stop_words),
            max_out_len=spec.max_out_len,
            min_out_len=spec.min_out_len,
            apply_generation_config=False,
            stop_at_tokenizer_eos=False,
            skip_special_tokens=True,
        ),
        launch=None,
        endpoint=EndpointPlan(
            base_urls=base_urls,
            model=options.api_model or model,
            keys=keys,
            organizations=tuple([spec.org] if isinstance(spec.org, str) else spec.org or ()),
            query_per_second=spec.query_per_second,
            rpm_verbose=spec.rpm_verbose,
            max_in_flight=window,
            retry=spec.retry,
            timeout=timeout,
            extra_body=extra,
            status_code_mappings=codes,
            think_tag=spec.think_tag,
        ),
        pred_postprocessor=spec.pred_postprocessor,
        translation=table.rows(),
    )


def _endpoint_for(spec: HuggingFaceSpec, options: EngineOptions, table: _Table) -> EndpointPlan:
    base = options.api_base or os.environ.get("OPENAI_BASE_URL")
    if not base:
        raise ConfigError(
            "-a openai: no server given",
            "name it with --api-base http://HOST:PORT/v1 or in OPENAI_BASE_URL",
        )
    if spec.peft_path:
        table.add("peft_path", "", "the server must have loaded the adapter")
    for key in spec.model_kwargs:
        table.add(f"model_kwargs.{key}", "", "the server has loaded the model its own way")
    url = base_url(base)
    table.add("(server)", f"{url}", "token ids where the server takes them, else messages")
    table.add("batch_size", "", "requests go out one by one, many in flight")
    return EndpointPlan(
        base_urls=(url,),
        model=options.api_model or spec.path.strip(),
        keys=_keys("ENV", options),
        ids_wanted=True,
    )


def base_url(address: str) -> str:
    """Return a server's base address, ending in /v1, from any of the forms that configs use.

    Raises ConfigError for an address that is not http(s).
    """
    url = address.strip().rstrip("/")
    for suffix in ("/chat/completions", "/completions"):
        url = url.removesuffix(suffix)
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise ConfigError(f"not an http address: '{address}'", "it looks like http://HOST:PORT/v1")
    return url if parts.path.strip("/") else f"{url}/v1"


def _keys(key: str | Sequence[str], options: EngineOptions) -> tuple[str, ...]:
    if options.api_key:
        return (options.api_key,)
    given = [key] if isinstance(key, str) else list(key)
    if given == ["ENV"]:
        given = os.environ.get("OPENAI_API_KEY", "").split(",")
    return tuple(k.strip() for k in given if k.strip() and k.strip() != "EMPTY")


# -- shared ------------------------------------------------------------------------------------------------


def parse_roles(meta_template: Mapping[str, Any], abbr: str) -> tuple[Role, ...]:
    """Read a config's ``meta_template``: its round and its reserved roles.

    Raises ConfigError for a role without a counterpart.
    """
    roles = []
    for section in ("round", "reserved_roles"):
        for i, item in enumerate(meta_template.get(section) or ()):
            where = f"{abbr}: meta_template.{section}[{i}]"
            if not isinstance(item, Mapping) or "role" not in item:
                raise ConfigError(f"{where}: a dict with 'role' is wanted")
            api = str(item.get("api_role") or item["role"])
            if api not in API_ROLES:
                if item.get("api_role"):
                    raise ConfigError(f"{where}: unknown api_role '{api}'", f"known: {', '.join(API_ROLES)}")
                api = "HUMAN"
            texts = {key: str(item.get(key) or "") for key in ("begin", "end", "prompt")}
            roles.append(Role(item["role"], API_ROLES[api], generate=bool(item.get("generate")), **texts))
    if not roles:
        raise ConfigError(f"{abbr}: meta_template has no round")
    return tuple(roles)


def _dtype(value: object, table: _Table) -> str:
    name = str(value or "auto").removeprefix("torch.")
    name = {"float": "float32", "half": "float16", "None": "auto"}.get(name, name)
    if name not in ("auto", "float32", "float16", "bfloat16"):
        raise ConfigError(f"{table.abbr}: unknown dtype '{name}'", "use auto, float32, bfloat16 or float16")
    return name


def _trusts(kwargs: Mapping[str, Any]) -> bool:
    return bool(kwargs.get("trust_remote_code", False))


def _sampling_rows(spec: ModelSpec, table: _Table) -> None:
    if spec.max_out_len is not None:
        table.add(f"max_out_len={spec.max_out_len}", "max_new_tokens", "the dataset's own value wins")
    if spec.min_out_len is not None:
        table.add(f"min_out_len={spec.min_out_len}", "min_new_tokens")
    words = getattr(spec, "stop_words", [])
    if words:
        table.add(
            f"stop_words={words}",
            "stop ids where a word is one special token, else stop texts",
            "cut once more by evalswap",
        )
    for key, value in getattr(spec, "generation_kwargs", {}).items():
        table.add(f"generation_kwargs.{key}={value!r}", "the sampling block")


class _Table:
    """Collects the translation of one spec."""

    FLAGS: Mapping[str, Mapping[str, str]] = {
        "transformers": {
            "dtype": "--dtype",
            "batch_size": "--batch-size",
            "pad_token_id": "--pad-token-id",
            "peft_path": "--peft-path",
            "trust_remote_code": "--trust-remote-code",
            "num_gpus": 'device_map="auto" over GPUs:',
            "max_seq_len": "context:",
        },
        "vllm": {
            "dtype": "--dtype",
            "trust_remote_code": "--trust-remote-code",
            "num_gpus": "--tensor-parallel-size",
            "max_seq_len": "--max-model-len",
        },
    }

    def __init__(self, spec: ModelSpec, engine: str) -> None:
        self.abbr = spec.abbr
        self.engine = engine
        self._rows: list[TranslationRow] = []

    def add(self, source: str, target: str, note: str = "") -> None:
        self._rows.append(TranslationRow(source, target, note))

    def engine_row(self, source: str, value: object, note: str = "") -> None:
        flag = self.FLAGS.get(self.engine, {}).get(source)
        self.add(source, f"{flag} {value}" if flag else "", note)

    def refuse(self, key: str, value: object, why: str, what_to_do: str) -> None:
        """Raise ConversionError if ``key`` is set."""
        if value:
            raise ConversionError(f"{self.abbr}: {key}: {why}", what_to_do)

    def stripped_path(self, path: str) -> str:
        stripped = path.strip()
        if stripped != path:
            self.add(f"path={path!r}", repr(stripped), "white space around it removed")
        return stripped

    def rows(self) -> tuple[TranslationRow, ...]:
        return tuple(self._rows)
