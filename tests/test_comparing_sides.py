"""Reading finished runs, and deciding what is compared with what on which rows."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from stored_runs import Row, Run, changed, numbered, write_opencompass, write_run

from evalswap.comparing.comparison import compare_runs
from evalswap.comparing.pairing import contender_names, key_of, pair_up, shared_rows
from evalswap.comparing.sides import read_sides
from evalswap.errors import ConfigError, StoreError


def test_a_run_is_read_as_it_was_written(tmp_path: Path) -> None:
    rows = numbered(3, lambda i: Row(text=f"It is {i}.", right=i != 1, pred=str(i)))
    (side,) = read_sides(write_run(tmp_path, Run("20260101_000000", rows)))
    assert (side.model, side.dataset, side.engine, side.metric) == ("tiny-hf", "gsm8k", "transformers", "accuracy")
    assert side.score == pytest.approx(200 / 3)
    output = side.outputs[1]
    assert (output.text, output.answer, output.right, output.gold) == ("It is 1.", "1", False, "1")
    assert output.token_ids == rows[1].ids
    assert output.prompt == "Question 1?"
    assert side.with_ids
    assert side.sampling["max_new_tokens"] == 64


def test_a_failed_request_is_no_answer(tmp_path: Path) -> None:
    rows = changed(numbered(4), {2: {"error": "no such luck"}})
    (side,) = read_sides(write_run(tmp_path, Run("20260101_000000", rows)))
    assert side.unanswered == (2,)
    assert side.failures == {2: "no such luck"}
    assert sorted(side.outputs) == [0, 1, 3]


def test_an_unfinished_run_is_refused_with_what_to_do(tmp_path: Path) -> None:
    folder = write_run(tmp_path, Run("20260101_000000", numbered(2), finished=False, scored=False))
    with pytest.raises(ConfigError, match="not come to its end") as caught:
        read_sides(folder)
    assert "-r 20260101_000000" in str(caught.value.hint)


@pytest.mark.parametrize("name", ["missing", "empty"])
def test_another_folder_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError):
        read_sides(tmp_path / name)


def test_a_renamed_run_and_one_without_its_store_say_so(tmp_path: Path) -> None:
    folder = write_run(tmp_path, Run("20260101_000000", numbered(2)))
    (side,) = read_sides(folder)
    assert len(side.outputs) == 2
    renamed = shutil.copytree(folder, tmp_path / "baseline")
    with pytest.raises(ConfigError, match="has no run named baseline") as caught:
        read_sides(renamed)
    assert "renamed, or copied" in (caught.value.hint or "")
    (tmp_path / "elsewhere").mkdir()
    alone = shutil.copytree(folder, tmp_path / "elsewhere" / folder.name)
    with pytest.raises(ConfigError, match=r"the answers of this run are not here: .*responses\.sqlite"):
        read_sides(alone)


def test_broken_results_are_named(tmp_path: Path) -> None:
    folder = write_run(tmp_path, Run("20260101_000000", numbered(2)))
    (folder / "results/tiny-hf/gsm8k.json").write_text('{"accuracy": 1, "det')
    with pytest.raises(StoreError, match=r"gsm8k\.json"):
        read_sides(folder)


def test_what_nobody_scored_is_scored_by_the_runs_own_config(tmp_path: Path) -> None:
    rows = numbered(3, lambda i: Row(text=f"So the answer is {i if i else 7}."))
    folder = write_run(tmp_path, Run("20260101_000000", rows, scored=False))
    (side,) = read_sides(folder)
    assert not side.scored  # no config tells how
    (folder / "configs").mkdir()
    (folder / "configs/20260101_000000_1.py").write_text(CONFIG)
    (side,) = read_sides(folder)
    assert [side.outputs[row].right for row in range(3)] == [False, True, True]
    assert side.outputs[0].answer == "7"


@pytest.mark.parametrize(
    ("engine", "model", "right"),
    [("transformers", "plain-hf", False), ("vllm", "tiny-vllm", True), ("openai", "tiny-openai", None)],
)
def test_what_nobody_scored_is_scored_with_the_post_processor_of_the_model_too(
    tmp_path: Path, engine: str, model: str, right: bool | None
) -> None:
    rows = [Row(text="The answer is 18.", gold="18")]
    folder = write_run(tmp_path, Run("20260101_000000", rows, engine, model, scored=False))
    (folder / "configs").mkdir()
    (folder / "configs/20260101_000000_1.py").write_text(CONFIG_OF_MODELS)
    (side,) = read_sides(folder)
    assert side.outputs[0].right is right  # None: no address is kept, so it is not known which of the models this is


CONFIG_OF_MODELS = """
models = [{'type': 'HuggingFacewithChatTemplate', 'path': './tiny', 'abbr': 'plain-hf'},
          {'type': 'HuggingFacewithChatTemplate', 'path': './tiny', 'abbr': 'tiny-hf',
           'pred_postprocessor': {'type': 'gsm8k_postprocess'}}]
