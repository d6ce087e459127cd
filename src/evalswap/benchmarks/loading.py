"""The rows that a config asks for: a dataset's loader, ``reader_cfg.test_range`` and ``--limit``."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from evalswap.benchmarks.registry import Rows, find_loader
from evalswap.config.specs import DatasetSpec
from evalswap.errors import ConfigError, DataError


def load_rows(dataset: DatasetSpec, limit: int | None) -> Rows:
    """Load a dataset's rows, the first ``limit`` of them. Raises ConfigError or DataError."""
    where = f"datasets '{dataset.abbr}'"
    load = find_loader(dataset.type, f"{where}.type")
    try:
        rows = load(dataset.path, **dataset.loader_kwargs)
    except TypeError as error:
        raise ConfigError(f"{where}: {error}", "this dataset has no such key") from None
    chosen = _slice(rows.rows, dataset.reader_cfg.test_range, where)
    if not chosen:
        raise DataError(f"{where}: no rows left in {rows.source}", "check reader_cfg.test_range and the file")
    return dataclasses.replace(rows, rows=chosen[:limit] if limit else chosen)


def _slice(rows: Sequence[Any], test_range: str | int | float | None, where: str) -> Sequence[Any]:
    """Apply ``reader_cfg.test_range``: "[10:20]", a number of rows, or a share of them."""
    if test_range is None or test_range == "":
        return rows
    if isinstance(test_range, float) and 0 < test_range < 1:
        return rows[: int(len(rows) * test_range)]
    if isinstance(test_range, (int, float)):
        return rows[: int(test_range)]
    try:
        parts = [int(p) if p.strip() else None for p in test_range.strip().strip("[]").split(":")]
        return rows[slice(*parts)]
    except (TypeError, ValueError):
        raise ConfigError(f"{where}: reader_cfg.test_range: '{test_range}' is no range", "write [0:100]") from None
