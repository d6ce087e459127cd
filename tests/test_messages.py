"""Tests of how a row and a template become messages or a base model's text."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evalswap.config.specs import TemplateCfg, parse_model
from evalswap.conversion import EngineOptions, convert
from evalswap.errors import ConfigError
from evalswap.plan import Role
from evalswap.prompting.messages import to_messages, to_text, turns
from evalswap.records import Message


def roles_of(kind: str, **keys: Any) -> tuple[Role, ...]:
    """Return the roles that a config of this type has."""
    return convert(parse_model({"type": kind, "path": "m", **keys}, "m"), EngineOptions()).prompt.roles


HF_CHAT = roles_of("HuggingFacewithChatTemplate")
API = roles_of(
    "OpenAISDK",
    meta_template={
        "round": [{"role": "HUMAN", "api_role": "HUMAN"}, {"role": "BOT", "api_role": "BOT", "generate": True}],
        "reserved_roles": [{"role": "SYSTEM", "api_role": "SYSTEM"}],
    },
)
BASE = roles_of("HuggingFaceBaseModel")
WRAPPED = roles_of(
    "VLLM",
    meta_template={
        "round": [
            {"role": "HUMAN", "begin": "USER: ", "end": "\n"},
            {"role": "BOT", "begin": "ASSISTANT: ", "end": "</s>\n", "generate": True},
        ]
    },
)


def template(*said: tuple[str, str], **sections: Any) -> TemplateCfg:
    """Return a template of one round: ("HUMAN", "text"), …"""
    return TemplateCfg.model_validate({"round": [{"role": role, "prompt": text} for role, text in said], **sections})


def messages(roles: tuple[Role, ...], *said: tuple[str, str], **sections: Any) -> list[tuple[str, str]]:
    made: tuple[Message, ...] = to_messages(turns(template(*said, **sections), {}, None), roles)
    return [(message["role"], message["content"]) for message in made]


def text(roles: tuple[Role, ...], *said: tuple[str, str]) -> str:
    return to_text(turns(template(*said), {}, None), roles)


def filled(prompt: str, row: dict[str, Any], output_column: str | None = None) -> str:
    (turn,) = turns(template(("HUMAN", prompt)), row, output_column)
    return turn["prompt"]


# ---- columns


@pytest.mark.parametrize(
    ("prompt", "row", "expected"),
    [
        ("{question}!", {"question": "1 + 1"}, "1 + 1!"),
        ("{q}{q}", {"q": "x"}, "xx"),
        ("{other} {question}", {"question": "x"}, "{other} x"),  # unknown braces stay
        ('{"a": {question}}', {"question": "x"}, '{"a": x}'),
        ('{"a": 1, "b": {}}', {"a": "x"}, '{"a": 1, "b": {}}'),
        ("\\boxed{} {{question}}", {"question": "x"}, "\\boxed{} {x}"),
        ("{question:>10} {question!r} {0}", {"question": "x"}, "{question:>10} {question!r} {0}"),
        ("%s $question {Question}", {"question": "x"}, "%s $question {Question}"),
        ("{a b} {a-b}", {"a b": 1, "a-b": 2}, "1 2"),
        ("{n} {none} {f}", {"n": 3, "none": None, "f": 0.5}, "3 None 0.5"),
        ("{hint}", {"question": "x", "hint": "any column of the row"}, "any column of the row"),
        ("{q}", {"q": "\\1 \\g<0>"}, "\\1 \\g<0>"),
    ],
)
def test_columns_are_replaced_literally(prompt: str, row: dict[str, Any], expected: str) -> None:
    assert filled(prompt, row) == expected


def test_what_a_row_says_is_not_taken_for_a_column() -> None:
    row = {"a": "{b}", "b": "{a} {answer}", "answer": "42"}
    assert filled("{a}|{b}", row, "answer") == "{b}|{a} {answer}"


@pytest.mark.parametrize("row", [{"question": "q", "answer": "42"}, {"question": "q"}])
def test_the_answer_never_enters_the_prompt(row: dict[str, str]) -> None:
    assert filled("Q: {question}\nA: {answer}", row, "answer") == "Q: q\nA: "


_text = st.text("ab{}x ", max_size=8)


@given(
    parts=st.lists(st.tuples(_text, st.sampled_from(["a", "b", "ab"])), max_size=4),
    values=st.tuples(_text, _text, _text),
)
def test_a_prompt_is_its_texts_with_the_values_between(
    parts: list[tuple[str, str]], values: tuple[str, str, str]
) -> None:
    row = dict(zip(("a", "b", "ab"), values, strict=True))
    parts = [(text.replace("{", "(").replace("}", ")"), column) for text, column in parts]
    prompt = "".join(f"{text}{{{column}}}" for text, column in parts)
    assert filled(prompt, row) == "".join(f"{text}{row[column]}" for text, column in parts)


@given(prompt=_text, value=_text)
def test_a_prompt_without_columns_stays_as_it_is(prompt: str, value: str) -> None:
    assert filled(prompt, {"column": value}) == prompt


# ---- messages


def test_one_question() -> None:
    assert messages(HF_CHAT, ("HUMAN", "q")) == [("user", "q")]


def test_neighbours_of_one_role_merge() -> None:
    assert messages(HF_CHAT, ("HUMAN", "a"), ("HUMAN", "b"), ("BOT", "c"), ("BOT", "d"), ("HUMAN", "e")) == [
        ("user", "a\nb"),
        ("assistant", "c\nd"),
        ("user", "e"),
    ]


def test_a_system_turn_is_the_users_for_huggingface_and_kept_for_an_api() -> None:
    said = {"begin": [{"role": "SYSTEM", "fallback_role": "HUMAN", "prompt": "s"}]}
    assert messages(HF_CHAT, ("HUMAN", "q"), **said) == [("user", "s\nq")]
    assert messages(API, ("HUMAN", "q"), **said) == [("system", "s"), ("user", "q")]
    assert messages(roles_of("OpenAI"), ("HUMAN", "q"), **said) == [("system", "s"), ("user", "q")]


def test_few_shot_rounds_and_the_turn_that_is_left_to_the_model() -> None:
    shots = [("HUMAN", "q1"), ("BOT", "a1"), ("HUMAN", "q2"), ("BOT", "a2")]
    expected = [("user", "q1"), ("assistant", "a1"), ("user", "q2"), ("assistant", "a2"), ("user", "q")]
    for roles in (HF_CHAT, API):
        assert messages(roles, *shots, ("HUMAN", "q")) == expected
        assert messages(roles, *shots, ("HUMAN", "q"), ("BOT", "the answer is")) == expected
        assert messages(roles, *shots, ("HUMAN", "q"), ("BOT", "")) == expected


def test_empty_turns_are_skipped() -> None:
    assert messages(API, ("HUMAN", "a"), ("BOT", ""), ("HUMAN", "b")) == [("user", "a\nb")]
    assert messages(API, ("HUMAN", "")) == []


def test_begin_round_end() -> None:
    said = {"begin": "first", "end": [{"role": "HUMAN", "prompt": "last"}]}
    assert messages(API, ("HUMAN", "q"), **said) == [("user", "first\nq\nlast")]


def test_begin_and_end_texts_of_roles() -> None:
    roles = (Role("HUMAN", "user", "<", ">"), Role("BOT", "assistant", "[", "]", generate=True))
    assert messages(roles, ("HUMAN", "a"), ("HUMAN", "b"), ("BOT", "c"), ("HUMAN", "d")) == [
        ("user", "<a>\n<b>"),
        ("assistant", "[c]"),
        ("user", "<d>"),
    ]


def test_fallback_roles() -> None:
    turn = {"role": "SYSTEM", "fallback_role": "HUMAN", "prompt": "s"}
    no_system = roles_of("OpenAI", meta_template={"round": [{"role": "HUMAN"}, {"role": "BOT", "generate": True}]})
    assert messages(no_system, ("HUMAN", "q"), begin=[turn]) == [("user", "s\nq")]
    with pytest.raises(ConfigError, match="role 'SYSTEM' that the model's meta_template lacks") as caught:
        messages(no_system, ("SYSTEM", "s"))
    assert caught.value.hint == "known roles: HUMAN, BOT"


def test_an_unknown_role() -> None:
    with pytest.raises(ConfigError, match="the prompt has a role 'HUMAM'") as caught:
        messages(HF_CHAT, ("HUMAM", "q"))
    assert caught.value.hint == "did you mean 'HUMAN'?"


_said = st.lists(st.tuples(st.sampled_from(["HUMAN", "BOT", "SYSTEM"]), st.text("xy\n", max_size=3)), max_size=8)


@given(said=_said, roles=st.sampled_from([HF_CHAT, API]))
def test_no_neighbours_and_no_empty_messages(said: list[tuple[str, str]], roles: tuple[Role, ...]) -> None:
    made = messages(roles, *said)
    assert all(one[0] != other[0] for one, other in pairwise(made))
    assert all(content for _, content in made)
    # nothing is lost or moved, but for a last turn of the model
    kept = said[:-1] if said and said[-1][0] == "BOT" else said
    assert "\n".join(content for _, content in made) == "\n".join(prompt for _, prompt in kept if prompt)


@given(said=_said)
def test_making_messages_changes_no_turn(said: list[tuple[str, str]]) -> None:
    prompt = turns(template(*said), {}, None)
    before = [dict(turn) for turn in prompt]
    to_messages(prompt, API)
    to_text(prompt, BASE)
    assert prompt == before


# ---- base models


def test_the_turns_of_a_base_model_are_lines() -> None:
    assert text(BASE, ("HUMAN", "Q: 1"), ("BOT", "A: 2"), ("HUMAN", "Q: 3")) == "Q: 1\nA: 2\nQ: 3"
    assert text(BASE, ("HUMAN", "a"), ("BOT", ""), ("HUMAN", "b")) == "a\nb"
    assert text(BASE, ("HUMAN", " a \n")) == " a \n"


def test_a_base_model_goes_on_from_the_bots_words() -> None:
    """Without a meta_template a base model has no roles: "Answer:" in the last turn is part of its text."""
    assert text(BASE, ("HUMAN", "Q: 1"), ("BOT", "Answer:")) == "Q: 1\nAnswer:"
    assert text(BASE, ("ANYBODY", "Q: 1")) == "Q: 1"


def test_a_base_model_with_a_template_of_its_own() -> None:
    assert text(WRAPPED, ("HUMAN", "a")) == "USER: a\nASSISTANT: "
    assert text(WRAPPED, ("HUMAN", "a"), ("BOT", "")) == "USER: a\nASSISTANT: "
    assert text(WRAPPED, ("HUMAN", "a"), ("BOT", "b"), ("HUMAN", "c")) == (
        "USER: a\nASSISTANT: b</s>\nUSER: c\nASSISTANT: "
    )
    with pytest.raises(ConfigError, match="role 'SYSTEM'"):
        text(WRAPPED, ("SYSTEM", "s"))


@given(said=st.lists(st.tuples(st.sampled_from(["HUMAN", "BOT"]), st.text("xy", max_size=3)), max_size=6))
def test_a_base_models_text_has_no_template(said: list[tuple[str, str]]) -> None:
    assert text(BASE, *said).split("\n") == ([prompt for _, prompt in said if prompt] or [""])
