"""What evalswap expects of an engine: one suite for all of them, live on this machine or replayed.

Live engines run the demo model in float32. There a greedy answer is a fact of the model, so it must be that of
transformers to the last token. A replayed engine said what it said, in its own precision on its own device; its
answers are held against each other and against what was asked.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cases
import pytest
import questions
import recording
from replay import NOT_RECORDED
from witness import RECORDINGS, Witness, replaying

from evalswap.engines.base import NEUTRAL, Emulated, Engine, Native, Refused
from evalswap.errors import ConversionError
from evalswap.inference.answers import before_stop_id
from evalswap.inference.client import FinalError, HttpClient
from evalswap.records import Completion, Sampling

VOCABULARY = 49152


def answer(witness: Witness, name: str) -> Completion:
    """Return a completion; a request that the engine's table refuses skips the test, any other error fails it."""
    outcome = witness.said.outcomes[name]
    if isinstance(outcome.error, ConversionError):
        pytest.skip(f"{witness.engine.name} refuses it: {outcome.error.message}")
    assert outcome.completion is not None, outcome.error
    return outcome.completion


def ids_of(witness: Witness, name: str) -> tuple[int, ...]:
    """Return an answer's ids before its stop, as a run keeps them."""
    completion = answer(witness, name)
    assert completion.token_ids is not None
    return tuple(before_stop_id(completion.token_ids, witness.said.outcomes[name].request.sampling))


def test_every_request_is_answered_or_refused_by_the_table(witness: Witness) -> None:
    for name, outcome in witness.said.outcomes.items():
        assert NOT_RECORDED not in str(outcome.error)
        if refused(witness.engine, name, outcome.request.sampling):
            assert isinstance(outcome.error, ConversionError), name
            assert outcome.error.hint
        elif name not in cases.TOO_LONG:
            assert outcome.completion is not None, f"{name}: {outcome.error}"


def refused(engine: Engine, name: str, sampling: Sampling) -> bool:
    """Whether an engine's table refuses a request, as docs/engines.md tells its readers."""
    said = {
        field.name
        for field in dataclasses.fields(Sampling)
        if getattr(sampling, field.name) != getattr(NEUTRAL, field.name)
    }
    if sampling.greedy:
        said.discard("seed")
    return any(isinstance(engine.sampling[field], Refused) for field in said) or any(
        said.issuperset(pair.fields) for pair in engine.exclusive
    )


@pytest.mark.parametrize("name", cases.EXACT)
def test_greedy_answers_in_float32_are_those_of_transformers(
    witness: Witness, reference: Mapping[str, list[int]], name: str
) -> None:
    if name in cases.BANS_END_TOKENS.get(witness.engine.name, ()):
        pytest.skip("told to ignore end tokens, it never writes one")
    completion = answer(witness, name)
    request = witness.said.outcomes[name].request
    truth = reference[name]
    assert ids_of(witness, name) == tuple(before_stop_id(truth, request.sampling))
    ended = bool(request.sampling.stop_token_ids) and truth[-1] in request.sampling.stop_token_ids
    assert completion.finish_reason == ("stop" if ended else "length")


@pytest.mark.parametrize("name", cases.WHOLE)
def test_questions_asked_together_are_not_mixed_up(witness: Witness, name: str) -> None:
    alone, together = ids_of(witness, name), ids_of(witness, f"{name} together")
    if witness.live:
        assert together == alone
    else:  # in a low precision a batch rounds differently; the opening tells one question from another
        assert together[:4] == alone[:4]


def test_the_questions_have_different_answers(witness: Witness) -> None:
    assert len({ids_of(witness, name) for name in cases.WHOLE}) > 3


@pytest.mark.parametrize("name", [*cases.WHOLE, "plain", "short"])
def test_a_prompt_is_counted_as_sent(witness: Witness, name: str) -> None:
    """Nothing is put before a prompt or taken out of it: no second BOS, no special token lost."""
    completion = answer(witness, name)
    assert completion.prompt_tokens == len(witness.said.outcomes[name].request.prompt.token_ids or ())
    assert completion.completion_tokens == len(completion.token_ids or ())


def test_an_answer_ends_at_eos(witness: Witness) -> None:
    completion = answer(witness, "short")
    assert completion.finish_reason == "stop"
    assert completion.token_ids is not None
    assert 0 < len(ids_of(witness, "short")) < cases.LENGTH
    assert completion.token_ids.index(cases.EOS) == len(completion.token_ids) - 1  # it comes along, and is the last


def test_an_eos_that_is_no_stop_ends_nothing(witness: Witness) -> None:
    completion = answer(witness, "short, eos no stop")
    assert completion.finish_reason == "length"
    assert len(completion.token_ids or ()) == cases.LENGTH
    ended = ids_of(witness, "short")
    assert completion.token_ids is not None
    assert completion.token_ids[: len(ended)] == ended


def test_min_new_tokens_hold_the_eos_back(witness: Witness) -> None:
    completion = answer(witness, "short, held back")
    assert completion.token_ids is not None
    assert len(completion.token_ids) >= cases.HELD_BACK
    assert cases.EOS not in completion.token_ids[: cases.HELD_BACK]
    free = ids_of(witness, "short")
    assert completion.token_ids[: len(free)] == free


def test_a_stop_id_ends_the_answer(witness: Witness) -> None:
    free = ids_of(witness, "greedy-0")
    stop = cases.new_token(free)
    completion = answer(witness, "stop id")
    assert completion.finish_reason == "stop"
    assert ids_of(witness, "stop id") == free[: free.index(stop)]
    if isinstance(witness.engine.sampling["stop_token_ids"], Native):
        assert (completion.token_ids or ())[-1] == stop


