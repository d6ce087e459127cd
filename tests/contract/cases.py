"""What every engine is asked: the requests of the contract, shared by the tests and by the recorder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from questions import DEMO_ROWS

from evalswap.records import Prompt, Request, Sampling

CONTEXT_LEN = 192  # tokens, prompt and answer; what the engines are started with
LENGTH = 24  # tokens of an answer
EOS = 2  # <|im_end|>
GREEDY = Sampling(max_new_tokens=LENGTH, stop_token_ids=(EOS,))
DRAWN = replace(GREEDY, temperature=1.5, top_p=0.9, top_k=40)
HELD_BACK = 20  # tokens before which a short answer may not end
STOP_WORD, STOP_WORD_IDS = "we need", (392, 737)  # two tokens, whole only with the second
STOP_AT = 9  # the token of an answer that is made a stop

WHOLE = tuple(f"greedy-{row}" for row in range(DEMO_ROWS))
# Greedy answers that depend on nothing but the model, so in float32 they are transformers' to the last token.
EXACT = (*WHOLE, "plain", "short", "short, eos no stop", "short, held back", "one token", "repetition penalty")
NARROWED = ("narrowed by top_k", "narrowed by top_p", "narrowed by min_p")  # to one token: greedy by another name
SEEDED = ("seed 7", "seed 7 again", "seed 8")
TOO_LONG = ("prompt too long", "no room to answer")
# Told to ignore end tokens, it never writes one, where transformers writes one and goes on (docs/engines.md).
BANS_END_TOKENS = {"llamacpp": ("short, eos no stop",)}


def first_requests(questions: Mapping[str, Sequence[int]]) -> dict[str, Request]:
    """Return name → request, for all but those that need an engine's own answer first."""
    demo = [questions[f"demo-{row}"] for row in range(DEMO_ROWS)]
    asked: dict[str, tuple[Sequence[int], Sampling]] = {
        **{name: (ids, GREEDY) for name, ids in zip(WHOLE, demo, strict=True)},
        "plain": (questions["plain"], GREEDY),
        "short": (questions["short"], GREEDY),
        "short, eos no stop": (questions["short"], replace(GREEDY, stop_token_ids=())),
        "short, held back": (questions["short"], replace(GREEDY, min_new_tokens=HELD_BACK)),
        "one token": (demo[0], replace(GREEDY, max_new_tokens=1)),
        "repetition penalty": (demo[0], replace(GREEDY, repetition_penalty=1.3)),
        "stop word": (demo[0], replace(GREEDY, stop=(STOP_WORD,))),
        "narrowed by top_k": (demo[0], replace(GREEDY, temperature=1.5, top_k=1)),
        "narrowed by top_p": (demo[0], replace(GREEDY, temperature=1.5, top_p=1e-6)),
        "narrowed by min_p": (demo[0], replace(GREEDY, temperature=1.5, min_p=1.0)),
        "drawn": (demo[0], DRAWN),
        "seed 7": (demo[0], replace(DRAWN, seed=7)),
        "seed 7 again": (demo[0], replace(DRAWN, seed=7)),
        "seed 8": (demo[0], replace(DRAWN, seed=8)),
        "prompt too long": (_repeated(demo[0], 2 * CONTEXT_LEN), GREEDY),
        "no room to answer": (_repeated(demo[0], CONTEXT_LEN - 4), replace(GREEDY, stop_token_ids=())),
    }
    return {name: _request(ids, sampling) for name, (ids, sampling) in asked.items()}


def second_requests(first: Mapping[str, Request], greedy: Sequence[int]) -> dict[str, Request]:
    """Return the requests that are made of an engine's own answer to "greedy-0"."""
    sampling = replace(GREEDY, stop_token_ids=(EOS, new_token(greedy)))
    return {"stop id": replace(first["greedy-0"], sampling=sampling)}


def new_token(answer: Sequence[int]) -> int:
    """Return the first token from ``STOP_AT`` on that the answer has not said before."""
    return next(token for place, token in enumerate(answer) if place >= STOP_AT and token not in answer[:place])


def _request(ids: Sequence[int], sampling: Sampling) -> Request:
    return Request(key="", job="contract", row=0, prompt=Prompt((), None, tuple(ids)), sampling=sampling)


def _repeated(ids: Sequence[int], length: int) -> list[int]:
    return ([*ids] * (length // len(ids) + 1))[-length:]
