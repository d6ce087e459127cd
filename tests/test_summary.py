"""The summary table: what a config's summarizer asks for, and honest cells."""

from __future__ import annotations

import pytest
from rich.console import Console

from evalswap.config.specs import DatasetSpec
from evalswap.errors import ConfigError
from evalswap.reporting import summary
from evalswap.scoring.scorer import Score


def dataset(abbr: str) -> DatasetSpec:
    return DatasetSpec.model_validate(
        {
            "type": "GSM8KDataset",
            "abbr": abbr,
            "version": "abc123",
            "reader_cfg": {"input_columns": ["question"]},
            "infer_cfg": {"prompt_template": {"template": {"round": [{"role": "HUMAN", "prompt": "{question}"}]}}},
            "eval_cfg": {"evaluator": {"type": "Gsm8kEvaluator"}},
        }
    )


def score(first: float, second: float, answered: int = 10, total: int = 10) -> Score:
    return Score({"accuracy": first, "corrected": second}, total, answered)


DATASETS = [dataset("a"), dataset("b")]
SCORES = {"m": {"a": score(50, 60), "b": score(100, 90)}, "n": {"a": score(40, 45, answered=9)}}


def table(config: dict[str, object]) -> list[list[str]]:
    return summary.table(DATASETS, ["m", "n"], SCORES, summary.parse_summarizer(config, ["a", "b"]))


def test_every_metric_in_the_order_of_the_config() -> None:
    assert table({}) == [
        ["dataset", "version", "metric", "mode", "m", "n"],
        ["a", "abc123", "accuracy", "gen", "50.00", "40.00 (partial: 9 of 10)"],
        ["a", "abc123", "corrected", "gen", "60.00", "45.00 (partial: 9 of 10)"],
        ["b", "abc123", "accuracy", "gen", "100.00", "-"],
        ["b", "abc123", "corrected", "gen", "90.00", "-"],
    ]


def test_wanted_rows_only_and_in_that_order() -> None:
    rows = table({"dataset_abbrs": ["b", ["a", "corrected"], ["a", "f1"], "elsewhere"]})
    assert [row[:3] for row in rows[1:]] == [
        ["b", "abc123", "accuracy"],
        ["a", "abc123", "corrected"],
        ["a", "-", "f1"],
        ["elsewhere", "-", "-"],
    ]


def test_groups_average_whole_scores_only() -> None:
    groups = [
        {"name": "plain", "subsets": ["a", "b"]},
        {"name": "heavy", "subsets": ["a", "b"], "weights": {"a": 3, "b": 1}},
        {"name": "other", "subsets": [["a", "corrected"], ["b", "corrected"]]},
    ]
    rows = table({"summary_groups": groups, "dataset_abbrs": ["plain", "heavy", "other"]})
    assert [row[4] for row in rows[1:]] == ["75.00", "62.50", "75.00"]
    assert {row[5] for row in rows[1:]} == {"-"}  # n answered a in part and b not at all


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"dataset_abbr": []}, "summarizer.dataset_abbr: unknown key"),
        ({"summary_groups": [{"name": "x"}]}, "'name' and 'subsets'"),
        ({"summary_groups": [{"name": "x", "subsets": [], "std": True}]}, r"summary_groups\[0\].std"),
        ({"dataset_abbrs": [1]}, "neither"),
    ],
)
def test_what_cannot_be_shown_is_an_error(config: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        table(config)


def test_the_printed_table_keeps_every_cell() -> None:
    console = Console(record=True, width=120)
    summary.show(console, table({}))
    text = console.export_text()
    assert "100.00" in text
    assert "partial: 9 of 10" in text


def test_names_are_no_markup() -> None:
    console = Console(record=True, width=120)
    summary.show(console, [[*summary.HEADER, "llama[awq]", "smol_base[/]"], ["a[b]", "1", "acc[x]", "gen", "1", "2"]])
    text = console.export_text()
    for name in ("llama[awq]", "smol_base[/]", "a[b]", "acc[x]"):
        assert name in text
