"""GSM8K: grade-school math questions with a number as the answer (Cobbe et al. 2021, arXiv 2110.14168)."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from evalswap.benchmarks import gsm8k_rules
from evalswap.benchmarks.files import BUNDLED, data_folders, first_existing, own_file, read_jsonl
from evalswap.benchmarks.registry import Rows, evaluator, loader, postprocessor
from evalswap.checkpoint import hub_reachable
from evalswap.errors import DataError

KEYS = ("question", "answer")
HUB_NAME = "openai/gsm8k"
HUB_FILE = "main/test-00000-of-00001.parquet"
MODELSCOPE_NAME = "opencompass/gsm8k"
DEMO_PATH = "evalswap/demo"
PUBLISHED = (MODELSCOPE_NAME, HUB_NAME, "gsm8k", "./data/gsm8k")  # the paths that published configs give it

postprocessor("gsm8k_postprocess", "gsm8k")(gsm8k_rules.published_prediction)
postprocessor("gsm8k_dataset_postprocess", "gsm8k_dataset")(gsm8k_rules.gold_answer)


@loader("GSM8KDataset")
def load(path: str | None = None) -> Rows:
    """Return the test rows, from a folder with test.jsonl or, for one of GSM8K's published names, from a hub.

    Raises DataError if they cannot be had. Any other path is the user's own, and never means GSM8K.
    """
    if path == DEMO_PATH:
        return _from_file(BUNDLED / "demo.jsonl", "the demo questions that come with evalswap")
    if path and Path(path) not in map(Path, PUBLISHED):
        file = own_file(path, "test.jsonl", (*PUBLISHED, DEMO_PATH))
        return _from_file(file, str(file))
    folders = data_folders(path, "gsm8k")
    if found_file := first_existing(folders, "test.jsonl"):
        return _from_file(found_file, str(found_file))
    modelscope = os.environ.get("DATASET_SOURCE") == "ModelScope"
    try:
        found = _from_modelscope() if modelscope else _from_hub()
    except Exception as error:
        looked = ", ".join(str(folder / "test.jsonl") for folder in folders)
        where = f"ModelScope ({MODELSCOPE_NAME})" if modelscope else f"the HuggingFace hub ({HUB_NAME})"
        reason = error.message if isinstance(error, DataError) else "it cannot be reached and nothing is cached"
        raise DataError(
            f"GSM8K not found: looked for {looked}; then asked {where}: {reason}",
            "put test.jsonl into one of these folders, or point EVALSWAP_DATA at a folder that has gsm8k/test.jsonl",
        ) from error
    if not found:
        raise DataError("GSM8K: the hub gave no rows")
    text = "\n".join(json.dumps(row, sort_keys=True, ensure_ascii=False) for row in found)
    source = MODELSCOPE_NAME if modelscope else HUB_NAME
    return Rows(found, source, hashlib.sha256(text.encode()).hexdigest())


def _from_file(file: Path, source: str) -> Rows:
    rows, sha256 = read_jsonl(file, KEYS)
    return Rows(rows, source, sha256)


def _from_hub() -> list[dict[str, Any]]:
    from huggingface_hub import hf_hub_download

    file = Path(hf_hub_download(HUB_NAME, HUB_FILE, repo_type="dataset", local_files_only=not hub_reachable()))
    try:
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise DataError("reading the hub's file needs pyarrow: pip install 'evalswap[hub]'") from error
    return list(parquet.read_table(file, columns=list(KEYS)).to_pylist())


def _from_modelscope() -> list[dict[str, Any]]:
    try:
        from modelscope import MsDataset
    except ImportError as error:
        raise DataError("ModelScope needs its package: pip install modelscope") from error
    dataset = MsDataset.load(MODELSCOPE_NAME, split="test")
    return [{key: row[key] for key in KEYS} for row in dataset]


@evaluator("Gsm8kEvaluator")
class Gsm8kEvaluator:
    """The published rule, and beside it one that reads numbers as people write them."""

    metrics = ("accuracy", "accuracy_corrected")

    def score(self, prediction: str, gold: str, text: str) -> Mapping[str, bool]:
        return {
            "accuracy": gsm8k_rules.published_correct(prediction, gold),
            "accuracy_corrected": gsm8k_rules.corrected_correct(text, gold),
        }
