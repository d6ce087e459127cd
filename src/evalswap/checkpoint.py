"""A model's files: where its folder is, and what its small JSON files say. Weights are never loaded here.

Reads config.json, generation_config.json and a sample of the weight files, so no torch is needed.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

from evalswap.errors import ModelFilesError, did_you_mean
from evalswap.gguf import gguf_config, gguf_parts
from evalswap.weights import stored_dtype

CONTEXT_KEYS = ("max_position_embeddings", "n_positions", "seq_length", "model_max_length", "max_seq_len")
WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".gguf")
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.*",
    "merges.txt", "*.model", "*.tiktoken", "chat_template*", "*.jinja", "config.json", "generation_config.json",
)  # fmt: skip
SAMPLE_BYTES = 1 << 16


@dataclass(frozen=True)
class Checkpoint:
    """A model's folder and what its JSON files say."""

    folder: Path
    name: str  # as the config named it
    config: Mapping[str, Any]
    generation_config: Mapping[str, Any]
    elsewhere: tuple[Path, ...] = ()  # weight files that are not in the folder itself
    stored_dtype: str | None = None  # of the weights, where config.json names none
    has_generation_config: bool = False  # whether there is such a file, whatever it says

    @property
    def architecture(self) -> str:
        return ", ".join(self.config.get("architectures") or ["unknown"])

    @property
    def dtype(self) -> str | None:
        """The dtype that the checkpoint is stored in ("bfloat16"), if its files say."""
        value = self._text_config("dtype") or self._text_config("torch_dtype") or self.stored_dtype
        return str(value).removeprefix("torch.") if value else None

    @property
    def context_len(self) -> int | None:
        """The longest sequence the model was made for, in tokens."""
        for key in CONTEXT_KEYS:
            value = self._text_config(key)
            if isinstance(value, int) and value > 0:
                return value
        return None

    @property
    def one_rope_context(self) -> int | None:
        """The longest context in which LongRoPE takes its short factors, in tokens; None without LongRoPE.

        transformers chooses by the length of each sequence, some engines by the context that they are started with.
        https://arxiv.org/abs/2402.13753; ``_compute_longrope_parameters`` in transformers' modeling_rope_utils.py
        """
        rope = self._text_config("rope_parameters") or self._text_config("rope_scaling") or {}
        if not isinstance(rope, Mapping) or rope.get("rope_type", rope.get("type")) not in ("longrope", "su"):
            return None
        original = rope.get("original_max_position_embeddings") or self._text_config("original_max_position_embeddings")
        return original if isinstance(original, int) else None

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """The ids that end an answer: generation_config.json's, config.json's only where there is no such file.

        So does transformers: a generation_config.json without eos_token_id means that nothing ends an answer.
        """
        source = self.generation_config.get if self.has_generation_config else self._text_config
        eos = source("eos_token_id")
        return tuple(eos) if isinstance(eos, list) else () if eos is None else (int(eos),)

    def identity(self) -> str:
        """Return a hash of what the model is: its JSON files and a sample of every weight file.

        Paths and file times do not enter, so a moved or copied folder keeps its identity.
        """
        digest = hashlib.sha256()
        for file in [*sorted(self.folder.iterdir()), *self.elsewhere]:
            if file.suffix == ".json":
                digest.update(file.name.encode() + file.read_bytes())
            elif file.suffix in WEIGHT_SUFFIXES:
                digest.update(_sample(file))
        return digest.hexdigest()

    def _text_config(self, key: str) -> Any:
        """Look a key up, also where multimodal configs nest the language model's."""
        if self.config.get(key) is not None:
            return self.config[key]
        nested = self.config.get("text_config")
        return nested.get(key) if isinstance(nested, Mapping) else None


def find_checkpoint(
    path: str, revision: str | None = None, *, gguf: bool = False, gguf_name: str | None = None
) -> Checkpoint:
    """Return a model's files, from a folder or from the HuggingFace hub (and its local cache).

    With ``gguf`` a folder need not have a config.json: the GGUF file in it says what the model is, of several the
    one that ``gguf_name`` names.

    Raises ModelFilesError when they can be had from neither.
    """
    folder = find_folder(path, revision)
    files = sorted(folder.glob("*.gguf")) if gguf else []
    elsewhere: tuple[Path, ...] = ()
    if gguf and gguf_name and (named := folder / Path(gguf_name).expanduser()).is_file():
        files = [named]
        elsewhere = gguf_elsewhere(folder, named)
    if files and not (folder / "config.json").is_file():
        return Checkpoint(folder, path, gguf_config(files[0]), generation_config={}, elsewhere=elsewhere)
    if not (folder / "config.json").is_file():
        raise ModelFilesError(f"{folder}: no config.json, so this is not a HuggingFace model folder")
    generation = folder / "generation_config.json"
    found = Checkpoint(
        folder=folder,
        name=path,
        config=_read_json(folder / "config.json"),
        generation_config=_read_json(generation) if generation.is_file() else {},
        elsewhere=elsewhere,
        has_generation_config=generation.is_file(),
    )
    return found if found.dtype or files else dataclasses.replace(found, stored_dtype=stored_dtype(folder))


