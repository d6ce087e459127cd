"""What a config asks for is what every engine is asked for, or it is refused.

On the left of each comparison stands transformers' meaning of ``generation_kwargs``, on the right that of the
fields which an engine was sent: read back here by small interpreters that follow the engines' own documents and
sources, with their own defaults for what is not sent. They share no code with the translation.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evalswap.engines.base import Emulated, Engine, Native, Refused
from evalswap.engines.openai import openai_engine
from evalswap.engines.registry import managed_engine
from evalswap.errors import ConversionError
from evalswap.plan import EndpointPlan, LaunchPlan, SamplingPlan
from evalswap.prompting.sampling import resolve_sampling
from evalswap.records import Prompt, Request, Sampling

PROMPT = (11, 12, 13)
EOS = (2, 7)


@dataclass(frozen=True)
class Draw:
    """How one of several likely tokens is chosen. ``order``: whether top_p looks at what top_k left, or at all."""

    temperature: float
    top_k: int | None
    top_p: float | None
    min_p: float | None
    order: Literal["one after the other", "at once", "min_p first"]
    seed: int | None


@dataclass(frozen=True)
class Meaning:
    """What becomes of a prompt, whoever answers it."""

    draw: Draw | None  # None: always the likeliest
    repetition: tuple[float, str] | None  # and which tokens count
    presence: float
    frequency: float
    least: int
    most: int
    ends: frozenset[int]  # token ids


def draw(
    temperature: float, top_k: int | None, top_p: float, min_p: float, order: str, seed: int | None
) -> Draw | None:
    k, p = (top_k or None), (top_p if top_p < 1 else None)
    m = min_p if min_p > 1e-6 else None
    if k == 1 or temperature < 1e-5:
        return None  # one candidate, or the likeliest by so much that no other is ever drawn
    matters = {"at once": k is not None and p is not None, "min_p first": m is not None and p is not None}
    return Draw(temperature, k, p, m, order if matters.get(order) else "one after the other", seed)  # type: ignore[arg-type]


def repetition(value: float, counted: str) -> tuple[float, str] | None:
    return None if value == 1 else (value, counted)


# ---- transformers' own meaning


def asked(kwargs: dict[str, Any], config: dict[str, Any], most: int, least: int) -> Meaning:
    """Return what transformers' generate() does with a config's kwargs and the model's generation_config.json."""

    def value(name: str, default: Any) -> Any:
        return next((fields[name] for fields in (kwargs, config) if fields.get(name) is not None), default)

    chosen: Draw | None = None
    temperature = value("temperature", 1.0)
    if kwargs.get("do_sample") and temperature > 0:
        chosen = draw(
            temperature,
            max(value("top_k", 50), 0),
            value("top_p", 1.0),
            value("min_p", 0.0),
            "one after the other",
            kwargs.get("seed"),
        )
    return Meaning(
        draw=chosen,
        repetition=repetition(value("repetition_penalty", 1.0), "prompt and answer"),
        presence=kwargs.get("presence_penalty") or 0.0,
        frequency=kwargs.get("frequency_penalty") or 0.0,
        least=least,
        most=most,
        ends=frozenset(EOS),
    )


# ---- what each engine does with what it is sent


def transformers_does(body: dict[str, Any]) -> Meaning:
    got = body["sampling"]
    assert not set(got) - {field.name for field in dataclasses.fields(Sampling)}
    temperature = got.get("temperature", 0.0)
    chosen = draw(
        temperature, got.get("top_k", 0), got.get("top_p", 1.0), got.get("min_p", 0.0), "one after the other",
        got.get("seed"),
    )  # fmt: skip
    return Meaning(
        draw=chosen if temperature > 0 else None,
        repetition=repetition(got.get("repetition_penalty", 1.0), "prompt and answer"),
        presence=got.get("presence_penalty", 0.0),
        frequency=got.get("frequency_penalty", 0.0),
        least=got.get("min_new_tokens", 0),
        most=got["max_new_tokens"],
        ends=frozenset(got.get("stop_token_ids", ())),
    )


