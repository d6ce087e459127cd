"""Tokenizers in a process of their own, beside everything else that a command does.

The import of transformers takes longer than the rest of a command together, and rendering would take turns with
the asking: neither has to wait for the other here. ``evalswap serve`` keeps such a process, so that a run beside it
need not wait for the import at all. What crosses is pickled, between processes of one user. The process itself is
:mod:`evalswap.prompting.tokenizer_answering`.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import secrets
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any

from evalswap.checkpoint import find_folder
from evalswap.errors import ConfigError, EvalswapError
from evalswap.plan import PromptPlan
from evalswap.prompting.tokenizer import Tokenizer, Vocabulary
from evalswap.prompting.tokenizer_answering import versions
from evalswap.records import Message

# Modules are found where this process finds them, not in the folder that the command is started in. Ctrl-C is for
# the command, which may still need the process.
PROGRAM = (
    "import sys; sys.path[:] = sys.argv[1].split(chr(10)); "
    "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN); "
    "from evalswap.prompting import tokenizer_answering; "
    "getattr(tokenizer_answering, sys.argv[2])(*map(int, sys.argv[3:]))"
)
MOST_LOSSES = 3  # of processes that one tokenizer lived in; then something is wrong that no new one mends
KEPT_SECONDS = 60.0  # that a process of somebody else may take to answer; then it is left


class TokenizerProcess:
    """Loads tokenizers beside this process. It ends with :meth:`close`, or with this process, however that ends."""

    def __init__(self) -> None:
        self._starting = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._own: _Lines | None = None
        self._own_is_used = False
        self._closed = False
        self._kept: list[_Lines] = []

    def __enter__(self) -> TokenizerProcess:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def begin(self) -> None:
        """Start the process, if it was not yet: the earlier, the sooner transformers is imported."""
        with self._starting:
            self._begin()

    def load(self, plan: PromptPlan, revision: str | None = None, kept: str = "") -> Tokenizer:
        """Load the tokenizer that a plan names, from a folder or the hub.

        It is loaded in the process that ``evalswap serve`` keeps at the socket ``kept``, if it is there and of the same
        versions; should that end, in one of our own. Raises ModelFilesError if there is no tokenizer, and
        EvalswapError if our own process dies again and again.
        """
        assert plan.tokenizer_path is not None
        folder = find_folder(plan.tokenizer_path, revision, tokenizer_only=True)
        source = (str(folder), dict(plan.tokenizer_kwargs), plan.trust_remote_code)
        lines = _lines_to(kept) if kept else None
        if lines is not None:
            with contextlib.suppress(_Lost):
                loaded = _Remote(self, source, lines)
                self._kept.append(lines)
                with self._starting:
                    if not self._own_is_used:
                        self._end()
                return Tokenizer(folder, loaded)
        return Tokenizer(folder, _Remote(self, source, self.own()))

    def own(self) -> _Lines:
        """Return the lines to this command's own process."""
        with self._starting:
            self._own_is_used = True
            return self._begin()

    def close(self) -> None:
        """End the process; it has nothing to lose. One that ``evalswap serve`` keeps stays."""
        with self._starting:
            self._closed = True
            self._end()
        for lines in self._kept:
            lines.close()

    def _begin(self) -> _Lines:
        if self._closed:  # somebody still made prompts, beside a command that is ending
            raise EvalswapError("the tokenizer's process is closed")
        if self._process is not None and self._process.poll() is not None:
            self._end()
        if self._process is None or self._own is None:
            self._process, (prompts, answers) = _start("serve", 2)
            self._own = _Lines(prompts, answers, self._process)
        return self._own

    def _end(self) -> None:
        if self._process is not None and self._own is not None:
            self._process.kill()
            self._process.wait()
            self._own.close()
        self._process = self._own = None


class KeptTokenizers:
    """A process for other commands, for as long as this is entered or its process lives."""

    def __init__(self) -> None:
        self._process, (self._line,) = _start("keep", 1)
        self._socket = ""

    def __enter__(self) -> KeptTokenizers:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        path = self.socket()
        self._line.close()  # it ends then, and takes its socket away
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if path:  # if it was killed
            with contextlib.suppress(OSError):
                Path(path).unlink()
            with contextlib.suppress(OSError):
                Path(path).parent.rmdir()

    def socket(self) -> str:
        """Return the path of its socket, which it tells at once; "" if it has none."""
        if not self._socket:
            with contextlib.suppress(EOFError, OSError):
                if self._line.poll(KEPT_SECONDS):
                    self._socket = str(self._line.recv())
        return self._socket


class _Lost(Exception):
    """Nobody answers any more."""


class _ElsewhereError(Exception):
    """The traceback of an error in the process, as text."""


