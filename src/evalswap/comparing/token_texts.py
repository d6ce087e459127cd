"""The text of single tokens, from a model's tokenizer.json alone: no transformers, so it is there at once."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path


@cache
def token_decoder(folder: Path) -> Callable[[int], str] | None:
    """Return a function from a token id to its text; None where the folder has no tokenizer.json (any more)."""
    file = folder / "tokenizer.json"
    if not file.is_file():
        return None
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception:  # it raises a bare Exception; without texts the ids are shown
        return None

    @cache
    def decode(token: int) -> str:
        text = tokenizer.decode([token], skip_special_tokens=False)
        return text or tokenizer.id_to_token(token) or f"id {token}"

    return decode
