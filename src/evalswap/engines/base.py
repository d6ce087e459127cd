"""What an engine is to evalswap: a server process, and a way to say "these ids, drawn so" to it.

An engine file holds three facts and no control flow: its command line, its HTTP dialect, and its table of
sampling names. Scheduling, retries, processes and text live elsewhere. ``flags.py`` and ``answers.py`` beside
this file have what several engines share.
"""

from __future__ import annotations

import dataclasses
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from evalswap.errors import ConversionError, EvalswapError
from evalswap.plan import LaunchPlan
from evalswap.records import Completion, Request, Sampling


@dataclass(frozen=True, slots=True)
class Native:
    """The engine has the field, under this name.

    ``least`` and ``most`` bound what it takes. Of stop texts it may take no more than the ``first`` few; evalswap,
    which cuts each answer at all of them, does the rest.
    """

    name: str
    least: float | None = None
    most: float | None = None
    first: int | None = None


@dataclass(frozen=True, slots=True)
class Emulated:
    """The engine lacks the field, but the same answer is reached another way."""

    how: str


@dataclass(frozen=True, slots=True)
class Refused:
    """The engine cannot do it: any value but the neutral one is an error.

    That one is ``Sampling``'s own default, unless the engine does always ``does``.
    """

    why: str
    does: float | None = None


@dataclass(frozen=True, slots=True)
class Exclusive:
    """Two fields that the engine has, but that mean something else together: both at once is an error."""

    fields: tuple[str, str]
    why: str


LOOPBACK = "127.0.0.1"
SERVED_NAME = "evalswap"  # the name that managed servers serve their one model under

SamplingTable = Mapping[str, Native | Emulated | Refused]
NEUTRAL = Sampling(max_new_tokens=1)


class RefusedSampling(ConversionError):
    """An engine does not do what a sampling block asks for.

    ``asked`` are the fields and their values; ``neutral`` the fields with the values that ask for nothing, of which one
    is enough to be taken. It is empty where a field is taken, but not with this value.
    """

    def __init__(self, asked: Mapping[str, Any], engine: str, why: str, neutral: Mapping[str, Any]) -> None:
        values = " with ".join(f"{name}={value!r}" for name, value in asked.items())
        cure = " or ".join(f"{name}={value!r}" for name, value in neutral.items()) or "another value"
        super().__init__(f"{values} cannot be asked of {engine}: {why}", f"choose {cure}, or another engine")
        self.asked, self.engine, self.why, self.neutral = asked, engine, why, neutral


def translate_sampling(
    sampling: Sampling, table: SamplingTable, engine: str, exclusive: tuple[Exclusive, ...] = ()
) -> dict[str, Any]:
    """Return the engine's own sampling fields.

    Each field of ``Sampling`` must be in ``table``. Native fields are always sent, neutral or not, except
    None and empty lists. Nothing is drawn in a greedy answer, so its seed is not sent.

    Raises RefusedSampling for a refused field with a value that is not neutral, for a value that the engine
    does not take, and for two fields that exclude each other.
    """
    if sampling.greedy:
        sampling = dataclasses.replace(sampling, seed=None)
    native: dict[str, Any] = {}
    for spec in dataclasses.fields(Sampling):
        value = getattr(sampling, spec.name)
        entry = table[spec.name]
        if isinstance(entry, Native):
            if value is None or value == ():
                continue
            _check_range(spec.name, value, entry, engine)
            native[entry.name] = list(value[: entry.first]) if isinstance(value, tuple) else value
        elif isinstance(entry, Refused) and value != (neutral := _neutral(spec.name, entry)):
            raise RefusedSampling({spec.name: value}, engine, entry.why, {spec.name: neutral})
    for pair in exclusive:
        asked = {name: getattr(sampling, name) for name in pair.fields}
        neutrals = {name: getattr(NEUTRAL, name) for name in pair.fields}
        if all(value != neutrals[name] for name, value in asked.items()):
            raise RefusedSampling(asked, engine, pair.why, neutrals)
    return native


def _neutral(name: str, entry: Refused) -> Any:
    return getattr(NEUTRAL, name) if entry.does is None else entry.does


