"""LMDeploy, on its TurboMind or its PyTorch backend, by token ids.

https://lmdeploy.readthedocs.io/en/latest/llm/api_server.html; what it does not say was read in the source of
0.18.0. It needs CUDA and has no float32.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from evalswap.engines.base import (
    LOOPBACK,
    SERVED_NAME,
    Emulated,
    EngineLoad,
    HttpCall,
    Launch,
    ManagedEngine,
    Native,
    Refused,
    SamplingTable,
)
from evalswap.engines.flags import (
    first_gpus,
    flags,
    given,
    kept_caches,
    number,
    own_environment,
    tensor_parallel,
    tokens,
)
from evalswap.engines.prometheus import read_load
from evalswap.engines.sglang import read_generated
from evalswap.errors import ConversionError
from evalswap.plan import LaunchPlan
from evalswap.records import Completion, Request, Sampling

START = Path(__file__).with_name("lmdeploy_start")
WINDOW = 512  # requests in flight, of each GPU; with 128 it takes three times as long
CONTEXT_SLACK = 8  # the server shortens an answer that would fill the session to the last token
CACHES = {"TORCHINDUCTOR_CACHE_DIR": "inductor", "TRITON_CACHE_DIR": "triton"}
NOT_IN_ENDPOINT = Refused("its endpoint for token ids has no such field")


class Lmdeploy(ManagedEngine):
    name: ClassVar[str] = "lmdeploy"
    distributions: ClassVar[tuple[str, ...]] = ("lmdeploy",)
    load_path: ClassVar[str] = "/metrics"
    load_is_live: ClassVar[bool] = False  # counted every 10 s: its api_server.py, log_interval
    flag_names: ClassVar[Mapping[str, str]] = {
        "dtype": "--dtype",
        "trust_remote_code": "--trust-remote-code",
        "num_gpus": "--tp",
        "max_seq_len": "--session-len",
    }
    sampling: ClassVar[SamplingTable] = {
        "max_new_tokens": Native("max_tokens"),
        "min_new_tokens": NOT_IN_ENDPOINT,
        "temperature": Native("temperature", most=2),  # greedy is top_k=1
        "top_p": Native("top_p"),
        "top_k": Native("top_k", most=1024),  # its kernel's limit, sampling_topk_kernels.cu
        "min_p": Native("min_p"),
        "repetition_penalty": Native("repetition_penalty"),
        "presence_penalty": NOT_IN_ENDPOINT,
        "frequency_penalty": NOT_IN_ENDPOINT,
        "seed": NOT_IN_ENDPOINT,
        # Its own stop words are tokens that contain the word, which is another rule.
        "stop": Emulated("the engine writes on to a stop id, and evalswap cuts the text"),
        "stop_token_ids": Native("stop_token_ids"),
    }
    hints: ClassVar[tuple[tuple[str, str], ...]] = (
        (
            r"out of memory|No enough gpu memory",
            "too little GPU memory: lower --engine-args cache_max_entry_count=0.5 or max_batch_size=…, "
            "or spread the model with num_gpus",
        ),
        (
            r"TurboMind does not run this model",
            "run it on LMDeploy's other backend with --engine-args backend=pytorch",
        ),
        (
            r"Can not found rewrite for|support has been removed from LMDeploy",
            "LMDeploy does not have this architecture: try -a vllm, or run without -a",
        ),
    )

    def configured(self, plan: LaunchPlan, device: str | None = None) -> Lmdeploy:
        _check_dtype(plan.dtype)
        asked = given(plan.engine_args)
        if asked.get("backend") == "pytorch" and number(asked, "dp", default=1) > 1:
            raise ConversionError(
                "lmdeploy's PyTorch backend starts a server for each data-parallel copy, and evalswap asks one",
                "leave dp out, or take backend=turbomind",
            )
        return LmdeployPytorch() if given(plan.engine_args).get("backend") == "pytorch" else Lmdeploy()

    def native_sampling(self, sampling: Sampling) -> dict[str, Any]:
        native = super().native_sampling(sampling)
        # A temperature of 0 means greedy to one backend only, one candidate to both.
        return native | ({"temperature": 1.0, "top_k": 1} if sampling.greedy else {})

    def command(self, launch: Launch, python: Path, port: int) -> list[str]:
        _check_dtype(launch.dtype)
        asked = given(launch.engine_args)
        own: dict[str, Any] = {
            "backend": "turbomind",
            "model_name": SERVED_NAME,
            "dtype": launch.dtype,
            "session_len": launch.context_len + CONTEXT_SLACK,
            "tp": tensor_parallel(launch, self.replicas(launch)),
            "max_batch_size": self.window(launch),
            "generation_config": "lmdeploy",  # never the model's defaults: the sampling block is complete
            "trust_remote_code": launch.trust_remote_code,
            "server_name": LOOPBACK,
            "server_port": port,
        }
        return [str(python), str(START), str(launch.model), *flags(own | asked)]

    def environment(self, launch: Launch) -> dict[str, str]:
        asked = given(launch.engine_args)
        # Where dp goes with tp, TurboMind takes as many GPUs as it sees; else as many as it is told.
        shared = launch.num_gpus > 1 and {"tp", "dp"} <= asked.keys()
        return own_environment(launch) | (first_gpus(launch) if shared else {}) | kept_caches(self.name, CACHES)

    def call(self, request: Request) -> HttpCall:
        assert request.prompt.token_ids is not None
        body = {
            "input_ids": list(request.prompt.token_ids),
            **self.native_sampling(request.sampling),
            # ignore_eos would switch off stop_token_ids as well. Without any there is nothing to stop at.
            "ignore_eos": not request.sampling.stop_token_ids,
            "include_stop_str_in_output": True,  # the stop id, too
            "skip_special_tokens": False,
            "stream": False,
        }
        return HttpCall("/generate", body)

    def read(self, answer: Any, request: Request) -> Completion:
        return read_generated(answer, request, self.name)

    def asked_context(self, engine_args: Mapping[str, Any]) -> int | None:
        return tokens(given(engine_args), "session_len", less=CONTEXT_SLACK)

    def replicas(self, launch: Launch) -> int:
        asked = given(launch.engine_args)
        if "tp" in asked:  # dp then counts the copies of attention alone, and those of the rest share their GPUs
            return max(1, launch.num_gpus // number(asked, "tp", default=1))
        return number(asked, "dp", default=1)

    def window(self, launch: Launch) -> int:
        asked = number(
            given(launch.engine_args), "max_batch_size", default=WINDOW * max(1, launch.num_gpus, self.replicas(launch))
        )
        return max(1, min(asked, launch.answers or asked))

    def read_load(self, content: str) -> EngineLoad | None:
        names = ("lmdeploy:num_requests_running", "lmdeploy:num_requests_waiting")
        return read_load(content, *names, "lmdeploy:gpu_cache_usage_perc")


class LmdeployPytorch(Lmdeploy):
    """With ``--backend pytorch``."""

    sampling: ClassVar[SamplingTable] = {
        **Lmdeploy.sampling,
        "top_k": Native("top_k"),
        "repetition_penalty": Refused(
            "its PyTorch backend counts the answer's tokens only, transformers those of the prompt too"
        ),
    }


def _check_dtype(dtype: str) -> None:
    if dtype == "float32":
        raise ConversionError(
            "lmdeploy has no float32",
            "choose model_kwargs=dict(dtype='bfloat16') (--model-kwargs dtype=bfloat16), "
            "or an engine that has float32: transformers, vllm, llamacpp",
        )
