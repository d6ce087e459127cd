"""A model's files: which of them a run would read, and what they say of the weights.

llama.cpp loads a GGUF. A config.json beside it speaks of the weights that the GGUF was made of, which mostly are of
another dtype and size.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from evalswap.checking.findings import ModelCheck
from evalswap.checkpoint import Checkpoint, find_checkpoint, find_folder, gguf_elsewhere, looks_like_path
from evalswap.engines.base import Launch, ManagedEngine
from evalswap.engines.llamacpp import weights_file
from evalswap.errors import ModelFilesError, did_you_mean
from evalswap.gguf import gguf_config
from evalswap.plan import LaunchPlan

TOKENIZER_FILES = ("tokenizer*", "vocab.*", "*.tiktoken", "*.model")


def find_model(
    check: ModelCheck, launch: LaunchPlan, engine: ManagedEngine | None
) -> tuple[Checkpoint | None, Checkpoint | None]:
    """Return a model as a run knows it, and as the weights that are loaded describe it: the GGUF's, for llama.cpp."""
    try:
        folder = find_folder(launch.path, launch.revision)
    except ModelFilesError as error:
        if looks_like_path(launch.path):
            check.failed("model", error)
        else:
            hint = f"hf download {launch.path} (a run would fetch it first; a check uses no network)"
            check.problem("model", f"'{launch.path}' is no folder here, and not in the hub's cache", hint)
        return None, None
    checkpoint = weights = failure = None
    try:
        weights = gguf_checkpoint(folder, launch.engine_args) if engine and engine.name == "llamacpp" else None
    except ModelFilesError as error:
        failure = error
    try:
        if weights is not None and not (folder / "config.json").is_file():
            checkpoint = weights  # a vocabulary takes a moment to read: once is enough
        else:
            gguf = engine is not None and engine.program is not None
            named = str(launch.engine_args.get("model") or "")
            checkpoint = find_checkpoint(launch.path, launch.revision, gguf=gguf, gguf_name=named)
    except ModelFilesError as error:
        failure = failure or error
    if failure is not None:
        check.failed("model", failure)
        return checkpoint, None
    if weights is not None:
        dtype = weights.dtype or "quantised, or of several dtypes"
        check.good("model", f"{weights.name} ({weights.architecture}, {dtype})")
    elif checkpoint is not None:
        check.good("model", f"{folder} ({checkpoint.architecture}, {checkpoint.dtype or 'dtype not said'})")
    return checkpoint, weights or checkpoint


def gguf_checkpoint(folder: Path, engine_args: Mapping[str, Any]) -> Checkpoint:
    """Return the model as the GGUF that llama.cpp would load describes it; its name is the file's path.

    Raises ModelFilesError if the file is not there, not whole, or one of several that are not told apart.
    """
    try:
        file = weights_file(Launch(folder, "auto", 0, 1, 1, False, "cpu", engine_args=engine_args))
    except ModelFilesError as error:
        named = Path(str(engine_args.get("model", ""))).name
        near = did_you_mean(named, [file.name for file in folder.glob("*.gguf")])
        raise ModelFilesError(error.message, near or error.hint) from error
    elsewhere = gguf_elsewhere(folder, file)
    return Checkpoint(folder, str(file), gguf_config(file), {}, elsewhere=elsewhere)


def lacks_tokenizer(folder: Path) -> bool:
    """Whether a folder is there and no file in it is a tokenizer's. (The one inside a GGUF is not read.)"""
    return folder.is_dir() and not any(any(folder.glob(pattern)) for pattern in TOKENIZER_FILES)
