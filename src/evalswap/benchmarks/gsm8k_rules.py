r"""How a GSM8K answer is read out of a text and judged, in two ways.

*Published* is the rule that published OpenCompass numbers were made with, quirks included (``1,234`` reads
as 234, ``10-7`` as -7, ``3/4`` as 4), so that a score can be compared with a published one. *Corrected* is
what a careful human would read.

Source: OpenCompass, ``opencompass/datasets/gsm8k.py``, for the gold and the published rule; the corrected rule
is our own. Everything here is pure and takes time linear in the text.
"""

from __future__ import annotations

import re
from collections import deque
from fractions import Fraction

_GOLD_MARK = "#### "
_NEXT_QUESTION = "Question:"  # a base model that goes on to invent the next question

# ---- gold and published rule


def gold_answer(answer: str) -> str:
    """Return the right answer of a row: the text after the first ``#### ``, without commas.

    Raises ValueError if the mark is missing.
    """
    _, mark, gold = answer.partition(_GOLD_MARK)
    if not mark:
        raise ValueError(f"no '{_GOLD_MARK}' before the final number in this answer: {answer[-80:]!r}")
    return gold.replace(",", "")


_PUBLISHED_NUMBER = re.compile(r"\-?\d+\.\d+|\-?\d+")


def published_prediction(text: str) -> str:
    """Return the last number before any ``Question:`` as the published rule reads it, or 'NULL'."""
    found = _PUBLISHED_NUMBER.findall(text.partition(_NEXT_QUESTION)[0])
    return str(found[-1]) if found else "NULL"


def published_correct(prediction: str, gold: str) -> bool:
    """Return whether a published prediction counts as right: the same text, or within 1e-6 of the gold."""
    if prediction == gold:
        return True
    try:
        return abs(float(prediction) - int(gold)) < 1e-6
    except (ValueError, OverflowError):
        return False


# ---- corrected rule

# Thousands commas count only if every comma of the run fits: 1,234 but not 1,23 or 1,2,345.
_PLAIN = r"(?:(?<!\d,)(?!0)\d{1,3}(?:,\d{3})+(?!\d)(?!,\d)|\d+)(?:\.\d+)?|(?<![\w.)\]}])\.\d+"
# A minus sign is an operator after a digit, a word or a closing bracket, and a dash after another dash.
_MINUS = r"(?<![\w%)\]}\-−–—])[-−]"
# (The look-ahead is only for speed.)
_NUMBER = re.compile(
    rf"(?=[-−.\d]|\\?[$€£¥₹][-−. \d])(?P<outer>{_MINUS})?(?:\\?[$€£¥₹] ?)?(?P<inner>{_MINUS})?"
    rf"(?P<top>{_PLAIN})(?:/(?P<bottom>{_PLAIN}))?"
)
_DECIMAL = r"\d+(?:\.\d+)?|\.\d+"
_VALUE = re.compile(rf"(?P<top>-?(?:{_DECIMAL}))(?:/(?P<bottom>{_DECIMAL}))?")
# Longer numbers are no answer to anything; int() has a limit of its own that a user may lower to 640.
_MAX_VALUE_CHARS = 600

_DIGIT = re.compile(r"\d")
_THIN_SPACE = re.compile(r"(?<=\d)(?:\\,|[\u2009\u202f])(?=\d{3}(?!\d))")
_ARGUMENT = r"\{\s*(-?[\d.,]+)\s*\}"
_FRACTION = re.compile(rf"\\[dtc]?frac\s*(?:{_ARGUMENT}\s*{_ARGUMENT}|(\d)\s*(\d))")
_UNIT_EXPONENT = re.compile(r"(?<=[A-Za-z}])\^(?:\d+|\{\d+\})")
_BOX_OR_BRACE = re.compile(r"boxed\s*\{|\\[{}]|[{}]")
_WORDS = re.compile(r"\\(?:text\w*|math\w*|mbox)\s*\{[^{}]*\}")
_HASHES = re.compile(r"####[ \t*]*")
_HEADING = re.compile(r"[.):][ \t*]*\w")  # after a number: "#### 2. Find the total"


def corrected_prediction(text: str) -> str | None:
    r"""Return the final answer that a careful human reads in the text before any ``Question:``.

    It is the last number of the last ``\boxed{}`` that holds one, else the last ``#### x``, else the last
    number. The number comes back plain, as in ``-1234.50`` or ``3/4``; None if there is none.
    """
    text = _clean(text.partition(_NEXT_QUESTION)[0])
    for content in reversed(_boxes(text)):
        content = content.replace(" / ", "/")  # a fraction here; in running text a division, like 28 / 4
        found = _last_number(_WORDS.sub(" ", content)) or _last_number(content)
        if found is not None:
            return found
    return _last_marked_number(text) or _last_number(text)


def corrected_correct(text: str, gold: str) -> bool:
    """Return whether the corrected reading of the text has exactly the value of the gold."""
    prediction = corrected_prediction(text)
    value = _value(prediction) if prediction is not None else None
    return value is not None and value == _value(gold.strip().replace(",", ""))


def _clean(text: str) -> str:
    """Return the text with LaTeX ways of writing a number replaced by plain ones."""
    text = text.replace("{,}", ",").replace("\\!", "")
    text = _THIN_SPACE.sub(",", text)
    text = _FRACTION.sub(_plain_fraction, text)
    return _UNIT_EXPONENT.sub("", text)


def _plain_fraction(match: re.Match[str]) -> str:
    top, bottom = match[1] or match[3], match[2] or match[4]
    glued = match.string[match.start() - 1 : match.start()].isdigit()  # 1\frac{1}{2} must not become 11/2
    return f"{' ' if glued else ''}{top}/{bottom}"


def _boxes(text: str) -> list[str]:
    r"""Return what is inside each outermost closed ``\boxed{}``, in order (also without the backslash)."""
    spans: list[tuple[int, int]] = []
    opened: list[int | None] = []  # for each open brace, where its box starts, or None if it is no box
    first = text.find("boxed")
    for token in _BOX_OR_BRACE.finditer(text, first) if first >= 0 else ():
        if token[0] == "{":
            opened.append(None)
        elif token[0].startswith("boxed"):
            opened.append(token.end())
        elif token[0] == "}" and opened:
            start = opened.pop()
            if start is not None:
                while spans and spans[-1][0] > start:
                    spans.pop()
                spans.append((start, token.start()))
    return [text[start:end] for start, end in spans]


def _last_marked_number(text: str) -> str | None:
    """Return the last number right after ``####``, but not that of a numbered Markdown heading."""
    found = None
    for mark in _HASHES.finditer(text):
        number = _NUMBER.match(text, mark.end())
        if number and not _HEADING.match(text, number.end()):
            found = number
    return _plain(found) if found else None


def _last_number(text: str) -> str | None:
    if not _DIGIT.search(text):  # only for speed
        return None
    last = deque(_NUMBER.finditer(text), maxlen=1)
    return _plain(last[0]) if last else None


def _plain(number: re.Match[str]) -> str:
    sign = "-" if number["outer"] or number["inner"] else ""
    bottom = f"/{number['bottom']}" if number["bottom"] else ""
    return f"{sign}{number['top']}{bottom}".replace(",", "")


def _value(plain: str) -> Fraction | None:
    """Return the exact value of a plain number, or None if it is none, is too long or divides by zero."""
    match = _VALUE.fullmatch(plain) if len(plain) <= _MAX_VALUE_CHARS else None
    if match is None:
        return None
    bottom = Fraction(match["bottom"] or 1)
    return Fraction(match["top"]) / bottom if bottom else None
