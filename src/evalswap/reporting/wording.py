"""How people are told: numbers, intervals, shares, where outputs part; and characters that are not seen."""

from __future__ import annotations

import re

from evalswap.comparing.contract import broken
from evalswap.comparing.records import Against, Contender, FirstDifference, Interval, WiringProof
from evalswap.reporting.progress import clock

LONGEST_TOKEN = 24  # characters

# Controls but newline and tab, marks that reorder text or take no room, line separators, what is no character at all.
# (The zero-width joiners stay: emoji and several scripts are written with them.)
_UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u2069\ufeff"
    "\ufff9-\ufffb\ufffe\uffff\ud800-\udfff]"
)


def visible(text: str) -> str:
    """Return a text that shows its control characters, bidi marks and lone surrogates as code points."""
    return _UNSEEN.sub(lambda found: f"⟨U+{ord(found[0]):04X}⟩", text)


def number(value: float | None, digits: int = 2) -> str:
    """Return a number, or a dash where there is none."""
    return "–" if value is None else f"{value:,.{digits}f}".replace("-", "−")


def signed(value: float | None) -> str:
    """Return points with their sign; none on a zero."""
    if value is None:
        return "–"
    text = f"{abs(value):,.2f}"
    if float(text.replace(",", "")) == 0:
        return text
    return ("+" if value > 0 else "−") + text


def span(interval: Interval | None, sign: bool = False) -> str:
    """Return an interval as 'low to high'."""
    if interval is None:
        return ""
    show = signed if sign else number
    return f"{show(interval.low)} to {show(interval.high)}"


def count(value: float | None) -> str:
    return "–" if value is None else f"{value:,.0f}"


def share(part: int, whole: int) -> str:
    """Return a part in percent; 100 only where nothing is missing."""
    if not whole:
        return "–"
    percent = 100 * part / whole
    return f"{min(percent, 99.99) if part < whole else percent:.{2 if 99.9 < percent < 100 else 1}f}%"


def duration(seconds: float | None) -> str:
    return "–" if seconds is None else clock(seconds)


def p_value(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def setting(contender: Contender) -> str:
    """Return engine, dtype and device in one line."""
    return ", ".join(filter(None, (contender.engine, contender.dtype, contender.device)))


def another_setup(against: Against) -> bool:
    """Whether an item of the contract is broken that moves answers by more than rounding."""
    return any(item.systematic for item in broken(against.contract))


def place_words(first: FirstDifference) -> str:
    """Return where two outputs part: "token 12: ' 48' against ' 50', log-probability gap 0.031"."""
    tokens = " against ".join(
        "the end" if token is None else repr(token[:LONGEST_TOKEN])
        for token in (first.reference_token, first.other_token)
    )
    gap = "" if first.gap is None else f", log-probability gap {number(first.gap, 3)}"
    return f"{first.unit} {first.position:,}: {tokens}{gap}"


def proof_words(proof: WiringProof) -> str:
    """Return what the float32 sample showed, in a sentence without its end."""
    if proof.skipped:
        return f"skipped: {proof.skipped}"
    if not proof.rows:
        return "skipped: no row was answered by both"
    line = f"{proof.identical:,} of {proof.rows:,} outputs are identical in float32"
    if proof.identical == proof.rows:
        return f"{line}: prompts, stops and sampling are wired the same, what differs otherwise is arithmetic"
    if proof.first is None:
        return line
    return f"{line}; the first that is not is a bug to look at: row {proof.first.row}, {place_words(proof.first.first)}"
