"""The records that flow through a run: frozen, small, and free of behaviour that belongs to a step.

``Sampling`` is complete: each field always has a value, so nothing is left to an engine's default.
A ``Request`` goes to an engine, a ``Response`` comes back, and its ``key`` says what decided the answer.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

FinishReason = Literal["stop", "length", "content_filter"]
Message = dict[str, str]  # {"role": "user", "content": "..."}, as chat templates and chat APIs take it


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are drawn, with HuggingFace's meaning of each field.

    ``temperature`` 0 means greedy. ``top_k`` 0 means off. ``stop`` are texts, ``stop_token_ids`` ids; the
    model's end-of-sequence ids are always spelled out among the ids, so engines are told to ignore their own.
    """

    max_new_tokens: int
    min_new_tokens: int = 0
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()

    @property
    def greedy(self) -> bool:
        return self.temperature == 0.0


@dataclass(frozen=True, slots=True)
class Prompt:
    """One rendered question. ``token_ids`` is None only where a remote server applies the template itself."""

    messages: tuple[Message, ...]
    text: str | None
    token_ids: tuple[int, ...] | None
    truncated_from: int | None = None  # length in tokens before max_seq_len cut it


@dataclass(frozen=True, slots=True)
class Request:
    """One question for an engine."""

    key: str  # content key: what decides the answer, see content_keys.ContentKeys
    job: str  # "<model abbr>/<dataset abbr>"
    row: int  # index in the dataset
    prompt: Prompt
    sampling: Sampling


@dataclass(frozen=True, slots=True)
class Completion:
    """What an engine's answer says, before it is cut at stops and decoded.

    ``token_ids`` is None where a remote server returns text only; then ``text`` is the server's own.
    """

    token_ids: tuple[int, ...] | None
    text: str | None
    finish_reason: FinishReason
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Response:
    """One finished answer, as it is stored."""

    key: str
    text: str
    token_ids: tuple[int, ...] | None
    finish_reason: FinishReason
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int | None
    started: float  # seconds since the epoch when the last attempt was sent
    seconds: float  # from there to the whole answer
    attempts: int
    engine: str  # "vllm 0.32.0"


@dataclass(frozen=True, slots=True)
class Failure:
    """One question that got no answer. It is asked again by the next run; it is never a wrong answer."""

    key: str
    job: str
    row: int
    error: str
    attempts: int


@dataclass(frozen=True, slots=True)
class TranslationRow:
    """One line of the translation table: a field of the config and what became of it."""

    source: str  # "max_seq_len=4096"
    target: str  # "--max-model-len 5120", or "" where it has no counterpart
    note: str = ""


@dataclass(frozen=True, slots=True)
class EngineIdentity:
    """Which engine really runs."""

    name: str
    version: str
    interpreter: str  # path of the interpreter, or the server's address
    device: str  # "cpu", "cuda", "remote"
    details: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.name} {self.version}"
