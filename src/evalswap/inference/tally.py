"""The numbers of one model's asking while it goes on."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass
class Tally:
    """What has happened so far in one model's asking."""

    total: int = 0
    answered: int = 0  # by the engine, in this run
    stored: int = 0  # found in the store
    failed: int = 0
    completion_tokens: int = 0
    prompt_tokens: int = 0
    right: int = 0  # by the first metric
    request_seconds: float = 0.0  # from request to answer, all answers together
    retry_seconds: float = 0.0  # spent on attempts that failed and the pauses after them, all requests together
    requests_last_minute: Callable[[], int] | None = None  # shown where a config asks for it (rpm_verbose)
    started: float = field(default_factory=time.perf_counter)
    ended: float | None = None  # both by time.perf_counter()

    @property
    def done(self) -> int:
        return self.answered + self.stored + self.failed

    @property
    def seconds(self) -> float:
        return (self.ended or time.perf_counter()) - self.started

    @property
    def tokens_per_second(self) -> float:
        return self.completion_tokens / self.seconds if self.seconds else 0.0

    @property
    def eta(self) -> float | None:
        """Seconds to go at the pace so far; None before the first answer."""
        asked = self.answered + self.failed
        return (self.total - self.done) * self.seconds / asked if asked else None
