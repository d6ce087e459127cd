"""Every answer, durable the moment it arrives: one SQLite file a work folder.

Answers are keyed by content, so any later run that asks the same thing of the same model and engine finds
them, and a killed run goes on where it stopped. SQLite's write-ahead log survives kill -9 of this process
after each commit (https://www.sqlite.org/wal.html).

A commit takes about 50 microseconds, for nothing waits for the disk: the file system has it, and hands it on. Only a
checkpoint waits, and all asking with it; so there is none before the log has grown to 64 MB, some thousand answers.
"""

from __future__ import annotations

import array
import dataclasses
import hashlib
import json
import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evalswap.errors import StoreError
from evalswap.records import Failure, Prompt, Response

FILE_NAME = "responses.sqlite"
PAGE, FIRST_PAGE = 512, 8  # rows read at once
OPENING_SECONDS = 30.0
LOG_PAGES = 16_384  # of 4 KB, from which the write-ahead log is written back
SCHEMA = """
CREATE TABLE IF NOT EXISTS responses (
    key TEXT PRIMARY KEY, source TEXT NOT NULL, text TEXT NOT NULL, token_ids BLOB,
    finish_reason TEXT NOT NULL, prompt_tokens INTEGER NOT NULL, completion_tokens INTEGER NOT NULL,
    cached_tokens INTEGER, started REAL NOT NULL, seconds REAL NOT NULL, attempts INTEGER NOT NULL,
    engine TEXT NOT NULL
);
CREATE INDEX IF NOT EXISTS responses_source ON responses (source);
CREATE TABLE IF NOT EXISTS jobs (
    run TEXT NOT NULL, job TEXT NOT NULL, rows INTEGER NOT NULL, PRIMARY KEY (run, job)
);
CREATE TABLE IF NOT EXISTS items (
    run TEXT NOT NULL, job TEXT NOT NULL, row INTEGER NOT NULL, key TEXT NOT NULL,
    gold TEXT NOT NULL, turns TEXT NOT NULL, prompt TEXT, prompt_ids BLOB, truncated_from INTEGER,
    PRIMARY KEY (run, job, row)
);
CREATE TABLE IF NOT EXISTS failures (
    run TEXT NOT NULL, job TEXT NOT NULL, row INTEGER NOT NULL, key TEXT NOT NULL,
    error TEXT NOT NULL, attempts INTEGER NOT NULL,
    PRIMARY KEY (run, job, row)
);
CREATE TABLE IF NOT EXISTS attempts (
    run TEXT NOT NULL, job TEXT NOT NULL, row INTEGER NOT NULL, attempt INTEGER NOT NULL,
    started REAL NOT NULL, seconds REAL NOT NULL, error TEXT NOT NULL
);
CREATE INDEX IF NOT EXISTS attempts_run ON attempts (run, job);
"""
OF_A_RUN = ("jobs", "items", "failures", "attempts")
RESPONSE_COLUMNS = tuple(field.name for field in dataclasses.fields(Response))
# Two may ask the same beside each other: the first answer is the answer.
ADD_RESPONSE = "INSERT INTO responses VALUES (?,?,?,?,?,?,?,?,?,?,?,?) ON CONFLICT(key) DO NOTHING"
ADD_FAILURE = "INSERT OR REPLACE INTO failures VALUES (?,?,?,?,?,?)"
ADD_ATTEMPT = "INSERT INTO attempts VALUES (?,?,?,?,?,?,?)"
ADD_ITEM = "INSERT OR REPLACE INTO items VALUES (?,?,?,?,?,?,?,?,?)"


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
    failed: bool = False  # asked, and given up in this run

    @property
    def settled(self) -> bool:
        """Whether this run has nothing more to do about the row."""
        return self.response is not None or self.failed


@dataclass(frozen=True, slots=True)
class FailedAttempt:
    """One try at a request that brought no answer."""

    job: str
    row: int
    attempt: int  # 1 is the first
    started: float  # seconds since the epoch
    seconds: float
    error: str


