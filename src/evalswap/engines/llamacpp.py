"""llama.cpp, through the user's own ``llama-server``, by token ids.

https://github.com/ggml-org/llama.cpp/blob/master/tools/server/README.md
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from evalswap.engines.answers import as_ids, end_of
from evalswap.engines.base import (
    LOOPBACK,
    SERVED_NAME,
    Emulated,
    EngineLoad,
    HttpCall,
    Launch,
    MalformedAnswer,
    ManagedEngine,
    Native,
    Refused,
    SamplingTable,
)
from evalswap.engines.flags import first_gpus, flags, given, number, own_environment, tokens
from evalswap.engines.prometheus import read_load
from evalswap.errors import ConversionError, ModelFilesError
from evalswap.plan import LaunchPlan
from evalswap.records import Completion, Request

SLOTS_CPU, SLOTS_GPU = 8, 32
# What its command line knows behind one dash only.
SHORT_FLAGS = frozenset(
    {"b", "bs", "c", "cb", "cmoe", "cram", "ctk", "ctkd", "ctv", "ctvd", "dev", "devd", "fa", "fit", "fitc", "fitt",
     "kvo", "kvu", "mg", "ncmoe", "ngl", "ngld", "nkvo", "np", "nr", "ot", "sm", "t", "tb", "ts", "ub"}
)  # fmt: skip
PLACING_FLAGS = frozenset({"device", "dev", "main_gpu", "mg", "split_mode", "sm", "tensor_split", "ts"})
CONTEXT_SLACK = 8  # a slot that is full to the last token ends its answer
CONTEXT_STEP = 256  # tokens that it rounds a slot's context up to
SAMPLERS = ["penalties", "temperature", "top_k", "top_p", "min_p"]  # in transformers' order
OF_THE_PROMPT_TOO = Refused("it counts the prompt's tokens too, other engines those of the answer only")


class Llamacpp(ManagedEngine):
    name: ClassVar[str] = "llamacpp"
    program: ClassVar[str] = "llama-server"
    prompt_room: ClassVar[int] = 8192  # for every slot the cache is reserved beforehand
    load_path: ClassVar[str] = "/metrics"
    flag_names: ClassVar[Mapping[str, str]] = {
        "dtype": "the GGUF's own weights, and a KV cache to match:",
        "peft_path": "--lora",
        "trust_remote_code": "no code to trust:",
        "num_gpus": "split over GPUs by llama.cpp itself:",
        "max_seq_len": "--ctx-size for each slot:",
    }
    sampling: ClassVar[SamplingTable] = {
        "max_new_tokens": Native("n_predict"),
        "min_new_tokens": Refused("its server has no such field"),
        "temperature": Native("temperature"),
        "top_p": Native("top_p"),
        "top_k": Native("top_k"),
        "min_p": Native("min_p"),
        "repetition_penalty": Native("repeat_penalty"),
        "presence_penalty": OF_THE_PROMPT_TOO,
        "frequency_penalty": OF_THE_PROMPT_TOO,
        "seed": Native("seed", least=0),
        "stop": Native("stop"),
        "stop_token_ids": Emulated("it ends answers at the GGUF's own end tokens; evalswap cuts at the stop ids"),
    }
    hints: ClassVar[tuple[tuple[str, str], ...]] = (
        (
            r"failed to allocate|out of memory|unable to allocate",
            "too little memory: fewer slots with --engine-args parallel=4, a smaller max_seq_len, more GPUs with "
            "num_gpus (--hf-num-gpus N), or fewer layers on the GPU with n_gpu_layers=…",
        ),
        (r"unknown model architecture", "this llama-server does not have the architecture: use a newer one"),
        (r"invalid magic|failed to load GGUF|gguf_init_from_file", "the file is no GGUF, or it is cut off"),
    )

    def configured(self, plan: LaunchPlan, device: str | None = None) -> Llamacpp:
        if plan.peft_path and not plan.peft_path.endswith(".gguf"):
            raise ConversionError(
                f"llamacpp: the adapter {plan.peft_path} is no GGUF file",
                "convert it with llama.cpp's convert_lora_to_gguf.py, or merge it into the checkpoint",
            )
        return self

    def command(self, launch: Launch, python: Path, port: int) -> list[str]:
        slots = self.window(launch)
        exact = launch.dtype == "float32"  # then the KV cache is, too; a GGUF's weights are what they are
        own: dict[str, Any] = {
            "model": weights_file(launch),
            "alias": SERVED_NAME,
            "parallel": slots,
            "ctx_size": slots * (launch.context_len + CONTEXT_SLACK),
            "cache_type_k": "f32" if exact else None,
            "cache_type_v": "f32" if exact else None,
            "flash_attn": "off" if exact else None,
            "lora": launch.peft_path,
            "metrics": True,
            "host": LOOPBACK,
            "port": port,
        }
        if launch.device == "cpu":
            own["threads"] = own_environment(launch)["OMP_NUM_THREADS"]
        asked = {key: value for key, value in given(launch.engine_args).items() if key != "model"}
        return [str(python), *flags(own | asked, negatable=asked.keys() - own.keys(), short=SHORT_FLAGS)]

    def environment(self, launch: Launch) -> dict[str, str]:
        places_itself = PLACING_FLAGS & given(launch.engine_args).keys()
        return {"LLAMA_ARG_OFFLINE": "1", **({} if places_itself else first_gpus(launch))}

    def call(self, request: Request) -> HttpCall:
        ids = request.prompt.token_ids
        assert ids is not None
        body = {
            "prompt": list(ids),
            **self.native_sampling(request.sampling),
            "samplers": SAMPLERS,
            # A GGUF can bring defaults for these.
            "mirostat": 0,
            "dynatemp_range": 0.0,
            "min_keep": 0,
            "repeat_last_n": len(ids) + request.sampling.max_new_tokens,  # all of them, as in transformers
            "ignore_eos": not request.sampling.stop_token_ids,
            "cache_prompt": True,
            "return_tokens": True,
            "stream": False,
        }
        return HttpCall("/completion", body)

    def read(self, answer: Any, request: Request) -> Completion:
        try:
            # It can write a token or two more, to finish a character.
            ids = as_ids(answer["tokens"], self.name)[: request.sampling.max_new_tokens]
            kind = answer["stop_type"]
            if kind not in ("eos", "word", "limit"):
                raise MalformedAnswer(f"{self.name} broke off the answer: stop_type={kind!r}")
            prompt_tokens = int(answer["tokens_evaluated"])
            cached = (answer.get("timings") or {}).get("cache_n")
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise MalformedAnswer(f"{self.name} sent no answer: {str(answer)[:200]}") from error
        reached = any(token in request.sampling.stop_token_ids for token in ids)  # one that it does not know as an end
        by_id = kind == "eos" and not reached
        reason = end_of(ids, request, self.name, ended_by_id=by_id, ran_out=kind == "limit" and not reached)
        return Completion(
            token_ids=ids,
            text=answer.get("content"),
            finish_reason=reason,
            prompt_tokens=prompt_tokens,
            completion_tokens=len(ids),
            cached_tokens=cached,
        )

    def asked_context(self, engine_args: Mapping[str, Any]) -> int | None:
        asked = given(engine_args)
        slots = max(1, number(asked, "parallel", "np", default=SLOTS_CPU))
        return tokens(asked, "ctx_size", "c", shared_by=slots, less=CONTEXT_SLACK)

    def one_rope_context(self, original: int) -> int:
        return original - CONTEXT_STEP

    def window(self, launch: Launch) -> int:
        given_args = given(launch.engine_args)
        shared = {"ctx_size", "c"} & given_args.keys()  # by as many as asked_context counts
        most = SLOTS_CPU if launch.device == "cpu" or shared else SLOTS_GPU
        asked = number(given_args, "parallel", "np", default=most)
        return max(1, min(asked, launch.answers or asked))

    def read_load(self, content: str) -> EngineLoad | None:
        names = ("llamacpp:requests_processing", "llamacpp:requests_deferred")
        return read_load(content, *names, "llamacpp:kv_cache_usage_ratio")


def weights_file(launch: Launch) -> Path:
    """Return the GGUF to load: the one that ``--engine-args model=`` names, else the folder's only one.

    Raises ModelFilesError where there is none, or no telling which.
    """
    named = launch.engine_args.get("model")
    if named:
        file = launch.model / Path(str(named)).expanduser()  # an absolute path stays what it is
        if not file.is_file():
            raise ModelFilesError(f"no such GGUF file: {file}", "--engine-args model=FILE.gguf names another one")
        return file
    files = sorted(launch.model.glob("*.gguf"))
    if not files:
        raise ModelFilesError(
            f"{launch.model}: no .gguf file, and llama.cpp reads nothing else",
            "name it with --engine-args model=FILE.gguf; llama.cpp's convert_hf_to_gguf.py makes one of this folder "
            "(--outtype f32 keeps the weights as they are)",
        )
    if len(files) > 1:
        raise ModelFilesError(
            f"{launch.model}: which of {', '.join(file.name for file in files)}?",
            f"name it: --engine-args model={files[0].name}",
        )
    return files[0]
