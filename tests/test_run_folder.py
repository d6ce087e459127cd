"""A run's folder: a new one, an earlier one, and what a person is told where there is none."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evalswap.config.experiment import from_config
from evalswap.config.loading import ConfigLoader
from evalswap.errors import ConfigError, EvalswapError, StoreError
from evalswap.redaction import Redactor
from evalswap.reporting.folder import RunFolder, write_text
from evalswap.reporting.manifest import score_of


def told(error: EvalswapError) -> str:
    return f"{error.message} → {error.hint}"


def test_runs_of_one_second_get_folders_of_their_own_and_the_last_is_the_latest(tmp_path: Path) -> None:
    folders = [RunFolder.create(tmp_path) for _ in range(3)]
    assert len({folder.path for folder in folders}) == 3
    assert RunFolder.existing(tmp_path, "latest").path == folders[-1].path


def test_the_latest_run_is_none_of_the_folders_that_compare_keeps_beside(tmp_path: Path) -> None:
    for name in ("20261122_205754", "20261122_205956", "compare_20261122_210409", "logs", "noise", "proof"):
        (tmp_path / name).mkdir()
    assert RunFolder.existing(tmp_path, "latest").name == "20261122_205956"
    with pytest.raises(ConfigError) as raised:
        RunFolder.existing(tmp_path, "1999")
    assert raised.value.hint == "runs: 20261122_205754, 20261122_205956"


def test_a_run_with_a_name_of_its_own_is_found_by_it(tmp_path: Path) -> None:
    (tmp_path / "before the change").mkdir()
    assert RunFolder.existing(tmp_path, "before the change").path == tmp_path / "before the change"


@pytest.mark.parametrize("name", ["latest", "20261122_205754"])
def test_where_there_is_no_run_the_other_work_folder_is_asked_for(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no earlier run|no such run") as raised:
        RunFolder.existing(tmp_path / "none", name)
    assert "the work folder of the earlier run with -w" in told(raised.value)


@pytest.mark.parametrize("inside", ["", "deeper"])
def test_a_file_in_the_place_of_the_work_folder_is_named(inside: str, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    with pytest.raises(StoreError, match=r"notes\.txt.*a part of this path is a file") as raised:
        RunFolder.create(tmp_path / "notes.txt" / inside)
    assert "choose another work folder with -w" in told(raised.value)


def test_a_work_folder_that_cannot_be_made_can_be_mended_or_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "mkdir", full)  # root may write everywhere, and disks of tests are not full
    with pytest.raises(StoreError, match="No space left on device") as raised:
        RunFolder.create(tmp_path)
    assert "free disk space or make the folder writable, or choose another work folder with -w" in told(raised.value)


# ---- what is written has no secret in it, and can be read again

TEXTS = st.text('ab1.-_/ "\\\n', max_size=6)
LONG_SECRET = "very-secret-value-0123456789"


def record(abbr: str, **more: Any) -> dict[str, Any]:
    entry = {"metrics": {"accuracy": 0.12345}, "total": 1234, "answered": 1234}
    return {"models": {abbr: {"engine": {"name": "llamacpp"}, "datasets": {"demo": entry}, **more}}}


@pytest.mark.parametrize("secret", ["llama", "data", "1234", "name", "EMPTY", "llamacpp", LONG_SECRET])
@pytest.mark.parametrize("abbr", ["risk-assessment-7b", "tiny", "data", "task-specific-model-with-a-long-name"])
def test_a_record_can_be_read_whatever_the_key_is(secret: str, abbr: str, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.write_manifest(record(abbr, error=f"the key {secret} is bad"), Redactor([secret]))
    manifest = folder.read_manifest()
    score = score_of(manifest, abbr, "demo")
    assert score is not None
    assert (score.metrics, score.total, score.answered) == ({"accuracy": 0.12345}, 1234, 1234)
    assert manifest["models"][abbr]["engine"]["name"] == "llamacpp"
    kept = secret in ("EMPTY", "llamacpp")
    assert manifest["models"][abbr]["error"] == f"the key {secret if kept else '***'} is bad"


@given(
    st.sampled_from(["data", "1234", "ab1a", "true", "null", LONG_SECRET]),
    st.dictionaries(TEXTS, st.recursive(st.integers() | st.floats(allow_nan=False) | TEXTS, st.lists, max_leaves=5)),
)
def test_the_written_record_is_the_record(secret: str, values: dict[str, Any]) -> None:
    with tempfile.TemporaryDirectory() as path:
        folder = RunFolder(Path(path))
        folder.write_manifest({secret: values, "said": [secret, f'"{secret}"\n']}, Redactor([secret]))
        if any(secret in text for text in json.dumps(values).split('"')):
            return  # tests/test_redaction.py has what becomes of these
        masked = "***" if secret != "null" else secret
        assert folder.read_manifest() == {secret: values, "said": [masked, f'"{masked}"\n']}


CONFIG = """
models = [{'type': 'OpenAISDK', 'path': '/mnt/disk-storage01/models/task-specific-7b', 'abbr': 'risk-assessment-7b',
  'openai_api_base': 'http://me:pass@host/v1', 'key': '%s', 'max_out_len': 1234}]
datasets = [{'type': 'GSM8KDataset', 'abbr': 'gsm8k',
  'reader_cfg': {'input_columns': ['question'], 'output_column': 'answer'},
  'infer_cfg': {'prompt_template': {'template': {'round': [{'role': 'HUMAN', 'prompt': '{question}'}]}}},
  'eval_cfg': {'evaluator': {'type': 'Gsm8kEvaluator'}, 'pred_postprocessor': {'type': 'gsm8k_postprocess'}}}]
"""


@pytest.mark.parametrize("secret", ["1234", "data", "model", LONG_SECRET, "a'b-\"c d" * 20])
def test_the_kept_config_is_a_config_without_the_key(secret: str, tmp_path: Path) -> None:
    source = tmp_path / "asked.py"
    source.write_text(CONFIG % secret.replace("'", "\\'"))
    asked = from_config(source, ConfigLoader())
    RunFolder(tmp_path).write_config(asked, Redactor([secret]))
    (kept,) = (tmp_path / "configs").glob("*.py")
    again = from_config(kept, ConfigLoader())
    assert again.datasets == asked.datasets
    (model,), (before,) = again.models, asked.models
    assert (model.abbr, model.path, model.max_out_len) == (before.abbr, before.path, 1234)
    assert (model.model_dump()["key"], model.model_dump()["openai_api_base"]) == ("***", "http://***@host/v1")


def test_a_record_that_is_no_json_is_named_with_what_to_do(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "20261122_205754")
    folder.path.mkdir()
    folder.manifest.write_text('{"accuracy": 0.***5}')
    with pytest.raises(StoreError, match=r"run\.json: not readable") as raised:
        folder.read_manifest()
    assert "-r 20261122_205754" in told(raised.value)


def test_what_is_no_file_is_not_replaced_by_one(tmp_path: Path) -> None:
    """A device that root may write to, for one."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(StoreError, match="pipe: there is something that is no file"):
        write_text(pipe, "report")
    assert pipe.is_fifo()
    link, file = tmp_path / "link", tmp_path / "file"
    file.write_text("old")
    link.symlink_to(file)
    write_text(link, "new")
    assert (link.is_symlink(), file.read_text()) == (True, "new")
