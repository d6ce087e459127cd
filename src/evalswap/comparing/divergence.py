"""Why two outputs differ: where they part, what the reference thought of both tokens there, and the class of it.

The first differing token is the cause; all later ones follow from it. At that place the reference engine is asked
for the log-probabilities of both tokens (``forcing.py``), given everything before it: if they are nearly equal, the
rounding of sums decided, and no setting of either engine is to blame. That holds only where the log-probabilities are
what tokens were chosen by: a repetition penalty is applied to them, drawn answers have no near-ties.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from evalswap.comparing.outputs import Output, Side
from evalswap.comparing.records import DIFFERENCE_CLASSES, Difference, DifferenceClass, FirstDifference
from evalswap.store import unpack_ids

# The gap between two log-probabilities, in nats, under which rounding can decide, by the dtype that engines compute in.
# bfloat16 keeps 8 bits, so logits from 16 to 32, as a vocabulary's highest are, lie 0.125 apart. Measured against
# float32 on SmolLM2-135M (where transformers and vLLM part on GSM8K), a bfloat16 gap is off by 0.095 in the standard
# deviation and by 0.25 at most: 0.5 is 3.7 standard deviations of two engines' difference. float16 has 3 bits more;
# float32 so many that no rounding bridges a thousandth.
NEAR_TIE: Mapping[str, float] = {"bfloat16": 0.5, "float16": 0.06, "float32": 0.001}
NEAR_TIE_UNKNOWN = 0.5  # where the dtype is not told
UNSEEN_PENALTIES = ("presence_penalty", "frequency_penalty")  # transformers has none of them
TAIL = 80  # characters at the end of an answer, where its result stands

Decode = Callable[[int], str]  # a token id → its text


@dataclass(frozen=True, slots=True)
class Question:
    """What the reference engine is asked about one differing row: both tokens after the same ids."""

    row: int
    before: tuple[int, ...]  # prompt and common part of the outputs
    reference_token: int
    other_token: int


@dataclass(frozen=True, slots=True)
class Logprobs:
    """The reference's natural log-probabilities of both tokens of a question."""

    reference: float
    other: float


@dataclass(frozen=True, slots=True)
class Parting:
    """Where two outputs part."""

    first: FirstDifference
    ended: bool  # one of them ends here, where the other goes on
    forbidden: bool  # one of the tokens is a stop id that min_new_tokens rules out here
    question: Question | None  # None where there are no two tokens to ask about


@dataclass(frozen=True, slots=True)
class _Ids:
    """An output's tokens, and the id that ended it where one did."""

    tokens: tuple[int, ...]
    stop: int | None


