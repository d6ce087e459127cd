"""SGLang, through its native endpoint, by token ids.

https://docs.sglang.io/basic_usage/native_api.html and https://docs.sglang.io/basic_usage/sampling_params.html;
what they do not say was read in the source of 0.5.17 and 0.5.23.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from evalswap.engines.adapters import check_adapter, is_readable
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
    Refused,
    SamplingTable,
)
from evalswap.engines.flags import flags, given, kept_caches, number, own_environment, tensor_parallel, tokens
from evalswap.engines.start_modes import graph_sizes, start_mode
from evalswap.errors import ConversionError
from evalswap.plan import LaunchPlan
from evalswap.records import Completion, FinishReason, Request, Sampling

WINDOW_CPU, WINDOW_GPU = 16, 1024  # requests in flight, of each copy of the model
# The lengths in tokens that CUDA graphs of prefills are made for: some sixty of its own take a minute to capture.
# Longer ones do not need a graph to keep a GPU busy.
PREFILL_GRAPHS = (64, 128, 256, 512, 1024, 2048)
EAGER_TOKENS = 200_000  # of answers, up to which its CUDA graphs are not worth their time (see start_modes.py)
SETS_MODE_ITSELF = (
    "cuda_graph_config",
    "cuda_graph_backend_decode",
    "cuda_graph_backend_prefill",
    "cuda_graph_bs_decode",
    "cuda_graph_bs_prefill",
    "cuda_graph_max_bs_decode",
    "cuda_graph_max_bs_prefill",
    "cuda_graph_bs",
    "cuda_graph_max_bs",
    "disable_cuda_graph",
    "disable_decode_cuda_graph",
    "disable_prefill_cuda_graph",
)
CPU_KV_TOKENS = 16384  # room of the KV cache on a CPU
# A prompt and its answer must fit with some tokens to spare, or the server shortens the answer in silence.
CONTEXT_SLACK = 8
# On a GPU the filters follow one another, as in transformers, only while min_p is on; else both look at the
# whole distribution. So small a min_p changes nothing.
LEAST_MIN_P = 1e-9
CPU_FLAGS = {
    "attention_backend": "torch_native",
    "disable_overlap_schedule": True,
    "mem_fraction_static": 0.1,
}
CACHES = {
    "TVM_FFI_CACHE_DIR": "tvm_ffi",
    "FLASHINFER_WORKSPACE_BASE": "flashinfer",
    "TORCHINDUCTOR_CACHE_DIR": "inductor",
    "TRITON_CACHE_DIR": "triton",
}
BOTH_FILTERS_AT_ONCE = Exclusive(
    ("top_k", "top_p"),
    "its pytorch sampling applies both to the whole distribution, transformers top_p to what top_k left",
)


class Sglang(ManagedEngine):
    name: ClassVar[str] = "sglang"
    distributions: ClassVar[tuple[str, ...]] = ("sglang",)
    health_path: ClassVar[str] = "/health_generate"  # answers once a token was generated, after a second at least
    load_path: ClassVar[str] = "/v1/loads?include=core"
    stop_grace: ClassVar[float] = 1.0  # told to stop, it sleeps for five seconds first
    flag_names: ClassVar[Mapping[str, str]] = {
        "dtype": "--dtype",
        "peft_path": f"--enable-lora --lora-paths {SERVED_NAME}=",
        "trust_remote_code": "--trust-remote-code",
        "num_gpus": "--tp-size",
        "max_seq_len": "--context-length",
    }
    sampling: ClassVar[SamplingTable] = {
        "max_new_tokens": Native("max_new_tokens"),
        "min_new_tokens": Native("min_new_tokens"),
        "temperature": Native("temperature"),
        "top_p": Native("top_p"),
        "top_k": Native("top_k"),  # -1 is off
        "min_p": Native("min_p"),
        "repetition_penalty": Refused("it counts the answer's tokens only, transformers those of the prompt too"),
        "presence_penalty": Native("presence_penalty", least=-2, most=2),
        "frequency_penalty": Native("frequency_penalty", least=-2, most=2),
        "seed": Refused("it obeys a seed only with --engine-args enable_deterministic_inference=True"),
        "stop": Native("stop", first=32),  # its MAX_STOP_COUNT
        "stop_token_ids": Native("stop_token_ids"),
    }
    hints: ClassVar[tuple[tuple[str, str], ...]] = (
        (
            r"out of memory|Not enough memory|Memory pool size is too small",
            "too little GPU memory: lower --engine-args mem_fraction_static=0.8 (for the model's own work) or raise it "
            "(for the KV cache), fewer max_running_requests=…, or spread the model with num_gpus",
        ),
        (
            r"Model architectures .* are not supported",
            "SGLang does not have this architecture: try -a vllm, or run without -a",
        ),
    )

    def __init__(self, adapter: bool = False) -> None:
        self._adapter = adapter

    @property
    def up_path(self) -> str:
        return "/v1/models"

    def configured(self, plan: LaunchPlan, device: str | None = None) -> Sglang:
        asked = given(plan.engine_args)
        _check_dtype(plan.dtype, asked.get("device", device))
        if plan.peft_path and is_readable(plan.peft_path):  # else it is looked for before the start
            check_adapter(plan.peft_path, self.name)
        kind = Sglang
        if asked.get("enable_deterministic_inference"):
            kind = DeterministicSglang
        elif asked.get("sampling_backend") == "pytorch" or asked.get("device", device) == "cpu":
            kind = PlainSglang
        return kind(adapter=plan.peft_path is not None)

    def native_sampling(self, sampling: Sampling) -> dict[str, Any]:
        return with_its_own_off(super().native_sampling(sampling), sampling)

    def command(self, launch: Launch, python: Path, port: int) -> list[str]:
        _check_dtype(launch.dtype, launch.device)
        asked = given(launch.engine_args)
        stages = number(asked, "pp_size", "pipeline_parallel_size", default=1)
        window = self._of_each_copy(launch)
        own: dict[str, Any] = {
            "model_path": launch.model,
            "served_model_name": SERVED_NAME,
            "dtype": launch.dtype,
            "context_length": launch.context_len + CONTEXT_SLACK,
            "trust_remote_code": launch.trust_remote_code,
            "sampling_defaults": "openai",  # never the model's defaults: the sampling block is complete
            "random_seed": 0,
            "max_running_requests": window,
            "enable_cache_report": True,
            "skip_server_warmup": True,  # the health check generates a token itself
            "log_level_http": "warning",
            "host": LOOPBACK,
            "port": port,
        }
        mode = self.start_mode(launch)
        asked.pop("start_mode", None)
        if launch.device == "cpu":
            room = max(CPU_KV_TOKENS, 2 * launch.context_len)
            own |= {"device": "cpu", **CPU_FLAGS, "max_total_tokens": room}
        else:
            own["tp_size"] = tensor_parallel(launch, self.replicas(launch), stages)
            if mode is not None:
                own |= _mode_flags(mode, window)
        if launch.peft_path:
            check_adapter(launch.peft_path, self.name)
            own |= {"enable_lora": True, "lora_paths": f"{SERVED_NAME}={launch.peft_path}", "max_loras_per_batch": 1}
        return [str(python), "-m", "sglang.launch_server", *flags(own | asked)]

    def environment(self, launch: Launch) -> dict[str, str]:
        env = own_environment(launch) | {"SGLANG_ALLOW_OVERWRITE_LONGER_CONTEXT_LEN": "1"}  # for CONTEXT_SLACK
        return env | kept_caches(self.name, CACHES)

    def call(self, request: Request) -> HttpCall:
        assert request.prompt.token_ids is not None
        sampling = {**self.native_sampling(request.sampling), **ended_by(request.sampling)}
        body = {"input_ids": list(request.prompt.token_ids), "sampling_params": sampling, "stream": False}
        return HttpCall("/generate", body | ({"lora_path": SERVED_NAME} if self._adapter else {}))

    def read(self, answer: Any, request: Request) -> Completion:
        return read_generated(answer, request, self.name)

    def start_mode(self, launch: Launch) -> str | None:
        return start_mode(launch, SETS_MODE_ITSELF, EAGER_TOKENS)

    def asked_context(self, engine_args: Mapping[str, Any]) -> int | None:
        return tokens(given(engine_args), "context_length", less=CONTEXT_SLACK)

    def replicas(self, launch: Launch) -> int:
        asked = given(launch.engine_args)
        return 1 if asked.get("enable_dp_attention") else _data_parallel(asked)

    def window(self, launch: Launch) -> int:
        return self._of_each_copy(launch) * self.replicas(launch)

    def _of_each_copy(self, launch: Launch) -> int:
        """Return how many requests run at once on one of the model's copies: its ``max_running_requests``."""
        asked, copies = given(launch.engine_args), self.replicas(launch)
        # Where attention alone is data parallel, its groups share one copy, and this number.
        groups = _data_parallel(asked) if copies == 1 else 1
        most = WINDOW_CPU if launch.device == "cpu" else WINDOW_GPU * groups
        wanted = number(asked, "max_running_requests", default=most)
        return max(1, min(wanted, math.ceil(launch.answers / copies) if launch.answers else wanted))

    def read_load(self, content: str) -> EngineLoad | None:
        try:
            loads = json.loads(content)["loads"]
            return EngineLoad(
                running=sum(load["num_running_reqs"] for load in loads),
                waiting=sum(load["num_waiting_reqs"] for load in loads),
                cache_used=max((load.get("token_usage") or 0.0 for load in loads), default=None),
            )
        except (ValueError, KeyError, TypeError, AttributeError):
            return None


