"""Keeping secrets out of everything that is written or shown."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from evalswap.engines.registry import ALIASES, engine_names

MASK = "***"
SECRET_NAMES = frozenset(
    {"key", "api_key", "token", "hf_token", "use_auth_token", "auth_token", "password", "secret", "authorization"}
)
SECRET_VARIABLES = ("OPENAI_API_KEY", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "MODELSCOPE_API_TOKEN")
# What people give as a key to a server that wants none.
PLACEHOLDERS = frozenset(
    {"empty", "env", "none", "null", "dummy", "fake", "placeholder", "token-abc", "no-key", "not-needed"}
)
_SHORTEST = 4  # a shorter text says nothing that could be told from other words
_LONG = 16  # from here on, nothing but the secret reads like it
_WORD_BEGINS = r"(?:(?<![\w-])|(?<=\\[nrt]))"  # the second: behind a line's end that a server's JSON wrote as \n
_WORD_ENDS = r"(?![\w-])"
_PATTERNS = tuple(
    re.compile(f"(?i){pattern}")
    for pattern in (
        r"(bearer\s+)[A-Za-z0-9_\-.]{8,}",
        _WORD_BEGINS + r"(sk-)[A-Za-z0-9_-]{16,}(?:\.[A-Za-z0-9_-]+)*",
        r"(https?://)[^/\s\"'<>]+(?=@)",  # user:password
        r"([?&](?:[\w-]*(?:api[_-]?key|token|password|secret)|key)=)[^&#\s\"'<>]+",
    )
)


def secrets_in(value: Any, name: str = "") -> Iterator[str]:
    """Yield the texts that stand under a secret's name anywhere in a config ("token", "api_key", …)."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from secrets_in(item, str(key).lower().replace("-", "_"))
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from secrets_in(item, name)
    elif isinstance(value, str) and name.removeprefix("x_") in SECRET_NAMES:
        yield from (value, *value.split(","), value.removeprefix("Bearer "))


def redact_values(value: Any, redact: Callable[[str], str]) -> Any:
    """Return a nested value with its texts masked; keys and numbers stay, an object of another kind becomes text.

    What is to be written as JSON or as a config is masked so: masking what is serialised already could break it.
    """
    if isinstance(value, Mapping):
        return {key: redact_values(item, redact) for key, item in value.items()}
    if isinstance(value, tuple):
        return tuple(redact_values(item, redact) for item in value)
    if isinstance(value, list):
        return [redact_values(item, redact) for item in value]
    return value if value is None or isinstance(value, (bool, int, float)) else redact(str(value))


class Redactor:
    """Masks known secrets, and what looks like one, in any text.

    A short secret is masked where it is a word of its own: a key like "data" is in many words that are none. A
    placeholder ("EMPTY") and an engine's name are no secrets.
    """

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        from_env = [part for name in SECRET_VARIABLES for part in os.environ.get(name, "").split(",")]
        known = {secret.strip() for secret in [*secrets, *from_env]}
        public = {*PLACEHOLDERS, *engine_names(), *ALIASES}
        hidden = [secret for secret in known if len(secret) >= _SHORTEST and secret.lower() not in public]
        self._known = [_known(secret) for secret in sorted(hidden, key=len, reverse=True)]

    def __call__(self, text: str) -> str:
        for pattern in self._known:
            text = pattern.sub(MASK, text)
        for pattern in _PATTERNS:
            text = pattern.sub(rf"\g<1>{MASK}", text)
        return text


def _known(secret: str) -> re.Pattern[str]:
    literal = re.escape(secret)
    return re.compile(literal if len(secret) >= _LONG else _WORD_BEGINS + literal + _WORD_ENDS)
