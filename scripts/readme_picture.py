"""Draw finished runs as the screen showed them: each run's summary, then how they compare.

    python scripts/readme_picture.py outputs/demo/RUN_ON_TRANSFORMERS outputs/demo/RUN_ON_VLLM --margin 5

Writes an SVG that GitHub shows (no scripts, no fonts from elsewhere). Tables come from evalswap's own reporting
functions and from the runs' own files; nothing is asked again.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import re
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.terminal_theme import MONOKAI

from evalswap.comparing.comparison import compare_runs
from evalswap.comparing.sides import read_sides
from evalswap.reporting import summary
from evalswap.reporting.comparison_table import show_comparison

FONTS = 'ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace'


class Screen(Console):
    """A console with an edge: a terminal folds a long line, a picture would cut it off."""

    def print(self, *objects: Any, **options: Any) -> None:
        super().print(*objects, **{**options, "soft_wrap": False})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run folders, the reference first")
    parser.add_argument("--margin", type=float, default=1.0, help="as for evalswap compare")
    parser.add_argument("--out", type=Path, default=Path("docs/images/summary.svg"))
    parser.add_argument("--width", type=int, default=130, help="columns of the terminal")
    arguments = parser.parse_args()
    console = Screen(record=True, width=arguments.width, file=io.StringIO(), force_terminal=True, legacy_windows=False)
    for run in arguments.runs:
        show_command(console, command_of(run))
        summary.show(console, summary_of(run))
        console.print()
    folders = " ".join(shown_path(str(run)) for run in arguments.runs)
    margin = "" if arguments.margin == 1 else f" --margin {arguments.margin:g}"
    show_command(console, f"evalswap compare {folders}{margin}")
    show_comparison(console, compare_runs([read_sides(run) for run in arguments.runs], margin=arguments.margin))
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(as_svg(console), encoding="utf-8")
    print(f"{arguments.out}: {arguments.out.stat().st_size / 1000:.0f} kB")


def show_command(console: Console, command: str) -> None:
    console.print(f"[green]$[/] [bold]{command}[/]", highlight=False)


def command_of(run: Path) -> str:
    """Return the command of a run as a person would type it: without this machine's paths."""
    program, *rest = json.loads((run / "run.json").read_text(encoding="utf-8"))["command"].split(" ")
    name = Path(program).name
    return " ".join(["python run.py" if name == "run.py" else "evalswap", *map(shown_path, rest)])


def shown_path(word: str) -> str:
    """Return a path from its ``outputs`` folder on, if it has one, and no absolute path ever."""
    tail = re.search(r"(?:^|/)(outputs(?:/.*)?)$", word)
    if tail:
        return tail[1]
    return Path(word).name if word.startswith("/") else word


def summary_of(run: Path) -> list[list[str]]:
    """Return the cells of a run's latest summary."""
    latest = max((run / "summary").glob("summary_*.csv"))
    with latest.open(encoding="utf-8", newline="") as stream:
        return list(csv.reader(stream))


def as_svg(console: Console) -> str:
    """Return what was printed as an SVG that always comes out the same and loads nothing."""
    svg = console.export_svg(title="evalswap", theme=MONOKAI, unique_id="evalswap")
    svg = re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL)
    return svg.replace("font-family: Fira Code, monospace;", f"font-family: {FONTS};")


if __name__ == "__main__":
    main()