class Differ:
    """Finds how one side's outputs differ from the reference's."""

    def __init__(self, reference: Side, other: Side, decode: Decode | None = None) -> None:
        self.reference, self.other = reference, other
        self._decode = decode
        self._stops = _Stops.of(reference), _Stops.of(other)
        self._identical: dict[int, bool] = {}

    def identical(self, row: int) -> bool:
        """Whether both outputs of a row are the same tokens, or the same text where one side has no ids."""
        if row not in self._identical:
            a, b = self.reference.outputs[row], self.other.outputs[row]
            if a.token_ids is None or b.token_ids is None:
                same = a.text == b.text
            else:
                same = a.token_ids == b.token_ids or self._ids(a, 0).tokens == self._ids(b, 1).tokens
            self._identical[row] = same
        return self._identical[row]

    def differs(self, row: int) -> bool:
        """Whether a row is worth a look: other outputs, or equal ones that were read or judged differently."""
        a, b = self.reference.outputs[row], self.other.outputs[row]
        return not self.identical(row) or a.answer != b.answer or self.flips(row)

    def flips(self, row: int) -> bool:
        """Whether one side is right and the other wrong."""
        return self.reference.outputs[row].right != self.other.outputs[row].right

    def part(self, row: int) -> Parting:
        """Return where a row's outputs part. Positions count tokens, or characters where a side has no ids."""
        a, b = self.reference.outputs[row], self.other.outputs[row]
        if a.token_ids is None or b.token_ids is None:
            return _part_texts(a.text, b.text)
        ours, theirs = self._ids(a, 0), self._ids(b, 1)
        place = _common(ours.tokens, theirs.tokens)
        pair = [ids.tokens[place] if place < len(ids.tokens) else ids.stop for ids in (ours, theirs)]
        first = FirstDifference(place, "token", self._token_text(pair[0]), self._token_text(pair[1]))
        ended = place in (len(ours.tokens), len(theirs.tokens))
        forbidden = any(stops.forbids(token, place) for stops in self._stops for token in pair)
        question = None
        known = a.prompt_ids is not None and a.prompt_ids == b.prompt_ids
        if known and pair[0] is not None and pair[1] is not None and pair[0] != pair[1]:
            before = unpack_ids(a.prompt_ids or b"") + ours.tokens[:place]
            question = Question(row, before, pair[0], pair[1])
        return Parting(first, ended, forbidden, question)

    def difference(self, row: int, parting: Parting, logprobs: Logprobs | None) -> Difference:
        """Return the whole record of a differing row."""
        a, b = self.reference.outputs[row], self.other.outputs[row]
        first = parting.first
        if logprobs is not None:
            first = dataclasses.replace(
                first,
                reference_logprob=logprobs.reference,
                other_logprob=logprobs.other,
                gap=logprobs.reference - logprobs.other,
            )
        return Difference(
            row=row,
            kind=self._kind(row, first, parting),
            first=first,
            reference_right=bool(a.right),
            other_right=bool(b.right),
            reference_answer=a.answer,
            other_answer=b.answer,
            gold=a.gold,
            prompt=a.prompt,
            reference_text=a.text,
            other_text=b.text,
            reference_finish=a.finish,
            other_finish=b.finish,
        )

    @property
    def near_tie(self) -> float:
        """The gap under which rounding can decide, by the coarser dtype of both sides."""
        dtypes = [str(side.facts.get("dtype")) for side in (self.reference, self.other)]
        return max(NEAR_TIE.get(dtype, NEAR_TIE_UNKNOWN) for dtype in dtypes)

    @property
    def no_near_ties(self) -> str | None:
        """Why no difference is a near-tie, however small the gap: as a sentence, or None where some may be."""
        blocks = (self.reference.sampling, self.other.sampling)
        if any(block.get("temperature") for block in blocks):
            return "Answers are drawn (temperature above 0), so no difference is called a near-tie."
        if any(block.get(name) for block in blocks for name in UNSEEN_PENALTIES):
            return (
                "Tokens are chosen with a presence or frequency penalty, which the reference's log-probabilities leave "
                "out, so no difference is called a near-tie."
            )
        return None

    def _kind(self, row: int, first: FirstDifference, parting: Parting) -> DifferenceClass:
        a, b = self.reference.outputs[row], self.other.outputs[row]
        if a.prompt_ids is not None and b.prompt_ids is not None and a.prompt_ids != b.prompt_ids:
            return "ids"
        if self.identical(row) or a.text == b.text or (_tail(a) == _tail(b) != "" and a.answer != b.answer):
            return "extraction"
        nearly = first.gap is not None and abs(first.gap) < self.near_tie
        if nearly and not parting.forbidden and not self.no_near_ties:
            return "near-tie"
        return "stop" if parting.ended else "unexplained"

    def _ids(self, output: Output, side: int) -> _Ids:
        """Split off the id that ended an output. An engine that does not return it ended at the only one there is."""
        tokens, stops = output.token_ids or (), self._stops[side]
        end = stops.place(tokens)
        if end is not None:
            return _Ids(tokens[:end], tokens[end])
        return _Ids(tokens, stops.only if output.finish == "stop" else None)

    def _token_text(self, token: int | None) -> str | None:
        if token is None:
            return None
        return self._decode(token) if self._decode else f"id {token}"


def summed_up(compared: int, identical: int, counts: Mapping[str, int]) -> str:
    """Return a side's differences in one line: '57 of 1,319 outputs differ: 55 at near-ties, 2 at stop handling'."""
    words = {
        "ids": "with other prompt ids",
        "stop": "at stop handling",
        "extraction": "by extraction",
        "near-tie": "at near-ties",
        "unexplained": "unexplained",
    }
    if not compared:
        return "no row was answered by both"
    kinds = sorted((kind for kind in DIFFERENCE_CLASSES if counts.get(kind)), key=lambda kind: -counts[kind])
    causes = ", ".join(f"{counts[kind]:,} {words[kind]}" for kind in kinds)
    if compared == identical:
        return f"all {compared:,} outputs are identical" + (f"; {causes}" if causes else "")
    return f"{compared - identical:,} of {compared:,} outputs differ" + (f": {causes}" if causes else "")


def _part_texts(ours: str, theirs: str) -> Parting:
    place = _common(ours, theirs)
    first = FirstDifference(place, "character", ours[place : place + 1] or None, theirs[place : place + 1] or None)
    return Parting(first, place in (len(ours), len(theirs)), False, None)


def _common(ours: Sequence[object], theirs: Sequence[object]) -> int:
    """Return the length of the common beginning."""
    for place, (a, b) in enumerate(zip(ours, theirs, strict=False)):
        if a != b:
            return place
    return min(len(ours), len(theirs))


def _tail(output: Output) -> str:
    return output.text.rstrip()[-TAIL:]


@dataclass(frozen=True, slots=True)
class _Stops:
    """The ids that end a side's outputs."""

    ids: tuple[int, ...]
    protected: int  # so many tokens at the beginning end nothing
    only: int | None  # the one thing that can end an output, if it is one

    @classmethod
    def of(cls, side: Side) -> _Stops:
        block = side.sampling
        ids = tuple(block.get("stop_token_ids") or ())
        return cls(
            ids, int(block.get("min_new_tokens") or 0), ids[0] if len(ids) == 1 and not block.get("stop") else None
        )

    def forbids(self, token: int | None, place: int) -> bool:
        """Whether a token may not be chosen at a place, however likely it is."""
        return place < self.protected and token in self.ids

    def place(self, tokens: tuple[int, ...]) -> int | None:
        """Return where the first of them stands, as ``inference.answers.before_stop_id`` cuts."""
        late = tokens[self.protected :] if self.protected else tokens
        places = [late.index(stop) + self.protected for stop in self.ids if stop in late]
        return min(places, default=None)