def vllm_does(body: dict[str, Any]) -> Meaning:
    assert body["prompt"] == list(PROMPT)
    assert (body.get("n", 1), body["ignore_eos"], body["add_special_tokens"]) == (1, True, False)
    temperature = body.get("temperature", 1.0)
    assert temperature == 0 or 0.01 <= temperature <= 2  # what lies between is changed to 0.01
    assert len(body.get("stop", ())) <= 4
    assert body.get("seed") != -1  # none
    k = body.get("top_k", 0)
    chosen = draw(
        temperature, None if k in (0, -1) else k, body.get("top_p", 1.0), body.get("min_p", 0.0), "min_p first",
        body.get("seed"),
    )  # fmt: skip
    for name in ("presence_penalty", "frequency_penalty"):
        assert -2 <= body.get(name, 0.0) <= 2
    return Meaning(
        draw=chosen if temperature > 0 else None,
        repetition=repetition(body.get("repetition_penalty", 1.0), "prompt and answer"),
        presence=body.get("presence_penalty", 0.0),
        frequency=body.get("frequency_penalty", 0.0),
        least=body.get("min_tokens", 0),
        most=body.get("max_tokens", 16),
        ends=frozenset(body.get("stop_token_ids", ())),
    )


def sglang_does(body: dict[str, Any], backend: str = "flashinfer", deterministic: bool = False) -> Meaning:
    assert body["input_ids"] == list(PROMPT)
    got = body["sampling_params"]
    temperature, k = got.get("temperature", 1.0), got.get("top_k", -1)
    assert k == -1 or k >= 1  # it takes no 0
    assert got.get("n", 1) == 1
    min_p = got.get("min_p", 0.0)
    seed = got.get("sampling_seed") if deterministic else None
    assert not (seed is not None and min_p > 1e-6)
    order = "one after the other" if backend == "flashinfer" and min_p > 0 else "at once"
    chosen = draw(temperature, None if k == -1 else k, got.get("top_p", 1.0), min_p, order, seed)
    assert not (got.get("ignore_eos") and got.get("stop_token_ids"))  # the one would switch off the other
    assert len(got.get("stop", ())) <= 32
    assert got["no_stop_trim"]
    assert not got["skip_special_tokens"]
    for name in ("presence_penalty", "frequency_penalty"):
        assert -2 <= got.get(name, 0.0) <= 2
    return Meaning(
        draw=chosen if temperature >= 1e-6 else None,
        repetition=repetition(got.get("repetition_penalty", 1.0), "answer"),
        presence=got.get("presence_penalty", 0.0),
        frequency=got.get("frequency_penalty", 0.0),
        least=got.get("min_new_tokens", 0),
        most=got.get("max_new_tokens", 128),
        ends=frozenset(got.get("stop_token_ids", ())),
    )


def sglang_completions_do(body: dict[str, Any]) -> Meaning:
    """What is sent to /v1/completions comes to what is sent to /generate."""
    renamed = {"max_tokens": "max_new_tokens", "min_tokens": "min_new_tokens", "seed": "sampling_seed"}
    beside = {"model", "prompt", "return_token_ids"}
    known = {*renamed, "stop", "stop_token_ids", "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "n",
             "presence_penalty", "frequency_penalty", "no_stop_trim", "ignore_eos", "skip_special_tokens"}  # fmt: skip
    assert body["return_token_ids"]
    assert set(body) <= known | beside  # others are not read
    params = {renamed.get(name, name): value for name, value in body.items() if name not in beside}
    return sglang_does({"input_ids": body["prompt"], "sampling_params": params}, "pytorch")


def lmdeploy_does(body: dict[str, Any], backend: str = "turbomind") -> Meaning:
    assert body["input_ids"] == list(PROMPT)
    known = {"max_tokens", "stop", "stop_token_ids", "stream", "temperature", "repetition_penalty", "ignore_eos",
             "top_p", "top_k", "min_p", "skip_special_tokens", "include_stop_str_in_output", "input_ids"}  # fmt: skip
    assert set(body) <= known  # others are not read
    assert not body.get("stop")  # its rule for words is another
    assert not (body["ignore_eos"] and body.get("stop_token_ids"))
    assert body["include_stop_str_in_output"]
    temperature = body.get("temperature", 0.8)
    assert 0 < temperature <= 2  # 0 is greedy on one backend only
    assert backend == "pytorch" or body.get("top_k", 50) <= 1024
    return Meaning(
        draw=draw(
            temperature, body.get("top_k", 50), body.get("top_p", 1.0), body.get("min_p", 0.0), "one after the other",
            None,
        ),
        repetition=repetition(
            body.get("repetition_penalty", 1.0), "prompt and answer" if backend == "turbomind" else "answer"
        ),
        presence=0.0,
        frequency=0.0,
        least=0,
        most=body.get("max_tokens", 128),
        ends=frozenset(body.get("stop_token_ids", ())),
    )  # fmt: skip


