"""Text and token ids: the model's own chat template and tokenizer, applied in one place.

The tokenizer is transformers' because transformers is the reference; it is imported only here, and only
when ids are needed.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from evalswap.checkpoint import find_folder
from evalswap.errors import ConfigError, ModelFilesError
from evalswap.plan import PromptPlan
from evalswap.records import Message, Prompt


class Tokenizer:
    """A model's tokenizer and chat template."""

    def __init__(self, folder: Path, kwargs: Mapping[str, Any], trust_remote_code: bool = False) -> None:
        """Load from a folder. Raises ModelFilesError if there is no tokenizer in it."""
        os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
        from transformers import AutoTokenizer

        options = {"trust_remote_code": trust_remote_code, **kwargs}
        try:
            self._hf: Any = AutoTokenizer.from_pretrained(str(folder), **options)
        except Exception as error:
            raise ModelFilesError(
                f"no usable tokenizer in {folder}: {str(error).splitlines()[0] if str(error) else error!r}",
                "give the folder that has one with tokenizer_path (or --tokenizer-path)",
            ) from error
        self.folder = folder

    @classmethod
    def for_plan(cls, plan: PromptPlan, revision: str | None = None) -> Tokenizer:
        """Load the tokenizer that a plan names, from a folder or the hub."""
        assert plan.tokenizer_path is not None
        folder = find_folder(plan.tokenizer_path, revision, tokenizer_only=True)
        return cls(folder, plan.tokenizer_kwargs, plan.trust_remote_code)

    @property
    def eos_token_id(self) -> int | None:
        value = self._hf.eos_token_id
        return int(value) if value is not None else None

    @property
    def template_hash(self) -> str | None:
        """SHA-256 of the chat template, or None if the model has none."""
        template = self._hf.chat_template
        return hashlib.sha256(str(template).encode()).hexdigest() if template else None

    @property
    def adds_bos(self) -> bool:
        """Whether plain text gets a beginning-of-sequence token from this tokenizer."""
        bos = self._hf.bos_token_id
        return bos is not None and self._hf("a")["input_ids"][:1] == [bos]

    def single_token_words(self, words: Sequence[str]) -> dict[str, int]:
        """Return word -> id of the words that are exactly one special token."""
        special = self._hf.get_added_vocab()
        return {word: int(special[word]) for word in words if word in special}

    def render(self, conversations: Sequence[tuple[Message, ...]], template_kwargs: Mapping[str, Any]) -> list[str]:
        """Apply the chat template, opening the assistant's turn. Raises ConfigError if it refuses."""
        if not self._hf.chat_template:
            raise ConfigError(
                f"{self.folder}: the tokenizer has no chat template",
                "use type=HuggingFaceBaseModel (--hf-type base) for a base model, or a tokenizer_path with a template",
            )
        try:
            texts = self._hf.apply_chat_template(
                [list(messages) for messages in conversations],
                add_generation_prompt=True,
                tokenize=False,
                **template_kwargs,
            )
        except Exception as error:
            raise ConfigError(f"the chat template refuses these messages: {error}") from error
        return list(texts)

    def encode(self, texts: Sequence[str], *, special_tokens: bool) -> list[list[int]]:
        """Tokenise texts in one batch, with or without the tokenizer's own special tokens."""
        ids = self._hf(list(texts), add_special_tokens=special_tokens, padding=False, truncation=False)
        return [list(row) for row in ids["input_ids"]]

    def count(self, text: str) -> int:
        return len(self.encode([text], special_tokens=False)[0])

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool) -> str:
        return str(self._hf.decode(list(ids), skip_special_tokens=skip_special_tokens))

    def prompts(self, conversations: Sequence[tuple[Message, ...]], plan: PromptPlan, room: int | None) -> list[Prompt]:
        """Render and tokenise chat prompts; ``room`` is the longest prompt allowed, in tokens."""
        texts = self.render(conversations, plan.chat_template_kwargs)
        all_ids = self.encode(texts, special_tokens=False)
        return [
            self._prompt(messages, text, ids, plan, room)
            for messages, text, ids in zip(conversations, texts, all_ids, strict=True)
        ]

    def text_prompts(self, texts: Sequence[str], plan: PromptPlan, room: int | None) -> list[Prompt]:
        """Tokenise plain prompts of a base model, with the tokenizer's own special tokens."""
        all_ids = self.encode(texts, special_tokens=True)
        return [
            self._prompt(({"role": "user", "content": text},), text, ids, plan, room)
            for text, ids in zip(texts, all_ids, strict=True)
        ]

    def _prompt(
        self, messages: tuple[Message, ...], text: str, ids: list[int], plan: PromptPlan, room: int | None
    ) -> Prompt:
        self._assert_one_bos(ids, text)
        length = len(ids)
        if room is not None and length > room:
            return Prompt(messages, text, cut(ids, room, plan.overlong), truncated_from=length)
        return Prompt(messages, text, tuple(ids))

    def _assert_one_bos(self, ids: Sequence[int], text: str) -> None:
        bos = self._hf.bos_token_id
        if bos is not None and len(ids) > 1 and ids[0] == bos and ids[1] == bos:
            raise ConfigError(
                f"a prompt begins with two {self._hf.bos_token} tokens: {text[:60]!r}",
                "the text (or chat template) has one and the tokenizer adds another: take it out of the prompt",
            )


def cut(ids: Sequence[int], room: int, side: str) -> tuple[int, ...]:
    """Shorten ids to ``room``: from the left as HuggingFace does, or in the middle (mode='mid')."""
    if side == "middle":
        half = room // 2
        return tuple(ids[:half]) + tuple(ids[len(ids) - half :]) if half else tuple(ids[-room:])
    return tuple(ids[len(ids) - room :])
