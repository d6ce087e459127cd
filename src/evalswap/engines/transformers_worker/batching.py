"""The model and the batches it answers: the torch side of the worker.

This is the reference that users know: left-padded batches of a fixed size, in dataset order, through
``generate``. Every setting comes from the request; the checkpoint's generation_config.json decides nothing.
"""

from __future__ import annotations

import math
import time
import traceback
from bisect import insort
from concurrent.futures import Future
from dataclasses import dataclass, field, fields
from threading import Condition
from typing import Any, NoReturn

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig
from transformers.generation.logits_process import RepetitionPenaltyLogitsProcessor
from transformers.generation.stopping_criteria import StoppingCriteriaList, StopStringCriteria

PARTIAL_BATCH_QUIET = 0.030  # a batch that is not full goes after so many seconds without a new request
FULL_BATCH_QUIET = 0.005  # one that filled up just now, after these: a lower order may be close behind
LONGEST_WAIT = 0.5  # however many keep coming


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn; what a request leaves out is neutral. Jobs with equal sampling share a batch."""

    max_new_tokens: int
    min_new_tokens: int = 0
    temperature: float = 0.0  # 0 is greedy
    top_p: float = 1.0
    top_k: int = 0  # 0 is off
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()

    @classmethod
    def parse(cls, block: Any) -> Sampling:
        """Read a request's sampling block. Raises ValueError with a reason that a person can act on."""
        if not isinstance(block, dict) or "max_new_tokens" not in block:
            raise ValueError("sampling must be an object with at least max_new_tokens")
        if unknown := sorted(set(block) - {spec.name for spec in fields(cls)}):
            raise ValueError(f"unknown sampling fields: {', '.join(unknown)}")
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in block.items()}
        try:
            sampling = cls(**values)
            if sampling._in_range():
                return sampling
        except TypeError:  # a value of another type
            pass
        raise ValueError(f"sampling out of range: {block}")

    def _in_range(self) -> bool:
        return (
            self.max_new_tokens >= max(self.min_new_tokens, 1)
            and self.min_new_tokens >= 0
            and 0 <= self.temperature < math.inf
            and 0 < self.top_p <= 1
            and self.top_k >= 0
            and 0 <= self.min_p <= 1
            and 0 < self.repetition_penalty < math.inf
            and (self.seed is None or -(2**63) <= self.seed < 2**64)
            and isinstance(self.stop, tuple)
            and all(isinstance(text, str) and text for text in self.stop)
            and isinstance(self.stop_token_ids, tuple)
            and all(token >= 0 for token in self.stop_token_ids)
        )

    def generation_config(self, pad_token_id: int) -> Any:
        """Spell everything out. What stays None is off, for the model's own generation config was emptied."""
        drawing = {
            "temperature": float(self.temperature),
            "top_p": float(self.top_p),
            "top_k": self.top_k,
            "min_p": float(self.min_p) or None,
        }
        return GenerationConfig(
            do_sample=self.temperature > 0,
            num_beams=1,
            use_cache=True,
            max_new_tokens=self.max_new_tokens,
            min_new_tokens=self.min_new_tokens or None,
            repetition_penalty=float(self.repetition_penalty),
            eos_token_id=list(self.stop_token_ids) or None,
            pad_token_id=pad_token_id,
            **(drawing if self.temperature > 0 else {}),
        )


@dataclass(frozen=True)
class Scoring:
    """Teacher forcing: how probable the prompt's tokens from ``start`` on are, and the ``top`` likeliest.

    With a repetition penalty: how probable they are to a greedy ``generate`` with the same penalty.
    """

    top: int
    start: int
    repetition_penalty: float = 1.0


@dataclass(eq=False)
class Job:
    """One request in the queue. Its connection waits on ``answer``, and may cancel it."""

    order: float
    input_ids: list[int]
    ask: Sampling | Scoring
    answer: Future[dict[str, Any]] = field(default_factory=Future)


class StopStrings:
    """transformers' own stop strings, on the answers alone, noting the length at which each row was complete.

    ``generate(stop_strings=...)`` would also match across the end of the prompt, and does not tell where.
    """

    def __init__(self, criteria: Any, prompt_width: int, rows: int) -> None:
        self.ends: list[int | None] = [None] * rows
        self._criteria, self._prompt_width = criteria, prompt_width

    def __call__(self, input_ids: Any, scores: Any, **_: Any) -> Any:
        answers = input_ids[:, self._prompt_width :]
        complete = self._criteria(answers, scores)
        for row in complete.nonzero().flatten().tolist():
            self.ends[row] = self.ends[row] or answers.shape[1]
        return complete


