"""Where a benchmark's rows are found on disk, and how a JSON Lines file is read: never all of it at once."""

from __future__ import annotations

import hashlib
import json
import os
from array import array
from codecs import BOM_UTF8
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, overload

from evalswap.errors import DataError, did_you_mean

BUNDLED = Path(__file__).parent / "data"
MARK_EVERY = 256  # rows; the place of every such row in its file is kept, so a million rows cost 31 KB


def own_file(path: str, file_name: str, published: Sequence[str]) -> Path:
    """Return the file at a ``path`` of the user's own: the path itself, or ``file_name`` in that folder.

    Raises DataError if it is not there. ``published`` are the names that may have been meant.
    """
    names = ", ".join(published)
    try:
        place = Path(path).expanduser()
        file = first_existing([place], file_name)
        if file is not None:
            return file
        if place.is_dir():
            raise DataError(
                f"dataset folder {path} has no {file_name}",
                f"put {file_name} into it, or give as path the file itself, or one of: {names}",
            )
        neighbours = list(place.parent.iterdir()) if place.parent.is_dir() else []
    except (OSError, RuntimeError) as error:  # RuntimeError: ~NAME, and there is no such user
        raise DataError(f"dataset path {path} cannot be read: {error}") from error
    raise DataError(
        f"dataset path not found: {path}",
        did_you_mean(place.name, (neighbour.name for neighbour in neighbours))
        or did_you_mean(path, published)
        or f"give as path a folder with {file_name}, the file itself, or one of: {names}",
    )


def data_folders(path: str | None, name: str) -> list[Path]:
    """Return the folders to look for benchmark ``name`` in, in order of preference."""
    folders = [Path(path).expanduser()] if path else []
    if os.environ.get("EVALSWAP_DATA"):
        folders.append(Path(os.environ["EVALSWAP_DATA"]) / name)
    folders.append(Path("data") / name)
    if os.environ.get("COMPASS_DATA_CACHE"):
        folders.append(Path(os.environ["COMPASS_DATA_CACHE"]) / "data" / name)
    return folders


def first_existing(folders: Sequence[Path], file_name: str) -> Path | None:
    """Return the first ``folder/file_name`` that exists; a folder may also be the file itself."""
    for folder in folders:
        if folder.is_file():
            return folder
        if (folder / file_name).is_file():
            return folder / file_name
    return None


@dataclass(frozen=True)
class _Index:
    """Where the rows of a file are."""

    file: Path
    stamp: tuple[int, int]  # size and time of change, as they were when the index was made
    rows: int
    marks: array[int]  # byte offset of every MARK_EVERY-th row


class JsonLines(Sequence[Mapping[str, Any]]):
    """The objects of a JSON Lines file, or some of them, read from the file whenever they are wanted.

    Slices are views. Reading raises DataError once the file has changed.
    """

    def __init__(self, index: _Index, chosen: range | None = None) -> None:
        self._index = index
        self._chosen = range(index.rows) if chosen is None else chosen

    def __len__(self) -> int:
        return len(self._chosen)

    @overload
    def __getitem__(self, place: int) -> Mapping[str, Any]: ...
    @overload
    def __getitem__(self, place: slice) -> JsonLines: ...
    def __getitem__(self, place: int | slice) -> Mapping[str, Any] | JsonLines:
        if isinstance(place, slice):
            return JsonLines(self._index, self._chosen[place])
        return next(self._read(self._chosen[place], 1))

    def __iter__(self) -> Iterator[Mapping[str, Any]]:
        if self._chosen.step == 1:
            yield from self._read(self._chosen.start, len(self._chosen))
        else:
            for number in self._chosen:
                yield from self._read(number, 1)

    def _read(self, start: int, count: int) -> Iterator[Mapping[str, Any]]:
        file = self._index.file
        try:
            with file.open("rb") as stream:
                if _stamp(stream) != self._index.stamp:
                    raise DataError(f"{file} was changed while it was read", "start again")
                if not count:
                    return
                mark, skipped = divmod(start, MARK_EVERY)
                stream.seek(self._index.marks[mark])
                for line in stream:
                    if line.isspace():
                        continue
                    if skipped:
                        skipped -= 1
                        continue
                    yield json.loads(line.decode())
                    count -= 1
                    if not count:
                        return
        except (OSError, ValueError) as error:
            raise DataError(f"{file}: cannot be read: {error}") from error


def read_jsonl(file: Path, wanted_keys: Sequence[str]) -> tuple[JsonLines, str]:
    """Return a JSON Lines file's objects and the SHA-256 of its bytes. Every line is checked, none is kept.

    A byte order mark at its beginning, as some editors write it, is no part of the first row.
    Raises DataError naming file and line for a broken line, a missing key or a file without rows.
    """
    digest, marks, rows, offset = hashlib.sha256(), array("Q"), 0, 0
    try:
        with file.open("rb") as stream:
            stamp = _stamp(stream)
            if stream.read(len(BOM_UTF8)) == BOM_UTF8:
                digest.update(BOM_UTF8)
                offset = len(BOM_UTF8)
            stream.seek(offset)
            for number, line in enumerate(stream, start=1):
                digest.update(line)
                if not line.isspace():
                    _check(line, f"{file}:{number}", wanted_keys)
                    if rows % MARK_EVERY == 0:
                        marks.append(offset)
                    rows += 1
                offset += len(line)
    except OSError as error:
        raise DataError(f"{file}: cannot be read: {error}") from error
    if not rows:
        raise DataError(f"{file}: no rows in it")
    return JsonLines(_Index(file.absolute(), stamp, rows, marks)), digest.hexdigest()


def _check(line: bytes, where: str, wanted_keys: Sequence[str]) -> None:
    try:
        row = json.loads(line.decode())
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: not UTF-8: {error}") from error
    except ValueError as error:
        raise DataError(
            f"{where}: not a whole JSON object: {error}",
            "the file may have been cut off while it was downloaded: get it again",
        ) from error
    if not isinstance(row, dict):
        raise DataError(f"{where}: a JSON object is wanted, not {type(row).__name__}")
    for key in wanted_keys:
        if key not in row:
            raise DataError(f"{where}: the key '{key}' is missing")


def _stamp(stream: BinaryIO) -> tuple[int, int]:
    stat = os.fstat(stream.fileno())
    return stat.st_size, stat.st_mtime_ns
