"""What ``evalswap serve`` prints."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from evalswap.serving.registrations import Registration


def show_start(console: Console, entry: Registration) -> None:
    """Print what is being started."""
    _say(console, f"starting {entry.engine} {entry.version} on {entry.device} with {entry.model} … (log: {entry.log})")


def show_served(
    console: Console, entry: Registration, seconds: float, *, exposed: bool, detached: bool = False
) -> None:
    """Print where a server is that is ready, who will use it and how it is stopped."""
    _say(console, f"{entry.engine} {entry.version} is up after {seconds:.1f} s")
    how = f"evalswap serve --stop {entry.name}"
    lines = {
        "address": entry.url,
        "log": entry.log,
        "used by": f"evalswap run -a {entry.engine}, for this model with the same flags, "
        f"prompt and answer up to {entry.context_len} tokens together",
        "stop": how if detached else f"Ctrl-C here, or {how}",
    }
    for name, text in lines.items():
        _say(console, f"  {name + ':':<9}{text}")
    if exposed:
        console.print(
            f"[bold yellow]warning:[/] it listens on {escape(entry.host)} and asks for no key: "
            "whoever reaches this address can use it",
            highlight=False,
            soft_wrap=True,
        )


def show_there_already(console: Console, entry: Registration) -> None:
    """Print that what shall be served is served."""
    where = f"at {entry.url}" if entry.ready else "it is still starting"
    _say(console, f"it is served already: '{entry.name}', {where}, since {entry.since_text} (process {entry.pid})")
    _say(console, f"  stop it: evalswap serve --stop {entry.name}")


def show_end(console: Console, entry: Registration) -> None:
    """Print that a server was stopped."""
    _say(console, f"stopped {entry.name}")


def show_list(console: Console, entries: Sequence[tuple[Registration, str]]) -> None:
    """Print what is served, and how busy each is."""
    if not entries:
        _say(console, "nothing is served")
        return
    view = Table()
    for name in ("name", "engine", "model", "address", "since", "process", "requests now"):
        view.add_column(name, overflow="fold")
    for entry, requests in entries:
        kind = f"{entry.facts.get('dtype')}, {entry.context_len} tokens"
        view.add_row(
            escape(entry.name),
            escape(f"{entry.engine} {entry.version} ({entry.device})"),
            escape(f"{entry.model} ({kind})"),
            entry.url if entry.ready else "-",
            entry.since_text,
            str(entry.pid),
            escape(requests),
        )
    console.print(view)


def _say(console: Console, text: str) -> None:
    console.print(text, highlight=False, markup=False, soft_wrap=True)
