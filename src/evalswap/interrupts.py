"""Ctrl-C and SIGTERM while a run asks: once to finish what is in flight, twice or SIGTERM to stop now."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def handled(finish: Callable[[], None], stop: Callable[[], None]) -> Iterator[None]:
    """While entered, call ``finish`` at the first SIGINT, and ``stop`` at the second or at SIGTERM.

    Later ones do what they do by default. Where this is not the main thread, signals are somebody else's.
    """
    loop = asyncio.get_running_loop()
    pressed = False

    def once_or_twice() -> None:
        nonlocal pressed
        if pressed:
            now()
        else:
            pressed = True
            finish()

    def now() -> None:
        remove()
        stop()

    def remove() -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)

    with contextlib.suppress(RuntimeError, ValueError, NotImplementedError):
        loop.add_signal_handler(signal.SIGINT, once_or_twice)
        loop.add_signal_handler(signal.SIGTERM, now)
    try:
        yield
    finally:
        with contextlib.suppress(RuntimeError, ValueError, NotImplementedError):
            remove()
