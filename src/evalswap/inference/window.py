"""How many requests are in flight at once at one endpoint: fixed, after the engine's load, or by trial.

Each control holds ``size``, the number that is right now; the asker never goes beyond it. A request that waits for
another attempt holds no place.
"""

from __future__ import annotations

import copy
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar

from evalswap.engines.base import EngineLoad


class WindowControl(ABC):
    """A strategy, and its state for one endpoint."""

    follows_load: ClassVar[bool] = False  # whether the engine's load is wanted

    def __init__(self, ceiling: int, start: int | None = None) -> None:
        """Begin with ``start`` places (the ceiling, unless given) and never have more than ``ceiling``."""
        if ceiling < 1:
            raise ValueError("a window has at least one place")
        self.ceiling = ceiling
        self.size = ceiling if start is None else max(1, min(start, ceiling))

    def fresh(self) -> WindowControl:
        """Return the same strategy at its beginning, for one more endpoint."""
        return copy.copy(self)

    @abstractmethod
    def outcome(self, good: bool, in_flight: int) -> None:
        """Hear of an attempt that ended; ``in_flight`` counts it. Not good: the server had too much to do, or fell."""

    def loaded(self, load: EngineLoad, in_flight: int) -> None:
        """Hear what the engine says of its load."""
        return


class FixedWindow(WindowControl):
    """Always the same size."""

    def outcome(self, good: bool, in_flight: int) -> None:
        pass


class AdaptiveWindow(WindowControl):
    """For servers that do not tell their load: slow start, then additive increase, multiplicative decrease.

    One window's worth of outcomes, a round, is judged together. It shrinks the window if many were bad (Chiu and Jain
    1989 with a tolerance): services lose single requests for reasons of their own, and to halve the window for each of
    them would starve a healthy server. Slow start doubles the window in a round. It ends with the first that brought
    answers less than a quarter faster than the one before: a server at its limit that refuses nothing only makes its
    queue longer. The quarter is that of BBR's "full pipe" (Cardwell et al. 2016), which waits for three such rounds.
    """

    FIRST = 16  # places at the start, unless given
    TROUBLED = 0.2  # share of bad outcomes from which the window is too large
    SHRINK = 0.7
    FASTER = 1.25
    FEWEST = 20  # outcomes that are judged together at least

    def __init__(
        self,
        ceiling: int,
        start: int | None = None,
        *,
        patience: float = math.inf,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``patience``: seconds that a round may take for the window to grow, which is about how long a request takes.

        ``clock`` must be the event loop's.
        """
        super().__init__(ceiling, self.FIRST if start is None else start)
        self._patience = patience
        self._clock = clock
        self._slow_start = True
        self._settling = 0  # outcomes still to come of requests that started before the last decrease
        self._rate = 0.0  # answers a second in the last round of slow start
        self._begin_round()

    def fresh(self) -> WindowControl:
        window = copy.copy(self)
        window._begin_round()
        return window

    def _begin_round(self) -> None:
        self._began = self._clock()
        self._seen = self._bad = 0
        self._round = max(self.FEWEST, self.size)  # outcomes

    def outcome(self, good: bool, in_flight: int) -> None:
        if self._settling:
            self._settling -= 1
            if not self._settling:
                self._begin_round()
            return
        self._seen += 1
        self._bad += not good
        full = 2 * in_flight > self.size  # not all: when answers come in a burst, the new places are filled after it
        seconds = self._clock() - self._began
        if self._slow_start and good and full and seconds < self._patience:
            self.size = min(self.ceiling, self.size + 1)
        if self._seen < self._round:
            return
        if self._bad >= self.TROUBLED * self._seen:
            self._slow_start = False
            self._settling = in_flight - 1
            self.size = max(1, int(self.size * self.SHRINK))
        elif full and self._slow_start:
            rate = (self._seen - self._bad) / max(seconds, 1e-9)
            self._slow_start = rate >= self.FASTER * self._rate and seconds < self._patience
            self._rate = rate
        elif full and seconds < self._patience:
            self.size = min(self.ceiling, self.size + 1)
        self._begin_round()


class LoadWindow(WindowControl):
    """For engines that tell their load: their queue is never empty and never floods.

    An engine that has nothing waiting may be starving, which costs far more than a queue that is a little long; so the
    window grows at once and by half, and shrinks only when much is waiting twice in a row while no more is running
    than before (a burst of new prompts waits too, but then more and more of them run). Some engines tell their load
    late, so it never has fewer than ``least`` places: those that the engine itself was started with.
    """

    follows_load: ClassVar[bool] = True
    FIRST = 512  # places at the start, unless given: what large models on one GPU like
    GROWTH = 1.5
    SPARE = 0.1  # share of the running requests that should be waiting
    FLOOD = 0.5  # share from which too many are
    LEAST = 8  # waiting requests that are never too many
    CACHE_FULL = 0.95  # share of the KV cache from which more requests only push others out

    def __init__(self, ceiling: int, start: int | None = None, least: int = 1) -> None:
        super().__init__(ceiling, self.FIRST if start is None else start)
        self._least = min(least, ceiling)
        self._flooded_at: int | None = None  # how many were running when too many were waiting

    def outcome(self, good: bool, in_flight: int) -> None:
        pass

    def loaded(self, load: EngineLoad, in_flight: int) -> None:
        wanted = max(self.LEAST, int(load.running * self.SPARE))
        if load.waiting > max(4 * self.LEAST, int(load.running * self.FLOOD)):
            if self._flooded_at is not None and load.running <= self._flooded_at:
                self.size = max(self._least, min(self.size, load.running + wanted))
            self._flooded_at = load.running
            return
        self._flooded_at = None
        arrived = load.running + load.waiting
        room = load.cache_used is None or load.cache_used < self.CACHE_FULL
        # More help only if the window is full and the engine has taken up what was sent.
        if load.waiting < wanted and in_flight >= 0.9 * self.size and arrived >= 0.8 * in_flight and room:
            self.size = min(self.ceiling, max(self.size + 1, int(self.size * self.GROWTH)))
