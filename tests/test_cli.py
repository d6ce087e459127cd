"""How the command line ends: output that cannot be encoded or written, and Ctrl-C."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from evalswap import cli
from evalswap.errors import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_USAGE

ASCII = {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "C", "PYTHONIOENCODING": "ascii:strict"}


def test_what_the_output_cannot_encode_is_replaced(tmp_path: Path) -> None:
    config = tmp_path / "bad.py"
    config.write_text("datasets = []\nmodels = [dict(type='Überlang')]\n", encoding="utf-8")
    words = [sys.executable, "-m", "evalswap", "check", "--json", str(config)]
    found = subprocess.run(words, env={**os.environ, **ASCII}, text=True, capture_output=True, check=False)
    assert "Traceback" not in found.stderr
    assert found.returncode == EXIT_USAGE
    assert "?berlang" in found.stdout


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has a device that is always full")
def test_a_full_disk_is_an_error_line() -> None:
    with Path("/dev/full").open("w") as full:
        words = [sys.executable, "-m", "evalswap", "engines"]
        found = subprocess.run(words, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert found.returncode == EXIT_FAILED
    assert "the output cannot be written: No space left on device" in found.stderr
    assert "Traceback" not in found.stderr


@pytest.mark.parametrize(
    ("words", "stored"), [(["run", "x.py"], True), (["compare", "x.py"], True), (["serve", "x.py"], False)]
)
def test_ctrl_c_promises_stored_answers_only_where_there_are_some(
    words: list[str], stored: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def pressed(*_: Any) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(f"evalswap.commands.{words[0]}._{words[0]}", pressed)
    assert cli.main(words) == EXIT_INTERRUPTED
    shown = capsys.readouterr().err
    assert "interrupted" in shown
    assert ("every answer so far is stored" in shown) == stored


def test_ctrl_c_while_the_command_is_still_being_imported(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def pressed() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "build_parser", pressed)
    assert cli.main(["engines"]) == EXIT_INTERRUPTED
    assert capsys.readouterr().err == "\ninterrupted\n"
