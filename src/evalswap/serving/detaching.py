"""Running ``evalswap serve`` in the background: a process of its own that is registered, listed and can be stopped."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass

from evalswap.serving.registrations import Registration, registrations

_LOOK = 0.1  # seconds between two looks whether it is ready


@dataclass(frozen=True, slots=True)
class Detached:
    """How a background command began: ready, or ended already with an exit code and its last words."""

    entry: Registration | None  # None if it ended
    seconds: float = 0.0
    code: int = 0
    words: str = ""


def run_detached(arguments: Sequence[str]) -> Detached:
    """Run an evalswap command in a session of its own until its server is ready or it has ended.

    It lives on when this process ends, but not when this one is interrupted while it waits. Raises EngineError
    if the registrations cannot be read.
    """
    # The file has no name: the words are for this process alone. What the engine says is in its log.
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as words:
        began = time.monotonic()
        child = subprocess.Popen(
            [sys.executable, "-m", "evalswap", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=words,
            stderr=words,
            start_new_session=True,
        )
        try:
            while (code := child.poll()) is None:
                for entry in registrations():
                    if entry.pid == child.pid and entry.ready:
                        return Detached(entry, time.monotonic() - began)
                time.sleep(_LOOK)
        except BaseException:
            child.terminate()
            child.wait()
            raise
        words.seek(0)
        return Detached(None, code=code if code >= 0 else 128 - code, words=words.read())
