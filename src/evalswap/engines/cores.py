"""How many cores of this machine a process may use: those that it is bound to, and what its container is allowed.

https://docs.kernel.org/admin-guide/cgroup-v2.html (cpu.max); https://docs.kernel.org/scheduler/sched-bwc.html for
version 1.
"""

from __future__ import annotations

import math
import os
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")


def usable_cores() -> int:
    """Return the number of cores, at least 1."""
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(bound, _quota() or bound)


def _quota() -> int | None:
    """Return how many cores' time the container may take; None where it has no limit, or none is known."""
    try:
        if (CGROUPS / "cpu.max").exists():
            most, period = (CGROUPS / "cpu.max").read_text().split()
        else:
            most, period = ((CGROUPS / "cpu" / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        return math.ceil(int(most) / int(period)) if int(most) > 0 else None
    except (OSError, ValueError):  # no cgroup, or "max"
        return None
