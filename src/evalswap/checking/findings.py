"""What a check found: figures for machines, findings for people."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from evalswap.errors import EvalswapError
from evalswap.records import TranslationRow

Level = Literal["good", "note", "problem"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at. A ``problem`` would make the run fail; ``hint`` says what to do."""

    level: Level
    about: str  # "engine", "architecture", "memory", …
    text: str
    hint: str | None = None


@dataclass
class ModelCheck:
    """What was found of one model."""

    abbr: str
    engine: str
    spec_type: str
    translation: tuple[TranslationRow, ...]
    findings: list[Finding] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)
    first_prompt: str | None = None  # rendered, as the engine will read it

    @property
    def problems(self) -> list[Finding]:
        return [finding for finding in self.findings if finding.level == "problem"]

    def good(self, about: str, text: str) -> None:
        self.findings.append(Finding("good", about, text))

    def note(self, about: str, text: str, hint: str | None = None) -> None:
        self.findings.append(Finding("note", about, text, hint))

    def problem(self, about: str, text: str, hint: str | None = None) -> None:
        self.findings.append(Finding("problem", about, text, hint))

    def failed(self, about: str, error: EvalswapError) -> None:
        """Record what a run would have stopped at."""
        self.problem(about, error.message, error.hint)
