"""What memory a model needs on an engine, from its files' headers and its config.json; and what there is.

    weights       = Σ over tensors: elements × bytes of the dtype that they are loaded in
    cache a token = 2 × layers × key/value heads × head size × bytes          (keys and values)
                  = layers × (latent + rope size) × bytes                     (multi-head latent attention)
    one sequence  = Σ over layers: cache a token × min(context, that layer's window)
    at full load  = one sequence × requests in flight

Engines that page their cache (vLLM, SGLang, LMDeploy) let what does not fit wait, so ``weights + one sequence``
is what must fit, and the rest is speed. The cache's size is that of https://arxiv.org/abs/2309.06180, section 3;
latent attention's of https://arxiv.org/abs/2405.04434, section 2.1. Activations, CUDA graphs and the runtime
come on top: a gibibyte or a few, which no file tells.
"""

from __future__ import annotations

import math
import os
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evalswap.checkpoint import Checkpoint
from evalswap.engines.base import Launch, ManagedEngine
from evalswap.engines.flags import given
from evalswap.engines.llamacpp import weights_file
from evalswap.gguf import gguf_parts
from evalswap.weights import LONGEST_HEADER, read_header, weight_files

GIB = 1 << 30
_ASK_SECONDS = 5.0
_FLOATS = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}  # as safetensors writes them
_LOADED = {"float32": 4, "float16": 2, "bfloat16": 2}
# The share of a GPU that an engine takes by default: (its flag, value).
_SHARES = {"vllm": ("gpu_memory_utilization", 0.9), "sglang": ("mem_fraction_static", 0.85)}


@dataclass(frozen=True, slots=True)
class MemoryNeed:
    """What a model needs, in bytes, over all GPUs together. None: its files do not tell."""

    weights: int | None
    cache_per_token: int | None
    one_sequence: int | None  # of the whole context
    in_flight: int  # requests at once
    context_len: int

    @property
    def full_load(self) -> int | None:
        return None if self.one_sequence is None else self.one_sequence * self.in_flight


@dataclass(frozen=True, slots=True)
class Memory:
    """What there is, in bytes: of the smallest GPU, or of the machine."""

    total: int
    free: int
    devices: int = 1


def memory_need(engine: ManagedEngine, launch: Launch, checkpoint: Checkpoint) -> MemoryNeed:
    """Work out what a launch needs; reads headers, never weights.

    Raises ModelFilesError where llama.cpp has no file to load.
    """
    size = _LOADED.get(launch.dtype) or _LOADED.get(checkpoint.dtype or "")
    cache_size = _cache_element(engine, launch, size)
    layers = _layers(_text_config(checkpoint.config))
    per_token = one = None
    if layers is not None and cache_size:
        per_token = sum(elements for elements, _ in layers) * cache_size
        one = sum(elements * int(min(launch.context_len, window)) for elements, window in layers) * cache_size
    # transformers makes batches; the others take as many as they say.
    in_flight = launch.batch_size if engine.name == "transformers" else engine.window(launch)
    if engine.name == "llamacpp":
        parts = gguf_parts(weights_file(launch))
        weights: int | None = sum(part.stat().st_size for part in parts)  # loaded as they are stored
    else:
        weights = weights_size(checkpoint, size)
    return MemoryNeed(weights, per_token, one, in_flight, launch.context_len)


def _cache_element(engine: ManagedEngine, launch: Launch, weights: int | None) -> int | None:
    """Return the bytes of a number in the cache: those of the weights, unless the engine or its flags differ."""
    asked = given(launch.engine_args)
    if engine.name == "llamacpp":  # whatever the weights are; four-bit types are counted as eight bits
        kind = asked.get("cache_type_k", "f32" if launch.dtype == "float32" else "f16")
        return _FLOATS.get(str(kind).upper(), 1)
    return 1 if "8" in str(asked.get("kv_cache_dtype", "")) else weights


def weights_size(checkpoint: Checkpoint, loaded: int | None) -> int | None:
    """Return the bytes of a model's weights once loaded, each float in ``loaded`` bytes (None: as stored).

    Quantised weights stay as they are stored, and files whose headers are too long in all count by their size. None
    if the folder has no weights.
    """
    if checkpoint.config.get("quantization_config"):
        loaded = None
    files = weight_files(checkpoint.folder)
    total, read = 0, 0
    for file in files:
        header = read_header(file, LONGEST_HEADER - read) if file.suffix == ".safetensors" else None
        if header is None:
            total += file.stat().st_size
            continue
        text, tensors = header
        read += text
        for tensor in tensors.values():
            begin, end = tensor["data_offsets"]
            stored = _FLOATS.get(tensor["dtype"])
            total += (end - begin) // stored * loaded if stored and loaded else end - begin
    return total if files else None


