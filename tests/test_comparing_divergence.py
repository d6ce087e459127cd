"""Where outputs part, and the class of each difference."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from stored_runs import EOS, FACTS, SAMPLING

from evalswap.comparing.divergence import NEAR_TIE, Differ, Logprobs, Question, summed_up
from evalswap.comparing.outputs import Output, Side
from evalswap.comparing.records import Difference
from evalswap.comparing.timing import BINS, busy_seconds, throughput
from evalswap.store import pack_ids

PROMPT = (1, 5, 6)


def _output(
    ids: tuple[int, ...] | None, text: str = "", finish: str = "stop", answer: str = "5", right: bool = True,
    prompt: tuple[int, ...] = PROMPT,
) -> Output:  # fmt: skip
    text = text or " ".join(map(str, ids or ()))
    return Output(0, "5", "How many?", pack_ids(prompt), ids, text, finish, 4, None, 0.0, answer, right)


def _side(output: Output, dtype: str = "bfloat16", **sampling: object) -> Side:
    facts = {**FACTS, "dtype": dtype, "sampling": {"gsm8k": {**SAMPLING, **sampling}}}
    return Side(Path("run"), "tiny", "gsm8k", "accuracy", None, {0: output}, record={"facts": facts})


def _difference(
    a: Output, b: Output, gap: float | None = None, dtype: str = "bfloat16", **sampling: object
) -> Difference:
    differ = Differ(_side(a, dtype, **sampling), _side(b, dtype, **sampling), lambda token: f"<{token}>")
    assert differ.differs(0)
    parting = differ.part(0)
    return differ.difference(0, parting, None if gap is None else Logprobs(-0.5, -0.5 - gap))


def test_the_first_differing_token_and_what_the_reference_is_asked() -> None:
    a, b = _output((11, 12, 13, EOS)), _output((11, 14, 13, 15, EOS))
    parting = Differ(_side(a), _side(b), lambda token: f"<{token}>").part(0)
    assert (parting.first.position, parting.first.unit) == (1, "token")
    assert (parting.first.reference_token, parting.first.other_token) == ("<12>", "<14>")
    assert parting.question == Question(0, (*PROMPT, 11), 12, 14)


def test_without_ids_texts_are_compared_by_characters() -> None:
    difference = _difference(_output(None, "It is 5."), _output((1,), "It is 6."))
    assert (difference.first.position, difference.first.unit) == (6, "character")
    assert (difference.first.reference_token, difference.first.other_token) == ("5", "6")
    assert difference.kind == "unexplained"


@pytest.mark.parametrize(("dtype", "near"), NEAR_TIE.items())
def test_a_near_tie_is_one_that_rounding_can_decide(dtype: str, near: float) -> None:
    a, b = _output((11, 12, EOS)), _output((11, 13, EOS))
    assert _difference(a, b, near * 0.9, dtype).kind == "near-tie"
    assert _difference(a, b, near * 1.1, dtype).kind == "unexplained"
    assert _difference(a, b, near * 0.9, dtype).first.gap == pytest.approx(near * 0.9)


@pytest.mark.parametrize("sampling", [{"temperature": 0.7}, {"presence_penalty": 0.5}, {"frequency_penalty": -0.1}])
def test_a_gap_that_did_not_decide_makes_no_near_tie(sampling: dict[str, Any]) -> None:
    a, b = _output((11, 12, EOS)), _output((11, 13, EOS))
    assert _difference(a, b, 0.01).kind == "near-tie"
    assert _difference(a, b, 0.01, **sampling).kind == "unexplained"
    for sides in ((_side(a, **sampling), _side(b)), (_side(a), _side(b, **sampling))):
        assert "no difference is called a near-tie" in str(Differ(*sides).no_near_ties)
    assert Differ(_side(a), _side(b)).no_near_ties is None


def test_a_stop_id_that_min_new_tokens_forbids_is_no_near_tie() -> None:
    a, b = _output((11, 12, 13, EOS)), _output((11, EOS, 12, EOS))
    assert _difference(a, b, 0.01, min_new_tokens=3).kind == "unexplained"
    assert _difference(a, b, 0.01, min_new_tokens=1).kind == "near-tie"


def test_an_end_that_was_nearly_chosen_is_a_near_tie_and_another_is_stop_handling() -> None:
    a, b = _output((11, EOS)), _output((11, 13, EOS))
    assert Differ(_side(a), _side(b)).part(0).question == Question(0, (*PROMPT, 11), EOS, 13)
    assert _difference(a, b, 0.01).kind == "near-tie"
    assert _difference(a, b, 2.0).kind == "stop"
    assert _difference(a, b).kind == "stop"


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (_output((11, 12), finish="length"), _output((11, 12, 13), finish="length")),
        (_output((11, 12), finish="length"), _output((11, 12, 13, EOS))),
        (_output(None, "It is 5", finish=""), _output(None, "It is 5. And", finish="")),
    ],
)
def test_one_output_that_goes_on_where_the_other_ends_is_stop_handling(a: Output, b: Output) -> None:
    assert _difference(a, b).kind == "stop"


def test_an_engine_that_does_not_return_the_stop_id_is_not_different() -> None:
    a, b = _output((11, 12, EOS), "x"), _output((11, 12), "x")
    differ = Differ(_side(a), _side(b))
    assert differ.identical(0)
    assert not differ.differs(0)
    longer = _output((11, 12, 13), "x y")
    assert Differ(_side(b), _side(longer)).part(0).question == Question(0, (*PROMPT, 11, 12), EOS, 13)


def test_stop_ids_that_min_new_tokens_protects_end_nothing() -> None:
    a, b = _output((EOS, 12, EOS)), _output((EOS, 13, EOS))
    assert Differ(_side(a), _side(b)).identical(0)
    assert not Differ(_side(a, min_new_tokens=1), _side(b, min_new_tokens=1)).identical(0)


def test_other_prompt_ids_are_the_cause_and_nothing_is_asked() -> None:
    a, b = _output((11, EOS)), _output((12, EOS), prompt=(1, 1, 5, 6))
    assert Differ(_side(a), _side(b)).part(0).question is None
    assert _difference(a, b).kind == "ids"


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (_output((11, EOS), "It is 5.", answer="5"), _output((11, EOS), "It is 5.", answer="NULL", right=False)),
        (_output((11, EOS), "It is 5."), _output((11, EOS), "It is  5.", answer="", right=False)),
        (_output((11, 12, EOS), "So.\nIt is 1,234."), _output((11, 12, 13, EOS), "So.\nIt is 1,234.", answer="234")),
    ],
)
def test_the_same_answer_read_otherwise_is_extraction(a: Output, b: Output) -> None:
    assert _difference(a, b).kind == "extraction"


ids = st.lists(st.integers(3, 6), max_size=8).map(tuple)


@given(ids, ids, st.booleans(), st.booleans())
def test_outputs_part_where_they_first_differ(
    ours: tuple[int, ...], theirs: tuple[int, ...], ours_ends: bool, theirs_ends: bool
) -> None:
    a = _output(ours + (EOS,) * ours_ends, finish="stop" if ours_ends else "length")
    b = _output(theirs + (EOS,) * theirs_ends, finish="stop" if theirs_ends else "length")
    differ = Differ(_side(a), _side(b), str)
    assert differ.identical(0) == (ours == theirs)
    if ours == theirs:
        return
    parting = differ.part(0)
    place = parting.first.position
    assert ours[:place] == theirs[:place]
    assert ours[place : place + 1] != theirs[place : place + 1]
    assert parting.ended == (place in (len(ours), len(theirs)))
    if parting.question is not None:
        assert parting.question.before == PROMPT + ours[:place]
        assert parting.question.reference_token != parting.question.other_token


@pytest.mark.parametrize(
    ("compared", "identical", "counts", "line"),
    [
        (1319, 1262, {"near-tie": 55, "stop": 2}, "57 of 1,319 outputs differ: 55 at near-ties, 2 at stop handling"),
        (8, 8, {}, "all 8 outputs are identical"),
        (8, 8, {"extraction": 1}, "all 8 outputs are identical; 1 by extraction"),
        (0, 0, {}, "no row was answered by both"),
    ],
)
def test_one_line_sums_it_up(compared: int, identical: int, counts: Mapping[str, int], line: str) -> None:
    assert summed_up(compared, identical, counts) == line


# ---- time


def _timed(*spans: tuple[float, float, int]) -> list[Output]:
    return [
        Output(i, "", "", None, None, "", "stop", tokens, start, seconds)
        for i, (start, seconds, tokens) in enumerate(spans)
    ]


def test_time_is_counted_once_and_pauses_not_at_all() -> None:
    assert busy_seconds(_timed((100, 10, 5), (105, 10, 5))) == 15
    assert busy_seconds(_timed((100, 10, 5), (5000, 10, 5))) == 20  # killed, and gone on later
    assert busy_seconds([Output(0, "", "", None, None, "", "", 0, None, 0.0)]) is None
    assert throughput([]) == ()


spans = st.lists(
    st.tuples(st.floats(0, 1e4), st.floats(0.01, 100), st.integers(1, 1000)), min_size=1, max_size=20
)  # fmt: skip


@given(spans)
def test_a_throughput_curve_holds_every_token(drawn: list[tuple[float, float, int]]) -> None:
    outputs = _timed(*drawn)
    curve = throughput(outputs)
    assert len(curve) == BINS
    seconds = busy_seconds(outputs)
    assert seconds is not None
    width = seconds / BINS
    assert sum(rate * width for _, rate in curve) == pytest.approx(sum(tokens for *_, tokens in drawn), rel=0.01)
    assert curve[0][0] == pytest.approx(width / 2, rel=1e-3)
