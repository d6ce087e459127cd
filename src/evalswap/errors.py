"""The errors that a person is meant to read, and the exit codes that they lead to.

Each error carries what is wrong and where in its message, and what to do in its hint. The command line
prints both and never a traceback (``--debug`` shows one).
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from evalswap.surrogates import storable

EXIT_OK = 0
EXIT_FAILED = 1  # something was not answered or not scored
EXIT_USAGE = 2  # a wrong command line or config
EXIT_INTERRUPTED = 130


class EvalswapError(Exception):
    """Something went wrong that the user can act on."""

    exit_code = EXIT_FAILED

    def __init__(self, message: str, hint: str | None = None) -> None:
        message = storable(message)  # it may quote what a server said
        super().__init__(message)
        self.message = message
        self.hint = hint


class ConfigError(EvalswapError):
    """The command line, a config file or a value in it is wrong."""

    exit_code = EXIT_USAGE


class ConversionError(ConfigError):
    """A spec cannot be moved to the asked engine without changing its meaning."""


class DataError(EvalswapError):
    """A benchmark's rows are missing or unreadable."""


class ModelFilesError(EvalswapError):
    """A model's folder, tokenizer or config cannot be found or read."""


class TokenizerError(EvalswapError):
    """A tokenizer fails at what it is given to encode or to decode."""


class EngineError(EvalswapError):
    """An engine is not installed, did not start, or died."""


class StoreError(EvalswapError):
    """The work folder cannot be written or read."""


def did_you_mean(word: str, known: Iterable[str]) -> str | None:
    """Return a hint naming the closest known word, or None if nothing is close."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f"did you mean '{close[0]}'?" if close else None
