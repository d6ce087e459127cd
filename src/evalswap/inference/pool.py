"""All endpoints of a model: which of them is next, and whether any is left."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from evalswap.errors import EngineError, EvalswapError
from evalswap.inference.endpoints import Endpoint


class Pool:
    """Endpoints that are as good as each other."""

    def __init__(
        self,
        endpoints: Sequence[Endpoint],
        *,
        patience: float,
        say: Callable[[str], None],
        redact: Callable[[str], str],
    ) -> None:
        self.endpoints = tuple(endpoints)
        self._patience = patience
        self._say = say
        self._redact = redact

    def least_loaded(self, now: float) -> Endpoint | None:
        """Return where a request may start now, the emptiest window first; None if nowhere."""
        free = [e for e in self.endpoints if e.in_flight < e.window.size and e.ready_at() <= now]
        if len(free) <= 1:
            return free[0] if free else None
        return min(free, key=lambda e: (e.in_flight / e.window.size, e.answers))

    def ready_at(self) -> float:
        """Return when a request may start somewhere where a place is free; inf if only an event can tell."""
        return min((e.ready_at() for e in self.endpoints if e.in_flight < e.window.size), default=math.inf)

    def others_work(self, endpoint: Endpoint) -> bool:
        """Whether there is another endpoint that is neither refused nor down."""
        return any(e.usable and not e.down for e in self.endpoints if e is not endpoint)

    def leave(self, endpoint: Endpoint, error: EvalswapError) -> None:
        """Send nothing there any more. Raises EngineError if it was the last."""
        if endpoint.refused is not None:
            return
        endpoint.refused = error
        where = f"{endpoint.client.base_url} refuses all requests: {error.message}"
        if not any(e.usable for e in self.endpoints):
            raise EngineError(self._redact(where), "are the key, the address and the model's name right?")
        self._say(self._redact(f"{where}; going on without it"))

    def check_patience(self, error: EvalswapError, now: float) -> None:
        """Raise EngineError if all endpoints have been down for too long."""
        places = [e for e in self.endpoints if e.usable]
        if not all(e.down for e in places):
            return
        seconds = now - max(e.down_since for e in places)
        if seconds >= self._patience:
            where = ", ".join(dict.fromkeys(e.client.base_url for e in places))
            raise EngineError(
                self._redact(f"no answer from {where} for {seconds:.0f} s: {error.message}"),
                "what was answered is stored; start the same command again when the server is back",
            )
