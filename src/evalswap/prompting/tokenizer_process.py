"""Tokenizers in a process of their own, beside everything else that a command does.

The import of transformers takes longer than the rest of a command together, and rendering would take turns with
the asking: neither has to wait for the other here. ``evalswap serve`` keeps such a process, so that a run beside it
need not wait for the import at all. What crosses is pickled, between processes of one user.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from multiprocessing import AuthenticationError
from multiprocessing.connection import Client, Connection, Listener
from pathlib import Path
from types import TracebackType
from typing import Any

from evalswap import __version__
from evalswap.checkpoint import find_folder
from evalswap.errors import EvalswapError
from evalswap.plan import PromptPlan
from evalswap.prompting.tokenizer import Tokenizer, Vocabulary
from evalswap.records import Message, TokenizerAddress

# The child finds modules where this process does, not in the folder that it happens to be started in.
PROGRAM = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from evalswap.prompting import tokenizer_process; "
    "getattr(tokenizer_process, sys.argv[2])(*map(int, sys.argv[3:]))"
)
DECIDING = ("transformers", "tokenizers", "jinja2")  # the packages whose versions decide what a prompt's tokens are


class TokenizerProcess:
    """Loads tokenizers beside this process. It ends with :meth:`close`, or with this process, however that ends."""

    def __init__(self) -> None:
        self._starting = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._own: _Lines | None = None
        self._own_is_used = False
        self._kept: list[_Lines] = []

    def __enter__(self) -> TokenizerProcess:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def begin(self) -> None:
        """Start the process, if it was not yet: the earlier, the sooner transformers is imported."""
        with self._starting:
            if self._process is None:
                self._process, (prompts, answers) = _start("serve", 2)
                self._own = _Lines(prompts, answers, f"process {self._process.pid}")

    def load(self, plan: PromptPlan, revision: str | None = None, kept: TokenizerAddress | None = None) -> Tokenizer:
        """Load the tokenizer that a plan names, from a folder or the hub.

        It is loaded in the process that ``evalswap serve`` keeps, if it is there and of the same versions. Raises
        ModelFilesError if there is no tokenizer, and EvalswapError if the process dies.
        """
        assert plan.tokenizer_path is not None
        folder = find_folder(plan.tokenizer_path, revision, tokenizer_only=True)
        lines = _lines_to(kept) if kept is not None else None
        if lines is not None:
            self._kept.append(lines)
            if not self._own_is_used:
                self._end()
        else:
            self.begin()
            assert self._own is not None
            lines, self._own_is_used = self._own, True
        name = secrets.token_hex(8)
        vocabulary = lines.prompts.ask("load", name, folder, dict(plan.tokenizer_kwargs), plan.trust_remote_code)
        return Tokenizer(folder, _Remote(name, vocabulary, lines))

    def close(self) -> None:
        """End the process; it has nothing to lose. One that ``evalswap serve`` keeps stays."""
        self._end()
        for lines in self._kept:
            lines.close()

    def _end(self) -> None:
        with self._starting:
            if self._process is not None and self._own is not None:
                self._process.kill()
                self._process.wait()
                self._own.close()
                self._process = self._own = None


class KeptTokenizers:
    """A process for other commands, for as long as this is entered or its process lives."""

    def __init__(self) -> None:
        self._process, (self._line,) = _start("keep", 1)
        self._address: TokenizerAddress | None = None

    def __enter__(self) -> KeptTokenizers:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        address = self.address()
        self._line.close()  # it ends then, and takes its socket away
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if address is not None:  # if it was killed
            with contextlib.suppress(OSError):
                Path(address.path).unlink()
            with contextlib.suppress(OSError):
                Path(address.path).parent.rmdir()

    def address(self) -> TokenizerAddress | None:
        """Return where it is, as soon as it says so; None if it did not start."""
        if self._address is None:
            with contextlib.suppress(EOFError, OSError):
                self._address = TokenizerAddress(*self._line.recv())
        return self._address


class _Line:
    """Asks the process one thing at a time."""

    def __init__(self, connection: Connection[Any, Any], who: str) -> None:
        self._connection = connection
        self._who = who
        self._turn = threading.Lock()

    def ask(self, request: str, name: str, *arguments: Any) -> Any:
        """Have a request answered by the tokenizer ``name`` there; what it raises is raised here."""
        with self._turn:
            try:
                self._connection.send((request, name, arguments))
                result, error = self._connection.recv()
            except (EOFError, OSError):
                hint = "the same command goes on from what is stored; is this machine out of memory?"
                raise EvalswapError(f"the tokenizer's {self._who} was lost", hint) from None
        if error is not None:
            raise error
        return result

    def close(self) -> None:
        self._connection.close()


class _Lines:
    """One line for prompts and one for answers: decoding does not wait for prompts that are being made."""

    def __init__(self, prompts: Connection[Any, Any], answers: Connection[Any, Any], who: str) -> None:
        self.prompts = _Line(prompts, who)
        self.answers = _Line(answers, who)

    def close(self) -> None:
        self.prompts.close()
        self.answers.close()


class _Remote:
    """A TokenizerBackend in the process."""

    def __init__(self, name: str, vocabulary: Vocabulary, lines: _Lines) -> None:
        self.vocabulary = vocabulary
        self._name = name
        self._lines = lines

    def render(self, conversations: Sequence[tuple[Message, ...]], template_kwargs: Mapping[str, Any]) -> list[str]:
        texts: list[str] = self._lines.prompts.ask("render", self._name, conversations, dict(template_kwargs))
        return texts

    def encode(self, texts: Sequence[str], special_tokens: bool) -> list[list[int]]:
        ids: list[list[int]] = self._lines.prompts.ask("encode", self._name, texts, special_tokens)
        return ids

    def decode(self, ids: Sequence[int], skip_special_tokens: bool) -> str:
        return str(self._lines.answers.ask("decode", self._name, ids, skip_special_tokens))


def _start(function: str, lines: int) -> tuple[subprocess.Popen[bytes], list[Connection[Any, Any]]]:
    """Start a process that runs a function of this module on the other ends of so many lines."""
    ours, theirs = zip(*(socket.socketpair() for _ in range(lines)), strict=True)
    numbers = [end.fileno() for end in theirs]
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, json.dumps(sys.path), function, *map(str, numbers)],
        pass_fds=numbers,
        stdin=subprocess.DEVNULL,
        stdout=2,  # a model's own tokenizer code may print; the command's output is not for that
    )
    for end in theirs:
        end.close()
    return process, [Connection(end.detach()) for end in ours]


def _lines_to(kept: TokenizerAddress) -> _Lines | None:
    """Return lines to a kept process; None if it is gone, or would not make the same prompts as one of our own."""
    try:
        key = bytes.fromhex(kept.key)
        ends = [Client(kept.path, "AF_UNIX", authkey=key) for _ in range(2)]
    except (OSError, EOFError, AuthenticationError, ValueError):
        return None
    lines = _Lines(ends[0], ends[1], "process, which evalswap serve keeps,")
    try:
        if lines.prompts.ask("versions", "") == _versions():
            return lines
    except EvalswapError:
        pass
    lines.close()
    return None


def _versions() -> dict[str, str]:
    return {"evalswap": __version__, **{name: importlib.metadata.version(name) for name in DECIDING}}


# ---- in the process


def serve(prompts: int, answers: int) -> None:
    """Be a command's process: answer on two sockets, given by their file descriptors, until the first is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the command, which may still need this
    from evalswap.prompting.transformers_tokenizer import import_transformers

    import_transformers()
    tokenizers: dict[str, Any] = {}
    threading.Thread(target=_answer, args=(Connection(answers), tokenizers), daemon=True).start()
    _answer(Connection(prompts), tokenizers)
    os._exit(0)  # nothing is left to be written or put away


