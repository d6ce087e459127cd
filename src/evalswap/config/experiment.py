"""An experiment: the models, datasets and summary of one config file or one command line."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from evalswap.config.loading import ConfigLoader
from evalswap.config.specs import DatasetSpec, ModelSpec, parse_dataset, parse_model
from evalswap.errors import ConfigError, did_you_mean
from evalswap.file_names import file_name

MOST_SHOWN = 20  # names of a library that may have thousands
# Names of other tools' configs that steer what evalswap does by itself: read, named once, not obeyed.
IGNORED_NAMES = ("infer", "eval", "runner", "lark_bot_url", "max_num_workers")


@dataclass(frozen=True)
class Experiment:
    """What a config file or a command line asks for."""

    source: str  # the file, or "the command line"
    models: tuple[ModelSpec, ...]
    datasets: tuple[DatasetSpec, ...]
    summarizer: Mapping[str, Any] = field(default_factory=dict)
    work_dir: str | None = None
    ignored: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Raise ConfigError where two pairs of a model and a dataset would be one job ('model/dataset')."""
        jobs: dict[str, str] = {}
        for model in self.models:
            for dataset in self.datasets:
                job = f"{model.abbr}/{dataset.abbr}"
                if job in jobs:
                    raise ConfigError(
                        f"{self.source}: two pairs of a model and a dataset have the same name, '{job}': "
                        f"the model's abbr in it is '{jobs[job]}' or '{model.abbr}'",
                        "change an abbr",
                    )
                jobs[job] = model.abbr


def from_config(path: Path, loader: ConfigLoader) -> Experiment:
    """Read a config file. Raises ConfigError with file, key and what to do."""
    names = loader.load(path)
    for wanted in ("models", "datasets"):
        if wanted not in names:
            raise ConfigError(f"{path}: the config defines no '{wanted}'", did_you_mean(wanted, names))
    work_dir = names.get("work_dir")
    return Experiment(
        source=str(path),
        models=_models(_numbered(names["models"], f"{path}: models")),
        datasets=_datasets(_numbered(names["datasets"], f"{path}: datasets")),
        summarizer=_summarizer(names, path),
        work_dir=str(work_dir) if work_dir else None,
        ignored=tuple(name for name in IGNORED_NAMES if name in names),
    )


def from_names(
    models: Sequence[str],
    datasets: Sequence[str],
    summarizer: str | None,
    hf_model: Mapping[str, Any] | None,
    loader: ConfigLoader,
) -> Experiment:
    """Build an experiment from ``--models``/``--datasets``/``--hf-path``; names may be globs."""
    entries = _in_library(models, "models", loader)
    if hf_model is not None:
        entries.append(("command line: model", hf_model))
    rows = _in_library(datasets, "datasets", loader)
    if not entries:
        raise ConfigError("no model given", "name a config file, --models NAME or --hf-path PATH")
    if not rows:
        raise ConfigError("no dataset given", "name a config file or --datasets NAME (for example gsm8k)")
    summary: Mapping[str, Any] = {}
    for file in _matching([summarizer] if summarizer else [], "summarizers", loader):
        summary = _summarizer(loader.load(file), file)
    return Experiment(source="the command line", models=_models(entries), datasets=_datasets(rows), summarizer=summary)


_Entry = tuple[str, object]  # where it is written, for errors; and the dict


def _models(entries: Sequence[_Entry]) -> tuple[ModelSpec, ...]:
    specs = tuple(parse_model(item, where) for where, item in entries)
    _refuse_twins("abbr", [spec.abbr for spec in specs], entries)
    _refuse_one_file([spec.abbr for spec in specs], entries)
    _refuse_twins("summarizer_abbr", [spec.summarizer_abbr or spec.abbr for spec in specs], entries)
    return specs


def _datasets(entries: Sequence[_Entry]) -> tuple[DatasetSpec, ...]:
    specs = tuple(parse_dataset(item, where) for where, item in entries)
    _refuse_twins("abbr", [spec.abbr for spec in specs], entries)
    _refuse_one_file([spec.abbr for spec in specs], entries)
    return specs


def _summarizer(names: Mapping[str, Any], path: Path) -> Mapping[str, Any]:
    summarizer = names.get("summarizer") or {}
    if not isinstance(summarizer, Mapping):
        raise ConfigError(f"{path}: summarizer: a dict is wanted, not {type(summarizer).__name__}")
    return dict(summarizer)


def _numbered(value: object, where: str) -> list[_Entry]:
    if not isinstance(value, (list, tuple)):
        raise ConfigError(f"{where}: a list is wanted, not {type(value).__name__}")
    if not value:
        raise ConfigError(f"{where}: the list is empty")
    return [(f"{where}[{i}]", item) for i, item in enumerate(value)]


def _refuse_twins(key: str, abbrs: Sequence[str], entries: Sequence[_Entry]) -> None:
    for (where, _), abbr in zip(entries, abbrs, strict=True):
        if abbrs.count(abbr) > 1:
            raise ConfigError(
                f"{where}: the {key} '{abbr}' is used more than once",
                "results are filed by abbr: give each entry its own",
            )


def _refuse_one_file(abbrs: Sequence[str], entries: Sequence[_Entry]) -> None:
    first: dict[str, str] = {}
    for (where, _), abbr in zip(entries, abbrs, strict=True):
        if (other := first.setdefault(file_name(abbr), abbr)) != abbr:
            raise ConfigError(
                f"{where}: the abbrs '{other}' and '{abbr}' are the same as names of files ({file_name(abbr)})",
                "results are filed by abbr: change one",
            )


def _in_library(patterns: Sequence[str], folder: str, loader: ConfigLoader) -> list[_Entry]:
    """Return the entries of the library files that match, each once however many files repeat it."""
    entries: list[_Entry] = []
    for file in _matching(patterns, folder, loader):
        found = _list_in(loader.load(file), folder, file)
        entries += [entry for entry in found if entry[1] not in [item for _, item in entries]]
    return entries


def _matching(patterns: Sequence[str], folder: str, loader: ConfigLoader) -> list[Path]:
    own = loader.library_names(folder)
    files: dict[str, Path] = {}
    for pattern in patterns:
        if pattern.endswith(".py") and Path(pattern).is_file():
            files[Path(pattern).stem] = Path(pattern)
            continue
        names = own
        if not (hits := _hits(pattern, own)):  # last: a pattern that finds something here would find hundreds there
            names = loader.library_names(folder, installed=True)
            hits = _hits(pattern, names)
        if not hits:
            shown = ", ".join(sorted(names)[:MOST_SHOWN]) + (", …" if len(names) > MOST_SHOWN else "")
            near = did_you_mean(pattern, names) or f"known: {shown}"
            raise ConfigError(f"--{folder} {pattern}: no config of that name", near)
        files.update({name: names[name] for name in hits})
    return list(files.values())


def _hits(pattern: str, names: Mapping[str, Path]) -> list[str]:
    return fnmatch.filter(names, pattern) or ([f"{pattern}_gen"] if f"{pattern}_gen" in names else [])


def _list_in(names: Mapping[str, Any], folder: str, file: Path) -> list[_Entry]:
    """Return what a library file lists: its ``models``/``datasets``, or else every ``…_models``/``…_datasets``."""
    keys = [folder] if folder in names else [key for key in names if key.endswith(f"_{folder}")]
    if not keys:
        raise ConfigError(f"{file}: defines no list named '{folder}' or '…_{folder}'", did_you_mean(folder, names))
    return [entry for key in keys for entry in _numbered(names[key], f"{file}: {key}")]
