"""Make an environment in which SGLang runs on a CPU, for evalswap's own tests.

SGLang's wheel wants CUDA builds of torch and of a dozen kernels, none of which its torch-native attention uses.
Installed without them, and with two shims (below), the real server runs on any x86-64 Linux machine. This is for
tests: what users of SGLang on a GPU install is ``evalswap engines install sglang``.

    python scripts/sglang_on_cpu.py             # makes it, or says that it is there
    python scripts/sglang_on_cpu.py --print     # prints the path of its Python, if it is complete

The default place is ``test-engines/sglang-on-cpu`` in evalswap's data folder (``$EVALSWAP_HOME``). About 3 GB.
Arguments after ``--`` go to each ``pip install``.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from evalswap.data_folder import data_folder

TORCH = "torch==2.13.0"  # a CPU build where pip's indexes have one, else the one from PyPI, which runs there too
TORCHVISION = "torchvision==0.28.0"  # made for that torch
SGLANG = "sglang==0.5.23"
OLDEST_PYTHON = (3, 11)  # of SGLang's wheels
# What the server imports when it serves text on a CPU, in the versions that SGLang's own metadata asks for ...
LIGHT = (
    "aiohttp", "apache-tvm-ffi", "compressed-tensors", "einops", "fastapi", "gguf", "ipython", "msgspec", "numpy",
    "openai", "orjson", "partial-json-parser", "pillow", "prometheus-client", "psutil", "pybase64", "pydantic",
    "python-multipart", "pyzmq", "requests", "scipy", "sentencepiece", "setproctitle", "soundfile", "tqdm",
    "transformers", "uvicorn", "uvloop", "xgrammar",
)  # fmt: skip
# ... and what it imports without naming it.
UNNAMED = ("dill", "jsonschema", "triton")

MARKER = "sglang-on-cpu.json"  # written last: an environment without it is incomplete
VERSIONS = {"sglang": SGLANG, "torch": TORCH}
SHIM = "_sglang_on_cpu"
# torchvision's wheel on PyPI is built for CUDA; beside a CPU torch its operators do not load, and its import fails
# for want of their schemas. Nothing that serves text calls one.
SHIM_SOURCE = '''\
"""Lets torchvision be imported beside a torch that its operators were not built for."""

import importlib.abc
import sys


class BeforeTorchvision(importlib.abc.MetaPathFinder):
    """Declares the operators whose schemas torchvision's Python looks up, just before it is imported."""

    def find_spec(self, name, path, target=None):
        if name == "torchvision":
            sys.meta_path.remove(self)
            import torch

            self.library = torch.library.Library("torchvision", "DEF")
            for operator in ("nms", "qnms"):
                self.library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
            keep.append(self)
        return None


keep = []  # a library that is collected takes its operators along
sys.meta_path.insert(0, BeforeTorchvision())
'''
# Off CUDA, SGLang imports the name of a vLLM kernel for its rotary embedding, which on a CPU it then does not call.
VLLM_SOURCE = '''\
"""Stands in for vLLM, of which SGLang imports one name."""


def rotary_embedding(*_, **__):
    raise NotImplementedError("vLLM is not installed here")
'''
CHECK = "import sglang.launch_server, sglang.srt.entrypoints.http_server"


def default_folder() -> Path:
    return data_folder() / "test-engines" / "sglang-on-cpu"


def python_of(folder: Path) -> Path:
    return folder / "bin" / "python"


def complete(folder: Path) -> bool:
    marker = folder / MARKER
    return marker.is_file() and json.loads(marker.read_text()) == VERSIONS and python_of(folder).exists()


def make(folder: Path, base: str, pip_args: list[str]) -> None:
    """Make the environment anew, step by step."""
    if sys.platform != "linux":
        sys.exit("sglang_on_cpu: SGLang has wheels for Linux only")
    version = subprocess.run([base, "-c", "import sys; print(sys.version_info[:2])"], capture_output=True, text=True)
    if version.returncode != 0 or tuple(map(int, re.findall(r"\d+", version.stdout))) < OLDEST_PYTHON:
        wanted = ".".join(map(str, OLDEST_PYTHON))
        sys.exit(f"sglang_on_cpu: {base}: SGLang wants Python {wanted} or newer; name one with --python")
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    python = str(python_of(folder))
    pip = [python, "-m", "pip", "install", "-q", "--no-input", "--disable-pip-version-check", *pip_args]
    steps: list[tuple[str, Callable[[], object]]] = [
        ("an environment", lambda: run([base, "-m", "venv", str(folder)])),
        (TORCH, lambda: run([*pip, TORCH])),
        (f"{SGLANG}, without what it needs on a GPU", lambda: run([*pip, "--no-deps", SGLANG])),
        (f"{len(LIGHT) + len(UNNAMED)} of its dependencies", lambda: run([*pip, TORCH, *light(python), *UNNAMED])),
        (f"{TORCHVISION}, its Python alone", lambda: run([*pip, "--no-deps", TORCHVISION])),
        ("two shims", lambda: write_shims(next(folder.glob("lib/python*/site-packages")))),
        ("check that the server can be imported", lambda: run([python, "-c", CHECK])),
    ]
    print(f"== SGLang on the CPU, for the tests, in {folder}", flush=True)
    for number, (title, step) in enumerate(steps, 1):
        print(f"{number}/{len(steps)} {title} …", flush=True)
        started = time.monotonic()
        step()
        print(f"    {time.monotonic() - started:.0f} s", flush=True)
    (folder / MARKER).write_text(json.dumps(VERSIONS) + "\n")


def light(python: str) -> list[str]:
    """Return SGLang's own requirements of the light dependencies, with its versions."""
    code = "import importlib.metadata, json; print(json.dumps(importlib.metadata.requires('sglang')))"
    answer = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True)
    named = {}
    for requirement in json.loads(answer.stdout):
        name = re.match(r"[\w.-]+", requirement)
        if name and "extra ==" not in requirement:
            named[name[0].lower().replace("_", "-")] = requirement
    return [named[name] for name in LIGHT]


def write_shims(site_packages: Path) -> None:
    (site_packages / f"{SHIM}.py").write_text(SHIM_SOURCE)
    (site_packages / f"{SHIM}.pth").write_text(f"import {SHIM}\n")
    vllm = site_packages / "vllm"
    vllm.mkdir()
    (vllm / "__init__.py").touch()
    (vllm / "_custom_ops.py").write_text(VLLM_SOURCE)


def run(command: list[str]) -> None:
    """Run a step; its last lines are shown if it fails."""
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
    if done.returncode != 0:
        lines = [line for line in done.stdout.splitlines() if line.strip()][-8:]
        sys.exit("\n  ".join(["sglang_on_cpu: this step failed:", *lines]))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("folder", nargs="?", type=Path, help="where (default: below evalswap's data folder)")
    parser.add_argument("--python", default=sys.executable, help="the Python to make it of (3.11 or newer)")
    parser.add_argument("--print", action="store_true", help="only print the path of its Python, if it is complete")
    parser.add_argument("pip_args", nargs="*", help="after --: more arguments for pip install")
    args = parser.parse_args()
    folder = (args.folder or default_folder()).expanduser().absolute()
    if args.print:
        if not complete(folder):
            sys.exit(f"{folder} is not there or not complete: run python scripts/sglang_on_cpu.py")
        print(python_of(folder))
    elif complete(folder):
        print(f"SGLang on the CPU, for the tests: it is there, in {folder}")
    else:
        make(folder, args.python, args.pip_args)


if __name__ == "__main__":
    main()