datasets = [{'type': 'GSM8KDataset', 'abbr': 'gsm8k',
  'reader_cfg': {'input_columns': ['question'], 'output_column': 'answer'},
  'infer_cfg': {'prompt_template': {'template': {'round': [{'role': 'HUMAN', 'prompt': '{question}'}]}}},
  'eval_cfg': {'evaluator': {'type': 'Gsm8kEvaluator'}}}]
"""

CONFIG = """
models = [{'type': 'HuggingFacewithChatTemplate', 'path': './tiny', 'abbr': 'tiny-hf'}]
datasets = [{'type': 'GSM8KDataset', 'abbr': 'gsm8k',
  'reader_cfg': {'input_columns': ['question'], 'output_column': 'answer'},
  'infer_cfg': {'prompt_template': {'template': {'round': [{'role': 'HUMAN', 'prompt': '{question}'}]}}},
  'eval_cfg': {'evaluator': {'type': 'Gsm8kEvaluator'}, 'pred_postprocessor': {'type': 'gsm8k_postprocess'}}}]
"""


def test_the_start_of_a_stored_answer_s_engine_is_that_of_the_run_that_started_it(tmp_path: Path) -> None:
    first = write_run(tmp_path, Run("20260101_000000", numbered(2)))
    again = write_run(tmp_path, Run("20260101_000001", numbered(2)))
    record = json.loads((again / "run.json").read_text())
    record["models"]["tiny-hf"]["timings"] = {"load": 1.0}
    record["models"]["tiny-hf"]["answers"] |= {"asked": 0, "from_store": 2}
    (again / "run.json").write_text(json.dumps(record))
    assert read_sides(first)[0].record["timings"]["start"] == 12.0
    assert read_sides(again)[0].record["timings"] == {"load": 1.0, "start": 12.0}


# ---- OpenCompass


def test_an_opencompass_folder_is_outputs_only_and_scored_here(tmp_path: Path) -> None:
    texts = [("so 18", "He sells 18.\n#### 18"), ("so 3 eggs", "#### 4")]
    folder = write_opencompass(tmp_path / "old", "llama-3-8b-hf", "gsm8k", texts, 74.22)
    (side,) = read_sides(folder)
    assert (side.foreign, side.engine, side.with_ids, side.score) == (True, "unknown", False, 74.22)
    assert [output.right for output in side.outputs.values()] == [True, False]
    assert [output.gold for output in side.outputs.values()] == ["18", "4"]


@pytest.mark.parametrize(
    "details",
    [
        [{"pred": "a", "answer": "x", "correct": True}, {"pred": "b", "answer": "x", "correct": False}],
        {"type": "GEN", "0": {"predictions": "a", "correct": [True]}, "1": {"predictions": "b", "correct": [False]}},
    ],
)
def test_opencompass_details_are_taken_as_they_are(tmp_path: Path, details: object) -> None:
    folder = write_opencompass(tmp_path / "old", "m", "unheard_of", [("a", "x"), ("b", "x")], 50.0)
    path = folder / "results/m/unheard_of.json"
    path.write_text(json.dumps({"accuracy": 50.0, "details": details}))
    (side,) = read_sides(folder)
    assert [(output.right, output.answer) for output in side.outputs.values()] == [(True, "a"), (False, "b")]


def test_the_parts_of_an_opencompass_dataset_are_put_together(tmp_path: Path) -> None:
    folder = write_opencompass(tmp_path / "old", "m", "gsm8k", [("1", "1"), ("2", "2")], 50.0)
    predictions = folder / "predictions/m"
    (predictions / "gsm8k.json").rename(predictions / "gsm8k_0.json")
    for number in range(1, 11):
        (predictions / f"gsm8k_{number}.json").write_text(json.dumps({"0": {"prediction": str(number), "gold": "1"}}))
    (side,) = read_sides(folder)
    assert side.dataset == "gsm8k"
    assert [side.outputs[row].text for row in range(12)] == ["1", "2", *map(str, range(1, 11))]


def test_a_row_that_is_missing_in_a_part_shifts_no_other(tmp_path: Path) -> None:
    folder = write_opencompass(tmp_path / "old", "m", "gsm8k_0", [("a", "1")], 50.0)
    (folder / "results/m/gsm8k_0.json").unlink()
    for number, rows in enumerate(({"0": "a", "2": "c"}, {"0": "d"})):
        content = {row: {"prediction": text, "gold": "1"} for row, text in rows.items()}
        (folder / f"predictions/m/gsm8k_{number}.json").write_text(json.dumps(content))
    (side,) = read_sides(folder)
    assert {row: output.text for row, output in side.outputs.items()} == {0: "a", 2: "c", 3: "d"}


@pytest.mark.parametrize("missing", [0, 1])
def test_a_missing_part_of_an_opencompass_dataset_is_named(tmp_path: Path, missing: int) -> None:
    folder = write_opencompass(tmp_path / "old", "m", "gsm8k", [("1", "1")], 50.0)
    predictions = folder / "predictions/m"
    (predictions / "gsm8k.json").unlink()
    for number in {0, 1, 2} - {missing}:
        (predictions / f"gsm8k_{number}.json").write_text(json.dumps({"0": {"prediction": str(number), "gold": "1"}}))
    with pytest.raises(StoreError, match=rf"gsm8k_{missing}\.json: missing"):
        read_sides(folder)


def test_opencompass_datasets_whose_names_end_in_numbers_are_no_parts(tmp_path: Path) -> None:
    folder = write_opencompass(tmp_path / "old", "m", "subset_0", [("1", "1")], 50.0)
    for part in ("predictions", "results"):
        shutil.copy(folder / part / "m/subset_0.json", folder / part / "m/subset_2.json")
    assert [side.dataset for side in read_sides(folder)] == ["subset_0", "subset_2"]


@pytest.mark.parametrize(
    "content", ['{"0": {"prediction": ', "[1]", '{"0": {"prediction": ["a", "b"]}}', '{"a": {"prediction": "b"}}']
)
def test_broken_predictions_are_named(tmp_path: Path, content: str) -> None:
    folder = write_opencompass(tmp_path / "old", "m", "gsm8k", [("1", "1")], 50.0)
    (folder / "predictions/m/gsm8k.json").write_text(content)
    with pytest.raises((ConfigError, StoreError), match=r"gsm8k\.json"):
        read_sides(folder)


def test_a_dataset_nobody_can_score_has_outputs_to_compare_and_no_verdict(tmp_path: Path) -> None:
    old = write_opencompass(tmp_path / "a", "m-hf", "unheard_of", [("x", "1"), ("y", "2")], 74.0)
    new = write_opencompass(tmp_path / "b", "m-vllm", "unheard_of", [("x", "1"), ("z", "2")], 73.0)
    (dataset,) = compare_runs([read_sides(old), read_sides(new)]).datasets
    (against,) = dataset.others
    assert (dataset.reference.score, against.contender.score) == (74.0, 73.0)
    assert (against.compared, against.identical, against.verdict) == (2, 1, "inconclusive")
    assert against.statistics is None
    assert "No row is known to be right or wrong" in against.reasons[-1]


# ---- pairing


def _run(tmp_path: Path, number: int, engine: str, **changes: object) -> list:
    rows = changes.pop("rows", numbered(4))
    model = changes.pop("model", f"tiny-{engine.replace('transformers', 'hf')}")
    run = Run(f"20260101_00000{number}", rows, engine=engine, model=model, **changes)  # type: ignore[arg-type]
    return read_sides(write_run(tmp_path, run))


def test_the_same_checkpoint_is_compared_with_its_own_reference(tmp_path: Path) -> None:
    big, small = {"model": "big"}, {"model": "small"}
    first = _run(tmp_path, 0, "transformers", model="big-hf", facts=big)
    first += _run(tmp_path, 1, "transformers", model="small-hf", facts=small)
    second = _run(tmp_path, 2, "vllm", model="small-vllm", facts=small)
    second += _run(tmp_path, 3, "vllm", model="big-vllm", facts=big)
    pairings, notes = pair_up([first, second])
    assert [(p.reference.model, [side.model for side in p.others]) for p in pairings] == [
        ("big-hf", ["big-vllm"]),
        ("small-hf", ["small-vllm"]),
    ]
    assert notes == []


def test_two_engines_in_one_run_are_compared(tmp_path: Path) -> None:
    run = _run(tmp_path, 0, "transformers") + _run(tmp_path, 1, "vllm")
    pairings, _ = pair_up([run])
    assert [side.engine for side in pairings[0].others] == ["vllm"]


def test_what_has_no_counterpart_is_noted_and_nothing_in_common_is_an_error(tmp_path: Path) -> None:
    first = _run(tmp_path, 0, "transformers")
    second = _run(tmp_path, 1, "vllm") + _run(tmp_path, 2, "vllm", dataset="mmlu")
    _, notes = pair_up([first, second])
    assert len(notes) == 1
    assert "mmlu" in notes[0]
    with pytest.raises(ConfigError, match="nothing in common") as caught:
        pair_up([first, second[1:]])
    assert "tiny-vllm on mmlu" in str(caught.value.hint)


def test_names_are_short_where_they_can_be_and_always_unique(tmp_path: Path) -> None:
    hf, vllm = _run(tmp_path, 0, "transformers")[0], _run(tmp_path, 1, "vllm")[0]
    fine = _run(tmp_path, 2, "vllm", facts={"dtype": "float32"})[0]
    again = _run(tmp_path, 3, "vllm")[0]
    assert contender_names([hf, vllm]) == {key_of(hf): "transformers", key_of(vllm): "vllm"}
    assert list(contender_names([hf, vllm, fine]).values())[1:] == ["vllm bfloat16", "vllm float32"]
    names = list(contender_names([hf, vllm, fine, again]).values())
    assert len(set(names)) == 4


# ---- rows


def test_runs_of_other_rows_are_compared_only_when_told(tmp_path: Path) -> None:
    first = _run(tmp_path, 0, "transformers")[0]
    longer = _run(tmp_path, 1, "vllm", rows=numbered(9))[0]
    with pytest.raises(ConfigError, match="4 rows in 20260101_000000, 9 in 20260101_000001, 4 in both"):
        shared_rows(first, longer, common_only=False)
    rows, note = shared_rows(first, longer, common_only=True)
    assert rows == [0, 1, 2, 3]
    assert "4 rows that are in both" in str(note)


def test_rows_are_known_by_their_right_answers_and_questions(tmp_path: Path) -> None:
    first = _run(tmp_path, 0, "transformers")[0]
    shifted = _run(tmp_path, 1, "vllm", rows=changed(numbered(4), {3: {"gold": "99"}}))[0]
    other_file = _run(tmp_path, 2, "vllm", rows=changed(numbered(4), {1: {"question": "?"}}), rows_sha256="e" * 64)[0]
    renamed = _run(tmp_path, 3, "vllm", rows_sha256="e" * 64)[0]
    reworded = _run(tmp_path, 4, "vllm", rows=changed(numbered(4), {1: {"question": "?"}}))[0]
    for side, rows in ((shifted, [0, 1, 2]), (other_file, [0, 2, 3])):
        with pytest.raises(ConfigError, match="3 in both"):
            shared_rows(first, side, common_only=False)
        assert shared_rows(first, side, common_only=True)[0] == rows
    assert shared_rows(first, renamed, common_only=False) == ([0, 1, 2, 3], None)
    assert shared_rows(first, reworded, common_only=False) == ([0, 1, 2, 3], None)  # the contract tells of the prompt


def test_failed_rows_are_left_out_of_the_rows_that_are_compared(tmp_path: Path) -> None:
    first = _run(tmp_path, 0, "transformers")[0]
    failed = _run(tmp_path, 1, "vllm", rows=changed(numbered(4), {0: {"error": "500"}}))[0]
    assert shared_rows(first, failed, common_only=False) == ([1, 2, 3], None)
