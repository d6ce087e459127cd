"""Scoring one job behind its asking: row after row in order, as far as the rows are settled.

When the last answer is there, little is left to do; and however many rows there are, only a page of them is in
memory. The same does the scoring afterwards, of a run that was asked before.
"""

from __future__ import annotations

import time
from typing import Protocol

from evalswap.scoring.scorer import Score, Scored, Scorer, ScoreSum
from evalswap.store import Answered, Store

MOST_REMEMBERED = 10_000  # scored answers whose turn has not come; others are scored again


class Sink(Protocol):
    """Where answered rows go, in order."""

    def add(self, answered: Answered, scored: Scored | None) -> None:
        """Take the next row; ``scored`` is None where answers are not scored."""


class JobScoring:
    """Scores one job of a run, and hands its answered rows to a sink."""

    def __init__(self, store: Store, run: str, job: str, scorer: Scorer, sink: Sink, *, score: bool = True) -> None:
        """Without ``score`` the rows are handed on as they are."""
        self.job = job
        self.score_seconds = 0.0  # spent scoring
        self.write_seconds = 0.0  # spent reading the rows back and handing them on
        self._store = store
        self._run = run
        self._scorer = scorer
        self._sink = sink
        self._scores = score
        self._sum = ScoreSum()
        self._remembered: dict[int, tuple[int, Scored]] = {}  # row → hash of the text, and its score
        self._last = -1  # the last row that is done

    def right(self, row: int, text: str, gold: str) -> bool:
        """Score an answer that has just arrived, by the first metric; its turn comes later."""
        scored = self._score(text, gold)
        if self._scores and len(self._remembered) < MOST_REMEMBERED:
            self._remembered[row] = hash(text), scored
        return bool(scored.metrics[self._scorer.metrics[0]])

    def advance(self, most: int) -> int:
        """Do the next settled rows, ``most`` of them at most; return how many were done."""
        return self._go_on(most, to_the_end=False)

    def finish(self) -> Score:
        """Do all rows that are left, answered or not, and return the score."""
        self._go_on(None, to_the_end=True)
        total = self._store.expected_rows(self._run, self.job) or 0
        for row in range(self._last + 1, total):  # never asked
            self._sum.add(row, None)
        return self._sum.result()

    def _go_on(self, most: int | None, to_the_end: bool) -> int:
        began, scoring, done = time.perf_counter(), self.score_seconds, 0
        for answered in self._store.answers(self._run, self.job, after=self._last):
            if done == most or not (to_the_end or answered.settled):
                break
            self._do(answered)
            self._last = answered.row
            done += 1
        self.write_seconds += time.perf_counter() - began - (self.score_seconds - scoring)
        return done

    def _do(self, answered: Answered) -> None:
        text_hash, scored = self._remembered.pop(answered.row, (0, None))
        if answered.response is None:
            self._sum.add(answered.row, None)
            return
        # Another run of this folder may have asked the same, and its answer was the first.
        if self._scores and (scored is None or text_hash != hash(answered.response.text)):
            scored = self._score(answered.response.text, answered.gold)
        self._sink.add(answered, scored)
        self._sum.add(answered.row, scored or Scored("", {}))

    def _score(self, text: str, gold: str) -> Scored:
        began = time.perf_counter()
        scored = self._scorer.score(text, gold)
        self.score_seconds += time.perf_counter() - began
        return scored