def llamacpp_does(body: dict[str, Any]) -> Meaning:
    assert body["prompt"] == list(PROMPT)
    assert body["return_tokens"]
    used = body["samplers"]
    assert used == ["penalties", "temperature", "top_k", "top_p", "min_p"]
    temperature = body.get("temperature", 0.8)
    seed = body.get("seed", -1)
    chosen = draw(
        temperature, max(body.get("top_k", 40), 0), body.get("top_p", 0.95), body.get("min_p", 0.05),
        "one after the other", None if seed == -1 else seed,
    )  # fmt: skip
    most = body.get("n_predict", -1)
    assert body.get("repeat_last_n", 64) >= len(PROMPT) + most - 1
    return Meaning(
        draw=chosen if temperature > 0 else None,
        repetition=repetition(body.get("repeat_penalty", 1.0), "prompt and answer"),
        presence=body.get("presence_penalty", 0.0),
        frequency=body.get("frequency_penalty", 0.0),
        least=0,
        most=most,
        # It stops at its own ends, which evalswap compares with these, and evalswap cuts at them.
        ends=frozenset(EOS),
    )


def messages_do(body: dict[str, Any]) -> Meaning:
    known = {"model", "messages", "max_tokens", "temperature", "top_p", "presence_penalty", "frequency_penalty",
             "seed", "stop"}  # fmt: skip
    assert set(body) <= known
    temperature = body.get("temperature", 1.0)
    chosen = draw(temperature, None, body.get("top_p", 1.0), 0.0, "one after the other", body.get("seed"))
    return Meaning(
        draw=chosen if temperature > 0 else None,
        repetition=None,
        presence=body.get("presence_penalty", 0.0),
        frequency=body.get("frequency_penalty", 0.0),
        least=0,
        most=body["max_tokens"],
        ends=frozenset(EOS),  # the model's own are the server's business
    )


def reasoning_does(body: dict[str, Any]) -> Meaning:
    assert set(body) <= {"model", "messages", "max_completion_tokens", "seed"}  # anything else is a 400
    return Meaning(
        draw=draw(1.0, None, 1.0, 0.0, "one after the other", body.get("seed")),
        repetition=None,
        presence=0.0,
        frequency=0.0,
        least=0,
        most=body["max_completion_tokens"],
        ends=frozenset(EOS),
    )


def managed(name: str, **engine_args: Any) -> Engine:
    return managed_engine(name, LaunchPlan("m", engine_args=engine_args))


ENDPOINT = EndpointPlan(("http://h/v1",), "m")
REASONING = dataclasses.replace(ENDPOINT, reasoning=True)
ENGINES: dict[str, tuple[Callable[[], Engine], Callable[[dict[str, Any]], Meaning]]] = {
    "transformers": (lambda: managed("transformers"), transformers_does),
    "vllm": (lambda: managed("vllm"), vllm_does),
    "sglang": (lambda: managed("sglang"), sglang_does),
    "sglang, pytorch sampling": (
        lambda: managed("sglang", sampling_backend="pytorch"),
        lambda body: sglang_does(body, "pytorch"),
    ),
    "sglang, deterministic": (
        lambda: managed("sglang", enable_deterministic_inference=True),
        lambda body: sglang_does(body, "pytorch", deterministic=True),
    ),
    "lmdeploy": (lambda: managed("lmdeploy"), lmdeploy_does),
    "lmdeploy, pytorch": (
        lambda: managed("lmdeploy", backend="pytorch"),
        lambda body: lmdeploy_does(body, "pytorch"),
    ),
    "llamacpp": (lambda: managed("llamacpp"), llamacpp_does),
    "openai, by ids, vLLM": (lambda: openai_engine(ENDPOINT, "vllm"), vllm_does),
    "openai, by ids, SGLang": (lambda: openai_engine(ENDPOINT, "sglang"), sglang_completions_do),
    "openai, by messages": (lambda: openai_engine(ENDPOINT), messages_do),
    "openai, reasoning model": (lambda: openai_engine(REASONING), reasoning_does),
}
ALWAYS_DRAWS = "openai, reasoning model"
GREEDY_TOO = [name for name in ENGINES if name != ALWAYS_DRAWS]


# ---- the comparison

