"""Print what becomes of each sampling field on each engine, as a Markdown table read from the engines' own code.

python scripts/engines_table.py                            print it
python scripts/engines_table.py --write docs/engines.md    put it between the markers of that page
python scripts/engines_table.py --check docs/engines.md    fail if the page holds another one
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path

from evalswap.engines.base import Emulated, Native, Refused
from evalswap.engines.openai import OpenAICompatible
from evalswap.engines.transformers import Transformers
from evalswap.engines.vllm import Vllm
from evalswap.records import Sampling

BEGIN, END = "<!-- engines table -->", "<!-- /engines table -->"
ENGINES = {
    "transformers": Transformers.sampling,
    "vllm": Vllm.sampling,
    "openai, by ids": OpenAICompatible.sampling_by_ids,
    "openai, by messages": OpenAICompatible.sampling,
}


def table() -> str:
    """Return the table: one row a field of ``Sampling``, one column an engine, reasons as notes below."""
    notes: list[str] = []
    lines = [_row(["field", "neutral", *ENGINES]), _row(["---"] * (len(ENGINES) + 2))]
    for field in dataclasses.fields(Sampling):
        cells = [_cell(sampling[field.name], notes) for sampling in ENGINES.values()]
        lines.append(_row([f"`{field.name}`", _neutral(field), *cells]))
    numbered = [f"{number}. {text[0].upper()}{text[1:]}." for number, text in enumerate(notes, 1)]
    return "\n".join([*lines, "", *numbered])


def _neutral(field: dataclasses.Field[object]) -> str:
    return "always set" if field.default is dataclasses.MISSING else f"`{field.default!r}`"


def _cell(entry: Native | Emulated | Refused, notes: list[str]) -> str:
    if isinstance(entry, Native):
        return f"`{entry.name}`"
    word, why = ("emulated", entry.how) if isinstance(entry, Emulated) else ("refused", entry.why)
    if why not in notes:
        notes.append(why)
    return f"{word} ({notes.index(why) + 1})"


def _row(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def replaced(page: str) -> str:
    """Return a page with the table between its markers."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        sys.exit(f"engines_table: the page has no {BEGIN} … {END}")
    return f"{before}{BEGIN}\n{table()}\n{END}{after}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--write", type=Path, metavar="PAGE")
    what.add_argument("--check", type=Path, metavar="PAGE")
    arguments = parser.parse_args()
    page = arguments.write or arguments.check
    if page is None:
        print(table())
        return
    before = page.read_text(encoding="utf-8")
    after = replaced(before)
    if arguments.write:
        page.write_text(after, encoding="utf-8")
    elif after != before:
        sys.exit(f"engines_table: {page} is out of date: python scripts/engines_table.py --write {page}")


if __name__ == "__main__":
    main()
