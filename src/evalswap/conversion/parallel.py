"""How many GPUs an engine has, where a config names the engine and gives its own numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from evalswap.config.specs import ModelSpec
from evalswap.conversion.options import EngineOptions
from evalswap.conversion.translation import Translation, device_rows, num_procs_row
from evalswap.engines.flags import given
from evalswap.errors import ConfigError, ConversionError


@dataclass(frozen=True)
class Parallel:
    """What an engine calls the numbers that its GPUs are made of, each under any of several names."""

    tensor: tuple[str, ...]
    parts: tuple[tuple[str, ...], ...]  # data-parallel copies, pipeline stages


PARALLEL: Mapping[str, Parallel] = {
    "vllm": Parallel(("tensor_parallel_size", "tp"), (("pipeline_parallel_size", "pp"), ("data_parallel_size", "dp"))),
    "sglang": Parallel(("tp_size",), (("pp_size", "pipeline_parallel_size"), ("dp_size", "data_parallel_size"))),
    "lmdeploy": Parallel(("tp",), (("dp",),)),
}


def gpu_rows(spec: ModelSpec, gpus: int, table: Translation, engine_args: Mapping[str, Any]) -> None:
    """Add the rows of ``run_cfg`` for a spec that names no engine: its GPUs are shared by the parts of the flags.

    Raises ConfigError for a flag that is no number from 1 on.
    """
    asked = given(engine_args)
    names = PARALLEL.get(table.engine, Parallel((), ()))
    parts = math.prod(_size({}, asked, spec, "", several) or 1 for several in names.parts)
    _size({}, asked, spec, "", names.tensor)  # for its error alone: the flag goes to the engine as it is
    device_rows(spec, gpus, table, parts if gpus % parts == 0 else 1)


def take_gpus(
    kwargs: dict[str, Any], spec: ModelSpec, where: str, table: Translation, options: EngineOptions
) -> tuple[int, dict[str, int]]:
    """Return how many GPUs the engine has, all together, and its tensor-parallel flag where they do not tell it.

    The engine is to start with the config's own numbers, or the command line's. The tensor-parallel size is taken out
    of ``kwargs``, a config's ``where``: engines are told it by way of the number of GPUs
    (:func:`evalswap.engines.flags.tensor_parallel`).

    Raises ConfigError for what is no number, and ConversionError for copies that evalswap could not ask.
    """
    names = PARALLEL[table.engine]
    asked = given(options.engine_args)
    parts = math.prod(_size(kwargs, asked, spec, where, several) or 1 for several in names.parts)
    tensor = _size(kwargs, asked, spec, where, names.tensor)
    of_flags = next((name for name in names.tensor if name in asked), None)
    for name in names.tensor:
        if name in kwargs:
            source, value = f"{where}.{name}={kwargs[name]}", kwargs.pop(name)
            if value is None or of_flags:
                table.add(source, "", f"--engine-args {of_flags} comes first" if of_flags else "unset")
            else:
                table.flag("num_gpus", tensor, source=source)
    there = spec.run_cfg.num_gpus
    if tensor is None:
        gpus = there if there > 1 else parts
        if gpus % parts:
            raise ConversionError(
                f"{spec.abbr}: run_cfg.num_gpus={gpus} cannot be shared by {parts} data- and pipeline-parallel parts",
                f"give a multiple of {parts}",
            )
        device_rows(spec, gpus, table, parts)
        return gpus, {}
    gpus = tensor * parts if table.engine == "vllm" else _turbomind_gpus(tensor, parts, there)
    note = f"{gpus} {'GPU' if gpus == 1 else 'GPUs'}: {_made_of(tensor, parts, gpus, table.engine)}"
    table.add("run_cfg.num_gpus", "", note)
    num_procs_row(spec, table)
    return gpus, {} if gpus == tensor * parts or of_flags else {names.tensor[0]: tensor}


def _made_of(tensor: int, parts: int, gpus: int, engine: str) -> str:
    if parts == 1:
        return "as many as each layer is split over"
    if engine == "vllm":
        return f"{tensor} for each of {parts} data- and pipeline-parallel parts"
    if gpus < tensor * parts:
        return f"tp={tensor} and dp={parts} share them, as LMDeploy does where it sees no more"
    return f"tp={tensor} for each of dp={parts}; LMDeploy takes fewer where it sees fewer"


def _turbomind_gpus(tensor: int, copies: int, there: int) -> int:
    """Return how many GPUs TurboMind takes of those that ``run_cfg`` says there are.

    ``tp`` is how many attention or MLP are split over, not both: with ``dp`` the copies of the one may lie on the same
    GPUs as the parts of the other. So it takes the largest number, of those that it sees, that tp and dp divide and
    that divides tp × dp (LMDeploy 0.18.0, turbomind/parallel_config.py).
    """
    most = tensor * copies
    fitting = [n for n in range(1, most + 1) if not (n % tensor or n % copies or most % n)]
    return max((n for n in fitting if n <= there), default=most)


def _size(
    kwargs: Mapping[str, Any], asked: Mapping[str, Any], spec: ModelSpec, where: str, names: tuple[str, ...]
) -> int | None:
    """Return a number of the command line's flags, else of the config, under the first of its names that is there."""
    places = [(asked, "--engine-args "), (kwargs, f"{where}.")]
    for values, place, name in ((values, place, name) for values, place in places for name in names):
        value = values.get(name)
        if value is None:
            continue
        size = int(text) if (text := str(value)).isdecimal() else 0
        if size < 1:
            raise ConfigError(
                f"{spec.abbr}: {place}{name}={value}: a whole number from 1 on is wanted", "correct it, or leave it out"
            )
        return size
    return None