_drawn: dict[str, st.SearchStrategy[Any]] = {
    "temperature": st.none() | st.sampled_from([0, 0.0, 0.005, 0.01, 0.6, 1.0, 2.0, 2.5]) | st.floats(0, 3),
    "top_p": st.none() | st.sampled_from([1.0, 0.95]) | st.floats(0.01, 1),
    "top_k": st.none() | st.sampled_from([-1, 0, 1, 20, 50]) | st.integers(-1, 2000),
    "min_p": st.none() | st.sampled_from([0.0, 0.05]) | st.floats(0.001, 1),
    "repetition_penalty": st.none() | st.sampled_from([1.0, 1.05]) | st.floats(0.5, 3),
}
_kwargs = st.fixed_dictionaries(
    {},
    optional={
        **_drawn,
        "do_sample": st.booleans(),
        "presence_penalty": st.none() | st.sampled_from([0.0, 0.5]) | st.floats(-3, 3),
        "frequency_penalty": st.none() | st.sampled_from([0.0, 0.5]) | st.floats(-3, 3),
        "seed": st.none() | st.integers(-1, 2**31 - 1),
    },
)
_config = st.fixed_dictionaries({}, optional={**_drawn, "do_sample": st.booleans()})
_lengths = st.tuples(st.integers(1, 600), st.sampled_from([0, 0, 1])).map(lambda pair: (pair[0], pair[1]))


def sent(engine: Engine, sampling: Sampling) -> dict[str, Any]:
    messages = ({"role": "user", "content": "?"},)
    return engine.call(Request("key", "job", 0, Prompt(messages, None, PROMPT), sampling)).body


@pytest.mark.parametrize("name", ENGINES)
@settings(max_examples=300, deadline=None)
@given(kwargs=_kwargs, config=_config, lengths=_lengths)
def test_an_engine_is_asked_for_the_same_or_refuses(
    name: str, kwargs: dict[str, Any], config: dict[str, Any], lengths: tuple[int, int]
) -> None:
    most, least = lengths
    wanted = asked(kwargs, config, most, least)
    plan = SamplingPlan(generation_kwargs=kwargs, max_out_len=most, min_out_len=least)
    sampling = resolve_sampling(plan, config, max_out_len=None, eos_token_ids=EOS)
    make, does = ENGINES[name]
    try:
        body = sent(make(), sampling)
    except ConversionError as error:
        assert error.hint
        assert any(field.name in error.message for field in dataclasses.fields(Sampling))
        return
    got = does(body)
    # A draw from one candidate is the likeliest token, and its temperature does not matter.
    assert got == (dataclasses.replace(wanted, draw=None) if wanted.draw is None else wanted)


@pytest.mark.parametrize("name", GREEDY_TOO)
def test_what_most_configs_say_is_refused_by_nobody(name: str) -> None:
    make, does = ENGINES[name]
    for kwargs in ({}, {"do_sample": False, "temperature": 0.6, "top_p": 0.9}, {"do_sample": True, "top_k": 0}):
        plan = SamplingPlan(generation_kwargs=kwargs, max_out_len=7, stop_words=("\n\n",))
        sampling = resolve_sampling(plan, {}, max_out_len=None, eos_token_ids=EOS)
        assert does(sent(make(), sampling)) == asked(kwargs, {}, 7, 0)


@pytest.mark.parametrize("name", ["transformers", "vllm", "sglang", "lmdeploy", "lmdeploy, pytorch", "llamacpp"])
def test_what_reasoning_models_recommend_is_refused_by_no_engine(name: str) -> None:
    make, does = ENGINES[name]
    kwargs = {"do_sample": True, "temperature": 0.6, "top_p": 0.95, "top_k": 20, "min_p": 0.0}
    sampling = resolve_sampling(SamplingPlan(generation_kwargs=kwargs), {}, max_out_len=7, eos_token_ids=EOS)
    assert does(sent(make(), sampling)) == asked(kwargs, {}, 7, 0)


