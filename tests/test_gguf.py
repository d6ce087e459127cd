"""Reading what a GGUF file says of its model, from files made here after GGUF's specification."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evalswap.errors import ModelFilesError
from evalswap.gguf import gguf_config


def text(value: str) -> bytes:
    content = value.encode()
    return struct.pack("<Q", len(content)) + content


def value(item: Any) -> bytes:
    """Return a typed value: bool, whole number (32 bits, unsigned), float, text, or list of one of them."""
    if isinstance(item, bool):
        return struct.pack("<I?", 7, item)
    if isinstance(item, int):
        return struct.pack("<II", 4, item)
    if isinstance(item, float):
        return struct.pack("<If", 6, item)
    if isinstance(item, str):
        return struct.pack("<I", 8) + text(item)
    first = value(item[0])
    return struct.pack("<I", 9) + first[:4] + struct.pack("<Q", len(item)) + b"".join(value(i)[4:] for i in item)


def gguf(said: dict[str, Any], version: int = 3) -> bytes:
    pairs = b"".join(text(key) + value(item) for key, item in said.items())
    return b"GGUF" + struct.pack("<IQQ", version, 0, len(said)) + pairs


LLAMA = {
    "general.architecture": "llama",
    "general.file_type": 0,
    "llama.context_length": 8192,
    "llama.block_count": 30,
    "llama.embedding_length": 576,
    "llama.attention.head_count": 9,
    "llama.attention.head_count_kv": [3, 3, 1],
    "llama.rope.freq_base": 10000.0,
    "tokenizer.ggml.add_bos_token": False,
    "tokenizer.ggml.tokens": ["<unk>", "é", "</s>"],
    "tokenizer.ggml.scores": [0.0, -1.0, -2.0],
    "tokenizer.ggml.eos_token_id": 2,
    "tokenizer.ggml.eot_token_id": 32,
}


def read(tmp_path: Path, content: bytes) -> dict[str, Any]:
    file = tmp_path / "m.gguf"
    file.write_bytes(content)
    return gguf_config(file)


@pytest.mark.parametrize("version", [2, 3])
def test_what_a_model_says_of_itself(version: int, tmp_path: Path) -> None:
    assert read(tmp_path, gguf(LLAMA, version)) == {
        "architectures": ["llama (GGUF)"],
        "max_position_embeddings": 8192,
        "num_hidden_layers": 30,
        "hidden_size": 576,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "eos_token_id": [2, 32],
        "dtype": "float32",
    }


def test_what_it_does_not_say_is_not_there(tmp_path: Path) -> None:
    assert read(tmp_path, gguf({"general.architecture": "qwen2", "general.file_type": 15})) == {
        "architectures": ["qwen2 (GGUF)"]
    }


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "does not begin with GGUF"),
        (b"PK\3\4" + bytes(99), "does not begin with GGUF"),
        (gguf(LLAMA, version=9), "version 9 is not known"),
        (gguf(LLAMA)[:-3], "cut off"),
        (gguf(LLAMA)[:40], "cut off"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", 1 << 60), "cut off"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + text("a") + struct.pack("<I", 77), "unknown type 77"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + text("a") + struct.pack("<IIQ", 9, 8, 1 << 60), "cut off"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + text("a") + struct.pack("<IIQQ", 9, 8, 1, 1 << 63), "cut off"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + text("a") + struct.pack("<IIQQ", 9, 8, 1, 9), "cut off"),
    ],
)
def test_what_is_no_whole_gguf_file(content: bytes, reason: str, tmp_path: Path) -> None:
    with pytest.raises(ModelFilesError, match=reason) as caught:
        read(tmp_path, content)
    assert caught.value.hint


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ModelFilesError, match="No such file"):
        gguf_config(tmp_path / "no.gguf")


@given(st.integers(0, len(gguf(LLAMA)) - 1), st.binary(min_size=1, max_size=8))
def test_a_damaged_file_is_an_error_or_read(tmp_path_factory: pytest.TempPathFactory, at: int, junk: bytes) -> None:
    whole = gguf(LLAMA)
    damaged = whole[:at] + junk + whole[at + len(junk) :]
    try:
        read(tmp_path_factory.getbasetemp(), damaged)
    except ModelFilesError:
        return
