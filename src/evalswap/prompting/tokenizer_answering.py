"""The process in which tokenizers live: what :mod:`evalswap.prompting.tokenizer_process` starts and asks."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import tempfile
import threading
import time
import traceback
from collections.abc import Sequence
from multiprocessing.connection import Connection, Listener
from pathlib import Path
from typing import Any

from evalswap import __version__
from evalswap.errors import EvalswapError, TokenizerError

DECIDING = ("transformers", "tokenizers", "jinja2")  # the packages whose versions decide what a prompt's tokens are
MESSAGES = "3"  # what is asked and answered here; with another meaning it gets another number
LONGEST_PATH = 100  # bytes of a Unix socket's path: the system takes 107


def versions() -> dict[str, str]:
    """Return the versions of all that decides what a prompt's tokens are."""
    ours = {"evalswap": __version__, "messages": MESSAGES, "python": platform.python_version()}
    return ours | {name: importlib.metadata.version(name) for name in DECIDING}


def serve(prompts: int, answers: int) -> None:
    """Be a command's process: answer on two sockets, given by their file descriptors, until the first is closed."""
    problem = _import()
    tokenizers: dict[str, Any] = {}
    threading.Thread(target=_answer, args=(Connection(answers), tokenizers, problem), daemon=True).start()
    _answer(Connection(prompts), tokenizers, problem)
    os._exit(0)  # nothing is left to be written or put away


def keep(owner: int) -> None:
    """Be the process that is kept: answer everybody who reaches the socket, until the owner's is closed."""
    line = Connection(owner)
    folder: Path | None = None
    with contextlib.suppress(EOFError, OSError):
        folder = _short_folder()
        with Listener(str(folder / "tokenizers"), "AF_UNIX", backlog=16) as listener:
            line.send(str(listener.address))
            if _import() is None:
                threading.Thread(target=_accept, args=(listener,), daemon=True).start()
                line.recv()
    if folder is not None:
        with contextlib.suppress(OSError):
            folder.rmdir()
    os._exit(0)


def _short_folder() -> Path:
    """Return a new folder that nobody else can enter, with a path that a socket's fits into."""
    folder = Path(tempfile.mkdtemp(prefix="evalswap-"))
    if len(os.fsencode(folder)) > LONGEST_PATH - len("/tokenizers"):
        folder.rmdir()
        folder = Path(tempfile.mkdtemp(prefix="evalswap-", dir="/tmp"))
    return folder


def _import() -> EvalswapError | None:
    """Import transformers; return what is wrong with it."""
    from evalswap.prompting.transformers_tokenizer import import_transformers

    try:
        import_transformers()
    except Exception as error:
        text = f"transformers, which tokenises, cannot be imported: {error}"
        return EvalswapError(text, "install it anew: pip install --force-reinstall transformers")
    return None


def _accept(listener: Listener) -> None:
    tokenizers: dict[str, Any] = {}
    while True:
        try:
            connection = listener.accept()
        except OSError:  # somebody left at once
            time.sleep(0.05)
            continue
        threading.Thread(target=_answer, args=(connection, tokenizers), daemon=True).start()


def _answer(connection: Connection[Any, Any], tokenizers: dict[str, Any], problem: EvalswapError | None = None) -> None:
    """Answer on one line until it is closed; what was loaded on it is forgotten then."""
    loaded = []
    while True:
        error: EvalswapError | None
        result, error, where = None, problem, ""
        try:
            request, name, arguments = connection.recv()
            if request == "load":
                loaded.append(name)
            if error is None:
                result = _result(tokenizers, request, name, arguments)
        except (EOFError, ConnectionError):
            break
        except EvalswapError as known:
            error, where = known, traceback.format_exc()
        except Exception as unknown:
            error, where = TokenizerError(f"the tokenizer failed: {unknown!r}"), traceback.format_exc()
        try:
            connection.send((result, error, where))
        except OSError:
            break
    for name in loaded:
        tokenizers.pop(name, None)


def _result(tokenizers: dict[str, Any], request: str, name: str, arguments: Sequence[Any]) -> Any:
    if request == "versions":
        return versions()
    if request == "load":
        from evalswap.prompting.transformers_tokenizer import TransformersTokenizer

        folder, kwargs, trust_remote_code = arguments
        tokenizers[name] = TransformersTokenizer(Path(folder), kwargs, trust_remote_code)
        return tokenizers[name].vocabulary
    return getattr(tokenizers[name], request)(*arguments)
