"""benchmarks/asking.py works, on few rows, and its server's floors are what it says."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"


def test_the_table_is_filled_and_nothing_is_lost_or_doubled() -> None:
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / "asking.py"), "zero", "faults", "--requests", "100"],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [line for line in done.stdout.splitlines() if line.startswith("| ")][1:]
    assert len(lines) == 2
    for line in lines:
        assert line.endswith("| score exact; once |"), line


def test_the_servers_latencies_are_what_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from honest_server import MODES, latencies

    rows = [{"question": "q" * (i % 97), "answer": "a" * (i % 89)} for i in range(1319)]
    for mode in MODES:
        seconds = latencies(rows, mode)
        assert seconds == latencies(json.loads(json.dumps(rows)), mode)  # fixed beforehand
        if mode.startswith("lognormal"):
            assert statistics.mean(seconds) == pytest.approx(1.0, rel=0.01)
            assert 7.0 < max(seconds) < 7.8
    by_prompt = latencies(rows, "lognormal-prompt")
    assert rows[by_prompt.index(max(by_prompt))]["question"] == "q" * 96
