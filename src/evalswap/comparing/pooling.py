"""Many datasets as one: the verdict over all rows, errors clustered by dataset.

A benchmark of many subjects (MMLU has 57) is many small datasets here; each alone settles nothing, and corrected for
having looked at all of them even less. Questions of one subject resemble each other, so its rows are a cluster.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence

from evalswap.comparing.contract import broken
from evalswap.comparing.records import Against, Contender, ContractItem, DatasetComparison
from evalswap.comparing.statistics import clustered_interval, paired_statistics
from evalswap.comparing.verdict import judge

FEWEST = 10  # datasets: errors clustered in fewer are no good estimate

Marks = Sequence[tuple[bool, bool]]  # right or wrong, the reference's first, of the rows that both answered


def pooled(
    datasets: Sequence[DatasetComparison], marks: Mapping[tuple[str, str], Marks], margin: float
) -> list[DatasetComparison]:
    """Return all datasets of each model as one, for models with enough of them.

    ``marks`` are those of each dataset and contender, by their names.
    """
    models = dict.fromkeys(dataset.model for dataset in datasets)
    found = ([dataset for dataset in datasets if dataset.model == model] for model in models)
    return [_pooled(of_model, marks, margin) for of_model in found if len(of_model) >= FEWEST]


def _pooled(
    datasets: Sequence[DatasetComparison], marks: Mapping[tuple[str, str], Marks], margin: float
) -> DatasetComparison:
    names = dict.fromkeys(against.contender.name for dataset in datasets for against in dataset.others)
    found = {name: [a for dataset in datasets for a in dataset.others if a.contender.name == name] for name in names}
    first = datasets[0]
    reference = [(dataset.dataset, dataset.reference) for dataset in datasets]
    return DatasetComparison(
        dataset=f"all {len(datasets)} datasets",
        metric=first.metric,
        reference=_together(reference),
        others=tuple(_against(name, of_name, datasets, marks, margin) for name, of_name in found.items()),
        model=first.model,
    )


def _against(
    name: str, parts: Sequence[Against], datasets: Sequence[DatasetComparison],
    marks: Mapping[tuple[str, str], Marks], margin: float,
) -> Against:  # fmt: skip
    own = [dataset.dataset for dataset in datasets if any(a.contender.name == name for a in dataset.others)]
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
        interval = clustered_interval([value for _, value in rows], [name for name, _ in rows], lowest=0.0)
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
