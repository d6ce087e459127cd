"""What a server says about its limits: ``Retry-After`` and the ``x-ratelimit-*`` headers.

``Retry-After`` is RFC 9110, section 10.2.3: seconds, or a date. The others are OpenAI's
(https://platform.openai.com/docs/guides/rate-limits#rate-limits-in-headers), which many servers follow.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime

_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
EPOCH = 1e9  # a plain number beyond this is a moment, not a duration


@dataclass(frozen=True, slots=True)
class Allowance:
    """How much of one limit is left."""

    remaining: float
    limit: float | None
    reset: float  # seconds until the limit is whole again


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Return how many seconds the server asks to wait; None if it does not say."""
    milliseconds = _number(headers.get("retry-after-ms"))
    if milliseconds is not None:
        return milliseconds / 1000
    value = headers.get("Retry-After")
    if not value:
        return None
    seconds = _number(value)
    if seconds is not None:
        return seconds
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return None


def allowance(headers: Mapping[str, str], what: str) -> Allowance | None:
    """Return what is left of a limit; ``what`` is "requests" or "tokens"."""
    remaining = _number(headers.get(f"x-ratelimit-remaining-{what}"))
    if remaining is None:
        return None
    reset = duration(headers.get(f"x-ratelimit-reset-{what}", ""))
    return Allowance(remaining, _number(headers.get(f"x-ratelimit-limit-{what}")), reset or 0.0)


def duration(text: str) -> float | None:
    """Return the seconds in "6m0s", "1.2s", "20ms", "90" or a moment since 1970; None for anything else."""
    number = _number(text)
    if number is not None:
        if number > EPOCH * 1000:
            number /= 1000  # milliseconds since 1970
        return max(0.0, number - time.time()) if number > EPOCH else number
    parts = _PART.findall(text)
    if not parts or "".join(value + unit for value, unit in parts) != text.strip():
        return None
    return sum(float(value) * _SECONDS[unit] for value, unit in parts)


def _number(text: str | None) -> float | None:
    try:
        number = float(text) if text else None
    except ValueError:
        return None
    return number if number is not None and 0 <= number < float("inf") else None
