"""From a config's spec to a plan for an engine: its own, or the one asked for with ``-a``.

Pure: nothing here reads a file or opens a connection. Each field of the spec ends as a row of the
translation table: carried over, done by evalswap itself, without a counterpart (and why that is harmless),
or a ConversionError that says what to do. Nothing is dropped in silence.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import urlsplit

from evalswap.config.specs import (
    VLLM,
    HuggingFaceSpec,
    HuggingFacewithChatTemplate,
    ModelSpec,
    OpenAI,
    OpenAISDK,
    VLLMwithChatTemplate,
)
from evalswap.errors import ConfigError, ConversionError, did_you_mean
from evalswap.plan import EndpointPlan, LaunchPlan, ModelPlan, PromptPlan, Role, SamplingPlan
from evalswap.prompting.sampling import DRAWN_FIELDS, EFFECTLESS_FIELDS, check_fields
from evalswap.records import TranslationRow

API_ROLES: Mapping[str, Literal["user", "assistant", "system"]] = {
    "HUMAN": "user",
    "BOT": "assistant",
    "SYSTEM": "system",
}
# HuggingFace chat configs map SYSTEM to the user on purpose: many chat templates refuse a system role.
CHAT_ROLES: tuple[Role, ...] = (Role("HUMAN", "user"), Role("SYSTEM", "user"), Role("BOT", "assistant", generate=True))
API_DEFAULT_ROLES: tuple[Role, ...] = (
    Role("HUMAN", "user"),
    Role("SYSTEM", "system"),
    Role("BOT", "assistant", generate=True),
)
META_TEMPLATE_KEYS = ("round", "reserved_roles")
ROLE_KEYS = ("role", "api_role", "begin", "end", "generate")

HARMLESS_MODEL_KWARGS = {
    "device_map": "placement is the engine's own",
    "low_cpu_mem_usage": "loading is the engine's own",
    "use_safetensors": "loading is the engine's own",
    "attn_implementation": "the engine has its own attention kernels",
    "max_memory": "placement is the engine's own",
}
# What becomes of a field that no engine needs to be told about: evalswap does it, or it has no bearing.
SETTLED: Mapping[str, tuple[str, str]] = {
    "abbr": ("names the results", ""),
    "summarizer_abbr": ("names the column of the summary", ""),
    "pred_postprocessor": ("evalswap, on each answer", ""),
    "tokenizer_path": ("evalswap's tokenizer", ""),
    "meta_template": ("roles, mapped by evalswap", ""),
    "chat_template_kwargs": ("the chat template, rendered by evalswap", ""),
    "max_seq_len": ("evalswap", "overlong prompts are cut, and counted"),
    "mode": ("evalswap", "overlong prompts are cut in the middle"),
    "drop_middle": ("evalswap", "overlong prompts are cut in the middle"),
    "batch_size": ("", "no batches: requests go out one by one, many in flight"),
    "pad_token_id": ("", "nothing is padded"),
    "peft_path": ("", "the server must have loaded the adapter"),
    "peft_kwargs": ("", "the server must have loaded the adapter"),
    "run_cfg": ("", "the server was started with its own devices"),
    "retry": ("evalswap", "a request that fails is sent again"),
    "timeout": ("evalswap", "seconds until a request counts as failed"),
    "org": ('"OpenAI-Organization"', "the first of them"),
    "rpm_verbose": ("", "the progress line shows the rate"),
    "verbose": ("", "the run's log has every failure"),
    "think_tag": ("put between reasoning and answer", ""),
    "extra_body": ("merged into each request", "what it says wins over the sampling block"),
    "openai_extra_kwargs": ("merged into each request", "what it says wins over the sampling block"),
    "status_code_mappings": ("evalswap", "these answers count as text"),
    "key": ('"Authorization"', "EMPTY sends none; never shown or stored"),
    "openai_proxy_url": ("the environment's proxy", ""),
    "logprobs": ("", "not used by any score"),
    "top_logprobs": ("", "not used by any score"),
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
    table.refuse("tokenizer_only", "a model that is never loaded cannot answer", "remove it")
    table.refuse(
        "fastchat_template",
        "FastChat templates are another text than the model's own chat template",
        "remove it to use the checkpoint's chat template, or put the template into the tokenizer's folder",
    )
    path = table.stripped_path(spec.path)
    table.add("path", f'"model": "{options.api_model or path}"' if engine == "openai" else f"--model {path}")
    prompt = _huggingface_prompt(spec, chat, path, table)
    _sampling_rows(spec, table)
    launch: LaunchPlan | None = None
    endpoint: EndpointPlan | None = None
    if engine == "openai":
        endpoint = _endpoint_for(spec, path, options, table)
    else:
        launch = _launch(spec, engine, path, options, table)
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


def _huggingface_prompt(spec: HuggingFaceSpec, chat: bool, path: str, table: _Table) -> PromptPlan:
    for key in spec.tokenizer_kwargs:
        if key in HARMLESS_TOKENIZER_KWARGS:
            table.add(f"tokenizer_kwargs.{key}", "evalswap's tokenizer", "prompts are tokenised once, by evalswap")
        else:
            table.add(f"tokenizer_kwargs.{key}", f"AutoTokenizer(…, {key}=…)")
    roles: tuple[Role, ...] = ()
    if chat:
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
        trust_remote_code=_trusts(spec.model_kwargs) or _trusts(spec.tokenizer_kwargs),
    )


def _launch(spec: HuggingFaceSpec, engine: str, path: str, options: EngineOptions, table: _Table) -> LaunchPlan:
    kwargs = dict(spec.model_kwargs)
    dtype = _dtype(kwargs, table)
    revision = _revision(kwargs, table)
    trust = _trust_remote_code(kwargs, table)
    table.refuse("peft_kwargs", "they are not passed on yet", "remove it, or merge the adapter into the checkpoint")
    if engine == "transformers":
        table.flag("batch_size", spec.batch_size)
        if spec.pad_token_id is not None:
            table.flag("pad_token_id", spec.pad_token_id)
        for key in kwargs:
            table.add(f"model_kwargs.{key}", f"from_pretrained(…, {key}=…)")
        if spec.peft_path:
            table.flag("peft_path", spec.peft_path)
    else:
        _engine_model_kwargs(kwargs, engine, table)
        table.settle("batch_size")
        table.refuse(
            "peft_path",
            f"adapters are not loaded on {engine} yet",
            "merge the adapter into the checkpoint (peft's merge_and_unload) and give the merged folder",
        )
    _context_row(spec, table)
    _device_rows(spec, max(spec.run_cfg.num_gpus, 1), table)
    _engine_arg_rows(options, table)
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


def _engine_model_kwargs(kwargs: Mapping[str, Any], engine: str, table: _Table) -> None:
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


def _endpoint_for(spec: HuggingFaceSpec, path: str, options: EngineOptions, table: _Table) -> EndpointPlan:
    base = options.api_base or os.environ.get("OPENAI_BASE_URL")
    if not base:
        raise ConfigError(
            "-a openai: no server given",
            "name it with --api-base http://HOST:PORT/v1 or in OPENAI_BASE_URL",
        )
    url = base_url(base)
    table.add("(server)", url, "token ids where the server takes them, else messages")
    for key in spec.model_kwargs:
        table.add(f"model_kwargs.{key}", "", "the server has loaded the model its own way")
    table.settle("batch_size")
    _engine_arg_rows(options, table)
    return EndpointPlan(
        base_urls=(url,),
        model=options.api_model or path,
        keys=_keys("ENV", options),
        ids_wanted=True,
    )


def _swapped_abbr(abbr: str, engine: str) -> str:
    return abbr[: -len("-hf")] + f"-{engine}" if abbr.endswith("-hf") else f"{abbr}-{engine}"


# -- engine specs ------------------------------------------------------------------------------------------


def _from_vllm(spec: VLLM | VLLMwithChatTemplate, options: EngineOptions) -> ModelPlan:
    table = _Table(spec, "vllm")
    chat = isinstance(spec, VLLMwithChatTemplate)
    table.refuse("lora_path", "adapters are not loaded on vllm yet", "give a merged checkpoint")
    table.refuse("tokenizer_only", "a model that is never loaded cannot answer", "remove it")
    for key in ("fastchat_template", "use_fastchat_template"):
        table.refuse(key, "FastChat templates are not rendered", "remove it")
    path = table.stripped_path(spec.path)
    table.add("path", f"--model {path}")
    kwargs = dict(spec.model_kwargs)
    dtype = _dtype(kwargs, table)
    trust = _trust_remote_code(kwargs, table)
    revision = _revision(kwargs, table)
    gpus = _tensor_parallel(kwargs, spec, table)
    for key in kwargs:
        table.add(f"model_kwargs.{key}", f"--{key.replace('_', '-')}")
    _context_row(spec, table)
    table.settle("batch_size")
    _engine_arg_rows(options, table)
    table.add("(prompt)", "rendered and tokenised once, by evalswap", "the engine gets token ids")
    _sampling_rows(spec, table)
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
            engine_args={**kwargs, **options.engine_args},
        ),
        endpoint=None,
        pred_postprocessor=spec.pred_postprocessor,
        translation=table.rows(),
    )


def _tensor_parallel(kwargs: dict[str, Any], spec: ModelSpec, table: _Table) -> int:
    """Take the number of GPUs out of a vLLM config, which says it twice."""
    given = kwargs.pop("tensor_parallel_size", None)
    try:
        gpus = max(int(spec.run_cfg.num_gpus if given is None else given), 1)
    except (TypeError, ValueError):
        raise ConfigError(f"{spec.abbr}: model_kwargs.tensor_parallel_size: not a number: {given!r}") from None
    if given is not None:
        table.add(f"model_kwargs.tensor_parallel_size={given}", f"--tensor-parallel-size {gpus}")
    _device_rows(spec, gpus, table)
    return gpus


def _engine_generation_kwargs(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Engine configs sample as soon as they name a temperature; HuggingFace's need do_sample as well."""
    return {"do_sample": bool(kwargs.get("temperature")), "top_k": 0, "top_p": 1.0, **kwargs}


