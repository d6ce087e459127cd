"""How a side was run, as its own folder tells: its config, the model's folder, the engine and the engine's flags."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from evalswap.comparing.outputs import Side
from evalswap.errors import ConfigError, EvalswapError

if TYPE_CHECKING:
    from evalswap.config.experiment import Experiment
    from evalswap.config.specs import ModelSpec
    from evalswap.plan import ModelPlan


def experiments_of(side: Side) -> Iterator[Experiment]:
    """Yield what the configs in a side's folder say, the latest first; what cannot be read any more is left out."""
    from evalswap.config.experiment import from_config
    from evalswap.config.loading import ConfigLoader

    for path in sorted((side.folder / "configs").glob("*.py"), reverse=True):
        try:
            yield from_config(path, ConfigLoader())
        except EvalswapError:
            continue


def spec_of(side: Side) -> tuple[Experiment, ModelSpec]:
    """Return what a side's run was asked for, and its model's spec with the folder that the model was found in.

    Raises ConfigError where the run's folder has no config of it (any more).
    """
    for experiment in experiments_of(side):
        for spec in experiment.models:
            if is_model_of(spec, side):
                folder = side.facts.get("folder")
                return experiment, spec.model_copy(update={"path": str(folder)}) if folder else spec
    raise ConfigError(
        f"{side.folder.name}: its folder does not tell how {side.model} was run",
        "give compare the config and -a instead of run folders",
    )


def plan_again(spec: ModelSpec, side: Side, any_kernel: bool = False) -> ModelPlan:
    """Return the plan of a side's engine with its flags, on request without those that choose kernels."""
    from evalswap.conversion import EngineOptions, convert
    from evalswap.engines.flags import given
    from evalswap.engines.registry import REMOTE, managed_engine

    arguments: dict[str, Any] = dict(side.facts.get("engine_args") or {})
    if any_kernel and side.engine != REMOTE:
        chosen = managed_engine(side.engine).kernel_flags
        arguments = {key: value for key, value in given(arguments).items() if key not in chosen}
    return convert(spec, EngineOptions(accelerator=side.engine, engine_args=arguments))


def is_model_of(spec: ModelSpec, side: Side) -> bool:
    """Whether a spec is that of a side's model. False too where the folder does not tell: an address is not kept."""
    try:
        return plan_again(spec, side).abbr == side.model
    except EvalswapError:
        return False
