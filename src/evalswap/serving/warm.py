"""Servers that ``evalswap serve`` keeps warm: finding the one that fits, and proving that it is the one.

A server of another model is never used by mistake. A registration is believed only when the process that it
names as the engine's keeper carries the same identity on its command line, and when nobody but that keeper's
descendants listens on the port; only then is the server spoken to at all.
"""

from __future__ import annotations

import asyncio
import hashlib
import http.client
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from evalswap import __version__
from evalswap.errors import EngineError
from evalswap.serving import keeper, processes
from evalswap.serving.registrations import Registration, registrations, reread
from evalswap.serving.server import LONGEST_START

if TYPE_CHECKING:
    from evalswap.engines.base import ManagedEngine
    from evalswap.serving.launching import PreparedEngine

HEALTH_SECONDS = 30.0  # a warm server may be busy with the questions of others
LOAD_SECONDS = 3.0
_TOLD = ("engine_version", "dtype", "device", "num_gpus", "batch_size")  # facts whose values are no secrets
_LOOK = 0.2  # seconds between two looks at a server's life


def fingerprint(prepared: PreparedEngine) -> str:
    """Return a hash of all that must be equal for one server to stand in for another.

    These are the facts that decide the answers, and beside them what a run's record says of its engine. The
    context length is not among them: a longer one does no harm.
    """
    known = {
        "facts": prepared.facts(),
        "interpreter": str(prepared.found.path),
        "packages": dict(prepared.found.packages),
        "trust_remote_code": prepared.launch.trust_remote_code,
        "evalswap": __version__,  # transformers' worker is a part of evalswap
    }
    return hashlib.sha256(json.dumps(known, sort_keys=True, default=str).encode()).hexdigest()


class WarmServer:
    """A server of ``evalswap serve``: to a run what a ManagedServer is, but it neither starts nor stops it."""

    def __init__(self, entry: Registration, up_path: str, deadline: float) -> None:
        self.entry = entry
        self.name = entry.engine
        self.log_path = Path(entry.log)
        self.start_seconds: float | None = 0.0
        self.tokenizers = entry.tokenizers
        self._up_path = up_path
        self._deadline = deadline  # seconds that one which is still starting may take

    @property
    def url(self) -> str:
        return self.entry.url

    @property
    def alive(self) -> bool:
        """Whether it serves. The moment an engine dies, its ``evalswap serve`` ends too."""
        return self.entry.running and not (self.entry.ready and processes.started(self.entry.keeper) is None)

    async def start(self) -> None:
        """Do nothing: it is started."""

    async def ready(self) -> None:
        """Wait for a server that is still starting, and prove that it is the one.

        Raises EngineError if it ended, did not get ready in time, or is not what its registration says.
        """
        began = time.monotonic()
        while not self.entry.ready:
            await asyncio.sleep(_LOOK)
            known = reread(self.entry)
            if known is None or not known.running:
                raise self.failure()
            self.entry = known
            if time.monotonic() - began > self._deadline:
                raise EngineError(f"{self._title} was not ready after {self._deadline:g} s", self._what_to_do)
        if problem := await asyncio.to_thread(doubt, self.entry, self._up_path):
            raise EngineError(f"{self._title} cannot be used: {problem}", self._what_to_do)
        self.start_seconds = time.monotonic() - began

    async def wait_dead(self) -> int:
        """Wait until it serves no more; its exit code is not known here, so it is always 1."""
        while self.alive:
            await asyncio.sleep(_LOOK)
        return 1

    def failure(self) -> EngineError:
        when = "while it was used" if self.entry.ready else "before it was ready"
        return EngineError(f"{self._title} ended {when}", self._what_to_do)

    async def stop(self) -> None:
        """Do nothing: others may use it. ``evalswap serve --stop`` ends it."""

    @property
    def _title(self) -> str:
        return f"the warm {self.entry.engine} '{self.entry.name}' (evalswap serve, process {self.entry.pid})"

    @property
    def _what_to_do(self) -> str:
        again = "the same command goes on from there, with an engine of its own if none is warm"
        return f"{again}; the server's log: {self.entry.log}"


