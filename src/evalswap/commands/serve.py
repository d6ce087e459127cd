"""``evalswap serve``: keep an engine warm, so that later runs need not start one."""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from typing import TYPE_CHECKING, Any

from evalswap.commands.arguments import port
from evalswap.commands.selection import SERVER_OPTIONS, add_engine, add_selection, plan_models
from evalswap.errors import EXIT_OK, ConfigError, EngineError, did_you_mean

if TYPE_CHECKING:
    from rich.console import Console

    from evalswap.config.experiment import Experiment
    from evalswap.plan import ModelPlan
    from evalswap.serving.registrations import Registration

LOOPBACK_HOSTS = ("127.0.0.1", "localhost", "::1")
ANY_DATASET = "demo"  # a selection names a dataset; a server without end answers any


def add(commands: Any) -> None:
    serve = commands.add_parser(
        "serve",
        help="keep an engine warm for later runs",
        description="Start an engine and keep it. Later runs of the same model with the same flags use it.",
    )
    # What other commands have for summaries and for somebody else's servers means nothing here.
    serve.set_defaults(function=_serve, summarizer=None, **dict.fromkeys(SERVER_OPTIONS))
    add_selection(serve)
    serve.add_argument("-a", "--accelerator", metavar="ENGINE", help="serve HuggingFace models on this engine")
    serve.add_argument("--only", metavar="ABBR", help="which model, where the config has several")
    serve.add_argument("--port", type=port, metavar="N", help="listen on this port (default: a free one)")
    serve.add_argument("--host", default="127.0.0.1", metavar="ADDRESS",
                       help="listen on this address (default: 127.0.0.1, this machine alone)")  # fmt: skip
    serve.add_argument("--detach", action=argparse.BooleanOptionalAction, default=False,
                       help="return as soon as it is ready; it runs on until it is told to --stop")  # fmt: skip
    serve.add_argument("--list", action="store_true", help="list what is served")
    serve.add_argument("--stop", metavar="NAME|all", help="stop what is served under this name")
    serve.add_argument("--debug", action="store_true", help="show tracebacks")
    add_engine(serve)


def _serve(arguments: argparse.Namespace, console: Console) -> int:
    if arguments.list:
        return _list(console)
    if arguments.stop:
        return _stop(arguments.stop, console)
    if arguments.detach:
        return _detach(arguments, console)
    return _keep(arguments, console)


def _keep(arguments: argparse.Namespace, console: Console) -> int:
    from evalswap.prompting.tokenizer_process import KeptTokenizers
    from evalswap.redaction import Redactor, secrets_in
    from evalswap.reporting.serve_screen import show_end, show_served, show_start
    from evalswap.serving.launching import Workload, prepare_engine
    from evalswap.serving.standing import Standing

    experiment, plan = _one_model(arguments)
    assert plan.launch is not None
    named = [*(model.model_dump() for model in experiment.models), dict(plan.launch.engine_args)]
    redact = Redactor(secrets_in(named))
    work = Workload(_longest_answer(arguments, experiment, plan))
    prepared = prepare_engine(plan, plan.launch, work, arguments.engine_python)
    standing = Standing(prepared, plan.abbr, arguments.host, arguments.port)
    entry = standing.enter(redact)
    if entry.pid != os.getpid():
        return _there_already(entry, prepared.engine.up_path, console)
    show_start(console, entry)

    def say(text: str) -> None:
        console.print(text, highlight=False, markup=False, soft_wrap=True)

    def announce(ready: Registration, seconds: float) -> None:
        show_served(console, ready, seconds, exposed=ready.host not in LOOPBACK_HOSTS)

    with KeptTokenizers() as tokenizers:
        asyncio.run(standing.serve(entry, redact, say, announce, tokenizers.socket))
    show_end(console, entry)
    return EXIT_OK


