"""What an adapter's own file says, and whether an engine does all of it.

https://huggingface.co/docs/peft/main/en/package_reference/lora
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from evalswap.checkpoint import small_file
from evalswap.errors import ConversionError, ModelFilesError

CONFIG = "adapter_config.json"
MERGE = "merge it into the checkpoint (peft's merge_and_unload) and give the merged folder"
# What a LoRA adapter can be beside B·A scaled by alpha/r. peft does it all; an engine that does not know of one of
# these loads the adapter all the same, and answers with other weights.
EXTRAS = (
    "use_rslora",  # scaled by alpha/sqrt(r)
    "rank_pattern",
    "alpha_pattern",
    "use_dora",
    "modules_to_save",
    "trainable_token_indices",
    "bias",
    "lora_bias",
    "layer_replication",
    "alora_invocation_tokens",
    "use_bdlora",
    "use_qalora",
)
# Which of them an engine does, too. vLLM 0.26 ignores rank_pattern and alpha_pattern, which later versions know.
DOES: Mapping[str, tuple[str, ...]] = {"vllm": ("use_rslora",)}
NOTHING: tuple[Any, ...] = (None, False, "none", [], {})
# Ways to begin a training after which the adapter is an ordinary one. Others (PiSSA, OLoRA, CorDA, LoftQ) change the
# model's own weights too, each time that peft loads them.
ORDINARY_INITS = ("gaussian", "eva", "orthogonal", "mica", "lora_ga")


def lora_rank(folder: str) -> int:
    """Return the rank of a LoRA adapter.

    Raises ModelFilesError where there is no adapter, ConversionError for one of another kind.
    """
    return int(_lora_config(folder)["r"])


def check_adapter(folder: str, engine: str) -> None:
    """Raise for an adapter that an engine would not load as peft does.

    Raises ModelFilesError where there is no adapter, ConversionError for what the engine does not do.
    """
    config = _lora_config(folder)
    asked = [name for name in EXTRAS if config.get(name) not in NOTHING]
    init = config.get("init_lora_weights")
    if isinstance(init, str) and init.lower() not in ORDINARY_INITS:
        asked.append("init_lora_weights")
    not_done = [name for name in asked if name not in DOES.get(engine, ())]
    if not_done:
        values = ", ".join(f"{name}={config[name]!r:.60}" for name in not_done)
        others = ["transformers", *(name for name, does in DOES.items() if set(asked) <= set(does))]
        raise ConversionError(
            f"{folder}: {engine} does not do what this adapter asks for: {values} ({CONFIG})",
            f"{MERGE}; engines that do it: {', '.join(others)}",
        )


def is_readable(folder: str) -> bool:
    """Whether an adapter is here to be looked at."""
    return _config_file(folder).is_file()


def _lora_config(folder: str) -> Mapping[str, Any]:
    file = _config_file(folder)
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
        kind, _ = config.get("peft_type", "LORA"), int(config["r"])
    except OSError as error:
        raise ModelFilesError(f"no adapter in {folder}: {file.name} cannot be read", "give its folder") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelFilesError(f"{file}: not an adapter's config: {error!r}", "give the adapter's folder") from error
    if kind != "LORA":
        raise ConversionError(f"{folder}: engines load LoRA adapters, not {kind}", MERGE)
    return dict(config)


def _config_file(folder: str) -> Path:
    return small_file(folder, CONFIG) or Path(folder) / CONFIG
