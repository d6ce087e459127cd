"""Servers that somebody else runs: API specs as they are, and HuggingFace specs with ``-a openai``."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

from evalswap.config.specs import HuggingFaceSpec, OpenAI, OpenAISDK
from evalswap.conversion.options import EngineOptions
from evalswap.conversion.roles import API_DEFAULT_ROLES, parse_roles
from evalswap.conversion.translation import Translation, engine_arg_rows, engine_generation_kwargs, sampling_rows
from evalswap.engines.openai import is_reasoning_model
from evalswap.errors import ConfigError, ConversionError
from evalswap.plan import MOST_AT_ONE_ADDRESS, EndpointPlan, ModelPlan, PromptPlan, SamplingPlan


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
    generation_kwargs = _reasoning_rows(spec, table) if reasoning else _temperature(spec, table)
    if spec.max_completion_tokens is not None and not reasoning:
        note = "it comes before the dataset's max_out_len"
        table.add(f"max_completion_tokens={spec.max_completion_tokens}", '"max_tokens"', note)
    sampling_rows(spec, table)
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
            generation_kwargs=engine_generation_kwargs(generation_kwargs),
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


def _temperature(spec: OpenAI, table: Translation) -> dict[str, Any]:
    """Return the ``generation_kwargs`` with what the spec's own ``temperature`` means."""
    if spec.temperature is not None:
        table.add(f"temperature={spec.temperature}", f'"temperature": {spec.temperature}')
        return {**spec.generation_kwargs, "do_sample": spec.temperature > 0, "temperature": spec.temperature}
    if "temperature" not in spec.generation_kwargs:
        table.add("temperature (unset)", '"temperature": 0', "greedy; nothing is left to the server's default")
    return dict(spec.generation_kwargs)


def _reasons(spec: OpenAI, model: str) -> bool:
    """Whether a model is one of OpenAI's reasoning models: by its name, or because the spec is written for one.

    OpenCompass goes by the name, and its configs for o1 say ``max_completion_tokens`` (configs/models/openai). Under
    another name ("my-deployment") it is one with ``max_completion_tokens`` and the only temperature that those have.
    """
    temperature = spec.generation_kwargs.get("temperature", spec.temperature)
    return is_reasoning_model(model) or (spec.max_completion_tokens is not None and temperature == 1)


def _reasoning_rows(spec: OpenAI, table: Translation) -> dict[str, Any]:
    """Add what a reasoning model is told, and what it is not; return the ``generation_kwargs`` that it then has."""
    limit = spec.max_completion_tokens
    table.add(
        f"max_completion_tokens={limit}" if limit else "max_completion_tokens (unset)",
        '"max_completion_tokens"' if limit else '"max_completion_tokens": max_out_len',
        "the reasoning counts, too; it comes before the dataset's max_out_len"
        if limit
        else "the reasoning counts, too: set it if max_out_len leaves no room for the answer",
    )
    table.add(
        "temperature (unset)" if spec.temperature is None else f"temperature={spec.temperature}",
        "",
        "taken for a reasoning model, which draws at 1: no temperature, top_p, penalty or stop is sent",
    )
    return {"do_sample": True, "temperature": 1.0, **spec.generation_kwargs}


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
