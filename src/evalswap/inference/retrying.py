"""When a request is asked again, and when it has failed. What counts as what: :mod:`evalswap.inference.faults`."""

from __future__ import annotations

import random
from dataclasses import dataclass

from evalswap.errors import EvalswapError
from evalswap.inference.endpoints import Endpoint
from evalswap.inference.faults import TransientError
from evalswap.inference.feed import Item

# Seconds until a request's last failure counts at a supervised server: until then it would be known that the server has
# died or is ill, and somebody had ended the asking (see supervision.py).
VERDICT_AFTER = 25.0


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often and how late a request is asked again.

    The pause doubles with each attempt and is drawn from zero to that ("full jitter",
    https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/), so that requests that failed together
    do not come back together. A server's own wish comes before it, unless that is shorter than our first pause: "now",
    said to all who are refused, would spend all their chances in a moment.
    """

    retries: int = 3  # attempts after the first
    waits: int = 30  # how often a server may say "later" (429) to one request; these are no attempts
    deadline: float = 6 * 3600.0  # seconds from a request's first attempt until the start of its last
    first_pause: float = 0.5  # seconds
    longest_pause: float = 60.0  # seconds
    longest_wish: float = 3600.0  # seconds; a server that asks to wait longer than that has nothing to give today

    def pause(self, times: int, wish: float | None = None) -> float:
        """Return how long to wait after the ``times``-th failure (1, 2, …), in seconds."""
        longest = min(self.longest_pause, self.first_pause * 2.0 ** min(times - 1, 30))
        if wish is None or wish < self.first_pause:
            return max(wish or 0.0, random.uniform(0.0, longest))
        return wish + random.uniform(0.0, min(longest, 0.1 * wish))

    def after(self, item: Item, endpoint: Endpoint, error: EvalswapError, now: float) -> float | None:
        """Count a transient error and return the seconds until the next attempt; None if the request has failed.

        At a supervised endpoint the verdict waits: the server may be dying, and then the failure was not the request's.
        """
        kind, wish = "failed", None
        if isinstance(error, TransientError):
            kind, wish = error.kind, error.retry_after
        if kind == "unsent":  # it has reached nobody
            item.attempts -= 1
            return self.pause(1)
        if kind == "busy":
            item.attempts -= 1
            item.waits += 1
            pause, spent = self.pause(item.waits, wish), item.waits > self.waits
        else:
            pause, spent = self.pause(item.attempts, wish), item.attempts > self.retries
        failed = spent or now + pause > item.began + self.deadline
        if not failed:
            return pause
        if not endpoint.supervised:
            return None
        item.verdict = error
        return VERDICT_AFTER
