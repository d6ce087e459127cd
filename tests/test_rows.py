"""Rows are read from their file when they are wanted: what a list of them would be, without the list."""

from __future__ import annotations

import hashlib
import json
from codecs import BOM_UTF8
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evalswap.benchmarks.files import MARK_EVERY, read_jsonl
from evalswap.errors import DataError

COUNT = 3 * MARK_EVERY + 7
ROWS = [{"question": f"What is {row}?\u2028 ü", "answer": f"#### {row}"} for row in range(COUNT)]
PLACE = st.none() | st.integers(-COUNT - 2, COUNT + 2)


def write(file: Path) -> Path:
    lines = (json.dumps(row, ensure_ascii=row["answer"].endswith("3")) for row in ROWS)
    file.write_bytes("".join(f"{line}\n" + "\n" * (i % 5 == 0) for i, line in enumerate(lines)).encode().rstrip(b"\n"))
    return file


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("rows") / "test.jsonl")


def test_all_rows_in_order(file: Path) -> None:
    rows, sha256 = read_jsonl(file, ("question", "answer"))
    assert list(rows) == list(rows) == ROWS
    assert len(sha256) == 64


@given(start=PLACE, stop=PLACE, step=st.none() | st.integers(-50, 50).filter(bool), then=PLACE)
def test_slices_are_those_of_a_list(file: Path, start: int | None, stop: int | None, step: int | None,
                                    then: int | None) -> None:  # fmt: skip
    rows, _ = read_jsonl(file, ())
    chosen, wanted = rows[start:stop:step][:then], ROWS[start:stop:step][:then]
    assert len(chosen) == len(wanted)
    if len(wanted) <= 60 or step in (None, 1):  # each of the others is read by itself
        assert list(chosen) == wanted
    if wanted:
        assert chosen[-1] == wanted[-1]
        assert chosen[len(wanted) // 2] == wanted[len(wanted) // 2]
    with pytest.raises(IndexError):
        chosen[len(wanted)]


def test_a_byte_order_mark_is_no_part_of_the_first_row(file: Path, tmp_path: Path) -> None:
    marked = tmp_path / "test.jsonl"
    marked.write_bytes(BOM_UTF8 + file.read_bytes())
    rows, sha256 = read_jsonl(marked, ("question", "answer"))
    assert list(rows) == ROWS
    assert (rows[0], rows[-1]) == (ROWS[0], ROWS[-1])
    assert sha256 == hashlib.sha256(marked.read_bytes()).hexdigest()


@pytest.mark.parametrize("shape", [BOM_UTF8 + b'\n\n{"question": 1}', b'{"question": 1}', b'\n{"question": 1}\n'])
def test_the_first_row_is_found_however_the_file_begins(tmp_path: Path, shape: bytes) -> None:
    (tmp_path / "test.jsonl").write_bytes(shape)
    assert list(read_jsonl(tmp_path / "test.jsonl", ("question",))[0]) == [{"question": 1}]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"question": 1}\n{"quest', r"test.jsonl:2: not a whole JSON object"),
        (b'{"question": 1}\n\n[1]\n', r"test.jsonl:3: a JSON object is wanted, not list"),
        (b'{"other": 1}\n', r"test.jsonl:1: the key 'question' is missing"),
        (b'{"question": "\xff"}\n', r"test.jsonl:1: not UTF-8"),
        (b"\n \n", "no rows in it"),
        (BOM_UTF8, "no rows in it"),
        (BOM_UTF8 + b'{"quest', r"test.jsonl:1: not a whole JSON object"),
    ],
)
def test_a_broken_file_is_named_with_its_line(tmp_path: Path, content: bytes, message: str) -> None:
    file = tmp_path / "test.jsonl"
    file.write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_jsonl(file, ("question",))


def test_a_file_that_changes_is_an_error(tmp_path: Path) -> None:
    file = write(tmp_path / "test.jsonl")
    rows, _ = read_jsonl(file, ())
    with file.open("a") as more:
        more.write('\n{"question": "one more"}\n')
    with pytest.raises(DataError, match="was changed while it was read"):
        list(rows)
