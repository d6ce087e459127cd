"""Answers are settled right after they came, many at once: first the engine gets the next requests.

Engines answer in waves, for what one step ends comes at once. If each answer were decoded, stored and scored before
the request that takes its place is sent, the last place of a wave would stay empty for as long as all of that takes.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from itertools import islice

from evalswap.errors import EvalswapError
from evalswap.inference.asking import Timed
from evalswap.records import Request, Response

PAUSE = 0.001  # seconds, in which the next requests are sent
MOST = 64  # answers that are settled at once; then requests and new answers have their turn

Answer = tuple[Request, Timed]


class Waves:
    """Collects answers, and has them settled soon, in their order: stored, all or none, and then counted one by one."""

    def __init__(
        self,
        store: Callable[[Sequence[Answer]], Sequence[Response]],
        count: Callable[[Response], None],
        broken: Callable[[BaseException], None],
    ) -> None:
        """``broken`` hears what ``store`` and ``count`` raise.

        An EvalswapError of ``store`` (a full disk) is no answer's fault: all are kept, for :meth:`end`. After any other
        they are stored one at a time, so that the one at fault takes no other with it.
        """
        self._store = store
        self._count = count
        self._broken = broken
        self._most = MOST
        self._waiting: deque[Answer] = deque()
        self._soon: asyncio.Handle | None = None

    def add(self, request: Request, timed: Timed) -> None:
        """Take an answer that has just come."""
        self._waiting.append((request, timed))
        if self._soon is None:
            self._soon = asyncio.get_running_loop().call_later(PAUSE, self._go_on)

    def end(self) -> None:
        """Settle all that is left, now. Raises what storing or counting raises, after the others are settled."""
        if self._soon is not None:
            self._soon.cancel()
        errors: list[Exception] = []
        while self._waiting:
            try:
                self._settle_some()
            except EvalswapError:
                raise
            except Exception as error:
                errors.append(error)
        if errors:
            raise errors[0]

    def _go_on(self) -> None:
        self._soon = None
        try:
            self._settle_some()
        except Exception as error:
            self._broken(error)
            return
        if self._waiting:
            self._soon = asyncio.get_running_loop().call_soon(self._go_on)

    def _settle_some(self) -> None:
        some = list(islice(self._waiting, self._most))
        try:
            responses = self._store(some)
        except EvalswapError:
            raise
        except Exception:
            if len(some) > 1:
                self._most = 1
                return
            self._waiting.popleft()
            raise
        for _ in some:
            self._waiting.popleft()
        for response in responses:
            self._count(response)
