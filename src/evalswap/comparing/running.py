"""Runs that a comparison needs: the engines themselves, the float32 sample of each, the reference's own noise.

Each is an ordinary run (``Evaluation``) in an ordinary work folder, so nothing is asked twice: what is stored is
taken from the store. How to run a side again is read from its own folder (``origin.py``).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from evalswap.comparing.comparison import Evidence, Explainer, wiring_proof
from evalswap.comparing.origin import plan_again, spec_of
from evalswap.comparing.outputs import Side
from evalswap.comparing.pairing import Key, Pairing, key_of, pair_up
from evalswap.comparing.records import WiringProof
from evalswap.comparing.sides import read_sides
from evalswap.errors import ConfigError, EvalswapError

if TYPE_CHECKING:
    from rich.console import Console

    from evalswap.config.experiment import Experiment
    from evalswap.config.specs import ModelSpec
    from evalswap.plan import ModelPlan
    from evalswap.prompting.tokenizer_process import TokenizerProcess

PROOF_FOLDER, NOISE_FOLDER = "proof", "noise"  # in the work folder
FLOAT32 = "float32"
DTYPE_KEYS = ("dtype", "torch_dtype")
NO_FLOAT32: Mapping[str, str] = {
    "lmdeploy": "LMDeploy computes in float16 or bfloat16 only",
    "llamacpp": "the GGUF file decides in what llama.cpp computes",
    "openai": "the server was started by somebody else, in its own dtype",
}

About = tuple[Key, str]  # a run's model, and a dataset
Sample = tuple[Side, Side] | str  # in float32, the reference first; or why there is none


def proof_of(sample: Sample, explainer: Explainer) -> WiringProof:
    """Return what a float32 sample proves."""
    return WiringProof(0, 0, sample) if isinstance(sample, str) else wiring_proof(*sample, explainer)


@dataclasses.dataclass(frozen=True)
class Planned:
    """What is to be run on one of the engines that are compared."""

    engine: str
    experiment: Experiment
    plans: Sequence[ModelPlan]
    work: Path


@dataclasses.dataclass
class Beside:
    """What was run beside the runs that are compared: float32 samples, and references at another batch size."""

    samples: dict[About, Sample] = dataclasses.field(default_factory=dict)
    noise: dict[About, Side] = dataclasses.field(default_factory=dict)
    notes: list[str] = dataclasses.field(default_factory=list)

    def evidence(self, explainer: Explainer) -> Evidence:
        """Return what all this proves."""
        proofs = {about: proof_of(sample, explainer) for about, sample in self.samples.items()}
        return Evidence(proofs, self.noise, tuple(self.notes))


@dataclasses.dataclass
class Rerunner:
    """Runs what a comparison needs. ``began`` is when the command started, seconds since the epoch."""

    console: Console
    began: float
    tokenizers: TokenizerProcess
    secrets: tuple[str, ...] = ()
    hang_seconds: float | None = None  # as for ``RunOptions``
    warm: bool = True
    _samples: dict[Key, Side] = dataclasses.field(default_factory=dict)  # in float32, by what they are samples of

    def run_engines(self, planned: Sequence[Planned], limit: int | None) -> tuple[list[list[Side]], list[str]]:
        """Run each engine; one that fails is left out and noted. Returns the runs that have answers, and the notes.

        Raises EvalswapError if the first, the reference, fails, or all others do.
        """
        runs: list[list[Side]] = []
        notes: list[str] = []
        for wanted in planned:
            try:
                sides = self.run(wanted.experiment, wanted.plans, wanted.work, limit)
                answered = [side for side in sides if side.outputs]
                if not answered:
                    problems = {str(side.record.get("error") or "no question was answered") for side in sides}
                    raise EvalswapError("; ".join(sorted(problems)))
            except EvalswapError as error:
                if not runs:
                    raise
                notes.append(f"{wanted.engine} is not compared: {error.message}")
            else:
                runs.append(answered)
        if len(runs) < 2:
            raise EvalswapError("only the reference could be run", "; ".join(notes))
        return runs, notes

    def run_beside(self, runs: Sequence[Sequence[Side]], *, proof_rows: int, noise_floor: bool) -> Beside:
        """Run what proves more than the runs themselves: ``proof_rows`` in float32, the reference's own noise."""
        beside = Beside()
        sampled: set[Key] = set()
        for pairing in pair_up(runs)[0] if proof_rows or noise_floor else ():
            reference, dataset = pairing.reference, pairing.reference.dataset
            if proof_rows and key_of(reference) not in sampled:  # on the first dataset: the others go the same way
                sampled.add(key_of(reference))
                samples = self.samples(pairing, proof_rows)
                beside.samples |= {(key, dataset): sample for key, sample in samples.items()}
            if noise_floor:
                try:
                    beside.noise[key_of(reference), dataset] = self.noise(reference)
                except EvalswapError as error:
                    beside.notes.append(f"no noise floor of {reference.model}: {error.message}")
        return beside

    def run(self, experiment: Experiment, plans: Sequence[ModelPlan], work: Path, limit: int | None) -> list[Side]:
        """Run an experiment in a new folder of ``work`` and return its sides.

        Raises what the run raises, and KeyboardInterrupt after one that was interrupted, even if all of it was
        answered; the folder is not left behind empty.
        """
        from evalswap.evaluation import Evaluation, RunOptions
        from evalswap.reporting.folder import RunFolder

        folder = RunFolder.create(work)
        try:
            options = RunOptions(
                work_dir=work,
                reuse=folder.name,
                limit=limit,
                hang_seconds=self.hang_seconds,
                warm=self.warm,
                began=self.began,
                secrets=self.secrets,
            )
            evaluation = Evaluation(experiment, plans, options, self.console, self.tokenizers)
            evaluation.run()
            if evaluation.interrupted:  # whoever wanted no more wants no further engine either
                raise KeyboardInterrupt
        except BaseException:
            if not any(folder.path.iterdir()):
                folder.path.rmdir()
            raise
        return read_sides(folder.path)

    def again(self, side: Side, work: Path, limit: int | None, change: Callable[[ModelSpec], ModelSpec]) -> list[Side]:
        """Run the model of a side again with a changed spec. Raises ConfigError where its folder does not tell how."""
        experiment, spec = spec_of(side)
        changed = change(spec)
        plan = plan_again(changed, side, any_kernel=True)
        wanted = [dataset for dataset in experiment.datasets if dataset.abbr == side.dataset]
        alone = dataclasses.replace(experiment, models=(changed,), datasets=tuple(wanted), summarizer={})
        return self.run(alone, [plan], work, limit)

    def samples(self, pairing: Pairing, rows: int) -> dict[Key, Sample]:
        """Run ``rows`` rows of a pairing in float32; returns each contender's sample with the reference's."""
        found: dict[Key, Sample] = {}
        for side in pairing.others:
            reason = no_float32(side) or no_float32(pairing.reference)
            try:
                found[key_of(side)] = reason or (
                    self._in_float32(pairing.reference, rows),
                    self._in_float32(side, rows),
                )
            except EvalswapError as error:
                found[key_of(side)] = error.message.splitlines()[0]
        return found

    def _in_float32(self, side: Side, rows: int) -> Side:
        if side.facts.get("dtype") == FLOAT32:
            return side  # the run itself is the sample
        if key_of(side) in self._samples:
            return self._samples[key_of(side)]
        self._say(f"wiring proof: {rows} rows of {side.model} in float32")
        (found,) = self.again(side, side.folder.parent / PROOF_FOLDER, rows, in_float32)
        self._samples[key_of(side)] = sample = _answered(found)
        return sample

    def noise(self, reference: Side) -> Side:
        """Return the reference, run again at another batch size. Raises ConfigError where that is no setting of it."""
        size = int(reference.facts.get("batch_size") or 0)
        if reference.engine != "transformers" or not size:
            raise ConfigError(
                f"{reference.engine} has no batch size of its own to change", "--noise-floor needs hf as the reference"
            )
        other = size // 2 or 2
        self._say(f"noise floor: {reference.model} at batch size {other} instead of {size}")
        work = reference.folder.parent / NOISE_FOLDER
        (found,) = self.again(
            reference, work, len(reference.rows), lambda spec: spec.model_copy(update={"batch_size": other})
        )
        return _answered(found)

    def _say(self, text: str) -> None:
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)


