"""What can be known of a model's sampling before anything is started."""

from __future__ import annotations

from collections.abc import Sequence

from evalswap.config.specs import DatasetSpec
from evalswap.engines.base import Engine
from evalswap.engines.openai import OpenAICompatible
from evalswap.engines.registry import managed_engine
from evalswap.plan import ModelPlan
from evalswap.prompting.sampling import resolve_sampling


def check_sampling(plan: ModelPlan, datasets: Sequence[DatasetSpec]) -> None:
    """Raise ConversionError now, not minutes later, for sampling that the engine refuses.

    What only the model's files say (its generation_config.json) is checked when they are read.
    """
    engine: Engine
    if plan.endpoint is not None:
        engine = OpenAICompatible(plan.endpoint, by_ids=plan.endpoint.ids_wanted)
    else:
        engine = managed_engine(plan.engine, plan.launch)
    for dataset in datasets:
        cfg = dataset.infer_cfg.inferencer
        engine.native_sampling(
            resolve_sampling(plan.sampling, {}, max_out_len=cfg.max_out_len, min_out_len=cfg.min_out_len)
        )
