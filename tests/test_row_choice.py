"""``reader_cfg.test_range`` chooses the rows that OpenCompass would ask, in its order."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evalswap.benchmarks.loading import load_rows
from evalswap.benchmarks.registry import Rows, loader
from evalswap.benchmarks.row_choice import choose
from evalswap.config.specs import DatasetSpec
from evalswap.errors import ConfigError, DataError

NUMBER = st.none() | st.integers(-60, 60)


@loader("CountedRows")
def counted(path: str | None = None) -> Rows:
    return Rows(numbered(int(path or 0)), "numbers", "0" * 64)


def numbered(total: int) -> list[Mapping[str, Any]]:
    return [{"number": number} for number in range(total)]


def numbers(rows: Sequence[Mapping[str, Any]]) -> list[int]:
    return [row["number"] for row in rows]


def dataset(total: int, test_range: object) -> DatasetSpec:
    template = {"type": "PromptTemplate", "template": "{number}"}
    return DatasetSpec.model_validate(
        {
            "type": "CountedRows", "abbr": "numbers", "path": str(total),
            "reader_cfg": {"input_columns": ["number"], "output_column": "number", "test_range": test_range},
            "infer_cfg": {
                "prompt_template": template,
                "retriever": {"type": "ZeroRetriever"},
                "inferencer": {"type": "GenInferencer"},
            },
            "eval_cfg": {"evaluator": {"type": "Gsm8kEvaluator"}},
        }
    )  # fmt: skip


def opencompass_rule(total: int, size: float | int) -> list[int]:
    """The rule for numbers, in words: all, or the head of a shuffle whose seed is how many are taken."""
    everything = [*range(total)]
    if size <= 0 or size >= total:
        return everything
    taken = size if size >= 1 else int(size * total)
    random.Random(taken).shuffle(everything)
    return everything[: int(taken)]


@given(total=st.integers(1, 200), size=st.integers(-5, 210) | st.floats(-2, 1, exclude_max=True))
def test_a_number_draws_the_rows_that_opencompass_draws(total: int, size: float | int) -> None:
    assert numbers(choose(numbered(total), size, "here")) == opencompass_rule(total, size)


def test_the_draw_is_the_same_everywhere() -> None:
    """Written down from random.Random(100) and Random(3) on their own, for GSM8K's 1319 rows and for ten."""
    assert numbers(choose(numbered(1319), 100, ""))[:5] == [674, 1132, 486, 1178, 560]
    assert numbers(choose(numbered(10), 0.3, "")) == numbers(choose(numbered(10), 3, "")) == [1, 5, 6]


@given(total=st.integers(0, 80), cuts=st.lists(st.tuples(NUMBER, NUMBER, NUMBER.filter(lambda n: n != 0)), max_size=3))
def test_a_text_is_slices_of_a_list(total: int, cuts: list[tuple[int | None, int | None, int | None]]) -> None:
    text, wanted = "", [*range(total)]
    for cut in cuts:
        text += "[" + ":".join("" if part is None else str(part) for part in cut) + "]"
        wanted = wanted[slice(*cut)]
    assert numbers(choose(numbered(total), text, "here")) == wanted


@pytest.mark.parametrize("text", ["", " ", "[:]", " [ : ] ", "[::]", "[0:]"])
def test_no_range_is_all_rows(text: str) -> None:
    assert numbers(choose(numbered(5), text, "here")) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    "wrong",
    ["5", "0:5", "[]", "[a:]", "[:1.5]", "[1,2]", "[::0]", "[1:2:3:4]", "[:5", ":5]", "[[:5]]", "[:5]x",
     "[:len(index_list)]", "+[1]", ".clear()", pytest.param("[:" + "9" * 5000 + "]", id="[:9…]"),
     10.0, 1.5, float("nan")],
)  # fmt: skip
def test_what_is_no_range_is_refused(wrong: str | float) -> None:
    with pytest.raises(ConfigError, match=r"^here: ") as caught:
        choose(numbered(20), wrong, "here")
    assert caught.value.hint is not None
    assert "[:100]" in caught.value.hint


@pytest.mark.parametrize(("text", "range_of_it"), [("[5]", "[5:6]"), ("[ -1 ]", "[-1:]"), ("[-2]", "[-2:-1]")])
def test_one_row_is_refused_with_its_range(text: str, range_of_it: str) -> None:
    rows = numbered(20)
    with pytest.raises(ConfigError, match="one row") as caught:
        choose(rows, text, "here")
    assert f"'{range_of_it}'" in (caught.value.hint or "")
    assert numbers(choose(rows, range_of_it, "here")) == [range(20)[int(text.strip("[ ]"))]]


@given(limit=st.integers(1, 60), size=st.integers(-1, 60))
def test_limit_is_the_first_of_what_the_range_leaves(limit: int, size: int) -> None:
    assert numbers(load_rows(dataset(50, size), limit).rows) == opencompass_rule(50, size)[:limit]


@pytest.mark.parametrize("test_range", ["[50:]", 0.01])
def test_a_range_without_rows_is_an_error(test_range: object) -> None:
    with pytest.raises(DataError, match="datasets 'numbers': no rows left"):
        load_rows(dataset(50, test_range), None)


def test_a_wrong_range_is_named_by_its_key() -> None:
    with pytest.raises(ConfigError, match=r"datasets 'numbers': reader_cfg.test_range: 'x' is no range"):
        load_rows(dataset(50, "x"), None)
