"""The names that answers are stored under: hashes of what decides them."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from typing import Any

from evalswap.records import Prompt, Sampling
from evalswap.store import pack_ids


class ContentKeys:
    """Makes the content keys of one job: hashes of what decides an answer.

    ``source`` holds the model's identity, the engine with its version and flags, dtype and device. Ports,
    paths and row numbers never enter.
    """

    def __init__(self, source: Mapping[str, Any]) -> None:
        self.source = hashlib.sha256(_canonical(source)).hexdigest()
        self._begun: dict[tuple[Sampling, int], Any] = {}  # what all prompts of one sampling block share

    def key(self, prompt: Prompt, sampling: Sampling, repeat: int = 0) -> str:
        begun = self._begun.get((sampling, repeat))
        if begun is None:
            begun = hashlib.sha256(self.source.encode())
            begun.update(_canonical(dataclasses.asdict(sampling)))
            begun.update(str(repeat).encode())
            if len(self._begun) < 1000:  # every prompt that leaves less room for its answer has a block of its own
                self._begun[sampling, repeat] = begun
        digest = begun.copy()
        if prompt.token_ids is not None:
            digest.update(b"ids" + pack_ids(prompt.token_ids))
        else:
            digest.update(b"messages" + _canonical(prompt.messages))
        return str(digest.hexdigest())


def _canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, default=str).encode()
