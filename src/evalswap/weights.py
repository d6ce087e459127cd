"""A checkpoint's weight files, and what the headers of safetensors files say of them. No weight is read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

LONGEST_HEADER = 32 << 20  # bytes
DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}  # as safetensors writes them → as torch does


def weight_files(folder: Path) -> list[Path]:
    """Return the files that an engine loads: of several copies in a folder only one."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        try:
            names = set(json.loads(index.read_text())["weight_map"].values())
            return [folder / str(name) for name in sorted(names) if (folder / str(name)).is_file()]
        except (OSError, ValueError, KeyError, AttributeError, TypeError, RecursionError):
            pass
    for pattern in ("model*.safetensors", "*.safetensors", "*.bin", "*.pt", "*.gguf"):
        if files := sorted(folder.glob(pattern)):
            return files
    return []


def read_header(file: Path, most: int = LONGEST_HEADER) -> tuple[int, dict[str, Mapping[str, Any]]] | None:
    """Return the length of a safetensors file's header and its tensors by name.

    None if it cannot be read, or is too long.

    https://huggingface.co/docs/safetensors/index#format
    """
    try:
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if not 0 < length <= most:
                return None
            entries = json.loads(stream.read(length))
        tensors = {name: entry for name, entry in entries.items() if name != "__metadata__"}
        for tensor in tensors.values():
            begin, end = tensor["data_offsets"]
            if not 0 <= begin <= end or not isinstance(tensor["dtype"], str):
                return None
        return length, tensors
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def stored_dtype(folder: Path) -> str | None:
    """Return the dtype of the first floating weights ("bfloat16"), by name; None if the files do not tell.

    This is what ``dtype="auto"`` means to transformers where config.json names none: ``_get_dtype`` in its
    modeling_utils.py.
    """
    files = [file for file in weight_files(folder) if file.suffix == ".safetensors"]
    header = read_header(files[0]) if files else None
    if header is None:
        return None
    dtypes = (tensor["dtype"] for _, tensor in sorted(header[1].items()))
    return next((DTYPES[dtype] for dtype in dtypes if dtype in DTYPES), None)
