"""What a run prints beside its progress and its table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from evalswap.benchmarks.registry import Rows
from evalswap.config.specs import DatasetSpec
from evalswap.errors import EvalswapError
from evalswap.plan import ModelPlan
from evalswap.records import Failure
from evalswap.reporting.progress import clock
from evalswap.serving.environments import EngineStatus

if TYPE_CHECKING:
    from evalswap.inference.model_run import Outcome


# The names of timings, and what a person reads.
SHORTEST_TIME = 0.05  # seconds
WALL_TIMES = {
    "load": "load",
    "wait": "waiting for the engine",
    "infer": "asking",
    "stop": "engine stop",
    "finish": "last scores and files",
    "total": "total",
}
BEHIND = {"score": "score", "write": "write"}
REQUEST_TIMES = {
    "requests": "answered in",
    "retries": "retries and pauses",
    "engine_queue": "engine's queue",
    "prefill": "prefill",
    "decode": "decode",
}


def show_plan(
    console: Console,
    plan: ModelPlan,
    datasets: Sequence[tuple[DatasetSpec, Rows | None]],
    redact: Callable[[str], str],
) -> None:
    """Print what will be asked of what, and how the config's fields were translated."""
    console.print(f"[bold]{escape(plan.abbr)}[/] on [bold]{plan.engine}[/]", highlight=False)
    for dataset, rows in datasets:
        known = f": {len(rows.rows)} rows from {rows.source}" if rows else f": {dataset.path or dataset.type}"
        console.print(
            f"  dataset {dataset.abbr} ({dataset.version}){known}",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )
    view = Table(title=f"translation of {plan.spec_type}", title_justify="left", title_style="dim")
    view.add_column("config", overflow="fold")
    view.add_column(f"on {plan.engine}", overflow="fold")
    view.add_column("note", style="dim", overflow="fold")
    for row in plan.translation:
        source, target, note = (escape(redact(text)) for text in (row.source, row.target, row.note))
        view.add_row(source, target or "[dim]no counterpart[/]", note)
    console.print(view)


def show_engine(console: Console, outcome: Outcome, redact: Callable[[str], str] = str) -> None:
    """Print which engine really ran, and what is to be known of its answers."""
    if outcome.engine is None:
        return
    engine = outcome.engine
    source = engine.details.get("source")
    where = f"{engine.interpreter} ({source})" if source else engine.interpreter
    text = redact(f"engine: {engine} on {engine.device}, {where}")
    console.print(text, highlight=False, markup=False, soft_wrap=True)
    if outcome.restarts:
        console.print(f"engine: started again {outcome.restarts} times, see above and its log", highlight=False)
    for job, count in outcome.cut.items():
        console.print(
            f"{job}: {count} prompts were cut to what max_seq_len, or the model's context, has room for",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )
    for job, count in outcome.shortened.items():
        console.print(
            f"{job}: {count} answers had less room than max_out_len (context of the model)",
            highlight=False,
            markup=False,
        )
    for job, count in outcome.empty.items():
        console.print(f"{job}: {count} answers are empty, and scored so", highlight=False, markup=False)


def show_error(console: Console, error: EvalswapError, redact: Callable[[str], str] = str) -> None:
    """Print an error for a person: what is wrong, then what to do."""
    console.print(f"[bold red]error:[/] {escape(redact(error.message))}", highlight=False, soft_wrap=True)
    if error.hint:
        console.print(f"  [dim]→[/] {escape(redact(error.hint))}", highlight=False, soft_wrap=True)


def show_unanswered(console: Console, job: str, unanswered: int, failures: Sequence[Failure]) -> None:
    """Print how many questions of a job got no answer, and why the first of them did not."""
    if not unanswered:
        return
    console.print(
        f"[bold red]{escape(job)}: {unanswered} without an answer[/] (asked by the next run)",
        highlight=False,
    )
    for failure in failures:
        console.print(
            f"  row {failure.row}, after {failure.attempts} tries: {failure.error}",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )
    if failures and unanswered > len(failures):
        console.print(f"  … and {unanswered - len(failures)} more", highlight=False)


def show_times(console: Console, model: str, outcome: Outcome) -> None:
    """Print in one line where a model's time went; what would be shown as 0.0 s is left out."""
    times = {name: value for name, value in outcome.timings.items() if value is not None}
    if not times:
        return
    asked = outcome.tally.answered
    shown = {name: clock(value) for name, value in times.items() if value >= SHORTEST_TIME or name in ("load", "total")}
    wall = [f"{text} {shown[name]}" for name, text in WALL_TIMES.items() if name in shown]
    behind = [f"{text} {shown[name]}" for name, text in BEHIND.items() if name in shown]
    parts = [", ".join(wall), f"behind it {', '.join(behind)}" if behind else ""]
    if asked and times.get("infer"):
        parts.append(f"client idle {100 * times['client_idle'] / times['infer']:.0f}%")
        each = {name: times[name] / asked for name in REQUEST_TIMES if name in times}
        request = [f"{REQUEST_TIMES[name]} {value:.2f} s" for name, value in each.items() if value >= 0.005]
        if request:
            parts.append(f"a request on average: {', '.join(request)}")
    line = "; ".join(filter(None, parts))
    console.print(f"time of {model}: {line}", highlight=False, markup=False, soft_wrap=True)


def show_engines(console: Console, engines: Sequence[EngineStatus]) -> None:
    """Print the engines: installed or not, version, interpreter, CPU or GPU."""
    view = Table()
    for name in ("engine", "version", "device", "interpreter"):
        view.add_column(name, overflow="fold")
    for status in engines:
        found = status.interpreter
        if found is None:
            view.add_row(status.engine, "-", "-", f"{status.problem}; {status.hint}")
        else:
            view.add_row(status.engine, found.version or "?", found.device, f"{found.path} ({found.source})")
    view.add_row("openai", "-", "remote", "any server that speaks the OpenAI protocol (--api-base)")
    console.print(view)
