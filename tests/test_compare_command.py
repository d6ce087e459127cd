"""``evalswap compare`` and ``evalswap report`` as a user gives them: on stored runs, bad input, and real engines."""

from __future__ import annotations

import csv
import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from fake_openai import FakeServer, serving
from stored_runs import Row, Run, changed, numbered, write_opencompass, write_run

from evalswap.cli import main
from evalswap.comparing.pairing import Pairing
from evalswap.comparing.records import DIFFERENCE_CLASSES, WiringProof
from evalswap.comparing.running import Rerunner
from evalswap.errors import EvalswapError
from evalswap.evaluation import RunOptions
from evalswap.reporting.wording import proof_words

HOSTILE = "\x1b[31m[bold]x[/] </script><script>alert(1)</script> | \x00 \u202e $x_1$ \ud800"


class Compared:
    """What a command left: its exit code, its screen, its files."""

    def __init__(self, code: int, screen: str, out: Path | None = None) -> None:
        self.code, self.screen, self.out = code, " ".join(screen.split()), out

    @property
    def record(self) -> dict[str, Any]:
        assert self.out is not None
        return dict(json.loads((self.out / "compare.json").read_text(encoding="utf-8", errors="surrogatepass")))

    @property
    def against(self) -> dict[str, Any]:
        return dict(self.record["datasets"][0]["others"][0])


@pytest.fixture
def compare(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("COLUMNS", "300")
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object, out: bool = False) -> Compared:
        folder = tmp_path / "out"
        words = ["compare", *map(str, arguments), *(["--out", str(folder)] if out else [])]
        code = main(words)
        shown = capsys.readouterr()
        assert "Traceback" not in shown.err
        return Compared(code, shown.out + shown.err, folder if out else None)

    return run


def _pair(work: Path, changes: dict[int, dict[str, Any]], count: int = 40, **of_other: Any) -> tuple[Path, Path]:
    rows = numbered(count)
    first = write_run(work, Run("20260101_000000", rows, seconds=2.0))
    of_other = {"engine": "vllm", "model": "tiny-vllm", "seconds": 0.5, **of_other}
    return first, write_run(work, Run("20260101_000001", changed(rows, changes), **of_other))