@pytest.mark.parametrize(
    ("name", "kwargs", "message"),
    [
        ("sglang", {"repetition_penalty": 1.05}, "repetition_penalty=1.05 cannot be asked of sglang"),
        ("sglang", {"do_sample": True, "seed": 1}, "enable_deterministic_inference"),
        ("sglang", {"presence_penalty": 2.5}, "it takes at most 2"),
        ("sglang, pytorch sampling", {"do_sample": True, "top_p": 0.9}, "top_k=50 with top_p=0.9"),
        ("lmdeploy", {"min_new_tokens": 3}, "min_new_tokens=3 cannot be asked of lmdeploy"),
        ("lmdeploy", {"do_sample": True, "temperature": 2.5}, "it takes at most 2"),
        ("lmdeploy", {"do_sample": True, "top_k": 1025}, "it takes at most 1024"),
        ("vllm", {"do_sample": True, "temperature": 2.5}, "it takes at most 2"),
        ("openai, by ids, vLLM", {"do_sample": True, "temperature": 2.5}, "a vLLM server: it takes at most 2"),
        ("vllm", {"do_sample": True, "seed": -1}, "it takes at least 0"),
        ("openai, by ids, SGLang", {"repetition_penalty": 1.05}, "an SGLang server: it counts the answer's"),
        ("openai, by ids, SGLang", {"do_sample": True, "seed": 1}, "--enable-deterministic-inference"),
        ("openai, by ids, SGLang", {"do_sample": True, "top_p": 0.9}, "top_k=50 with top_p=0.9"),
        (ALWAYS_DRAWS, {}, "temperature=0.0 cannot be asked of m: a reasoning model draws at a temperature of 1"),
        (ALWAYS_DRAWS, {"do_sample": True, "top_k": 0, "top_p": 0.9}, "top_p=0.9 cannot be asked of m"),
        ("lmdeploy, pytorch", {"repetition_penalty": 1.05}, "PyTorch backend counts the answer's tokens only"),
        ("vllm", {"do_sample": True, "top_p": 0.9, "min_p": 0.1}, "top_p=0.9 with min_p=0.1"),
        ("vllm", {"do_sample": True, "temperature": 0.001}, "it takes at least 0.01"),
        ("llamacpp", {"frequency_penalty": 0.5}, "counts the prompt's tokens too"),
        ("transformers", {"presence_penalty": 0.5}, "no such penalty"),
        ("openai, by messages", {"do_sample": True}, "top_k=50 cannot be asked of openai"),
    ],
)
def test_what_an_engine_cannot_do_is_refused(name: str, kwargs: dict[str, Any], message: str) -> None:
    sampling = resolve_sampling(SamplingPlan(generation_kwargs=kwargs), {}, max_out_len=7)
    with pytest.raises(ConversionError) as caught:
        sent(ENGINES[name][0](), sampling)
    assert message in caught.value.message
    assert caught.value.hint


def test_the_seed_of_a_greedy_answer_harms_nobody() -> None:
    sampling = Sampling(max_new_tokens=3, seed=7, stop_token_ids=EOS)
    for make, does in (ENGINES[name] for name in GREEDY_TOO):
        assert does(sent(make(), sampling)).draw is None


@pytest.mark.parametrize("name", GREEDY_TOO)
def test_no_more_stop_texts_are_sent_than_are_taken(name: str) -> None:
    """All of them are applied by evalswap to the answer's text, so none is lost."""
    words = tuple(f"word {number}" for number in range(40))
    make, does = ENGINES[name]
    body = sent(make(), Sampling(max_new_tokens=3, stop=words, stop_token_ids=EOS))
    does(body)
    told = body.get("sampling_params", body.get("sampling", body)).get("stop", [])
    assert told == list(words[: len(told)])
    assert bool(told) == (not name.startswith("lmdeploy"))


def test_a_reasoning_model_is_asked_for_what_it_does() -> None:
    make, does = ENGINES[ALWAYS_DRAWS]
    kwargs = {"do_sample": True, "temperature": 1.0, "top_k": 0, "seed": 3}
    plan = SamplingPlan(generation_kwargs=kwargs, max_out_len=7, stop_words=("\n\n",))
    body = sent(make(), resolve_sampling(plan, {}, max_out_len=None, eos_token_ids=EOS))
    assert body == {
        "model": "m",
        "messages": [{"role": "user", "content": "?"}],
        "max_completion_tokens": 7,
        "seed": 3,
    }
    assert does(body) == asked(kwargs, {}, 7, 0)


def test_without_any_stop_id_nothing_ends_an_answer() -> None:
    """A base model's config may set eos_token_id=[]; then the engine's own must not end it."""
    sampling = Sampling(max_new_tokens=3)
    for name, (make, _) in ENGINES.items():
        if name.startswith(("vllm", "sglang", "lmdeploy", "llamacpp", "openai, by ids")):
            body = sent(make(), sampling)
            assert body.get("sampling_params", body)["ignore_eos"] is True


@pytest.mark.parametrize("name", ENGINES)
def test_each_table_speaks_of_each_field(name: str) -> None:
    table = ENGINES[name][0]().sampling
    assert set(table) == {field.name for field in dataclasses.fields(Sampling)}
    assert all(isinstance(entry, (Native, Emulated, Refused)) for entry in table.values())
