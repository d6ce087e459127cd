"""From a plan to an engine that can be started: its interpreter, the model's files, its command line.

``evalswap run``, ``serve`` and ``check`` all prepare an engine here, so they mean the same engine.
"""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evalswap.checkpoint import CONTEXT_KEYS, Checkpoint, file_identity, find_adapter, find_checkpoint
from evalswap.engines.base import LOOPBACK, Launch, ManagedEngine
from evalswap.engines.flags import given
from evalswap.engines.registry import managed_engine
from evalswap.errors import ConversionError, EngineError, ModelFilesError
from evalswap.plan import LaunchPlan, ModelPlan
from evalswap.records import EngineIdentity
from evalswap.serving.environments import Interpreter, find_engine
from evalswap.serving.server import EngineServer, ManagedServer
from evalswap.serving.warm import find_warm
from evalswap.weights import weight_files

DEFAULT_CONTEXT = 4096  # where neither the config nor the checkpoint says
# Flags with which an engine takes longer sequences than config.json says, and those that may do so.
STRETCHING_FLAGS = frozenset({"rope_scaling_factor", "rope_scaling", "rope_scale", "yarn_orig_ctx"})
CONTEXT_FLAGS = frozenset({"max_model_len", "ctx_size", "c"})  # of the engines that choose LongRoPE's factors by it
OVERRIDING_FLAGS = ("hf_overrides", "json_model_override_args")
KNOW_THE_DTYPE = ("transformers", "llamacpp")  # of weights whose dtype only loading them tells


@dataclass(frozen=True, slots=True)
class Workload:
    """How much an engine will be asked, at most; None where nobody knows, as for a server without end."""

    longest_answer: int  # tokens
    answers: int | None = None
    answer_tokens: int | None = None  # of all answers together


@dataclass(frozen=True, slots=True)
class PreparedEngine:
    """An engine with all that it is started with."""

    engine: ManagedEngine
    found: Interpreter
    checkpoint: Checkpoint
    launch: Launch
    context_is_known: bool = True  # else one was assumed

    @property
    def identity(self) -> EngineIdentity:
        found = self.found
        details = {"source": found.source, **found.packages}
        return EngineIdentity(self.engine.name, found.version or "unknown", str(found.path), found.device, details)

    def facts(self) -> dict[str, Any]:
        """Return what decides the answers, beside prompt and sampling: the source of content keys."""
        launch = self.launch
        return {
            "model": self.checkpoint.identity(),
            "engine": self.engine.name,
            "engine_version": self.found.version or "unknown",
            "dtype": launch.dtype,
            "device": self.found.device,
            "num_gpus": launch.num_gpus,
            # Padded batches of another size round differently, so the reference's answers depend on it.
            "batch_size": launch.batch_size if self.engine.name == "transformers" else None,
            "pad_token_id": launch.pad_token_id,
            "engine_args": dict(launch.engine_args),
            "model_kwargs": {key: str(value) for key, value in launch.model_kwargs.items()},
            "peft_path": launch.peft_path,
            "peft": _adapter_identity(launch.peft_path),
        }

    def description(self) -> dict[str, Any]:
        """Return what run.json says beside the facts."""
        return {
            "architecture": self.checkpoint.architecture,
            "folder": str(self.checkpoint.folder),
            "context_len": self.launch.context_len,
            "environment": self.engine.environment(self.launch),
            "command": shlex.join(self.engine.command(self.launch, self.found.path, port=0)),
        }

    @property
    def notes(self) -> list[str]:
        """What a person should know before the start."""
        notes = []
        if self.launch.device == "cpu" and self.launch.num_gpus > 1:
            notes.append(f"num_gpus={self.launch.num_gpus} has no effect: {self.engine.name} runs on the CPU here")
        most = _one_rope_context(self.engine, self.checkpoint)
        if not self.context_is_known:
            notes.append(
                "config.json does not name the longest context: prompt and answer together have at most "
                f"{self.launch.context_len} tokens here, unless max_seq_len (--max-seq-len) says more"
            )
        elif most is not None:
            notes.append(
                f"prompt and answer together have at most {most} tokens here: with more room {self.engine.name} would "
                "take LongRoPE's long factors for short sequences too"
            )
        return notes

    @property
    def limits_context(self) -> bool:
        """Whether the engine is told how long prompt and answer may be, so that a longer one would not fit."""
        longer = dataclasses.replace(self.launch, context_len=self.launch.context_len + 1)
        before, after = (self.engine.command(launch, self.found.path, port=0) for launch in (self.launch, longer))
        return before != after

    def server(
        self,
        log_path: Path,
        redact: Callable[[str], str],
        say: Callable[[str], None],
        *,
        host: str = LOOPBACK,
        port: int | None = None,
        label: str = "-",
    ) -> ManagedServer:
        """Return the engine's server, not yet started.

        It listens on loopback unless another address of this machine is given. ``say`` is told of a start that takes
        long. Raises EngineError if the engine cannot be told another address.
        """

        def command(port: int) -> list[str]:
            # Engines name the address that they listen on in a word of its own.
            words = self.engine.command(self.launch, self.found.path, port)
            return [host if word == LOOPBACK else word for word in words]

        if host != LOOPBACK and host not in command(0):
            raise EngineError(f"{self.engine.name} cannot be told to listen on {host}", "leave --host out")
        return ManagedServer(
            self.engine.name,
            command,
            log_path=log_path,
            health_path=self.engine.health_path,
            env=self.engine.environment(self.launch),
            start_deadline=self.engine.start_deadline,
            stop_grace=self.engine.stop_grace,
            redact=redact,
            host=host,
            port=port,
            explain=self.engine.explain,
            label=label,
            say=say,
        )


