"""A run's folder: a new one, an earlier one, and what a person is told where there is none."""

from __future__ import annotations

from pathlib import Path

import pytest

from evalswap.errors import ConfigError, EvalswapError, StoreError
from evalswap.reporting.folder import RunFolder


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
