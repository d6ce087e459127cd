"""Which requests are asked together, in an engine that has died of one of them.

Normally all are, in one round. What an engine was working on when it died is asked again after everything else, and
what it was working on twice is under suspicion: it is asked in ever smaller groups, at last one at a time. So one
prompt that kills the engine is found, and all others are answered.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Collection, Sequence
from dataclasses import dataclass

from evalswap.inference.pending import Open, PendingRequests
from evalswap.records import Request

SUSPECT = 2  # crashes from which on a request is under suspicion
NARROWING = 8  # a round of suspects has this part of them in flight
CASUALTY_SECONDS = 15.0  # before an engine's death is known, in which its requests fail already


@dataclass(frozen=True, slots=True)
class Round:
    """Requests that are asked with the same care."""

    again: Sequence[Open]  # those that were taken in an earlier round
    fresh: PendingRequests | None  # those that were not
    most: int | None  # that may be in flight; None: as many as the engine takes
    began: float

    async def requests(self) -> AsyncIterator[Request]:
        for entry in self.again:
            yield entry.request
        if self.fresh is not None:
            async for request in self.fresh:
                yield request


class Rounds:
    """Deals a model's pending requests out in rounds."""

    def __init__(self, pending: PendingRequests) -> None:
        self._pending = pending
        self._last_hit: int | None = None  # how many requests were in flight when the engine died last

    def next(self) -> Round | None:
        """Return the next round, the least suspicious first; None if nothing is left."""
        now, again = time.perf_counter(), self._taken()
        if self._pending.left:
            return Round([entry for entry in again if entry.crashes == 0], self._pending, None, now)
        if not again:
            return None
        crashes = min(entry.crashes for entry in again)
        chosen = [entry for entry in again if entry.crashes == crashes]
        if crashes < SUSPECT:
            return Round(chosen, None, None, now)
        most = max(1, len(chosen) // NARROWING)
        return Round(chosen if most > 1 else chosen[:1], None, most, now)

    def died(self, of: Round, unasked: Collection[str], *, proven: bool, progress: bool) -> tuple[Open | None, bool]:
        """Hear that the engine died in a round; ``unasked`` are the keys that it was not working on.

        ``proven``: it has answered something since the run began; ``progress``: since it died last. Return the request
        that kills it, if that is found, and whether there is hope: an answer, or fewer suspects than before.
        """
        since = max(of.began, time.perf_counter() - CASUALTY_SECONDS)
        left = [entry for entry in self._taken() if entry.crashes == 0] if of.fresh is not None else of.again
        hit = [
            entry
            for entry in left
            if entry.request.key in self._pending.open
            and (entry.request.key not in unasked or entry.failed_at >= since)
        ]
        for entry in hit:
            entry.crashes += 1
        narrowed = proven and self._last_hit is not None and len(hit) < self._last_hit
        self._last_hit = len(hit)
        culprit = hit[0] if of.most == 1 and len(hit) == 1 else None
        return culprit, progress or narrowed

    def _taken(self) -> list[Open]:
        return [entry for entry in self._pending.open.values() if entry.taken]
