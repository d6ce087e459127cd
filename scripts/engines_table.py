"""Print what becomes of each sampling field on each engine, as Markdown read from the engines' own code.

python scripts/engines_table.py                            print it
python scripts/engines_table.py --write docs/engines.md    put it between the markers of that page
python scripts/engines_table.py --check docs/engines.md    fail if the page holds another one
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Iterator
from pathlib import Path

from evalswap.engines.base import Emulated, Engine, Native, Refused
from evalswap.engines.llamacpp import Llamacpp
from evalswap.engines.lmdeploy import Lmdeploy, LmdeployPytorch
from evalswap.engines.openai import OpenAICompatible, ReasoningModel, SglangByIds, VllmByIds
from evalswap.engines.sglang import DeterministicSglang, PlainSglang, Sglang
from evalswap.engines.transformers import Transformers
from evalswap.engines.vllm import Vllm
from evalswap.plan import EndpointPlan
from evalswap.records import Prompt, Request, Sampling

BEGIN, END = "<!-- engines table -->", "<!-- /engines table -->"
SERVER = EndpointPlan(base_urls=("http://HOST/v1",), model="NAME")
ENGINES: dict[str, Engine] = {
    "transformers": Transformers(),
    "vllm": Vllm(),
    "sglang": Sglang(),
    "lmdeploy": Lmdeploy(),
    "llamacpp": Llamacpp(),
    "openai, by ids": VllmByIds(SERVER),
    "openai, by messages": OpenAICompatible(SERVER),
}
# Flags that change what an engine takes: (the engine, with the flag).
VARIANTS: dict[str, tuple[type[Engine], type[Engine]]] = {
    "sglang with `sampling_backend=pytorch`, or on a CPU": (Sglang, PlainSglang),
    "sglang with `enable_deterministic_inference=True`": (Sglang, DeterministicSglang),
    "lmdeploy with `backend=pytorch`": (Lmdeploy, LmdeployPytorch),
    "openai, by ids, at an SGLang server (else as sglang)": (Sglang, SglangByIds),
    "openai, by messages, of a reasoning model": (OpenAICompatible, ReasoningModel),
}
IDS, TEXT = (1,), ({"role": "user", "content": ""},)
NOT_SAID = ("prompt", "input_ids", "messages", "model", "order", "stream")


def table() -> str:
    """Return the table: one row a field of ``Sampling``, one column an engine, reasons as notes below."""
    notes: list[str] = []
    lines = [_row(["field", "neutral", *ENGINES]), _row(["---"] * (len(ENGINES) + 2))]
    for field in dataclasses.fields(Sampling):
        cells = [_cell(engine.sampling[field.name], notes) for engine in ENGINES.values()]
        lines.append(_row([f"`{field.name}`", _neutral(field), *cells]))
    numbered = [f"{number}. {text[0].upper()}{text[1:]}." for number, text in enumerate(notes, 1)]
    variants = [f"- {line}" for name, pair in VARIANTS.items() for line in _differences(name, *pair)]
    together = [
        f"- {name}: `{pair.fields[0]}` and `{pair.fields[1]}` exclude each other, because {pair.why}"
        for name, engine in ENGINES.items()
        for pair in engine.exclusive
    ]
    always = [f"- {name}: {', '.join(_always_sent(engine))}" for name, engine in ENGINES.items()]
    return "\n".join(
        [*lines, "", *numbered, "", *together, *variants, "", "Sent with every question beside these:", "", *always]
    )


def _neutral(field: dataclasses.Field[object]) -> str:
    return "always set" if field.default is dataclasses.MISSING else f"`{field.default!r}`"


def _cell(entry: Native | Emulated | Refused, notes: list[str]) -> str:
    if isinstance(entry, Native):
        return f"`{entry.name}`{_range(entry)}"
    if isinstance(entry, Emulated):
        word, why = "emulated", entry.how
    else:
        word, why = "refused" if entry.does is None else f"refused but for `{entry.does}`", entry.why
    if why not in notes:
        notes.append(why)
    return f"{word} ({notes.index(why) + 1})"


def _range(entry: Native) -> str:
    if entry.first is not None:
        return f", the first {entry.first}"
    if entry.least is not None and entry.most is not None:
        return f", {entry.least:g} to {entry.most:g}"
    if entry.least is not None:
        return f", at least {entry.least:g}"
    return "" if entry.most is None else f", at most {entry.most:g}"


def _differences(name: str, usual: type[Engine], other: type[Engine]) -> Iterator[str]:
    for field, entry in other.sampling.items():
        before = usual.sampling[field]
        if isinstance(before, Native) and before != entry == Native(before.name):
            yield f"{name}: `{field}` is not limited"
        elif before != entry:
            notes: list[str] = []
            yield f"{name}: `{field}` is {_cell(entry, notes).removesuffix(' (1)')}" + (
                f", because {notes[0]}" if notes else ""
            )
    for pair in other.exclusive:
        if pair not in usual.exclusive:
            yield f"{name}: `{pair.fields[0]}` and `{pair.fields[1]}` exclude each other, because {pair.why}"


def _always_sent(engine: Engine) -> list[str]:
    """Return the fields of a request that are no translation of ``Sampling``, with their values."""
    sampling = Sampling(max_new_tokens=1, stop_token_ids=(2,))
    body = engine.call(Request("", "", 0, Prompt(TEXT, None, IDS), sampling)).body
    native = engine.native_sampling(sampling)
    body = {**body, **body.get("sampling_params", {})}
    said = {key: value for key, value in body.items() if key not in (*NOT_SAID, *native, "sampling", "sampling_params")}
    return [f"`{key}={value}`" for key, value in said.items()] or ["nothing"]


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
