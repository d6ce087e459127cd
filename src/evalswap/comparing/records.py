"""What a comparison says, as plain frozen records: made by the other modules here, shown by ``reporting/``.

``dataclasses.asdict`` of a ``Comparison`` is ``compare.json``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Verdict = Literal["equivalent", "different", "inconclusive", "reference"]
DifferenceClass = Literal["near-tie", "stop", "extraction", "ids", "unexplained"]
DIFFERENCE_CLASSES: tuple[DifferenceClass, ...] = ("ids", "stop", "extraction", "near-tie", "unexplained")


@dataclass(frozen=True, slots=True)
class Interval:
    """An interval in points (percent), both ends included."""

    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Contender:
    """One engine's run of one model on one dataset."""

    name: str  # unique within a comparison
    run: str  # the run's folder name
    engine: str  # "vllm 0.32.0", or "unknown" where a foreign folder does not say
    device: str | None
    dtype: str | None
    score: float | None  # percent, by the dataset's first metric
    interval: Interval | None  # 95% interval of the score
    right: int  # rows scored right, of those answered
    answered: int
    total: int
    failed: int
    with_ids: bool  # whether answers have token ids
    start_seconds: float | None  # engine start; None where nothing was started
    infer_seconds: float | None  # time with a request in flight, by the answers' own times; None where they have none
    output_tokens: int
    tokens_per_second: float | None
    throughput: tuple[tuple[float, float], ...]  # (seconds since the first request, output tokens/s)
    manifest: Mapping[str, Any] = field(repr=False)  # the model's record of run.json
    translation: tuple[Mapping[str, str], ...] = field(repr=False)  # source, target, note


@dataclass(frozen=True, slots=True)
class ContractItem:
    """One thing that must be equal for a difference to be the engine's doing."""

    item: str  # "prompt token ids", "dtype", "stop ids", …
    reference: str
    other: str
    kept: bool | None  # None: one side does not tell
    note: str = ""
    systematic: bool = True  # where broken: moves answers one way, and not just by rounding


@dataclass(frozen=True, slots=True)
class FirstDifference:
    """Where two outputs part. Positions count output tokens (or characters, where ids are unknown)."""

    position: int
    unit: Literal["token", "character"]
    reference_token: str | None  # as text; None at the end of an output
    other_token: str | None
    reference_logprob: float | None = None  # natural log, of the reference engine, teacher-forced
    other_logprob: float | None = None  # the other's token under the reference, same place
    gap: float | None = None  # reference_logprob - other_logprob


@dataclass(frozen=True, slots=True)
class Difference:
    """One row whose outputs differ."""

    row: int
    kind: DifferenceClass
    first: FirstDifference
    reference_right: bool
    other_right: bool
    reference_answer: str  # what was extracted and scored
    other_answer: str
    gold: str
    prompt: str
    reference_text: str
    other_text: str
    reference_finish: str
    other_finish: str


@dataclass(frozen=True, slots=True)
class PairedStatistics:
    """The paired test of one engine against the reference, on the rows that both answered. In points."""

    rows: int
    delta: float  # other - reference
    delta_interval: Interval  # 95%, paired bootstrap; in groups: it and the clustered one, as is the next
    equivalence_interval: Interval  # 90%, the one that TOST looks at
    right_to_wrong: int
    wrong_to_right: int
    mcnemar_p: float  # exact, two-sided; in groups: the larger of it and that of a t test with clustered errors
    mcnemar_p_adjusted: float  # Holm, over the datasets of the comparison
    equivalence_p: float  # TOST at the margin
    needed_rows: int | None  # rows that would settle it at 90% power; None: no number of them
    excess_flips: float | None = None  # flips beyond the noise floor; None where none was measured
    groups: int | None = None  # how many groups the rows come in, where errors are clustered


@dataclass(frozen=True, slots=True)
class WiringProof:
    """The fp32 sample: identical ids prove that prompts, stops and sampling are wired the same."""

    rows: int
    identical: int
    skipped: str | None  # why it was not run
    first: Difference | None = None


@dataclass(frozen=True, slots=True)
class Against:
    """One contender against the reference on one dataset."""

    contender: Contender
    contract: tuple[ContractItem, ...]
    compared: int  # rows answered by both
    identical: int  # outputs
    statistics: PairedStatistics | None  # None for the reference itself, or without a common row
    verdict: Verdict
    reasons: tuple[str, ...]  # sentences, the most important first
    speedup: float | None
    differences: tuple[Difference, ...] = field(repr=False)
    counts: Mapping[str, int]  # DifferenceClass → how many
    proof: WiringProof | None = None


@dataclass(frozen=True, slots=True)
class DatasetComparison:
    dataset: str
    metric: str
    reference: Contender
    others: tuple[Against, ...]
    noise_floor: Against | None = None  # the reference against itself at another batch size
    model: str = ""  # the reference's name for the model


@dataclass(frozen=True, slots=True)
class Comparison:
    """Everything that a comparison found."""

    evalswap: str  # version
    created: str  # ISO 8601, UTC
    margin: float  # points
    datasets: tuple[DatasetComparison, ...]
    notes: tuple[str, ...] = ()
