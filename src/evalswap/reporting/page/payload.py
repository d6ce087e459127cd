"""The differing outputs as the page carries them: JSON, compressed, in base64, of a bounded size."""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from evalswap.comparing.records import Comparison, DatasetComparison, Difference
from evalswap.reporting.page.wording import title_of

BUDGET = 12_000_000  # characters of base64; the page shall stay under 15 MB
# Tried in this order until the data fits: characters kept of a text, and differences kept (flips before others).
LIMITS = ((20_000, 50_000), (4_000, 50_000), (1_000, 50_000), (300, 50_000), (300, 10_000), (300, 2_000))
LEVEL = 4  # of gzip: six times as fast as the usual 6, and 8% larger
SHORT = 400  # characters kept of an extracted answer, a token, a finish reason


@dataclass(frozen=True)
class Packed:
    """What goes into the page's data element."""

    data: str  # base64 of gzip of JSON, ASCII
    total: int  # differences found
    kept: int  # of them in the data
    longest: int  # characters kept of a text, around its first difference
    shortened: int  # texts that were longer
    longest_found: int  # characters of the longest text


@dataclass(frozen=True)
class Group:
    """One contender's differences on one dataset, as the page's filters name them."""

    dataset: str
    reference: str
    contender: str
    differences: tuple[Difference, ...]


def groups(comparison: Comparison) -> list[Group]:
    """Return everything that has differences to show, noise floors and wiring proofs included."""
    return [group for dataset in comparison.datasets for group in _groups(title_of(comparison, dataset), dataset)]


def pack(comparison: Comparison) -> Packed:
    """Return the differences in at most ``BUDGET`` characters, shortening texts and then leaving rows out."""
    found = [(i, difference) for i, group in enumerate(groups(comparison)) for difference in group.differences]
    packed = None
    for longest, most in LIMITS:
        if packed and not packed.shortened and longest >= packed.longest_found and most >= packed.kept:
            continue  # nothing would become shorter
        packed = _pack(groups(comparison), found, longest, most)
        if len(packed.data) <= BUDGET:
            break
    assert packed is not None
    return packed


def _pack(named: list[Group], found: list[tuple[int, Difference]], longest: int, most: int) -> Packed:
    kept = _flips_first(found, most)
    texts = _Texts(longest)
    content = {
        "groups": [[group.dataset, group.reference, group.contender] for group in named],
        "differences": [_row(i, difference, texts) for i, difference in kept],
        "texts": texts.kept,
    }
    # ASCII escapes keep lone surrogates what they are until the script shows them.
    body = json.dumps(content, separators=(",", ":")).encode("ascii")
    data = base64.b64encode(gzip.compress(body, LEVEL, mtime=0)).decode("ascii")
    return Packed(data, len(found), len(kept), longest, texts.shortened, texts.longest_found)


def _groups(title: str, dataset: DatasetComparison) -> Iterator[Group]:
    reference = dataset.reference.name
    for other in dataset.others:
        name = other.contender.name
        yield Group(title, reference, name, other.differences)
        if other.proof and other.proof.first:
            yield Group(title, reference, f"{name} (wiring proof, fp32)", (other.proof.first,))
    if dataset.noise_floor:
        name = f"{dataset.noise_floor.contender.name} (noise floor)"
        yield Group(title, reference, name, dataset.noise_floor.differences)


def _flips_first(found: list[tuple[int, Difference]], most: int) -> list[tuple[int, Difference]]:
    if len(found) <= most:
        return found
    places = sorted(range(len(found)), key=lambda at: found[at][1].reference_right == found[at][1].other_right)[:most]
    return [found[at] for at in sorted(places)]


def _row(group: int, difference: Difference, texts: _Texts) -> list[Any]:
    """Return one difference as the script reads it; texts are indexes."""
    outputs = (difference.reference_text, difference.other_text)
    start = 0  # the same for both, so that the script finds the same first difference in what is kept
    if max(map(len, outputs)) > texts.longest:
        start = max(0, _shared_length(*outputs) - texts.longest // 2)
    first = difference.first
    return [
        group,
        difference.row,
        difference.kind,
        int(difference.reference_right),
        int(difference.other_right),
        texts.short(difference.reference_answer),
        texts.short(difference.other_answer),
        texts.short(difference.gold),
        texts.long(difference.prompt),
        texts.long(difference.reference_text, start),
        texts.long(difference.other_text, start),
        texts.short(difference.reference_finish),
        texts.short(difference.other_finish),
        [
            first.position,
            first.unit,
            None if first.reference_token is None else texts.short(first.reference_token),
            None if first.other_token is None else texts.short(first.other_token),
            *(None if x is None else round(x, 4) for x in (first.reference_logprob, first.other_logprob, first.gap)),
        ],
    ]


def _shared_length(a: str, b: str) -> int:
    """Return how many characters two texts share from their start."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


class _Texts:
    """Each text once: prompts and the reference's outputs come back with every contender."""

    def __init__(self, longest: int) -> None:
        self.kept: list[str | tuple[int, str, int]] = []  # (characters left out before, text, left out after)
        self.shortened = 0
        self.longest_found = 0
        self.longest = longest
        self._places: dict[tuple[str, int, int], int] = {}

    def short(self, text: str) -> int:
        return self._place(text, 0, min(SHORT, self.longest))

    def long(self, text: str, start: int = 0) -> int:
        """Keep a text from ``start``, as much as may be kept; returns its index."""
        return self._place(text, start, self.longest)

    def _place(self, text: str, start: int, longest: int) -> int:
        self.longest_found = max(self.longest_found, len(text))
        end = min(start + longest, len(text))
        known = self._places.get((text, start, end))
        if known is not None:
            return known
        if start == 0 and end == len(text):
            self.kept.append(text)
        else:
            self.shortened += 1
            self.kept.append((start, text[start:end], len(text) - end))
        self._places[text, start, end] = len(self.kept) - 1
        return len(self.kept) - 1
