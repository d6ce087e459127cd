"""What an engine is started with, once the model's files and the interpreter are known."""

from __future__ import annotations

from evalswap.checkpoint import Checkpoint
from evalswap.engines.base import Launch
from evalswap.plan import LaunchPlan, ModelPlan
from evalswap.serving.environments import Interpreter


def resolve_launch(
    plan: LaunchPlan, model: ModelPlan, checkpoint: Checkpoint, found: Interpreter, longest_answer: int
) -> Launch:
    """Fill in what only the model's files and the interpreter tell."""
    return Launch(
        model=checkpoint.folder,
        dtype=checkpoint.dtype or "auto" if plan.dtype == "auto" else plan.dtype,
        context_len=context_len_of(model, checkpoint, longest_answer),
        num_gpus=plan.num_gpus,
        batch_size=plan.batch_size,
        trust_remote_code=plan.trust_remote_code,
        device=found.device,
        pad_token_id=plan.pad_token_id,
        peft_path=plan.peft_path,
        model_kwargs=plan.model_kwargs,
        engine_args=plan.engine_args,
    )


DEFAULT_CONTEXT = 4096  # where neither the config nor the checkpoint says


def context_len_of(plan: ModelPlan, checkpoint: Checkpoint, longest_answer: int) -> int:
    """Return the tokens of the longest prompt and answer together, within what the model was made for."""
    limit = checkpoint.context_len
    if plan.prompt.max_seq_len is None:
        return limit or DEFAULT_CONTEXT
    wanted = plan.prompt.max_seq_len + longest_answer
    return min(wanted, limit) if limit else wanted
