"""Finished runs made by hand, through the store's own door: any answers, at any time, in an instant."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from evalswap.records import Failure, Prompt, Response
from evalswap.store import Item, Store

EOS = 2
SAMPLING: dict[str, Any] = {
    "max_new_tokens": 64,
    "min_new_tokens": 0,
    "temperature": 0.0,
    "top_p": 1.0,
    "top_k": 0,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "seed": None,
    "stop": [],
    "stop_token_ids": [EOS],
}
FACTS: dict[str, Any] = {
    "model": "abc123",
    "dtype": "bfloat16",
    "device": "cpu",
    "num_gpus": 1,
    "engine_args": {},
    "model_kwargs": {},
    "peft_path": None,
    "chat_template_sha256": "7e3f",
}


@dataclass(frozen=True)
class Row:
    """One row of a run. ``ids`` None is an answer of a server that gives text alone; ``error`` is none at all."""

    text: str = "So it is 5."
    ids: tuple[int, ...] | None = (11, 12, 13, EOS)
    right: bool = True
    pred: str = "5"
    gold: str = "5"
    finish: str = "stop"
    prompt_ids: tuple[int, ...] | None = (1, 5, 6)
    question: str = "How many?"
    error: str | None = None


@dataclass
class Run:
    """A run to write: rows, and what its record says."""

    name: str
    rows: Sequence[Row]
    engine: str = "transformers"
    model: str = "tiny-hf"
    dataset: str = "gsm8k"
    facts: Mapping[str, Any] = field(default_factory=dict)
    sampling: Mapping[str, Any] = field(default_factory=dict)
    rows_sha256: str = "f" * 64
    seconds: float = 0.5  # of each answer
    scored: bool = True
    finished: bool = True


def write_run(work: Path, run: Run) -> Path:
    """Write a run's folder and its part of the store; returns the folder."""
    folder = work / run.name
    folder.mkdir(parents=True)
    job = f"{run.model}/{run.dataset}"
    store = Store(work)
    store.begin_run(run.name)
    store.add_items(run.name, job, [_item(run, number, row) for number, row in enumerate(run.rows)])
    for number, row in enumerate(run.rows):
        key = _key(run, number)
        if row.error is not None:
            store.add_failure(run.name, Failure(key, job, number, row.error, 3))
            continue
        tokens = len(row.ids or ()) or 4
        started = 1_000_000.0 + 0.1 * number
        finish: Any = row.finish
        engine = f"{run.engine} 1.0"
        response = Response(key, row.text, row.ids, finish, 3, tokens, None, started, run.seconds, 1, engine)
        store.add_responses(run.model, [response])
    store.close()
    if run.finished:
        (folder / "run.json").write_text(json.dumps(_record(run)), encoding="utf-8")
    if run.scored:
        _write_results(folder, run)
    return folder


def changed(rows: Sequence[Row], changes: Mapping[int, Mapping[str, Any]]) -> list[Row]:
    """Return the rows, some of them changed."""
    return [replace(row, **changes.get(number, {})) for number, row in enumerate(rows)]


def numbered(count: int, make: Callable[[int], Row] | None = None) -> list[Row]:
    """Return rows of which each has a question, a prompt and a right answer of its own."""
    base = make or (lambda number: Row())
    return [
        replace(base(number), question=f"Question {number}?", prompt_ids=(1, 5, 100 + number), gold=str(number))
        for number in range(count)
    ]


def write_opencompass(folder: Path, model: str, dataset: str, texts: Iterable[tuple[str, str]], score: float) -> Path:
    """Write an output folder as OpenCompass does: (prediction, gold) of each row, and a score without details."""
    predictions = {
        str(number): {
            "origin_prompt": [{"role": "HUMAN", "prompt": f"Question {number}?"}],
            "prediction": text,
            "gold": gold,
        }
        for number, (text, gold) in enumerate(texts)
    }
    for part, content in (("predictions", predictions), ("results", {"accuracy": score})):
        path = folder / part / model / f"{dataset}.json"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(content), encoding="utf-8")
    return folder


def _key(run: Run, number: int) -> str:
    return f"{run.name}-{run.model}-{number}"


def _item(run: Run, number: int, row: Row) -> Item:
    turns = [{"role": "HUMAN", "prompt": row.question}]
    return Item(number, _key(run, number), row.gold, turns, Prompt((), None, row.prompt_ids))


def _record(run: Run) -> dict[str, Any]:
    answered = [row for row in run.rows if row.error is None]
    accuracy = 100 * sum(row.right for row in answered) / len(answered) if answered and run.scored else None
    facts = {**FACTS, "engine": run.engine, "sampling": {run.dataset: {**SAMPLING, **run.sampling}}, **run.facts}
    return {
        "evalswap": "0.1.0",
        "status": "complete" if len(answered) == len(run.rows) else "partial",
        "models": {
            run.model: {
                "engine": {"name": run.engine, "version": "1.0", "device": "cpu", "details": {}},
                "facts": facts,
                "translation": [{"source": "path", "target": "--model tiny", "note": ""}],
                "answers": {"total": len(run.rows), "asked": len(answered), "from_store": 0, "shortened": {}},
                "timings": {"start": 12.0, "infer": 30.0},
                "datasets": {
                    run.dataset: {
                        "rows": len(run.rows),
                        "rows_sha256": run.rows_sha256,
                        "prompts_cut": 0,
                        "metrics": {} if accuracy is None else {"accuracy": accuracy},
                    }
                },
            }
        },
    }


def _write_results(folder: Path, run: Run) -> None:
    details = {
        str(number): {"pred": row.pred, "answer": row.gold, "correct": row.right}
        for number, row in enumerate(run.rows)
        if row.error is None
    }
    path = folder / "results" / run.model / f"{run.dataset}.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"accuracy": 0.0, "details": details}), encoding="utf-8")