def file_identity(file: Path) -> str:
    """Return a hash of one weight file: its name, its size and a sample of what is in it."""
    return hashlib.sha256(_sample(file)).hexdigest()


def _sample(file: Path) -> bytes:
    size = file.stat().st_size
    parts = [f"{file.name}:{size}".encode()]
    with file.open("rb") as stream:
        for place in (0, size // 2, max(0, size - SAMPLE_BYTES)):
            stream.seek(place)
            parts.append(stream.read(SAMPLE_BYTES))
    return b"".join(parts)


def gguf_elsewhere(folder: Path, file: Path) -> tuple[Path, ...]:
    """Return the files of a GGUF model that are not in the model's folder itself, which counts as it is.

    Raises ModelFilesError if it is split and a part is missing.
    """
    parts = tuple(gguf_parts(file))
    return () if file.parent.resolve() == folder.resolve() else parts


def find_folder(path: str, revision: str | None = None, *, tokenizer_only: bool = False) -> Path:
    """Return the folder of a model: a path as it is, a hub id downloaded or found in the cache."""
    folder = Path(path).expanduser()
    if folder.is_dir():
        return folder.resolve()
    if looks_like_path(path):
        parent = folder.parent
        near = did_you_mean(folder.name, [p.name for p in parent.iterdir()]) if parent.is_dir() else None
        raise ModelFilesError(f"model folder not found: {path}", near or "give an existing folder or a hub id")
    return _from_hub(path, revision, tokenizer_only)


def find_adapter(path: str) -> str:
    """Return an adapter's path, or its hub id as it is: engines find it in the hub's cache, and fetch nothing.

    Raises ModelFilesError if nothing is there, or no adapter.
    """
    local = Path(path).expanduser()
    if local.is_dir() and not (local / "adapter_config.json").is_file():
        raise ModelFilesError(
            f"{path}: no adapter_config.json, so this is no adapter", "name the folder that peft saved"
        )
    if not local.exists() and looks_like_path(path):
        raise ModelFilesError(f"adapter not found: {path}", "give an existing folder, for llama.cpp a GGUF file")
    return str(local) if path.startswith("~") else path  # as it was written otherwise: it is in the answers' keys


def small_file(path: str, name: str) -> Path | None:
    """Return one of a model's or adapter's small files; None where it cannot be known whether it has one.

    It is looked for in its folder or in the hub's cache; nothing is downloaded. Where there is known to be none, the
    path returned does not exist.
    """
    folder = Path(path).expanduser()
    if folder.exists():
        return (folder.parent if folder.is_file() else folder) / name
    if looks_like_path(path):
        return None
    from huggingface_hub import try_to_load_from_cache

    try:
        found = try_to_load_from_cache(path, name)
    except ValueError:  # no name of the hub's
        return None
    return None if found is None else Path(found) if isinstance(found, str) else folder / name


def find_generation_config(path: str) -> Mapping[str, Any] | None:
    """Return a model's generation_config.json, empty if it has none, without a download; None if nobody can tell.

    Raises ModelFilesError if it is not readable.
    """
    file = small_file(path, "generation_config.json")
    if file is None:
        return None
    return _read_json(file) if file.is_file() else {}


def looks_like_path(path: str) -> bool:
    """Whether a model is named by a path rather than by a hub id ("organisation/name")."""
    return path.startswith((".", "/", "~")) or path.count("/") != 1


def _from_hub(name: str, revision: str | None, tokenizer_only: bool) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    wanted = list(TOKENIZER_FILES)
    if not tokenizer_only:
        wanted += ["*.json", "*.safetensors", "*.py"]
    offline = not hub_reachable()
    try:
        chosen = {"allow_patterns": wanted, "ignore_patterns": ["consolidated*", "original/*"]}  # the weights once more
        return Path(snapshot_download(name, revision=revision, local_files_only=offline, **chosen))
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else "?"
        raise ModelFilesError(
            f"model '{name}': the hub answered {status}",
            "check the name; for a gated model accept its licence and set HF_TOKEN",
        ) from error
    except Exception as error:
        raise ModelFilesError(
            f"model '{name}' is neither a folder here nor in the hub's cache, and the hub cannot be reached",
            f"give the path of a folder that holds it, or download it where there is a network "
            f"(hf download {name}) and copy the cache (HF_HOME); HF_ENDPOINT names another hub",
        ) from error


def hub_reachable() -> bool:
    """Whether the HuggingFace hub can be asked: at once, where its client would try again for half a minute."""
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "TRUE", "YES", "ON"):
        return False
    address = urlsplit(os.environ.get("HF_ENDPOINT") or "https://huggingface.co")
    if getproxies().get(address.scheme):
        return True  # the proxy knows; a direct connection need not work
    try:
        with socket.create_connection((address.hostname or "", address.port or 443), timeout=5):
            return True
    except OSError:
        return False


def _read_json(file: Path) -> dict[str, Any]:
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelFilesError(f"{file}: not readable as JSON: {error}") from error
    if not isinstance(data, dict):
        raise ModelFilesError(f"{file}: a JSON object is wanted")
    return data