def _check_all_on_gpus(net: Any) -> None:
    """Raise RuntimeError where parts of a model were left to the CPU or a disk, a hundred times slower than a GPU."""
    left = {"cpu", "disk"} & set(map(str, getattr(net, "hf_device_map", {}).values()))
    if left:
        raise RuntimeError(f"CUDA out of memory: parts of the model were left to the {' and the '.join(sorted(left))}")


class Model:
    """A loaded checkpoint that answers lists of token ids."""

    def __init__(
        self,
        model: str,
        dtype: str,
        device: str,
        trust_remote_code: bool,
        peft_path: str | None,
        model_kwargs: dict[str, Any],
        pad_token_id: int | None,
    ) -> None:
        # (The bar of the loading stays: in the log it tells a slow disk from a start that hangs.)
        if device == "cuda" and not torch.cuda.is_available():
            raise RuntimeError(f"torch {torch.__version__} sees no CUDA device")
        on_gpu = device != "cpu" and torch.cuda.is_available()
        placed = {"device_map": "auto"} if on_gpu else {}  # several GPUs share one model
        keywords = {"dtype": dtype, "trust_remote_code": trust_remote_code, **placed, **model_kwargs}
        net = AutoModelForCausalLM.from_pretrained(model, **keywords)
        transformers.utils.logging.disable_progress_bar()
        if placed and keywords["device_map"] == "auto" and not {"max_memory", "offload_folder"} & model_kwargs.keys():
            _check_all_on_gpus(net)
        own, net.generation_config = net.generation_config, GenerationConfig()  # generate() would merge it in
        if peft_path:
            from peft import PeftModel

            net = PeftModel.from_pretrained(net, peft_path)
        self._net = net.eval()
        self._tokenizer_source = {
            "pretrained_model_name_or_path": model,
            "trust_remote_code": trust_remote_code,
        }
        self._vocabulary: int = net.get_input_embeddings().weight.shape[0]
        self._pads = (pad_token_id, own.pad_token_id, getattr(net.config, "pad_token_id", None))
        self._stop_criteria: dict[tuple[str, ...], Any] = {}
        self.info = {
            "engine": "transformers",
            "version": transformers.__version__,
            "torch": torch.__version__,
            "device": net.device.type,
            "dtype": str(net.dtype).removeprefix("torch."),
            "model_type": net.config.model_type,
        }

    def job(self, path: str, payload: Any) -> Job:
        """Check what a request asks for. Raises ValueError."""
        ids = payload.get("input_ids") if isinstance(payload, dict) else None
        if not ids or not isinstance(ids, list) or not all(map(self._is_token, ids)):
            raise ValueError(f"input_ids must be a list of token ids from 0 to {self._vocabulary - 1}")
        if path == "/generate":
            order = payload.get("order", 0)
            if not isinstance(order, int):
                raise ValueError("order must be an integer")
            return Job(order, ids, Sampling.parse(payload.get("sampling")))
        top, start = payload.get("top", 0), payload.get("start", 1)
        if not self._is_token(top) or not isinstance(start, int):
            raise ValueError("top and start must be integers, top from 0 to the size of the vocabulary")
        penalty = payload.get("repetition_penalty", 1.0)
        if type(penalty) not in (int, float) or not 0 < penalty < math.inf:
            raise ValueError("repetition_penalty must be a number above 0")
        return Job(-math.inf, ids, Scoring(top, max(start, 1), float(penalty)))

    def answer(self, batch: list[Job]) -> list[dict[str, Any]]:
        """Answer jobs that ask the same."""
        ask, prompts = batch[0].ask, [job.input_ids for job in batch]
        with torch.inference_mode():
            if isinstance(ask, Scoring):
                return [self._score(ids, ask) for ids in prompts]
            return self._generate(prompts, ask)

    def recover(self) -> None:
        """Give memory back after an error. Raises if the GPU is beyond use: then this process must go."""
        if self.info["device"] == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.synchronize()

    def _generate(self, prompts: list[list[int]], sampling: Sampling) -> list[dict[str, Any]]:
        started = time.perf_counter()
        # Masked, so the pad id decides nothing (but transformers' repetition penalty counts it as seen).
        pad = next(filter(self._is_token, (*self._pads, *sampling.stop_token_ids)), 0)
        width = max(map(len, prompts))
        padded = [[pad] * (width - len(ids)) + ids for ids in prompts]
        mask = [[0] * (width - len(ids)) + [1] * len(ids) for ids in prompts]
        stops = StopStrings(self._criteria(sampling.stop), width, len(prompts)) if sampling.stop else None
        if sampling.seed is not None:
            torch.manual_seed(sampling.seed)
        output = self._net.generate(
            input_ids=torch.tensor(padded, device=self._net.device),
            attention_mask=torch.tensor(mask, device=self._net.device),
            generation_config=sampling.generation_config(pad),
            stopping_criteria=StoppingCriteriaList([stops] if stops else []),
        )
        rows = output[:, width:].tolist()
        seconds = time.perf_counter() - started
        answers = []
        for number, (ids, row) in enumerate(zip(prompts, rows, strict=True)):
            ends = [place + 1 for place, token in enumerate(row) if token in sampling.stop_token_ids][:1]
            if stops and (end := stops.ends[number]):
                ends.append(end)
            answers.append(
                {
                    "token_ids": row[: min(ends)] if ends else row,
                    "finish_reason": "stop" if ends else "length",
                    "prompt_tokens": len(ids),
                    "batch_size": len(prompts),
                    "seconds": seconds,
                }
            )
        return answers

    def _score(self, ids: list[int], ask: Scoring) -> dict[str, Any]:
        tokens = torch.tensor([ids], device=self._net.device)
        logits = self._net(input_ids=tokens, use_cache=False).logits[0]
        penalty = RepetitionPenaltyLogitsProcessor(ask.repetition_penalty) if ask.repetition_penalty != 1 else None
        scored = []
        for place in range(ask.start, len(ids)):
            row = logits[place - 1].float()
            if penalty:
                row = penalty(tokens[:, :place], row[None])[0]
            row = row.log_softmax(-1)
            best = row.topk(ask.top)
            top = list(zip(best.indices.tolist(), best.values.tolist(), strict=True))
            scored.append({"logprob": row[ids[place]].item(), "top": top})
        return {"start": ask.start, "logprobs": scored}

    def _is_token(self, value: Any) -> bool:
        return type(value) is int and 0 <= value < self._vocabulary

    def _criteria(self, stop: tuple[str, ...]) -> Any:
        """Prepare stop strings, once: it walks the whole vocabulary."""
        if stop not in self._stop_criteria:
            tokenizer = AutoTokenizer.from_pretrained(**self._tokenizer_source)
            self._stop_criteria[stop] = StopStringCriteria(tokenizer, list(stop))
        return self._stop_criteria[stop]


