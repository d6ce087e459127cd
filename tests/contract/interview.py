"""Asking an engine, once, all that the contract wants to know, through the doors that a run uses.

The engine is started (or replayed) by somebody else; here is one client, the engine's ``call`` and its ``read``.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import cases
from questions import load_questions

from evalswap.checkpoint import find_checkpoint
from evalswap.engines.base import Engine, EngineLoad, FinalAnswerError, Launch, MalformedAnswer, ManagedEngine
from evalswap.engines.registry import managed_engine
from evalswap.errors import ConversionError, EvalswapError
from evalswap.inference.client import FinalError, HttpClient, TransientError
from evalswap.plan import LaunchPlan
from evalswap.records import Completion, Request
from evalswap.serving.environments import find_engine
from evalswap.serving.launching import PreparedEngine

SECONDS = 120.0  # for one answer
LOOK_EVERY = 0.4  # seconds between two looks at the load


@dataclass(frozen=True, slots=True)
class Outcome:
    """One request and what came of it: a completion or an error."""

    request: Request
    completion: Completion | None = None
    error: EvalswapError | None = None


@dataclass(frozen=True, slots=True)
class Interview:
    """All outcomes by the names of their requests, and the loads that the engine told."""

    outcomes: Mapping[str, Outcome]
    loads: tuple[EngineLoad | None, ...]  # while it answers, and the last when it has; empty if it has no load path


def prepare(
    name: str, model: Path, dtype: str, engine_args: Mapping[str, object], python: str | None
) -> PreparedEngine:
    """Return an engine as the contract wants it started. Raises EvalswapError where it is not there."""
    checkpoint = find_checkpoint(str(model))
    stored = checkpoint.dtype or "auto"
    plan = LaunchPlan(path=str(model), dtype=stored if dtype == "auto" else dtype, engine_args=engine_args)
    engine = managed_engine(name, plan)
    found = find_engine(engine, python)
    launch = Launch(
        model=checkpoint.folder,
        dtype=plan.dtype,
        context_len=cases.CONTEXT_LEN,
        num_gpus=1,
        batch_size=4,
        trust_remote_code=False,
        device=found.device,
        engine_args=engine_args,
    )
    return PreparedEngine(engine, found, checkpoint, launch)


async def interview(engine: Engine, url: str) -> Interview:
    """Ask everything: each request alone first, then the greedy ones all together."""
    watched = engine if isinstance(engine, ManagedEngine) and engine.load_path else None
    async with HttpClient(url, timeout=SECONDS) as client:
        requests = cases.first_requests(load_questions())
        outcomes = {name: await ask(engine, client, request) for name, request in requests.items()}
        if (greedy := outcomes["greedy-0"].completion) and greedy.token_ids:
            for name, request in cases.second_requests(requests, greedy.token_ids).items():
                outcomes[name] = await ask(engine, client, request)
        # Each has a row of its own, as in a run: transformers makes its batches in their order.
        together = {name: dataclasses.replace(requests[name], row=row) for row, name in enumerate(cases.WHOLE)}
        burst = [asyncio.create_task(ask(engine, client, request)) for request in together.values()]
        loads = []
        while watched and not all(task.done() for task in burst):
            loads.append(await load_of(watched, client))
            await asyncio.wait(burst, timeout=LOOK_EVERY)
        outcomes |= {f"{name} together": await task for name, task in zip(together, burst, strict=True)}
        if watched:
            loads.append(await load_of(watched, client))
    return Interview(outcomes, tuple(loads))


async def load_of(engine: ManagedEngine, client: HttpClient) -> EngineLoad | None:
    assert engine.load_path is not None
    return engine.read_load(await client.get_text(engine.load_path))


async def ask(engine: Engine, client: HttpClient, request: Request) -> Outcome:
    """Ask one request once: an error is an outcome, for a run would go on from it."""
    try:
        call = engine.call(request)
        return Outcome(request, engine.read(await client.post(call.path, call.body), request))
    except (ConversionError, FinalError, TransientError, FinalAnswerError, MalformedAnswer) as error:
        return Outcome(request, error=error)