def transformers_plan(side: Side) -> ModelPlan | None:
    """Return the plan of a side's model on transformers, or None where its config cannot be run there."""
    from evalswap.conversion import EngineOptions, convert

    try:
        plan = convert(spec_of(side)[1], EngineOptions(accelerator="transformers"))
    except EvalswapError:
        return None
    return plan if plan.engine == "transformers" else None


def in_float32(spec: ModelSpec) -> ModelSpec:
    """Return a spec that computes in float32. Raises ConfigError for one that has no dtype."""
    kwargs = getattr(spec, "model_kwargs", None)
    if kwargs is None:
        raise ConfigError(f"{spec.abbr}: a {spec.type} spec has no dtype to set")
    kept = {key: value for key, value in kwargs.items() if key not in DTYPE_KEYS}
    return spec.model_copy(update={"model_kwargs": {**kept, "torch_dtype": FLOAT32}})


def no_float32(side: Side) -> str | None:
    """Return why a side cannot be run in float32, or None if it can."""
    if side.foreign:
        return "only the outputs of this run are known"
    return NO_FLOAT32.get(side.engine)


def _answered(side: Side) -> Side:
    """Return a side that has answers. Raises EvalswapError with what ended its run."""
    if not side.outputs:
        raise EvalswapError(str(side.record.get("error") or f"{side.model} answered nothing"))
    return side
