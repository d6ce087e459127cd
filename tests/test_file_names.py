"""Abbrs become names of files that every file system takes."""

from __future__ import annotations

import string
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evalswap.file_names import LONGEST, file_name


@pytest.mark.parametrize(
    ("abbr", "name"),
    [
        ("gsm8k", "gsm8k"),
        ("meta-llama/Llama-3-8B", "meta-llama_Llama-3-8B"),
        ("..\\..\\x", "_.._x"),
        ("../../etc/passwd", "_.._etc_passwd"),
        ("..", "_"),
        ("数学", "数学"),
    ],
)
def test_what_an_abbr_is_called(abbr: str, name: str) -> None:
    assert file_name(abbr) == name


@given(st.text(st.characters(exclude_characters="\0", exclude_categories=("Cs",)), min_size=1, max_size=400))
def test_every_name_can_be_written_in_its_folder(tmp_path_factory: pytest.TempPathFactory, abbr: str) -> None:
    folder = tmp_path_factory.mktemp("names")
    file = folder / f"{file_name(abbr)}.json"
    file.write_text(abbr, encoding="utf-8")
    assert [path.name for path in folder.iterdir()] == [file.name]
    assert Path(file_name(abbr)).name == file_name(abbr)


@given(st.text(string.ascii_letters, min_size=LONGEST), st.text(string.ascii_letters, min_size=LONGEST))
def test_long_abbrs_keep_apart(one: str, other: str) -> None:
    assert (file_name(one) == file_name(other)) == (one == other)
    begin = "x" * LONGEST
    assert file_name(begin + "1") != file_name(begin + "2")
