"""Many datasets as one: the verdict over all rows, errors clustered by dataset as well.

A benchmark of many subjects (MMLU has 57) is many small datasets here; each alone settles nothing, and corrected for
having looked at all of them even less. Questions of one subject resemble each other, so its rows are a cluster.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence

from evalswap.comparing.contract import broken
from evalswap.comparing.records import Against, Contender, ContractItem, DatasetComparison
from evalswap.comparing.statistics import clustered_interval, paired_statistics, spanning, wilson_interval
from evalswap.comparing.verdict import judge

FEWEST = 10  # datasets: errors clustered in fewer are no good estimate

Marks = Sequence[tuple[bool, bool]]  # right or wrong, the reference's first, of the rows that both answered


def pooled(
    datasets: Sequence[DatasetComparison], marks: Mapping[tuple[str, str], Marks], margin: float
) -> tuple[list[DatasetComparison], list[str]]:
    """Return all datasets of each model as one, for models with enough of them, and notes on who is not in it.

    ``marks`` are those of each dataset and contender, by their names. A contender that lacks one of the datasets, or
    is scored on some of them only, would be judged on other rows than the rest: it is left out.
    """
    found: list[DatasetComparison] = []
    notes: list[str] = []
    for model in dict.fromkeys(dataset.model for dataset in datasets):
        of_model = [dataset for dataset in datasets if dataset.model == model]
        if len(of_model) < FEWEST:
            continue
        names = dict.fromkeys(against.contender.name for dataset in of_model for against in dataset.others)
        lacking = {name: _lacking(name, of_model, marks) for name in names}
        notes += [
            f"{name} is not judged over all {len(of_model)} datasets: {lack}" for name, lack in lacking.items() if lack
        ]
        whole = [name for name, lack in lacking.items() if not lack]
        if whole:
            found.append(_pooled(whole, of_model, marks, margin))
    return found, notes


def _lacking(name: str, datasets: Sequence[DatasetComparison], marks: Mapping[tuple[str, str], Marks]) -> str | None:
    """Return what keeps a contender from being judged over all datasets, or None."""
    own = [dataset.dataset for dataset in datasets if any(a.contender.name == name for a in dataset.others)]
    if len(own) < len(datasets):
        return f"it is compared on {len(own)} of them"
    scored = sum(bool(marks.get((dataset, name))) for dataset in own)
    return f"it is scored on {scored} of them" if 0 < scored < len(own) else None


def _pooled(
    names: Sequence[str], datasets: Sequence[DatasetComparison], marks: Mapping[tuple[str, str], Marks], margin: float
) -> DatasetComparison:
    first = datasets[0]
    reference = [(dataset.dataset, dataset.reference) for dataset in datasets]
    return DatasetComparison(
        dataset=f"all {len(datasets)} datasets",
        metric=first.metric,
        reference=_together(reference),
        others=tuple(_against(name, datasets, marks, margin) for name in names),
        model=first.model,
    )


def _against(
    name: str, datasets: Sequence[DatasetComparison], marks: Mapping[tuple[str, str], Marks], margin: float
) -> Against:
    """Return a contender that has all of the datasets against the reference."""
    own = [dataset.dataset for dataset in datasets]
    parts = [against for dataset in datasets for against in dataset.others if against.contender.name == name]
    rows = [(dataset, pair) for dataset in own for pair in marks.get((dataset, name), ())]
    statistics = None
    if rows:
        statistics = paired_statistics(
            [ours for _, (ours, _) in rows],
            [theirs for _, (_, theirs) in rows],
            margin,
            [dataset for dataset, _ in rows],
        )
    contract = _broken_anywhere(own, parts)
    verdict, reasons = judge(statistics, contract, margin)
    return Against(
        contender=_together([(dataset, part.contender) for dataset, part in zip(own, parts, strict=True)]),
        contract=contract,
        compared=sum(part.compared for part in parts),
        identical=sum(part.identical for part in parts),
        statistics=statistics,
        verdict=verdict,
        reasons=reasons,
        speedup=None,
        differences=(),
        counts=dict(sum((Counter(part.counts) for part in parts), Counter())),
    )


def _broken_anywhere(datasets: Sequence[str], parts: Sequence[Against]) -> tuple[ContractItem, ...]:
    """Return each item that is broken on any dataset, once, with the datasets' number."""
    items: dict[str, list[ContractItem]] = {}
    for part in parts:
        for item in broken(part.contract):
            items.setdefault(item.item, []).append(item)
    return tuple(
        dataclasses.replace(found[0], note=f"on {len(found)} of {len(datasets)} datasets") for found in items.values()
    )


def _together(parts: Sequence[tuple[str, Contender]]) -> Contender:
    """Return a contender over all datasets: every row counts alike. Times are of runs that overlap: none is given."""
    contenders = [contender for _, contender in parts]
    right, answered = sum(one.right for one in contenders), sum(one.answered for one in contenders)
    scored = all(one.interval is not None for one in contenders)
    interval = None
    if scored:
        rows = [(name, float(i < one.right)) for name, one in parts for i in range(one.answered)]
        clustered = clustered_interval([value for _, value in rows], [name for name, _ in rows], lowest=0.0)
        interval = spanning(clustered, wilson_interval(right, answered))  # clustered: of no width where all are right
    return dataclasses.replace(
        contenders[0],
        score=100 * right / answered if scored and answered else None,
        interval=interval,
        right=right,
        answered=answered,
        total=sum(one.total for one in contenders),
        failed=sum(one.failed for one in contenders),
        infer_seconds=None,
        output_tokens=sum(one.output_tokens for one in contenders),
        tokens_per_second=None,
        throughput=(),
    )
