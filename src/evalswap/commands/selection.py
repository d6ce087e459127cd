"""Which models and datasets a command is about, and on which engine: from arguments to plans."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evalswap.commands.arguments import KeyValues, positive, whole
from evalswap.errors import ConfigError

if TYPE_CHECKING:
    from evalswap.config.experiment import Experiment
    from evalswap.plan import ModelPlan

HF_OPTIONS = (
    "tokenizer_path", "model_kwargs", "tokenizer_kwargs", "generation_kwargs", "peft_path", "pad_token_id",
    "max_seq_len", "max_out_len", "min_out_len", "batch_size", "hf_num_gpus", "stop_words",
)  # fmt: skip
SERVER_OPTIONS = ("api_base", "api_key", "api_model", "api_in_flight")
DEFAULT_WORK_DIR = "outputs/default"


def add_selection(command: argparse.ArgumentParser) -> None:
    """Declare a config file, or the names and model that stand for one."""
    command.add_argument("config", nargs="?", type=Path, help="a Python config file")
    names = command.add_argument_group("without a config file", "names are those of the library; globs are allowed")
    names.add_argument("--models", nargs="+", default=[], metavar="NAME")
    names.add_argument("--datasets", nargs="+", default=[], metavar="NAME")
    names.add_argument("--config-dir", type=Path, metavar="DIR", help="more configs: DIR/models, DIR/datasets, …")

    hf = command.add_argument_group("a HuggingFace model")
    hf.add_argument("--hf-path", metavar="PATH_OR_ID", help="a model folder or a hub id")
    hf.add_argument("--hf-type", choices=("chat", "base"), default="chat", help="base models get no chat template")
    hf.add_argument("--tokenizer-path", metavar="PATH_OR_ID")
    hf.add_argument("--model-kwargs", nargs="+", action=KeyValues, metavar="KEY=VALUE")
    hf.add_argument("--tokenizer-kwargs", nargs="+", action=KeyValues, metavar="KEY=VALUE")
    hf.add_argument("--generation-kwargs", nargs="+", action=KeyValues, metavar="KEY=VALUE")
    hf.add_argument("--peft-path", metavar="PATH")
    hf.add_argument("--pad-token-id", type=whole, metavar="ID")
    hf.add_argument("--max-seq-len", type=positive, metavar="N", help="longest prompt, in tokens")
    hf.add_argument("--max-out-len", type=positive, metavar="N", help="longest answer (a dataset's own value wins)")
    hf.add_argument("--min-out-len", type=whole, metavar="N")
    hf.add_argument("--batch-size", type=positive, metavar="N", help="of transformers (default: 8)")
    hf.add_argument("--hf-num-gpus", type=whole, metavar="N")
    hf.add_argument("--stop-words", nargs="+", default=None, metavar="WORD")


def add_summarizer(command: argparse.ArgumentParser) -> None:
    """Declare the summary that goes with names from the library."""
    command.add_argument("--summarizer", metavar="NAME", help="without a config file: a summarizer of the library")


def add_engine(command: argparse.ArgumentParser) -> None:
    """Declare what the command line says about an engine that evalswap starts."""
    engine = command.add_argument_group("the engine")
    engine.add_argument("--engine-python", metavar="PATH", help="an interpreter that has the engine")
    engine.add_argument("--engine-args", nargs="+", action=KeyValues, metavar="KEY=VALUE",
                        help="flags of the engine itself, verbatim")  # fmt: skip


def add_server(command: argparse.ArgumentParser) -> None:
    """Declare what the command line says about a server that runs already."""
    server = command.add_argument_group("-a openai", "a server that runs already")
    server.add_argument("--api-base", metavar="URL", help="its address (or OPENAI_BASE_URL); "
                        "several, with commas between them, share the work")  # fmt: skip
    server.add_argument("--api-key", metavar="KEY", help="its key (better: OPENAI_API_KEY)")
    server.add_argument("--api-model", metavar="NAME", help="the model's name there")
    server.add_argument("--api-in-flight", type=positive, metavar="N", help="most requests at once "
                        "(default: 64 at first and more by trial, up to 1024 for each address)")  # fmt: skip


def add_running(command: argparse.ArgumentParser) -> None:
    """Declare where and how engines are run."""
    command.add_argument("-w", "--work-dir", type=Path, help=f"where runs go (default: {DEFAULT_WORK_DIR})")
    command.add_argument("--limit", type=positive, metavar="N", help="only the first N rows of each dataset")
    command.add_argument("--no-warm", action="store_true", help="start engines, even if `evalswap serve` keeps one")
    command.add_argument("--hang-timeout", type=positive, metavar="SECONDS",
                         help="restart an engine after so long without an answer or any other progress "
                         "(default: 600 on a GPU, 1800 on a CPU, and more for long answers)")  # fmt: skip


def work_dir_of(arguments: argparse.Namespace, experiment: Experiment) -> Path:
    return arguments.work_dir or Path(experiment.work_dir or DEFAULT_WORK_DIR)


def option_of(name: str) -> str:
    """Return what a user writes for an argument."""
    return f"--{name.replace('_', '-')}"


def plan_models(arguments: argparse.Namespace) -> tuple[Experiment, list[ModelPlan]]:
    """Return the experiment and a plan for each of its models. Raises ConfigError or ConversionError."""
    from evalswap.config.experiment import from_config, from_names
    from evalswap.config.loading import ConfigLoader
    from evalswap.conversion import EngineOptions, convert
    from evalswap.engines.registry import canonical_name

    folders = (arguments.config_dir, Path(), Path("config"), Path("configs"))
    loader = ConfigLoader([folder for folder in folders if folder])
    by_name = arguments.models or arguments.datasets or arguments.hf_path
    if arguments.config is not None and by_name:
        raise ConfigError("a config file and --models/--datasets/--hf-path exclude each other", "give one of them")
    if not arguments.hf_path:
        for name in HF_OPTIONS:
            if getattr(arguments, name) is not None:
                raise ConfigError(
                    f"{option_of(name)} describes the model of --hf-path", "set it in the config file instead"
                )
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
        in_flight=arguments.api_in_flight,
    )
    plans = [convert(spec, options) for spec in experiment.models]
    if not any(plan.endpoint for plan in plans):
        for name in SERVER_OPTIONS:
            if getattr(arguments, name) is not None:
                raise ConfigError(
                    f"{option_of(name)} is about a server that runs already, and no model here is asked at one",
                    "add -a openai, or leave it out",
                )
    abbrs = [plan.abbr for plan in plans]
    for abbr in abbrs:
        if abbrs.count(abbr) > 1:
            raise ConfigError(f"two models are called '{abbr}' on this engine", "give them other abbrs")
    return experiment, plans


def _hf_model(arguments: argparse.Namespace) -> dict[str, Any] | None:
    if not arguments.hf_path:
        return None
    name = arguments.hf_path.rstrip("/").split("/")[-1].removesuffix("_hf").removesuffix("-hf")
    model = {
        "type": "HuggingFacewithChatTemplate" if arguments.hf_type == "chat" else "HuggingFaceBaseModel",
        "abbr": f"{name}-hf",
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
