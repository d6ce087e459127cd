"""``evalswap compare``: run engines, or read finished runs, and say whether the score is the same.

``evalswap report``: finished runs as one HTML page.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evalswap.commands.arguments import positive
from evalswap.commands.selection import HF_OPTIONS, add_engine, add_selection, plan_models
from evalswap.errors import EXIT_FAILED, EXIT_OK, ConfigError, EvalswapError

if TYPE_CHECKING:
    from rich.console import Console

    from evalswap.comparing.outputs import Side
    from evalswap.comparing.pairing import Key
    from evalswap.comparing.records import Comparison
    from evalswap.comparing.running import Rerunner, Sample

    _About = tuple[Key, str]  # a run's model, and a dataset

DEFAULT_WORK_DIR = "outputs/default"
REFERENCE = "transformers"
PROOF_ROWS = 32
PAGE_NAME = "report.html"
OF_ENGINES = ("work_dir", "limit", "engine_args", "engine_python", "api_base", "api_model", *HF_OPTIONS)
FAILING = {"different": ("different",), "not-equivalent": ("different", "inconclusive")}


def add(commands: Any) -> None:
    compare = commands.add_parser(
        "compare",
        help="run engines, or read finished runs, and say whether the score is the same",
        description="Compare engines on one config (CONFIG -a hf,vllm), which are run as far as they are not stored "
        "yet, or finished runs (RUN RUN …). The first is the reference.",
    )
    compare.set_defaults(function=_compare)
    add_selection(compare)
    compare.add_argument("runs", nargs="*", type=Path, metavar="RUN",
                         help="run folders instead of a config, the reference first; OpenCompass's too")  # fmt: skip
    compare.add_argument("-a", "--accelerators", metavar="ENGINE,ENGINE", help="the engines, the reference first")
    compare.add_argument("-w", "--work-dir", type=Path, help=f"where runs go (default: {DEFAULT_WORK_DIR})")
    compare.add_argument("--limit", type=positive, metavar="N", help="only the first N rows of each dataset")
    compare.add_argument("--margin", type=_points, default=1.0, metavar="POINTS",
                         help="how far scores may lie apart and still be equivalent (default: 1)")  # fmt: skip
    compare.add_argument("--common-rows", action="store_true", help="compare runs of other rows on those in both")
    compare.add_argument("--prove", nargs="?", type=positive, const=PROOF_ROWS, metavar="N",
                         help=f"run N rows of each engine in float32 as a proof of the wiring (default: {PROOF_ROWS}; "
                         "with run folders: only when asked for)")  # fmt: skip
    compare.add_argument("--no-prove", action="store_true", help="leave that out")
    compare.add_argument(
        "--noise-floor",
        action="store_true",
        help="run the reference at another batch size too: only flips beyond its own count",
    )
    compare.add_argument(
        "--explain",
        action=argparse.BooleanOptionalAction,
        help="ask the reference's log-probabilities where outputs part (default: with a config)",
    )
    compare.add_argument("--fail-on", choices=tuple(FAILING), help="exit with 1 on such a verdict")
    compare.add_argument(
        "-o",
        "--out",
        type=Path,
        metavar="DIR",
        help="write tables, charts and the page there (default with a config: in the work folder)",
    )
    compare.add_argument("--debug", action="store_true", help="show tracebacks")
    add_engine(compare)

    report = commands.add_parser("report", help="show finished runs as one HTML page that needs no network")
    report.set_defaults(function=_report)
    report.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run folders; the first is the reference")
    report.add_argument("--margin", type=_points, default=1.0, metavar="POINTS")
    report.add_argument("--common-rows", action="store_true", help="compare runs of other rows on those in both")
    report.add_argument("-o", "--out", type=Path, metavar="FILE", help=f"default: {PAGE_NAME} in the last run's folder")
    report.add_argument("--open", action="store_true", help="open it in the browser")
    report.add_argument("--debug", action="store_true", help="show tracebacks")


def _points(text: str) -> float:
    try:
        points = float(text)
    except ValueError:
        points = 0.0
    if not 0 < points < 100:
        raise argparse.ArgumentTypeError("points between 0 and 100 are wanted")
    return points


# ---- compare


def _compare(arguments: argparse.Namespace, console: Console) -> int:
    from evalswap.comparing.comparison import Evidence, compare_runs
    from evalswap.comparing.forcing import ReferenceLogprobs
    from evalswap.comparing.running import Rerunner, proof_of, transformers_plan
    from evalswap.prompting.tokenizer_process import TokenizerProcess
    from evalswap.redaction import Redactor
    from evalswap.reporting.comparison_table import show_comparison

    def say(text: str) -> None:
        console.print(text, highlight=False, markup=False, soft_wrap=True)

    secrets = (arguments.api_key,) if arguments.api_key else ()
    by_config = _is_config(arguments)
    with TokenizerProcess() as tokenizers:
        rerunner = Rerunner(console, arguments.began, tokenizers, secrets)
        if by_config:
            tokenizers.begin()  # its import goes on beside all that follows
            runs, notes = _run_engines(arguments, rerunner)
        else:
            runs, notes = _read_runs(arguments), []
        samples, noise, noise_notes = _run_more(arguments, runs, rerunner, by_config)
    explain = by_config if arguments.explain is None else arguments.explain
    work = runs[0][0].folder.parent
    plan_of = transformers_plan if explain else None
    # Only now, when no other engine runs: the worker that it may start needs memory of its own.
    with ReferenceLogprobs(work, plan_of, say=say, redact=Redactor(secrets)) as explainer:
        proofs = {about: proof_of(sample, explainer) for about, sample in samples.items()}
        comparison = compare_runs(
            runs,
            margin=arguments.margin,
            common_only=arguments.common_rows,
            explainer=explainer,
            evidence=Evidence(proofs, noise, (*notes, *noise_notes)),
        )
    show_comparison(console, comparison)
    out = arguments.out or (work / f"compare_{datetime.now():%Y%m%d_%H%M%S}" if by_config else None)
    if out is not None:
        say(f"files: {_write(comparison, out)}")
    unanswered = by_config and any(side.unanswered for run in runs for side in run)
    return _exit_code(arguments.fail_on, comparison, complete=not (notes or unanswered))


def _is_config(arguments: argparse.Namespace) -> bool:
    """Whether engines are to be run; else the first positional argument is a run's folder."""
    named = bool(arguments.models or arguments.datasets or arguments.hf_path)
    file = arguments.config
    by_config = named or (file is not None and (file.suffix == ".py" or file.is_file()))
    if by_config and arguments.runs:
        raise ConfigError("a config and run folders exclude each other", "give one config, or two run folders")
    if not by_config and arguments.accelerators:
        raise ConfigError("-a names the engines that a config is run on", "give a config file, or leave -a out")
    return by_config


