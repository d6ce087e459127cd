"""The store: durable answers, keys that say what decides an answer."""

from __future__ import annotations

import dataclasses
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evalswap.content_keys import ContentKeys
from evalswap.errors import StoreError
from evalswap.records import Failure, Prompt, Response, Sampling
from evalswap.store import FailedAttempt, Item, Store, unpack_ids

SAMPLING = Sampling(max_new_tokens=8, stop=("x",), stop_token_ids=(2,))


def response(key: str, ids: tuple[int, ...] | None = (1, 2)) -> Response:
    return Response(key, "text", ids, "stop", 3, 2, None, 1.0, 0.5, 1, "engine 1")


@given(st.lists(st.integers(0, 2**32 - 1), max_size=40).map(tuple))
def test_ids_survive_the_store(ids: tuple[int, ...]) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder))
        store.add_responses("source", [response("k", ids)])
        assert store.responses(["k"])["k"] == response("k", ids)
        store.add_items("run", "job", [Item(0, "k", "1", [], Prompt((), "t", ids))])
        (answered,) = store.answers("run", "job")
        assert unpack_ids(answered.prompt_ids or b"") == ids
        store.close()


def test_the_first_of_two_answers_stays(tmp_path: Path) -> None:
    """Two commands in one folder may ask the same beside each other."""
    store = Store(tmp_path)
    store.add_responses("source", [response("k", (1, 2))])
    store.add_responses("source", [response("k", (3, 4)), response("other")])
    assert store.responses(["k", "other"]) == {"k": response("k", (1, 2)), "other": response("other")}
    store.close()