class _Line:
    """Asks the process one thing at a time; ``patience`` is how long it may take, in seconds."""

    def __init__(self, connection: Connection[Any, Any], patience: float | None) -> None:
        self._connection = connection
        self._patience = patience
        self._turn = threading.Lock()

    def ask(self, request: str, name: str, *arguments: Any) -> Any:
        """Have a request answered by the tokenizer ``name`` there; what it raises is raised here."""
        with self._turn:
            try:
                self._connection.send((request, name, arguments))
                if not self._connection.poll(self._patience):
                    self._connection.close()  # a late answer would be taken for that of another request
                    raise _Lost
                result, error, where = self._connection.recv()
            except (pickle.PicklingError, TypeError, AttributeError) as unsent:
                raise ConfigError(
                    f"the tokenizer's process cannot be given this: {unsent}",
                    "tokenizer_kwargs and chat_template_kwargs take plain values: text, numbers, lists, dicts",
                ) from unsent
            except (EOFError, OSError):
                raise _Lost from None
        if error is not None:
            raise error from _ElsewhereError(where)
        return result

    def close(self) -> None:
        self._connection.close()


class _Lines:
    """One line for prompts and one for answers: decoding does not wait for prompts that are being made."""

    def __init__(
        self,
        prompts: Connection[Any, Any],
        answers: Connection[Any, Any],
        process: subprocess.Popen[bytes] | None = None,
    ) -> None:
        """``process`` is the command's own; somebody else's has limited time to answer."""
        self._process = process
        patience = None if process is not None else KEPT_SECONDS
        self.prompts = _Line(prompts, patience)
        self.answers = _Line(answers, patience)

    def loss(self) -> EvalswapError | None:
        """Say how the command's own process ended; None if it is somebody else's."""
        if self._process is None:
            return None
        try:
            code = self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:  # it lives and does not answer
            self._process.kill()
            code = self._process.wait()
        if code < 0:
            hint = "the same command goes on from what is stored; is this machine out of memory?"
            return EvalswapError(f"the process with the tokenizer was killed (signal {-code})", hint)
        return EvalswapError(f"the process with the tokenizer ended with code {code}")

    def close(self) -> None:
        self.prompts.close()
        self.answers.close()


class _Remote:
    """A TokenizerBackend in the process. Where one is lost, kept or our own, it is loaded anew in one of our own."""

    def __init__(self, process: TokenizerProcess, source: tuple[str, dict[str, Any], bool], lines: _Lines) -> None:
        self._process = process
        self._source = source
        self._moving = threading.Lock()
        self._losses = 0
        self._name = secrets.token_hex(8)
        self._lines = lines
        self.vocabulary = self._load(lines)

    def render(self, conversations: Sequence[tuple[Message, ...]], template_kwargs: Mapping[str, Any]) -> list[str]:
        texts: list[str] = self._ask("prompts", "render", conversations, dict(template_kwargs))
        return texts

    def encode(self, texts: Sequence[str], special_tokens: bool) -> list[list[int]]:
        ids: list[list[int]] = self._ask("prompts", "encode", texts, special_tokens)
        return ids

    def decode(self, rows: Sequence[Sequence[int]], skip_special_tokens: bool) -> list[str]:
        texts: list[str] = self._ask("answers", "decode", rows, skip_special_tokens)
        return texts

    def _ask(self, line: str, request: str, *arguments: Any) -> Any:
        lines = self._lines
        try:
            return getattr(lines, line).ask(request, self._name, *arguments)
        except _Lost:
            self._move(lines)
            return self._ask(line, request, *arguments)

    def _move(self, lost: _Lines) -> None:
        """Load the tokenizer again. Raises EvalswapError if our own process was lost too often."""
        with self._moving:
            if self._lines is lost:
                self._losses += 1
                if (loss := lost.loss()) and self._losses > MOST_LOSSES:
                    raise loss
                own = self._process.own()
                self._load(own)
                self._lines = own

    def _load(self, lines: _Lines) -> Vocabulary:
        try:
            vocabulary: Vocabulary = lines.prompts.ask("load", self._name, *self._source)
        except _Lost:
            raise lines.loss() or _Lost from None
        return vocabulary


def _start(function: str, lines: int) -> tuple[subprocess.Popen[bytes], list[Connection[Any, Any]]]:
    """Start a process that runs a function of tokenizer_answering on the other ends of so many lines."""
    ours, theirs = zip(*(socket.socketpair() for _ in range(lines)), strict=True)
    numbers = [end.fileno() for end in theirs]
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, "\n".join(sys.path), function, *map(str, numbers)],
        pass_fds=numbers,
        stdin=subprocess.DEVNULL,
        stdout=2,  # a model's own tokenizer code may print; the command's output is not for that
        start_new_session=True,  # what is typed at the terminal is for the command: Ctrl-C, Ctrl-Z
    )
    for end in theirs:
        end.close()
    return process, [Connection(end.detach()) for end in ours]


def _lines_to(path: str) -> _Lines | None:
    """Return lines to a kept process; None if it is gone, or would not make the same prompts as one of our own."""
    ends: list[Connection[Any, Any]] = []
    try:
        folder = Path(path).parent.lstat()
        if folder.st_uid != os.geteuid() or folder.st_mode & 0o077:  # what comes from there is unpickled
            return None
        for _ in range(2):
            end = socket.socket(socket.AF_UNIX)
            end.connect(path)
            ends.append(Connection(end.detach()))
        lines = _Lines(ends[0], ends[1])
        if lines.prompts.ask("versions", "") == versions():
            return lines
    except (_Lost, OSError, EvalswapError):
        pass
    for connection in ends:
        connection.close()
    return None
