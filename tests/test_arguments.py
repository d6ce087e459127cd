"""The command line's words: options that are not there, values that are none, and KEY=VALUE."""

from __future__ import annotations

import ast
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from evalswap.cli import main
from evalswap.commands.arguments import OPENCOMPASS_OPTIONS, KeyValues, Parser
from evalswap.engines.base import Launch
from evalswap.engines.registry import managed_engine
from evalswap.errors import EXIT_USAGE

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
        ("3,1", "3,1"),  # of llama-server, for one
        ("(3, 1)", (3, 1)),
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
    launch = Launch(
        tmp_path, "bfloat16", 2048, 1, 8, False, "cuda", engine_args=parse(f"some_flag={spelled}", "size=2")
    )
    words = managed_engine(engine).command(launch, Path("python"), 4321)
    place = words.index("--some-flag")
    assert words[place : place + 3] == ["--some-flag", "--size", "2"]


# ---- what the command does not have


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[..., list[str]]:
    """Give a command that argparse refuses; returns the lines of what is said."""

    def give(*words: str) -> list[str]:
        with pytest.raises(SystemExit) as end:
            main(words)
        assert end.value.code == EXIT_USAGE
        said = capsys.readouterr()
        assert not said.out
        return said.err.splitlines()

    return give


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["run", "--modles", "x"], "did you mean '--models'?"),
        (["compare", "a", "b", "--comon-rows"], "did you mean '--common-rows'?"),
        (["check", "a.py", "--no-warm"], "--no-warm belongs to: evalswap run, evalswap compare"),
        (["check", "a.py", "--hang-timeuot=5"], "evalswap check --help shows what there is"),  # another command's
        (["serve", "--api-base=http://h"], "--api-base belongs to: evalswap run, evalswap check, evalswap compare"),
        (["engines", "install", "vllm", "--limit", "3"], "--limit belongs to: evalswap run"),
        (["engines", "install", "vllm", "--reinstal", "--pyton", "x"], "did you mean '--python'?"),
        (["--debug", "run", "a.py"], "--debug comes after the command: evalswap run … --debug"),
        (["run", "a.py", "--xyz"], "evalswap run --help shows what there is"),
        (["--xyz"], "evalswap --help shows what there is"),
    ],
)
def test_an_option_that_is_not_there(refused: Callable[..., list[str]], words: list[str], told: str) -> None:
    error, hint = refused(*words)
    assert error.startswith("error: unrecognized arguments: --")
    assert hint.startswith(f"  → {told}")


@pytest.mark.parametrize("option", OPENCOMPASS_OPTIONS)
def test_what_people_bring_from_opencompass_is_answered(refused: Callable[..., list[str]], option: str) -> None:
    for words in ([option, "32"], [f"{option}=32"]) if option.startswith("--") else ([option, "32"],):
        _, hint = refused("run", "a.py", *words)
        assert hint == f"  → {option}: {OPENCOMPASS_OPTIONS[option]}"


def test_each_of_several_is_answered(refused: Callable[..., list[str]]) -> None:
    error, *hints = refused("run", "a.py", "--slurm", "-p", "part", "--max-num-workers", "32", "--modles", "x")
    assert error == "error: unrecognized arguments: --slurm -p part --max-num-workers 32 --modles x"
    assert [hint.split()[1] for hint in hints] == ["--slurm:", "-p:", "--max-num-workers:", "did"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["run", "--limit", "a"], "argument --limit: a whole number is wanted, not 'a'"),
        (["run", "--limit", "0"], "argument --limit: a number of at least 1 is wanted, not 0"),
        (["run", "--limit", "1.5"], "argument --limit: a whole number is wanted, not '1.5'"),
        (["run", "--api-in-flight", "-1"], "argument --api-in-flight: a number of at least 1 is wanted, not -1"),
        (["run", "--hf-num-gpus", "all"], "argument --hf-num-gpus: a whole number is wanted, not 'all'"),
        (["compare", "--prove", "eval.py"], "argument --prove: a whole number is wanted, not 'eval.py'"),
        (["compare", "--margin", "1%"], "argument --margin: points between 0 and 100 are wanted, not '1%'"),
        (["report", "x", "--margin", "nan"], "argument --margin: points between 0 and 100 are wanted, not 'nan'"),
        (["serve", "--port", "x"], "argument --port: a whole number is wanted, not 'x'"),
        (["serve", "--port", "70000"], "argument --port: a number from 1 to 65535 is wanted, not 70000"),
        (["run", "--engine-args", "x"], "argument --engine-args: 'x' is not KEY=VALUE"),
    ],
)
def test_a_value_that_is_none(refused: Callable[..., list[str]], words: list[str], told: str) -> None:
    assert refused(*words)[0] == f"error: {told}"


@pytest.mark.parametrize("command", ["run", "check", "compare", "serve"])
def test_help_offers_what_the_command_can_use(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([command, "--help"])
    text = capsys.readouterr().out
    for option in ("--api-base", "--api-key", "--api-model", "--api-in-flight", "--summarizer"):
        assert (option in text) == (command != "serve")
    for option in ("--no-warm", "--hang-timeout"):
        assert (option in text) == (command in ("run", "compare"))


# ---- a model that is named on the command line


@pytest.mark.parametrize(
    ("path", "abbr"),
    [
        ("org/some-model", "some-model-hf"),
        ("org/Llama-2-7b-hf/", "Llama-2-7b-hf"),
        ("hf_model_hf", "hf_model-hf"),
        ("a_hf_b", "a_hf_b-hf"),
    ],
)
def test_the_name_of_a_model_ends_in_hf_once(path: str, abbr: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "--hf-path", path, "--datasets", "demo", "--dry-run"]) == 0
    assert capsys.readouterr().out.startswith(f"{abbr} on transformers\n")