def test_two_runs_get_a_table_a_verdict_and_reasons(tmp_path: Path, compare: Any) -> None:
    flips = {i: {"ids": (11, 14, 2), "text": "no", "right": False, "pred": "9"} for i in range(12)}
    found = compare(*_pair(tmp_path / "work", flips), out=True)
    assert found.code == 0
    for words in (
        "70.00",
        "−30.00",
        "12 0",
        "70.0%",
        "different",
        "by chance alone p < 0.001",
        "12 of 40 outputs differ",
    ):
        assert words in found.screen
    against = found.against
    assert against["verdict"] == "different"
    assert (against["compared"], against["identical"], against["counts"]) == (40, 28, {"unexplained": 12})
    assert against["statistics"]["right_to_wrong"] == 12
    assert against["contender"]["infer_seconds"] == pytest.approx(4.4)
    assert against["speedup"] == pytest.approx(5.9 / 4.4)
    difference = against["differences"][0]
    assert difference["first"]["position"] == 1
    assert (difference["reference_answer"], difference["other_answer"], difference["gold"]) == ("5", "9", "0")
    with (found.out / "compare.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert [row["verdict"] for row in rows] == ["reference", "different"]
    assert float(rows[1]["delta"]) == pytest.approx(-30)
    markdown = (found.out / "compare.md").read_text()
    assert "| vllm 1.0 bfloat16, cpu | 70.00" in markdown
    for picture in re.findall(r"\((\S+\.svg)\)", markdown):
        ElementTree.parse(found.out / picture)
        assert (found.out / picture).with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert len(list(found.out.glob("*.svg"))) == 3
    assert (found.out / "report.html").is_file()


@pytest.mark.parametrize(
    ("flips", "fail_on", "code"),
    [(12, "different", 1), (12, "not-equivalent", 1), (12, None, 0), (0, "different", 0), (0, "not-equivalent", 1)],
)
def test_a_verdict_can_fail_a_pipeline(
    tmp_path: Path, compare: Any, flips: int, fail_on: str | None, code: int
) -> None:
    runs = _pair(tmp_path / "work", {i: {"right": False, "pred": "9"} for i in range(flips)})
    assert compare(*runs, *(["--fail-on", fail_on] if fail_on else [])).code == code


def test_enough_identical_rows_are_equivalent(tmp_path: Path, compare: Any) -> None:
    found = compare(*_pair(tmp_path / "work", {}, count=300), "--fail-on", "not-equivalent")
    assert found.code == 0
    assert "All 300 outputs are identical" in found.screen
    few = compare(*_pair(tmp_path / "few", {}, count=40))
    assert "inconclusive (needs n≈299)" in few.screen


def test_the_margin_is_the_user_s(tmp_path: Path, compare: Any) -> None:
    runs = _pair(tmp_path / "work", {}, count=40)
    assert "inconclusive" in compare(*runs).screen
    assert "within ±10 points" in compare(*runs, "--margin", "10").screen


def test_a_broken_contract_is_named_first(tmp_path: Path, compare: Any) -> None:
    changes = {i: {"right": False, "pred": "9", "prompt_ids": (1, 1, 5)} for i in range(12)}
    found = compare(*_pair(tmp_path / "work", changes, facts={"dtype": "float16"}), out=True)
    assert "different, not the same set-up" in found.screen
    first = found.against["reasons"][0]
    assert "prompt token ids (12 of 40 prompts differ)" in first
    assert "dtype (bfloat16 against float16)" in first
    assert found.against["counts"] == {"ids": 12}


def test_other_rows_are_an_error_until_told_otherwise(tmp_path: Path, compare: Any) -> None:
    first, _ = _pair(tmp_path / "work", {})
    longer = write_run(tmp_path / "work", Run("20260101_000002", numbered(60), engine="vllm", model="tiny-vllm"))
    refused = compare(first, longer)
    assert refused.code == 2
    assert "40 rows in 20260101_000000, 60 in 20260101_000002, 40 in both" in refused.screen
    told = compare(first, longer, "--common-rows")
    assert told.code == 0
    assert "compared on the 40 rows that are in both" in told.screen


def test_failed_requests_are_counted_and_never_wrong(tmp_path: Path, compare: Any) -> None:
    found = compare(*_pair(tmp_path / "work", {3: {"error": "no such luck"}}), out=True)
    assert "partial: 39 of 40" in found.screen
    assert "1 of 40 questions have no answer in tiny-vllm (row 3: no such luck)" in found.screen
    assert (found.against["compared"], found.against["contender"]["score"]) == (39, 100.0)


def test_a_run_without_ids_is_compared_by_its_texts_and_that_is_said(tmp_path: Path, compare: Any) -> None:
    changes = {i: {"ids": None, "prompt_ids": None} for i in range(40)}
    changes[0] |= {"text": "So it is 6.", "pred": "6", "right": False}
    found = compare(*_pair(tmp_path / "work", changes), out=True)
    assert (found.against["identical"], found.against["counts"]) == (39, {"unexplained": 1})
    assert found.against["differences"][0]["first"]["unit"] == "character"
    assert "only texts are known" in found.screen
    assert "Not known on both sides: prompt token ids" in found.screen


def test_an_old_pair_of_opencompass_runs_can_be_audited(tmp_path: Path, compare: Any) -> None:
    old = [(f"so {i}", f"#### {i}") for i in range(30)]
    new = [(f"so {i + (i < 2)}", f"#### {i}") for i in range(30)]
    folders = [
        write_opencompass(tmp_path / name, f"llama-3-8b-{name}", "gsm8k", texts, score)
        for name, texts, score in (("hf", old, 100.0), ("vllm", new, 90.0))
    ]
    found = compare(*folders, out=True)
    assert found.code == 0
    assert (found.against["statistics"]["right_to_wrong"], found.against["identical"]) == (2, 28)
    assert "its results say 90.00, its rows give 93.33" in found.screen
    assert found.against["contender"]["engine"] == "unknown"
    assert [item["item"] for item in found.against["contract"] if item["kept"] is False] == []


def test_a_narrow_terminal_gets_a_column_for_each_engine(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = _pair(tmp_path, {0: {"text": "no", "right": False}})
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["compare", *map(str, runs)]) == 0
    lines = capsys.readouterr().out.splitlines()
    table = [line for line in lines if line.startswith(("┃", "│"))]
    assert {len(line) for line in table} <= set(range(40, 81))
    (verdict,) = (line for line in table if line.startswith("│ verdict"))
    assert "reference" in verdict and "inconclusive" in verdict
    assert any("transformers 1.0" in line and "vllm 1.0" in line for line in table)  # no word is broken


def test_hostile_text_is_only_text(tmp_path: Path, compare: Any) -> None:
    model = "[bold]<script>$x_1$|`"
    text = HOSTILE.replace("\ud800", "")  # the store holds none
    changes = {0: {"text": text * 20_000, "ids": (9, 2), "pred": HOSTILE, "right": False, "question": text}}
    found = compare(*_pair(tmp_path / "work", changes, model=model, engine="vllm[/]|"), out=True)
    assert found.code == 0
    assert "\x1b" not in found.screen
    assert "vllm[/]|" in found.screen
    for path in found.out.glob("*.svg"):
        ElementTree.parse(path)
    markdown = (found.out / "compare.md").read_text()
    assert "<script" not in markdown.replace("\\<script", "")
    assert found.against["differences"][0]["other_text"].startswith("\x1b[31m[bold]")


def test_hostile_text_of_another_tool_is_only_text(tmp_path: Path, compare: Any) -> None:
    folders = [
        write_opencompass(tmp_path / name, f"m-{name}", "gsm8k\u202e", [(HOSTILE + name, HOSTILE)] * 3, 0.0)
        for name in ("hf", "vllm")
    ]
    found = compare(*folders, out=True)
    assert found.code == 0
    assert "\x1b" not in found.screen
    assert "\ufffd" in found.against["differences"][0]["other_text"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["missing", "missing"], "no such folder"),
        (["."], "not the folder of a finished run"),
        (["missing.py", "-a", "hf,vllm"], "not found"),
        (["missing.py"], "-a hf,vllm"),
        (["missing.py", "-a", "hf"], "nothing to compare it with"),
        (["missing.py", "-a", "hf,vlm"], "did you mean 'vllm'?"),
        ([], "nothing to compare"),
        ([".", "-a", "hf,vllm"], "-a names the engines"),
        ([".", ".", "--limit", "3"], "--limit is for engines to run"),
        ([".", ".", "-w", "elsewhere"], "--work-dir is for engines to run"),
        ([".", ".", "--pad-token-id", "0"], "--pad-token-id is for engines to run"),
        ([".", ".", "--api-in-flight", "5"], "--api-in-flight is for engines to run"),
        ([".", ".", "--no-warm"], "--no-warm is for engines to run"),
        ([".", ".", "--summarizer", "medium"], "--summarizer is for a config"),
        ([".", ".", "--config-dir", "mine"], "--config-dir is for a config"),
        ([".", ".", "--hang-timeout", "5"], "--hang-timeout is for engines to run"),
        (["eval.py", "-a", "hf,vllm", "--engine-args", "sglang.x=1"], "whose flag is it"),
        (
            ["eval.py", "-a", "hf,llamacpp,openai", "--engine-python", "x"],
            "name what runs each: EVALSWAP_TRANSFORMERS_PYTHON, EVALSWAP_LLAMACPP_SERVER",
        ),
    ],
)
def test_wrong_words_are_explained(compare: Any, words: Sequence[str], message: str) -> None:
    found = compare(*words)
    assert found.code == 2
    assert message in found.screen


