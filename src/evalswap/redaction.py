"""Keeping secrets out of everything that is written or shown."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

MASK = "***"
SECRET_NAMES = frozenset(
    {"key", "api_key", "token", "hf_token", "use_auth_token", "auth_token", "password", "secret", "authorization"}
)
SECRET_VARIABLES = ("OPENAI_API_KEY", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "MODELSCOPE_API_TOKEN")
_BEARER = re.compile(r"(?i)(bearer\s+|sk-)[A-Za-z0-9_\-.]{8,}")
_USERINFO = re.compile(r"(?i)(https?://)[^/@\s:]+:[^/@\s]+@")


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


class Redactor:
    """Masks known secrets, and what looks like one, in any text."""

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        from_env = [part for name in SECRET_VARIABLES for part in os.environ.get(name, "").split(",") if part.strip()]
        known = {secret.strip() for secret in [*secrets, *from_env] if len(secret.strip()) >= 4}
        self._known = sorted(known - {"EMPTY", "ENV", "none", "None"}, key=len, reverse=True)

    def __call__(self, text: str) -> str:
        for secret in self._known:
            text = text.replace(secret, MASK)
        return _USERINFO.sub(rf"\1{MASK}@", _BEARER.sub(rf"\1{MASK}", text))
