"""Whole comparisons: several datasets, a noise floor, a single run, and how runs are done again."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from stored_runs import Run, changed, numbered, write_opencompass, write_run

from evalswap.comparing.comparison import Evidence, alone, compare_runs, wiring_proof
from evalswap.comparing.divergence import Logprobs, Question
from evalswap.comparing.origin import spec_of
from evalswap.comparing.outputs import Output, Side
from evalswap.comparing.pairing import Pairing, key_of
from evalswap.comparing.pooling import FEWEST
from evalswap.comparing.running import Rerunner, in_float32, no_float32, proof_of, transformers_plan
from evalswap.comparing.sides import read_sides
from evalswap.comparing.statistics import wilson_interval
from evalswap.config.specs import parse_model
from evalswap.errors import ConfigError
from evalswap.prompting.tokenizer_process import TokenizerProcess
from evalswap.reporting.comparison_table import show_comparison


def _runs(tmp_path: Path, datasets: dict[str, dict[int, dict[str, Any]]], rows: int = 200) -> list[list[Side]]:
    """Return the sides of two runs: on each dataset the second changes some rows."""
    runs: list[list[Side]] = [[], []]
    for number, (dataset, changes) in enumerate(datasets.items()):
        base = numbered(rows)
        for side, (engine, model) in enumerate((("transformers", "tiny-hf"), ("vllm", "tiny-vllm"))):
            own = changed(base, changes) if side else base
            folder = write_run(tmp_path / f"{side}", Run(f"20260101_{number:06}", own, engine, model, dataset))
            # one run of many datasets, as Side sees it
            runs[side] += [replace(found, folder=tmp_path / f"{side}") for found in read_sides(folder)]
    return runs


WRONG = {"right": False, "pred": "9"}


def test_p_values_are_adjusted_over_the_datasets(tmp_path: Path) -> None:
    flips = dict.fromkeys(range(7), WRONG)
    (only,) = compare_runs(_runs(tmp_path / "one", {"a": flips})).datasets
    found = only.others[0]
    assert found.statistics is not None
    assert found.statistics.mcnemar_p == pytest.approx(2 * 0.5**7)
    assert found.verdict == "different"
    several = compare_runs(_runs(tmp_path / "six", {"a": flips} | {name: {} for name in "bcdef"})).datasets
    first = several[0].others[0]
    assert first.statistics is not None
    assert first.statistics.mcnemar_p_adjusted == pytest.approx(6 * 2 * 0.5**7)
    assert first.verdict == "inconclusive"
    assert "after Holm" in first.reasons[0]


def test_many_small_datasets_are_judged_as_one_too(tmp_path: Path) -> None:
    generator = random.Random(3)
    datasets = {
        f"subject_{i:02}": {generator.randrange(200): {} if i % 2 else WRONG} for i in range(FEWEST + 2)
    }  # in every second dataset one answer flips
    comparison = compare_runs(_runs(tmp_path, datasets))
    pooled, *each = comparison.datasets
    assert pooled.dataset == f"all {FEWEST + 2} datasets"
    assert {dataset.others[0].verdict for dataset in each} == {"inconclusive"}
    against = pooled.others[0]
    assert against.statistics is not None
    assert (against.compared, against.statistics.rows, against.statistics.groups) == (2400, 2400, FEWEST + 2)
    assert against.verdict == "equivalent"
    assert pooled.reference.score == 100.0
    console = Console(width=200, record=True)
    show_comparison(console, comparison)
    text = console.export_text()
    assert text.count("The difference is within") == 1  # reasons of the whole, not of each subject
    assert text.count("subject_") == FEWEST + 2


def test_a_contender_without_all_datasets_is_not_judged_over_all(tmp_path: Path) -> None:
    names = [f"subject_{i}" for i in range(FEWEST)]
    reference, full = _runs(tmp_path, {name: {} for name in names}, rows=30)
    part = [replace(side, folder=tmp_path / "part", model="tiny-sglang") for side in full[:3]]
    unscored = [
        replace(
            side, folder=tmp_path / "unscored", model="tiny-lmdeploy", outputs=_unscored(side) if i else side.outputs
        )
        for i, side in enumerate(full)
    ]
    comparison = compare_runs([reference, full, part, unscored])
    pooled = comparison.datasets[0]
    assert pooled.dataset == "all 10 datasets"
    assert [against.contender.name for against in pooled.others] == ["tiny-vllm"]
    assert comparison.notes == (
        "tiny-sglang is not judged over all 10 datasets: it is compared on 3 of them",
        "tiny-lmdeploy is not judged over all 10 datasets: it is scored on 1 of them",
    )
    nobody = compare_runs([reference, part, [*full[3:]]])  # each has some: nothing is judged over all
    assert [dataset.dataset for dataset in nobody.datasets] == names
    assert len(nobody.notes) == 2


def _unscored(side: Side) -> dict[int, Output]:
    return {row: replace(output, right=None) for row, output in side.outputs.items()}


def test_a_pooled_score_has_an_interval_that_rows_can_support(tmp_path: Path) -> None:
    pooled = compare_runs(_runs(tmp_path, {f"subject_{i}": {} for i in range(FEWEST)}, rows=3)).datasets[0]
    assert pooled.reference.interval == wilson_interval(30, 30)  # all right: clustered by dataset it has no width


def test_answers_that_are_drawn_have_no_near_ties_and_that_is_said(tmp_path: Path) -> None:
    rows = numbered(4)
    runs = [
        read_sides(write_run(tmp_path / engine, Run("20260101_000000", made, engine, sampling={"temperature": 0.7})))
        for engine, made in (
            ("transformers", rows),
            ("vllm", changed(rows, {1: {"ids": (11, 9, 2), "text": "It is 5."}})),
        )
    ]
    (dataset,) = compare_runs(runs, explainer=_Tied()).datasets
    assert dict(dataset.others[0].counts) == {"unexplained": 1}
    assert "Answers are drawn" in dataset.others[0].reasons[-1]
    (same,) = compare_runs([runs[0], [replace(runs[0][0], folder=tmp_path)]]).datasets
    assert not any("drawn" in reason for reason in same.others[0].reasons)  # nothing differs


def test_few_datasets_are_not_pooled(tmp_path: Path) -> None:
    assert len(compare_runs(_runs(tmp_path, {"a": {}, "b": {}}, rows=20)).datasets) == 2


def test_only_flips_beyond_the_reference_s_own_count(tmp_path: Path) -> None:
    runs = _runs(tmp_path, {"gsm8k": dict.fromkeys(range(6), WRONG)})
    reference = runs[0][0]
    noisy = changed(numbered(200), dict.fromkeys((3, 77, 78, 79), WRONG))
    folder = write_run(tmp_path / "noise", Run("20260101_000009", noisy, facts={"batch_size": 4}))
    evidence = Evidence(noise={(key_of(reference), "gsm8k"): read_sides(folder)[0]})
    (dataset,) = compare_runs(runs, evidence=evidence).datasets
    assert dataset.noise_floor is not None
    assert dataset.noise_floor.contender.name == "transformers at batch size 4"
    statistics = dataset.others[0].statistics
    assert statistics is not None
    assert statistics.excess_flips == pytest.approx(2)
    assert "beyond that noise are +2 flips" in dataset.others[0].reasons[-1]


def test_a_single_run_can_be_shown(tmp_path: Path) -> None:
    comparison = alone(_runs(tmp_path, {"gsm8k": {}}, rows=5)[0])
    assert comparison.datasets[0].reference.name == "transformers"
    show_comparison(Console(width=200, quiet=True), comparison)


def test_a_proof_names_the_first_difference(tmp_path: Path) -> None:
    reference, other = (run[0] for run in _runs(tmp_path, {"gsm8k": {3: {"ids": (11, 9, 2)}, 5: {"ids": (4, 2)}}}, 8))
    proof = wiring_proof(reference, other)
    assert (proof.rows, proof.identical) == (8, 6)
    assert proof.first is not None
    assert (proof.first.row, proof.first.first.position) == (3, 1)
    assert wiring_proof(reference, reference).identical == 8


# ---- running again

CONFIG = """
models = [{'type': 'HuggingFacewithChatTemplate', 'path': './tiny', 'abbr': 'other-hf'},
          {'type': 'HuggingFacewithChatTemplate', 'path': './tiny', 'abbr': 'tiny-hf',
           'model_kwargs': {'dtype': 'bfloat16', 'use_safetensors': True}}]
