"""Text and token ids: the model's own chat template and tokenizer, applied in one place.

Who applies them is :mod:`evalswap.prompting.transformers_tokenizer`, in a process beside this one, behind
:mod:`evalswap.prompting.tokenizer_process`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from evalswap.errors import ConfigError
from evalswap.plan import PromptPlan
from evalswap.records import Message, Prompt


@dataclass(frozen=True)
class Vocabulary:
    """What a tokenizer says of its special tokens."""

    added: Mapping[str, int]  # word -> id of the tokens that are no part of text
    eos_token_id: int | None
    bos_token_id: int | None
    bos_token: str | None
    adds_bos: bool  # plain text gets a beginning-of-sequence token
    chat_template: str | None


class TokenizerBackend(Protocol):
    """The tokenizer itself."""

    @property
    def vocabulary(self) -> Vocabulary: ...

    def render(self, conversations: Sequence[tuple[Message, ...]], template_kwargs: Mapping[str, Any]) -> list[str]:
        """Apply the chat template, opening the assistant's turn. Raises ConfigError if it refuses."""

    def encode(self, texts: Sequence[str], special_tokens: bool) -> list[list[int]]:
        """Tokenise texts in one batch, with or without the tokenizer's own special tokens."""

    def decode(self, rows: Sequence[Sequence[int]], skip_special_tokens: bool) -> list[str]:
        """Return the text of each row of token ids."""


class Tokenizer:
    """A model's tokenizer and chat template."""

    def __init__(self, folder: Path, backend: TokenizerBackend) -> None:
        self.folder = folder
        self._backend = backend
        self._vocabulary = backend.vocabulary

    @property
    def eos_token_id(self) -> int | None:
        return self._vocabulary.eos_token_id

    @property
    def template_hash(self) -> str | None:
        """SHA-256 of the chat template, or None if the model has none."""
        template = self._vocabulary.chat_template
        return hashlib.sha256(template.encode()).hexdigest() if template else None

    @property
    def adds_bos(self) -> bool:
        """Whether plain text gets a beginning-of-sequence token from this tokenizer."""
        return self._vocabulary.adds_bos

    def single_token_words(self, words: Sequence[str]) -> dict[str, int]:
        """Return word -> id of the words that are exactly one special token."""
        added = self._vocabulary.added
        return {word: added[word] for word in words if word in added}

    def render(self, conversations: Sequence[tuple[Message, ...]], template_kwargs: Mapping[str, Any]) -> list[str]:
        """Apply the chat template, opening the assistant's turn. Raises ConfigError if it refuses."""
        if not self._vocabulary.chat_template:
            raise ConfigError(
                f"{self.folder}: the tokenizer has no chat template",
                "use type=HuggingFaceBaseModel (--hf-type base) for a base model, or a tokenizer_path with a template",
            )
        return self._backend.render(conversations, template_kwargs)

    def encode(self, texts: Sequence[str], *, special_tokens: bool) -> list[list[int]]:
        """Tokenise texts in one batch, with or without the tokenizer's own special tokens."""
        return self._backend.encode(texts, special_tokens)

    def count(self, text: str) -> int:
        return len(self.encode([text], special_tokens=False)[0])

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool) -> str:
        return self.decode_all([ids], skip_special_tokens=skip_special_tokens)[0]

    def decode_all(self, rows: Sequence[Sequence[int]], *, skip_special_tokens: bool) -> list[str]:
        """Return the text of each row of token ids."""
        return self._backend.decode(rows, skip_special_tokens)

    def prompts(self, conversations: Sequence[tuple[Message, ...]], plan: PromptPlan, room: int | None) -> list[Prompt]:
        """Render and tokenise chat prompts; ``room`` is the longest prompt allowed, in tokens."""
        texts = self.render(conversations, plan.chat_template_kwargs)
        all_ids = self.encode(texts, special_tokens=False)
        return [
            self._prompt(messages, text, ids, plan, room)
            for messages, text, ids in zip(conversations, texts, all_ids, strict=True)
        ]

    def text_prompts(self, texts: Sequence[str], plan: PromptPlan, room: int | None) -> list[Prompt]:
        """Tokenise plain prompts of a base model, with the tokenizer's own special tokens.

        HuggingFace cuts the text and adds these afterwards, so a prompt that is cut from the left keeps them.
        """
        all_ids = self.encode(texts, special_tokens=True)
        overlong = room is not None and any(len(ids) > room for ids in all_ids)
        added = self._added_before() if overlong else 0
        return [
            self._prompt(({"role": "user", "content": text},), text, ids, plan, room, added)
            for text, ids in zip(texts, all_ids, strict=True)
        ]

    def _added_before(self) -> int:
        """Return how many special tokens the tokenizer puts before a text."""
        (ids,), (own,) = (self.encode(["a"], special_tokens=special) for special in (True, False))
        return next((place for place in range(len(ids)) if ids[place : place + len(own)] == own), 0)

    def _prompt(
        self,
        messages: tuple[Message, ...],
        text: str,
        ids: list[int],
        plan: PromptPlan,
        room: int | None,
        added: int = 0,
    ) -> Prompt:
        self._assert_one_bos(ids, text)
        length = len(ids)
        if room is not None and length > room:
            return Prompt(messages, text, cut(ids, room, plan.overlong, added), truncated_from=length)
        return Prompt(messages, text, tuple(ids))

    def _assert_one_bos(self, ids: Sequence[int], text: str) -> None:
        bos = self._vocabulary.bos_token_id
        if bos is not None and len(ids) > 1 and ids[0] == bos and ids[1] == bos:
            raise ConfigError(
                f"a prompt begins with two {self._vocabulary.bos_token} tokens: {text[:60]!r}",
                "the text (or chat template) has one and the tokenizer adds another: take it out of the prompt",
            )


def cut(ids: Sequence[int], room: int, side: str, added: int = 0) -> tuple[int, ...]:
    """Shorten ids to ``room``: from the left as HuggingFace does, or in the middle (mode='mid').

    ``added``: how many ids at the beginning are not the text's, and stay when it is cut from the left.
    """
    if side == "middle":
        half = room // 2
        return tuple(ids[:half]) + tuple(ids[len(ids) - half :]) if half else tuple(ids[-room:])
    kept = min(added, room)
    return tuple(ids[:kept]) + tuple(ids[len(ids) - room + kept :])
