"""What the commands' arguments are made of: a parser that suggests what was meant, and kinds of values."""

from __future__ import annotations

import argparse
import ast
import sys
from typing import Any, NoReturn

from evalswap.errors import EXIT_USAGE, did_you_mean


class Parser(argparse.ArgumentParser):
    """argparse that suggests the option that was meant."""

    def known_options(self) -> list[str]:
        """Return this parser's options and those of the commands below it."""
        known = list(self._option_string_actions)
        for action in self._actions:
            if isinstance(action, argparse._SubParsersAction):
                known += [option for parser in action.choices.values() for option in parser.known_options()]
        return known

    def error(self, message: str) -> NoReturn:
        hint = None
        if message.startswith("unrecognized arguments:"):
            word = message.split(":", 1)[1].split()[0].partition("=")[0]
            hint = did_you_mean(word, self.known_options())
        self.print_usage(sys.stderr)
        print(f"error: {message}" + (f"\n  → {hint}" if hint else ""), file=sys.stderr)
        raise SystemExit(EXIT_USAGE)


class KeyValues(argparse.Action):
    """``--generation-kwargs temperature=0.6 do_sample=true``: Python literals, ``true`` and ``false``, or text."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        pairs = dict(getattr(namespace, self.dest) or {})
        for item in values:
            key, equals, value = item.partition("=")
            if not equals or not key:
                parser.error(f"argument {option_string}: '{item}' is not KEY=VALUE")
            pairs[key] = _literal(value)
        setattr(namespace, self.dest, pairs)


def _literal(text: str) -> Any:
    if text in ("true", "false"):
        return text == "true"
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):  # what its documentation names
        return text


def positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("a number of at least 1 is wanted")
    return number