def open_server(
    prepared: PreparedEngine,
    log_path: Path,
    redact: Callable[[str], str],
    say: Callable[[str], None],
    *,
    warm: bool = True,
) -> EngineServer:
    """Return what will serve a prepared engine: the warm server that fits, or else one of its own, not started.

    ``say`` is told which warm server is used, and why one of the same model is not.
    """
    found = find_warm(prepared, say) if warm else None
    return found or prepared.server(log_path, redact, say)


def prepare_engine(model: ModelPlan, plan: LaunchPlan, work: Workload, python: str | None = None) -> PreparedEngine:
    """Find the interpreter and the model's files, and settle what only they tell. Starts nothing.

    ``python`` is the interpreter of ``--engine-python``. Raises EngineError, ModelFilesError or ConversionError.
    """
    engine = managed_engine(model.engine)
    found = find_engine(engine, python)
    engine = engine.configured(plan, found.device)
    named = plan.engine_args.get("model")
    checkpoint = find_checkpoint(plan.path, plan.revision, gguf=engine.program is not None, gguf_name=str(named or ""))
    launch = resolve_launch(plan, model, checkpoint, found, work)
    return PreparedEngine(engine, found, checkpoint, launch, is_context_known(model, checkpoint))


def resolve_launch(
    plan: LaunchPlan, model: ModelPlan, checkpoint: Checkpoint, found: Interpreter, work: Workload
) -> Launch:
    """Fill in what only the model's files and the interpreter tell.

    Raises ModelFilesError for what is no adapter or does not tell its dtype, and ConversionError for a context in which
    the engine would compute something else than transformers.
    """
    context_len = context_len_of(model, checkpoint, work.longest_answer)
    _check_one_rope(model, plan, checkpoint, max(context_len, work.longest_answer + 1))
    return Launch(
        model=checkpoint.folder,
        dtype=_dtype(plan, model, checkpoint),
        context_len=context_len,
        num_gpus=plan.num_gpus,
        batch_size=plan.batch_size,
        trust_remote_code=plan.trust_remote_code,
        device=found.device,
        pad_token_id=plan.pad_token_id,
        peft_path=find_adapter(plan.peft_path) if plan.peft_path else None,
        model_kwargs=plan.model_kwargs,
        engine_args=plan.engine_args,
        answers=work.answers,
        answer_tokens=work.answer_tokens,
    )


