"""A real command, killed with SIGKILL at random moments again and again: nothing is lost, nothing is asked twice."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from fake_openai import FakeServer, completion, serving

ROWS = 500
WINDOW = 8
LONGEST = 1.8  # seconds that a run is let live
CONFIG = """
from opencompass.models import OpenAISDK

models = [dict(type=OpenAISDK, abbr='api', path='demo', openai_api_base='{url}', key='EMPTY', retry=2,
               query_per_second=None, batch_size={window}, max_out_len=16, temperature=0.0)]
datasets = [dict(
    abbr='sums', type='GSM8KDataset', path={rows!r},
    reader_cfg=dict(input_columns=['question'], output_column='answer'),
    infer_cfg=dict(prompt_template=dict(template='{{question}}')),
    eval_cfg=dict(evaluator=dict(type='Gsm8kEvaluator'), pred_postprocessor=dict(type='gsm8k'),
                  dataset_postprocessor=dict(type='gsm8k_dataset')),
)]
"""


def right_for(row: int) -> bool:
    return row % 4 != 0


@pytest.mark.parametrize("kills", [5, pytest.param(50, marks=pytest.mark.e2e)])
def test_killed_again_and_again(tmp_path: Path, kills: int) -> None:
    seed = random.randrange(10**6)
    print(f"seed {seed}")
    chance = random.Random(seed)
    rows = tmp_path / "test.jsonl"
    lines = [{"question": f"What is {row} plus 0?", "answer": f"#### {row}"} for row in range(ROWS)]
    rows.write_text("".join(json.dumps(line) + "\n" for line in lines))
    numbers = {line["question"]: row for row, line in enumerate(lines)}
    # So slow that more than half of the kills cannot come too late: no run lasts longer than LONGEST.
    latency = LONGEST * 0.6 * kills * WINDOW / ROWS
    server = FakeServer(
        latency=latency,
        fault=lambda request, question, attempt: completion(
            f"It is {numbers[question] + (not right_for(numbers[question]))}."
        ),
    )
    config, work = tmp_path / "eval.py", tmp_path / "work"
    with serving(server):
        config.write_text(CONFIG.format(url=server.url, window=WINDOW, rows=str(rows)))
        command = [sys.executable, "-m", "evalswap", "run", str(config), "-w", str(work)]
        killed = 0
        for _ in range(kills):
            process = subprocess.Popen(
                command + (["-r"] if any(work.glob("2*")) and chance.random() < 0.5 else []),
                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            )  # fmt: skip
            time.sleep(chance.uniform(0.1, LONGEST))
            killed += process.poll() is None
            process.send_signal(signal.SIGKILL)
            process.wait()
        time.sleep(2 * latency)  # the server is done with what the last one asked
        asked = sum(server.asked.values())
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "COLUMNS": "200"})
    assert done.returncode == 0, done.stdout + done.stderr
    assert killed > kills / 2
    assert len(server.asked) == ROWS
    # Asked again is only what was in flight at a kill, and each time that is a window at most.
    assert sum(server.asked.values()) <= ROWS + killed * WINDOW
    assert Counter(server.asked).most_common(1)[0][1] <= 1 + killed
    assert asked > 0
    folder = sorted(work.glob("2*"))[-1]
    result = json.loads((folder / "results/api/sums.json").read_text())
    assert result["accuracy"] == 100 * sum(map(right_for, range(ROWS))) / ROWS
    assert "partial" not in result
    assert {int(row): entry["correct"] for row, entry in result["details"].items()} == {
        row: right_for(row) for row in range(ROWS)
    }
    predictions = json.loads((folder / "predictions/api/sums.json").read_text())
    assert [predictions[str(row)]["gold"] for row in range(ROWS)] == [str(row) for row in range(ROWS)]
    assert not list(folder.rglob("*.part"))
