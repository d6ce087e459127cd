"""How much an engine makes ready before the first question: what the start costs, the answers must win back.

Measured on an H100 with a model of Llama-3-8B's shape (docs/benchmarks.md): CUDA graphs for decoding cost vLLM one to
five seconds and win 30 µs a token; compiling costs 20 s more and wins less than 1 µs a token. SGLang's graphs, those of
its prefills among them, cost 5.4 s and win 25 µs a token.
"""

from __future__ import annotations

from collections.abc import Collection

from evalswap.engines.base import Launch
from evalswap.engines.flags import given
from evalswap.errors import ConversionError, did_you_mean

START_MODES = ("eager", "graphs", "full")  # from the least to the most
EAGER_TOKENS = 50_000  # up to so many tokens of answers, unless an engine has its own number
GRAPHS_TOKENS = 20_000_000
# The batch sizes that CUDA graphs are made for: each takes a part of a second at the start, and what lies
# between two of them runs as the larger.
GRAPH_SIZES = (1, 2, 4, 8, 16, 32, 64, 96, 128, 160, 192, 224, 256, 320, 384, 448, 512, 640, 768, 896, 1024)


def start_mode(launch: Launch, own_flags: Collection[str] = (), eager_tokens: int = EAGER_TOKENS) -> str | None:
    """Return the start mode that is asked for (``--engine-args start_mode=…``), or that which the work is worth.

    None if neither, but one of ``own_flags`` is given: who names those knows what he wants. Answers of at most
    ``eager_tokens`` are worth no graphs; a server without end is made ready fully. Raises ConversionError for a mode
    that does not exist.
    """
    arguments = given(launch.engine_args)
    asked = arguments.get("start_mode")
    if asked is not None:
        if asked not in START_MODES:
            hint = did_you_mean(str(asked), START_MODES) or f"there are: {', '.join(START_MODES)}"
            raise ConversionError(f"--engine-args start_mode={asked}: unknown", hint)
        return str(asked)
    if any(name in arguments for name in own_flags):
        return None
    if launch.device == "cpu":
        return "eager"  # to compile takes minutes there
    if launch.answer_tokens is None or launch.answer_tokens > GRAPHS_TOKENS:
        return "full"
    return "eager" if launch.answer_tokens <= eager_tokens else "graphs"


def graph_sizes(window: int) -> list[int]:
    """Return the batch sizes to make graphs for, where ``window`` requests run at once at most."""
    largest = min(window, GRAPH_SIZES[-1])
    return [*(size for size in GRAPH_SIZES if size < largest), largest]
