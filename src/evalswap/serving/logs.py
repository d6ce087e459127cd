"""Reading an engine's log for the lines that tell a person what went wrong."""

from __future__ import annotations

import re
from collections.abc import Mapping

_ANSI = re.compile(r"\x1b(\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(\x07|\x1b\\)|[@-Z\\-_])")
# What stands before a line: "(EngineCore pid=12) ERROR 11-22 16:00:00 [core.py:7] " in vLLM, "INFO:     " in uvicorn.
_LEVEL = r"(DEBUG|INFO|WARNING|ERROR|CRITICAL)"
_PREFIX = re.compile(rf"^(?:\(\w[\w .-]* pid=\d+\) ?)?(?:{_LEVEL}(?: [\d-]+ [\d:.,]+ \[[^\]]*\] ?|: +))?")
_HEADER = re.compile(r"# \d{4}-")  # evalswap's own line
_NOISE = re.compile(
    rf"^{_HEADER.pattern}"
    r"|^Traceback \(most recent|^During handling of|^The above exception"
    r"|^\S+\.py:\d+: \w*Warning: |^  warnings\.warn"
    r"|\d+%( Completed)? ?\||[█▄▀]"  # progress bars and banners
)
_FRAME = re.compile(r'^\s+File ".*", line \d+')
_EXCEPTION = re.compile(r"^([\w.]+\.)?\w*(Error|Exception|Interrupt|Exit)(:|$)")


def meaningful_lines(log: str, limit: int) -> list[str]:
    """Return those lines of an engine's log, at most ``limit``, that tell how it came to its end.

    From the first error on these are the errors alone: a cause is logged long before its consequences, and
    an orderly shutdown after both. Without any error they are the last lines. Left out are colours, prefixes,
    progress bars, repetitions and the frames of tracebacks.
    """
    lines = _levels(log)
    first = _first_error(lines)
    if first is None:
        return list(lines)[-limit:]
    told = [line for line, level in list(lines.items())[first:] if level in ("", "ERROR", "CRITICAL")]
    half = limit // 2
    return told if len(told) <= limit else [*told[:half], "…", *told[half - limit + 1 :]]


def last_line(log: str) -> str:
    """Return what an engine wrote last, progress bars included, without colours and prefix; "" if it wrote nothing."""
    for raw in reversed(log.split("\n")):
        line = _shown(raw)
        line = line[_prefix(line).end() :].strip()
        if line and not _HEADER.match(line):
            return line
    return ""


def tells_error(log: str) -> bool:
    """Whether an engine's log names an error."""
    return _first_error(_levels(log)) is not None


def _levels(log: str) -> dict[str, str]:
    """Return each line that says something → its level ("" for none), in the order of their first appearance."""
    lines: dict[str, str] = {}
    in_frame = False
    for raw in log.split("\n"):
        shown = _shown(raw)
        prefix = _prefix(shown)
        line = shown[prefix.end() :]
        if _FRAME.match(line):
            in_frame = True
            continue
        if in_frame and line.startswith("    "):
            continue  # the source line, and the marks below it
        in_frame = False
        if line.strip() and not _NOISE.search(line):
            lines.setdefault(line, prefix[1] or ("ERROR" if _EXCEPTION.match(line) else ""))
    return lines


def _shown(raw: str) -> str:
    """Return what a terminal would show of a line in the end."""
    return _ANSI.sub("", raw.rstrip()).rpartition("\r")[2]


def _prefix(line: str) -> re.Match[str]:
    found = _PREFIX.match(line)
    assert found  # it matches the empty text, too
    return found


def _first_error(lines: Mapping[str, str]) -> int | None:
    return next((number for number, level in enumerate(lines.values()) if level in ("ERROR", "CRITICAL")), None)
