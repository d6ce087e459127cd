"""HuggingFace's generate in padded batches, in file order: what an evaluation costs before the swap.

Run by an interpreter that has torch and transformers: reads {"model", "dtype", "batch_size", "prompts", "lengths",
"measured"} as JSON from standard input and writes {"load", "measured", "steps", "seconds_per_step", "all_steps",
"infer"} to the file that it is given. A batch runs until its longest answer is done. The first ``measured`` batches
are timed, and the rest counted at the same time a step: a 7B model takes half an hour for all of GSM8K.
"""

import json
import sys
import time
from pathlib import Path


def main() -> None:
    task = json.load(sys.stdin)
    began = time.perf_counter()
    import torch
    from transformers import AutoModelForCausalLM

    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = AutoModelForCausalLM.from_pretrained(task["model"], dtype=getattr(torch, task["dtype"])).to(device).eval()
    loaded = time.perf_counter()
    size = task["batch_size"]
    batches = [
        (task["prompts"][i : i + size], max(task["lengths"][i : i + size]))
        for i in range(0, len(task["prompts"]), size)
    ]

    def run(prompts: list[list[int]], steps: int) -> None:
        width = max(map(len, prompts))
        ids = torch.tensor([[0] * (width - len(p)) + p for p in prompts], device=device)
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=device)
        with torch.inference_mode():
            out = model.generate(
                ids, attention_mask=mask, do_sample=False, max_new_tokens=steps, min_new_tokens=steps, pad_token_id=0
            )
        assert out.shape[1] == width + steps

    run(batches[0][0], 8)  # warm-up
    timed = batches[: task["measured"]]
    start = time.perf_counter()
    for prompts, steps in timed:
        run(prompts, steps)
    if device == "cuda":
        torch.cuda.synchronize()
    seconds = time.perf_counter() - start
    per_step = seconds / sum(steps for _, steps in timed)
    all_steps = sum(steps for _, steps in batches)
    result = {
        "load": loaded - began,
        "measured": seconds,
        "batches": len(timed),
        "seconds_per_step": per_step,
        "all_steps": all_steps,
        "infer": seconds + per_step * sum(steps for _, steps in batches[task["measured"] :]),
    }
    Path(sys.argv[1]).write_text(json.dumps(result))


if __name__ == "__main__":
    main()
