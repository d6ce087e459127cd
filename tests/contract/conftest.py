"""The fixtures of the contract: every engine that can be had, and what transformers itself answers."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

import cases
import pytest
from questions import load_questions
from witness import HERE, LIVE, RECORDINGS, Witness, live, replayed


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "witness" in metafunc.fixturenames:
        engines = [pytest.param(name, id=name, marks=pytest.mark.e2e) for name in LIVE]
        if "reference" not in metafunc.fixturenames:  # recordings are of another precision, from another device
            engines += [pytest.param(file, id=f"replayed {file.stem}") for file in RECORDINGS]
        metafunc.parametrize("witness", engines, indirect=True, scope="session")


@pytest.fixture(scope="session")
def reference(transformers_python: str, demo_model: Path) -> Mapping[str, list[int]]:
    """Return name → transformers' own greedy answer, by its ``generate`` and nothing of evalswap."""
    requests = cases.first_requests(load_questions())
    names = [name for name in requests if name in cases.EXACT]
    asked = [
        {"input_ids": requests[name].prompt.token_ids, **dataclasses.asdict(requests[name].sampling)} for name in names
    ]
    command = [transformers_python, str(HERE / "reference.py"), str(demo_model)]
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, input=json.dumps(asked), capture_output=True, text=True, env=env, timeout=200)
    assert done.returncode == 0, done.stderr[-2000:]
    return dict(zip(names, json.loads(done.stdout), strict=True))


@pytest.fixture(scope="session")
def witness(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Witness:
    """One engine and all that it said; it runs only while it is asked."""
    log = tmp_path_factory.mktemp("engine") / "engine.log"
    if isinstance(request.param, Path):
        return replayed(request.param, log)
    return live(request.param, log, request.getfixturevalue("demo_model"))
