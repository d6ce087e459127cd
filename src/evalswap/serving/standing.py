"""A server without end: what ``evalswap serve`` runs, and how it is told to stop."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from evalswap import __version__
from evalswap.engines.base import LOOPBACK
from evalswap.errors import EngineError
from evalswap.redaction import redact_values
from evalswap.serving import keeper, processes
from evalswap.serving.launching import PreparedEngine
from evalswap.serving.registrations import Registration, register, this_machine, unregister, update
from evalswap.serving.warm import fingerprint, misfit

STOP_SECONDS = 30.0  # that a server may take to end once it was told to; its engine gets 10 of them
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclasses.dataclass(frozen=True)
class Standing:
    """A server to be kept: what it serves, and where it listens."""

    prepared: PreparedEngine
    name: str
    host: str = LOOPBACK
    port: int | None = None

    def enter(self, redact: Callable[[str], str]) -> Registration:
        """Register it, and return the registration.

        One of another process is returned where the same is served already. Raises EngineError if the data
        folder cannot be written.
        """
        prepared = self.prepared
        pid = os.getpid()
        new = Registration(
            name=self.name,
            engine=prepared.engine.name,
            version=prepared.found.version or "unknown",
            model=prepared.checkpoint.name,
            device=prepared.found.device,
            identity=fingerprint(prepared),
            facts=redact_values(prepared.facts(), redact),
            context_len=prepared.launch.context_len,
            machine=this_machine(),
            pid=pid,
            started=processes.started(pid) or "",
            since=time.time(),
            evalswap=__version__,
            log="",
            host=self.host,
        )
        return register(new, lambda entry: misfit(entry, prepared) is None)

    async def serve(
        self,
        entry: Registration,
        redact: Callable[[str], str],
        say: Callable[[str], None],
        announce: Callable[[Registration, float], None],
        tokenizers: Callable[[], str],
    ) -> None:
        """Start the engine and serve until a signal says stop; then nothing of it is left.

        ``tokenizers`` returns the socket of those that are kept. ``say`` is told of a start that takes long;
        ``announce`` is called once it is ready, with the seconds that it took. Raises EngineError if the engine does
        not start, or dies.
        """
        told = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in STOP_SIGNALS:
            loop.add_signal_handler(number, told.set)
        log = Path(entry.log)
        log.unlink(missing_ok=True)  # of an earlier server of the name
        server = self.prepared.server(log, redact, say, host=self.host, port=self.port, label=entry.identity)
        try:
            await server.start()
            if await _unless(told, server.ready()):
                return
            entry = dataclasses.replace(entry, port=server.port, keeper=server.pid, ready=True)
            entry = dataclasses.replace(entry, tokenizers=await asyncio.to_thread(tokenizers))
            update(entry)
            announce(entry, server.start_seconds or 0.0)
            if not await _unless(told, server.wait_dead()):
                raise server.failure()
        finally:
            unregister(entry)  # first, so that no run finds it while it ends
            await server.stop()


def stop(entry: Registration) -> None:
    """End what another ``evalswap serve`` serves, and wait until it is gone. Raises EngineError if it stays."""
    if entry.running:
        keeper.send([entry.pid], signal.SIGTERM)
    deadline = time.monotonic() + STOP_SECONDS
    while entry.running:
        if time.monotonic() > deadline:
            raise EngineError(
                f"'{entry.name}' did not stop within {STOP_SECONDS:g} s (process {entry.pid})",
                f"end it with: kill -9 {entry.pid} (its keeper then ends the engine); its log: {entry.log}",
            )
        time.sleep(0.05)
    unregister(entry)


async def _unless(told: asyncio.Event, doing: Any) -> bool:
    """Wait for something, unless a signal comes first; tell whether one did. What it raises is raised here."""
    task, signalled = asyncio.ensure_future(doing), asyncio.ensure_future(told.wait())
    await asyncio.wait({task, signalled}, return_when=asyncio.FIRST_COMPLETED)
    for waiting in (task, signalled):
        if not waiting.done():
            waiting.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await waiting
    if told.is_set():
        return True
    task.result()
    return False