datasets = [{'type': 'GSM8KDataset', 'abbr': 'gsm8k',
  'reader_cfg': {'input_columns': ['question'], 'output_column': 'answer'},
  'infer_cfg': {'prompt_template': {'template': {'round': [{'role': 'HUMAN', 'prompt': '{question}'}]}}},
  'eval_cfg': {'evaluator': {'type': 'Gsm8kEvaluator'}}}]
"""


def _with_config(side: Side) -> Side:
    (side.folder / "configs").mkdir()
    (side.folder / "configs/20260101_000000_1.py").write_text(CONFIG)
    return side


def test_a_run_s_folder_tells_how_to_run_it_again(tmp_path: Path) -> None:
    folder = write_run(
        tmp_path, Run("20260101_000000", numbered(2), "vllm", "tiny-vllm", facts={"folder": "/models/t"})
    )
    (side,) = read_sides(folder)
    with pytest.raises(ConfigError, match="does not tell how tiny-vllm was run"):
        spec_of(side)
    assert transformers_plan(side) is None
    _, spec = spec_of(_with_config(side))
    assert (spec.abbr, spec.path) == ("tiny-hf", "/models/t")  # where the model was found, wherever one stands now
    plan = transformers_plan(side)
    assert plan is not None
    assert plan.engine == "transformers"


def test_float32_replaces_a_dtype_and_nothing_else() -> None:
    spec = parse_model(
        {
            "type": "HuggingFacewithChatTemplate",
            "path": "x",
            "model_kwargs": {"dtype": "bfloat16", "device_map": "auto"},
        },
        "here",
    )
    assert in_float32(spec).model_dump()["model_kwargs"] == {"device_map": "auto", "torch_dtype": "float32"}
    with pytest.raises(ConfigError, match="no dtype"):
        in_float32(parse_model({"type": "OpenAISDK", "path": "x"}, "here"))


def test_engines_without_float32_say_why(tmp_path: Path) -> None:
    rerunner = Rerunner(Console(quiet=True), 0.0, TokenizerProcess())
    reference = read_sides(write_run(tmp_path / "a", Run("20260101_000000", numbered(2))))[0]
    old = read_sides(write_opencompass(tmp_path / "old", "tiny-x", "gsm8k", [("a", "0"), ("b", "1")], 0.0))[0]
    others = [
        read_sides(write_run(tmp_path / engine, Run("20260101_000000", numbered(2), engine, f"tiny-{engine}")))[0]
        for engine in ("lmdeploy", "llamacpp", "openai")
    ]
    samples = rerunner.samples(Pairing(reference, [*others, old]), 8)
    proofs = {key[1]: proof_of(sample, _Silent()) for key, sample in samples.items()}
    assert all(proof.skipped for proof in proofs.values())
    assert "float16 or bfloat16 only" in str(proofs["tiny-lmdeploy"].skipped)
    assert no_float32(reference) is None


def test_runs_that_are_in_float32_already_are_their_own_proof(tmp_path: Path) -> None:
    runs = [
        read_sides(
            write_run(tmp_path / e, Run("20260101_000000", numbered(5), e, f"tiny-{e}", facts={"dtype": "float32"}))
        )
        for e in ("transformers", "vllm")
    ]
    samples = Rerunner(Console(quiet=True), 0.0, TokenizerProcess()).samples(Pairing(runs[0][0], runs[1]), 8)
    (proof,) = (proof_of(sample, _Silent()) for sample in samples.values())
    assert (proof.rows, proof.identical, proof.skipped) == (5, 5, None)


def test_a_reference_without_a_batch_size_has_no_noise_to_measure(tmp_path: Path) -> None:
    side = read_sides(write_run(tmp_path, Run("20260101_000000", numbered(2), "vllm", "tiny-vllm")))[0]
    with pytest.raises(ConfigError, match="no batch size"):
        Rerunner(Console(quiet=True), 0.0, TokenizerProcess()).noise(side)


class _Tied:
    def logprobs(self, reference: Side, questions: Sequence[Question]) -> dict[Question, Logprobs]:
        return dict.fromkeys(questions, Logprobs(-0.5, -0.5))


class _Silent:
    def logprobs(self, reference: Side, questions: object) -> dict[Any, Any]:
        return {}
