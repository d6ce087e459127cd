"""The engines as witnesses: started here or replayed, asked everything once, and then judged by the tests."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from interview import Interview, interview, prepare
from recording import FOLDER, Recording

from evalswap.engines.base import SERVED_NAME, Engine
from evalswap.engines.openai import openai_engine
from evalswap.engines.registry import managed_engine
from evalswap.errors import EngineError
from evalswap.plan import EndpointPlan, LaunchPlan
from evalswap.serving.environments import interpreter_variable
from evalswap.serving.server import ManagedServer

HERE = Path(__file__).parent
REPO = HERE.parent.parent
SOMEBODYS = "-a openai at "  # the same server, asked as one that somebody else started
LIVE = ("transformers", "vllm", "sglang", "llamacpp", f"{SOMEBODYS}sglang")
RECORDINGS = sorted(FOLDER.glob("*.json"))


@dataclass(frozen=True)
class Witness:
    """One engine and what it said: here and in float32 (``live``), or when it was recorded."""

    engine: Engine
    said: Interview
    live: bool


def live(name: str, log: Path, model: Path) -> Witness:
    """Start an engine as a run does, ask it everything and stop it; the test is skipped where it cannot be had."""
    python, arguments = None, {}
    somebodys, name = name.startswith(SOMEBODYS), name.removeprefix(SOMEBODYS)
    if name == "sglang":
        python = sglang_python()
    if name == "llamacpp":
        arguments["model"] = str(gguf_of(model))
    try:
        prepared = prepare(name, model, "float32", arguments, python)
    except EngineError as error:
        pytest.skip(f"{error.message}: {error.hint}")
    engine, path = prepared.engine, ""
    if somebodys:
        engine, path = openai_engine(EndpointPlan(("",), SERVED_NAME), name), "/v1"
    said = asyncio.run(question(engine, prepared.server(log, redact=str, say=print), path))
    return Witness(engine, said, live=True)


def replayed(file: Path, log: Path) -> Witness:
    """Let a recording answer for its engine."""
    facts = Recording.load(file).facts
    plan = LaunchPlan(path="", dtype=facts["dtype"], engine_args=facts["engine_args"])
    engine = managed_engine(facts["engine"], plan)
    return Witness(engine, asyncio.run(question(engine, replaying(file, engine.name, log))), live=False)


def replaying(file: Path, name: str, log: Path) -> ManagedServer:
    """Return the server that answers from a recording, not yet started."""
    command = [sys.executable, str(HERE / "replay.py"), str(file), "--port"]
    return ManagedServer(name, lambda port: [*command, str(port)], log_path=log)


async def question(engine: Engine, server: ManagedServer, path: str = "") -> Interview:
    """Start a server and ask it everything; ``path`` is where on it the engine's own paths begin."""
    async with server:
        await server.ready()
        return await interview(engine, server.url + path)


def sglang_python() -> str | None:
    """Return the Python of scripts/sglang_on_cpu.py; None where the user names one or only evalswap can find it."""
    if os.environ.get(interpreter_variable("sglang")):
        return None
    script = REPO / "scripts" / "sglang_on_cpu.py"
    found = subprocess.run([sys.executable, str(script), "--print"], capture_output=True, text=True)
    return found.stdout.strip() or None


def gguf_of(model: Path) -> Path:
    """Return the demo model's weights as llama.cpp reads them; the test is skipped where they are not there."""
    file = model.with_name(f"{model.name}.F32.gguf")
    if not file.is_file():
        pytest.skip(f"{file.name} is not there: python scripts/make_demo_gguf.py makes it")
    return file