class PlainSglang(Sglang):
    """With ``--sampling-backend pytorch``."""

    exclusive: ClassVar[tuple[Exclusive, ...]] = (BOTH_FILTERS_AT_ONCE,)


class DeterministicSglang(Sglang):
    """With ``--enable-deterministic-inference``, which draws with pytorch, too."""

    sampling: ClassVar[SamplingTable] = {**Sglang.sampling, "seed": Native("sampling_seed")}
    exclusive: ClassVar[tuple[Exclusive, ...]] = (
        BOTH_FILTERS_AT_ONCE,
        Exclusive(("seed", "min_p"), "its seeded draw does not go with min_p"),
    )


def with_its_own_off(native: dict[str, Any], sampling: Sampling) -> dict[str, Any]:
    """Return sampling fields with SGLang's way to say that there is no top_k, and to have filters follow each other."""
    both = sampling.top_k and sampling.top_p < 1
    return native | {"top_k": sampling.top_k or -1} | ({"min_p": max(sampling.min_p, LEAST_MIN_P)} if both else {})


def ended_by(sampling: Sampling) -> dict[str, Any]:
    """Return the fields that say where an answer ends and what is left of its end, at each of SGLang's endpoints."""
    return {
        "n": 1,
        # ignore_eos would switch off stop_token_ids as well. Without any there is nothing to stop at.
        "ignore_eos": not sampling.stop_token_ids,
        "no_stop_trim": True,
        "skip_special_tokens": False,
    }


