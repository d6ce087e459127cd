"""From figures to findings: does it fit, and what happens to prompts that do not?"""

from __future__ import annotations

import dataclasses

from evalswap.checking.findings import ModelCheck
from evalswap.checking.memory import (
    GIB,
    Memory,
    MemoryNeed,
    cache_space,
    machine_memory,
    memory_need,
    share_of_gpu,
)
from evalswap.checking.prompts import PromptSample
from evalswap.errors import EvalswapError
from evalswap.serving.launching import PreparedEngine

NEEDS_ITS_SHARE_FREE = ("vllm",)  # it does not start on a GPU of which others hold a part of its share
LESS = "a smaller max_seq_len, dtype='bfloat16' instead of float32, or a checkpoint that is quantised"


def judge_memory(check: ModelCheck, prepared: PreparedEngine, gpus: Memory | None, longest: int | None) -> None:
    """Say what memory is needed, and whether it is there. ``longest``: tokens of the longest prompt seen."""
    launch = prepared.launch
    if prepared.engine.name == "transformers" and longest is not None:
        # Its batches grow as far as they must, not to the context's length at once.
        answer = max((data["sampling"]["max_new_tokens"] for data in _datasets(check)), default=0)
        launch = dataclasses.replace(launch, context_len=min(launch.context_len, longest + answer))
    try:
        need = memory_need(prepared.engine, launch, prepared.checkpoint)
        space = cache_space(prepared.engine.environment(launch)) if launch.device == "cpu" else None
    except (EvalswapError, OSError) as error:
        check.note("memory", f"unknown: {error}")
        return
    there = gpus if launch.device != "cpu" else machine_memory()
    check.figures["memory"] = {
        **dataclasses.asdict(need),
        "full_load": need.full_load,
        "available": dataclasses.asdict(there) if there else None,
        "device": launch.device,
    }
    if need.weights is None:
        check.problem("memory", f"{prepared.checkpoint.folder}: no weights in it", "copy the whole model folder")
        return
    if need.one_sequence is None:
        source = "the GGUF" if prepared.engine.name == "llamacpp" else "config.json"
        check.note("memory", f"weights {_gib(need.weights)}; {source} does not tell how large the cache gets")
    if launch.device == "cpu":
        _judge_ram(check, prepared, need, space, there)
    else:
        _judge_gpus(check, prepared, need, there)


def say_prompts(check: ModelCheck, dataset: str, sample: PromptSample, max_seq_len: int | None) -> None:
    """Say what a dataset's prompts are like."""
    of = f"{sample.looked_at} of {sample.rows} rows" if sample.looked_at < sample.rows else f"{sample.rows} rows"
    if sample.first_tokens is None:
        check.good("prompts", f"{dataset}: {of} rendered as messages")
    else:
        bos = "the tokenizer adds a BOS token" if sample.adds_bos else "the tokenizer adds no BOS token"
        check.good(
            "prompts",
            f"{dataset}: the first has {sample.first_tokens} tokens and begins with {sample.begins_with!r} ({bos}); "
            f"the longest of {of} has {sample.longest}",
        )
    if sample.cut:
        limit = f"max_seq_len={max_seq_len}" if max_seq_len else "the model's context"
        check.note(
            "prompts",
            f"{dataset}: {sample.cut} of {sample.looked_at} prompts are too long for {limit} and are cut",
            "raise max_seq_len if the model has room",
        )
    if sample.shortened:
        check.note(
            "prompts", f"{dataset}: {sample.shortened} of {sample.looked_at} answers get less room than max_out_len"
        )
    if sample.impossible:
        check.problem(
            "prompts",
            f"{dataset}: of {sample.impossible} of {sample.looked_at} rows no request can be made: {sample.problem}",
            "correct the prompt template, or raise max_seq_len",
        )


def _judge_gpus(check: ModelCheck, prepared: PreparedEngine, need: MemoryNeed, there: Memory | None) -> None:
    copies = prepared.engine.replicas(prepared.launch)
    count = max(1, prepared.launch.num_gpus, copies)
    if there is None:
        check.note("memory", f"{_sizes(need)}; nvidia-smi does not tell what there is")
        return
    if there.devices < count:
        hint = "lower run_cfg=dict(num_gpus=…) or the copies (data parallel), or see CUDA_VISIBLE_DEVICES"
        check.problem("memory", f"{count} GPUs are wanted, but this machine shows {there.devices}", hint)
        return
    assert need.weights is not None
    one = need.one_sequence or 0
    share = share_of_gpu(prepared.engine.name, prepared.launch)
    room = there.total * share
    least = (need.weights + one) * copies / count
    on_each = f" on each of {count} GPUs" if count > 1 else ""
    have = f"a GPU has {_gib(there.total)}, {_gib(there.free)} free"
    text = f"{_sizes(need)}; at least {_gib(least)}{on_each}, {have}"
    advice = prepared.engine.explain("out of memory") or LESS
    if least > room:
        check.problem("memory", f"{text}: too little (the engine takes {share:.0%})", advice)
    elif there.free < (room if prepared.engine.name in NEEDS_ITS_SHARE_FREE else least):
        check.problem(
            "memory",
            f"{text}: another program holds the rest",
            "end it (nvidia-smi names it), or choose another GPU with CUDA_VISIBLE_DEVICES",
        )
    else:
        check.good("memory", text)
        at_once = int((room * count - need.weights * copies) // one) if one else need.in_flight
        if at_once < need.in_flight:
            check.note("memory", f"room for about {at_once} requests of full length at once; more wait in the engine")


def _judge_ram(
    check: ModelCheck, prepared: PreparedEngine, need: MemoryNeed, space: int | None, there: Memory | None
) -> None:
    assert need.weights is not None
    one = need.one_sequence or 0
    if space is not None and one > space:
        check.problem(
            "memory",
            f"{_sizes(need)}; the cache has {_gib(space)}: not even one fits",
            f"a smaller max_seq_len, or VLLM_CPU_KVCACHE_SPACE={-(-one // GIB)} (GiB)",
        )
        return
    least = need.weights + (space if space is not None else (need.full_load or 0))
    if there is None:
        check.note("memory", f"{_sizes(need)}; this system does not tell what there is")
        return
    text = f"{_sizes(need)}; {_gib(least)} in all, this machine has {_gib(there.total)}, {_gib(there.free)} free"
    if least > there.total:
        smaller = "a smaller batch_size, " if prepared.engine.name == "transformers" else ""
        check.problem("memory", f"{text}: too little", smaller + LESS)
    elif least > there.free:
        check.note("memory", f"{text}: other programs hold much of it", "end some of them")
    else:
        check.good("memory", text)


def _sizes(need: MemoryNeed) -> str:
    text = f"weights {_gib(need.weights or 0)}"
    if need.one_sequence is not None and need.cache_per_token is not None and need.full_load is not None:
        text += (
            f", cache {need.cache_per_token / 1024:.4g} KiB a token: {_gib(need.one_sequence)} for one sequence of "
            f"{need.context_len} tokens, {_gib(need.full_load)} for {need.in_flight} in flight"
        )
    return text


def _gib(size: float) -> str:
    return f"{size / GIB:.2f} GiB" if size < 10 * GIB else f"{size / GIB:.1f} GiB"


def _datasets(check: ModelCheck) -> list[dict[str, dict[str, int]]]:
    return [data for data in check.figures.get("datasets", {}).values() if "sampling" in data]
