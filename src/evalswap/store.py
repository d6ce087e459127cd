"""Every answer, durable the moment it arrives: one SQLite file a work folder.

Answers are keyed by content, so any later run that asks the same thing of the same model and engine finds
them, and a killed run goes on where it stopped. SQLite's write-ahead log survives kill -9 of this process
after each commit (https://www.sqlite.org/wal.html).
"""

from __future__ import annotations

import array
import dataclasses
import hashlib
import json
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evalswap.errors import StoreError
from evalswap.records import Failure, Prompt, Response, Sampling

FILE_NAME = "responses.sqlite"
SCHEMA = """
CREATE TABLE IF NOT EXISTS responses (
    key TEXT PRIMARY KEY, source TEXT NOT NULL, text TEXT NOT NULL, token_ids BLOB,
    finish_reason TEXT NOT NULL, prompt_tokens INTEGER NOT NULL, completion_tokens INTEGER NOT NULL,
    cached_tokens INTEGER, started REAL NOT NULL, seconds REAL NOT NULL, attempts INTEGER NOT NULL,
    engine TEXT NOT NULL
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS responses_source ON responses (source);
CREATE TABLE IF NOT EXISTS items (
    run TEXT NOT NULL, job TEXT NOT NULL, row INTEGER NOT NULL, key TEXT NOT NULL,
    gold TEXT NOT NULL, turns TEXT NOT NULL, prompt TEXT, prompt_ids BLOB, truncated_from INTEGER,
    PRIMARY KEY (run, job, row)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS failures (
    run TEXT NOT NULL, job TEXT NOT NULL, row INTEGER NOT NULL, key TEXT NOT NULL,
    error TEXT NOT NULL, attempts INTEGER NOT NULL,
    PRIMARY KEY (run, job, row)
) WITHOUT ROWID;
"""
RESPONSE_COLUMNS = tuple(field.name for field in dataclasses.fields(Response))


@dataclass(frozen=True, slots=True)
class Item:
    """One row of a job of a run: what was asked, and what would be right."""

    row: int
    key: str
    gold: Any
    turns: list[dict[str, str]]
    prompt: Prompt


@dataclass(frozen=True, slots=True)
class Answered:
    """One row of a job with its answer, or without."""

    row: int
    gold: Any
    turns: list[dict[str, str]]
    prompt_ids: bytes | None  # packed, see unpack_ids
    response: Response | None


class ContentKeys:
    """Makes the content keys of one job: hashes of what decides an answer.

    ``source`` holds the model's identity, the engine with its version and flags, dtype and device. Ports,
    paths and row numbers never enter.
    """

    def __init__(self, source: Mapping[str, Any]) -> None:
        self.source = hashlib.sha256(_canonical(source)).hexdigest()

    def key(self, prompt: Prompt, sampling: Sampling, repeat: int = 0) -> str:
        digest = hashlib.sha256(self.source.encode())
        digest.update(_canonical(dataclasses.asdict(sampling)))
        digest.update(str(repeat).encode())
        if prompt.token_ids is not None:
            digest.update(b"ids" + _pack(prompt.token_ids))
        else:
            digest.update(b"messages" + _canonical(prompt.messages))
        return digest.hexdigest()


