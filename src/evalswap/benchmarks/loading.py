"""The rows that a config asks for: a dataset's loader, ``reader_cfg.test_range`` and ``--limit``."""

from __future__ import annotations

import dataclasses

from evalswap.benchmarks.registry import Rows, find_loader
from evalswap.benchmarks.row_choice import choose
from evalswap.config.specs import DatasetSpec
from evalswap.errors import ConfigError, DataError


def load_rows(dataset: DatasetSpec, limit: int | None) -> Rows:
    """Load the rows that a dataset's ``test_range`` chooses, the first ``limit`` of them.

    Raises ConfigError or DataError.
    """
    where = f"datasets '{dataset.abbr}'"
    load = find_loader(dataset.type, f"{where}.type")
    try:
        rows = load(dataset.path, **dataset.loader_kwargs)
    except TypeError as error:
        raise ConfigError(f"{where}: {error}", "this dataset has no such key") from None
    chosen = choose(rows.rows, dataset.reader_cfg.test_range, f"{where}: reader_cfg.test_range")
    if not chosen:
        raise DataError(f"{where}: no rows left in {rows.source}", "check reader_cfg.test_range and the file")
    return dataclasses.replace(rows, rows=chosen[:limit] if limit else chosen)
