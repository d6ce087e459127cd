"""The command line: which command, and how it ends. Everything heavy is imported by the command that needs it."""

from __future__ import annotations

import argparse
import errno
import io
import os
import sys
import time
from collections.abc import Sequence

from evalswap import __version__
from evalswap.errors import EXIT_INTERRUPTED, EXIT_OK, EXIT_USAGE, EvalswapError
from evalswap.open_files import allow_many

STORING = ("run", "compare")  # the commands whose answers are stored, and which go on from there
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EIO)


def build_parser() -> argparse.ArgumentParser:
    """Return the command line's parser."""
    from evalswap.commands import check, compare, engines, report, run, serve
    from evalswap.commands.arguments import Parser

    parser = Parser(
        prog="evalswap",
        description="Swap the engine, keep the score: run an LLM evaluation on transformers, vLLM, SGLang, LMDeploy, "
        "llama.cpp or any OpenAI-compatible server, with the same prompts, the same stops and the same score.",
    )
    parser.add_argument("--version", action="version", version=f"evalswap {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", parser_class=Parser)
    for command in (run, check, serve, engines, compare, report):
        command.add(commands)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code; never raises for what a user can do wrong."""
    began = time.time()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a character that the terminal or the file has not is no failure
            stream.reconfigure(errors="replace")
    arguments = argparse.Namespace(command=None)
    try:
        parser = build_parser()
        parser.parse_args(argv, arguments)
        if arguments.command is None:
            parser.print_help()
            return EXIT_USAGE
        allow_many()
        arguments.began = began
        arguments.argv = list(sys.argv[1:] if argv is None else argv)
        from rich.console import Console

        width = None if sys.stdout.isatty() or os.environ.get("COLUMNS") else 160
        code = int(arguments.function(arguments, Console(width=width)))
        sys.stdout.flush()  # here, where it may fail
        return code
    except EvalswapError as error:
        return _fail(error, arguments)
    except KeyboardInterrupt:
        stored = ": every answer so far is stored; the same command goes on from there"
        print(f"\ninterrupted{stored if arguments.command in STORING else ''}", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        _drop_output()
        return EXIT_OK
    except OSError as error:
        if error.errno not in NO_ROOM or error.filename is not None:
            raise
        _drop_output()
        return _fail(EvalswapError(f"the output cannot be written: {error.strerror}", "free disk space"), arguments)


def _drop_output() -> None:
    """Send what is still to be printed nowhere: Python would fail again to write it when it ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _fail(error: EvalswapError, arguments: argparse.Namespace) -> int:
    if getattr(arguments, "debug", False):
        import traceback

        traceback.print_exception(error)
    from rich.console import Console

    from evalswap.redaction import Redactor
    from evalswap.reporting.screens import show_error

    show_error(Console(stderr=True), error, Redactor([getattr(arguments, "api_key", None) or ""]))
    return error.exit_code


if __name__ == "__main__":
    raise SystemExit(main())
