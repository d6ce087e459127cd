"""Tests of how a GSM8K answer is read and judged: by the published rule, quirks included, and corrected."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evalswap.benchmarks.gsm8k_rules import (
    corrected_correct,
    corrected_prediction,
    gold_answer,
    published_correct,
    published_prediction,
)

REAL = Path(__file__).parents[2] / "shared" / "data" / "gsm8k" / "test.jsonl"
DEMO = Path(__file__).parents[1] / "src" / "evalswap" / "benchmarks" / "data" / "demo.jsonl"


def read_rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


# ---- gold


@pytest.mark.parametrize(
    ("answer", "gold"),
    [
        ("1 + 1 = 2\n#### 2", "2"),
        ("#### 1,234,567", "1234567"),
        ("#### -10", "-10"),
        ("#### 1 #### 2", "1 #### 2"),
    ],
)
def test_gold_answer(answer: str, gold: str) -> None:
    assert gold_answer(answer) == gold


@pytest.mark.parametrize("answer", ["", "42", "####42", "### 42"])
def test_gold_answer_needs_the_mark(answer: str) -> None:
    with pytest.raises(ValueError, match="no '#### '"):
        gold_answer(answer)


# ---- published


@pytest.mark.parametrize(
    ("text", "prediction"),
    [
        ("so 5 and then 12.", "12"),
        ("it is 12.50", "12.50"),
        ("it is -3", "-3"),
        ("no number", "NULL"),
        ("", "NULL"),
        ("The answer is 7.\nQuestion: Tom has 9", "7"),
        ("Question: Tom has 9", "NULL"),
        # quirks that the published numbers contain
        ("it is 1,234", "234"),
        ("it is 10-7", "-7"),
        ("it is 3/4", "4"),
        (r"\boxed{5} in 2 steps", "2"),
        ("it is 5:30", "30"),
    ],
)
def test_published_prediction(text: str, prediction: str) -> None:
    assert published_prediction(text) == prediction


@given(st.text() | st.text("0123456789.-, Question:"))
def test_published_prediction_is_its_regex(text: str) -> None:
    numbers = re.findall(r"\-?\d+\.\d+|\-?\d+", text.split("Question:")[0])
    assert published_prediction(text) == (numbers[-1] if numbers else "NULL")


@pytest.mark.parametrize(
    ("prediction", "gold", "correct"),
    [
        ("12", "12", True),
        ("12.0", "12", True),
        ("12.0000001", "12", True),
        ("12.00001", "12", False),
        ("-7", "7", False),
        ("NULL", "12", False),
        ("12.5", "12.5", True),  # the same text
        ("12.50", "12.5", False),  # int() refuses the gold
        ("nan", "12", False),
        ("9" * 400, "12", False),
        ("1.0", "9" * 400, False),
        ("1.0", "9" * 5000, False),
    ],
)
def test_published_correct(prediction: str, gold: str, correct: bool) -> None:
    assert published_correct(prediction, gold) is correct


@given(st.text(), st.text())
def test_published_correct_never_raises(prediction: str, gold: str) -> None:
    published_correct(prediction, gold)


# ---- corrected


@pytest.mark.parametrize(
    ("text", "prediction"),
    [
        ("", None),
        ("no number", None),
        ("it is 42.", "42"),
        ("it is 12.00", "12.00"),
        ("it is .5", ".5"),
        ("wait...5", "5"),
        # the published quirks
        ("it is 1,234", "1234"),
        ("it is 10-7", "7"),
        ("it is 3/4", "3/4"),
        ("there are 31 pages in 28 / 4", "4"),
        (r"\boxed{12 / 4} 1", "12/4"),
        # commas
        ("it is $1,234,567.89.", "1234567.89"),
        ("it is 1,23", "23"),
        ("they are 1,2,345", "345"),
        ("they are 1,234,56", "56"),
        ("they are 1234,567", "567"),
        ("they are 0,234", "234"),
        # signs
        ("it is -7", "-7"),
        ("it is −7", "-7"),
        ("it is -$7", "-7"),
        ("it is $-7", "-7"),
        ("x=-7", "-7"),
        ("10−7", "7"),
        ("(3)-7", "7"),
        ("x-7", "7"),
        ("the total--7", "7"),
        # money, percent, units
        ("it is €12", "12"),
        ("it is 12€", "12"),
        (r"it is \$12", "12"),
        ("it is 50%", "50"),
        ("it is 7kg", "7"),
        ("it is **18**.", "18"),
        ("it is 25 cm^2", "25"),
        ("it starts at 5:30", "30"),
        # where the answer is
        (r"\boxed{5} in 2 steps", "5"),
        (r"\boxed{4}, no, \boxed{5} in 2 steps", "5"),
        (r"I put it within \boxed{}: 5", "5"),
        (r"\boxed{5} is what I put within \boxed{}", "5"),
        (r"\boxed{5}" + "\n#### 6\n7", "5"),
        ("#### 6\nin 7 steps", "6"),
        ("#### **$1,600**", "1600"),
        ("#### 12.\nDone in 3.", "12"),
        ("#### 1. Find the total\n5 + 6 = 11", "11"),
        ("#### 12. Find the total\n5 + 6 = 11", "11"),
        ("#### Step 2\n5 + 6 = 11", "11"),
        ("It is 7.\nQuestion: Tom has 9", "7"),
        (r"It is 7. Question: \boxed{9}", "7"),
        (r"the box is not closed: \boxed{42", "42"),
        ("no backslash: boxed{5} in 2 steps", "5"),
        # inside the box
        (r"\boxed{ 42 } 1", "42"),
        (r"\boxed {42} 1", "42"),
        (r"\boxed{\$1,234} 1", "1234"),
        (r"\boxed{-\$5} 1", "-5"),
        (r"\boxed{1{,}234} 1", "1234"),
        (r"\boxed{1\,234} 1", "1234"),
        (r"\boxed{1,\!234} 1", "1234"),
        ("\\boxed{1\u202f234} 1", "1234"),
        (r"\boxed{42\text{ apples}} 1", "42"),
        (r"\boxed{42\,\text{km}} 1", "42"),
        (r"\boxed{12\text{ boxes of 6}} 1", "12"),
        (r"\boxed{\text{42 apples}} 1", "42"),
        (r"\boxed{\mathbf{42}} 1", "42"),
        (r"\boxed{25\text{ cm}^2} 1", "25"),
        (r"\boxed{25 m^{2}} 1", "25"),
        (r"\boxed{90^\circ} 1", "90"),
        (r"\boxed{75\%} 1", "75"),
        (r"\boxed{x = 5} 1", "5"),
        (r"\boxed{3 + 4 = 7} 1", "7"),
        (r"\boxed{\frac{3}{4}} 1", "3/4"),
        (r"\boxed{-\dfrac{3}{4}} 1", "-3/4"),
        (r"\boxed{\frac34} 1", "3/4"),
        (r"\boxed{1\frac{1}{2}} 1", "1/2"),
        (r"\boxed{\boxed{5}} 1", "5"),
        (r"\boxed{\{5\}} 1", "5"),
        (r"{ \boxed{{5}{6}} 1", "6"),
    ],
)
def test_corrected_prediction(text: str, prediction: str | None) -> None:
    assert corrected_prediction(text) == prediction


@pytest.mark.parametrize(
    ("text", "gold", "correct"),
    [
        ("it is 12.00", "12", True),
        ("it is 12.0000001", "12", False),
        ("it is 3/4", "0.75", True),
        ("it is 3/4", "4", False),
        (r"\boxed{\frac{12}{4}}", "3", True),
        ("it is 1.5/0.5", "3", True),
        ("it is 3/0", "3", False),
        ("it is -0", "0", True),
        ("it is 1,234", "1,234", True),
        ("it is 42", " 42\n", True),
        ("it is ٤٢", "42", True),
        ("it is 0.1", ".1", True),
        ("no number", "12", False),
        ("no number", "", False),
        ("it is 12", "twelve", False),
        ("it is " + "9" * 5000, "9", False),
        ("it is 9", "9" * 5000, False),
        ("it is 9", "9e999999999", False),
    ],
)
def test_corrected_correct(text: str, gold: str, correct: bool) -> None:
    assert corrected_correct(text, gold) is correct


@pytest.mark.parametrize(
    ("text", "gold"),
    [("it is 1,234", "1234"), ("so 10-7", "7"), ("it is 3/4", "0.75"), (r"\boxed{5} in 2", "5")],
)
def test_the_quirks_cost_the_published_rule_a_right_answer(text: str, gold: str) -> None:
    assert corrected_correct(text, gold)
    assert not published_correct(published_prediction(text), gold)


FORMS = [
    "so 3 of them give {n}",
    "so 3 of them give {n:,}",
    "so 3 of them give {n:,}.",
    "so 3 of them give **{n:,}**",
    "so 3 of them give ${n:,}.00 in all",
    "so 3 of them give {n:,}€",
    "so 3 of them give {n:,}kg",
    "#### {n:,}\nin 3 steps",
    "#### ${n:,}\nin 3 steps",
    r"\boxed{{{n}}} in 3 steps",
    r"\boxed{{{n:,}}} in 3 steps",
    r"\boxed{{\${n:,}}} in 3 steps",
    r"\boxed{{{n:,}\text{{ boxes of 3}}}} in 3 steps",
    r"\boxed{{\text{{{n:,} apples}}}} in 3 steps",
    r"\[\boxed{{x = {n:,}.0\%}}\] in 3 steps",
    r"\boxed{{\frac{{{n:,}}}{{1}}}} in 3 steps",
]


@pytest.mark.parametrize("form", FORMS)
@given(n=st.integers())
def test_any_integer_is_read_in_every_form(form: str, n: int) -> None:
    assert corrected_correct(form.format(n=n), str(n))
    assert not corrected_correct(form.format(n=n), str(n + 1))


@pytest.mark.parametrize("comma", ["{,}", r"\,", r",\!", "\u2009", "\u202f"])
@given(n=st.integers())
def test_any_integer_is_read_with_every_thousands_mark(comma: str, n: int) -> None:
    digits = f"{n:,}".replace(",", comma)
    assert corrected_correct(rf"\boxed{{{digits}}} in 3 steps", str(n))
    assert corrected_correct(f"so 3 of them give {digits}", str(n))


@given(st.text() | st.text(r"\boxedfractext{}#0123456789,.$/%-^ ") | st.text("٤٣²½−🙂\x00\ud800\n{}1"), st.text())
def test_corrected_never_raises(text: str, gold: str) -> None:
    corrected_correct(text, gold)
    prediction = corrected_prediction(text)
    if prediction is not None:
        corrected_correct(prediction, prediction)


HOSTILE = [
    *("{", "}", "9", "1,", "123,", ",", "-", "$", ".", "1.", "1/", "1 ", " ", "#", "#### ", "#### 1"),
    *("#### 1. a ", "^2", "a^{", r"\boxed{", r"\boxed{}", r"\boxed{1}", r"\boxed{a}", "boxed  ", r"\frac{"),
    *(r"\frac{1}{", r"\frac", "\\", r"\text{", r"\text", r"1\,", "1{,}", r"\!", "Question", "\u0664"),
]


def seconds_to_judge(text: str) -> float:
    before = time.process_time()
    corrected_correct(text, "1")
    published_correct(published_prediction(text), "1")
    return time.process_time() - before


@pytest.mark.parametrize("unit", HOSTILE)
def test_hostile_text_takes_linear_time(unit: str) -> None:
    for start in ("", r"\boxed{", "1", r"\frac{1}{"):
        for end in ("", "}x"):
            assert seconds_to_judge(start + unit * (100_000 // len(unit)) + end) < 1


@pytest.mark.parametrize("unit", ["{", "9", ",", "1,", "123,", "$", r"\boxed{}"])
def test_a_megabyte_is_judged_quickly(unit: str) -> None:
    assert seconds_to_judge(unit * (1_000_000 // len(unit))) < 3  # quadratic time would be many minutes


# ---- real rows and ours


@pytest.mark.skipif(not REAL.exists(), reason="the GSM8K rows are not here")
def test_every_real_solution_is_right_by_its_own_gold() -> None:
    rows = read_rows(REAL)
    assert len(rows) == 1319
    for row in rows:
        gold = gold_answer(row["answer"])
        assert str(int(gold)) == gold
        assert corrected_correct(row["answer"], gold), row["answer"]


def test_the_demo_rows_are_whole_and_distinct() -> None:
    rows = read_rows(DEMO)
    assert len(rows) == len({row["question"] for row in rows}) == 64
    for row in rows:
        assert set(row) == {"question", "answer"}
        gold = gold_answer(row["answer"])
        assert int(gold) >= 0
        assert corrected_correct(row["answer"], gold)
    assert any("," in row["answer"].partition("#### ")[2] for row in rows)
