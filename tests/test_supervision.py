"""Engines that die, hang or fall ill while they are asked: whole runs, on an engine that does so on demand."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import frail_engine
import pytest

from evalswap.serving import keeper

ROWS = 60
CONFIG = """
models = [dict(type='HuggingFaceBaseModel', abbr='tiny-hf', path={model!r}, max_seq_len=64, max_out_len=8)]
datasets = [dict(
    abbr='sums', type='GSM8KDataset', path={rows!r},
    reader_cfg=dict(input_columns=['question'], output_column='answer'),
    infer_cfg=dict(prompt_template=dict(template='{{question}}')),
    eval_cfg=dict(evaluator=dict(type='Gsm8kEvaluator'), pred_postprocessor=dict(type='gsm8k'),
                  dataset_postprocessor=dict(type='gsm8k_dataset')),
)]
"""


class Lab:
    """A tiny model, a dataset of sums, and the frail engine with its orders."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.work, self.notes = folder, folder / "work", folder / "frail"
        frail_engine.install(folder / "site")
        vocabulary = self._write_model(folder / "tiny")
        self.notes.mkdir()
        answers = [[vocabulary[str(row)], vocabulary["</s>"]] for row in range(ROWS)]
        (self.notes / "answers.json").write_text(json.dumps(answers))
        with (folder / "test.jsonl").open("w") as rows:
            for row in range(ROWS):
                rows.write(json.dumps({"question": f"What is {row} plus 0", "answer": f"#### {row}"}) + "\n")
        self.config = folder / "eval.py"
        self.config.write_text(CONFIG.format(model=str(folder / "tiny"), rows=str(folder / "test.jsonl")))
        self.orders()

    def _write_model(self, folder: Path) -> dict[str, int]:
        from tokenizers import Tokenizer, models, pre_tokenizers

        folder.mkdir()
        words = ["<unk>", "</s>", "What", "is", "plus", *(str(number) for number in range(ROWS))]
        vocabulary = {word: number for number, word in enumerate(words)}
        tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
        tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
        tokenizer.save(str(folder / "tokenizer.json"))
        names = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "</s>", "unk_token": "<unk>"}
        (folder / "tokenizer_config.json").write_text(json.dumps(names))
        config = {"architectures": ["Tiny"], "model_type": "llama", "eos_token_id": 1, "max_position_embeddings": 512}
        (folder / "config.json").write_text(json.dumps(config))
        return vocabulary

    def orders(self, **orders: Any) -> None:
        (self.notes / "orders.json").write_text(json.dumps(orders))

    def start(self, *arguments: str, command: str = "run") -> subprocess.Popen[str]:
        path = os.pathsep.join(filter(None, [str(self.folder / "site"), os.environ.get("PYTHONPATH")]))
        env = {**os.environ, "PYTHONPATH": path, "COLUMNS": "200", "FRAIL": str(self.notes)}
        env["EVALSWAP_HOME"] = str(self.folder / "home")
        words = [sys.executable, "-m", "evalswap", command, str(self.config), "-a", "frail"]
        place = ["-w", str(self.work)] if command == "run" else []
        return subprocess.Popen(
            [*words, *place, *arguments], env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )

    def run(self, *arguments: str) -> tuple[int, str]:
        process = self.start(*arguments)
        output, _ = process.communicate(timeout=120)
        assert "Traceback" not in output, output
        self.nothing_is_left()
        return process.returncode, output

    def said(self, name: str) -> list[str]:
        file = self.notes / name
        return file.read_text().split() if file.is_file() else []

    def nothing_is_left(self) -> None:
        deadline = time.monotonic() + 5
        while alive := {int(pid) for pid in self.said("starts")} & set(keeper.processes()):
            assert time.monotonic() < deadline, alive
            time.sleep(0.05)

    def results(self) -> dict[str, Any]:
        (file,) = sorted(self.work.glob("2*"))[-1].glob("results/*/sums.json")
        return json.loads(file.read_text())

    def record(self) -> dict[str, Any]:
        (record,) = json.loads((sorted(self.work.glob("2*"))[-1] / "run.json").read_text())["models"].values()
        return record

    def served(self) -> dict[str, Any]:
        """Return the registration of what is served, as soon as it is ready."""
        deadline = time.monotonic() + 60
        while True:
            for file in (self.folder / "home" / "servers").glob("*.json"):
                if (entry := json.loads(file.read_text()))["ready"]:
                    return entry
            assert time.monotonic() < deadline
            time.sleep(0.05)


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    return Lab(tmp_path)


def test_one_that_dies_is_started_again(lab: Lab) -> None:
    lab.orders(die_after=20, deaths=1, latency=0.02)
    code, output = lab.run()
    assert code == 0, output
    assert "frail died while running (exit code 7)" in output
    assert "the kernel fell over" in output  # the log's cause
    assert lab.results()["accuracy"] == 100.0
    assert len(lab.said("starts")) == 2
    assert lab.record()["restarts"] == 1
    assert set(Counter(lab.said("answered")).values()) == {1}  # what was answered was not asked again


def test_runs_use_the_tokenizers_that_are_kept_beside_an_engine(lab: Lab) -> None:
    with lab.start(command="serve") as kept:
        entry = lab.served()
        socket = Path(entry["tokenizers"])
        assert socket.is_socket()
        mine = f"/proc/{kept.pid}/task/{kept.pid}/children"
        (process,) = [
            int(pid)
            for pid in Path(mine).read_text().split()
            if "tokenizer_answering" in Path(f"/proc/{pid}/cmdline").read_text()
        ]
        for rows in ("20", str(ROWS)):  # the second time with that process dead
            output, _ = lab.start("--limit", rows).communicate(timeout=60)
            assert "using the warm frail" in output, output
            assert lab.results()["accuracy"] == 100.0
            if rows == "20":
                os.kill(process, signal.SIGKILL)
        kept.send_signal(signal.SIGINT)
        assert kept.wait(20) == 0
    assert not socket.parent.exists()
    lab.nothing_is_left()


