"""What configs can name: dataset loaders, post-processors and evaluators.

Our own modules are imported when the first name is looked up; packages add theirs with an entry point of the
group ``evalswap.benchmarks`` whose module registers names when it is imported.
"""

from __future__ import annotations

import importlib
import importlib.metadata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol, TypeVar

from evalswap.errors import ConfigError, did_you_mean

OWN_MODULES = ("evalswap.benchmarks.gsm8k",)
ENTRY_POINTS = "evalswap.benchmarks"


@dataclass(frozen=True)
class Rows:
    """A dataset's rows, where they came from, and a SHA-256 of exactly what was read."""

    rows: Sequence[Mapping[str, Any]]
    source: str
    sha256: str


class Evaluator(Protocol):
    """Scores one answer."""

    metrics: tuple[str, ...]  # the first is the published one

    def score(self, prediction: str, gold: str, text: str) -> Mapping[str, bool]:
        """Score a prediction after and before post-processing (``text``); True is right."""


Loader = Callable[..., Rows]  # (path: str | None, **keys of the config) -> Rows
Postprocessor = Callable[[str], str]
_Thing = TypeVar("_Thing")

_LOADERS: dict[str, Loader] = {}
_POSTPROCESSORS: dict[str, Postprocessor] = {}
_EVALUATORS: dict[str, Callable[..., Evaluator]] = {}


def loader(*names: str) -> Callable[[_Thing], _Thing]:
    """Register a dataset loader under the type names that configs use."""
    return _register(_LOADERS, names)


def postprocessor(*names: str) -> Callable[[_Thing], _Thing]:
    """Register a text post-processor."""
    return _register(_POSTPROCESSORS, names)


def evaluator(*names: str) -> Callable[[_Thing], _Thing]:
    """Register an evaluator class."""
    return _register(_EVALUATORS, names)


def find_loader(name: str, where: str) -> Loader:
    return _find(_LOADERS, name, where, "dataset type")


def find_postprocessor(name: str, where: str) -> Postprocessor:
    return _find(_POSTPROCESSORS, name, where, "post-processor")


def find_evaluator(name: str, where: str) -> Callable[..., Evaluator]:
    return _find(_EVALUATORS, name, where, "evaluator")


def _register(table: dict[str, Any], names: Sequence[str]) -> Callable[[_Thing], _Thing]:
    def add(thing: _Thing) -> _Thing:
        table.update(dict.fromkeys(names, thing))
        return thing

    return add


def _find(table: Mapping[str, _Thing], name: str, where: str, kind: str) -> _Thing:
    _load_modules()
    if name not in table:
        raise ConfigError(
            f"{where}: evalswap has no {kind} '{name}'",
            did_you_mean(name, table) or f"it has: {', '.join(sorted(table))}",
        )
    return table[name]


@cache
def _load_modules() -> None:
    for module in OWN_MODULES:
        importlib.import_module(module)
    for entry in importlib.metadata.entry_points(group=ENTRY_POINTS):
        entry.load()
