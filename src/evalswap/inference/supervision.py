"""Keeping one engine's server up.

It sees that the server died or hangs, makes sure that nothing of it is left, and starts it anew.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import AsyncExitStack

from evalswap.engines.base import EngineLoad, Launch, ManagedEngine
from evalswap.errors import EngineError
from evalswap.inference.client import HttpClient
from evalswap.inference.faults import FinalError, TransientError
from evalswap.serving.gpu_memory import memory_in_use, wait_until_freed
from evalswap.serving.server import EngineServer

REQUEST_SECONDS = 6 * 3600.0  # that one request may wait for its answer
# Seconds without an answer or any other sign of progress until an engine counts as hanging.
HANGS_ON_GPU, HANGS_ON_CPU = 600.0, 1800.0
# … and for each token of the longest answer, where the engine does not tell its load: it may be writing that long.
TOKEN_ON_GPU, TOKEN_ON_CPU = 0.25, 3.0
MOST_LOSSES = 3  # without an answer between them
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0  # seconds before an engine is started again; doubles with each in a row
MEMORY_SECONDS = 60.0  # that the GPU's memory may take to be freed
LOOK_SECONDS = 5.0  # between two looks at a silent engine
LOOK_TIMEOUT = 10.0  # seconds
# An engine that says it is not healthy is believed after so many looks in a row: 17 s after its last answer at most,
# and the looks' own time, which must be before what it fails counts (retrying.py).
SICK_LOOKS, SICK_LOOK_SECONDS = 3, 1.0


def patience_with(engine: ManagedEngine, launch: Launch, longest_answer: int) -> float:
    """Return after how many seconds without any progress an engine hangs; never while it may be writing an answer."""
    gpu = launch.device != "cpu"
    tells = engine.load_path is not None
    token = 0.0 if tells else TOKEN_ON_GPU if gpu else TOKEN_ON_CPU
    return (HANGS_ON_GPU if gpu else HANGS_ON_CPU) + token * longest_answer


class Supervisor:
    """Looks after one engine's server. As an asynchronous context manager it ends the server on exit."""

    def __init__(
        self,
        engine: ManagedEngine,
        server: EngineServer,
        own_server: Callable[[], EngineServer],
        *,
        hang_seconds: float,
        on_gpu: bool,
        say: Callable[[str], None],
    ) -> None:
        """``own_server`` makes the server that takes the place of a lost one."""
        self.server = server
        self.warm = server.alive  # before anything was started: somebody else keeps it
        self.client: HttpClient | None = None
        self.losses = 0  # in a row, without an answer between them
        self.restarts = 0
        self._engine = engine
        self._own_server = own_server
        self._hang_seconds = hang_seconds
        self._on_gpu = on_gpu
        self._say = say
        self._clients = AsyncExitStack()
        self._memory: asyncio.Future[list[int] | None] | None = None  # in use on the GPUs before the engine started

    async def __aenter__(self) -> Supervisor:
        return self

    async def __aexit__(self, *_: object) -> None:
        try:
            await self._clients.aclose()
        finally:
            await self.server.stop()

    async def start(self) -> None:
        """Start the server, unless it runs, and return at once."""
        if self.server.alive:
            return
        if self._on_gpu and self._memory is None:
            # An engine takes seconds until it touches the GPU, and this a fraction of one.
            self._memory = asyncio.ensure_future(asyncio.to_thread(memory_in_use))
        await self.server.start()

    async def ready(self) -> HttpClient:
        """Wait until the server takes requests, and return a client of it. Raises EngineError."""
        await self.server.ready()
        await self._clients.aclose()
        self.client = await self._clients.enter_async_context(HttpClient(self.server.url, timeout=REQUEST_SECONDS))
        return self.client

    async def lost(
        self, answers: Callable[[], int], waiting: Callable[[], bool], failing: Callable[[], bool]
    ) -> EngineError:
        """Return why, once the server has died, hangs or is ill.

        ``answers`` counts what has come so far; ``waiting``: somebody wants an answer; ``failing``: the last that came
        was none.
        """
        looks = asyncio.create_task(self._hangs(answers, waiting, failing))
        death = asyncio.create_task(self.server.wait_dead())
        try:
            await asyncio.wait({looks, death}, return_when=asyncio.FIRST_COMPLETED)
            if not death.done():
                return looks.result()
            return self.server.failure()
        finally:
            for task in (looks, death):
                task.cancel()
            await asyncio.gather(looks, death, return_exceptions=True)

    async def restart(self, loss: EngineError, *, progress: bool) -> HttpClient:
        """End what is left of a lost server, make sure of that, and start a new one.

        ``progress``: something was answered since the loss before. Raises EngineError with the last cause if the engine
        was lost too often without any.
        """
        self.losses = 0 if progress else self.losses
        while True:
            self.losses += 1
            if self.losses >= MOST_LOSSES:
                raise EngineError(
                    f"{loss.message}\nlost {self.losses} times without an answer between them: given up", loss.hint
                )
            self._say(loss.message)
            await self._end()
            pause = min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** (self.losses - 1))
            self._say(f"{self.server.name} is started again in {pause:g} s; nothing that was answered is asked again")
            await asyncio.sleep(pause)
            self.restarts += 1
            await self.start()
            try:
                client = await self.ready()
            except EngineError as error:
                loss = error
                continue
            self._say(f"{self.server.name} is up again after {self.server.start_seconds or 0:.1f} s")
            return client

    async def _end(self) -> None:
        """End the server with all its descendants, and wait for the memory of the GPUs."""
        await self._clients.aclose()
        await self.server.stop()  # raises if a process is left
        if self.server.alive:  # not the run's own: a warm one that others look after
            self._say(f"{self.server.name} at {self.server.url} is left alone; an engine of this run takes its place")
        if self._memory is not None:
            held = await asyncio.to_thread(wait_until_freed, await self._memory, MEMORY_SECONDS)
            if held:
                self._say(f"memory is still in use {MEMORY_SECONDS:g} s after the engine's end: {held}")
        self.server = self._own_server()

    async def _hangs(
        self, answers: Callable[[], int], waiting: Callable[[], bool], failing: Callable[[], bool]
    ) -> EngineError:
        """Return when the server has shown no sign of progress for too long, or says that it is not healthy."""
        seen, load, sick = answers(), None, 0
        moved = time.monotonic()
        while True:
            await asyncio.sleep(min(SICK_LOOK_SECONDS if sick else LOOK_SECONDS, self._hang_seconds / 4))
            if answers() != seen or not (waiting() or failing()):
                seen, moved, sick = answers(), time.monotonic(), 0
                continue
            now = await self._load()
            if now is not None and now != load:  # it takes requests up, or fills its cache with tokens
                load, moved, sick = now, time.monotonic(), 0
                continue
            sick = sick + 1 if await self._says_sick() else 0
            if sick >= SICK_LOOKS:
                return self._error("says that it is not healthy")
            if not waiting():  # an engine that was asked nothing cannot hang
                moved = time.monotonic()
            silent = time.monotonic() - moved
            if silent >= self._hang_seconds:
                return self._error(f"hangs: no answer and no other progress for {silent:.0f} s")

    async def _load(self) -> EngineLoad | None:
        if self._engine.load_path is None or self.client is None:
            return None
        try:
            return self._engine.read_load(await self.client.get_text(self._engine.load_path, LOOK_TIMEOUT))
        except (TransientError, FinalError):
            return None

    async def _says_sick(self) -> bool:
        """Whether the server answers, and what it answers is that it cannot work; a busy one may not answer at all."""
        if self.client is None:
            return False
        try:
            await self.client.get_text(self._engine.health_path, LOOK_TIMEOUT)
        except TransientError as error:
            return error.status is not None
        except FinalError:
            return True
        return False

    def _error(self, what: str) -> EngineError:
        return EngineError(f"{self.server.name} {what}", f"the whole log: {self.server.log_path}")
