"""``evalswap compare``: put finished runs side by side."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evalswap.errors import EXIT_OK

if TYPE_CHECKING:
    from rich.console import Console


def add(commands: Any) -> None:
    compare = commands.add_parser("compare", help="put finished runs side by side")
    compare.set_defaults(function=_compare)
    compare.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run folders; the first is the reference")
    compare.add_argument("--debug", action="store_true", help="show tracebacks")


def _compare(arguments: argparse.Namespace, console: Console) -> int:
    from evalswap.reporting.comparison import compare_runs, show_comparison

    show_comparison(console, compare_runs(arguments.runs))
    return EXIT_OK