def _read_runs(arguments: argparse.Namespace) -> list[list[Side]]:
    from evalswap.comparing.sides import read_sides

    paths = [path for path in (arguments.config, *arguments.runs) if path is not None]
    if not paths:
        raise ConfigError("nothing to compare", "give a config and -a hf,vllm, or two run folders")
    for name in OF_ENGINES:
        if getattr(arguments, name) is not None:
            raise ConfigError(f"--{name.replace('_', '-')} is for engines to run; these runs are finished")
    return [read_sides(path) for path in paths]


def _run_engines(arguments: argparse.Namespace, rerunner: Rerunner) -> tuple[list[list[Side]], list[str]]:
    """Run the config on each engine; one that fails is noted, unless it is the reference."""
    engines = _engines(arguments.accelerators)
    planned = [(engine, *plan_models(_for_engine(arguments, engine, engines))) for engine in engines]
    runs, notes = [], []
    for number, (engine, experiment, plans) in enumerate(planned):
        work = arguments.work_dir or Path(experiment.work_dir or DEFAULT_WORK_DIR)
        try:
            sides = rerunner.run(experiment, plans, work, arguments.limit)
            answered = [side for side in sides if side.outputs]
            if not answered:
                problems = {str(side.record.get("error") or "no question was answered") for side in sides}
                raise EvalswapError("; ".join(sorted(problems)))
        except EvalswapError as error:
            if number == 0:
                raise
            notes.append(f"{engine} is not compared: {error.message}")
            continue
        runs.append(answered)
    if len(runs) < 2:
        raise EvalswapError("only the reference could be run", "; ".join(notes))
    return runs, notes


