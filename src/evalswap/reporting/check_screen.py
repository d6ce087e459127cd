"""What ``evalswap check`` prints."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from evalswap import __version__
from evalswap.checking.findings import ModelCheck
from evalswap.plan import ModelPlan
from evalswap.redaction import redact_values
from evalswap.reporting.screens import show_plan

MARKS = {"good": "[green]ok[/]", "note": "[yellow]note[/]", "problem": "[bold red]problem[/]"}
SHOWN_PROMPT = 1200  # characters


def show_checks(
    console: Console, plans: Sequence[ModelPlan], checks: Sequence[ModelCheck], redact: Callable[[str], str]
) -> None:
    """Print what was found of each model, and whether it can run."""
    for plan, check in zip(plans, checks, strict=True):
        show_plan(console, plan, [], redact)
        if check.first_prompt is not None:
            _show_prompt(console, redact(check.first_prompt))
        view = Table(show_header=False, box=None, pad_edge=False)
        view.add_column()
        view.add_column(style="bold")
        view.add_column(overflow="fold")
        for finding in check.findings:
            text = escape(redact(finding.text))
            if finding.hint:
                text += f"\n[dim]→[/] {escape(redact(finding.hint))}"
            view.add_row(MARKS[finding.level], escape(finding.about), text)
        console.print(view)
        problems = len(check.problems)
        verdict = "[green]it can run[/]" if not problems else f"[bold red]{problems} problem{'s'[: problems > 1]}[/]"
        console.print(f"{escape(check.abbr)}: {verdict}", highlight=False)


def as_json(checks: Sequence[ModelCheck], redact: Callable[[str], str]) -> str:
    """Return the same for a program: ``{"evalswap", "ok", "models": [{"abbr", "ok", "findings", …}]}``."""
    models: list[dict[str, Any]] = [{**dataclasses.asdict(check), "ok": not check.problems} for check in checks]
    whole = {"evalswap": __version__, "ok": all(model["ok"] for model in models), "models": models}
    return json.dumps(redact_values(whole, redact), indent=2, ensure_ascii=False, default=str)


def _show_prompt(console: Console, prompt: str) -> None:
    shown = prompt if len(prompt) <= SHOWN_PROMPT else prompt[:SHOWN_PROMPT] + f"… ({len(prompt)} characters)"
    console.print("[dim]the first prompt, as the engine reads it[/]")
    for line in shown.splitlines():
        console.print(f"  │ {line}", markup=False, highlight=False, soft_wrap=True)