def gpu_memory() -> Memory | None:
    """Return the memory of the GPUs that a run would see, as nvidia-smi tells; None without any.

    https://docs.nvidia.com/deploy/nvidia-smi/index.html
    """
    program = shutil.which("nvidia-smi")
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if program is None or (visible is not None and visible.strip() in ("", "-1")):
        return None
    query = [program, "--query-gpu=index,uuid,memory.total,memory.free", "--format=csv,noheader,nounits"]
    try:
        lines = subprocess.run(query, capture_output=True, text=True, timeout=_ASK_SECONDS, check=True).stdout
        gpus = [[word.strip() for word in line.split(",")] for line in lines.splitlines() if line.strip()]
        if visible is not None:
            wanted = [word.strip() for word in visible.split(",")]
            gpus = [gpu for gpu in gpus if gpu[0] in wanted or any(word and gpu[1].startswith(word) for word in wanted)]
        sizes = [(int(total) << 20, int(free) << 20) for _, _, total, free in gpus]
    except (OSError, ValueError, subprocess.SubprocessError):
        return None
    return Memory(min(sizes)[0], min(free for _, free in sizes), len(sizes)) if sizes else None


def machine_memory() -> Memory | None:
    """Return this machine's memory, within what its container may use; None where the system does not tell."""
    try:
        lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        total, free = (int(lines[name].split()[0]) << 10 for name in ("MemTotal", "MemAvailable"))
    except (OSError, ValueError, KeyError):
        try:
            total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
            free = total
        except (OSError, ValueError):
            return None
    limit, used = (_number(Path("/sys/fs/cgroup") / name) for name in ("memory.max", "memory.current"))
    if limit is not None and limit < total:
        total, free = limit, min(free, max(0, limit - (used or 0)))
    return Memory(total, free)


def share_of_gpu(engine: str, launch: Launch) -> float:
    """Return the share of a GPU's memory that an engine takes for weights and cache."""
    flag, share = _SHARES.get(engine, ("", 1.0))
    try:
        return float(given(launch.engine_args).get(flag, share))
    except (TypeError, ValueError):
        return share


def cache_space(environment: Mapping[str, str]) -> int | None:
    """Return the bytes that vLLM sets aside for its cache on a CPU; None where it sets none aside."""
    try:
        return int(float(environment["VLLM_CPU_KVCACHE_SPACE"]) * GIB)
    except (KeyError, ValueError):
        return None


def _text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the language model's part of a config; multimodal ones nest it."""
    nested = config.get("text_config") or config.get("llm_config")
    return {**config, **nested} if isinstance(nested, Mapping) else config


def _layers(config: Mapping[str, Any]) -> list[tuple[int, float]] | None:
    """Return for each layer with a growing cache its elements a token and its window in tokens (inf: none)."""

    def number(*names: str) -> int | None:
        values = [config[name] for name in names if isinstance(config.get(name), int) and config[name] > 0]
        return values[0] if values else None

    count = number("num_hidden_layers", "n_layer", "num_layers")
    heads = number("num_attention_heads", "n_head")
    width = number("hidden_size", "n_embd", "d_model")
    if count is None:
        return None
    if latent := number("kv_lora_rank"):
        elements = latent + (number("qk_rope_head_dim") or 0)
    else:
        head = number("head_dim") or (width // heads if width and heads else None)
        groups = number("num_key_value_heads", "multi_query_group_num", "num_kv_heads") or heads
        if head is None or groups is None:
            return None
        elements = 2 * groups * head
    window = number("sliding_window") if config.get("use_sliding_window", True) else None
    kinds = config.get("layer_types")
    if not isinstance(kinds, list) or len(kinds) != count:
        # Without a list of kinds a window may hold for some layers only: the whole context is the safe side.
        return [(elements, math.inf)] * count
    return [
        (elements, window if kind == "sliding_attention" and window else math.inf)
        for kind in kinds
        if str(kind).endswith("attention") and kind != "linear_attention"
    ]


def _number(file: Path) -> int | None:
    try:
        return int(file.read_text())
    except (OSError, ValueError):  # "max": no limit
        return None
