"""One address with one key: its client, its window, its limits and its circuit breaker."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from evalswap.errors import EvalswapError
from evalswap.inference.client import HttpClient
from evalswap.inference.faults import TransientError
from evalswap.inference.limits import RateLimits, ToldLimits
from evalswap.inference.window import FixedWindow, WindowControl

FAILURES_TO_OPEN = 5  # in a row, of the transport, until the circuit opens
FIRST_PROBE = 0.5  # seconds until one request is tried again; doubles with each that fails
LONGEST_PROBE = 30.0
REFUSALS_TO_PAUSE = 3  # 429s in a row until nobody is sent there before the server's time is up


class Endpoint:
    """Where requests are sent. The asker decides when; this says whether and from when on it may.

    The *circuit* opens when the transport fails several times in a row; then one request at a time tries whether the
    endpoint is back.
    """

    def __init__(self, client: HttpClient, *, limits: RateLimits | None = None, supervised: bool = False) -> None:
        """``supervised``: somebody ends the asking when the server has died or is ill, and starts another."""
        self.limits = limits
        self.supervised = supervised
        self.window: WindowControl = FixedWindow(1)  # the asker puts its own strategy here
        self.in_flight = 0
        self.answers = 0
        self.rejections = 0  # 403s and 404s before the first answer
        self.refused: EvalswapError | None = None  # why nothing will ever be sent here again
        self.trouble: EvalswapError | None = None  # why the circuit is open
        self.down_since = math.inf  # when the circuit opened, or inf
        self.failing = False  # whether the last that was heard from here was no answer
        self.changed: Callable[[], None] = lambda: None  # the asker's: something more may be possible now
        self.now: Callable[[], float] = lambda: 0.0  # the asker's clock
        self._told = ToldLimits()
        self._failures = 0  # of the transport, in a row
        self._refusals = 0  # 429s in a row
        self._probing = False  # whether the one request that tries is in flight
        self._probe_at = -math.inf
        self._probe_pause = FIRST_PROBE
        self._paused_until = -math.inf
        self.client = client
        client.on_headers = self._hear

    # -- may a request start here? ---------------------------------------------------------------------

    @property
    def down(self) -> bool:
        """Whether the circuit is open."""
        return self.trouble is not None

    @property
    def usable(self) -> bool:
        """Whether requests may be sent here now or later."""
        return self.refused is None

    def ready_at(self) -> float:
        """Return from when on a request may start here, as far as places are free; inf if only an event can tell."""
        if self.refused is not None:
            return math.inf
        if self.trouble is not None:
            return math.inf if self._probing else max(self._probe_at, self._paused_until)
        moment = max(self._paused_until, self._told.ready_at())
        return max(moment, self.limits.ready_at()) if self.limits is not None else moment

    def start(self, now: float, tokens: int) -> None:
        """Count a request that starts here and may cost ``tokens``."""
        self.in_flight += 1
        self._probing = self.trouble is not None
        if self.limits is not None:
            self.limits.take(now, tokens)
        if self._told.heard:
            self._told.take(now, tokens)

    # -- what became of a request ----------------------------------------------------------------------

    def answered(self) -> None:
        """Hear of an answer, whatever it says: the endpoint works."""
        self.answers += 1
        self._probing = self.failing = False
        self._refusals = 0
        if self._failures:
            self._close_circuit()
        self.window.outcome(True, self.in_flight)

    def failed(self, error: TransientError | None, *, others: bool) -> None:
        """Hear of an attempt that may succeed later; ``others``: there are endpoints that work.

        ``error`` is None for an answer that is none: the transport works.
        """
        now = self.now()
        self._probing, self.failing = False, True
        self.window.outcome(error is None, self.in_flight)
        if error is None:
            return
        if error.kind == "busy":
            self._refusals += 1
            if self._refusals >= REFUSALS_TO_PAUSE and error.retry_after:
                self._paused_until = max(self._paused_until, now + error.retry_after)
        elif error.kind != "failed" or others:  # a lone endpoint that answers 500 is not down
            self._failures += 1
            if self.trouble is not None or self._failures >= FAILURES_TO_OPEN:
                self._open_circuit(error, now)

    def rejected(self) -> None:
        """Hear of a refusal that may be the endpoint's or the prompt's: another request must tell."""
        self.rejections += 1
        self._probing = False
        self._probe_at = self.now() + self._probe_pause

    def _open_circuit(self, error: EvalswapError, now: float) -> None:
        if self.trouble is None:
            self.down_since = now
            self._probe_pause = FIRST_PROBE
        elif now < self._probe_at:  # one of those that were in flight when it opened
            return
        else:
            self._probe_pause = min(LONGEST_PROBE, self._probe_pause * 2)
        self.trouble = error
        self._probe_at = now + self._probe_pause

    def _close_circuit(self) -> None:
        self._failures = 0
        if self.trouble is not None:
            self.trouble, self.down_since = None, math.inf
            self.changed()

    def _hear(self, headers: Mapping[str, str]) -> None:
        self._told.hear(headers, self.now(), max(0, self.in_flight - 1))
