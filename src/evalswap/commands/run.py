"""``evalswap run``: run an evaluation."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from evalswap.commands.selection import (
    add_engine,
    add_running,
    add_selection,
    add_server,
    add_summarizer,
    plan_models,
    work_dir_of,
)
from evalswap.errors import EXIT_OK, ConfigError, EvalswapError

if TYPE_CHECKING:
    from rich.console import Console

    from evalswap.config.experiment import Experiment
    from evalswap.plan import ModelPlan
    from evalswap.prompting.tokenizer_process import TokenizerProcess


def add(commands: Any) -> None:
    run = commands.add_parser(
        "run",
        help="run an evaluation",
        description="Run an evaluation from a config file, or from --models/--hf-path and --datasets.",
    )
    run.set_defaults(function=_run)
    add_selection(run)
    add_summarizer(run)
    run.add_argument("-a", "--accelerator", metavar="ENGINE", help="move HuggingFace models to this engine")
    add_running(run)
    run.add_argument("-m", "--mode", choices=("all", "infer", "eval", "viz"), default="all",
                     help="all, only ask, only score, or only show the summary")  # fmt: skip
    run.add_argument("-r", "--reuse", nargs="?", const="latest", metavar="TIMESTAMP",
                     help="go on in an earlier run's folder (the latest, or TIMESTAMP)")  # fmt: skip
    run.add_argument("--dry-run", action="store_true", help="print the plan and the translation, start nothing")
    run.add_argument("--debug", action="store_true", help="show tracebacks")
    add_engine(run)
    add_server(run)


def _run(arguments: argparse.Namespace, console: Console) -> int:
    from evalswap.engines.registry import REMOTE
    from evalswap.prompting.tokenizer_process import TokenizerProcess

    with TokenizerProcess() as tokenizers:
        asks = arguments.mode in ("all", "infer") and not arguments.dry_run
        if asks and arguments.accelerator not in (None, REMOTE):
            tokenizers.begin()  # its import goes on beside all that follows
        return _run_with(tokenizers, arguments, console)


def _run_with(tokenizers: TokenizerProcess, arguments: argparse.Namespace, console: Console) -> int:
    from evalswap.evaluation import Evaluation, RunOptions

    if arguments.config is None and (arguments.reuse or "").endswith(".py"):
        raise ConfigError(
            f"-r {arguments.reuse}: -r takes the word behind it as a run's TIMESTAMP, and this looks like a config",
            f"put the config first: evalswap run {arguments.reuse} -r",
        )
    experiment, plans = plan_models(arguments)
    if experiment.ignored:
        names = ", ".join(experiment.ignored)
        console.print(f"the config's {names}: evalswap schedules by itself; not used", highlight=False)
    if arguments.dry_run:
        return _dry_run(experiment, plans, arguments, console)
    options = RunOptions(
        work_dir=work_dir_of(arguments, experiment),
        mode=arguments.mode,
        reuse=arguments.reuse,
        limit=arguments.limit,
        engine_python=arguments.engine_python,
        hang_seconds=arguments.hang_timeout,
        warm=not arguments.no_warm,
        began=arguments.began,
        secrets=(arguments.api_key,) if arguments.api_key else (),
    )
    return Evaluation(experiment, plans, options, console, tokenizers).run()


def _dry_run(
    experiment: Experiment, plans: Sequence[ModelPlan], arguments: argparse.Namespace, console: Console
) -> int:
    from evalswap.engines.registry import managed_engine
    from evalswap.evaluation import secrets_of
    from evalswap.inference.sampling_check import check_sampling
    from evalswap.redaction import Redactor
    from evalswap.reporting.screens import show_plan
    from evalswap.serving.environments import find_engine

    redact = Redactor(secrets_of(experiment, plans))
    for plan in plans:
        show_plan(console, plan, [(dataset, None) for dataset in experiment.datasets], redact)
        check_sampling(plan, experiment.datasets)
        if plan.launch is None:
            continue
        engine = managed_engine(plan.engine, plan.launch)
        try:
            found = find_engine(engine, arguments.engine_python)
            text = f"engine: {engine.name} {found.version} on {found.device}, {found.path} ({found.source})"
        except EvalswapError as error:
            text = f"engine: {error.message}" + (f"; {error.hint}" if error.hint else "")
        console.print(text, highlight=False, markup=False, soft_wrap=True)
    console.print("dry run: nothing was started", highlight=False)
    return EXIT_OK
