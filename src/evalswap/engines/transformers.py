"""HuggingFace transformers, the reference: served by our own worker in padded batches of ``batch_size``.

https://huggingface.co/docs/transformers/main_classes/text_generation
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from evalswap.engines.answers import as_ids
from evalswap.engines.base import (
    LOOPBACK,
    HttpCall,
    Launch,
    MalformedAnswer,
    ManagedEngine,
    Native,
    Refused,
    SamplingTable,
)
from evalswap.engines.flags import first_gpus, flags, given, number, own_environment
from evalswap.errors import ConversionError, did_you_mean
from evalswap.plan import LaunchPlan
from evalswap.records import Completion, Request

WORKER = Path(__file__).with_name("transformers_worker")
# What --engine-args may say of it.
WORKER_FLAGS = ("batch_size", "device", "dtype", "model_kwargs", "pad_token_id", "peft_path", "trust_remote_code")
NOT_IN_HF = Refused("transformers' generate() has no such penalty")


class Transformers(ManagedEngine):
    name: ClassVar[str] = "transformers"
    distributions: ClassVar[tuple[str, ...]] = ("transformers",)
    flag_names: ClassVar[Mapping[str, str]] = {
        "dtype": "--dtype",
        "batch_size": "--batch-size",
        "pad_token_id": "--pad-token-id",
        "peft_path": "--peft-path",
        "trust_remote_code": "--trust-remote-code",
        "num_gpus": 'device_map="auto" over GPUs:',
        "max_seq_len": "context:",
    }
    hints: ClassVar[tuple[tuple[str, str], ...]] = (
        (
            r"No module named 'peft'",
            "peft_path needs peft in that environment: evalswap engines install transformers brings it, or pip "
            "install peft with its Python",
        ),
        (
            r"CUDA out of memory|OutOfMemoryError",
            "a smaller batch_size, or more GPUs: run_cfg=dict(num_gpus=…) (--hf-num-gpus N); parts of a model are left "
            "to the CPU only where model_kwargs has max_memory",
        ),
        (r"requires bitsandbytes", "install it there: pip install bitsandbytes with that environment's Python"),
    )
    sampling: ClassVar[SamplingTable] = {
        "max_new_tokens": Native("max_new_tokens"),
        "min_new_tokens": Native("min_new_tokens"),
        "temperature": Native("temperature"),
        "top_p": Native("top_p"),
        "top_k": Native("top_k"),
        "min_p": Native("min_p"),
        "repetition_penalty": Native("repetition_penalty"),
        "presence_penalty": NOT_IN_HF,
        "frequency_penalty": NOT_IN_HF,
        "seed": Native("seed"),
        "stop": Native("stop"),
        "stop_token_ids": Native("stop_token_ids"),
    }

    def configured(self, plan: LaunchPlan, device: str | None = None) -> ManagedEngine:
        for name in given(plan.engine_args):
            if name not in WORKER_FLAGS:
                raise ConversionError(
                    f"--engine-args {name}: {self.name} has no such flag",
                    did_you_mean(name, WORKER_FLAGS) or f"there are: {', '.join(WORKER_FLAGS)}",
                )
        return self

    def command(self, launch: Launch, python: Path, port: int) -> list[str]:
        own: dict[str, Any] = {
            "model": launch.model,
            "dtype": launch.dtype,
            "batch_size": launch.batch_size,
            "device": launch.device,
            "trust_remote_code": launch.trust_remote_code,
            "pad_token_id": launch.pad_token_id,
            "peft_path": launch.peft_path,
            "model_kwargs": json.dumps(dict(launch.model_kwargs)) if launch.model_kwargs else None,
            "host": LOOPBACK,
            "port": port,
        }
        return [str(python), str(WORKER), *flags(own | dict(launch.engine_args))]

    def environment(self, launch: Launch) -> dict[str, str]:
        places_itself = launch.model_kwargs.get("device_map", "auto") != "auto"
        return own_environment(launch) | ({} if places_itself else first_gpus(launch))

    def call(self, request: Request) -> HttpCall:
        assert request.prompt.token_ids is not None
        sampling = self.native_sampling(request.sampling)
        body = {"input_ids": list(request.prompt.token_ids), "order": request.row, "sampling": sampling}
        return HttpCall("/generate", body)

    def read(self, answer: Any, request: Request) -> Completion:
        try:
            ids = as_ids(answer["token_ids"], self.name)
            return Completion(
                token_ids=ids,
                text=None,
                finish_reason="stop" if answer["finish_reason"] == "stop" else "length",
                prompt_tokens=int(answer["prompt_tokens"]),
                completion_tokens=len(ids),
            )
        except (KeyError, TypeError) as error:
            raise MalformedAnswer(f"{self.name} sent no answer: {str(answer)[:200]}") from error

    def window(self, launch: Launch) -> int:
        # One batch runs, the next waits.
        return 2 * number(given(launch.engine_args), "batch_size", default=launch.batch_size)
