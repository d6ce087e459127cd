"""From sides to a whole comparison: contract, statistics, differences and verdict of each contender on each dataset."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Protocol

from evalswap import __version__
from evalswap.comparing.contract import check_contract
from evalswap.comparing.divergence import Decode, Differ, Logprobs, Question
from evalswap.comparing.outputs import Side
from evalswap.comparing.pairing import Key, Pairing, contender_names, key_of, pair_up, shared_rows
from evalswap.comparing.pooling import pooled
from evalswap.comparing.records import (
    Against,
    Comparison,
    Contender,
    DatasetComparison,
    Difference,
    WiringProof,
)
from evalswap.comparing.statistics import holm, paired_statistics, wilson_interval
from evalswap.comparing.timing import busy_seconds, throughput
from evalswap.comparing.token_texts import token_decoder
from evalswap.comparing.verdict import judge

SHOWN_FAILURES = 2
DIFFERENT_LENGTHS = 0.01  # share of answers that one side cuts off and the other does not, from which it is said


class Explainer(Protocol):
    """Knows what the reference engine thinks of tokens, or can ask it."""

    def logprobs(self, reference: Side, questions: Sequence[Question]) -> Mapping[Question, Logprobs]:
        """Return the answers that can be had."""


class Unasked:
    """An explainer that knows nothing."""

    def logprobs(self, reference: Side, questions: Sequence[Question]) -> Mapping[Question, Logprobs]:
        return {}


@dataclasses.dataclass(frozen=True)
class Evidence:
    """What was run beside the runs that are compared; each by the side that it is about."""

    proofs: Mapping[tuple[Key, str], WiringProof] = dataclasses.field(default_factory=dict)  # (contender, dataset)
    noise: Mapping[tuple[Key, str], Side] = dataclasses.field(default_factory=dict)  # the reference, run otherwise
    notes: tuple[str, ...] = ()


def compare_runs(
    runs: Sequence[Sequence[Side]],
    *,
    margin: float = 1.0,
    common_only: bool = False,
    explainer: Explainer | None = None,
    evidence: Evidence | None = None,
) -> Comparison:
    """Compare the sides of several runs with those of the first.

    ``margin`` is in points, given before anybody looks. Raises ConfigError where there is nothing to compare, or
    where runs have other rows and ``common_only`` does not allow it.
    """
    evidence = evidence or Evidence()
    pairings, notes = pair_up(runs)
    names = contender_names([side for pairing in pairings for side in (pairing.reference, *pairing.others)])
    work = _Work(margin, common_only, explainer or Unasked(), evidence, names)
    datasets = _judged([work.dataset(pairing) for pairing in pairings], margin)
    wholes, left_out = pooled(datasets, work.marks, margin)
    return Comparison(
        evalswap=__version__,
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        margin=margin,
        datasets=(*wholes, *datasets),
        notes=(*evidence.notes, *notes, *left_out, *work.notes),
    )


def alone(run: Sequence[Side]) -> Comparison:
    """Return a single run as a comparison that has references only."""
    names = contender_names(run)
    datasets = (
        DatasetComparison(side.dataset, side.metric, contender(side, names[key_of(side)]), (), model=side.model)
        for side in run
    )
    created = datetime.now(timezone.utc).isoformat(timespec="seconds")
    return Comparison(__version__, created, 1.0, tuple(datasets))


def wiring_proof(reference: Side, other: Side, explainer: Explainer | None = None) -> WiringProof:
    """Compare two float32 samples: how many outputs are identical, and the first that is not."""
    rows, _ = shared_rows(reference, other, common_only=True)
    differ = Differ(reference, other, decoder_of(reference))
    differing = [row for row in rows if not differ.identical(row)]
    found = differences(differ, differing[:1], explainer or Unasked())
    return WiringProof(len(rows), len(rows) - len(differing), None, found[0] if found else None)


def differences(differ: Differ, rows: Sequence[int], explainer: Explainer) -> list[Difference]:
    """Return the differences of rows, with the log-probabilities that the explainer has."""
    partings = {row: differ.part(row) for row in sorted(rows, key=differ.flips, reverse=True)}  # flips are asked first
    questions = [parting.question for parting in partings.values() if parting.question is not None]
    known = explainer.logprobs(differ.reference, questions) if questions else {}
    return [
        differ.difference(row, parting, known.get(parting.question) if parting.question else None)
        for row, parting in sorted(partings.items(), key=lambda item: item[0])
    ]


def decoder_of(side: Side) -> Decode | None:
    """Return the texts of a side's tokens, or None where its model's folder is gone or unknown."""
    folder = side.facts.get("folder")
    return token_decoder(Path(str(folder))) if folder else None


def contender(side: Side, name: str) -> Contender:
    """Return what tables say about a side itself."""
    engine = side.record.get("engine") or {}
    answered, right = len(side.outputs), sum(output.right is True for output in side.outputs.values())
    seconds = busy_seconds(side.outputs.values())
    tokens = sum(output.tokens for output in side.outputs.values())
    return Contender(
        name=name,
        run=side.folder.name,
        engine=" ".join(filter(None, (engine.get("name"), engine.get("version")))) or "unknown",
        device=side.facts.get("device") or engine.get("device"),
        dtype=side.facts.get("dtype"),
        score=100 * right / answered if side.scored else side.score,
        interval=wilson_interval(right, answered) if side.scored else None,
        right=right,
        answered=answered,
        total=len(side.rows),
        failed=len(side.unanswered),
        with_ids=side.with_ids,
        start_seconds=(side.record.get("timings") or {}).get("start"),
        infer_seconds=seconds,
        output_tokens=tokens,
        tokens_per_second=tokens / seconds if seconds and tokens else None,
        throughput=throughput(side.outputs.values()),
        manifest=side.record,
        translation=tuple(side.record.get("translation") or ()),
    )


class _Work:
    """The making of one comparison."""

    def __init__(
        self, margin: float, common_only: bool, explainer: Explainer, evidence: Evidence, names: Mapping[Key, str]
    ) -> None:
        self.margin = margin
        self.common_only = common_only
        self.explainer = explainer
        self.evidence = evidence
        self.names = names
        self.notes: list[str] = []
        self.marks: dict[tuple[str, str], list[tuple[bool, bool]]] = {}  # by dataset and contender's name

    def dataset(self, pairing: Pairing) -> DatasetComparison:
        reference = pairing.reference
        first = contender(reference, self.names[key_of(reference)])
        for side in (reference, *pairing.others):
            self._note_other_score(side)
        noise = self.evidence.noise.get((key_of(reference), reference.dataset))
        floor = None
        if noise is not None:
            floor = self._against(
                first, reference, noise, f"{first.name} at batch size {noise.facts.get('batch_size')}"
            )
        others = [self._against(first, reference, side, self.names[key_of(side)], floor) for side in pairing.others]
        return DatasetComparison(reference.dataset, reference.metric, first, tuple(others), floor, reference.model)

    def _against(
        self, first: Contender, reference: Side, side: Side, name: str, floor: Against | None = None
    ) -> Against:
        """Return one contender against the reference; its verdict waits for the other datasets (``_judged``)."""
        rows, note = shared_rows(reference, side, common_only=self.common_only)
        if note:
            self.notes.append(note)
        differ = Differ(reference, side, decoder_of(reference))
        found = differences(differ, [row for row in rows if differ.differs(row)], self.explainer)
        entrant = contender(side, name)
        fast, slow = entrant.infer_seconds, first.infer_seconds
        marks = _marks(reference, side, rows)
        if marks:
            self.marks[side.dataset, name] = marks
        ours, theirs = [mark for mark, _ in marks], [mark for _, mark in marks]
        about = _about_answers(reference, side, rows)
        if found and differ.no_near_ties:
            about.append(differ.no_near_ties)
        statistics = paired_statistics(ours, theirs, self.margin) if marks else None
        if statistics and floor and floor.statistics:
            of_floor = (floor.statistics.right_to_wrong + floor.statistics.wrong_to_right) / floor.statistics.rows
            flips = statistics.right_to_wrong + statistics.wrong_to_right
            statistics = dataclasses.replace(statistics, excess_flips=flips - of_floor * statistics.rows)
        return Against(
            contender=entrant,
            contract=check_contract(reference, side, rows),
            compared=len(rows),
            identical=sum(differ.identical(row) for row in rows),
            statistics=statistics,
            verdict="inconclusive",
            reasons=tuple(about),
            speedup=slow / fast if fast and slow else None,
            differences=tuple(found),
            counts=dict(Counter(difference.kind for difference in found)),
            proof=self.evidence.proofs.get((key_of(side), side.dataset)),
        )

    def _note_other_score(self, side: Side) -> None:
        """Say so where a run's own results and its rows do not give the same score."""
        if not side.scored or side.score is None:
            return
        by_rows = 100 * sum(output.right is True for output in side.outputs.values()) / len(side.outputs)
        if abs(by_rows - side.score) > 0.006:  # a results file may round to two digits
            self.notes.append(
                f"{side.model} on {side.dataset}: its results say {side.score:.2f}, its rows give {by_rows:.2f}; "
                "the rows are compared"
            )


