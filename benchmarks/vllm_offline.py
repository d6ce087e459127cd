"""vLLM's own offline LLM.generate on given token ids: the floor that a served engine is measured against.

Run by an interpreter that has vLLM: reads {"model", "dtype", "context_len", "prompts", "sampling"} as JSON from
standard input, writes {"start", "infer", "token_ids"} to the file that it is given.
"""

import json
import sys
import time
from pathlib import Path


def main() -> None:
    task = json.load(sys.stdin)
    began = time.perf_counter()
    from vllm import LLM, SamplingParams

    llm = LLM(
        task["model"],
        dtype=task["dtype"],
        max_model_len=task["context_len"],
        generation_config="vllm",
        seed=0,
        **task["engine_args"],
    )
    up = time.perf_counter()
    sampling = SamplingParams(
        temperature=0.0,
        max_tokens=task["max_new_tokens"],
        ignore_eos=True,
        stop_token_ids=task["stop_token_ids"],
    )
    prompts = [{"prompt_token_ids": ids} for ids in task["prompts"]]
    asked = time.perf_counter()
    outputs = llm.generate(prompts, sampling, use_tqdm=False)
    done = time.perf_counter()
    ids = [list(output.outputs[0].token_ids) for output in outputs]
    result = {"start": up - began, "infer": done - asked, "token_ids": ids}
    Path(sys.argv[1]).write_text(json.dumps(result))


if __name__ == "__main__":
    main()
