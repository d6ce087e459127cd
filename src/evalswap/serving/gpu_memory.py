"""How much memory of each GPU that a run may use is in use, as nvidia-smi tells.

https://docs.nvidia.com/deploy/nvidia-smi/index.html
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time

SLACK = 1024  # MiB; what drivers and other programs may take meanwhile
_ASK_SECONDS = 20.0
_LOOK = 0.5  # seconds


def memory_in_use() -> list[int] | None:
    """Return the MiB in use on each visible GPU; None where nvidia-smi is not there or does not tell."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")  # which nvidia-smi itself does not obey
    chosen = [f"--id={visible}"] if visible else []
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    try:
        done = subprocess.run(
            [program, "--query-gpu=memory.used", "--format=csv,noheader,nounits", *chosen],
            capture_output=True, text=True, timeout=_ASK_SECONDS, check=True,
        )  # fmt: skip
        return [int(line) for line in done.stdout.split()]
    except (OSError, ValueError, subprocess.SubprocessError):
        return None


def wait_until_freed(before: list[int] | None, seconds: float) -> str | None:
    """Wait until no GPU has more memory in use than ``before``; say what still has when the seconds are over.

    None: it is free, or nobody can tell.
    """
    if before is None:
        return None
    deadline = time.monotonic() + seconds
    while True:
        now = memory_in_use()
        if now is None or len(now) != len(before):
            return None
        held = [
            f"GPU {i}: {used} MiB, {was} MiB before the engine started"
            for i, (used, was) in enumerate(zip(now, before, strict=True))
            if used > was + SLACK
        ]
        if not held:
            return None
        if time.monotonic() > deadline:
            return "; ".join(held)
        time.sleep(_LOOK)