def _check_range(name: str, value: Any, entry: Native, engine: str) -> None:
    too_low = entry.least is not None and value < entry.least and value != getattr(NEUTRAL, name)
    too_high = entry.most is not None and value > entry.most
    if too_low or too_high:
        bound = f"at least {entry.least:g}" if too_low else f"at most {entry.most:g}"
        raise RefusedSampling({name: value}, engine, f"it takes {bound}", {})


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
    exclusive: ClassVar[tuple[Exclusive, ...]] = ()

    @property
    def title(self) -> str:
        """What people are told that it is."""
        return self.name

    def native_sampling(self, sampling: Sampling) -> dict[str, Any]:
        """Return the engine's own sampling fields. Raises RefusedSampling for what it refuses."""
        return translate_sampling(sampling, self.sampling, self.title, self.exclusive)

    @abstractmethod
    def call(self, request: Request) -> HttpCall:
        """Return the POST that asks for one answer. Raises RefusedSampling."""

    @abstractmethod
    def read(self, answer: Any, request: Request) -> Completion:
        """Return what the engine's JSON says. Raises MalformedAnswer or FinalAnswerError."""


class ManagedEngine(Engine):
    """An engine whose server evalswap starts, watches and stops."""

    distributions: ClassVar[tuple[str, ...]] = ()  # the Python packages that carry it, any of them
    program: ClassVar[str | None] = None  # the command that it is, where it is no Python package
    health_path: ClassVar[str] = "/health"
    load_path: ClassVar[str | None] = None  # where the engine tells its load; None if it does not
    load_is_live: ClassVar[bool] = True  # False: counted anew only now and then, and no window may follow that
    # Tokens of the longest prompt where neither config nor flags say; None: as many as the model takes.
    prompt_room: ClassVar[int | None] = None
    start_deadline: ClassVar[float] = 1800.0  # seconds; large models load slowly
    stop_grace: ClassVar[float] = 10.0  # seconds to end in, once all is answered and it was told to stop
    # What its command line calls a field of a plan, for the translation table. One that it cannot be told is
    # not here: without "peft_path", adapters are refused.
    flag_names: ClassVar[Mapping[str, str]] = {}
    # Flags that name kernels, and not every kernel has every dtype: where a run is repeated in another dtype, the
    # engine chooses anew.
    kernel_flags: ClassVar[tuple[str, ...]] = ()
    # What its log says when it dies (a regular expression) → the flag or the step that helps.
    hints: ClassVar[tuple[tuple[str, str], ...]] = ()

    def configured(self, plan: LaunchPlan, device: str | None = None) -> ManagedEngine:
        """Return the engine as a plan's flags and adapter make it; with others it may take other fields.

        ``device`` is "cpu" or "cuda", None where it is not known yet.

        Raises ConversionError for what the engine cannot load.
        """
        return self

    @property
    def up_path(self) -> str:
        """What a server that was healthy before answers at once."""
        return self.health_path

    @abstractmethod
    def command(self, launch: Launch, python: Path, port: int) -> list[str]:
        """Return the command line of the server, on loopback. ``python`` is the program of one that is none."""

    @abstractmethod
    def environment(self, launch: Launch) -> dict[str, str]:
        """Return the environment variables that the server needs beside the caller's."""

    @abstractmethod
    def window(self, launch: Launch) -> int:
        """Return how many requests to keep in flight at most."""

    def asked_context(self, engine_args: Mapping[str, Any]) -> int | None:
        """Return the most tokens of prompt and answer that the user's own flags leave room for; None without any."""
        return None

    def one_rope_context(self, original: int) -> int | None:
        """Return the longest context in which LongRoPE's short factors hold, ``original`` being the model's own.

        None: the engine chooses them by each sequence's length, as transformers does.
        """
        return None

    def replicas(self, launch: Launch) -> int:
        """Return how many copies of the model the engine loads, each with its part of the GPUs (data parallel)."""
        return 1

    def start_mode(self, launch: Launch) -> str | None:
        """Return how much the engine makes ready at its start (see ``start_modes``), if that can be chosen."""
        return None

    def explain(self, log: str) -> str | None:
        """Return what helps against what an engine's log complains of, where that is known."""
        return next((hint for pattern, hint in self.hints if re.search(pattern, log)), None)

    def read_load(self, content: str) -> EngineLoad | None:
        """Return what the body of a GET of ``load_path`` says; None if it does not tell the load."""
        return None
