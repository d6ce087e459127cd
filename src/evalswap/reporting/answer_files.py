"""The predictions and results of one job: JSON files that are written row by row, whole or not at all.

While they grow they end in ``.part``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from evalswap.file_names import file_name
from evalswap.reporting.folder import RunFolder, not_written, write_text
from evalswap.scoring.scorer import Score, Scored
from evalswap.store import Answered

COPIED_AT_ONCE = 1 << 20  # characters
_encode = json.JSONEncoder(ensure_ascii=False).encode


class AnswerFiles:
    """``predictions/MODEL/DATASET.json`` and ``results/MODEL/DATASET.json`` of a run; unanswered rows are left out."""

    def __init__(self, folder: RunFolder, model: str, dataset: str, *, results: bool = True) -> None:
        """Without ``results`` there are predictions alone."""
        place = Path(file_name(model), f"{file_name(dataset)}.json")
        self._predictions = GrowingObject(folder.predictions / place)
        self._details = GrowingObject(folder.results / place) if results else None

    def add(self, answered: Answered, scored: Scored | None) -> None:
        """Write one answered row. Raises StoreError."""
        assert answered.response is not None
        gold = _encode(answered.gold)
        turns = ",\n            ".join(map(_encode, answered.turns))
        self._predictions.add(
            str(answered.row),
            f'{{\n        "origin_prompt": [\n            {turns}\n        ],\n'
            f'        "prediction": {_encode(answered.response.text)},\n        "gold": {gold}\n    }}',
        )
        if self._details is None or scored is None:
            return
        first, *others = scored.metrics.items()
        entry = {"pred": scored.prediction, "answer": answered.gold, "correct": first[1]}
        entry |= {f"correct ({name})": value for name, value in others}
        lines = ",\n            ".join(f"{_encode(key)}: {_encode(value)}" for key, value in entry.items())
        self._details.add(str(answered.row), f"{{\n            {lines}\n        }}")

    def finish(self, score: Score) -> None:
        """Put the files in their places; a partial score says so and names its unanswered rows. Raises StoreError."""
        self._predictions.finish()
        if self._details is None:
            return
        header: dict[str, Any] = dict(score.metrics)
        if score.partial:
            header |= {"partial": True, "answered": score.answered, "total": score.total}
            header["unanswered_rows"] = score.unanswered_rows
        self._details.finish(header, "details")

    def discard(self) -> None:
        """Leave nothing of files that are not finished."""
        self._predictions.discard()
        if self._details is not None:
            self._details.discard()


class GrowingObject:
    """A JSON object that is written entry by entry into a temporary file, made with the first entry."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._part = path.with_name(path.name + ".part")
        self._stream: TextIO | None = None

    def add(self, key: str, value: str) -> None:
        """Write an entry whose value is JSON already."""
        try:
            if self._stream is None:
                self._part.parent.mkdir(parents=True, exist_ok=True)
                self._stream = self._part.open("w+", encoding="utf-8", errors="surrogatepass")
            else:
                self._stream.write(",\n")
            self._stream.write(f"    {_encode(key)}: {value}")
        except OSError as error:
            raise not_written(self.path, error) from error

    def finish(self, header: dict[str, Any] | None = None, name: str = "") -> None:
        """Put the file in its place: the object, or an object of ``header`` that has it under ``name``."""
        if header is None:
            write_text(self.path, self._whole("{\n", "\n}\n"))
        else:
            entries = [f"    {_encode(key)}: {_encode(value)},\n" for key, value in header.items()]
            write_text(self.path, self._whole("{\n" + "".join(entries) + f"    {_encode(name)}: {{\n", "\n    }\n}\n"))
        self.discard()

    def _whole(self, before: str, after: str) -> Iterator[str]:
        yield before
        if self._stream is not None:
            self._stream.seek(0)
            while text := self._stream.read(COPIED_AT_ONCE):
                yield text
        yield after

    def discard(self) -> None:
        """Remove the temporary file."""
        if self._stream is not None:
            self._stream.close()
            self._stream = None
            self._part.unlink(missing_ok=True)
