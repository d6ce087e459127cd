"""Memory does not grow with the number of rows, and stays small."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from test_run_killed import CONFIG

HONEST_SERVER = Path(__file__).parent.parent / "benchmarks" / "honest_server.py"
FEW, MANY = 4_000, 16_000
MOST = 150  # MB, without a tokenizer
MOST_GROWTH = 5.0  # MB for 12,000 rows: prompts and answers alone would be more than 12
SCRIPT = (
    "import sys; from evalswap.cli import main; code = main(sys.argv[1:]);"
    "print([line for line in open('/proc/self/status') if line.startswith('VmHWM')][0]); sys.exit(code)"
)

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="the peak is read in /proc"),
    pytest.mark.e2e,
]


@contextmanager
def serving(rows: Path) -> Iterator[str]:
    command = [sys.executable, str(HONEST_SERVER), str(rows), "--mode", "zero"]
    server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert server.stdin is not None
    assert server.stdout is not None
    try:
        yield f"http://127.0.0.1:{int(server.stdout.readline())}/v1"
    finally:
        server.stdin.close()
        server.wait(10)


def peak(folder: Path, count: int) -> float:
    """Return the most memory that a whole run of so many rows takes, in MB."""
    folder.mkdir()
    rows = folder / "test.jsonl"
    with rows.open("w") as file:
        for row in range(count):
            question = f"Row {row}: " + "how many apples are left? " * 10
            file.write(json.dumps({"question": question, "answer": f"#### {row}"}) + "\n")
    with serving(rows) as url:
        config = folder / "eval.py"
        config.write_text(CONFIG.format(url=url, window=64, rows=str(rows)).replace("path='demo'", "path='honest'"))
        command = [sys.executable, "-c", SCRIPT, "run", str(config), "-w", str(folder / "work")]
        done = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{count}/{count}" in done.stdout
    found = re.search(r"VmHWM:\s+(\d+) kB", done.stdout)
    assert found is not None
    return int(found[1]) / 1024


def test_memory_is_flat(tmp_path: Path) -> None:
    few, many = peak(tmp_path / "few", FEW), peak(tmp_path / "many", MANY)
    print(f"{FEW} rows: {few:.1f} MB, {MANY} rows: {many:.1f} MB")
    assert many < MOST
    assert many - few < MOST_GROWTH