def test_a_run_goes_on_when_a_kept_engine_ends_with_its_tokenizers(lab: Lab) -> None:
    lab.orders(die_after=20, deaths=1, latency=0.02)
    with lab.start(command="serve") as kept:
        lab.served()
        output, _ = lab.start().communicate(timeout=90)
        assert kept.wait(20) == 1  # its engine died
    assert "using the warm frail" in output, output
    assert lab.results()["accuracy"] == 100.0, output
    assert set(Counter(lab.said("answered")).values()) == {1}
    lab.nothing_is_left()


def test_one_that_hangs_is_started_again(lab: Lab) -> None:
    lab.orders(hang_after=20, deaths=1)
    code, output = lab.run("--hang-timeout", "2")
    assert code == 0, output
    assert "frail hangs: no answer and no other progress for" in output
    assert lab.results()["accuracy"] == 100.0
    assert set(Counter(lab.said("answered")).values()) == {1}


def test_one_that_says_it_is_ill_is_started_again(lab: Lab) -> None:
    lab.orders(hang_after=20, ill_after=20, deaths=1)
    code, output = lab.run("--hang-timeout", "4")
    assert code == 0, output
    assert "frail says that it is not healthy" in output
    assert lab.results()["accuracy"] == 100.0


def test_one_that_is_ill_and_fails_everything_costs_no_row(lab: Lab) -> None:
    lab.orders(ill_after=20, ill_fails=True, latency=0.02)
    code, output = lab.run()
    assert code == 0, output
    assert "frail says that it is not healthy" in output
    assert len(lab.said("starts")) == 2
    assert lab.results()["accuracy"] == 100.0
    assert set(Counter(lab.said("answered")).values()) == {1}


@pytest.mark.e2e  # the verdict takes its time
def test_an_engine_that_waits_for_nothing_does_not_hang(lab: Lab) -> None:
    lab.orders(fails=[13], latency=0.02)
    code, output = lab.run("--hang-timeout", "6")
    assert code == 1
    assert len(lab.said("starts")) == 1, output
    assert lab.results()["unanswered_rows"] == [13]
    assert "no kernel for this row" in output


def test_a_long_answer_is_no_hang(lab: Lab) -> None:
    lab.orders(latency=5.0, progress=True)
    code, output = lab.run("--hang-timeout", "2", "--limit", "8")
    assert code == 0, output
    assert len(lab.said("starts")) == 1
    assert "frail hangs" not in output


def test_one_prompt_that_kills_it_is_found(lab: Lab) -> None:
    lab.orders(poison=[13], latency=0.02)
    code, output = lab.run()
    assert code == 1
    result = lab.results()
    assert (result["accuracy"], result["answered"], result["unanswered_rows"]) == (100.0, ROWS - 1, [13])
    assert "row 13" in output
    assert "frail was lost each of the" in output
    assert set(Counter(lab.said("answered")).values()) == {1}
    # The next run asks that row alone.
    lab.orders()
    asked = len(lab.said("asked"))
    code, output = lab.run()
    assert code == 0, output
    assert lab.said("asked")[asked:] == ["13"]


def test_one_that_always_dies_is_given_up(lab: Lab) -> None:
    lab.orders(die_after=0)
    code, output = lab.run()
    assert code == 1
    assert "the kernel fell over" in output
    assert "lost 3 times without an answer between them: given up" in output
    assert len(lab.said("starts")) == 3
    assert lab.said("answered") == []
    assert f"{ROWS} without an answer" in output
    assert lab.record()["error"]


def test_one_that_does_not_start_again_is_given_up(lab: Lab) -> None:
    lab.orders(die_after=20, latency=0.02)
    process = lab.start()
    while not lab.said("deaths") and process.poll() is None:
        time.sleep(0.02)
    (lab.notes / "answers.json").unlink()  # it cannot start without
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "frail died while starting" in output
    assert "given up" in output
    assert lab.results()["answered"] == len(lab.said("answered"))


@pytest.mark.parametrize("times", [1, 2])
def test_ctrl_c_ends_the_engine_too(lab: Lab, times: int) -> None:
    lab.orders(latency=1.0)
    process = lab.start()
    while len(lab.said("answered")) < 5 and process.poll() is None:
        time.sleep(0.02)
    for _ in range(times):
        process.send_signal(signal.SIGINT)
        time.sleep(0.3)
    output, _ = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "the same command goes on from there" in output
    lab.nothing_is_left()
    answered = lab.said("answered")
    if times == 1:
        assert "in flight (Ctrl-C again stops now)" in output
        assert lab.results()["answered"] == len(answered)
        assert lab.results()["partial"] is True
        assert len(lab.said("asked")) == len(answered)
    lab.orders()
    code, output = lab.run()
    assert code == 0, output
    assert f"{len(answered)} from the store" in output
    assert lab.results()["accuracy"] == 100.0


def test_ctrl_c_while_it_starts(lab: Lab) -> None:
    lab.orders(hang_after=0)
    (lab.notes / "answers.json").rename(lab.notes / "later.json")
    os.mkfifo(lab.notes / "answers.json")  # to read it takes for ever, and so does the start
    process = lab.start()
    assert process.stdout is not None
    line = ""
    while not line.startswith("starting frail"):
        line = process.stdout.readline()
        assert line, "it ended early"
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=30)
    assert process.returncode == 130, output
    assert f"{ROWS} without an answer" in output
