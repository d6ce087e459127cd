"""The rows that ``reader_cfg.test_range`` chooses, in the order in which OpenCompass would ask them.

The rule is that of OpenCompass's ``load_partial_dataset`` (opencompass/openicl/icl_dataset_reader.py).
"""

from __future__ import annotations

import random
import re
from array import array
from collections.abc import Mapping, Sequence
from typing import Any, overload

from evalswap.errors import ConfigError

SLICES = re.compile(r"(?:\s*\[[^\[\]]*\])*\s*")  # none, one, or one after the other: "[100:200][:10]"
HINT = "write '[:100]' for the first 100 rows, '[100:200]' for the second, or 100 for any 100"


class Picked(Sequence[Mapping[str, Any]]):
    """Some rows of a dataset, in an order of their own. Slices are views."""

    def __init__(self, rows: Sequence[Mapping[str, Any]], numbers: Sequence[int]) -> None:
        self._rows = rows
        self._numbers = numbers

    def __len__(self) -> int:
        return len(self._numbers)

    @overload
    def __getitem__(self, place: int) -> Mapping[str, Any]: ...
    @overload
    def __getitem__(self, place: slice) -> Picked: ...
    def __getitem__(self, place: int | slice) -> Mapping[str, Any] | Picked:
        if isinstance(place, slice):
            return Picked(self._rows, self._numbers[place])
        return self._rows[self._numbers[place]]


def choose(
    rows: Sequence[Mapping[str, Any]], test_range: str | int | float | None, where: str
) -> Sequence[Mapping[str, Any]]:
    """Apply a ``test_range``: a text is a slice, a number is how many rows are drawn at random, or their share.

    Raises ConfigError, which begins with ``where``, for what OpenCompass could not read either, and for
    expressions: OpenCompass evaluates the text as Python, here it may only be slices of written numbers.
    """
    if test_range is None:
        return rows
    if isinstance(test_range, str):
        return _sliced(rows, test_range, where)
    return _drawn(rows, test_range, where)


def _drawn(rows: Sequence[Mapping[str, Any]], size: int | float, where: str) -> Sequence[Mapping[str, Any]]:
    """Draw ``size`` rows: their number is also the seed. What is no part of the rows means all of them."""
    total = len(rows)
    if size >= total or size <= 0:
        return rows
    count = int(size * total) if 0 < size < 1 else size
    if not isinstance(count, int):
        raise ConfigError(f"{where}: '{size}' is neither a whole number of rows nor a share below 1", HINT)
    numbers = array("Q", range(total))
    random.Random(count).shuffle(numbers)
    return Picked(rows, numbers[:count])


def _sliced(rows: Sequence[Mapping[str, Any]], text: str, where: str) -> Sequence[Mapping[str, Any]]:
    if not SLICES.fullmatch(text):
        raise ConfigError(f"{where}: '{text}' is no range", HINT)
    for written in re.findall(r"\[(.*?)\]", text, re.DOTALL):
        if re.fullmatch(r"\s*[+-]?\d{1,18}\s*", written):
            wanted = int(written)
            one = f"[{wanted}:{wanted + 1 or ''}]"
            raise ConfigError(f"{where}: '{text}' names one row, not a range", f"write '{one}' for that row alone")
        try:
            start, stop, *step = (int(part) if part.strip() else None for part in written.split(":"))
            rows = rows[slice(start, stop, *step)]
        except (TypeError, ValueError):  # no number, too few or too many of them, a step of 0
            raise ConfigError(f"{where}: '[{written}]' is no range", HINT) from None
    return rows
