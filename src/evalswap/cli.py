"""The command line: arguments to one function call. Everything heavy is imported by the command that needs it."""

from __future__ import annotations

import argparse
import ast
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from evalswap import __version__
from evalswap.errors import EXIT_INTERRUPTED, EXIT_OK, EXIT_USAGE, ConfigError, EvalswapError, did_you_mean

if TYPE_CHECKING:
    from rich.console import Console

    from evalswap.config.experiment import Experiment
    from evalswap.plan import ModelPlan

DEFAULT_WORK_DIR = "outputs/default"
HF_OPTIONS = (
    "tokenizer_path", "model_kwargs", "tokenizer_kwargs", "generation_kwargs", "peft_path", "pad_token_id",
    "max_seq_len", "max_out_len", "min_out_len", "batch_size", "hf_num_gpus", "stop_words",
)  # fmt: skip


class _Parser(argparse.ArgumentParser):
    """argparse that suggests the option that was meant."""

    def known_options(self) -> list[str]:
        """Return this parser's options and those of the commands below it."""
        known = list(self._option_string_actions)
        for action in self._actions:
            if isinstance(action, argparse._SubParsersAction):
                known += [option for parser in action.choices.values() for option in parser.known_options()]
        return known

    def error(self, message: str) -> NoReturn:
        hint = None
        if message.startswith("unrecognized arguments:"):
            word = message.split(":", 1)[1].split()[0].partition("=")[0]
            hint = did_you_mean(word, self.known_options())
        self.print_usage(sys.stderr)
        print(f"error: {message}" + (f"\n  → {hint}" if hint else ""), file=sys.stderr)
        raise SystemExit(EXIT_USAGE)


class _KeyValues(argparse.Action):
    """``--generation-kwargs temperature=0.6 do_sample=True``: Python literals, or text."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        pairs = dict(getattr(namespace, self.dest) or {})
        for item in values:
            key, equals, value = item.partition("=")
            if not equals or not key:
                parser.error(f"argument {option_string}: '{item}' is not KEY=VALUE")
            pairs[key] = _literal(value)
        setattr(namespace, self.dest, pairs)


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("a number of at least 1 is wanted")
    return number


def build_parser() -> argparse.ArgumentParser:
    """Return the command line's parser."""
    parser = _Parser(
        prog="evalswap",
        description="Swap the engine, keep the score: run an LLM evaluation on transformers, vLLM or any "
        "OpenAI-compatible server, with the same prompts, the same stops and the same score.",
    )
    parser.add_argument("--version", action="version", version=f"evalswap {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", parser_class=_Parser)
    _add_run(commands)
    _add_engines(commands)
    _add_compare(commands)
    return parser


def _add_run(commands: Any) -> None:
    run = commands.add_parser(
        "run",
        help="run an evaluation",
        description="Run an evaluation from a config file, or from --models/--hf-path and --datasets.",
    )
    run.set_defaults(function=_run)
    run.add_argument("config", nargs="?", type=Path, help="a Python config file")
    run.add_argument("-a", "--accelerator", metavar="ENGINE", help="move HuggingFace models to this engine")
    run.add_argument("-w", "--work-dir", type=Path, help=f"where results go (default: {DEFAULT_WORK_DIR})")
    run.add_argument("-m", "--mode", choices=("all", "infer", "eval", "viz"), default="all",
                     help="all, only ask, only score, or only show the summary")  # fmt: skip
    run.add_argument("-r", "--reuse", nargs="?", const="latest", metavar="TIMESTAMP",
                     help="go on in an earlier run's folder (the latest, or TIMESTAMP)")  # fmt: skip
    run.add_argument("--limit", type=_positive, metavar="N", help="only the first N rows of each dataset")
    run.add_argument("--dry-run", action="store_true", help="print the plan and the translation, start nothing")
    run.add_argument("--debug", action="store_true", help="show tracebacks")

    names = run.add_argument_group("without a config file", "names are those of the library; globs are allowed")
    names.add_argument("--models", nargs="+", default=[], metavar="NAME")
    names.add_argument("--datasets", nargs="+", default=[], metavar="NAME")
    names.add_argument("--summarizer", metavar="NAME")
    names.add_argument("--config-dir", type=Path, metavar="DIR", help="more configs: DIR/models, DIR/datasets, …")

    hf = run.add_argument_group("a HuggingFace model")
    hf.add_argument("--hf-path", metavar="PATH_OR_ID", help="a model folder or a hub id")
    hf.add_argument("--hf-type", choices=("chat", "base"), default="chat", help="base models get no chat template")
    hf.add_argument("--tokenizer-path", metavar="PATH_OR_ID")
    hf.add_argument("--model-kwargs", nargs="+", action=_KeyValues, metavar="KEY=VALUE")
    hf.add_argument("--tokenizer-kwargs", nargs="+", action=_KeyValues, metavar="KEY=VALUE")
    hf.add_argument("--generation-kwargs", nargs="+", action=_KeyValues, metavar="KEY=VALUE")
    hf.add_argument("--peft-path", metavar="PATH")
    hf.add_argument("--pad-token-id", type=int, metavar="ID")
    hf.add_argument("--max-seq-len", type=_positive, metavar="N", help="longest prompt, in tokens")
    hf.add_argument("--max-out-len", type=_positive, metavar="N", help="longest answer (a dataset's own value wins)")
    hf.add_argument("--min-out-len", type=int, metavar="N")
    hf.add_argument("--batch-size", type=_positive, metavar="N", help="of transformers (default: 8)")
    hf.add_argument("--hf-num-gpus", type=int, metavar="N")
    hf.add_argument("--stop-words", nargs="+", default=None, metavar="WORD")

    engine = run.add_argument_group("the engine")
    engine.add_argument("--engine-python", metavar="PATH", help="an interpreter that has the engine")
    engine.add_argument("--engine-args", nargs="+", action=_KeyValues, metavar="KEY=VALUE",
                        help="flags of the engine itself, verbatim")  # fmt: skip
    engine.add_argument("--api-base", metavar="URL", help="-a openai: the server (or OPENAI_BASE_URL)")
    engine.add_argument("--api-key", metavar="KEY", help="-a openai: its key (better: OPENAI_API_KEY)")
    engine.add_argument("--api-model", metavar="NAME", help="-a openai: the model's name there")