def _check_dtype(dtype: str, device: str | None) -> None:
    if dtype == "float32" and device == "cuda":
        raise ConversionError(
            "sglang has no float32 on a GPU: its own kernels (RMSNorm is the first) take half precision only",
            "choose model_kwargs=dict(dtype='bfloat16') (--model-kwargs dtype=bfloat16), "
            "or an engine that has float32 there: transformers, vllm",
        )


def _data_parallel(asked: Mapping[str, Any]) -> int:
    return number(asked, "dp_size", "data_parallel_size", default=1)


def _mode_flags(mode: str, window: int) -> dict[str, Any]:
    """Return the flags of a start mode; graphs are made for no larger batches than there can be."""
    if mode == "eager":
        return {"cuda_graph_backend_decode": "disabled", "cuda_graph_backend_prefill": "disabled"}
    decode = {"cuda_graph_bs_decode": graph_sizes(window)}
    return decode if mode == "full" else decode | {"cuda_graph_bs_prefill": list(PREFILL_GRAPHS)}


def read_generated(answer: Any, request: Request, engine: str) -> Completion:
    """Read an answer of SGLang's shape: ``output_ids`` and ``meta_info``.

    Raises MalformedAnswer for one that is none or was broken off, FinalAnswerError for an end that is no end.
    """
    try:
        ids = as_ids(answer["output_ids"], engine)
        meta = answer["meta_info"]
        finish = meta["finish_reason"]
        prompt_tokens = int(meta["prompt_tokens"])
        reason = _finish_reason(finish, ids, request, engine)
    except (KeyError, TypeError, ValueError) as error:
        raise MalformedAnswer(f"{engine} sent no answer: {str(answer)[:200]}") from error
    return Completion(
        token_ids=ids,
        text=answer.get("text"),
        finish_reason=reason,
        prompt_tokens=prompt_tokens,
        completion_tokens=len(ids),
        cached_tokens=meta.get("cached_tokens"),
    )


def read_completion(answer: Any, request: Request, engine: str) -> Completion:
    """Read an answer of SGLang's ``/v1/completions``: it says the same as ``/generate``, in other places.

    Raises as :func:`read_generated`.
    """
    try:
        choice, usage = answer["choices"][0], answer["usage"]
        details = usage.get("prompt_tokens_details") or {}
        generated = {
            "output_ids": choice["token_ids"],
            "text": choice.get("text"),
            "meta_info": {
                "finish_reason": {"type": choice["finish_reason"], "matched": choice.get("matched_stop")},
                "prompt_tokens": usage["prompt_tokens"],
                "cached_tokens": details.get("cached_tokens"),
            },
        }
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise MalformedAnswer(f"{engine} sent no completion: {str(answer)[:200]}") from error
    return read_generated(generated, request, engine)


def _finish_reason(finish: Any, ids: tuple[int, ...], request: Request, engine: str) -> FinishReason:
    kind, matched = finish["type"], finish.get("matched")
    if kind not in ("stop", "length"):
        raise MalformedAnswer(f"{engine} broke off the answer: {finish.get('message') or kind}")
    if isinstance(matched, str) and matched not in request.sampling.stop:
        raise FinalAnswerError(f"{engine} ended the answer: {matched}")  # "NaN happened"
    by_id = kind == "stop" and not isinstance(matched, str)
    return end_of(ids, request, engine, ended_by_id=by_id, ran_out=kind == "length")
