"""Looking at an engine's load now and then, for the windows that follow it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from evalswap.engines.base import Engine, ManagedEngine
from evalswap.inference.endpoints import Endpoint
from evalswap.inference.faults import FinalError, TransientError

POLL = 0.5  # seconds between two looks
LONGEST_POLL = 2.0  # … when looking changes nothing
TIMEOUT = 10.0  # seconds


async def follow_load(endpoint: Endpoint, engine: Engine, changed: Callable[[], None]) -> None:
    """Tell an endpoint's window how busy its engine is, for as long as this runs; returns if that cannot be known.

    An engine that does not answer is not this one's concern.
    """
    if not endpoint.window.follows_load or not isinstance(engine, ManagedEngine) or engine.load_path is None:
        return
    pause = POLL
    while True:
        await asyncio.sleep(pause)
        if not endpoint.in_flight:
            continue
        try:
            load = engine.read_load(await endpoint.client.get_text(engine.load_path, TIMEOUT))
        except (TransientError, FinalError):
            continue
        if load is None:
            return
        before = endpoint.window.size
        endpoint.window.loaded(load, endpoint.in_flight)
        pause = min(LONGEST_POLL, pause * 1.5) if endpoint.window.size == before else POLL
        if endpoint.window.size > before:
            changed()