def test_a_stop_word_ends_the_answer_with_the_token_that_completes_it(witness: Witness) -> None:
    free = ids_of(witness, "greedy-0")
    before, last = cases.STOP_WORD_IDS
    ends = [place for place in range(1, len(free)) if free[place - 1 : place + 1] == (before, last)]
    assert ends, "the answer does not hold the stop word: choose another one in cases.py, and record again"
    completion = answer(witness, "stop word")
    entry = witness.engine.sampling["stop"]
    if isinstance(entry, Emulated):  # the engine writes on; a run cuts the text
        assert (completion.token_ids or ())[: ends[0] + 1] == free[: ends[0] + 1]
    else:
        assert completion.finish_reason == "stop"
        assert completion.token_ids == free[: ends[0] + 1]


def test_max_new_tokens_end_the_answer(witness: Witness) -> None:
    one = answer(witness, "one token")
    assert one.finish_reason == "length"
    assert one.token_ids == ids_of(witness, "greedy-0")[:1]
    whole = answer(witness, "greedy-0")
    assert (whole.finish_reason, len(whole.token_ids or ())) == ("length", cases.LENGTH)


def test_a_repetition_penalty_changes_the_answer(witness: Witness) -> None:
    assert ids_of(witness, "repetition penalty") != ids_of(witness, "greedy-0")


@pytest.mark.parametrize("name", cases.NARROWED)
def test_a_draw_from_one_token_is_greedy(witness: Witness, name: str) -> None:
    """Whatever the temperature: so the filter reaches the engine, and means what it means in transformers."""
    narrowed = ids_of(witness, name)
    if witness.live:
        assert narrowed == ids_of(witness, "greedy-0")
    else:  # bfloat16 has real ties, which fall either way; two draws at this temperature would not agree by chance
        others = [ids_of(witness, other) for other in ("greedy-0", *cases.NARROWED) if other != name]
        assert narrowed[:8] in [other[:8] for other in others]


def test_a_temperature_draws(witness: Witness) -> None:
    drawn = ids_of(witness, "drawn")
    assert drawn != ids_of(witness, "greedy-0")
    assert all(0 <= token < VOCABULARY for token in drawn)


def test_a_seed_draws_the_same_again(witness: Witness) -> None:
    once, again, other = (ids_of(witness, name) for name in cases.SEEDED)
    assert once == again
    assert once != other


@pytest.mark.parametrize("name", cases.TOO_LONG)
def test_nothing_is_shortened_in_silence(witness: Witness, name: str) -> None:
    """What does not fit is an error, or it is answered whole."""
    outcome = witness.said.outcomes[name]
    if outcome.error is not None:
        assert outcome.error.message
        assert NOT_RECORDED not in outcome.error.message
        return
    assert outcome.completion is not None
    assert outcome.completion.prompt_tokens == len(outcome.request.prompt.token_ids or ())
    if outcome.completion.finish_reason == "length":
        assert len(outcome.completion.token_ids or ()) == cases.LENGTH


def test_the_load_is_told(witness: Witness) -> None:
    if not witness.said.loads:
        pytest.skip(f"{witness.engine.name} does not tell its load")
    *while_answering, afterwards = witness.said.loads
    assert while_answering
    loads = [load for load in witness.said.loads if load is not None]
    assert len(loads) == len(witness.said.loads)
    for load in loads:
        assert load.running >= 0
        assert load.waiting >= 0
        assert load.cache_used is None or 0 <= load.cache_used <= 1
    if witness.live:
        assert max(load.running + load.waiting for load in loads) > 0
        assert afterwards is not None
        assert (afterwards.running, afterwards.waiting) == (0, 0)


def test_engines_that_may_not_run_here_are_recorded() -> None:
    assert {"lmdeploy-turbomind", "lmdeploy-pytorch", "llamacpp-cpu"} <= {file.stem for file in RECORDINGS}


@pytest.mark.parametrize("file", RECORDINGS, ids=lambda file: file.stem)
def test_a_recording_says_who_answered(file: Path) -> None:
    facts = recording.Recording.load(file).facts
    for name in ("engine", "version", "dtype", "device", "date", "model", "model_identity"):
        assert facts[name], name


def test_a_changed_dialect_is_not_answered(tmp_path: Path) -> None:
    said = recording.Exchange("POST", "/generate", {"input_ids": [1, 2], "top_k": 1}, 200, {"output_ids": [3]})
    facts = {"engine": "vllm", "engine_args": {"seed": 1}, "version": "9.9"}
    file = tmp_path / "vllm.json"
    recording.Recording(facts, (said, dataclasses.replace(said, answer={"output_ids": [4]}))).save(file, {})
    assert recording.Recording.load(file).exchanges[0] == said

    async def ask() -> list[Any]:
        server = replaying(file, "vllm", tmp_path / "log")
        async with server:
            await server.ready()
            async with HttpClient(server.url, timeout=20) as client:
                answers = [await client.post("/generate", {"top_k": 1, "input_ids": [1, 2]}) for _ in range(3)]
                with pytest.raises(FinalError) as refused:
                    await client.post("/generate", {"top_k": 2, "input_ids": [1, 2]})
        return [*answers, refused.value.message]

    *answers, refusal = asyncio.run(ask())
    assert [answer["output_ids"] for answer in answers] == [[3], [4], [4]]
    for part in ("not in the recording vllm.json of vllm 9.9", "scripts/record_engine.py vllm", "--engine-args seed=1"):
        assert part in refusal


@pytest.mark.e2e
def test_the_questions_are_what_evalswap_renders(demo_model: Path) -> None:
    rendered = questions.render(demo_model)
    assert {name: entry["token_ids"] for name, entry in rendered.items()} == questions.load_questions()
