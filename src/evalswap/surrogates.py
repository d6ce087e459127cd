"""Texts that can be written anywhere."""

from __future__ import annotations


def storable(text: str) -> str:
    """Return a text that can be written anywhere: half a surrogate pair, as JSON can hold, becomes U+FFFD."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