def _from_api(spec: OpenAI, options: EngineOptions) -> ModelPlan:
    table = _Table(spec, "openai")
    if spec.openai_proxy_url not in (None, "ENV"):
        raise ConversionError(
            f"{spec.abbr}: openai_proxy_url is not supported",
            "set HTTPS_PROXY in the environment; it is honoured",
        )
    table.refuse(
        "http_client_cfg",
        "these are another client's settings",
        "remove it; proxies come from the environment, the deadline from timeout=",
    )
    extra = dict(spec.extra_body or {})
    timeout, codes = 3600.0, {}
    if isinstance(spec, OpenAISDK):
        extra |= spec.openai_extra_kwargs or {}
        timeout, codes = spec.timeout, spec.status_code_mappings
    model = table.stripped_path(spec.path)
    base_urls = _base_urls(spec, options)
    table.add("openai_api_base", ", ".join(f"POST {url}/chat/completions" for url in base_urls))
    table.add("path", f'"model": "{options.api_model or model}"')
    table.add("(messages)", "sent as they are", "template applied by the server")
    if spec.tokenizer_path:
        table.add("tokenizer_path", "counts tokens against max_seq_len", "loaded only if a prompt might be too long")
    if spec.max_seq_len is None:
        table.add("max_seq_len (unset)", "", "the server decides what is too long")
    else:
        table.add(f"max_seq_len={spec.max_seq_len}", "evalswap", "an overlong prompt is an error, never cut")
    if spec.mode != "none":
        table.add(f"mode={spec.mode}", "", "an overlong prompt is an error, never cut")
    window = spec.max_workers or spec.batch_size
    table.add("max_workers" if spec.max_workers else f"batch_size={window}", f"{window} requests in flight")
    if spec.query_per_second is None:
        table.add("query_per_second (unset)", "", "no rate limit")
    else:
        note = (
            f"at most {spec.query_per_second:g} requests a second, however fast the server is: raise it for a local one"
        )
        table.add(f"query_per_second={spec.query_per_second:g}", "rate limit", note)
    _engine_arg_rows(options, table)
    generation_kwargs = dict(spec.generation_kwargs)
    if spec.temperature is not None:
        generation_kwargs |= {"do_sample": spec.temperature > 0, "temperature": spec.temperature}
        table.add(f"temperature={spec.temperature}", f'"temperature": {spec.temperature}')
    elif "temperature" not in generation_kwargs:
        table.add("temperature (unset)", '"temperature": 0', "greedy; nothing is left to the server's default")
    _sampling_rows(spec, table)
    return ModelPlan(
        abbr=spec.abbr,
        summary_abbr=spec.summarizer_abbr or spec.abbr,
        engine="openai",
        spec_type=spec.type,
        prompt=PromptPlan(
            template="chat",
            roles=parse_roles(spec.meta_template, spec.abbr) if spec.meta_template else API_DEFAULT_ROLES,
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
            keys=_keys(spec.key, options),
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


def _base_urls(spec: OpenAI, options: EngineOptions) -> tuple[str, ...]:
    if options.api_base:
        return (base_url(options.api_base),)
    given = [spec.openai_api_base] if isinstance(spec.openai_api_base, str) else spec.openai_api_base
    bases = [base for base in given if base.strip()]
    return tuple(map(base_url, bases or [os.environ.get("OPENAI_BASE_URL") or spec.DEFAULT_BASE]))


def base_url(address: str) -> str:
    """Return a server's base address, ending in /v1, from any of the forms that configs use.

    Raises ConfigError for an address that is not http(s).
    """
    url = address.strip().rstrip("/")
    for suffix in ("/chat/completions", "/completions"):
        url = url.removesuffix(suffix)
    try:
        parts = urlsplit(url)
    except ValueError:
        parts = urlsplit("")
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

    Raises ConfigError for a key or a role without a counterpart.
    """
    where = f"{abbr}: meta_template"
    _refuse_other_keys(meta_template, META_TEMPLATE_KEYS, where)
    roles = []
    for section in META_TEMPLATE_KEYS:
        items = meta_template.get(section) or ()
        if not isinstance(items, (list, tuple)):
            raise ConfigError(f"{where}.{section}: a list is wanted, not {type(items).__name__}")
        roles += [_role(item, f"{where}.{section}[{i}]") for i, item in enumerate(items)]
    if not meta_template.get("round"):
        raise ConfigError(f"{where} has no round")
    return tuple(roles)


def _role(item: object, where: str) -> Role:
    if not isinstance(item, Mapping) or "role" not in item:
        raise ConfigError(f"{where}: a dict with 'role' is wanted")
    _refuse_other_keys(item, ROLE_KEYS, where)
    name = str(item["role"])
    api_role = str(item.get("api_role") or (name if name in API_ROLES else "HUMAN"))
    if api_role not in API_ROLES:
        near = did_you_mean(api_role.upper(), API_ROLES) or f"known: {', '.join(API_ROLES)}"
        raise ConfigError(f"{where}: unknown api_role '{api_role}'", near)
    for key in ("begin", "end"):
        if not isinstance(item.get(key) or "", str):
            raise ConfigError(f"{where}.{key}: a text is wanted, not {type(item[key]).__name__}")
    return Role(
        name,
        API_ROLES[api_role],
        begin=item.get("begin") or "",
        end=item.get("end") or "",
        generate=bool(item.get("generate")),
    )


def _refuse_other_keys(data: Mapping[str, Any], known: Sequence[str], where: str) -> None:
    for key in data:
        if key not in known:
            raise ConfigError(f"{where}.{key}: unknown key", did_you_mean(key, known) or f"known: {', '.join(known)}")


def _dtype(kwargs: dict[str, Any], table: _Table) -> str:
    """Take the dtype out of a config's model_kwargs."""
    given = {key: kwargs.pop(key) for key in ("dtype", "torch_dtype") if key in kwargs}
    value = next((value for value in given.values() if value is not None), "auto")
    name = str(value).removeprefix("torch.")
    name = {"float": "float32", "half": "float16"}.get(name, name)
    if name not in ("auto", "float32", "float16", "bfloat16"):
        where = f"{table.abbr}: model_kwargs.{next(iter(given))}"
        raise ConfigError(f"{where}: unknown dtype '{name}'", "use auto, float32, bfloat16 or float16")
    for source in [f"model_kwargs.{key}" for key in given] or ["dtype"]:
        table.flag("dtype", name, "the checkpoint's dtype" if name == "auto" else "", source=source)
    return name


def _revision(kwargs: dict[str, Any], table: _Table) -> str | None:
    """Take the revision of the files out of a config's model_kwargs."""
    if "revision" not in kwargs:
        return None
    revision = kwargs.pop("revision")
    table.add(f"model_kwargs.revision={revision}", "the revision of the files")
    return str(revision) if revision else None


def _trusts(kwargs: Mapping[str, Any]) -> bool:
    return bool(kwargs.get("trust_remote_code", False))


def _trust_remote_code(kwargs: dict[str, Any], table: _Table) -> bool:
    """Take trust_remote_code out of a config's model_kwargs."""
    if "trust_remote_code" not in kwargs:
        return False
    trust = bool(kwargs.pop("trust_remote_code"))
    note = "the checkpoint's own code is run because the config asks for it" if trust else ""
    table.flag("trust_remote_code", trust, note, source="model_kwargs.trust_remote_code")
    return trust


def _context_row(spec: ModelSpec, table: _Table) -> None:
    context = f"{spec.max_seq_len} + max_out_len" if spec.max_seq_len else "the model's own limit"
    table.flag("max_seq_len", context, "overlong prompts are cut by evalswap, and counted")


def _device_rows(spec: ModelSpec, gpus: int, table: _Table) -> None:
    table.flag("num_gpus", gpus, source="run_cfg.num_gpus")
    if spec.run_cfg.num_procs != 1:
        table.add("run_cfg.num_procs", "", "processes are the engine's own")


def _engine_arg_rows(options: EngineOptions, table: _Table) -> None:
    started = table.engine != "openai"
    for key, value in options.engine_args.items():
        target = "the engine's flag, verbatim" if started else ""
        table.add(f"--engine-args {key}={value}", target, "" if started else "evalswap does not start this server")


def _sampling_rows(spec: ModelSpec, table: _Table) -> None:
    if spec.max_out_len is not None:
        table.add(f"max_out_len={spec.max_out_len}", "max_new_tokens", "the dataset's own value wins")
    if spec.min_out_len is not None:
        table.add(f"min_out_len={spec.min_out_len}", "min_new_tokens", "the dataset's own value wins")
    words = getattr(spec, "stop_words", [])
    if words:
        table.add(
            f"stop_words={words}",
            "stop ids where a word is one special token, else stop texts",
            "cut once more by evalswap",
        )
    kwargs = getattr(spec, "generation_kwargs", {})
    try:
        check_fields(kwargs)
    except ConfigError as error:
        raise type(error)(f"{spec.abbr}: {error.message}", error.hint) from None
    greedy = isinstance(spec, HuggingFaceSpec) and not kwargs.get("do_sample")
    for key, value in kwargs.items():
        if key in EFFECTLESS_FIELDS:
            target, note = "", "no token depends on it"
        elif greedy and key in DRAWN_FIELDS:
            target, note = "", "greedy, because do_sample is not set"
        else:
            target, note = "the sampling block", ""
        table.add(f"generation_kwargs.{key}={value!r}", target, note)


class _Table:
    """Collects the translation of one spec, and sees to it that no field is left out."""

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
        self.spec = spec
        self.abbr = spec.abbr
        self.engine = engine
        self._rows: list[TranslationRow] = []

    def add(self, source: str, target: str, note: str = "") -> None:
        self._rows.append(TranslationRow(source, target, note))

    def flag(self, field: str, value: object, note: str = "", source: str | None = None) -> None:
        """Add a field that the engine is told with a flag of its own."""
        flag = self.FLAGS.get(self.engine, {}).get(field)
        self.add(source or field, f"{flag} {value}" if flag else "", note)

    def settle(self, field: str) -> None:
        """Add a field that no engine needs to be told about."""
        if field not in SETTLED:
            raise ConversionError(f"{self.abbr}: {field} means nothing to {self.engine}", "remove it")
        self.add(field, *SETTLED[field])

    def refuse(self, key: str, why: str, what_to_do: str) -> None:
        """Raise ConversionError if the spec sets ``key``."""
        if getattr(self.spec, key, None):
            raise ConversionError(f"{self.abbr}: {key}: {why}", what_to_do)

    def stripped_path(self, path: str) -> str:
        stripped = path.strip()
        if not stripped:
            raise ConfigError(f"{self.abbr}: path: it is empty")
        if stripped != path:
            self.add(f"path={path!r}", repr(stripped), "white space around it removed")
        return stripped

    def rows(self) -> tuple[TranslationRow, ...]:
        """Return the table, complete: a field that the config sets and nobody spoke of gets its row here."""
        named = {re.split(r"\W", row.source, maxsplit=1)[0] for row in self._rows}
        for key, info in type(self.spec).model_fields.items():
            set_to_something = getattr(self.spec, key) != info.get_default(call_default_factory=True)
            if key in self.spec.model_fields_set and set_to_something and key not in {"type", *named}:
                self.settle(key)
        return tuple(self._rows)