def find_warm(prepared: PreparedEngine, say: Callable[[str], None]) -> WarmServer | None:
    """Return a server that may stand in for the prepared engine's own, or None.

    Says which one is used, or why one of the same model and engine is not.
    """
    try:
        served = registrations()
    except EngineError as error:
        say(f"no warm server is looked for: {error.message}")
        return None
    engine, model = prepared.engine, prepared.facts()["model"]
    for entry in sorted(served, key=lambda entry: not entry.ready):
        if (entry.engine, entry.facts.get("model")) != (engine.name, model):
            continue
        problem = misfit(entry, prepared)
        if problem is None and entry.ready:
            problem = doubt(entry, engine.up_path)
        if problem is not None:
            say(f"the warm {entry.engine} '{entry.name}' is not used: {problem}")
        elif entry.ready:
            say(f"using the warm {entry.engine} {entry.version} at {entry.url} (serving since {entry.since_text})")
            return WarmServer(entry, engine.up_path, LONGEST_START * engine.start_deadline)
        else:
            say(f"waiting for the {entry.engine} {entry.version} that evalswap serve (process {entry.pid}) is starting")
            return WarmServer(entry, engine.up_path, LONGEST_START * engine.start_deadline)
    return None


def doubt(entry: Registration, up_path: str) -> str | None:
    """Say why a registered server is not to be used; None if it is proven to be what it is said to be."""
    problem = _unproven(entry)
    if problem is None and get(entry.url, up_path, HEALTH_SECONDS) is None:
        problem = f"{entry.url} does not answer that it is healthy"
    return problem


def busyness(entry: Registration, engine: ManagedEngine) -> str:
    """Say how many requests a registered server has, or what is the matter with it."""
    if not entry.ready:
        return "starting"
    if problem := _unproven(entry):
        return problem
    content = get(entry.url, engine.load_path or engine.health_path, LOAD_SECONDS)
    if content is None:
        return f"no answer within {LOAD_SECONDS:g} s"
    load = engine.read_load(content) if engine.load_path else None
    return f"{load.running} running, {load.waiting} waiting" if load else "the engine does not tell"


def _unproven(entry: Registration) -> str | None:
    """Say what speaks against a registration, before its server is spoken to."""
    if not entry.running or processes.started(entry.keeper) is None:
        return "it is not running any more"
    if entry.identity not in processes.arguments(entry.keeper):
        return f"process {entry.keeper} is not its keeper"
    if not processes.listening_only(entry.port, keeper.family(entry.keeper)):
        return f"port {entry.port} is not its own"
    return None


def get(url: str, path: str, timeout: float) -> str | None:
    """Return the body of a GET, without any proxy; None unless the answer is 200."""
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=timeout)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        body = answer.read().decode(errors="replace")
        return body if answer.status == 200 else None
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()


def misfit(entry: Registration, prepared: PreparedEngine) -> str | None:
    """Say in what a registered server differs from what is wanted; None if it fits."""
    if entry.identity != fingerprint(prepared):
        facts = prepared.facts()
        told = [
            f"{key} is {entry.facts.get(key)} there, {facts[key]} here"
            for key in _TOLD
            if entry.facts.get(key) != facts[key]
        ]
        hidden = [key for key in facts if key not in _TOLD and str(entry.facts.get(key)) != str(facts[key])]
        differences = [*told, *(f"{key} differ" for key in hidden)]
        return ", ".join(differences) or "it runs in another environment or by another version of evalswap"
    wanted = prepared.launch.context_len
    if entry.context_len < wanted and prepared.limits_context:
        return f"it has room for {entry.context_len} tokens of prompt and answer, {wanted} are wanted"
    return None
