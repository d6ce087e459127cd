"""What an engine is to evalswap: a server process, and a way to say "these ids, drawn so" to it.

An engine file holds three facts and no control flow: its command line, its HTTP dialect, and its table of
sampling names. Scheduling, retries, processes and text live elsewhere.
"""

from __future__ import annotations

import dataclasses
import os
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from evalswap.errors import ConversionError, EvalswapError
from evalswap.records import Completion, Request, Sampling


@dataclass(frozen=True, slots=True)
class Native:
    """The engine has the field, under this name."""

    name: str


@dataclass(frozen=True, slots=True)
class Emulated:
    """The engine lacks the field, but the same answer is reached another way."""

    how: str


@dataclass(frozen=True, slots=True)
class Refused:
    """The engine cannot do it: any value but the neutral one is an error."""

    why: str


LOOPBACK = "127.0.0.1"
SERVED_NAME = "evalswap"  # the name that managed servers serve their one model under

SamplingTable = Mapping[str, Native | Emulated | Refused]
NEUTRAL = Sampling(max_new_tokens=1)


def translate_sampling(sampling: Sampling, table: SamplingTable, engine: str) -> dict[str, Any]:
    """Return the engine's own sampling fields.

    Each field of ``Sampling`` must be in ``table``. Native fields are always sent, neutral or not, except
    None and empty lists. Raises ConversionError for a refused field with a value that is not neutral.
    """
    native: dict[str, Any] = {}
    for spec in dataclasses.fields(Sampling):
        value = getattr(sampling, spec.name)
        entry = table[spec.name]
        if isinstance(entry, Native):
            if value is None or value == ():
                continue
            native[entry.name] = list(value) if isinstance(value, tuple) else value
        elif isinstance(entry, Refused) and value != getattr(NEUTRAL, spec.name):
            raise ConversionError(
                f"{spec.name}={value!r} cannot be asked of {engine}: {entry.why}",
                f"remove it from generation_kwargs, or choose an engine that has {spec.name}",
            )
    return native


@dataclass(frozen=True, slots=True)
class Launch:
    """Everything a managed engine needs to start, resolved."""

    model: Path  # folder
    dtype: str  # never "auto" where the checkpoint tells
    context_len: int  # prompt + answer, tokens
    num_gpus: int
    batch_size: int
    trust_remote_code: bool
    device: str  # "cpu" or "cuda"
    pad_token_id: int | None = None
    peft_path: str | None = None
    model_kwargs: Mapping[str, Any] = field(default_factory=dict)
    engine_args: Mapping[str, Any] = field(default_factory=dict)
    answers: int | None = None  # how many answers are wanted at most, None for a server without end
    answer_tokens: int | None = None  # and how many tokens they have at most, all together


@dataclass(frozen=True, slots=True)
class EngineLoad:
    """How busy an engine says it is."""

    running: int  # requests that are being worked on
    waiting: int  # requests in its queue
    cache_used: float | None = None  # share of its KV cache, 0 to 1


@dataclass(frozen=True, slots=True)
class HttpCall:
    """One POST to an engine."""

    path: str
    body: dict[str, Any]


class MalformedAnswer(EvalswapError):
    """An engine answered something that is no answer; asked again."""


class FinalAnswerError(EvalswapError):
    """An engine says that it will never answer this; not asked again."""


class Engine(ABC):
    """How an engine is spoken to."""

    name: ClassVar[str]
    sampling: ClassVar[SamplingTable]

    def native_sampling(self, sampling: Sampling) -> dict[str, Any]:
        """Return the engine's own sampling fields. Raises ConversionError for what it refuses."""
        return translate_sampling(sampling, self.sampling, self.name)

    @abstractmethod
    def call(self, request: Request) -> HttpCall:
        """Return the POST that asks for one answer. Raises ConversionError for refused sampling."""

    @abstractmethod
    def read(self, answer: Any, request: Request) -> Completion:
        """Return what the engine's JSON says. Raises MalformedAnswer or FinalAnswerError."""


class ManagedEngine(Engine):
    """An engine whose server evalswap starts, watches and stops."""

    distributions: ClassVar[tuple[str, ...]]  # the Python packages that carry it, any of them
    health_path: ClassVar[str] = "/health"
    load_path: ClassVar[str | None] = None  # where the engine tells its load; None if it does not
    start_deadline: ClassVar[float] = 1800.0  # seconds; large models load slowly

    @abstractmethod
    def command(self, launch: Launch, python: Path, port: int) -> list[str]:
        """Return the command line of the server, on loopback."""

    @abstractmethod
    def environment(self, launch: Launch) -> dict[str, str]:
        """Return the environment variables that the server needs beside the caller's."""

    @abstractmethod
    def window(self, launch: Launch) -> int:
        """Return how many requests to keep in flight at most."""

    def read_load(self, content: str) -> EngineLoad | None:
        """Return what the body of a GET of ``load_path`` says; None if it does not tell the load."""
        return None


def offline_environment() -> dict[str, str]:
    """Return what keeps an engine off the network and gives every engine the same number of threads on a CPU.

    All cores, unless OMP_NUM_THREADS says otherwise: on a machine that is busy with other work fewer are faster.
    """
    threads = os.environ.get("OMP_NUM_THREADS") or str(_usable_cores())
    return {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": threads, "TOKENIZERS_PARALLELISM": "false"}


def _usable_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def flags(arguments: Mapping[str, Any]) -> list[str]:
    """Return ``--engine-args`` as command-line flags: True is a bare flag, False and None leave it out."""
    words: list[str] = []
    for key, value in arguments.items():
        flag = f"--{key.lstrip('-').replace('_', '-')}"
        if value is True:
            words.append(flag)
        elif value is not False and value is not None:
            words += [flag, str(value)]
    return words


def as_ids(value: Any, engine: str) -> tuple[int, ...]:
    """Return a list of token ids from an answer. Raises MalformedAnswer if it is none."""
    if not isinstance(value, list) or not all(isinstance(item, int) for item in value):
        raise MalformedAnswer(f"{engine} sent no list of token ids")
    return tuple(value)
