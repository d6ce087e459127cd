"""What a GGUF file says of its model, in the words of a HuggingFace config.json. Its weights are not read.

https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import os
import re
import struct
from pathlib import Path
from typing import Any, BinaryIO

from evalswap.errors import ModelFilesError

MAGIC = b"GGUF"
# https://github.com/ggml-org/ggml/blob/master/docs/gguf.md#gguf-naming-convention
PART = re.compile(r"(?P<name>.+)-\d{5}-of-(?P<count>\d{5})\.gguf")
VERSIONS = (2, 3)
STRING, ARRAY = 8, 9
NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
END_TOKENS = ("tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id")
# The words of a config.json → a GGUF's, behind the architecture's name.
SHAPE = {
    "max_position_embeddings": "context_length",
    "num_hidden_layers": "block_count",
    "hidden_size": "embedding_length",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "head_dim": "attention.key_length",
}
DTYPES = {0: "float32", 1: "float16", 32: "bfloat16"}  # general.file_type → the dtype of weights that are not quantised


def gguf_config(file: Path) -> dict[str, Any]:
    """Return architecture, context length and shape, end tokens and, where it is none of GGUF's own, dtype.

    Raises ModelFilesError for a file that is no GGUF of a known version, or is cut off.
    """
    try:
        with file.open("rb") as stream:
            said = _metadata(stream)
    except (OSError, struct.error, ValueError, RecursionError) as error:
        raise ModelFilesError(f"{file}: not a whole GGUF file: {error}", "get it again, or name another one") from error
    kind = str(said.get("general.architecture", "unknown"))
    config = {
        "architectures": [f"{kind} (GGUF)"],
        **{word: _largest(said.get(f"{kind}.{name}")) for word, name in SHAPE.items()},
        "eos_token_id": list(dict.fromkeys(said[name] for name in END_TOKENS if name in said)) or None,
        "dtype": DTYPES.get(said.get("general.file_type", -1)),
        "rope_scaling": _long_rope(said, kind),
    }
    return {key: value for key, value in config.items() if value is not None}


def _long_rope(said: dict[str, Any], kind: str) -> dict[str, Any] | None:
    original, now = said.get(f"{kind}.rope.scaling.original_context_length"), said.get(f"{kind}.context_length")
    if said.get(f"{kind}.rope.scaling.type", "longrope") != "longrope":
        return None
    if not (isinstance(original, int) and isinstance(now, int) and original < now):  # every Phi-3 says it
        return None
    return {"rope_type": "longrope", "original_max_position_embeddings": original}


def _largest(value: Any) -> Any:
    """Return a value, of one for each layer the largest."""
    return max(value, default=None) if isinstance(value, list) else value


def _metadata(stream: BinaryIO) -> dict[str, Any]:
    if stream.read(4) != MAGIC:
        raise ValueError("it does not begin with GGUF")
    version, _tensors, pairs = _unpack(stream, "IQQ")
    if version not in VERSIONS:
        raise ValueError(f"version {version} is not known")
    said = {}
    for _ in range(pairs):
        key = _string(stream)
        (kind,) = _unpack(stream, "I")
        said[key] = _value(stream, kind)
    return said


def _value(stream: BinaryIO, kind: int) -> Any:
    """Read one value. Arrays of texts (the vocabulary) are passed over and come as None."""
    if kind in NUMBERS:
        return _unpack(stream, NUMBERS[kind])[0]
    if kind == STRING:
        return _string(stream)
    if kind != ARRAY:
        raise ValueError(f"a value of the unknown type {kind}")
    of, length = _unpack(stream, "IQ")
    if of in NUMBERS:
        return list(_unpack(stream, f"{length}{NUMBERS[of]}"))
    if of == STRING:
        _pass_over_texts(stream, length)
    else:
        for _ in range(length):
            _value(stream, of)
    return None


def _pass_over_texts(stream: BinaryIO, count: int) -> None:
    """Go to the end of so many texts: a vocabulary has a hundred thousand, and not one is kept."""
    end = os.fstat(stream.fileno()).st_size
    for _ in range(count):
        head = stream.read(8)
        length = int.from_bytes(head, "little")
        if len(head) < 8 or length > end:
            raise ValueError("it is cut off")
        stream.seek(length, os.SEEK_CUR)
    if stream.tell() > end:
        raise ValueError("it is cut off")


def _string(stream: BinaryIO) -> str:
    (length,) = _unpack(stream, "Q")
    return _read(stream, length).decode("utf-8", errors="replace")


def _unpack(stream: BinaryIO, layout: str) -> tuple[Any, ...]:
    return struct.unpack("<" + layout, _read(stream, struct.calcsize("<" + layout)))


def _read(stream: BinaryIO, size: int) -> bytes:
    # A damaged length may ask for more than there is memory.
    content = stream.read(size) if size <= os.fstat(stream.fileno()).st_size else b""
    if len(content) < size:
        raise ValueError("it is cut off")
    return content


def gguf_parts(file: Path) -> list[Path]:
    """Return all files of a model that may be split over several, of which llama.cpp is told the first.

    Raises ModelFilesError if one of them is missing.
    """
    split = PART.fullmatch(file.name)
    if split is None:
        return [file]
    count = split["count"]
    parts = [file.with_name(f"{split['name']}-{i:05}-of-{count}.gguf") for i in range(1, int(count) + 1)]
    missing = [part.name for part in parts if not part.is_file()]
    if missing:
        raise ModelFilesError(
            f"{file}: of its {int(count)} parts {len(missing)} are not beside it", f"get {', '.join(missing[:3])}"
        )
    return parts