def _add_engines(commands: Any) -> None:
    engines = commands.add_parser("engines", help="list the engines, or install one")
    engines.set_defaults(function=_engines)
    actions = engines.add_subparsers(dest="action", metavar="[install|python]", parser_class=_Parser)
    which = actions.add_parser("python", help="print the interpreter that would run an engine")
    which.set_defaults(function=_engine_python)
    which.add_argument("engine")
    install = actions.add_parser("install", help="make an isolated environment for an engine")
    install.set_defaults(function=_install)
    install.add_argument("engine", help="transformers, vllm, …")
    install.add_argument("--reinstall", action="store_true", help="make it anew")
    install.add_argument("--python", metavar="PATH", help="the Python to build the environment from")
    install.add_argument("--debug", action="store_true", help="show tracebacks")
    install.add_argument("pip_args", nargs="*", metavar="-- PIP_ARG", help="more arguments for pip install")


def _add_compare(commands: Any) -> None:
    compare = commands.add_parser("compare", help="put finished runs side by side")
    compare.set_defaults(function=_compare)
    compare.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run folders; the first is the reference")
    compare.add_argument("--debug", action="store_true", help="show tracebacks")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code; never raises for what a user can do wrong."""
    began = time.time()
    parser = build_parser()
    arguments = parser.parse_args(argv)
    if arguments.command is None:
        parser.print_help()
        return EXIT_USAGE
    arguments.began = began
    from rich.console import Console

    width = None if sys.stdout.isatty() or os.environ.get("COLUMNS") else 160
    console = Console(width=width)
    try:
        return int(arguments.function(arguments, console))
    except EvalswapError as error:
        return _fail(error, arguments)
    except KeyboardInterrupt:
        print(
            "\ninterrupted: every answer so far is stored; the same command goes on from there",
            file=sys.stderr,
        )
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_OK


def _fail(error: EvalswapError, arguments: argparse.Namespace) -> int:
    if getattr(arguments, "debug", False):
        import traceback

        traceback.print_exception(error)
    from rich.console import Console

    from evalswap.redaction import Redactor
    from evalswap.reporting.screens import show_error

    show_error(Console(stderr=True), error, Redactor([getattr(arguments, "api_key", None) or ""]))
    return error.exit_code


def _run(arguments: argparse.Namespace, console: Console) -> int:
    from evalswap.evaluation import Evaluation, RunOptions

    experiment, plans = _plan(arguments)
    if experiment.ignored:
        names = ", ".join(experiment.ignored)
        console.print(f"the config's {names}: evalswap schedules by itself; not used", highlight=False)
    if arguments.dry_run:
        return _dry_run(experiment, plans, arguments, console)
    work_dir = arguments.work_dir or Path(experiment.work_dir or DEFAULT_WORK_DIR)
    options = RunOptions(
        work_dir=work_dir,
        mode=arguments.mode,
        reuse=arguments.reuse,
        limit=arguments.limit,
        engine_python=arguments.engine_python,
        began=arguments.began,
        secrets=(arguments.api_key,) if arguments.api_key else (),
    )
    return Evaluation(experiment, plans, options, console).run()


def _plan(arguments: argparse.Namespace) -> tuple[Experiment, list[ModelPlan]]:
    from evalswap.config.experiment import from_config, from_names
    from evalswap.config.loading import ConfigLoader
    from evalswap.conversion import EngineOptions, convert
    from evalswap.engines.registry import canonical_name

    loader = ConfigLoader([p for p in (arguments.config_dir, Path(), Path("config"), Path("configs")) if p])
    by_name = arguments.models or arguments.datasets or arguments.hf_path
    if arguments.config is not None and by_name:
        raise ConfigError("a config file and --models/--datasets/--hf-path exclude each other", "give one of them")
    if not arguments.hf_path:
        for name in HF_OPTIONS:
            if getattr(arguments, name) is not None:
                option = "--" + name.replace("_", "-")
                raise ConfigError(f"{option} describes the model of --hf-path", "set it in the config file instead")
    if arguments.config is not None:
        experiment = from_config(arguments.config, loader)
    else:
        experiment = from_names(
            arguments.models, arguments.datasets, arguments.summarizer, _hf_model(arguments), loader
        )
    options = EngineOptions(
        accelerator=canonical_name(arguments.accelerator) if arguments.accelerator else None,
        engine_args=arguments.engine_args or {},
        api_base=arguments.api_base,
        api_key=arguments.api_key,
        api_model=arguments.api_model,
    )
    plans = [convert(spec, options) for spec in experiment.models]
    abbrs = [plan.abbr for plan in plans]
    for abbr in abbrs:
        if abbrs.count(abbr) > 1:
            raise ConfigError(f"two models are called '{abbr}' on this engine", "give them other abbrs")
    return experiment, plans


def _hf_model(arguments: argparse.Namespace) -> dict[str, Any] | None:
    if not arguments.hf_path:
        return None
    name = arguments.hf_path.rstrip("/").split("/")[-1]
    model = {
        "type": "HuggingFacewithChatTemplate" if arguments.hf_type == "chat" else "HuggingFaceBaseModel",
        "abbr": f"{name}_hf".replace("_hf", "-hf"),
        "path": arguments.hf_path,
        "tokenizer_path": arguments.tokenizer_path,
        "model_kwargs": arguments.model_kwargs,
        "tokenizer_kwargs": arguments.tokenizer_kwargs,
        "generation_kwargs": arguments.generation_kwargs,
        "peft_path": arguments.peft_path,
        "pad_token_id": arguments.pad_token_id,
        "max_seq_len": arguments.max_seq_len,
        "max_out_len": arguments.max_out_len,
        "min_out_len": arguments.min_out_len,
        "batch_size": arguments.batch_size,
        "stop_words": arguments.stop_words,
        "run_cfg": None if arguments.hf_num_gpus is None else {"num_gpus": arguments.hf_num_gpus},
    }
    return {key: value for key, value in model.items() if value is not None}


def _dry_run(
    experiment: Experiment, plans: Sequence[ModelPlan], arguments: argparse.Namespace, console: Console
) -> int:
    from evalswap.engines.registry import managed_engine
    from evalswap.inference.model_run import check_sampling
    from evalswap.reporting.screens import show_plan
    from evalswap.serving.environments import find_interpreter

    for plan in plans:
        show_plan(console, plan, [(dataset, None) for dataset in experiment.datasets])
        check_sampling(plan, experiment.datasets)
        if plan.launch is None:
            continue
        engine = managed_engine(plan.engine)
        try:
            found = find_interpreter(engine.name, engine.distributions, arguments.engine_python)
            text = f"engine: {engine.name} {found.version} on {found.device}, {found.path} ({found.source})"
        except EvalswapError as error:
            text = f"engine: {error.message}" + (f"; {error.hint}" if error.hint else "")
        console.print(text, highlight=False, markup=False, soft_wrap=True)
    console.print("dry run: nothing was started", highlight=False)
    return EXIT_OK


def _engines(arguments: argparse.Namespace, console: Console) -> int:
    from evalswap.reporting.screens import show_engines
    from evalswap.serving.environments import installed_engines

    show_engines(console, installed_engines())
    return EXIT_OK


def _engine_python(arguments: argparse.Namespace, console: Console) -> int:
    from evalswap.engines.registry import canonical_name, managed_engine
    from evalswap.serving.environments import find_interpreter

    engine = managed_engine(canonical_name(arguments.engine))
    print(find_interpreter(engine.name, engine.distributions).path)
    return EXIT_OK


def _install(arguments: argparse.Namespace, console: Console) -> int:
    from evalswap.serving.environments import install

    def echo(line: str) -> None:
        console.print(line, highlight=False, markup=False, soft_wrap=True)

    found = install(arguments.engine, arguments.pip_args, echo, reinstall=arguments.reinstall, python=arguments.python)
    echo(f"{found.engine} {found.version} ({found.device}) is ready: {found.path}")
    return EXIT_OK


def _compare(arguments: argparse.Namespace, console: Console) -> int:
    from evalswap.reporting.comparison import compare_runs, show_comparison

    show_comparison(console, compare_runs(arguments.runs))
    return EXIT_OK


if __name__ == "__main__":
    raise SystemExit(main())
