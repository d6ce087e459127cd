"""``evalswap report``: finished runs as one HTML page."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evalswap.commands.arguments import points
from evalswap.errors import EXIT_OK

if TYPE_CHECKING:
    from rich.console import Console

PAGE_NAME = "report.html"


def add(commands: Any) -> None:
    report = commands.add_parser("report", help="show finished runs as one HTML page that needs no network")
    report.set_defaults(function=_report)
    report.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run folders; the first is the reference")
    report.add_argument("--margin", type=points, default=1.0, metavar="POINTS",
                        help="how far scores may lie apart and still be equivalent (default: 1)")  # fmt: skip
    report.add_argument("--common-rows", action="store_true", help="compare runs of other rows on those in both")
    report.add_argument("-o", "--out", type=Path, metavar="FILE", help=f"default: {PAGE_NAME} in the last run's folder")
    report.add_argument("--open", action="store_true", help="open it in the browser")
    report.add_argument("--debug", action="store_true", help="show tracebacks")


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
