"""From a config's spec to a plan for an engine: its own, or the one asked for with ``-a``.

Pure: nothing here reads a file or opens a connection. Each field of the spec ends as a row of the
translation table: carried over, done by evalswap itself, without a counterpart (and why that is harmless),
or a ConversionError that says what to do. Nothing is dropped in silence.
"""

from __future__ import annotations

import dataclasses
import re

from evalswap.config.specs import VLLM, HuggingFaceSpec, ModelSpec, OpenAI, TurboMindSpec, VLLMwithChatTemplate
from evalswap.conversion.api import from_api
from evalswap.conversion.direct import from_turbomind, from_vllm
from evalswap.conversion.huggingface import from_huggingface
from evalswap.conversion.options import EngineOptions
from evalswap.conversion.translation import dtype_name
from evalswap.engines.flags import given
from evalswap.engines.registry import flag_names
from evalswap.errors import ConversionError
from evalswap.plan import ModelPlan

__all__ = ["EngineOptions", "convert"]


def convert(spec: ModelSpec, options: EngineOptions) -> ModelPlan:
    """Plan a model for the asked engine, or for the spec's own when none is asked.

    Raises ConversionError where the answer of the engine could not mean the same.
    """
    return _with_flags_dtype(_convert(spec, options))


def _convert(spec: ModelSpec, options: EngineOptions) -> ModelPlan:
    if isinstance(spec, HuggingFaceSpec):
        return from_huggingface(spec, options)
    if isinstance(spec, (VLLM, VLLMwithChatTemplate)):
        _refuse_accelerator(spec, options, own="vllm")
        return from_vllm(spec, options)
    if isinstance(spec, TurboMindSpec):
        _refuse_accelerator(spec, options, own="lmdeploy")
        return from_turbomind(spec, options)
    if isinstance(spec, OpenAI):
        _refuse_accelerator(spec, options, own="openai")
        return from_api(spec, options)
    raise ConversionError(f"{spec.abbr}: evalswap cannot run a model of type {spec.type}")


def _with_flags_dtype(plan: ModelPlan) -> ModelPlan:
    """Take a dtype that is asked for as a flag of the engine for the model's: it decides the answers like any other."""
    launch = plan.launch
    asked = given(launch.engine_args) if launch is not None else {}
    flag = flag_names(plan.engine).get("dtype")
    if launch is None or asked.get("dtype") is None or flag != "--dtype":
        return plan
    name = dtype_name(asked["dtype"], f"{plan.abbr}: --engine-args dtype")
    rest = {key: value for key, value in launch.engine_args.items() if key.lstrip("-") != "dtype"}
    rows = (
        dataclasses.replace(row, target=f"{flag} {name}", note="as --engine-args say")
        if row.target.startswith(f"{flag} ")
        else dataclasses.replace(row, target="the model's dtype")
        if re.match(r"--engine-args -*dtype=", row.source)
        else row
        for row in plan.translation
    )
    return dataclasses.replace(
        plan, launch=dataclasses.replace(launch, dtype=name, engine_args=rest), translation=tuple(rows)
    )


def _refuse_accelerator(spec: ModelSpec, options: EngineOptions, own: str) -> None:
    if options.accelerator not in (None, own):
        raise ConversionError(
            f"{spec.abbr}: a model of type {spec.type} cannot be moved to '{options.accelerator}'",
            "-a moves HuggingFacewithChatTemplate and HuggingFaceBaseModel specs; "
            f"leave -a out to run this one as it is ({own})",
        )