class Store:
    """The answers of a work folder, and which of them belong to which run. For one thread."""

    def __init__(self, folder: Path) -> None:
        """Open or create the store of ``folder``. Raises StoreError if it cannot be written."""
        self.path = folder / FILE_NAME
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(self.path, timeout=30, isolation_level=None)
            if not self.path.stat().st_size:  # nothing is there that could be lost
                self._db.execute("PRAGMA synchronous=OFF")
            self._begin_log()
            self._db.executescript(SCHEMA)
            self._db.execute("PRAGMA synchronous=NORMAL")
            self._db.execute(f"PRAGMA wal_autocheckpoint={LOG_PAGES}")
        except (sqlite3.Error, OSError) as error:
            raise self._error("cannot be opened", error) from error

    def _begin_log(self) -> None:
        """Write ahead from now on. Two commands that open a new store together are in each other's way for a moment."""
        deadline = time.monotonic() + OPENING_SECONDS
        while True:
            try:
                self._db.execute("PRAGMA journal_mode=WAL")
                return
            except sqlite3.OperationalError as error:
                if "locked" not in str(error) or time.monotonic() > deadline:
                    raise
                time.sleep(0.05)

    def close(self) -> None:
        self._db.close()

    # -- writing ---------------------------------------------------------------------------------------

    def begin_run(self, run: str, jobs: Mapping[str, int] | None = None) -> None:
        """Begin a run with these jobs (name → number of rows), forgetting an earlier try of it; its answers stay."""
        added = [(run, job, rows) for job, rows in (jobs or {}).items()]
        self._write(
            {f"DELETE FROM {table} WHERE run = ?": [(run,)] for table in OF_A_RUN}
            | {"INSERT INTO jobs VALUES (?,?,?)": added}
        )

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
                None if item.prompt.token_ids is None else pack_ids(item.prompt.token_ids),
                item.prompt.truncated_from,
            )
            for item in items
        ]
        self._write({ADD_ITEM: rows})

    def add_responses(self, source: str, responses: Iterable[Response]) -> None:
        """Store answers, all or none; they are durable when this returns. One that is there already stays."""
        rows = [
            (
                response.key,
                source,
                response.text,
                None if response.token_ids is None else pack_ids(response.token_ids),
                response.finish_reason,
                response.prompt_tokens,
                response.completion_tokens,
                response.cached_tokens,
                response.started,
                response.seconds,
                response.attempts,
                response.engine,
            )
            for response in responses
        ]
        self._write({ADD_RESPONSE: rows})

    def add_failure(self, run: str, failure: Failure) -> None:
        """Record that a row was given up."""
        values = (run, failure.job, failure.row, failure.key, failure.error, failure.attempts)
        self._add(ADD_FAILURE, values)

    def add_attempt(self, run: str, attempt: FailedAttempt) -> None:
        """Record a try that brought no answer."""
        self._add(ADD_ATTEMPT, (run, *dataclasses.astuple(attempt)))

    # -- reading ---------------------------------------------------------------------------------------

    def knows(self, source: str) -> bool:
        """Whether any answer of this model and engine is stored."""
        return bool(self._rows("SELECT 1 FROM responses WHERE source = ? LIMIT 1", (source,)))

    def responses(self, keys: Sequence[str]) -> dict[str, Response]:
        """Return the stored answers among ``keys``."""
        found: dict[str, Response] = {}
        columns = ",".join(RESPONSE_COLUMNS)
        for start in range(0, len(keys), PAGE):
            part = keys[start : start + PAGE]
            marks = ",".join("?" * len(part))
            for row in self._rows(f"SELECT {columns} FROM responses WHERE key IN ({marks})", part):
                response = _response(row)
                found[response.key] = response
        return found

    def answers(self, run: str, job: str, after: int = -1) -> Iterator[Answered]:
        """Yield a job's recorded rows in order, those after a row, each with its answer if there is one.

        They are read page by page, so the store may be written meanwhile; the first pages are small, for whoever
        looks often and stops at once.
        """
        columns = ",".join(f"r.{name}" for name in RESPONSE_COLUMNS)
        query = f"""SELECT i.row, i.gold, i.turns, i.prompt_ids, f.row, {columns} FROM items i
                    LEFT JOIN responses r ON r.key = i.key
                    LEFT JOIN failures f ON f.run = i.run AND f.job = i.job AND f.row = i.row
                    WHERE i.run = ? AND i.job = ? AND i.row > ? ORDER BY i.row LIMIT ?"""
        size = FIRST_PAGE
        while page := self._rows(query, (run, job, after, size)):
            size = min(4 * size, PAGE)
            for row, gold, turns, ids, failed, *rest in page:
                response = _response(rest) if rest[0] is not None else None
                yield Answered(row, json.loads(gold), json.loads(turns), ids, response, failed is not None)
            after = page[-1][0]

    def jobs(self, run: str) -> list[str]:
        """Return the jobs of a run that have rows on record."""
        return [job for (job,) in self._rows("SELECT DISTINCT job FROM items WHERE run = ?", (run,))]

    def has_run(self, run: str) -> bool:
        """Whether a run has begun here, with rows on record or without."""
        query = "SELECT 1 FROM jobs WHERE run = ? UNION SELECT 1 FROM items WHERE run = ? LIMIT 1"
        return bool(self._rows(query, (run, run)))

    def expected_rows(self, run: str, job: str) -> int | None:
        """Return how many rows a job has in all, asked or not; None for a run of an older evalswap."""
        found = self._rows("SELECT rows FROM jobs WHERE run = ? AND job = ?", (run, job))
        return int(found[0][0]) if found else None

    def failures(self, run: str, job: str, most: int = -1) -> list[Failure]:
        """Return the rows of a job that were given up, the first ``most`` of them."""
        query = "SELECT key, job, row, error, attempts FROM failures WHERE run = ? AND job = ? ORDER BY row LIMIT ?"
        return [Failure(*row) for row in self._rows(query, (run, job, most))]

    def attempts(self, run: str, job: str) -> list[FailedAttempt]:
        """Return the tries of a job that brought no answer, in the order of their ends."""
        columns = "job, row, attempt, started, seconds, error"
        query = f"SELECT {columns} FROM attempts WHERE run = ? AND job = ? ORDER BY rowid"
        return [FailedAttempt(*row) for row in self._rows(query, (run, job))]

    def prompt_hashes(self, run: str, job: str) -> dict[str, Any]:
        """Return SHA-256 over all prompt ids of a job in order, their number, and how many prompts were cut.

        The first two are None where ids are missing, or rows: those that a stopped run never came to.
        """
        digest, rows, tokens, cut, with_ids, after = hashlib.sha256(), 0, 0, 0, True, -1
        query = f"""SELECT row, prompt_ids, truncated_from FROM items
                    WHERE run = ? AND job = ? AND row > ? ORDER BY row LIMIT {PAGE}"""
        while page := self._rows(query, (run, job, after)):
            for _, ids, truncated_from in page:
                rows += 1
                cut += truncated_from is not None
                if ids is None:
                    with_ids = False
                    continue
                digest.update(len(ids).to_bytes(8, "little") + ids)
                tokens += len(ids) // 4
            after = page[-1][0]
        whole = with_ids and rows == (self.expected_rows(run, job) or rows)
        return {
            "prompt_ids_sha256": digest.hexdigest() if whole else None,
            "prompt_tokens": tokens if whole else None,
            "prompts_cut": cut,
        }

    # -- SQL -------------------------------------------------------------------------------------------

    def _add(self, sql: str, values: Sequence[Any]) -> None:
        try:
            self._db.execute(sql, values)
        except sqlite3.Error as error:
            raise self._error("cannot be written", error) from error

    def _write(self, statements: Mapping[str, Sequence[Sequence[Any]]]) -> None:
        try:
            self._db.execute("BEGIN IMMEDIATE")
            for sql, rows in statements.items():
                self._db.executemany(sql, rows)
            self._db.execute("COMMIT")
        except sqlite3.Error as error:
            raise self._error("cannot be written", error) from error
        finally:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")

    def _rows(self, sql: str, values: Sequence[Any]) -> list[Sequence[Any]]:
        try:
            return self._db.execute(sql, values).fetchall()
        except sqlite3.Error as error:
            raise self._error("cannot be read", error, "it may be damaged: take another folder with -w") from error

    def _error(
        self,
        what: str,
        error: Exception,
        hint: str = "free disk space, or choose another work folder with -w; stored answers are kept",
    ) -> StoreError:
        return StoreError(f"{self.path} {what}: {error}", hint)


def _response(row: Sequence[Any]) -> Response:
    values = dict(zip(RESPONSE_COLUMNS, row, strict=True))
    if values["token_ids"] is not None:
        values["token_ids"] = unpack_ids(values["token_ids"])
    return Response(**values)


def pack_ids(ids: Sequence[int]) -> bytes:
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
