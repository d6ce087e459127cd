"""The contract: what must be equal on both sides for a difference to be the engine's own doing.

Looked at before any statistics, item by item. ``kept`` is None where a side does not tell (a server of somebody
else, another tool's files). A broken item is *systematic* if it moves answers one way (another prompt, another
stop, coarser weights); the others only change how sums are rounded.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from evalswap.comparing.outputs import Output, Side
from evalswap.comparing.records import ContractItem

UNKNOWN = "unknown"
ENGINE_DEFAULT = "the engine's default"
BY_EVALSWAP = "token ids, rendered and tokenised by evalswap"
_Sides = tuple[Side, Side]
_Pairs = Sequence[tuple[Output, Output]]

SAMPLING = {  # field of the sampling block → what the contract calls it
    "max_new_tokens": "longest answer",
    "min_new_tokens": "shortest answer",
    "stop": "stop words",
    "stop_token_ids": "stop and EOS ids",
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "min_p": "min_p",
    "repetition_penalty": "repetition penalty",
    "presence_penalty": "presence penalty",
    "frequency_penalty": "frequency penalty",
    "seed": "seed",
}
DRAWING = ("top_p", "top_k", "min_p", "seed")  # without effect on a greedy answer
# Flags of engines (in --engine-args, or a config's own) that change numbers: how each engine calls them, what the
# contract calls them, the values that mean "no", and whether it is more than rounding.
ENGINE_FLAGS: tuple[tuple[str, tuple[str, ...], tuple[Any, ...], bool], ...] = (
    (
        "KV cache",
        ("kv_cache_dtype", "quant_policy", "cache_type_k", "cache_type_v", "ctk", "ctv"),
        ("auto", 0, "f32", "f16", "bf16", "bfloat16", "float16", "float32"),
        True,
    ),
    (
        "weight quantisation",
        ("quantization", "model_format", "load_in_8bit", "load_in_4bit", "quantization_config"),
        ("hf",),
        True,
    ),
    (
        "speculative decoding",
        (
            "speculative_config",
            "speculative_algorithm",
            "speculative_model",
            "speculative_draft_model_path",
            "model_draft",
        ),
        (),
        True,
    ),
    (
        "prefix cache",
        ("enable_prefix_caching", "no_enable_prefix_caching", "disable_radix_cache", "enable_radix_cache"),
        (),
        False,
    ),
    ("attention kernels", ("attention_backend", "attn_implementation", "flash_attn", "fa"), (), False),
)


def check_contract(reference: Side, other: Side, rows: Sequence[int]) -> tuple[ContractItem, ...]:
    """Return every item of the contract, on the rows that are compared; broken ones first."""
    sides = (reference, other)
    pairs = [(reference.outputs[row], other.outputs[row]) for row in rows]
    items = [
        _dataset(sides, pairs),
        *_prompts(sides, pairs),
        _model(sides),
        _item("adapter", _facts(sides, "peft_path", none="none")),
        *_sampling(sides),
        _item("fields added to each request", tuple(map(_added, sides))),
        _item("prompts cut to fit", tuple(side.about_rows.get("prompts_cut") for side in sides)),
        _item("answers with less room", tuple(_shortened(side) for side in sides)),
        _scorer(sides),
        _item("dtype", _facts(sides, "dtype")),
        *(_engine_flag(sides, *flag) for flag in ENGINE_FLAGS),
        _item("device", _facts(sides, "device"), systematic=False),
        _item("number of GPUs", _facts(sides, "num_gpus"), systematic=False),
    ]
    return tuple(sorted(items, key=_broken_first))


def broken(contract: Iterable[ContractItem]) -> list[ContractItem]:
    """Return the items that are known to differ."""
    return [item for item in contract if item.kept is False]


def _broken_first(item: ContractItem) -> int:
    return {False: 0 if item.systematic else 1, None: 2, True: 3}[item.kept]


def _item(
    name: str, values: Sequence[Any], *, kept: bool | None = None, note: str = "", systematic: bool = True
) -> ContractItem:
    """Return an item of what both sides say. Unless ``kept`` is given, equal values keep it; None is no saying."""
    ours, theirs = values
    if kept is None and ours is not None and theirs is not None:
        kept = bool(ours == theirs)
    return ContractItem(name, _shown(ours), _shown(theirs), kept, note, systematic)


def _not_told(name: str, values: Sequence[Any], note: str) -> ContractItem:
    ours, theirs = values
    return ContractItem(name, _shown(ours), _shown(theirs), None, note)


def _shown(value: Any) -> str:
    if value is None:
        return UNKNOWN
    if isinstance(value, (list, tuple)):
        return (
            ", ".join(map(repr, value) if any(isinstance(part, str) for part in value) else map(str, value)) or "none"
        )
    return str(value)


def _facts(sides: _Sides, key: str, *, none: str | None = None) -> tuple[Any, ...]:
    """Return a fact of both sides; ``none`` stands for a None that is on record, None for no record."""
    values = (side.facts.get(key) for side in sides)
    return tuple(
        none if value is None and key in side.facts else value for side, value in zip(sides, values, strict=True)
    )


def _model(sides: _Sides) -> ContractItem:
    named = zip(sides, _facts(sides, "model"), strict=True)
    values = [(value if "servers" in side.facts else str(value)[:12]) if value else None for side, value in named]
    remote = ["servers" in side.facts for side in sides]
    if all(remote) and None not in values and values[0] != values[1]:  # the servers' own names for one model, or two
        return _not_told(f"model files ({values[0]} and {values[1]} at their servers)", values, "named differently")
    if any(remote):
        return _not_told("model files", values, "a server tells no more than a name")
    return _item("model files", values)


def _dataset(sides: _Sides, pairs: _Pairs) -> ContractItem:
    hashes = [side.about_rows.get("rows_sha256") for side in sides]
    shown = [None if value is None else f"sha256 {value[:12]}" for value in hashes]
    if None not in hashes and hashes[0] == hashes[1]:
        return _item("dataset", shown)
    if any(a.gold != b.gold for a, b in pairs):
        return _item("dataset", shown, kept=False, note="right answers differ")
    if all(a.prompt == b.prompt for a, b in pairs):
        return _item("dataset", shown, kept=True, note="every question and right answer is the same text")
    if None in hashes:
        return _not_told("dataset", shown, "the right answers are the same, the questions are written in another way")
    return _item("dataset", shown, kept=False, note="another file, with other questions")


def _prompts(sides: _Sides, pairs: _Pairs) -> Iterator[ContractItem]:
    of_sides = list(zip(*pairs, strict=True)) or [(), ()]
    if all(output.prompt_ids is not None for outputs in of_sides for output in outputs):
        changed = sum(a.prompt_ids != b.prompt_ids for a, b in pairs)
        lengths = [f"{sum(len(output.prompt_ids or b'') for output in outputs) // 4:,} tokens" for outputs in of_sides]
        note = f"{changed:,} of {len(pairs):,} prompts differ" if changed else f"the same in all {len(pairs):,} prompts"
        yield _item("prompt token ids", lengths, kept=not changed, note=note)
    else:
        known = [all(output.prompt_ids is not None for output in outputs) for outputs in of_sides]
        changed = sum(a.prompt != b.prompt for a, b in pairs)
        # Another tool may record the prompt with its template or without: another text is no proof of anything.
        note = f"as text {changed:,} of {len(pairs):,} prompts differ" if changed else "the questions are the same text"
        yield _not_told("prompt token ids", ["known" if ids else None for ids in known], note)
    if any("prompts" in side.facts for side in sides) and all(side.facts for side in sides):
        yield _item("prompts go as", [side.facts.get("prompts", BY_EVALSWAP) for side in sides])
    by_ids = [bool(side.facts) and "servers" not in side.facts for side in sides]
    hashes = [side.facts.get("chat_template_sha256") for side in sides]
    shown = [value[:12] if value else "none" if ids else None for value, ids in zip(hashes, by_ids, strict=True)]
    yield _item("chat template", shown)


def _sampling(sides: _Sides) -> Iterator[ContractItem]:
    ours, theirs = (side.sampling for side in sides)
    if not ours or not theirs:
        yield _not_told("sampling and stops", ["known" if block else None for block in (ours, theirs)], "")
        return
    greedy = ours.get("temperature") == theirs.get("temperature") == 0
    for field, name in SAMPLING.items():
        if greedy and field in DRAWING:
            continue
        values = [_comparable(block.get(field)) for block in (ours, theirs)]
        yield _item(name, ["none" if value is None else value for value in values])
    if not greedy:
        yield _not_told(
            "greedy answers", ["no" if block.get("temperature") else "yes" for block in (ours, theirs)],
            "drawn answers differ by chance, on one engine as on two",
        )  # fmt: skip


def _added(side: Side) -> str | None:
    """Return what a config adds to each request's body, whatever the sampling block says; None where nobody knows."""
    if not side.facts:
        return None
    body = side.facts.get("extra_body")
    return json.dumps(body, sort_keys=True, ensure_ascii=False, default=str) if body else "none"


