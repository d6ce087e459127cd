"""The contract: every broken item is found, named first, and keeps a difference from being called noise."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from stored_runs import SAMPLING, Run, changed, numbered, write_opencompass, write_run

from evalswap.comparing.contract import SAMPLING as SAMPLING_NAMES
from evalswap.comparing.contract import broken, check_contract
from evalswap.comparing.outputs import Side
from evalswap.comparing.records import ContractItem
from evalswap.comparing.sides import read_sides
from evalswap.comparing.statistics import Pairs, statistics_of
from evalswap.comparing.verdict import judge, verdict_words


def _side(tmp_path: Path, name: str, **changes: Any) -> Side:
    rows = changes.pop("rows", numbered(3))
    (side,) = read_sides(write_run(tmp_path, Run(name, rows, **changes)))
    return side


def _contract(tmp_path: Path, **changes: Any) -> dict[str, ContractItem]:
    reference, other = _side(tmp_path, "20260101_000000"), _side(tmp_path, "20260101_000001", **changes)
    items = check_contract(reference, other, [0, 1, 2])
    assert len({item.item for item in items}) == len(items)
    return {item.item: item for item in items}


def test_equal_runs_keep_every_item(tmp_path: Path) -> None:
    assert [item.item for item in _contract(tmp_path).values() if item.kept is not True] == []


@pytest.mark.parametrize(
    ("facts", "item", "systematic"),
    [
        ({"dtype": "float32"}, "dtype", True),
        ({"model": "def456"}, "model files", True),
        ({"peft_path": "./adapter"}, "adapter", True),
        ({"chat_template_sha256": "0000"}, "chat template", True),
        ({"prompts": "messages; template applied by the server"}, "prompts go as", True),
        ({"extra_body": {"temperature": 1, "max_tokens": 3}}, "fields added to each request", True),
        ({"engine_args": {"kv-cache-dtype": "fp8"}}, "KV cache", True),
        ({"engine_args": {"quant_policy": 8}}, "KV cache", True),
        ({"engine_args": {"quantization": "fp8"}}, "weight quantisation", True),
        ({"model_kwargs": {"load_in_8bit": "True"}}, "weight quantisation", True),
        ({"engine_args": {"speculative_config": "{}"}}, "speculative decoding", True),
        ({"engine_args": {"--enable-prefix-caching": True}}, "prefix cache", False),
        ({"model_kwargs": {"attn_implementation": "eager"}}, "attention kernels", False),
        ({"device": "cuda"}, "device", False),
        ({"num_gpus": 2}, "number of GPUs", False),
    ],
)
def test_each_fact_that_changes_numbers_is_named(
    tmp_path: Path, facts: Mapping[str, Any], item: str, systematic: bool
) -> None:
    contract = _contract(tmp_path, facts=facts)
    found = broken(contract.values())
    assert [(one.item, one.systematic) for one in found] == [(item, systematic)]
    assert next(iter(contract.values())) == found[0]  # the broken ones come first


def test_other_names_at_servers_are_told_whole(tmp_path: Path) -> None:
    of_one, of_other = ({"servers": ["http://h/v1"], "model": f"a-long-name-of-a-{kind}"} for kind in ("cat", "dog"))
    reference = _side(tmp_path, "20260101_000000", facts=of_one)
    other = _side(tmp_path, "20260101_000001", facts=of_other)
    (item,) = [item for item in check_contract(reference, other, [0, 1, 2]) if item.kept is None]
    assert item.item == "model files (a-long-name-of-a-cat and a-long-name-of-a-dog at their servers)"
    assert (item.reference, item.other) == ("a-long-name-of-a-cat", "a-long-name-of-a-dog")
    same = _side(tmp_path, "20260101_000002", facts=of_one)  # a name is no proof either
    assert [item.item for item in check_contract(reference, same, [0, 1, 2]) if item.kept is None] == ["model files"]


@pytest.mark.parametrize("facts", [{"engine_args": {"kv_cache_dtype": "auto", "enable_prefix_caching": False}}])
def test_flags_that_change_nothing_break_nothing(tmp_path: Path, facts: Mapping[str, Any]) -> None:
    assert broken(_contract(tmp_path, facts=facts).values()) == []


@pytest.mark.parametrize("field", [name for name in SAMPLING if name not in ("top_p", "top_k", "min_p", "seed")])
def test_each_field_of_the_sampling_is_looked_at(tmp_path: Path, field: str) -> None:
    other = {"stop": ["\n\n"], "stop_token_ids": [2, 0]}.get(field, 7)
    found = broken(_contract(tmp_path, sampling={field: other}).values())
    assert [item.item for item in found] == [SAMPLING_NAMES[field]]


def test_every_field_of_a_sampling_block_has_a_name() -> None:
    assert set(SAMPLING_NAMES) == set(SAMPLING)


def test_the_order_of_stops_breaks_nothing(tmp_path: Path) -> None:
    reference = _side(tmp_path, "20260101_000000", sampling={"stop_token_ids": [2, 0]})
    other = _side(tmp_path, "20260101_000001", sampling={"stop_token_ids": [0, 2]})
    assert broken(check_contract(reference, other, [0, 1, 2])) == []


def test_drawing_fields_matter_only_where_something_is_drawn(tmp_path: Path) -> None:
    assert broken(_contract(tmp_path / "greedy", sampling={"top_k": 5}).values()) == []
    drawn = {"temperature": 0.7, "top_k": 50}
    reference = _side(tmp_path, "20260101_000000", sampling=drawn)
    other = _side(tmp_path, "20260101_000001", sampling={**drawn, "top_k": 5})
    items = {item.item: item for item in check_contract(reference, other, [0])}
    assert items["top_k"].kept is False
    assert "differ by chance" in items["greedy answers"].note


def test_other_prompt_ids_are_counted(tmp_path: Path) -> None:
    rows = changed(numbered(3), {1: {"prompt_ids": (1, 1, 5, 101)}})  # a doubled BOS
    item = _contract(tmp_path, rows=rows)["prompt token ids"]
    assert (item.kept, item.note) == (False, "1 of 3 prompts differ")


def test_what_a_side_does_not_tell_is_neither_kept_nor_broken(tmp_path: Path) -> None:
    reference = _side(tmp_path, "20260101_000000")
    old = write_opencompass(tmp_path / "old", "m", "gsm8k", [(str(i), str(i)) for i in range(3)], 50.0)
    items = {item.item: item for item in check_contract(reference, read_sides(old)[0], [0, 1, 2])}
    assert items["dataset"].kept is True  # every question and right answer is the same text
    unknown = ("prompt token ids", "model files", "dtype", "sampling and stops", "chat template", "KV cache", "scorer")
    assert [name for name in unknown if items[name].kept is not None] == []
    assert broken(items.values()) == []


def test_a_server_s_word_is_no_proof_of_the_same_files(tmp_path: Path) -> None:
    item = _contract(tmp_path, facts={"model": "abc123", "servers": ["http://h/v1"]})["model files"]
    assert item.kept is None


# ---- what the verdict makes of it

BROKEN = ContractItem("stop and EOS ids", "2", "2, 0", kept=False)
ROUNDING = ContractItem("device", "cpu", "cuda", kept=False, systematic=False)
DIFFERENT, EQUAL, OPEN = Pairs(900, 60, 10, 349), Pairs(900, 2, 2, 415), Pairs(120, 5, 4, 71)


def test_a_known_cause_comes_first_and_is_not_called_noise() -> None:
    for pairs in (DIFFERENT, EQUAL, OPEN):
        _, reasons = judge(statistics_of(pairs, 1.0), (ROUNDING, BROKEN), 1.0)
        assert "stop and EOS ids (2 against 2, 0)" in reasons[0]
        assert "is not noise" in reasons[0]
        assert "device" in reasons[1]
    assert "No setting" in judge(statistics_of(DIFFERENT, 1.0), (ROUNDING,), 1.0)[1][-1]
    assert "No setting" not in judge(statistics_of(DIFFERENT, 1.0), (BROKEN,), 1.0)[1][-1]


def test_verdicts_are_the_fixed_words() -> None:
    found = {pairs: judge(statistics_of(pairs, 1.0), (), 1.0)[0] for pairs in (DIFFERENT, EQUAL, OPEN)}
    words = [verdict_words(verdict, statistics_of(pairs, 1.0)) for pairs, verdict in found.items()]
    assert words[:2] == ["different", "equivalent"]
    needed = statistics_of(OPEN, 1.0).needed_rows
    assert words[2] == f"inconclusive (needs n≈{needed:,})"


def test_a_small_sure_difference_within_the_margin_is_equivalent_and_said() -> None:
    verdict, reasons = judge(statistics_of(Pairs(9000, 90, 40, 4870), 1.0), (), 1.0)
    assert verdict == "equivalent"
    assert "A difference smaller than that is there" in reasons[-1]
