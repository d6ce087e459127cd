"""How long a side's answers took and how fast they came, by the answers' own times."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence

from evalswap.comparing.outputs import Output

BINS = 60  # points of a throughput curve
PAUSE = 1.0  # seconds; so long with nothing in flight is an interruption, and no time of inference


def busy_seconds(outputs: Iterable[Output]) -> float | None:
    """Return how long the answers took, from the first request to the last answer, pauses left out."""
    spans = _spans(outputs)
    return sum(end - start for start, end in _merged(spans)) if spans else None


def throughput(outputs: Iterable[Output]) -> tuple[tuple[float, float], ...]:
    """Return (seconds since the first request, new tokens a second) at ``BINS`` places, pauses left out.

    A request's tokens are taken to come evenly from its start to its end.
    """
    timed = [output for output in outputs if output.started is not None and output.seconds > 0 and output.tokens]
    if not timed:
        return ()
    import numpy as np

    starts = np.array([output.started for output in timed], dtype=float)
    seconds = np.array([output.seconds for output in timed])
    rates = np.array([output.tokens for output in timed]) / seconds
    ends = starts + seconds
    for pause_start, pause_end in _pauses(_merged(list(zip(starts.tolist(), ends.tolist(), strict=True)))):
        starts, ends = (
            np.where(times >= pause_end, times - (pause_end - pause_start), times) for times in (starts, ends)
        )
    starts, ends = starts - starts.min(), ends - starts.min()
    edges = np.linspace(0.0, float(ends.max()), BINS + 1)
    # Tokens until each edge: every request adds its rate from its start to its end.
    until = [float((rates * np.clip(edge - starts, 0.0, seconds)).sum()) for edge in edges]
    width = float(edges[1])
    return tuple((_short(width * (i + 0.5)), _short((until[i + 1] - until[i]) / width)) for i in range(BINS))


def _short(number: float) -> float:
    """Return a number with as many digits as a curve needs."""
    return float(f"{number:.5g}")


def _spans(outputs: Iterable[Output]) -> list[tuple[float, float]]:
    return [(output.started, output.started + output.seconds) for output in outputs if output.started is not None]


def _merged(spans: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    merged: list[tuple[float, float]] = []
    for start, end in sorted(spans):
        if merged and start <= merged[-1][1] + PAUSE:
            merged[-1] = (merged[-1][0], max(merged[-1][1], end))
        else:
            merged.append((start, end))
    return merged


def _pauses(merged: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return the pauses, the latest first, so that cutting one out does not move those that are left."""
    return [(before[1], after[0]) for before, after in itertools.pairwise(merged)][::-1]
