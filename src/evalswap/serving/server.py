"""One engine as a server process that evalswap starts, watches and stops."""

from __future__ import annotations

import asyncio
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Protocol

from evalswap.errors import EngineError
from evalswap.serving import keeper
from evalswap.serving.logs import last_line, meaningful_lines, tells_error
from evalswap.serving.ports import address, give_back_port, take_port

if TYPE_CHECKING:
    import aiohttp

SHOWN_LINES = 15  # of a dead server's log
STOP_GRACE = 10.0  # seconds between SIGTERM and SIGKILL
TELL_AFTER = 60.0  # seconds of a start; then after twice as many, and so on
LONGEST_START = 4  # start deadlines, for an engine that writes all the time
_NEWS_LENGTH = 120  # characters
_LINE_LENGTH = 400  # characters; engines write whole configurations on a line
_PORT_TRIES = 3
_TAIL_BYTES = 128 * 1024
_ALWAYS = {
    "PYTHONUNBUFFERED": "1",  # the last words of a process that dies must be in the log
    "PYTHONSAFEPATH": "1",  # a folder called "datasets" where the user stands must not hide the package
}

_PORT_TAKEN = re.compile(r"address already in use|EADDRINUSE|errno (98|48)\b", re.IGNORECASE)
_SECRET_NAME = re.compile(r"(^|_)(TOKEN|(API)?KEY|SECRET|PASSWORD|CREDENTIALS)(_|$)", re.IGNORECASE)


class EngineServer(Protocol):
    """What a run needs of an engine's server: of its own, or of one that is kept warm."""

    name: str
    log_path: Path
    start_seconds: float | None  # None until it is ready; 0 where nothing has to be started
    tokenizers: str  # the socket of a process with them that is kept beside it; "" if none is

    @property
    def url(self) -> str:
        """Its address, once it is ready."""

    @property
    def alive(self) -> bool:
        """Whether its process runs."""

    async def start(self) -> None:
        """Start it and return at once."""

    async def ready(self) -> None:
        """Wait until it can take requests. Raises EngineError if it cannot."""

    async def wait_dead(self) -> int:
        """Wait until it has ended, for whatever reason."""

    def failure(self) -> EngineError:
        """Describe how it ended."""

    async def stop(self) -> None:
        """End it, if it is the run's own."""


