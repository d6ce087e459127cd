"""``evalswap compare``: run engines, or read finished runs, and say whether the score is the same."""

from __future__ import annotations

import argparse
import copy
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evalswap.commands.arguments import points, positive
from evalswap.commands.report import PAGE_NAME
from evalswap.commands.selection import (
    HF_OPTIONS,
    SERVER_OPTIONS,
    add_engine,
    add_running,
    add_selection,
    add_server,
    add_summarizer,
    option_of,
    plan_models,
    work_dir_of,
)
from evalswap.errors import EXIT_FAILED, EXIT_OK, ConfigError

if TYPE_CHECKING:
    from rich.console import Console

    from evalswap.comparing.outputs import Side
    from evalswap.comparing.records import Comparison
    from evalswap.comparing.running import Planned

PROOF_ROWS = 32
# What only a config's runs can obey; the runs that prove more about finished ones read the rest from their folders.
OF_ENGINES = ("work_dir", "limit", "engine_args", "engine_python", *SERVER_OPTIONS, *HF_OPTIONS)
OF_CONFIGS = ("config_dir", "summarizer")
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
    add_summarizer(compare)
    compare.add_argument("runs", nargs="*", type=Path, metavar="RUN",
                         help="run folders instead of a config, the reference first; OpenCompass's too")  # fmt: skip
    compare.add_argument("-a", "--accelerators", metavar="ENGINE,ENGINE", help="the engines, the reference first")
    add_running(compare)
    compare.add_argument("--margin", type=points, default=1.0, metavar="POINTS",
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
    add_server(compare)


def _compare(arguments: argparse.Namespace, console: Console) -> int:
    from evalswap.comparing.comparison import compare_runs
    from evalswap.comparing.forcing import ReferenceLogprobs
    from evalswap.comparing.running import Rerunner, transformers_plan
    from evalswap.prompting.tokenizer_process import TokenizerProcess
    from evalswap.redaction import Redactor
    from evalswap.reporting.comparison_table import show_comparison

    def say(text: str) -> None:
        console.print(text, highlight=False, markup=False, soft_wrap=True)

    secrets = (arguments.api_key,) if arguments.api_key else ()
    by_config = _is_config(arguments)
    rows = 0 if arguments.no_prove else arguments.prove or (PROOF_ROWS if by_config else 0)
    with TokenizerProcess() as tokenizers:
        rerunner = Rerunner(
            console, arguments.began, tokenizers, secrets, arguments.hang_timeout, warm=not arguments.no_warm
        )
        if by_config:
            tokenizers.begin()  # its import goes on beside all that follows
            runs, notes = rerunner.run_engines(_planned(arguments), arguments.limit)
        else:
            runs, notes = _read_runs(arguments, asked=bool(rows or arguments.noise_floor)), []
        beside = rerunner.run_beside(runs, proof_rows=rows, noise_floor=arguments.noise_floor)
    beside.notes[:0] = notes
    explain = by_config if arguments.explain is None else arguments.explain
    work = runs[0][0].folder.parent
    plan_of = transformers_plan if explain else None
    # Only now, when no other engine runs: the worker that it may start needs memory of its own.
    with ReferenceLogprobs(work, plan_of, say=say, redact=Redactor(secrets)) as explainer:
        comparison = compare_runs(
            runs,
            margin=arguments.margin,
            common_only=arguments.common_rows,
            explainer=explainer,
            evidence=beside.evidence(explainer),
        )
    show_comparison(console, comparison)
    out = arguments.out or (work / f"compare_{datetime.now():%Y%m%d_%H%M%S}" if by_config else None)
    if out is not None:
        say(f"files: {_write(comparison, out)}")
    unanswered = any(side.unanswered for run in runs for side in run)
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


def _read_runs(arguments: argparse.Namespace, *, asked: bool) -> list[list[Side]]:
    """Read finished runs; ``asked``: more is run to prove something about them."""
    from evalswap.comparing.sides import read_sides

    paths = [path for path in (arguments.config, *arguments.runs) if path is not None]
    if not paths:
        raise ConfigError("nothing to compare", "give a config and -a hf,vllm, or two run folders")
    for name in (*OF_ENGINES, *(() if asked else ("no_warm", "hang_timeout"))):
        value = getattr(arguments, name)
        if value is not None and value is not False:
            raise ConfigError(f"{option_of(name)} is for engines to run; these runs are finished")
    for name in OF_CONFIGS:
        if getattr(arguments, name) is not None:
            raise ConfigError(f"{option_of(name)} is for a config; these runs are finished")
    runs = [read_sides(path) for path in paths]
    if len(runs) == 1:
        _refuse_alone(runs)
    return runs


def _refuse_alone(runs: Sequence[Sequence[Side]]) -> None:
    """Raise ConfigError for a single run, unless it has a model on two engines."""
    from evalswap.comparing.pairing import pair_up

    try:
        pair_up(runs)
    except ConfigError as error:
        message = "one run is no comparison, unless it has the same model on two engines"
        raise ConfigError(message, "give a second run folder, or the config and -a hf,vllm") from error


def _planned(arguments: argparse.Namespace) -> list[Planned]:
    """Plan the config for each engine, before any of them is run."""
    from evalswap.comparing.running import Planned

    engines = _engines(arguments.accelerators)
    _refuse_one_python(arguments, engines)
    planned = []
    for engine in engines:
        experiment, plans = plan_models(_for_engine(arguments, engine, engines))
        planned.append(Planned(engine, experiment, plans, work_dir_of(arguments, experiment)))
    return planned


def _engines(names: str | None) -> list[str]:
    from evalswap.engines.registry import REFERENCE, canonical_name

    if not names:
        raise ConfigError("which engines shall be compared?", "name them: -a hf,vllm")
    engines = list(dict.fromkeys(canonical_name(name.strip()) for name in names.split(",") if name.strip()))
    if len(engines) == 1 and engines != [REFERENCE]:
        engines.insert(0, REFERENCE)
    if len(engines) < 2:
        raise ConfigError(f"-a {names}: there is nothing to compare it with", "name two engines: -a hf,vllm")
    return engines


def _refuse_one_python(arguments: argparse.Namespace, engines: Sequence[str]) -> None:
    from evalswap.engines.registry import REMOTE, managed_engine
    from evalswap.serving.environments import interpreter_variable, program_variable

    if arguments.engine_python:
        started = [managed_engine(name) for name in engines if name != REMOTE]
        variables = [(program_variable if each.program else interpreter_variable)(each.name) for each in started]
        raise ConfigError(
            "--engine-python: compare starts several engines", f"name what runs each: {', '.join(variables)}"
        )


def _for_engine(arguments: argparse.Namespace, engine: str, engines: Sequence[str]) -> argparse.Namespace:
    """Return the arguments of ``evalswap run`` for one of the engines: its own flags are ENGINE.NAME=VALUE."""
    from evalswap.engines.registry import REMOTE

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
    if engine != REMOTE and REMOTE in engines:
        for name in SERVER_OPTIONS:
            setattr(own, name, None)
    return own


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
