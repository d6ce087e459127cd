"""The prompts of the contract: token ids of SmolLM2-135M-Instruct, kept in questions.json.

So neither a replayed engine nor the recorder needs the model's tokenizer. ``python questions.py MODEL`` prints the
file anew; a test compares it with what evalswap renders.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

FILE = Path(__file__).with_name("questions.json")
DEMO_ROWS = 6  # of the questions that come with evalswap, as config/eval_demo.py asks them
INSTRUCTION = "\nPlease reason step by step, and put your final answer within \\boxed{}."
SHORT = "Answer with one word: what is the capital of France?"  # seven tokens and the end
PLAIN = "The capital of France is"  # no chat template around it, so no special token at all


def load_questions() -> dict[str, list[int]]:
    """Return name → token ids: "demo-0" …, "short", "plain"."""
    return {name: entry["token_ids"] for name, entry in json.loads(FILE.read_text(encoding="utf-8")).items()}


def render(model: Path) -> dict[str, Any]:
    """Return what questions.json holds, made by evalswap's own rendering."""
    from evalswap.benchmarks.files import BUNDLED
    from evalswap.prompting.tokenizer import Tokenizer
    from evalswap.prompting.transformers_tokenizer import TransformersTokenizer

    tokenizer = Tokenizer(model, TransformersTokenizer(model, {}))
    lines = (BUNDLED / "demo.jsonl").read_text(encoding="utf-8").splitlines()[:DEMO_ROWS]
    asked = {f"demo-{row}": json.loads(line)["question"] + INSTRUCTION for row, line in enumerate(lines)}
    asked["short"] = SHORT
    texts = tokenizer.render([({"role": "user", "content": question},) for question in asked.values()], {})
    ids = [*tokenizer.encode(texts, special_tokens=False), *tokenizer.encode([PLAIN], special_tokens=False)]
    named = {**asked, "plain": PLAIN}
    return {name: {"text": text, "token_ids": row} for (name, text), row in zip(named.items(), ids, strict=True)}


if __name__ == "__main__":
    entries = (f"{json.dumps(name)}: {json.dumps(entry)}" for name, entry in render(Path(sys.argv[1])).items())
    print("{\n" + ",\n".join(entries) + "\n}")
