"""Servers that somebody else runs: API specs as they are, and HuggingFace specs with ``-a openai``."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

from evalswap.config.specs import HuggingFaceSpec, OpenAI, OpenAISDK
from evalswap.conversion.options import EngineOptions
from evalswap.conversion.roles import API_DEFAULT_ROLES, parse_roles
from evalswap.conversion.translation import Translation, engine_arg_rows, sampling_rows, server_generation_kwargs
from evalswap.engines.openai import is_reasoning_model
from evalswap.errors import ConfigError, ConversionError
from evalswap.plan import MOST_AT_ONE_ADDRESS, EndpointPlan, ModelPlan, PromptPlan, SamplingPlan
from evalswap.prompting.sampling import drawn_at

SDK_ARGUMENTS = {
    "extra_headers": "remove it: a key goes in key=, an organisation in org=; other headers are not sent",
    "extra_query": "remove it: addresses are asked without a query",
    "timeout": "write timeout= of the model",
}


def from_api(spec: OpenAI, options: EngineOptions) -> ModelPlan:
    table = Translation(spec, "openai")
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
        extra |= _extra_fields(spec)
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
    of_spec = spec.max_workers or spec.batch_size
    window = options.in_flight or of_spec
    table.add(
        f"max_workers={of_spec}" if spec.max_workers else f"batch_size={of_spec}",
        f"{window} requests in flight",
        f"--api-in-flight {window} comes first" if options.in_flight else "",
    )
    if spec.query_per_second is None:
        table.add("query_per_second (unset)", "", "no rate limit")
    else:
        most = f"{spec.query_per_second:g} request{'' if spec.query_per_second == 1 else 's'} a second"
        note = f"at most {most}, however fast the server is: raise it for a local one"
        table.add(f"query_per_second={spec.query_per_second:g}", "rate limit", note)
    engine_arg_rows(options, table)
    reasoning = _reasons(spec, options.api_model or model)
    temperature = _reasoning_rows(spec, table) if reasoning else _temperature_rows(spec, table)
    if spec.max_completion_tokens is not None and not reasoning:
        note = "it comes before the dataset's max_out_len"
        table.add(f"max_completion_tokens={spec.max_completion_tokens}", '"max_tokens"', note)
    _overruled_rows(spec, table, temperature)
    sampling_rows(spec, table, temperature)
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
            generation_kwargs=server_generation_kwargs(spec.generation_kwargs, temperature),
            stop_words=tuple(spec.stop_words),
            max_out_len=spec.max_out_len,
            min_out_len=spec.min_out_len,
            answer_limit=spec.max_completion_tokens,
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
            reasoning=reasoning,
        ),
        pred_postprocessor=spec.pred_postprocessor,
        translation=table.rows(),
    )


def _extra_fields(spec: OpenAISDK) -> dict[str, Any]:
    """Return the ``openai_extra_kwargs`` as fields of a request's body.

    Raises ConversionError for arguments of the SDK that become something else there: headers, a query, a deadline
    (https://github.com/openai/openai-python, ``chat.completions.create``).
    """
    fields = dict(spec.openai_extra_kwargs or {})
    for name, instead in SDK_ARGUMENTS.items():
        if name in fields:
            raise ConversionError(f"{spec.abbr}: openai_extra_kwargs.{name} is not supported", instead)
    body = fields.pop("extra_body", None) or {}
    if not isinstance(body, Mapping):
        raise ConfigError(f"{spec.abbr}: openai_extra_kwargs.extra_body: a dict is wanted")
    return fields | dict(body)


def _temperature_rows(spec: OpenAI, table: Translation) -> float:
    """Add what a server is told; return the temperature that answers are drawn at, 0 for greedy ones."""
    temperature, source = _temperature(spec)
    if temperature is None:
        table.add("temperature (unset)", '"temperature": 0', "greedy; nothing is left to the server's default")
    else:
        table.add(source, f'"temperature": {temperature or 0}', "" if temperature else "greedy")
    return temperature or 0.0


def _temperature(spec: OpenAI) -> tuple[float | None, str]:
    """Return the temperature that a spec names, its own before that of its ``generation_kwargs``, and the row's source.

    Raises ConfigError if it is no number from 0 on.
    """
    given, field = spec.temperature, "temperature"
    if given is None:
        given, field = spec.generation_kwargs.get("temperature"), "generation_kwargs.temperature"
    if given is None:
        return None, "temperature (unset)"
    source = f"{field}={given!r}"
    try:
        temperature = drawn_at(given)
    except (TypeError, ValueError):
        temperature = math.nan
    if not 0 <= temperature < math.inf:
        raise ConfigError(f"{spec.abbr}: {source}: a number from 0 on is wanted", "0 is greedy")
    return temperature, source


def _overruled_rows(spec: OpenAI, table: Translation, temperature: float) -> None:
    """Add what the ``generation_kwargs`` say of drawing beside the temperature that decides."""
    kwargs = spec.generation_kwargs
    if "temperature" in kwargs and spec.temperature is not None:
        source = f"generation_kwargs.temperature={kwargs['temperature']!r}"
        table.add(source, "", f"temperature={spec.temperature} comes first")
    if "do_sample" in kwargs:
        how = f"drawn at temperature {temperature}" if temperature else "greedy"
        source = f"generation_kwargs.do_sample={kwargs['do_sample']!r}"
        table.add(source, "", f"not looked at: {how}, as the temperature says")


def _reasons(spec: OpenAI, model: str) -> bool:
    """Whether a model is one of OpenAI's reasoning models: by its name, or because the spec is written for one.

    OpenCompass goes by the name, and its configs for o1 say ``max_completion_tokens`` (configs/models/openai). Under
    another name ("my-deployment") it is one with ``max_completion_tokens`` and the only temperature that those have.
    """
    return is_reasoning_model(model) or (spec.max_completion_tokens is not None and _temperature(spec)[0] == 1)


def _reasoning_rows(spec: OpenAI, table: Translation) -> float:
    """Add what a reasoning model is told, and what it is not; return the temperature that answers are drawn at.

    It is 1, but for one in the ``generation_kwargs``, which is refused with the other fields that it does not take.
    """
    limit = spec.max_completion_tokens
    table.add(
        f"max_completion_tokens={limit}" if limit else "max_completion_tokens (unset)",
        '"max_completion_tokens"' if limit else '"max_completion_tokens": max_out_len',
        "the reasoning counts, too; it comes before the dataset's max_out_len"
        if limit
        else "the reasoning counts, too: set it if max_out_len leaves no room for the answer",
    )
    temperature, source = _temperature(spec)
    note = "taken for a reasoning model, which draws at 1: no temperature, top_p, penalty or stop is sent"
    table.add(source, "", note)
    return 1.0 if temperature is None or spec.temperature is not None else temperature


def _base_urls(spec: OpenAI, options: EngineOptions) -> tuple[str, ...]:
    if options.api_base:
        return base_urls(options.api_base)
    given = [spec.openai_api_base] if isinstance(spec.openai_api_base, str) else spec.openai_api_base
    bases = [base for base in given if base.strip()]
    return tuple(map(base_url, bases)) or base_urls(os.environ.get("OPENAI_BASE_URL") or spec.DEFAULT_BASE)


def base_urls(addresses: str) -> tuple[str, ...]:
    """Return the base addresses of servers that share the work, each once; given with commas between them.

    Raises ConfigError for an address that is not http(s).
    """
    given = [address for address in addresses.split(",") if address.strip()]
    return tuple(dict.fromkeys(map(base_url, given or [addresses])))


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


def endpoint_for(spec: HuggingFaceSpec, path: str, options: EngineOptions, table: Translation) -> EndpointPlan:
    given = options.api_base or os.environ.get("OPENAI_BASE_URL")
    if not given:
        raise ConfigError(
            "-a openai: no server given",
            "name it with --api-base http://HOST:PORT/v1 or in OPENAI_BASE_URL",
        )
    urls = base_urls(given)
    table.add("(server)", ", ".join(urls), "token ids where the server takes them, else messages")
    for key in spec.model_kwargs:
        table.add(f"model_kwargs.{key}", "", "the server has loaded the model its own way")
    table.settle("batch_size")
    most = options.in_flight or MOST_AT_ONE_ADDRESS * len(urls)
    source = f"--api-in-flight {most}" if options.in_flight else "--api-in-flight (unset)"
    table.add(source, f"up to {most} requests in flight", "a few at first, and more as long as that is faster")
    engine_arg_rows(options, table)
    return EndpointPlan(
        base_urls=urls,
        model=options.api_model or path,
        keys=_keys("ENV", options),
        max_in_flight=most,
        ids_wanted=True,
    )
