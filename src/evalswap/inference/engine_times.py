"""Where an engine says that its requests spent their time, added up over all of them.

vLLM, LMDeploy and llama.cpp tell it among their metrics, under names that end alike.
"""

from __future__ import annotations

from evalswap.engines.base import ManagedEngine
from evalswap.engines.prometheus import read_metrics
from evalswap.inference.client import HttpClient
from evalswap.inference.faults import FinalError, TransientError

PHASES = {
    "engine_queue": ("request_queue_time_seconds_sum",),
    "prefill": ("request_prefill_time_seconds_sum", "prompt_seconds_total"),
    "decode": ("request_decode_time_seconds_sum", "tokens_predicted_seconds_total"),
}
_ASK_SECONDS = 10.0


async def engine_times(engine: ManagedEngine, client: HttpClient) -> dict[str, float]:
    """Return phase → request-seconds since the engine's start; {} where it does not tell."""
    if engine.load_path is None:
        return {}
    try:
        metrics = read_metrics(await client.get_text(engine.load_path, _ASK_SECONDS))
    except (TransientError, FinalError):
        return {}
    return {
        phase: sum(sum(values) for name, values in metrics.items() if name.endswith(endings))
        for phase, endings in PHASES.items()
        if any(name.endswith(endings) for name in metrics)
    }
