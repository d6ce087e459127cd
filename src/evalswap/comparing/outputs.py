"""What one model answered on one dataset, as a comparison sees it, whoever ran it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(slots=True)
class Output:
    """One row's answer, with what was read out of it."""

    row: int
    gold: str
    prompt: str  # its turns as text, joined by newlines
    prompt_ids: bytes | None  # packed, see store.unpack_ids; None where a server rendered the prompt, or unknown
    token_ids: tuple[int, ...] | None
    text: str
    finish: str  # "stop", "length", …; "" where unknown
    tokens: int  # new tokens, 0 where unknown
    started: float | None  # seconds since the epoch
    seconds: float
    answer: str = ""  # what was extracted and scored
    right: bool | None = None  # None where nobody scored this row


@dataclass
class Side:
    """One model of one run on one dataset."""

    folder: Path
    model: str  # abbr
    dataset: str  # abbr
    metric: str
    score: float | None  # percent, as the run's own results say
    outputs: dict[int, Output]  # the rows with an answer
    unanswered: tuple[int, ...] = ()  # rows that were asked and got none
    failures: Mapping[int, str] = field(default_factory=dict)  # why, of those that say
    record: Mapping[str, Any] = field(default_factory=dict)  # the model's record of run.json
    evalswap: str = ""  # the version that scored
    foreign: bool = False  # read from another tool's files: outputs only

    @property
    def rows(self) -> set[int]:
        """Every row of the run, answered or not."""
        return {*self.outputs, *self.unanswered}

    @property
    def engine(self) -> str:
        return str((self.record.get("engine") or {}).get("name") or "unknown")

    @property
    def facts(self) -> Mapping[str, Any]:
        """What decided the answers; empty where nobody recorded it."""
        return self.record.get("facts") or {}

    @property
    def sampling(self) -> Mapping[str, Any]:
        """The sampling block of this dataset; empty where unknown."""
        return (self.facts.get("sampling") or {}).get(self.dataset) or {}

    @property
    def about_rows(self) -> Mapping[str, Any]:
        """What run.json says about this dataset."""
        return (self.record.get("datasets") or {}).get(self.dataset) or {}

    @property
    def with_ids(self) -> bool:
        return bool(self.outputs) and all(output.token_ids is not None for output in self.outputs.values())

    @property
    def scored(self) -> bool:
        """Whether each answer is known to be right or wrong."""
        return bool(self.outputs) and all(output.right is not None for output in self.outputs.values())


def prompt_text(prompt: Any) -> str:
    """Return a recorded prompt as text: a string as it is, a list of turns by what they say."""
    if isinstance(prompt, str):
        return prompt
    if isinstance(prompt, list):
        turns = (turn.get("prompt", turn.get("content", "")) if isinstance(turn, dict) else turn for turn in prompt)
        return "\n".join(str(turn) for turn in turns)
    return "" if prompt is None else str(prompt)