def test_an_answer_that_lacks_something_is_not_lost_in_silence(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with pytest.raises(StoreError, match="NOT NULL"):
        store.add_responses("source", [response("a"), dataclasses.replace(response("b"), finish_reason=None)])  # type: ignore[arg-type]
    assert not store.responses(["a", "b"])
    store.close()


def test_each_part_of_a_request_changes_its_key() -> None:
    source = {"model": "m", "engine": "vllm", "engine_version": "1", "dtype": "float32"}
    keys, prompt = ContentKeys(source), Prompt((), "text", (1, 2, 3))
    base = keys.key(prompt, SAMPLING)
    assert base == ContentKeys(dict(reversed(source.items()))).key(prompt, SAMPLING)
    assert base == keys.key(dataclasses.replace(prompt, text="the text is not what is sent"), SAMPLING)
    others = {
        keys.key(dataclasses.replace(prompt, token_ids=(1, 2)), SAMPLING),
        keys.key(Prompt(({"role": "user", "content": "1"},), None, None), SAMPLING),
        keys.key(prompt, SAMPLING, repeat=1),
        *(ContentKeys(source | {name: "other"}).key(prompt, SAMPLING) for name in source),
    }
    changes = {"max_new_tokens": 9, "min_new_tokens": 1, "seed": 7, "stop": ("y",), "stop_token_ids": (3,)}
    for field in dataclasses.fields(Sampling):
        value = changes.get(field.name, 0.5 if field.name != "top_k" else 3)
        others.add(keys.key(prompt, dataclasses.replace(SAMPLING, **{field.name: value})))
    assert base not in others
    assert len(others) == 3 + len(source) + len(dataclasses.fields(Sampling))


def test_answers_come_in_row_order_and_missing_ones_are_none(tmp_path: Path) -> None:
    store = Store(tmp_path)
    items = [Item(row, f"k{row}", str(row), [], Prompt((), None, None)) for row in (2, 0, 1)]
    store.add_items("run", "job", items)
    store.add_responses("source", [response("k1", None)])
    store.add_failure("run", Failure("k0", "job", 0, "no luck", 3))
    answers = list(store.answers("run", "job"))
    assert [(a.row, a.response is not None) for a in answers] == [(0, False), (1, True), (2, False)]
    assert store.failures("run", "job") == [Failure("k0", "job", 0, "no luck", 3)]
    assert [a.settled for a in answers] == [True, True, False]
    assert [a.row for a in store.answers("run", "job", after=0)] == [1, 2]
    store.begin_run("run", {"job": 3})
    assert list(store.answers("run", "job")) == []
    assert store.expected_rows("run", "job") == 3
    assert store.failures("run", "job") == []
    assert store.responses(["k1"])  # forgetting a run's rows forgets no answer
    assert store.knows("source")
    assert not store.knows("elsewhere")
    store.close()


def test_answers_are_read_page_by_page_while_others_are_added(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.begin_run("run", {"job": 2000})
    for start in range(0, 2000, 500):
        rows = range(start, start + 500)
        store.add_items("run", "job", [Item(row, f"k{row}", str(row), [], Prompt((), None, None)) for row in rows])
    seen = []
    for answered in store.answers("run", "job"):
        store.add_responses("source", [response(f"k{answered.row}")])
        seen.append(answered.row)
    assert seen == list(range(2000))
    assert len(store.responses([f"k{row}" for row in range(2000)])) == 2000
    store.close()


def test_failed_attempts_are_on_record(tmp_path: Path) -> None:
    store = Store(tmp_path)
    attempts = [FailedAttempt("job", 3, number, 1.0, 0.5, f"HTTP {number}") for number in (1, 2)]
    for attempt in attempts:
        store.add_attempt("run", attempt)
    assert store.attempts("run", "job") == attempts
    assert store.attempts("run", "other") == []
    store.close()


def test_prompts_have_a_hash_only_if_all_of_them_are_there(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.begin_run("run", {"job": 2})
    items = [Item(row, f"k{row}", "", [], Prompt((), None, (row, 5))) for row in range(2)]
    store.add_items("run", "job", items[:1])
    assert store.prompt_hashes("run", "job")["prompt_ids_sha256"] is None
    store.add_items("run", "job", items[1:])
    hashes = store.prompt_hashes("run", "job")
    assert len(hashes["prompt_ids_sha256"]) == 64
    assert hashes["prompt_tokens"] == 4
    store.close()


def test_a_store_of_an_older_evalswap_goes_on(tmp_path: Path) -> None:
    """Its tables were without row ids, and it had neither jobs nor attempts."""
    store = Store(tmp_path)
    store.close()
    db = sqlite3.connect(tmp_path / "responses.sqlite", isolation_level=None)
    for table in ("responses", "items", "failures"):
        (sql,) = db.execute("SELECT sql FROM sqlite_master WHERE name = ?", (table,)).fetchone()
        db.execute(f"DROP TABLE {table}")
        db.execute(f"{sql} WITHOUT ROWID")
    db.execute("DROP TABLE jobs")
    db.execute("DROP TABLE attempts")
    db.close()
    store = Store(tmp_path)
    store.add_items("run", "job", [Item(0, "k0", "1", [], Prompt((), None, None))])
    store.add_responses("source", [response("k0")])
    (answered,) = store.answers("run", "job")
    assert answered.response == response("k0")
    assert store.expected_rows("run", "job") is None
    store.close()


def test_an_answer_survives_kill_9(tmp_path: Path) -> None:
    script = """
import os, signal, sys
from pathlib import Path
from evalswap.records import Response
from evalswap.store import Store
store = Store(Path(sys.argv[1]))
for i in range(50):
    store.add_responses("s", [Response(f"k{i}", "t", (i,), "stop", 1, 1, None, 0.0, 0.0, 1, "e")])
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)])
    assert done.returncode == -signal.SIGKILL
    store = Store(tmp_path)
    assert len(store.responses([f"k{i}" for i in range(50)])) == 50
    store.close()


def test_no_answer_waits_for_the_disk(tmp_path: Path) -> None:
    store = Store(tmp_path)
    before = store.path.stat().st_size
    for i in range(3000):
        store.add_responses("s", [response(f"k{i}", tuple(range(200)))])
    # All of them are in the log alone: writing it back is what waits for the disk, and it waits for the end.
    assert store.path.stat().st_size == before
    log = store.path.with_name("responses.sqlite-wal")
    assert log.stat().st_size > 3000 * 4 * 200
    store.close()
    assert not log.exists()
    store = Store(tmp_path)
    assert len(store.responses([f"k{i}" for i in range(3000)])) == 3000
    store.close()


def test_after_what_cannot_be_stored_the_store_goes_on(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with pytest.raises(OverflowError):
        store.add_responses("s", [response("k0"), response("k1", (-1,))])
    with pytest.raises(OverflowError):
        store.add_responses("s", [response("k0"), dataclasses.replace(response("k1"), prompt_tokens=10**30)])
    assert not store.responses(["k0"])
    store.add_responses("s", [response("k2")])
    store.close()
    store = Store(tmp_path)
    assert list(store.responses(["k0", "k1", "k2"])) == ["k2"]
    store.close()


def test_the_log_does_not_grow_for_ever(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for i in range(300):
        store.add_responses("s", [response(f"k{i}", tuple(range(100_000)))])  # 120 MB
    assert store.path.with_name("responses.sqlite-wal").stat().st_size < 80e6
    store.close()


def test_a_damaged_store_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "responses.sqlite").write_bytes(b"this is no database, " * 100)
    with pytest.raises(StoreError, match=r"responses\.sqlite cannot be opened"):
        Store(tmp_path)


def test_a_full_disk_is_a_clear_error(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store._db.execute("PRAGMA max_page_count = 20")  # as good as a full disk: SQLITE_FULL
    with pytest.raises(StoreError, match="cannot be written"):
        for i in range(1000):
            store.add_responses("s", [response(f"k{i}", tuple(range(1000)))])
    assert store.responses(["k0"])
    store.close()