def test_one_run_needs_a_second_one(tmp_path: Path, compare: Any) -> None:
    first, _ = _pair(tmp_path / "work", {})
    found = compare(first)
    assert found.code == 2
    assert "give a second run folder, or the config and -a hf,vllm" in found.screen


def test_a_proof_over_no_rows_proves_nothing() -> None:
    assert proof_words(WiringProof(0, 0, None)) == "skipped: no row was answered by both"


def test_an_unfinished_run_says_how_to_finish_it(tmp_path: Path, compare: Any) -> None:
    first, _ = _pair(tmp_path / "work", {})
    killed = write_run(tmp_path / "work", Run("20260101_000002", numbered(3), finished=False, scored=False))
    found = compare(first, killed)
    assert found.code == 2
    assert "-r 20260101_000002" in found.screen


def test_fourteen_thousand_rows_are_compared(tmp_path: Path) -> None:
    rows = numbered(14_000, lambda i: Row(text=f"It is {i}. " * 20, ids=(*range(100, 220), 2), right=i % 3 > 0))
    rows = [replace(row, prompt_ids=(*range(300, 420), *(row.prompt_ids or ()))) for row in rows]
    write_run(tmp_path, Run("20260101_000000", rows))
    other = {
        i: {"ids": (*range(100, 100 + i % 100), 7, 2), "text": "no", "right": i % 7 > 0} for i in range(0, 14_000, 3)
    }
    write_run(tmp_path, Run("20260101_000001", changed(rows, other), engine="vllm", model="tiny-vllm"))
    runs = sorted(map(str, tmp_path.glob("2*")))
    done = subprocess.run(
        [sys.executable, "-m", "evalswap", "compare", *runs], capture_output=True, text=True, check=True,
        env={**os.environ, "COLUMNS": "200"},
    )  # fmt: skip
    assert "of 14,000 outputs differ" in done.stdout