class Store:
    """The answers of a work folder, and which of them belong to which run."""

    def __init__(self, folder: Path) -> None:
        """Open or create the store of ``folder``. Raises StoreError if it cannot be written."""
        self.path = folder / FILE_NAME
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(self.path, timeout=30, isolation_level=None, check_same_thread=False)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=NORMAL")
            self._db.executescript(SCHEMA)
        except (sqlite3.Error, OSError) as error:
            raise self._error("cannot be opened", error) from error

    def close(self) -> None:
        self._db.close()

    def begin_run(self, run: str) -> None:
        """Forget which rows an earlier try of this run had; its answers stay."""
        self._write("DELETE FROM items WHERE run = ?", (run,))
        self._write("DELETE FROM failures WHERE run = ?", (run,))

    def add_items(self, run: str, job: str, items: Iterable[Item]) -> None:
        """Record rows of a job, before they are asked."""
        rows = [
            (
                run,
                job,
                item.row,
                item.key,
                json.dumps(item.gold),
                json.dumps(item.turns),
                item.prompt.text,
                None if item.prompt.token_ids is None else _pack(item.prompt.token_ids),
                item.prompt.truncated_from,
            )
            for item in items
        ]
        try:
            self._db.execute("BEGIN")
            self._db.executemany("INSERT OR REPLACE INTO items VALUES (?,?,?,?,?,?,?,?,?)", rows)
            self._db.execute("COMMIT")
        except sqlite3.Error as error:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise self._error("cannot be written", error) from error

    def add_response(self, source: str, response: Response) -> None:
        """Store one answer; it is durable when this returns."""
        ids = None if response.token_ids is None else _pack(response.token_ids)
        self._write(
            "INSERT OR REPLACE INTO responses VALUES (?,?,?,?,?,?,?,?,?,?,?,?)",
            (
                response.key,
                source,
                response.text,
                ids,
                response.finish_reason,
                response.prompt_tokens,
                response.completion_tokens,
                response.cached_tokens,
                response.started,
                response.seconds,
                response.attempts,
                response.engine,
            ),
        )

    def add_failure(self, run: str, failure: Failure) -> None:
        self._write(
            "INSERT OR REPLACE INTO failures VALUES (?,?,?,?,?,?)",
            (run, failure.job, failure.row, failure.key, failure.error, failure.attempts),
        )

    def knows(self, source: str) -> bool:
        """Whether any answer of this model and engine is stored."""
        return self._db.execute("SELECT 1 FROM responses WHERE source = ? LIMIT 1", (source,)).fetchone() is not None

    def responses(self, keys: Sequence[str]) -> dict[str, Response]:
        """Return the stored answers among ``keys``."""
        found: dict[str, Response] = {}
        for start in range(0, len(keys), 500):
            part = keys[start : start + 500]
            marks = ",".join("?" * len(part))
            columns = ",".join(RESPONSE_COLUMNS)
            for row in self._db.execute(f"SELECT {columns} FROM responses WHERE key IN ({marks})", part):
                response = _response(row)
                found[response.key] = response
        return found

    def answers(self, run: str, job: str) -> Iterator[Answered]:
        """Yield a job's rows in order, each with its answer if there is one."""
        columns = ",".join(f"r.{name}" for name in RESPONSE_COLUMNS)
        query = f"""SELECT i.row, i.gold, i.turns, i.prompt_ids, {columns} FROM items i
                    LEFT JOIN responses r ON r.key = i.key WHERE i.run = ? AND i.job = ? ORDER BY i.row"""
        for row, gold, turns, ids, *rest in self._db.execute(query, (run, job)):
            response = _response(rest) if rest[0] is not None else None
            yield Answered(row, json.loads(gold), json.loads(turns), ids, response)

    def jobs(self, run: str) -> list[str]:
        return [job for (job,) in self._db.execute("SELECT DISTINCT job FROM items WHERE run = ?", (run,))]

    def failures(self, run: str, job: str) -> list[Failure]:
        query = "SELECT key, job, row, error, attempts FROM failures WHERE run = ? AND job = ? ORDER BY row"
        return [Failure(*row) for row in self._db.execute(query, (run, job))]

    def prompt_hashes(self, run: str, job: str) -> dict[str, Any]:
        """Return SHA-256 over all prompt ids of a job in order, their number, and how many were cut."""
        digest, tokens, cut, with_ids = hashlib.sha256(), 0, 0, True
        query = "SELECT prompt_ids, truncated_from FROM items WHERE run = ? AND job = ? ORDER BY row"
        for ids, truncated_from in self._db.execute(query, (run, job)):
            cut += truncated_from is not None
            if ids is None:
                with_ids = False
                continue
            digest.update(len(ids).to_bytes(8, "little") + ids)
            tokens += len(ids) // 4
        return {
            "prompt_ids_sha256": digest.hexdigest() if with_ids else None,
            "prompt_tokens": tokens if with_ids else None,
            "prompts_cut": cut,
        }

    def _write(self, sql: str, values: Sequence[Any]) -> None:
        try:
            self._db.execute(sql, values)
        except sqlite3.Error as error:
            raise self._error("cannot be written", error) from error

    def _error(self, what: str, error: Exception) -> StoreError:
        return StoreError(
            f"{self.path} {what}: {error}",
            "free disk space, or choose another work folder with -w; stored answers are kept",
        )


def _response(row: Sequence[Any]) -> Response:
    values = dict(zip(RESPONSE_COLUMNS, row, strict=True))
    if values["token_ids"] is not None:
        values["token_ids"] = unpack_ids(values["token_ids"])
    return Response(**values)


def _canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, default=str).encode()


def _pack(ids: Sequence[int]) -> bytes:
    """Pack token ids as little-endian 32-bit numbers, the same on every machine."""
    packed = array.array("I", ids)
    if packed.itemsize != 4:
        packed = array.array("L", ids)
    if array.array("I", [1]).tobytes()[0] != 1:
        packed.byteswap()
    return packed.tobytes()


def unpack_ids(blob: bytes) -> tuple[int, ...]:
    """Undo the packing of token ids."""
    packed = array.array("I")
    packed.frombytes(blob)
    if array.array("I", [1]).tobytes()[0] != 1:
        packed.byteswap()
    return tuple(packed)