def _engines(names: str | None) -> list[str]:
    from evalswap.engines.registry import canonical_name

    if not names:
        raise ConfigError("which engines shall be compared?", "name them: -a hf,vllm")
    engines = list(dict.fromkeys(canonical_name(name.strip()) for name in names.split(",") if name.strip()))
    if len(engines) == 1 and engines != [REFERENCE]:
        engines.insert(0, REFERENCE)
    if len(engines) < 2:
        raise ConfigError(f"-a {names}: there is nothing to compare it with", "name two engines: -a hf,vllm")
    return engines


def _for_engine(arguments: argparse.Namespace, engine: str, engines: Sequence[str]) -> argparse.Namespace:
    """Return the arguments of ``evalswap run`` for one of the engines: its own flags are ENGINE.NAME=VALUE."""
    own = copy.copy(arguments)
    own.accelerator = engine
    own.engine_args = {}
    for key, value in (arguments.engine_args or {}).items():
        owner, dot, name = key.partition(".")
        if not dot and len(engines) == 2:
            owner, name = engines[1], key
        elif owner not in engines:
            raise ConfigError(
                f"--engine-args {key}: whose flag is it?",
                f"write {engines[-1]}.{key}; compared are {', '.join(engines)}",
            )
        if owner == engine:
            own.engine_args[name] = value
    if arguments.engine_python:
        raise ConfigError(
            "--engine-python: compare starts several engines", f"name it in EVALSWAP_{engines[-1].upper()}_PYTHON"
        )
    return own


def _run_more(
    arguments: argparse.Namespace, runs: Sequence[Sequence[Side]], rerunner: Rerunner, by_config: bool
) -> tuple[dict[_About, Sample], dict[_About, Side], list[str]]:
    """Run what proves more than the runs themselves: float32 samples, and the reference at another batch size."""
    from evalswap.comparing.pairing import key_of, pair_up

    rows = 0 if arguments.no_prove else arguments.prove or (PROOF_ROWS if by_config else 0)
    samples: dict[_About, Sample] = {}
    noise: dict[_About, Side] = {}
    notes: list[str] = []
    sampled: set[Key] = set()
    for pairing in pair_up(runs)[0] if rows or arguments.noise_floor else ():
        reference, dataset = pairing.reference, pairing.reference.dataset
        if rows and key_of(reference) not in sampled:  # on the first dataset: the others go the same way
            sampled.add(key_of(reference))
            samples |= {(key, dataset): sample for key, sample in rerunner.samples(pairing, rows).items()}
        if arguments.noise_floor:
            try:
                noise[key_of(reference), dataset] = rerunner.noise(reference)
            except EvalswapError as error:
                notes.append(f"no noise floor of {reference.model}: {error.message}")
    return samples, noise, notes


def _write(comparison: Comparison, out: Path) -> Path:
    from evalswap.reporting.comparison_files import write_files
    from evalswap.reporting.page import write

    write_files(comparison, out)
    write(comparison, out / PAGE_NAME)
    return out


def _exit_code(fail_on: str | None, comparison: Comparison, *, complete: bool) -> int:
    verdicts = {against.verdict for dataset in comparison.datasets for against in dataset.others}
    if fail_on and verdicts & set(FAILING[fail_on]):
        return EXIT_FAILED
    return EXIT_OK if complete else EXIT_FAILED


# ---- report


def _report(arguments: argparse.Namespace, console: Console) -> int:
    from evalswap.comparing.comparison import alone, compare_runs
    from evalswap.comparing.forcing import ReferenceLogprobs
    from evalswap.comparing.sides import read_sides
    from evalswap.reporting.page import write

    runs = [read_sides(path) for path in arguments.runs]
    if len(runs) == 1 and len({side.model for side in runs[0]}) == 1:
        comparison = alone(runs[0])
    else:
        known = ReferenceLogprobs(runs[0][0].folder.parent)
        comparison = compare_runs(runs, margin=arguments.margin, common_only=arguments.common_rows, explainer=known)
    path = write(comparison, arguments.out or runs[-1][0].folder / PAGE_NAME)
    console.print(f"report: {path}", highlight=False, markup=False, soft_wrap=True)
    if arguments.open:
        import webbrowser

        webbrowser.open(path.resolve().as_uri())
    return EXIT_OK