class ManagedServer:
    """A server process together with all its descendants.

    Between it and evalswap stands a keeper (see :mod:`evalswap.serving.keeper`): whatever happens to
    evalswap, Ctrl-C, a crash or ``kill -9``, it ends the engine and everything that the engine started.

    Args:
        name: the engine's name, for messages.
        command: the port → the command line.
        log_path: where its output goes (appended; its folder is made).
        health_path: answers 200 once the server can take requests, e.g. "/health".
        env: what to add to evalswap's own environment variables.
        start_deadline: seconds that a server which is not healthy yet may write nothing to its log. A large model on a
            slow disk takes its time, and says so; four times as long is the most.
        redact: takes secrets out of a text; applied to what is shown and to the log's header line.
        host: the address to listen on; the command must say the same.
        port: the port to listen on; a free one if None.
        stop_grace: seconds between SIGTERM and SIGKILL.
        explain: the log of a dead server → what helps, or None.
        label: what the keeper shows on its command line.
        say: told what the server wrote last, where its start takes long.
        tell_after: seconds of a start after which that is told for the first time.

    Used as an async context manager it is started on entry (not yet ready) and stopped on exit.
    """

    def __init__(
        self,
        name: str,
        command: Callable[[int], Sequence[str]],
        *,
        log_path: Path,
        health_path: str = "/health",
        env: Mapping[str, str] | None = None,
        start_deadline: float = 600.0,
        redact: Callable[[str], str] = lambda text: text,
        host: str = "127.0.0.1",
        port: int | None = None,
        stop_grace: float = STOP_GRACE,
        explain: Callable[[str], str | None] = lambda log: None,
        label: str = "-",
        say: Callable[[str], None] = lambda text: None,
        tell_after: float = TELL_AFTER,
    ) -> None:
        self.name = name
        self.log_path = log_path
        self.tokenizers = ""
        self.start_seconds: float | None = None  # from start() until ready() saw it healthy
        self._command = command
        self._health_path = health_path
        self._env = dict(env or {})
        self._deadline = start_deadline
        self._redact = redact
        self._host = host
        self._wanted_port = port
        self._grace = stop_grace
        self._explain = explain
        self._label = label
        self._say = say
        self._tell_after = tell_after
        self._port = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._stopped = False
        self._log_offset = 0  # where this start's part of the log begins
        self._started = 0.0

    @property
    def url(self) -> str:
        """The server's address, e.g. "http://127.0.0.1:40123"; it may change until :meth:`ready` returns."""
        return address(self._host, self._port)

    @property
    def port(self) -> int:
        """The port that it listens on; it may change until :meth:`ready` returns."""
        return self._port

    @property
    def pid(self) -> int:
        """The id of the keeper, which is also the process group and session of the engine.

        Raises:
            RuntimeError: the server was not started.
        """
        return self._running().pid

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    async def start(self) -> None:
        """Start the process and return at once; :meth:`ready` waits for it.

        Raises:
            RuntimeError: it is running already.
            EngineError: the port that was asked for is in use.
        """
        if self.alive:
            raise RuntimeError(f"{self.name} is running already")
        self.start_seconds = None
        self._started = time.monotonic()
        self._spawn()

    async def ready(self) -> None:
        """Wait until the server is healthy.

        A server that found its port taken (another program was faster) is started again on another one.

        Raises:
            EngineError: it died, with the last lines of its log, or it was silent for too long.
        """
        import aiohttp  # here, for a check of a config must not wait for it

        tries = 1
        pause = 0.1
        watch = _StartWatch(self._deadline, self._tell_after)
        timeout = aiohttp.ClientTimeout(total=3)
        async with aiohttp.ClientSession(timeout=timeout) as session:
            while not (await self._healthy(session) and self.alive):
                if not self.alive:
                    again = self._wanted_port is None and tries < _PORT_TRIES
                    if not (again and _PORT_TAKEN.search(self._log_tail())):
                        raise self.failure()
                    tries += 1
                    pause = 0.1
                    self._spawn()
                took = time.monotonic() - self._started
                problem = watch.too_long(took, self._log_size())
                if problem is not None:
                    raise self._error(f"{self.name} was not ready after {took:.3g} s{problem}")
                if watch.news_due(took):
                    line = self._redact(last_line(self._log_tail()))[:_NEWS_LENGTH]
                    self._say(f"{self.name} is still starting after {took:.0f} s{line and f': {line}'}")
                await asyncio.sleep(pause)
                pause = min(pause * 1.2, 0.5)
        self.start_seconds = time.monotonic() - self._started

    async def wait_dead(self) -> int:
        """Wait until the process has ended, for whatever reason, and return its exit code.

        Signal N counts as exit code 128 + N.
        """
        process = self._running()
        # Looking costs next to nothing. asyncio's own subprocesses SIGKILL theirs (the keeper!) when a loop
        # closes early, and a thread that waits would keep the program from ending.
        while (code := process.poll()) is None:
            await asyncio.sleep(0.1)
        return code

    def failure(self) -> EngineError:
        """Describe how the process died, with the last lines of its log."""
        code = self._running().poll()
        when = "while starting" if self.start_seconds is None else "while running"
        killed = code == 128 + signal.SIGKILL
        return self._error(f"{self.name} died {when} ({_exit_text(code)})", killed)

    async def stop(self) -> None:
        """End the server and all its descendants; return when none is left. Safe to call again.

        Raises:
            EngineError: a process could not be ended (it hangs in the kernel, or is another user's).
        """
        if self._process is None or self._stopped:
            return
        self._process.terminate()  # the keeper, which ends the others
        await self._wait(lambda: not self.alive, self._grace + 5)
        # A keeper that came to its own end has left nothing. Was it killed itself, then its session may be left.
        code = self._process.poll()
        if code is None or code < 0:
            leader = self._process.pid
            self._process.kill()
            killed = keeper.family(leader)
            keeper.send(killed, signal.SIGKILL)

            def left() -> set[int]:
                # A process that takes a moment to die is in no family any more, once its parent is dead.
                return {*keeper.family(leader), *(keeper.processes().keys() & killed)}

            if not await self._wait(lambda: not (self.alive or left()), 5):
                pids = ", ".join(map(str, sorted(left())))
                raise EngineError(f"{self.name} could not be stopped", f"processes left: {pids}")
        self._stopped = True
        give_back_port(self._port)

    async def __aenter__(self) -> ManagedServer:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise RuntimeError(f"{self.name} was not started")
        return self._process

    def _spawn(self) -> None:
        self._stopped = False
        give_back_port(self._port)
        self._port = take_port(self._host, self._wanted_port)
        command = list(self._command(self._port))
        self.log_path.parent.mkdir(parents=True, exist_ok=True)
        with self.log_path.open("ab") as log:
            self._log_offset = log.tell()
            log.write(self._header(command).encode())
            log.flush()
            # -I -S: the keeper needs nothing but the standard library, and so starts in milliseconds.
            keeping = [sys.executable, "-I", "-S", keeper.__file__, str(os.getpid()), str(self._grace), self._label]
            self._process = subprocess.Popen(
                [*keeping, *command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, **_ALWAYS, **self._env},
                start_new_session=True,  # Ctrl-C reaches evalswap alone, which then stops the engine in order
            )

    def _header(self, command: Sequence[str]) -> str:
        """Return the line that says what ran, ready to paste into a shell but for the secrets."""
        additions = [
            f"{name}={'***' if _SECRET_NAME.search(name) else shlex.quote(value)}" for name, value in self._env.items()
        ]
        line = " ".join([*additions, shlex.join(command)])
        return f"# {datetime.now():%Y-%m-%d %H:%M:%S} {self._redact(line)}\n"

    async def _healthy(self, session: aiohttp.ClientSession) -> bool:
        import aiohttp

        try:
            async with session.get(self.url + self._health_path) as response:
                return response.status == 200
        except (aiohttp.ClientError, asyncio.TimeoutError, ConnectionError):
            return False

    async def _wait(self, condition: Callable[[], bool], seconds: float) -> bool:
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > deadline:
                return False
            await asyncio.sleep(0.05)
        return True

    def _log_size(self) -> int:
        try:
            return self.log_path.stat().st_size
        except OSError:  # the user has removed it
            return 0

    def _log_tail(self) -> str:
        """Return the end of what this start wrote."""
        start = max(self._log_offset, self._log_size() - _TAIL_BYTES)
        try:
            with self.log_path.open("rb") as log:
                log.seek(start)
                return log.read().decode(errors="replace")
        except OSError:
            return ""

    def _error(self, message: str, killed: bool = False) -> EngineError:
        log = self._log_tail()
        lines = meaningful_lines(log, SHOWN_LINES)
        shown = "".join(f"\n  {self._redact(line)[:_LINE_LENGTH]}" for line in lines)
        # An engine that names an error may have killed itself for it.
        memory = "the system killed it, most likely for want of memory" if killed and not tells_error(log) else None
        hints = [self._explain(log), memory, f"the whole log: {self.log_path}"]
        return EngineError(message + shown, "; ".join(hint for hint in hints if hint))


class _StartWatch:
    """When to tell of a start that takes long, and when to give it up. All times in seconds since the start."""

    def __init__(self, most_silence: float, tell_after: float) -> None:
        self._most_silence = most_silence
        self._tell_at = tell_after
        self._written = 0  # bytes
        self._last_word = 0.0

    def too_long(self, took: float, written: int) -> str | None:
        """Hear how large the log is; return why there is nothing to wait for any more, if so."""
        if written != self._written:
            self._written, self._last_word = written, took
        if took - self._last_word > self._most_silence:
            return f", and wrote nothing for the last {took - self._last_word:.3g} s"
        return "" if took > LONGEST_START * self._most_silence else None

    def news_due(self, took: float) -> bool:
        due = took >= self._tell_at
        if due:
            self._tell_at = 2 * took
        return due


def _exit_text(code: int | None) -> str:
    if code is None:
        return "still running"
    if code < 0:
        code = 128 - code  # the keeper itself was killed
    if code > 128 and code - 128 in {s.value for s in signal.Signals}:
        return f"killed by {signal.Signals(code - 128).name}"
    return f"exit code {code}"
