"""Tokenizers in a process of their own, beside everything else that a command does.

The import of transformers takes longer than the rest of a command together, and rendering would take turns with
the asking: neither has to wait for the other here. What crosses is pickled, between a process and its own child.
"""

from __future__ import annotations

import json
import os
import signal
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
from evalswap.errors import EvalswapError
from evalswap.plan import PromptPlan
from evalswap.prompting.tokenizer import Tokenizer, Vocabulary
from evalswap.records import Message

# The child finds modules where this process does, not in the folder that it happens to be started in.
PROGRAM = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from evalswap.prompting.tokenizer_process import serve; serve(*map(int, sys.argv[2:]))"
)


class TokenizerProcess:
    """Loads tokenizers beside this process. It ends with :meth:`close`, or with this process, however that ends."""

    def __init__(self) -> None:
        self._starting = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._prompts: _Line | None = None
        self._answers: _Line | None = None
        self._loaded = 0

    def __enter__(self) -> TokenizerProcess:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def begin(self) -> None:
        """Start the process, if it was not yet: the earlier, the sooner transformers is imported."""
        with self._starting:
            if self._process is not None:
                return
            ours, theirs = zip(*(socket.socketpair() for _ in range(2)), strict=True)
            numbers = [end.fileno() for end in theirs]
            words = [json.dumps(sys.path), *map(str, numbers)]
            self._process = subprocess.Popen(
                [sys.executable, "-c", PROGRAM, *words],
                pass_fds=numbers,
                stdin=subprocess.DEVNULL,
                stdout=2,  # a model's own tokenizer code may print; the command's output is not for that
            )
            for end in theirs:
                end.close()
            self._prompts, self._answers = (_Line(end, self._process) for end in ours)

    def load(self, plan: PromptPlan, revision: str | None = None) -> Tokenizer:
        """Load the tokenizer that a plan names, from a folder or the hub.

        Raises ModelFilesError if there is none, and EvalswapError if the process dies.
        """
        assert plan.tokenizer_path is not None
        self.begin()
        assert self._prompts is not None
        assert self._answers is not None
        folder = find_folder(plan.tokenizer_path, revision, tokenizer_only=True)
        with self._starting:
            self._loaded += 1
            number = self._loaded
        vocabulary = self._prompts.ask("load", number, folder, dict(plan.tokenizer_kwargs), plan.trust_remote_code)
        return Tokenizer(folder, _Remote(number, vocabulary, self._prompts, self._answers))

    def close(self) -> None:
        """End the process; it has nothing to lose."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            for line in (self._prompts, self._answers):
                if line is not None:
                    line.close()


class _Line:
    """Asks the process one thing at a time."""

    def __init__(self, end: socket.socket, process: subprocess.Popen[bytes]) -> None:
        self._connection = Connection(end.detach())
        self._process = process
        self._turn = threading.Lock()

    def ask(self, name: str, number: int, *arguments: Any) -> Any:
        """Call a function of the tokenizer ``number`` there; what it raises is raised here."""
        with self._turn:
            try:
                self._connection.send((name, number, arguments))
                result, error = self._connection.recv()
            except (EOFError, OSError):
                code = self._process.wait()
                how = f"was killed ({signal.Signals(-code).name})" if code < 0 else f"ended with code {code}"
                hint = "the same command goes on from what is stored; is this machine out of memory?"
                raise EvalswapError(f"the tokenizer's process {how}", hint) from None
        if error is not None:
            raise error
        return result

    def close(self) -> None:
        self._connection.close()


class _Remote:
    """A TokenizerBackend in the process. Decoding an answer does not wait for prompts that are being made."""

    def __init__(self, number: int, vocabulary: Vocabulary, prompts: _Line, answers: _Line) -> None:
        self.vocabulary = vocabulary
        self._number = number
        self._prompts = prompts
        self._answers = answers

    def render(self, conversations: Sequence[tuple[Message, ...]], template_kwargs: Mapping[str, Any]) -> list[str]:
        texts: list[str] = self._prompts.ask("render", self._number, conversations, dict(template_kwargs))
        return texts

    def encode(self, texts: Sequence[str], special_tokens: bool) -> list[list[int]]:
        ids: list[list[int]] = self._prompts.ask("encode", self._number, texts, special_tokens)
        return ids

    def decode(self, ids: Sequence[int], skip_special_tokens: bool) -> str:
        return str(self._answers.ask("decode", self._number, ids, skip_special_tokens))


def serve(prompts: int, answers: int) -> None:
    """Be the process: answer on two sockets, given by their file descriptors, until the first is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the command, which may still need this
    from evalswap.prompting.transformers_tokenizer import import_transformers

    import_transformers()
    tokenizers: dict[int, Any] = {}
    threading.Thread(target=_answer, args=(answers, tokenizers), daemon=True).start()
    _answer(prompts, tokenizers)
    os._exit(0)  # nothing is left to be written or put away


def _answer(number: int, tokenizers: dict[int, Any]) -> None:
    connection = Connection(number)
    while True:
        reply: tuple[Any, EvalswapError | None]
        try:
            name, tokenizer, arguments = connection.recv()
        except (EOFError, OSError):
            return
        try:
            if name == "load":
                result = _load(tokenizers, tokenizer, *arguments)
            else:
                result = getattr(tokenizers[tokenizer], name)(*arguments)
            reply = (result, None)
        except EvalswapError as error:
            reply = (None, error)
        except Exception as error:
            reply = (None, EvalswapError(f"the tokenizer failed: {error!r}"))
        connection.send(reply)


def _load(
    tokenizers: dict[int, Any], number: int, folder: Path, kwargs: Mapping[str, Any], trust_remote_code: bool
) -> Vocabulary:
    from evalswap.prompting.transformers_tokenizer import TransformersTokenizer

    tokenizers[number] = TransformersTokenizer(folder, kwargs, trust_remote_code)
    vocabulary: Vocabulary = tokenizers[number].vocabulary
    return vocabulary