def _marks(reference: Side, side: Side, rows: Sequence[int]) -> list[tuple[bool, bool]]:
    """Return right or wrong of both sides; an empty list where a row of them is not known to be either."""
    found = [(reference.outputs[row].right, side.outputs[row].right) for row in rows]
    known = [(ours, theirs) for ours, theirs in found if ours is not None and theirs is not None]
    return known if len(known) == len(found) else []


def _about_answers(reference: Side, side: Side, rows: Sequence[int]) -> list[str]:
    """Return sentences on questions without an answer, and on answers that were cut off."""
    sentences = []
    for who in (reference, side):
        if who.unanswered:
            why = "; ".join(f"row {row}: {text}" for row, text in list(who.failures.items())[:SHOWN_FAILURES])
            sentences.append(
                f"{len(who.unanswered):,} of {len(who.rows):,} questions have no answer in {who.model}"
                + (f" ({why})" if why else "")
                + "; they are left out, not counted as wrong."
            )
    cut = [sum(who.outputs[row].finish == "length" for row in rows) for who in (reference, side)]
    told = all(who.outputs[row].finish for who in (reference, side) for row in rows)
    if told and abs(cut[0] - cut[1]) > DIFFERENT_LENGTHS * len(rows):
        sentences.append(f"{cut[1]:,} answers are cut off at the longest length, {cut[0]:,} of the reference's.")
    return sentences


