"""What the command line says about the engine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class EngineOptions:
    """What the command line says about the engine."""

    accelerator: str | None = None  # -a
    engine_args: Mapping[str, Any] = field(default_factory=dict)
    api_base: str | None = None  # one address, or several with commas between them
    api_key: str | None = field(default=None, repr=False)
    api_model: str | None = None
    in_flight: int | None = None  # requests at once, at most
