"""How fast requests may start: what the user says, and what a server says of itself.

All times are those of the event loop's clock, in seconds.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Mapping

from evalswap.inference.rate_headers import Allowance, allowance

MINUTE = 60.0
LONGEST_BELIEVED = 60.0  # seconds; then one request tries, and a server that has nothing to give says so itself


class Bucket:
    """A token bucket that is kept as one moment (GCRA, ITU-T I.371): ``burst`` at once, then ``rate`` a second.

    Whatever happens, no more than ``burst + rate * t`` starts in any ``t`` seconds, with room for one more where an
    amount is not known before it is taken.
    """

    def __init__(self, rate: float, burst: float = 1.0) -> None:
        self._each = 1.0 / rate
        self._tolerance = (burst - 1.0) * self._each
        self._full_at = -math.inf  # when everything taken so far will have been paid

    def ready_at(self) -> float:
        return self._full_at - self._tolerance

    def take(self, now: float, amount: float = 1.0) -> None:
        self._full_at = max(now, self._full_at) + amount * self._each

    def give_back(self, amount: float) -> None:
        self._full_at -= amount * self._each


class RateLimits:
    """The limits that a user sets, for a model or for one key."""

    def __init__(
        self,
        per_second: float | None = None,
        *,
        requests_per_minute: int | None = None,
        tokens_per_minute: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``per_second`` spaces requests evenly; the others are kept in any sixty seconds.

        ``clock`` is what :meth:`last_minute` looks at; it must be the event loop's.
        """
        self._buckets: list[Bucket] = []
        if per_second:
            self._buckets.append(Bucket(per_second))
        if requests_per_minute:
            burst = max(1, requests_per_minute // 60)
            self._buckets.append(Bucket((requests_per_minute - burst + 1) / MINUTE, burst))
        self._tokens = Bucket(tokens_per_minute / MINUTE) if tokens_per_minute else None
        self._clock = clock
        self._seconds: deque[tuple[int, int]] = deque()  # (second, requests that started in it), a minute of them

    def ready_at(self) -> float:
        """Return when the next request may start."""
        moment = max((bucket.ready_at() for bucket in self._buckets), default=-math.inf)
        return max(moment, self._tokens.ready_at()) if self._tokens else moment

    def take(self, now: float, tokens: int) -> None:
        """Count a request that starts now and may cost ``tokens``."""
        for bucket in self._buckets:
            bucket.take(now)
        if self._tokens:
            self._tokens.take(now, tokens)
        second = int(now)
        if self._seconds and self._seconds[-1][0] == second:
            self._seconds[-1] = (second, self._seconds[-1][1] + 1)
        else:
            self._seconds.append((second, 1))
            while self._seconds[0][0] <= second - MINUTE:
                self._seconds.popleft()

    def settle(self, expected: int, used: int) -> None:
        """Correct what a request was thought to cost by what it did cost."""
        if self._tokens:
            self._tokens.give_back(expected - used)

    def last_minute(self) -> int:
        """Return how many requests started in the last 60 seconds."""
        since = int(self._clock()) - MINUTE
        return sum(count for second, count in list(self._seconds) if second > since)


class ToldLimit:
    """One limit as a server's headers tell it: how much is left, and how fast it comes back."""

    def __init__(self) -> None:
        self._left = math.inf
        self._each = 0.0  # seconds until one more is allowed
        self._amount = 1.0  # what the last request took
        self._ready_at = -math.inf

    def ready_at(self) -> float:
        return self._ready_at

    def take(self, now: float, amount: float) -> None:
        self._left -= amount
        self._amount = amount
        if self._left < amount:
            self._ready_at = now + min(amount * self._each, LONGEST_BELIEVED)

    def hear(self, told: Allowance, now: float, on_the_way: int) -> None:
        """Believe the newest headers, which do not know what is still on the way.

        Without a limit's size, nothing comes back before the reset.
        """
        gone = told.limit - told.remaining if told.limit is not None else 0.0
        self._left = told.remaining - on_the_way * self._amount
        self._each = told.reset / (gone if gone > 0 else self._amount)
        short = min(self._amount - self._left, self._amount)
        self._ready_at = now + min(short * self._each, LONGEST_BELIEVED) if short > 0 else -math.inf


class ToldLimits:
    """What the headers of one key's answers say, requests and tokens."""

    def __init__(self) -> None:
        self._requests, self._tokens = ToldLimit(), ToldLimit()
        self.heard = False

    def hear(self, headers: Mapping[str, str], now: float, on_the_way: int) -> None:
        """Take in an answer's headers; ``on_the_way`` other requests are in flight."""
        for limit, what in ((self._requests, "requests"), (self._tokens, "tokens")):
            told = allowance(headers, what)
            if told is not None:
                self.heard = True
                limit.hear(told, now, on_the_way)

    def ready_at(self) -> float:
        return max(self._requests.ready_at(), self._tokens.ready_at()) if self.heard else -math.inf

    def take(self, now: float, tokens: int) -> None:
        if self.heard:
            self._requests.take(now, 1)
            self._tokens.take(now, tokens)
