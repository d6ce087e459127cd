"""Command lines and environments of servers: what several engines share."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Mapping
from typing import Any

from evalswap.data_folder import data_folder
from evalswap.engines.base import Launch
from evalswap.engines.cores import usable_cores
from evalswap.errors import ConversionError


def given(engine_args: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``--engine-args`` with names as Python writes them ("max_model_len"), however they were given."""
    return {key.lstrip("-").replace("-", "_"): value for key, value in engine_args.items()}


def flags(arguments: Mapping[str, Any], *, negatable: Collection[str] = (), short: Collection[str] = ()) -> list[str]:
    """Return ``--engine-args`` as command-line flags.

    True is a bare flag, None leaves it out, a dict is JSON, a list several words. False leaves it out, too, but
    for those that are ``negatable``: ``--no-…`` switches off what the engine has on by itself. ``short`` are the names
    that the engine knows behind one dash only ("-dp").
    """
    words: list[str] = []
    for key, value in arguments.items():
        name = key.lstrip("-").replace("_", "-")
        flag = f"-{name}" if name in short else f"--{name}"
        if value is True:
            words.append(flag)
        elif value is False:
            words += [f"--no-{name}"] if key in negatable else []
        elif isinstance(value, Mapping):
            words += [flag, json.dumps(value)]
        elif isinstance(value, (list, tuple)):
            words += [flag, *map(str, value)]
        elif value is not None:
            words += [flag, str(value)]
    return words


def number(arguments: Mapping[str, Any], *names: str, default: int) -> int:
    """Return the first of the named arguments that is there. Raises ConversionError if it is no whole number."""
    for name in names:
        if arguments.get(name) is not None:
            try:
                return int(arguments[name])
            except (TypeError, ValueError):
                raise ConversionError(
                    f"--engine-args {name}={arguments[name]}: a whole number is wanted", "correct it"
                ) from None
    return default


def tokens(arguments: Mapping[str, Any], *names: str, shared_by: int = 1, less: int = 0) -> int | None:
    """Return the first of the named lengths; None if there is none, or one that only the engine understands ("auto").

    It is ``shared_by`` so many, and ``less`` tokens of each share are not to be used. Raises ConversionError where
    nothing is left.

    vLLM also takes "16k" (thousands) and "16K" (1024s): https://docs.vllm.ai/en/latest/configuration/engine_args/
    """
    value = next((str(arguments[name]) for name in names if arguments.get(name) is not None), "")
    units = {"k": 10**3, "K": 2**10, "m": 10**6, "M": 2**20}
    digits, unit = (value[:-1], units[value[-1]]) if value[-1:] in units else (value, 1)
    try:
        length = int(float(digits) * unit)
    except (ValueError, OverflowError):
        return None
    if length <= 0:
        return None
    left = length // shared_by - less
    if left <= 0:
        share = f", shared by {shared_by}," if shared_by > 1 else ""
        raise ConversionError(f"{names[0]}={value}{share} leaves no room for a prompt", "give more, or leave it out")
    return left


def tensor_parallel(launch: Launch, replicas: int, stages: int = 1) -> int:
    """Return over how many GPUs each layer is split: what data and pipeline parallel leave of ``num_gpus``.

    Raises ConversionError where they do not divide it.
    """
    gpus, others = max(launch.num_gpus, 1), replicas * stages
    if gpus % others and gpus != 1:
        raise ConversionError(
            f"num_gpus={gpus} cannot be shared by {replicas} data-parallel × {stages} pipeline-parallel parts",
            f"give run_cfg=dict(num_gpus=…) as a multiple of {others}",
        )
    return max(1, gpus // others)


def own_environment(launch: Launch, sharing: int = 1) -> dict[str, str]:
    """Return what every engine is started with: no network, and the same arithmetic and threads for all.

    Threads on a CPU: all cores, split among the processes that are ``sharing`` them, unless OMP_NUM_THREADS says
    otherwise: on a machine that is busy with other work fewer are faster. Beside a GPU they are the engine's to choose.
    A float32 run has no TF32 in it, which keeps 10 bits of the mantissa's 23: cuBLAS and cuDNN obey the first variable,
    Triton's kernels the second.
    """
    env = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    if launch.device == "cpu":
        env["OMP_NUM_THREADS"] = os.environ.get("OMP_NUM_THREADS") or str(max(1, usable_cores() // sharing))
    if launch.dtype == "float32" and launch.device == "cuda":
        env |= {"NVIDIA_TF32_OVERRIDE": "0", "TRITON_F32_DEFAULT": "ieee"}
    return env


def first_gpus(launch: Launch) -> dict[str, str]:
    """Return what shows an engine ``num_gpus`` of the GPUs, where it would else take all that it sees.

    Raises ConversionError where fewer are visible.
    """
    if launch.device == "cpu":
        return {}
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = visible.split(",") if visible else list(map(str, range(launch.num_gpus)))
    if len(names) < launch.num_gpus:
        raise ConversionError(
            f"num_gpus={launch.num_gpus}, but CUDA_VISIBLE_DEVICES={visible} shows {len(names)}",
            "name as many there, or ask for fewer",
        )
    return {"CUDA_VISIBLE_DEVICES": ",".join(names[: launch.num_gpus])}


def kept_caches(engine: str, variables: Mapping[str, str]) -> dict[str, str]:
    """Return environment variables that keep what an engine compiles from one run to the next.

    ``variables`` maps each variable to the folder's name. Those that the user's environment sets are his.
    """
    folder = data_folder() / "caches" / engine
    return {name: str(folder / place) for name, place in variables.items() if not os.environ.get(name)}
