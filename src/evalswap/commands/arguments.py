"""What the commands' arguments are made of: a parser that says what to write instead, and kinds of values."""

from __future__ import annotations

import argparse
import ast
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NoReturn

from evalswap.errors import EXIT_USAGE, did_you_mean

_NO_JOBS = "evalswap hands no jobs to a cluster: give srun, sbatch or your scheduler this whole command"
_NO_WORKERS = (
    "not needed: requests are in flight together, as many as the engine takes; for several GPUs set run_cfg.num_gpus "
    "(--hf-num-gpus), or copies of the model, as with --engine-args data_parallel_size=N on vllm"
)
_OWN_DATA = (
    "not there: rows in GSM8K's form are a dataset of a config file, with their path; for others see 'A benchmark of "
    "your own' in docs/configs.md"
)
# What people bring from OpenCompass's command line, and what does the same here.
OPENCOMPASS_OPTIONS: Mapping[str, str] = {
    "--max-num-workers": _NO_WORKERS,
    "--max-workers-per-gpu": _NO_WORKERS,
    "--num-gpus": "write --hf-num-gpus N",
    "--slurm": _NO_JOBS,
    "--dlc": _NO_JOBS,
    "-p": _NO_JOBS,
    "--partition": _NO_JOBS,
    "-q": _NO_JOBS,
    "--quotatype": _NO_JOBS,
    "--qos": _NO_JOBS,
    "--retry": "not needed: requests that fail are sent again; retry= of an API model says how often",
    "--dump-eval-details": "not needed: results/MODEL/DATASET.json always has every row",
    "--config-verbose": "--dry-run prints the whole plan, evalswap check the first prompt as well",
    "--custom-dataset-path": _OWN_DATA,
    "--custom-dataset-meta-path": _OWN_DATA,
    "--custom-dataset-data-type": _OWN_DATA,
    "--custom-dataset-infer-method": _OWN_DATA,
}


class Parser(argparse.ArgumentParser):
    """argparse that says what to write instead of an option that the chosen command does not have."""

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        parsed, unknown = self.parse_known_args(args, namespace)
        if unknown:
            owners: dict[str, list[str]] = {}
            for option, command in self._options():
                owners.setdefault(option, []).append(command)
            self._chosen(parsed)._refuse(unknown, owners)
        return parsed

    def error(self, message: str) -> NoReturn:
        self._stop(message, [])

    def _chosen(self, parsed: argparse.Namespace) -> Parser:
        """Return the parser of the command that the words name; this one if they name none."""
        for action in self._commands():
            chosen = action.choices.get(getattr(parsed, action.dest, None) or "")
            if isinstance(chosen, Parser):
                return chosen._chosen(parsed)
        return self

    def _options(self) -> Iterator[tuple[str, str]]:
        """Yield each option of this parser and those below it, with the command that has it ("evalswap run")."""
        yield from ((option, self.prog) for option in self._option_string_actions)
        for action in self._commands():
            for parser in action.choices.values():
                yield from parser._options()

    def _commands(self) -> list[argparse._SubParsersAction[Any]]:
        return [action for action in self._actions if isinstance(action, argparse._SubParsersAction)]

    def _refuse(self, unknown: Sequence[str], owners: Mapping[str, Sequence[str]]) -> NoReturn:
        words = [word.partition("=")[0] for word in unknown if word.startswith("-")]
        hints = [self._instead_of(word, owners.get(word, ())) for word in words]
        self._stop(f"unrecognized arguments: {' '.join(unknown)}", [hint for hint in hints if hint])

    def _instead_of(self, word: str, owners: Sequence[str]) -> str | None:
        if word in self._option_string_actions:
            return f"{word} comes after the command: {self.prog} … {word}"
        if owners:
            return f"{word} belongs to: {', '.join(owners)}"
        if word in OPENCOMPASS_OPTIONS:
            return f"{word}: {OPENCOMPASS_OPTIONS[word]}"
        return did_you_mean(word, self._option_string_actions)

    def _stop(self, message: str, hints: Sequence[str]) -> NoReturn:
        lines = [f"error: {message}", *(dict.fromkeys(hints) or [f"{self.prog} --help shows what there is"])]
        print("\n  → ".join(lines), file=sys.stderr)
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
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):  # what its documentation names
        return text
    return text if isinstance(value, tuple) and not text.lstrip().startswith("(") else value  # "3,1" is a flag's own


def whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"a whole number is wanted, not '{text}'") from None


def positive(text: str) -> int:
    number = whole(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"a number of at least 1 is wanted, not {text}")
    return number


def port(text: str) -> int:
    number = whole(text)
    if not 0 < number < 65536:
        raise argparse.ArgumentTypeError(f"a number from 1 to 65535 is wanted, not {text}")
    return number


def points(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < 100:
        raise argparse.ArgumentTypeError(f"points between 0 and 100 are wanted, not '{text}'")
    return number
