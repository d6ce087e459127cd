"""What an adapter's own file says.

https://huggingface.co/docs/peft/main/en/package_reference/lora
"""

from __future__ import annotations

import json
from pathlib import Path

from evalswap.errors import ConversionError, ModelFilesError


def lora_rank(folder: str) -> int:
    """Return the rank of a LoRA adapter, from its adapter_config.json.

    Raises ModelFilesError where there is no adapter, ConversionError for one of another kind.
    """
    file = Path(folder).expanduser() / "adapter_config.json"
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
        kind, rank = config.get("peft_type", "LORA"), int(config["r"])
    except OSError as error:
        raise ModelFilesError(f"no adapter in {folder}: {file.name} cannot be read", "give its folder") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelFilesError(f"{file}: not an adapter's config: {error!r}", "give the adapter's folder") from error
    if kind != "LORA":
        raise ConversionError(
            f"{folder}: engines load LoRA adapters, not {kind}",
            "merge it into the checkpoint (peft's merge_and_unload) and give the merged folder",
        )
    return rank
