"""What can go wrong with one attempt at a request, and how the request then ends.

| what happens | kind | what follows |
|---|---|---|
| no connection: refused, no such host, too slow | unsent | not an attempt; the circuit counts it |
| the connection drops, before or in the body | broken | another attempt; the circuit counts it |
| no answer in time | broken | the same |
| HTTP 502, 503, 504, other 5xx but 500, 501, 505 | unavailable | the same |
| HTTP 429; 503 or 529 with a Retry-After | busy | it waits as asked; not an attempt, but not for ever |
| HTTP 500, 408, 409, 425, 499 | failed | another attempt |
| 200, but not JSON | failed | another attempt |
| no choice, no message, no ids; any other shape | ``MalformedAnswer`` | another attempt |
| ``finish_reason`` error, abort or null | ``MalformedAnswer`` | another attempt |
| ``finish_reason`` content_filter | – | an answer, scored as what it says |
| an unknown ``finish_reason`` | ``FinalAnswerError`` | the request fails |
| a stream that nobody asked for | final | the request fails |
| HTTP 400, 413, 422, other 4xx, 501, 505 | final | the request fails (context length, content policy, a bad field) |
| HTTP 401, 402; 429 for an empty account | final, refuses | the endpoint is left; without another one the asking ends |
| HTTP 403, 404, 405 three times before any answer | final, refuses | the same |
| a certificate that cannot be trusted | final, refuses | the same |
| a Retry-After beyond the policy's ``longest_wish`` | busy | the same |

A request that has failed is reported once, with the last error. "Another attempt" is one of the policy's ``retries``,
after a pause.

The meaning of the statuses is RFC 9110's (https://www.rfc-editor.org/rfc/rfc9110#section-15); 52x are Cloudflare's, 529
is an overloaded server, and OpenAI's account errors are those of
https://platform.openai.com/docs/guides/error-codes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Literal

from evalswap.errors import EvalswapError
from evalswap.inference.rate_headers import retry_after

Kind = Literal["unsent", "broken", "unavailable", "busy", "failed"]

FAILED_STATUS = frozenset({408, 409, 425, 499, 500})
BUSY_STATUS = frozenset({429, 503, 529})
UNSUPPORTED_STATUS = frozenset({501, 505})
REFUSING_STATUS = frozenset({401, 402})
REFUSING_FIRST_STATUS = frozenset({403, 404, 405})  # later they may be about one prompt
EMPTY_ACCOUNT = frozenset({"insufficient_quota", "billing_hard_limit_reached", "billing_not_active"})


class TransientError(EvalswapError):
    """The same request may succeed later. ``retry_after`` is the server's wish, in seconds."""

    def __init__(
        self, message: str, retry_after: float | None = None, *, kind: Kind = "failed", status: int | None = None
    ) -> None:
        super().__init__(message)
        self.retry_after = retry_after
        self.kind: Kind = kind
        self.status = status


class FinalError(EvalswapError):
    """The same request will never succeed. ``refuses``: no other one will, either, at this endpoint."""

    def __init__(self, message: str, status: int | None = None, *, refuses: bool = False) -> None:
        super().__init__(message)
        self.status = status
        self.refuses = refuses or status in REFUSING_STATUS


def fault_of(status: int, headers: Mapping[str, str], content: bytes) -> TransientError | FinalError:
    """Return what an answer that is not 200 means."""
    reason, code = _reason(content)
    message = f"HTTP {status}: {reason}"
    if status == 429 and code in EMPTY_ACCOUNT:
        return FinalError(message, status, refuses=True)
    wish = retry_after(headers)
    if status == 429 or (status in BUSY_STATUS and wish is not None):
        return TransientError(message, wish, kind="busy", status=status)
    if status in FAILED_STATUS:
        return TransientError(message, wish, kind="failed", status=status)
    if status > 500 and status not in UNSUPPORTED_STATUS:
        return TransientError(message, wish, kind="unavailable", status=status)
    return FinalError(message, status)


def _reason(content: bytes) -> tuple[str, str]:
    """Return an error body's message, and its code if it has one."""
    text, code = content.decode("utf-8", errors="replace").strip(), ""
    try:
        data: Any = json.loads(text)
        inner = data.get("error", data) if isinstance(data, dict) else data
        if isinstance(inner, dict):
            text, code = str(inner.get("message") or inner), str(inner.get("code") or inner.get("type") or "")
        else:
            text = str(inner)
    except ValueError:
        pass
    return " ".join(text.split())[:500] or "(no text)", code
