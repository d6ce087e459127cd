"""Where GSM8K's rows come from: a path of the user's own never means the published benchmark."""

from __future__ import annotations

from pathlib import Path

import pytest

from evalswap.benchmarks.gsm8k import load
from evalswap.errors import DataError

ROW = '{{"question": "{0}?", "answer": "#### 1"}}\n'


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder without data, and the published GSM8K in another one."""
    (tmp_path / "published" / "gsm8k").mkdir(parents=True)
    (tmp_path / "published" / "gsm8k" / "test.jsonl").write_text(ROW.format("published"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("EVALSWAP_DATA", str(tmp_path / "published"))
    monkeypatch.delenv("COMPASS_DATA_CACHE", raising=False)
    return tmp_path / "here"


def question(path: str | None) -> object:
    return load(path).rows[0]["question"]


@pytest.mark.parametrize(
    "path", [None, "", "opencompass/gsm8k", "openai/gsm8k", "openai/gsm8k/", "gsm8k", "./data/gsm8k", "data/gsm8k/"]
)
def test_a_published_name_is_the_published_benchmark(path: str | None) -> None:
    assert question(path) == "published?"


@pytest.mark.parametrize("path", ["mine", "./mine/", "mine/test.jsonl", "mine/other.jsonl", "gsm8k"])
def test_what_is_there_is_read(elsewhere: Path, path: str) -> None:
    for folder in ("mine", "gsm8k"):
        (elsewhere / folder).mkdir()
        for name in ("test.jsonl", "other.jsonl"):
            (elsewhere / folder / name).write_text(ROW.format(name))
    assert question(path) == f"{Path(path).name if path.endswith('.jsonl') else 'test.jsonl'}?"
    assert question(str(elsewhere / path)) == question(path)


@pytest.mark.parametrize(
    ("path", "message", "hint"),
    [
        ("my-qestions", "dataset path not found: my-qestions", "did you mean 'my-questions'?"),
        ("my-questions/tset.jsonl", "dataset path not found: my-questions/tset.jsonl", "did you mean 'test.json'?"),
        ("my-questions", "dataset folder my-questions has no test.jsonl", "put test.jsonl into it"),
        ("opencompas/gsm8k", "dataset path not found: opencompas/gsm8k", "did you mean 'opencompass/gsm8k'?"),
        ("evalswap/dmeo", "dataset path not found: evalswap/dmeo", "did you mean 'evalswap/demo'?"),
        ("/nowhere/gsm8k", "dataset path not found: /nowhere/gsm8k", None),
        ("xyz", "dataset path not found: xyz", "a folder with test.jsonl, the file itself, or one of: opencompass/"),
        ("~no-such-user/x", "dataset path ~no-such-user/x cannot be read", None),
        pytest.param("x" * 5000, "dataset path x+ cannot be read", None, id="too-long"),
    ],
)
def test_a_path_that_is_not_there_is_an_error(elsewhere: Path, path: str, message: str, hint: str | None) -> None:
    (elsewhere / "my-questions").mkdir()
    (elsewhere / "my-questions" / "test.json").write_text(ROW.format("not JSON Lines by its name"))
    with pytest.raises(DataError, match=f"^{message}") as caught:
        load(path)
    if hint is not None:
        assert hint in (caught.value.hint or "")
