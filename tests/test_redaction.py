"""Secrets: masked wherever they stand in a text, while everything that only looks a little like one stays."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evalswap.engines.registry import engine_names
from evalswap.redaction import SECRET_VARIABLES, Redactor, redact_values

KEY = "sk-proj-THIS_IS-SECRET.1234567890"
WORDS = st.text("abkors0123-_./=", min_size=1, max_size=8)
# A key begins and ends with a letter or a digit, and may be a common word, or a number.
SECRETS = st.one_of(
    st.sampled_from(["data", "llama", "model", "1234", "hf_abcdef", "very-secret-value-0123456789", KEY]),
    st.from_regex(r"[a-z0-9][a-z0-9_\-./+]{2,40}[a-z0-9]", fullmatch=True),
)


@pytest.fixture(autouse=True)
def no_keys_of_the_machine() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name in SECRET_VARIABLES:
            patch.delenv(name, raising=False)
        yield


def has_word(word: str, text: str) -> bool:
    return re.search(rf"(?<![\w-]){re.escape(word)}(?![\w-])", text) is not None


def is_public(secret: str) -> bool:
    return Redactor([secret])(secret) == secret


@pytest.mark.parametrize(
    "text",
    [
        "risk-assessment-7b",
        "/mnt/disk-storage01/models/task-specific-model-7b-long",
        "an_sk-0123456789abcdef0123456789",
        "mask-sk-0123456789abcdef0123456789",
        "sk-short-one",
        "https://huggingface.co/org/model?revision=main&max_tokens=5",
        "http://127.0.0.1:8000/v1",
        "mail someone@example.com",
    ],
)
def test_what_is_no_secret_stays(text: str) -> None:
    assert Redactor()(text) == text


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        (KEY, "sk-***"),
        (f"the key '{KEY}' is bad.", "the key 'sk-***' is bad."),
        (f"--api-key={KEY}, again", "--api-key=sk-***, again"),
        (rf'{{"message": "wrong key:\n{KEY}"}}', r'{"message": "wrong key:\nsk-***"}'),
        (rf"wrong key:\n{KEY}", r"wrong key:\nsk-***"),
        ("Authorization: Bearer abcdefgh12", "Authorization: Bearer ***"),
        ("at https://me:pass.word@host:8000/v1", "at https://***@host:8000/v1"),
        ("at https://me:p@ss@host/v1", "at https://***@host/v1"),
        ("at https://:pass@host/v1", "at https://***@host/v1"),
        ("https://hf_abc@huggingface.co/x", "https://***@huggingface.co/x"),
        ("http://host/v1?api_key=abc&n=1", "http://host/v1?api_key=***&n=1"),
        ("http://host/v1?n=1&access_token=a.b-c#here", "http://host/v1?n=1&access_token=***#here"),
    ],
)
def test_what_looks_like_a_secret_is_masked(text: str, masked: str) -> None:
    assert Redactor()(text) == masked


@pytest.mark.parametrize(
    ("secret", "text", "masked"),
    [
        ("llama", "llamacpp", "llamacpp"),
        ("llama", "key llama.", "key ***."),
        ("data", "datasets of my-data and data_2", "datasets of my-data and data_2"),
        ("1234", "0.12345", "0.12345"),
        ("hf_secret", r"denied:\nhf_secret", r"denied:\n***"),
        ("very-secret-value-0123456789", "x_very-secret-value-0123456789y", "x_***y"),
    ],
)
def test_a_short_secret_is_masked_as_a_word_and_a_long_one_everywhere(secret: str, text: str, masked: str) -> None:
    assert Redactor([secret])(text) == masked


def test_a_key_of_the_environment_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "first-key, second-key")
    assert Redactor()("first-key second-key third-key") == "*** *** third-key"


@pytest.mark.parametrize("name", ["EMPTY", "none", "None", "token-abc", "openai", "llama.cpp", "vLLM", *engine_names()])
def test_a_placeholder_and_an_engines_name_are_no_secrets(name: str) -> None:
    assert Redactor([name])(f"the engine {name} with {name.lower()}") == f"the engine {name} with {name.lower()}"


def manifests(secret: str) -> st.SearchStrategy[dict[str, Any]]:
    """Nested values as a record has them, with the secret in keys and in texts, as a word and inside of others."""
    text = st.lists(st.one_of(WORDS, st.just(secret), st.sampled_from([" ", '"', "\\", "\n", "é"]))).map("".join)
    scalars = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), text)
    nested = st.recursive(
        scalars,
        lambda inner: st.one_of(st.lists(inner), st.lists(inner).map(tuple), st.dictionaries(text, inner)),
        max_leaves=15,
    )
    return st.dictionaries(text, nested)


@st.composite
def secret_and_record(draw: st.DrawFn) -> tuple[str, dict[str, Any]]:
    secret = draw(SECRETS.filter(lambda text: not is_public(text)))
    return secret, draw(manifests(secret))


def check_masked(secret: str, before: Any, after: Any) -> None:
    """Assert that ``after`` is ``before`` with nothing but texts masked."""
    if isinstance(before, dict):
        assert list(after) == list(before)
        for key in before:
            check_masked(secret, before[key], after[key])
    elif isinstance(before, (list, tuple)):
        assert len(after) == len(before)
        for one, other in zip(before, after, strict=True):
            check_masked(secret, one, other)
    elif isinstance(before, str):
        assert not has_word(secret, after)
        if secret not in before and not re.search(r"(?i)sk-|bearer|://|[?&]", before):
            assert after == before
    else:
        assert (type(after), after) == (type(before), before)


@given(secret_and_record())
def test_keys_and_numbers_stay_and_the_secret_is_in_no_text(case: tuple[str, dict[str, Any]]) -> None:
    secret, record = case
    check_masked(secret, record, redact_values(record, Redactor([secret])))


@given(secret_and_record())
def test_masking_twice_changes_nothing_more(case: tuple[str, dict[str, Any]]) -> None:
    secret, record = case
    redact = Redactor([secret])
    once = redact_values(record, redact)
    assert redact_values(once, redact) == once


def test_an_object_that_is_no_plain_value_becomes_masked_text() -> None:
    assert redact_values({"error": ValueError("key hf_secret")}, Redactor(["hf_secret"])) == {"error": "key ***"}
