"""Where evalswap keeps what outlives a run: installed engines, what engines compiled, and what is served."""

from __future__ import annotations

import os
from pathlib import Path

import platformdirs


def data_folder() -> Path:
    """Return evalswap's data folder: ``$EVALSWAP_HOME``, or the platform's place for a user's data."""
    given = os.environ.get("EVALSWAP_HOME")
    return Path(given).expanduser().absolute() if given else platformdirs.user_data_path("evalswap")
