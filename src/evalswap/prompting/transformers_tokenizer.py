"""transformers' own tokenizer and chat template, because transformers is the reference.

The only module that imports transformers, and it does when a tokenizer is loaded.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from evalswap.errors import ConfigError, ModelFilesError
from evalswap.prompting.tokenizer import Vocabulary
from evalswap.records import Message


class TransformersTokenizer:
    """A TokenizerBackend in the process that makes it, which is never a command's own (see ``tokenizer_answering``)."""

    def __init__(self, folder: Path, kwargs: Mapping[str, Any], trust_remote_code: bool = False) -> None:
        """Load from a folder. Raises ModelFilesError if there is no tokenizer in it."""
        import_transformers()
        from transformers import AutoTokenizer

        options = {"trust_remote_code": trust_remote_code, **kwargs}
        try:
            self._hf: Any = AutoTokenizer.from_pretrained(str(folder), **options)
        except Exception as error:
            raise ModelFilesError(
                f"no usable tokenizer in {folder}: {str(error).splitlines()[0] if str(error) else error!r}",
                "give the folder that has one with tokenizer_path (or --tokenizer-path)",
            ) from error
        if type(self._hf).__name__ == "MistralCommonBackend":  # it knows no added words, and encodes "[INST]" as text
            raise ModelFilesError(
                f"transformers reads {folder} with mistral-common here, which does not encode prompts as text",
                "install evalswap where mistral-common is not (pip uninstall mistral-common), apart from the engine",
            )

    @property
    def vocabulary(self) -> Vocabulary:
        hf = self._hf
        bos, eos = hf.bos_token_id, hf.eos_token_id
        return Vocabulary(
            added={word: int(token) for word, token in hf.get_added_vocab().items()},
            eos_token_id=None if eos is None else int(eos),
            bos_token_id=bos,
            bos_token=None if bos is None else str(hf.bos_token),
            adds_bos=bos is not None and hf("a")["input_ids"][:1] == [bos],
            chat_template=str(hf.chat_template) if hf.chat_template else None,
        )

    def render(self, conversations: Sequence[tuple[Message, ...]], template_kwargs: Mapping[str, Any]) -> list[str]:
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

    def encode(self, texts: Sequence[str], special_tokens: bool) -> list[list[int]]:
        ids = self._hf(list(texts), add_special_tokens=special_tokens, padding=False, truncation=False)
        return [list(row) for row in ids["input_ids"]]

    def decode(self, rows: Sequence[Sequence[int]], skip_special_tokens: bool) -> list[str]:
        return [str(self._hf.decode(list(ids), skip_special_tokens=skip_special_tokens)) for ids in rows]


def import_transformers() -> None:
    """Import what loading a tokenizer needs, without its advice for people who load models."""
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    from transformers import AutoTokenizer  # noqa: F401
