"""Whether an engine does what a sampling block asks for, and what to do if not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from evalswap.config.specs import DatasetSpec
from evalswap.engines.base import Engine, RefusedSampling
from evalswap.engines.openai import BY_IDS, OpenAICompatible, openai_engine
from evalswap.engines.registry import managed_engine, managed_engine_names
from evalswap.errors import ConversionError, EvalswapError
from evalswap.plan import EndpointPlan, ModelPlan, SamplingPlan
from evalswap.prompting.sampling import MIN_OUT_LEN, origin, resolve_sampling
from evalswap.records import Sampling


def check_sampling(plan: ModelPlan, datasets: Sequence[DatasetSpec]) -> None:
    """Raise ConversionError now, not minutes later, for sampling that the engine refuses.

    What only the model's files say (its generation_config.json) is checked when they are read, and what only one kind
    of server refuses, when it is known who answers.
    """
    engines: list[Engine] = (
        list(_possible(plan.endpoint)) if plan.endpoint is not None else [managed_engine(plan.engine, plan.launch)]
    )
    for dataset in datasets:
        cfg = dataset.infer_cfg.inferencer
        sampling = resolve_sampling(plan.sampling, {}, max_out_len=cfg.max_out_len, min_out_len=cfg.min_out_len)
        takers = [engine for engine in engines if _takes(engine, sampling)]
        check_asked((takers or engines)[0], sampling, plan.sampling, {}, cfg.min_out_len)


def check_asked(
    engine: Engine,
    sampling: Sampling,
    plan: SamplingPlan,
    generation_config: Mapping[str, Any],
    min_out_len: int | None = None,
) -> None:
    """Raise ConversionError for sampling that an engine refuses, with who asked for it and with what helps.

    ``plan``, ``generation_config`` and ``min_out_len`` (the dataset's) are what the block was made of.
    """
    try:
        engine.native_sampling(sampling)
    except RefusedSampling as refused:
        sources = {name: origin(plan, generation_config, name, min_out_len=min_out_len) for name in refused.asked}
        values = " with ".join(
            f"{name}={value!r}" + ("" if sources[name] == plan.written_in else f" ({sources[name]})")
            for name, value in refused.asked.items()
        )
        cure, takers = _cure(refused, sources, plan), ", ".join(_other_takers(engine, sampling))
        raise ConversionError(
            f"{values} cannot be asked of {refused.engine}: {refused.why}",
            f"{cure}; engines that take it: {takers}" if takers else cure,
        ) from None


def _cure(refused: RefusedSampling, sources: Mapping[str, str], plan: SamplingPlan) -> str:
    ways = [
        f"remove {sources[name]}" if MIN_OUT_LEN in sources[name] else f"{plan.written_in}=dict({name}={value})"
        for name, value in refused.neutral.items()
    ]
    if not ways or ways[0].startswith("remove"):
        return " or ".join(ways) or "choose another value"
    return f"{' or '.join(ways)} asks for {'none' if len(ways) == 1 else 'one of them'}"


def _possible(endpoint: EndpointPlan) -> Iterator[OpenAICompatible]:
    """Yield the ways in which a server may turn out to be spoken to."""
    if endpoint.ids_wanted:
        yield from (openai_engine(endpoint, kind) for kind in BY_IDS)
    yield openai_engine(endpoint)


def _other_takers(engine: Engine, sampling: Sampling) -> Iterator[str]:
    for name in managed_engine_names():
        try:
            if name != engine.name and _takes(managed_engine(name), sampling):
                yield name
        except EvalswapError:  # of another package, and not to be loaded
            continue


def _takes(engine: Engine, sampling: Sampling) -> bool:
    try:
        engine.native_sampling(sampling)
    except RefusedSampling:
        return False
    return True