def context_len_of(plan: ModelPlan, checkpoint: Checkpoint, longest_answer: int) -> int:
    """Return the tokens of the longest prompt and answer together, within what the model was made for.

    What the user's own flags say of it wins: with some a model takes more than it was made for.
    """
    limit, room = checkpoint.context_len, plan.prompt.max_seq_len
    asked = None
    if plan.launch is not None:
        engine = managed_engine(plan.engine)
        asked = engine.asked_context(plan.launch.engine_args)
        if room is None and asked is None:
            room, limit = engine.prompt_room, _one_rope_context(engine, checkpoint) or limit
        elif asked is None and _stretches(plan.launch.engine_args):
            limit = None
    limit = asked or limit
    if room is None:
        return limit or DEFAULT_CONTEXT
    return min(room + longest_answer, limit) if limit else room + longest_answer


def is_context_known(model: ModelPlan, checkpoint: Checkpoint) -> bool:
    """Whether anybody says how long prompt and answer may be; else ``context_len_of`` assumes something."""
    asked = managed_engine(model.engine).asked_context(model.launch.engine_args) if model.launch else None
    return any((model.prompt.max_seq_len, checkpoint.context_len, asked))


def _stretches(engine_args: Mapping[str, Any]) -> bool:
    """Whether a flag makes an engine take longer sequences than config.json says."""
    asked = given(engine_args)
    overrides = " ".join(str(asked.get(name, "")) for name in OVERRIDING_FLAGS)
    return bool(STRETCHING_FLAGS & asked.keys()) or any(word in overrides for word in ("rope", *CONTEXT_KEYS))


def _check_one_rope(model: ModelPlan, plan: LaunchPlan, checkpoint: Checkpoint, wanted: int) -> None:
    """Raise ConversionError where an engine would compute short sequences with LongRoPE's factors for long ones."""
    engine = managed_engine(model.engine)
    most = _one_rope_context(engine, checkpoint)
    # "auto", for one: the engine then takes a length that nobody knows here.
    its_own = CONTEXT_FLAGS & given(plan.engine_args).keys() and engine.asked_context(plan.engine_args) is None
    if most is not None and (wanted > most or its_own):
        room = "a length of its own choice" if its_own else f"{wanted} tokens"
        raise ConversionError(
            f"{model.abbr}: to have room for {room} {engine.name} would take LongRoPE's long factors for short "
            f"sequences too; transformers takes them beyond {checkpoint.one_rope_context} tokens only",
            f"a max_seq_len that makes at most {most} with max_out_len, or -a sglang or lmdeploy",
        )


def _one_rope_context(engine: ManagedEngine, checkpoint: Checkpoint) -> int | None:
    original = checkpoint.one_rope_context
    return engine.one_rope_context(original) if original else None


def _dtype(plan: LaunchPlan, model: ModelPlan, checkpoint: Checkpoint) -> str:
    found = checkpoint.dtype or "auto" if plan.dtype == "auto" else plan.dtype
    if found == "auto" and model.engine not in KNOW_THE_DTYPE and weight_files(checkpoint.folder):
        raise ModelFilesError(
            f"{checkpoint.folder}: neither config.json nor the weights tell their dtype, and {model.engine} would take "
            "one of its own",
            "say which: model_kwargs=dict(torch_dtype='float16'), or --model-kwargs torch_dtype=float16",
        )
    return found


def _adapter_identity(path: str | None) -> str | None:
    """Return a hash of an adapter's files: one that was trained again in its place is another."""
    if path is None or not Path(path).exists():
        return path
    if Path(path).is_file():
        return file_identity(Path(path))
    return Checkpoint(Path(path), path, {}, {}).identity()
