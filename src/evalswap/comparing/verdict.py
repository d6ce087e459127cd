"""The verdict on a contender: a pure function of the statistics, the contract and the margin.

``equivalent``: the difference is surely within the margin. ``different``: it is surely none of chance, and not
surely within the margin. ``inconclusive``: the rows cannot tell; how many could is said.
"""

from __future__ import annotations

from collections.abc import Sequence

from evalswap.comparing.contract import broken
from evalswap.comparing.records import ContractItem, Interval, PairedStatistics, Verdict
from evalswap.comparing.statistics import ALPHA


def judge(
    statistics: PairedStatistics | None, contract: Sequence[ContractItem], margin: float
) -> tuple[Verdict, tuple[str, ...]]:
    """Return the verdict and its reasons as sentences, a broken contract first. ``margin`` is in points."""
    if statistics is None:
        return "inconclusive", (*_broken(contract), "No row is known to be right or wrong on both sides.")
    if statistics.equivalence_p < ALPHA:
        return "equivalent", (*_broken(contract), *_equivalent(statistics, margin))
    if statistics.mcnemar_p_adjusted < ALPHA:
        return "different", (*_broken(contract), _different(statistics, contract))
    return "inconclusive", (*_broken(contract), _inconclusive(statistics, margin))


def verdict_words(verdict: Verdict, statistics: PairedStatistics | None) -> str:
    """Return the verdict in its fixed words."""
    if verdict == "inconclusive" and statistics is not None and statistics.needed_rows is not None:
        return f"inconclusive (needs n≈{statistics.needed_rows:,})"
    return verdict


def _broken(contract: Sequence[ContractItem]) -> list[str]:
    systematic = [_said(item) for item in broken(contract) if item.systematic]
    rounding = [_said(item) for item in broken(contract) if not item.systematic]
    sentences = []
    if systematic:
        sentences.append(f"Not the same set-up: {'; '.join(systematic)}. A difference has this cause and is not noise.")
    if rounding:
        sentences.append(f"Set up differently, in ways that change how sums are rounded: {'; '.join(rounding)}.")
    return sentences


def _said(item: ContractItem) -> str:
    return f"{item.item} ({item.note or f'{item.reference} against {item.other}'})"


def _equivalent(statistics: PairedStatistics, margin: float) -> list[str]:
    sentences = [
        f"The difference is within ±{_points(margin)}: its 90% interval is {_span(statistics.equivalence_interval)}."
    ]
    if statistics.mcnemar_p_adjusted < ALPHA:
        sentences.append(f"A difference smaller than that is there, though: the {_flips(statistics)}.")
    return sentences


def _different(statistics: PairedStatistics, contract: Sequence[ContractItem]) -> str:
    cause = "" if any(item.systematic for item in broken(contract)) else " No setting that is on record explains it."
    return f"The {_flips(statistics)}.{cause}"


def _inconclusive(statistics: PairedStatistics, margin: float) -> str:
    reach = (
        f"the 90% interval of the difference, {_span(statistics.equivalence_interval)}, goes past ±{_points(margin)}"
    )
    needed = f" About {statistics.needed_rows:,} would settle it." if statistics.needed_rows is not None else ""
    return f"{statistics.rows:,} rows cannot tell: {reach}, and the {_flips(statistics)}.{needed}"


def _flips(statistics: PairedStatistics) -> str:
    worse, better, p = statistics.right_to_wrong, statistics.wrong_to_right, statistics.mcnemar_p_adjusted
    if not worse + better:
        return "answers do not flip"
    clustered = f"a t test, errors clustered in {statistics.groups} groups"
    test = "exact McNemar" if statistics.groups is None else f"the larger of exact McNemar's and that of {clustered}"
    holm = "" if p == statistics.mcnemar_p else ", after Holm"
    return f"flips are {worse:,} right→wrong and {better:,} wrong→right: by chance alone p {_p(p)} ({test}{holm})"


def _points(margin: float) -> str:
    return f"{margin:g} point" if margin == 1 else f"{margin:g} points"


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"= {value:.3f}"


def _span(interval: Interval) -> str:
    return f"{interval.low:+.2f} to {interval.high:+.2f}".replace("-", "−")