def test_report_writes_one_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = _pair(tmp_path / "work", {0: {"ids": (9, 2), "text": "no"}})
    assert main(["report", str(first), str(second), "--out", str(tmp_path / "page.html")]) == 0
    assert (tmp_path / "page.html").read_text().startswith("<!")
    assert main(["report", str(first)]) == 0
    assert (first / "report.html").is_file()
    assert "report.html" in capsys.readouterr().out


@pytest.mark.parametrize("record", [{"models": {"tiny-hf": {"***sets": {"gsm8k": {}}}}}, {"models": {}}, {"***": {}}])
def test_a_report_of_a_run_with_nothing_in_it_is_refused(
    record: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = _pair(tmp_path / "work", {})
    (first / "run.json").write_text(json.dumps(record))
    for runs in ([first], [second, first]):
        assert main(["report", *map(str, runs)]) == 2
        said = capsys.readouterr().err
        assert f"{first}: its run.json names no model with a dataset" in said
        assert f"-r {first.name}" in said


# ---- runs of its own

API = """
models = [dict(type='OpenAISDK', abbr='demo-api-{name}', path='demo', openai_api_base='{url}', key='EMPTY',
               query_per_second=None, max_seq_len=4096, temperature=0.0)]
datasets = [dict(type='GSM8KDataset', abbr='demo', path='evalswap/demo',
                 reader_cfg=dict(input_columns=['question'], output_column='answer'),
                 infer_cfg=dict(prompt_template=dict(template=dict(round=[dict(role='HUMAN', prompt='{{question}}')])),
                                inferencer=dict(max_out_len=64)),
                 eval_cfg=dict(evaluator=dict(type='Gsm8kEvaluator'),
                               pred_postprocessor=dict(type='gsm8k_postprocess'),
                               dataset_postprocessor=dict(type='gsm8k_dataset_postprocess')))]
"""


def test_two_servers_that_answer_the_same_are_compared(tmp_path: Path, compare: Any) -> None:
    runs = []
    for name in ("a", "b"):
        with serving(FakeServer()) as server:
            config = tmp_path / f"{name}.py"
            config.write_text(API.format(name=name, url=server.url))
            assert main(["run", str(config), "-w", str(tmp_path / "work"), "--limit", "12"]) == 0
        runs = sorted((tmp_path / "work").glob("2*"))
    found = compare(*runs, out=True)
    assert (found.against["compared"], found.against["identical"]) == (12, 12)
    proven = compare(*runs, "--prove", "4")
    assert "Wiring proof: skipped: the server was started by somebody else" in proven.screen


def hf_words(*words: object) -> list[object]:
    return ["--hf-path", "some/model", "--datasets", "demo", "--limit", 4, *words]


def test_an_engine_that_fails_is_named_and_a_lone_reference_is_no_comparison(compare: Any) -> None:
    """The server is the reference, and its options are no other engine's."""
    with serving(FakeServer()) as server:
        found = compare(*hf_words("-a", "openai,vllm", "--api-base", server.url, "--api-model", "demo"))
        assert found.code == 1
        assert sum(server.asked.values()) == 4
    assert "only the reference could be run" in found.screen
    assert "vllm is not compared: " in found.screen
    assert "some/model" in found.screen


def test_a_reference_that_fails_ends_the_comparison(compare: Any, tmp_path: Path) -> None:
    found = compare(*hf_words("-a", "openai,vllm", "--api-base", "http://127.0.0.1:9"))
    assert found.code == 1
    assert "no server answers at http://127.0.0.1:9/v1" in found.screen
    assert "only the reference" not in found.screen
    assert "vllm" not in found.screen


@pytest.mark.parametrize(
    ("words", "warm", "seconds"), [([], True, None), (["--no-warm"], False, None), (["--hang-timeout", 77], True, 77)]
)
def test_engines_are_started_and_watched_as_told(
    words: list[object], warm: bool, seconds: float | None, compare: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[RunOptions] = []

    class NoEvaluation:
        def __init__(self, experiment: Any, plans: Any, options: RunOptions, *_: Any) -> None:
            made.append(options)

        def run(self) -> int:
            raise EvalswapError("not here")

    monkeypatch.setattr("evalswap.evaluation.Evaluation", NoEvaluation)
    assert "not here" in compare(*hf_words("-a", "hf,vllm", *words)).screen
    assert [(options.warm, options.hang_seconds) for options in made] == [(warm, seconds)]


def test_what_proves_more_about_finished_runs_is_started_as_told(
    tmp_path: Path, compare: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[tuple[bool, float | None]] = []

    def samples(self: Rerunner, pairing: Pairing, rows: int) -> dict[Any, str]:
        made.append((self.warm, self.hang_seconds))
        return {}

    monkeypatch.setattr(Rerunner, "samples", samples)
    runs = _pair(tmp_path / "work", {})
    assert compare(*runs, "--prove", 2, "--no-warm", "--hang-timeout", 7).code == 0
    assert made == [(False, 7)]


@pytest.mark.e2e
@pytest.mark.timeout(1200)
def test_one_command_runs_proves_and_explains(
    tmp_path: Path, demo_model: Path, transformers_python: str, vllm_python: str
) -> None:
    """bfloat16 on two real engines; then again, with everything from the store and no engine started."""
    config = tmp_path / "eval.py"
    config.write_text(REAL.format(model=demo_model))
    words = ["--limit", "6", "--prove", "2", "--noise-floor", "-w", str(tmp_path / "work")]
    command = [sys.executable, "-m", "evalswap", "compare", str(config), "-a", "hf,vllm", *words]
    for round_number, out in enumerate((tmp_path / "first", tmp_path / "second")):
        done = subprocess.run([*command, "--out", str(out)], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        found = Compared(done.returncode, done.stdout, out)
        against, dataset = found.against, found.record["datasets"][0]
        assert [item["item"] for item in against["contract"] if item["kept"] is False] == []
        assert against["proof"] == {"rows": 2, "identical": 2, "skipped": None, "first": None}
        assert dataset["noise_floor"]["compared"] == 6
        assert set(against["counts"]) <= set(DIFFERENCE_CLASSES)
        for difference in against["differences"]:
            assert difference["first"]["reference_logprob"] is not None
        assert against["contender"]["start_seconds"] > 1
        assert ("vllm is up after" in done.stdout) == (round_number == 0)
        assert "to look at differing tokens" not in done.stdout or round_number == 0


REAL = """
models = [dict(type='HuggingFacewithChatTemplate', abbr='tiny-hf', path='{model}', max_seq_len=512, batch_size=4,
               model_kwargs=dict(torch_dtype='bfloat16'))]
datasets = [dict(type='GSM8KDataset', abbr='demo', path='evalswap/demo',
                 reader_cfg=dict(input_columns=['question'], output_column='answer'),
                 infer_cfg=dict(prompt_template=dict(template=dict(round=[dict(role='HUMAN', prompt='{{question}}')])),
                                inferencer=dict(max_out_len=24)),
                 eval_cfg=dict(evaluator=dict(type='Gsm8kEvaluator'),
                               pred_postprocessor=dict(type='gsm8k_postprocess'),
                               dataset_postprocessor=dict(type='gsm8k_dataset_postprocess')))]
"""