def _one_model(arguments: argparse.Namespace) -> tuple[Experiment, ModelPlan]:
    """Return the one model that shall be served. Raises ConfigError if that is not clear."""
    from evalswap.engines.registry import REMOTE, canonical_name

    if arguments.config is None and not arguments.datasets:
        arguments.datasets, arguments.any_dataset = [ANY_DATASET], True
    if arguments.accelerator and canonical_name(arguments.accelerator) == REMOTE:
        raise _not_started("-a openai")
    experiment, plans = plan_models(arguments)
    abbrs = [plan.abbr for plan in plans]
    if arguments.only is not None and arguments.only not in abbrs:
        known = f"there are: {', '.join(abbrs)}"
        raise ConfigError(f"--only {arguments.only}: no such model", did_you_mean(arguments.only, abbrs) or known)
    chosen = [plan for plan in plans if arguments.only in (None, plan.abbr)]
    if len(chosen) > 1:
        raise ConfigError(f"one model can be served, the config has {len(abbrs)}", f"--only {' | '.join(abbrs)}")
    if chosen[0].launch is None:
        raise _not_started(chosen[0].abbr)
    return experiment, chosen[0]


def _not_started(what: str) -> ConfigError:
    return ConfigError(
        f"{what}: somebody else runs its server, so there is nothing to serve",
        "choose an engine that evalswap starts, for example -a vllm",
    )


def _longest_answer(arguments: argparse.Namespace, experiment: Experiment, plan: ModelPlan) -> int:
    from evalswap.prompting.sampling import max_new_tokens

    if getattr(arguments, "any_dataset", False):
        return max_new_tokens(plan.sampling, None)
    datasets = experiment.datasets
    return max(max_new_tokens(plan.sampling, dataset.infer_cfg.inferencer.max_out_len) for dataset in datasets)


def _there_already(entry: Registration, up_path: str, console: Console) -> int:
    from evalswap.reporting.serve_screen import show_there_already
    from evalswap.serving.warm import doubt

    if entry.ready and (problem := doubt(entry, up_path)):
        raise EngineError(
            f"'{entry.name}' is served already (process {entry.pid}), but {problem}",
            f"stop it first: evalswap serve --stop {entry.name}",
        )
    show_there_already(console, entry)
    return EXIT_OK


def _list(console: Console) -> int:
    from evalswap.engines.registry import managed_engine
    from evalswap.reporting.serve_screen import show_list
    from evalswap.serving.registrations import registrations
    from evalswap.serving.warm import busyness

    def requests(entry: Registration) -> str:
        try:
            return busyness(entry, managed_engine(entry.engine))
        except EngineError as error:  # the package that brought the engine is gone
            return error.message

    show_list(console, [(entry, requests(entry)) for entry in registrations()])
    return EXIT_OK


def _stop(name: str, console: Console) -> int:
    from evalswap.reporting.serve_screen import show_end
    from evalswap.serving.registrations import registrations
    from evalswap.serving.standing import stop

    entries = registrations()
    chosen = [entry for entry in entries if name in ("all", entry.name)]
    if not chosen and name != "all":
        names = [entry.name for entry in entries]
        known = f"served are: {', '.join(names)}" if names else "nothing is served"
        raise ConfigError(f"--stop {name}: nothing of that name is served", did_you_mean(name, names) or known)
    for entry in chosen:
        stop(entry)
        show_end(console, entry)
    if not chosen:
        console.print("nothing is served", highlight=False)
    return EXIT_OK


def _detach(arguments: argparse.Namespace, console: Console) -> int:
    from evalswap.reporting.serve_screen import show_served
    from evalswap.serving.detaching import run_detached

    _one_model(arguments)  # what is wrong with the command is told at once
    end = run_detached([*arguments.argv, "--no-detach"])
    if end.entry is None:
        print(end.words, end="", file=sys.stderr if end.code else sys.stdout)
        return end.code
    show_served(console, end.entry, end.seconds, exposed=end.entry.host not in LOOPBACK_HOSTS, detached=True)
    return EXIT_OK
