"""What only the page says: its marks, the names of classes, titles; and what all reports say, for its templates."""

from __future__ import annotations

from evalswap.comparing.contract import broken
from evalswap.comparing.divergence import summed_up
from evalswap.comparing.records import Against, Comparison, ContractItem, DatasetComparison
from evalswap.comparing.verdict import verdict_words
from evalswap.reporting.wording import (
    another_setup,
    count,
    duration,
    number,
    p_value,
    place_words,
    proof_words,
    setting,
    share,
    signed,
    span,
    visible,
)

__all__ = [  # what templates may call
    "CLASS_MEANINGS",
    "CLASS_NAMES",
    "VERDICT_MARKS",
    "another_setup",
    "broken",
    "contract_mark",
    "count",
    "duration",
    "number",
    "p_value",
    "place_words",
    "proof_words",
    "setting",
    "share",
    "short_line",
    "signed",
    "span",
    "summed_up",
    "tally",
    "title_of",
    "verdict_words",
    "visible",
]

VERDICT_MARKS = {"equivalent": "✓", "different": "≠", "inconclusive": "?", "reference": "•"}
CLASS_NAMES = {
    "ids": "other prompt ids",
    "stop": "stop handling",
    "extraction": "extraction",
    "near-tie": "near-tie",
    "unexplained": "unexplained",
}
CLASS_MEANINGS = {
    "ids": "the engines were not given the same prompt",
    "stop": "one output ended where the other went on, or for another reason",
    "extraction": "the same answer, read differently",
    "near-tie": "the reference gives both tokens nearly the same probability, so rounding decides",
    "unexplained": "none of the other causes was found",
}


def short_line(against: Against) -> str:
    """Return the difference in score and speed in a few words."""
    delta = None if against.statistics is None else f"Δ {signed(against.statistics.delta)}"
    speed = None if against.speedup is None else f"{number(against.speedup)}× speed"
    return ", ".join(filter(None, (delta, speed)))


def tally(comparison: Comparison, name: str) -> list[tuple[str, int]]:
    """Return how often a contender has each verdict, the worst first."""
    verdicts = [o.verdict for dataset in comparison.datasets for o in dataset.others if o.contender.name == name]
    return [
        (verdict, verdicts.count(verdict))
        for verdict in ("different", "inconclusive", "equivalent")
        if verdict in verdicts
    ]


def contract_mark(item: ContractItem) -> str:
    """Return whether an item was kept, in words."""
    if item.kept is None:
        return "? not known"
    if item.kept:
        return "✓ equal"
    return "≠ differs" if item.systematic else "≠ differs, rounding only"


def title_of(comparison: Comparison, dataset: DatasetComparison) -> str:
    """Return a dataset's name; where several models are compared, with the model's."""
    several = len({each.model for each in comparison.datasets}) > 1
    return f"{dataset.model} on {dataset.dataset}" if several else dataset.dataset