class Batcher:
    """The queue, and the one thread that empties it: lowest order first, equal sampling together."""

    def __init__(self, model: Model, batch_size: int) -> None:
        self.model, self.batch_size = model, batch_size
        self._waiting: list[Job] = []  # by order, then arrival
        self._arrived = Condition()

    def submit(self, job: Job) -> None:
        with self._arrived:
            insort(self._waiting, job, key=lambda waiting: waiting.order)
            self._arrived.notify()

    def run(self) -> NoReturn:
        """Answer for ever. An error fails the batch that it happened in, no more."""
        while True:
            batch = self._take()
            try:
                answers = self.model.answer(batch) if batch else []
            except Exception as error:
                traceback.print_exc()
                for job in batch:
                    job.answer.set_exception(error)
                self.model.recover()
            else:
                for job, answer in zip(batch, answers, strict=True):
                    job.answer.set_result(answer)

    def _take(self) -> list[Job]:
        """Wait for the next batch. One that is not full already goes only when no more requests come in.

        So a run always makes the same batches, however its requests race to get here, as long as its client
        keeps at least twice the batch size in flight.
        """
        with self._arrived:
            while not (batch := self._next()):
                self._arrived.wait()
            deadline = time.monotonic() + LONGEST_WAIT
            quiet = 0.0 if len(batch) == self.batch_size else PARTIAL_BATCH_QUIET
            while quiet and self._arrived.wait(quiet) and time.monotonic() < deadline:
                quiet = FULL_BATCH_QUIET if len(self._next()) == self.batch_size else PARTIAL_BATCH_QUIET
            batch = self._next()
            self._waiting = [job for job in self._waiting if job not in batch]
            return [job for job in batch if job.answer.set_running_or_notify_cancel()]

    def _next(self) -> list[Job]:
        """Look at the batch that would go now."""
        self._waiting = [job for job in self._waiting if not job.answer.cancelled()]
        return [job for job in self._waiting if job.ask == self._waiting[0].ask][: self.batch_size]
