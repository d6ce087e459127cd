"""How a comparison runs a side again."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import pytest
from rich.console import Console

from evalswap.comparing.outputs import Output, Side
from evalswap.comparing.pairing import Pairing
from evalswap.comparing.running import Planned, Rerunner
from evalswap.config.experiment import Experiment
from evalswap.errors import EvalswapError
from evalswap.plan import ModelPlan
from evalswap.prompting.tokenizer_process import TokenizerProcess

CONFIG = """
models = [dict(type='HuggingFacewithChatTemplate', abbr='tiny', path='some/model', max_seq_len=512,
               model_kwargs=dict(torch_dtype='bfloat16'))]
datasets = [dict(type='GSM8KDataset', abbr='demo', path='evalswap/demo',
                 reader_cfg=dict(input_columns=['question'], output_column='answer'),
                 infer_cfg=dict(prompt_template=dict(template=dict(round=[dict(role='HUMAN', prompt='{question}')])),
                                inferencer=dict(max_out_len=24)),
                 eval_cfg=dict(evaluator=dict(type='Gsm8kEvaluator')))]
"""


def side(folder: Path, engine: str, **facts: Any) -> Side:
    (folder / "configs").mkdir(parents=True)
    (folder / "configs" / "20260101_000000.py").write_text(CONFIG)
    record = {"engine": {"name": engine}, "facts": {"dtype": "bfloat16", **facts}}
    return Side(
        folder, f"tiny-{'hf' if engine == 'transformers' else engine}", "demo", "accuracy", 50.0, {}, record=record
    )


def test_a_float32_sample_leaves_the_choice_of_kernels_to_the_engine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[ModelPlan] = []

    def run(self: Rerunner, experiment: Any, plans: Sequence[ModelPlan], *rest: Any) -> list[Side]:
        asked.extend(plans)
        raise EvalswapError("not here")

    monkeypatch.setattr(Rerunner, "run", run)
    args = {"attention-backend": "FLASH_ATTN", "max_num_seqs": 7}
    of_itself = Pairing(side(tmp_path, "vllm", engine_args=args))
    of_itself.others.append(of_itself.reference)
    (sample,) = Rerunner(Console(file=io.StringIO()), 0.0, TokenizerProcess()).samples(of_itself, 4).values()
    assert sample == "not here"
    (plan,) = asked
    assert plan.launch is not None
    assert (plan.launch.dtype, dict(plan.launch.engine_args)) == ("float32", {"max_num_seqs": 7})


def test_one_engine_of_three_may_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answered = {"transformers": True, "vllm": False, "sglang": True}

    def run(self: Rerunner, experiment: Any, plans: Any, work: Path, limit: int | None) -> list[Side]:
        found = side(work, work.name)
        if answered[work.name]:
            found.outputs[0] = Output(0, "", "", None, None, "", "", 0, None, 0.0)
        return [found]

    monkeypatch.setattr(Rerunner, "run", run)
    planned = [Planned(engine, cast(Experiment, None), (), tmp_path / engine) for engine in answered]
    rerunner = Rerunner(Console(file=io.StringIO()), 0.0, TokenizerProcess())
    runs, notes = rerunner.run_engines(planned, limit=None)
    assert [found.engine for (found,) in runs] == ["transformers", "sglang"]
    assert notes == ["vllm is not compared: no question was answered"]
    answered["transformers"] = False
    other = [dataclasses.replace(each, work=tmp_path / "again" / each.engine) for each in planned]
    with pytest.raises(EvalswapError, match="no question was answered"):
        rerunner.run_engines(other, limit=None)