def _judged(datasets: Sequence[DatasetComparison], margin: float) -> list[DatasetComparison]:
    """Adjust p-values over the datasets, for each contender, then judge."""
    places: dict[str, list[tuple[int, int]]] = {}
    for i, dataset in enumerate(datasets):
        for j, against in enumerate(dataset.others):
            if against.statistics is not None:
                places.setdefault(against.contender.name, []).append((i, j))
    adjusted: dict[tuple[int, int], float] = {}
    for found in places.values():
        p_values = [statistics.mcnemar_p for i, j in found if (statistics := datasets[i].others[j].statistics)]
        adjusted |= dict(zip(found, holm(p_values), strict=True))
    judged = []
    for i, dataset in enumerate(datasets):
        others = []
        for j, against in enumerate(dataset.others):
            others.append(_with_verdict(against, margin, adjusted.get((i, j)), dataset.noise_floor))
        floor = dataset.noise_floor
        judged.append(
            dataclasses.replace(
                dataset, others=tuple(others), noise_floor=None if floor is None else _with_verdict(floor, margin)
            )
        )
    return judged


def _with_verdict(
    against: Against, margin: float, p_adjusted: float | None = None, floor: Against | None = None
) -> Against:
    statistics = against.statistics
    if statistics is not None and p_adjusted is not None:
        statistics = dataclasses.replace(statistics, mcnemar_p_adjusted=p_adjusted)
    verdict, reasons = judge(statistics, against.contract, margin)
    if statistics and statistics.excess_flips is not None and floor and floor.statistics:
        flips = floor.statistics.right_to_wrong + floor.statistics.wrong_to_right
        reasons += (
            f"The reference flips {flips:,} of {floor.statistics.rows:,} against itself ({floor.contender.name}); "
            f"beyond that noise are {statistics.excess_flips:+.0f} flips.",
        )
    return dataclasses.replace(against, statistics=statistics, verdict=verdict, reasons=(*reasons, *against.reasons))
