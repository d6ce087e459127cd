"""What transformers itself answers: the truth that engines are held against, with nothing of evalswap in between.

Run by the Python that has transformers: ``python reference.py MODEL < QUESTIONS > ANSWERS``, where QUESTIONS is a
JSON list of {"input_ids": [...], "stop_token_ids": [...], "max_new_tokens": 1, ...} and ANSWERS a list of lists of
token ids. float32, one prompt at a time, greedy.
"""

from __future__ import annotations

import json
import sys

import torch
from transformers import AutoModelForCausalLM, GenerationConfig


def main() -> None:
    model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32).eval()
    model.generation_config = GenerationConfig()  # the model's own would be merged in
    answers = []
    for question in json.load(sys.stdin):
        prompt = torch.tensor([question["input_ids"]])
        config = GenerationConfig(
            do_sample=False,
            max_new_tokens=question["max_new_tokens"],
            min_new_tokens=question["min_new_tokens"] or None,
            repetition_penalty=question["repetition_penalty"],
            eos_token_id=question["stop_token_ids"] or None,
            pad_token_id=0,
        )
        output = model.generate(input_ids=prompt, attention_mask=torch.ones_like(prompt), generation_config=config)
        answers.append(output[0, prompt.shape[1] :].tolist())
    json.dump(answers, sys.stdout)


if __name__ == "__main__":
    main()
