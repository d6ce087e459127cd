"""What the prompts of a dataset will be: a few hundred rows are rendered and tokenised as a run would do it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from evalswap.prompting.requests import Prepared, RequestMaker

MOST_ROWS = 512  # about 50 ms
MOST_CHARACTERS = 1_000_000  # about half a second


@dataclass(frozen=True, slots=True)
class PromptSample:
    """A dataset's prompts, as far as a sample of its rows tells."""

    rows: int  # of the dataset
    looked_at: int
    first: str  # the first row's prompt, rendered
    first_tokens: int | None  # None where a server makes the tokens; so the others
    begins_with: str | None  # the text of its first token
    adds_bos: bool | None  # whether the tokenizer puts a BOS token before plain text
    longest: int | None  # tokens of the longest prompt, before it is cut
    cut: int  # prompts that are too long and lose tokens
    shortened: int  # answers with less room than they may have
    impossible: int  # rows of which no request can be made
    problem: str | None  # why not, for the first of them


def sample_prompts(maker: RequestMaker, rows: Sequence[Mapping[str, Any]]) -> PromptSample:
    """Make the prompts of rows spread evenly over a dataset. Raises ConfigError or DataError as a run would."""
    chosen = spread(rows)
    tokenizer = maker.tokenizer
    made = [item for chunk in maker.prepare(chosen) for item in chunk]
    impossible = [item.problem for item in made if item.problem is not None]
    ids = made[0].prompt.token_ids
    lengths = [item.prompt.truncated_from or len(item.prompt.token_ids or ()) for item in made]
    return PromptSample(
        rows=len(rows),
        looked_at=len(made),
        first=_text(made[0]),
        first_tokens=None if ids is None else len(ids),
        begins_with=tokenizer.decode(ids[:1], skip_special_tokens=False) if tokenizer and ids else None,
        adds_bos=tokenizer.adds_bos if tokenizer else None,
        longest=max(lengths) if tokenizer else None,
        cut=sum(item.prompt.truncated_from is not None for item in made),
        shortened=sum(item.shortened for item in made),
        impossible=len(impossible),
        problem=impossible[0] if impossible else None,
    )


def spread(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return rows spread evenly, the first always: no more than can be made in a moment."""
    step = max(1, -(-len(rows) // MOST_ROWS))
    while True:
        chosen = list(islice(rows, 0, None, step))
        length = sum(len(str(value)) for row in chosen for value in row.values())
        if length <= MOST_CHARACTERS or len(chosen) == 1:
            return chosen
        step *= max(2, -(-length // MOST_CHARACTERS))


def _text(item: Prepared) -> str:
    if item.prompt.text is not None:
        return item.prompt.text
    return "\n".join(f"{message['role']}: {message['content']}" for message in item.prompt.messages)
