"""Reading the metrics that servers tell in Prometheus' text format.

https://prometheus.io/docs/instrumenting/exposition_formats/
"""

from __future__ import annotations

import contextlib
import math
import re
from collections import defaultdict

from evalswap.engines.base import EngineLoad

_SAMPLE = re.compile(r"^([a-zA-Z_:][\w:]*)(?:\{.*\})?\s+(\S+)(?:\s+-?\d+)?$")


def read_metrics(content: str) -> dict[str, list[float]]:
    """Return name → values, one for each set of labels."""
    found: defaultdict[str, list[float]] = defaultdict(list)
    for line in content.splitlines():
        if sample := _SAMPLE.match(line.strip()):
            with contextlib.suppress(ValueError):
                value = float(sample[2])
                if math.isfinite(value):
                    found[sample[1]].append(value)
    return dict(found)


def read_load(content: str, running: str, waiting: str, *cache_used: str) -> EngineLoad | None:
    """Return the load that metrics of these names tell; None if the counts are not there.

    Counts of replicas are added up; of their caches the fullest counts.
    """
    metrics = read_metrics(content)
    if running not in metrics or waiting not in metrics:
        return None
    shares = [share for name in cache_used for share in metrics.get(name, ())]
    return EngineLoad(
        running=round(sum(metrics[running])),
        waiting=round(sum(metrics[waiting])),
        cache_used=max(shares) if shares else None,
    )
