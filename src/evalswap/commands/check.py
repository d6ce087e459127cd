"""``evalswap check``: what a run would meet, found out in seconds; nothing is started."""

from __future__ import annotations

import argparse
import json
import os
from typing import TYPE_CHECKING, Any

from evalswap.commands.arguments import positive
from evalswap.commands.selection import add_engine, add_selection, add_server, add_summarizer, plan_models
from evalswap.errors import EXIT_FAILED, EXIT_OK, EvalswapError

if TYPE_CHECKING:
    from rich.console import Console

    from evalswap.prompting.tokenizer_process import TokenizerProcess


def add(commands: Any) -> None:
    check = commands.add_parser(
        "check",
        help="tell whether a run would work, in seconds and without a GPU",
        description="Check engine, architecture, memory, prompts and data of a run. Nothing is started, downloaded "
        "or written.",
    )
    check.set_defaults(function=_check)
    add_selection(check)
    add_summarizer(check)
    check.add_argument("-a", "--accelerator", metavar="ENGINE", help="move HuggingFace models to this engine")
    check.add_argument("--limit", type=positive, metavar="N", help="only the first N rows of each dataset")
    check.add_argument("--json", action="store_true", help="print the result as JSON")
    check.add_argument("--debug", action="store_true", help="show tracebacks")
    add_engine(check)
    add_server(check)


def _check(arguments: argparse.Namespace, console: Console) -> int:
    # The hub's client reads it when it is imported; a check that waits for a network is none.
    os.environ["HF_HUB_OFFLINE"] = "1"
    from evalswap.engines.registry import REMOTE
    from evalswap.prompting.tokenizer_process import TokenizerProcess

    with TokenizerProcess() as tokenizers:
        if arguments.accelerator not in (None, REMOTE):
            tokenizers.begin()  # its import goes on beside all that follows
        return _check_with(tokenizers, arguments, console)


def _check_with(tokenizers: TokenizerProcess, arguments: argparse.Namespace, console: Console) -> int:
    try:
        experiment, plans = plan_models(arguments)
    except EvalswapError as error:
        if arguments.json:
            print(json.dumps({"ok": False, "error": error.message, "hint": error.hint}, ensure_ascii=False))
        raise
    from evalswap.checking.models import Checker
    from evalswap.redaction import Redactor, secrets_in
    from evalswap.reporting.check_screen import as_json, show_checks

    named = [model.model_dump() for model in experiment.models]
    keys = [key for plan in plans if plan.endpoint for key in plan.endpoint.keys]
    redact = Redactor([*secrets_in([named, arguments.engine_args or {}]), *keys])
    checks = Checker(experiment, plans, tokenizers, arguments.limit, arguments.engine_python).check()
    if arguments.json:
        print(as_json(checks, redact))
    else:
        show_checks(console, plans, checks, redact)
    return EXIT_FAILED if any(check.problems for check in checks) else EXIT_OK
