"""From what an engine returned to the text that is scored: cut at stops and decoded, once, here.

HuggingFace's rules: the text ends before the first stop word or stop id; chat answers keep other special
tokens, base answers drop them.
"""

from __future__ import annotations

from collections.abc import Sequence

from evalswap.prompting.tokenizer import Tokenizer
from evalswap.records import Completion, Sampling
from evalswap.surrogates import storable


def answer_texts(
    answers: Sequence[tuple[Completion, Sampling]], tokenizer: Tokenizer | None, *, skip_special_tokens: bool
) -> list[str]:
    """Return the answers' texts without their stops; those that came as token ids are decoded all at once."""
    texts = [completion.text or "" for completion, _ in answers]
    if tokenizer is not None:
        ids = {
            place: before_stop_id(completion.token_ids, sampling)
            for place, (completion, sampling) in enumerate(answers)
            if completion.token_ids is not None
        }
        decoded = tokenizer.decode_all(list(ids.values()), skip_special_tokens=skip_special_tokens) if ids else []
        for place, text in zip(ids, decoded, strict=True):
            texts[place] = text
    return [before_stop_word(storable(text), sampling.stop) for text, (_, sampling) in zip(texts, answers, strict=True)]


def before_stop_id(ids: Sequence[int], sampling: Sampling) -> Sequence[int]:
    """Return the ids before the first stop id, not looking at those that min_new_tokens protects."""
    stops = set(sampling.stop_token_ids)
    for place, token in enumerate(ids):
        if token in stops and place >= sampling.min_new_tokens:
            return ids[:place]
    return ids


def before_stop_word(text: str, words: Sequence[str]) -> str:
    """Return the text before the first of the stop words."""
    for word in words:
        if word:
            text = text.split(word, 1)[0]
    return text