def _comparable(value: Any) -> Any:
    """Return a value of a sampling block, lists in one order."""
    return sorted(value) if isinstance(value, (list, tuple)) else value


def _shortened(side: Side) -> int | None:
    """Return how many answers had less room than asked for, as the context was full."""
    answers = side.record.get("answers")
    return None if answers is None else int((answers.get("shortened") or {}).get(f"{side.model}/{side.dataset}", 0))


def _scorer(sides: _Sides) -> ContractItem:
    who = [f"evalswap {side.evalswap}, {side.metric}" if not side.foreign else "as recorded" for side in sides]
    if any(side.foreign for side in sides):
        return _not_told("scorer", who, "what another tool has not recorded is scored by evalswap")
    return _item("scorer", who)


def _engine_flag(
    sides: _Sides, name: str, keys: tuple[str, ...], neutral: tuple[Any, ...], systematic: bool
) -> ContractItem:
    said: list[str | None] = []
    for side in sides:
        given = _flags(side.facts)
        found = {key: given[key] for key in keys if given.get(key) not in (None, False, "None", "False", *neutral)}
        told = ", ".join(f"{key}={value}" for key, value in found.items()) or ENGINE_DEFAULT
        said.append(told if "engine_args" in side.facts else None)
    return _item(name, said, systematic=systematic)


def _flags(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return what an engine was told beyond evalswap's own flags, names in one spelling."""
    given = {**(facts.get("model_kwargs") or {}), **(facts.get("engine_args") or {})}
    return {str(key).lstrip("-").replace("-", "_"): value for key, value in given.items()}
