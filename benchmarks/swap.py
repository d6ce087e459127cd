"""What the swap brings: transformers in batches of 8, vLLM through evalswap, and vLLM's own offline generate.

    python benchmarks/swap.py [--limit 64]

One run on one machine, one after another, on the same prompts: read the ratios. Needs the demo model
(`make model`), both engines (`make engines`) and GSM8K's test.jsonl (EVALSWAP_DATA, see the README). On a CPU each
engine gets OMP_NUM_THREADS threads, or one for each core; on a machine that does other work at the time, set it to 1.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from evalswap.engines.base import Launch
from evalswap.engines.vllm import CPU_FLAGS, Vllm
from evalswap.serving.environments import find_interpreter
from evalswap.store import Store, unpack_ids

HERE = Path(__file__).resolve().parent
CONFIG = HERE / "gsm8k_128.py"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--limit", type=int, default=64, help="questions")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        reference = evaluate(work, arguments.limit)
        swapped = evaluate(work, arguments.limit, "-a", "vllm")
        floor = offline(work, swapped)
    report(reference, swapped, floor)


def evaluate(work: Path, limit: int, *flags: str) -> dict[str, Any]:
    """Run evalswap once and return its times and answers."""
    before = set(work.glob("2*"))
    command = [sys.executable, "-m", "evalswap", "run", str(CONFIG), "--limit", str(limit), "-w", str(work), *flags]
    subprocess.run(command, check=True, cwd=HERE.parent)
    (folder,) = set(work.glob("2*")) - before
    (name, record), *_ = json.loads((folder / "run.json").read_text())["models"].items()
    store = Store(work)
    answers = list(store.answers(folder.name, f"{name}/gsm8k"))
    store.close()
    return {
        "record": record,
        "start": record["timings"]["start"],
        "infer": record["timings"]["infer"],
        "score": record["datasets"]["gsm8k"]["metrics"]["accuracy"],
        "prompts": [list(unpack_ids(answer.prompt_ids)) for answer in answers if answer.prompt_ids],
        "token_ids": [list(answer.response.token_ids or ()) for answer in answers if answer.response],
    }


def offline(work: Path, swapped: dict[str, Any]) -> dict[str, Any]:
    """Generate the same answers with vLLM's offline API, launched like the server."""
    engine, facts = Vllm(), swapped["record"]["facts"]
    found = find_interpreter(engine.name, engine.distributions)
    (sampling,) = facts["sampling"].values()
    task = {
        "model": facts["folder"],
        "dtype": facts["dtype"],
        "context_len": facts["context_len"],
        "prompts": swapped["prompts"],
        "max_new_tokens": sampling["max_new_tokens"],
        "stop_token_ids": sampling["stop_token_ids"],
        "engine_args": CPU_FLAGS if found.device == "cpu" else {},
    }
    launch = Launch(Path(facts["folder"]), facts["dtype"], facts["context_len"], 1, 8, False, found.device)
    result = work / "offline.json"
    subprocess.run(
        [str(found.path), str(HERE / "vllm_offline.py"), str(result)],
        input=json.dumps(task),
        env={**os.environ, **engine.environment(launch)},
        text=True,
        check=True,
    )
    return json.loads(result.read_text())


def report(reference: dict[str, Any], swapped: dict[str, Any], floor: dict[str, Any]) -> None:
    """Print the table as Markdown."""
    rows = [
        ("transformers, batch 8, through evalswap", reference),
        ("vLLM, through evalswap (`-a vllm`)", swapped),
        ("vLLM, offline `LLM.generate`, same ids", floor),
    ]
    print("\n| how | start, s | inference, s | tokens/s | against transformers | same token ids as transformers |")
    print("|---|---|---|---|---|---|")
    for name, run in rows:
        tokens = sum(map(len, run["token_ids"]))
        pairs = list(zip(run["token_ids"], reference["token_ids"], strict=True))
        same = sum(a == b for a, b in pairs)
        print(
            f"| {name} | {run['start']:.1f} | {run['infer']:.1f} | {tokens / run['infer']:.0f} "
            f"| {reference['infer'] / run['infer']:.2f}x | {same} of {len(pairs)} |"
        )
    print(f"\nvLLM through evalswap takes {swapped['infer'] / floor['infer']:.3f} of the offline time.")
    print(f"Scores: {reference['score']:.2f} and {swapped['score']:.2f}.")


if __name__ == "__main__":
    main()