def keep(owner: int) -> None:
    """Be the process that is kept: answer whoever has the key, until the owner's socket is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    key = secrets.token_bytes(32)
    folder = Path(tempfile.mkdtemp(prefix="evalswap-"))  # for its owner alone; a socket's path has to be short
    listener = Listener(str(folder / "tokenizers"), "AF_UNIX", backlog=16, authkey=key)
    threading.Thread(target=_accept, args=(listener,), daemon=True).start()
    with contextlib.suppress(EOFError, OSError):
        line = Connection(owner)
        line.send((str(listener.address), key.hex()))
        line.recv()
    with contextlib.suppress(OSError):
        listener.close()
        folder.rmdir()
    os._exit(0)


def _accept(listener: Listener) -> None:
    from evalswap.prompting.transformers_tokenizer import import_transformers

    import_transformers()
    tokenizers: dict[str, Any] = {}
    while True:
        try:
            connection = listener.accept()
        except (AuthenticationError, OSError, EOFError):  # a stranger, or somebody who left at once
            time.sleep(0.05)
            continue
        threading.Thread(target=_answer, args=(connection, tokenizers), daemon=True).start()


def _answer(connection: Connection[Any, Any], tokenizers: dict[str, Any]) -> None:
    """Answer on one line until it is closed; what was loaded on it is forgotten then."""
    loaded = []
    while True:
        reply: tuple[Any, EvalswapError | None]
        try:
            request, name, arguments = connection.recv()
            if request == "load":
                loaded.append(name)
            try:
                reply = (_result(tokenizers, request, name, arguments), None)
            except EvalswapError as error:
                reply = (None, error)
            except Exception as error:
                reply = (None, EvalswapError(f"the tokenizer failed: {error!r}"))
            connection.send(reply)
        except (EOFError, OSError):
            break
    for name in loaded:
        tokenizers.pop(name, None)


def _result(tokenizers: dict[str, Any], request: str, name: str, arguments: Sequence[Any]) -> Any:
    if request == "versions":
        return _versions()
    if request == "load":
        from evalswap.prompting.transformers_tokenizer import TransformersTokenizer

        tokenizers[name] = TransformersTokenizer(*arguments)
        return tokenizers[name].vocabulary
    return getattr(tokenizers[name], request)(*arguments)
