"""GSM8K questions with answers of a fixed length each: the same work for every engine, whatever a model says.

Prompts are plain text, and no token may end an answer.

The length of an answer is that of the question's published solution, in tokens, and a third more, rounded up to
a multiple of 32: so lengths vary as real ones do. Questions of one length are a dataset of their own, the longest
first.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

STEP, LONGEST = 32, 512  # tokens
MAX_SEQ_LEN = 1536
INSTRUCTION = "\nPlease reason step by step, and put your final answer within \\boxed{}."


@dataclass(frozen=True)
class Question:
    question: str
    answer: str
    length: int  # of the answer, in tokens


def read_questions(file: Path, tokenizer: Path, limit: int | None = None) -> list[Question]:
    """Read GSM8K's test.jsonl, in its order."""
    from transformers import AutoTokenizer

    encode = AutoTokenizer.from_pretrained(tokenizer).encode
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()[:limit]]
    return [Question(row["question"], row["answer"], _length(len(encode(row["answer"])))) for row in rows]


def _length(tokens: int) -> int:
    return min(LONGEST, math.ceil(tokens * 4 / 3 / STEP) * STEP)


def tagged(questions: Sequence[Question], tag: str) -> list[Question]:
    """Return the questions with a word before each that no other pass has.

    No pass finds prompts in an engine's prefix cache, or answers in evalswap's store, that another has left there.
    """
    return [Question(f"[{tag}-{i}] {q.question}", q.answer, q.length) for i, q in enumerate(questions)]


def longest_first(questions: Sequence[Question]) -> list[Question]:
    return sorted(questions, key=lambda question: -question.length)


def write_config(questions: Sequence[Question], folder: Path, model: Path) -> Path:
    """Write the datasets and a config for them, and return the config's path."""
    lengths = sorted({question.length for question in questions}, reverse=True)
    for length in lengths:
        place = folder / f"{length:03d}"
        place.mkdir(parents=True)
        rows = ({"question": q.question, "answer": q.answer} for q in questions if q.length == length)
        (place / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    models = [
        {
            "type": "HuggingFaceBaseModel",
            "abbr": "bench-hf",
            "path": str(model),
            "max_seq_len": MAX_SEQ_LEN,
            "model_kwargs": {"torch_dtype": "bfloat16"},
            "generation_kwargs": {"eos_token_id": []},
            "run_cfg": {"num_gpus": 1},
        }
    ]
    config = folder / "config.py"
    datasets = [_dataset(length, folder / f"{length:03d}") for length in lengths]
    config.write_text(f"models = {models!r}\ndatasets = {datasets!r}\n")
    return config


def _dataset(length: int, folder: Path) -> dict[str, Any]:
    template = {"round": [{"role": "HUMAN", "prompt": "{question}" + INSTRUCTION}]}
    return {
        "abbr": f"answers_of_{length:03d}",
        "type": "GSM8KDataset",
        "path": str(folder),
        "reader_cfg": {"input_columns": ["question"], "output_column": "answer"},
        "infer_cfg": {
            "prompt_template": {"type": "PromptTemplate", "template": template},
            "retriever": {"type": "ZeroRetriever"},
            "inferencer": {"type": "GenInferencer", "max_out_len": length},
        },
        "eval_cfg": {
            "evaluator": {"type": "Gsm8kEvaluator"},
            "dataset_postprocessor": {"type": "gsm8k_dataset"},
            "pred_postprocessor": {"type": "gsm8k"},
        },
    }


def prompt_ids(questions: Sequence[Question], tokenizer: Path) -> list[list[int]]:
    """Return the prompts' token ids."""
    from transformers import AutoTokenizer

    texts = [question.question + INSTRUCTION for question in questions]
    encoded: list[list[int]] = AutoTokenizer.from_pretrained(tokenizer)(texts)["input_ids"]
    return encoded
