"""The engines by name: ours and those of other packages (entry points of the group ``evalswap.engines``)."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping

from evalswap.engines.base import ManagedEngine
from evalswap.errors import ConfigError, EngineError, did_you_mean
from evalswap.plan import LaunchPlan

ENTRY_POINTS = "evalswap.engines"
ALIASES = {"hf": "transformers", "huggingface": "transformers", "llama.cpp": "llamacpp", "turbomind": "lmdeploy"}
REFERENCE = "transformers"
REMOTE = "openai"  # the one engine that is not started here


def engine_names() -> list[str]:
    return sorted({REMOTE, *_managed()})


def managed_engine_names() -> list[str]:
    """Return the engines that evalswap starts itself: the reference, then the others by name."""
    return sorted(_managed(), key=lambda name: (name != REFERENCE, name))


def canonical_name(name: str) -> str:
    """Return an engine's name as plans use it. Raises ConfigError for an unknown one."""
    known = engine_names()
    found = ALIASES.get(name.lower(), name.lower())
    if found not in known:
        raise ConfigError(f"unknown engine '{name}'", did_you_mean(found, known) or f"evalswap has: {', '.join(known)}")
    return found


def managed_engine(name: str, plan: LaunchPlan | None = None) -> ManagedEngine:
    """Return an engine that evalswap starts itself, where a plan is given as its flags make it.

    Raises EngineError if there is no such engine or it cannot be loaded, and ConversionError for what it cannot load.
    """
    entry = _managed().get(name)
    if entry is None:
        raise EngineError(
            f"evalswap does not start an engine '{name}'",
            did_you_mean(name, _managed()) or f"it starts {', '.join(managed_engine_names())}",
        )
    try:
        made = entry.load()()
    except (ImportError, AttributeError, TypeError) as error:
        raise EngineError(f"the engine '{name}' cannot be loaded: {error}") from error
    if not isinstance(made, ManagedEngine):
        raise EngineError(f"the entry point of engine '{name}' is no ManagedEngine")
    return made.configured(plan) if plan is not None else made


def flag_names(name: str) -> Mapping[str, str]:
    """Return what an engine's command line calls the fields of a plan; nothing for a server that runs already."""
    return {} if name == REMOTE else managed_engine(name).flag_names


def _managed() -> Mapping[str, importlib.metadata.EntryPoint]:
    return {entry.name: entry for entry in importlib.metadata.entry_points(group=ENTRY_POINTS)}
