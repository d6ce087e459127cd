"""What engines' answers have in common: lists of token ids, and how they ended."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from evalswap.engines.base import FinalAnswerError, MalformedAnswer
from evalswap.records import FinishReason, Request

MOST_IDS = 2**32  # that any vocabulary has


def as_ids(value: Any, engine: str) -> tuple[int, ...]:
    """Return a list of token ids from an answer. Raises MalformedAnswer if it is none."""
    if not isinstance(value, list) or not all(type(item) is int and 0 <= item < MOST_IDS for item in value):
        raise MalformedAnswer(f"{engine} sent no list of token ids")
    return tuple(value)


def end_of(ids: Sequence[int], request: Request, engine: str, *, ended_by_id: bool, ran_out: bool) -> FinishReason:
    """Return how an answer ended, of an engine that cannot be told to ignore its own end tokens.

    ``ended_by_id``: the engine says that a token ended the answer. ``ran_out``: that there was no more room.

    Raises FinalAnswerError where the model would have written on: a token ended the answer that the request
    does not name, or it is shorter than asked for.
    """
    sampling = request.sampling
    if ids and ids[-1] in sampling.stop_token_ids:
        return "stop"
    if ended_by_id:
        last = ids[-1] if ids else "none"
        raise FinalAnswerError(
            f"{engine} ended the answer at token {last}, which is no stop of this run "
            f"({', '.join(map(str, sampling.stop_token_ids)) or 'it has none'}), and it cannot be told to go on",
            "name the model's own end tokens with generation_kwargs=dict(eos_token_id=[…]), or choose another engine",
        )
    if not ran_out:
        return "stop"
    if len(ids) < sampling.max_new_tokens:
        raise FinalAnswerError(
            f"{engine} ran out of room after {len(ids)} of {sampling.max_new_tokens} tokens",
            "give it more memory for its KV cache, or a smaller max_out_len",
        )
    return "length"
