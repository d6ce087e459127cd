"""KEY=VALUE on the command line: what type a value has, and how it reaches an engine."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from evalswap.commands.arguments import KeyValues, Parser
from evalswap.engines.base import Launch
from evalswap.engines.registry import managed_engine

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


def parse(*words: str) -> dict[str, Any]:
    parser = Parser()
    parser.add_argument("--engine-args", nargs="+", action=KeyValues)
    return dict(parser.parse_args(["--engine-args", *words]).engine_args)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("true", True),
        ("false", False),
        ("True", True),
        ("False", False),
        ("None", None),
        ("1", 1),
        ("'true'", "true"),
        ("truely", "truely"),
        ("on", "on"),
        ("", ""),
        ("a=b", "a=b"),
        ("{{}}", "{{}}"),  # as Python a set of what cannot be in one
        ('{"mode": 0, "on": true}', '{"mode": 0, "on": true}'),  # JSON goes to the engine as it is
    ],
)
def test_the_type_of_a_value(text: str, value: object) -> None:
    got = parse(f"key={text}")["key"]
    assert (got, type(got)) == (value, type(value))


@given(VALUES)
def test_a_python_literal_is_its_value(value: object) -> None:
    assert parse(f"key={value!r}") == {"key": value}


@given(st.text(min_size=1))
def test_other_text_stays_as_it_is(text: str) -> None:
    assume(text not in ("true", "false"))
    try:
        ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError):
        assert parse(f"key={text}") == {"key": text}


@pytest.mark.parametrize("engine", ["vllm", "sglang", "lmdeploy", "llamacpp"])
@pytest.mark.parametrize("spelled", ["true", "True"])
def test_a_flag_without_a_value_reaches_the_engine_bare(engine: str, spelled: str, tmp_path: Path) -> None:
    (tmp_path / "m.gguf").touch()
    launch = Launch(tmp_path, "bfloat16", 2048, 1, 8, False, "cuda", engine_args=parse(f"some_flag={spelled}", "n=2"))
    words = managed_engine(engine).command(launch, Path("python"), 4321)
    place = words.index("--some-flag")
    assert words[place : place + 3] == ["--some-flag", "--n", "2"]
