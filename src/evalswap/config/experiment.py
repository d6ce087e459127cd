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


def from_config(path: Path, loader: ConfigLoader) -> Experiment:
    """Read a config file. Raises ConfigError with file, key and what to do."""
    names = loader.load(path)
    for wanted in ("models", "datasets"):
        if wanted not in names:
            raise ConfigError(f"{path}: the config defines no '{wanted}'", did_you_mean(wanted, names))
    summarizer = names.get("summarizer") or {}
    if not isinstance(summarizer, Mapping):
        raise ConfigError(f"{path}: summarizer: a dict is wanted, not {type(summarizer).__name__}")
    work_dir = names.get("work_dir")
    return Experiment(
        source=str(path),
        models=_models(names["models"], f"{path}: models"),
        datasets=_datasets(names["datasets"], f"{path}: datasets"),
        summarizer=dict(summarizer),
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
    entries: list[Any] = []
    for file in _matching(models, "models", loader):
        entries += _list_in(loader.load(file), "models", file)
    if hf_model is not None:
        entries.append(hf_model)
    rows: list[Any] = []
    for file in _matching(datasets, "datasets", loader):
        rows += _list_in(loader.load(file), "datasets", file)
    if not entries:
        raise ConfigError("no model given", "name a config file, --models NAME or --hf-path PATH")
    if not rows:
        raise ConfigError("no dataset given", "name a config file or --datasets NAME (for example gsm8k)")
    summary: Mapping[str, Any] = {}
    if summarizer:
        for file in _matching([summarizer], "summarizers", loader):
            summary = dict(loader.load(file).get("summarizer") or {})
    return Experiment(
        source="the command line",
        models=_models(entries, "models"),
        datasets=_datasets(rows, "datasets"),
        summarizer=summary,
    )


def _models(value: object, where: str) -> tuple[ModelSpec, ...]:
    specs = tuple(parse_model(item, f"{where}[{i}]") for i, item in enumerate(_non_empty(value, where)))
    _refuse_twins([spec.abbr for spec in specs], where)
    return specs


def _datasets(value: object, where: str) -> tuple[DatasetSpec, ...]:
    specs = tuple(parse_dataset(item, f"{where}[{i}]") for i, item in enumerate(_non_empty(value, where)))
    _refuse_twins([spec.abbr for spec in specs], where)
    return specs


def _non_empty(value: object, where: str) -> Sequence[object]:
    if not isinstance(value, (list, tuple)):
        raise ConfigError(f"{where}: a list is wanted, not {type(value).__name__}")
    if not value:
        raise ConfigError(f"{where}: the list is empty")
    return value


def _refuse_twins(abbrs: Sequence[str], where: str) -> None:
    twins = {abbr for abbr in abbrs if abbrs.count(abbr) > 1}
    if twins:
        raise ConfigError(
            f"{where}: the abbr '{min(twins)}' is used more than once",
            "results are filed by abbr: give each entry its own",
        )


def _matching(patterns: Sequence[str], folder: str, loader: ConfigLoader) -> list[Path]:
    names = loader.library_names(folder)
    files: dict[str, Path] = {}
    for pattern in patterns:
        if pattern.endswith(".py") and Path(pattern).is_file():
            files[Path(pattern).stem] = Path(pattern)
            continue
        hits = fnmatch.filter(names, pattern) or ([f"{pattern}_gen"] if f"{pattern}_gen" in names else [])
        if not hits:
            near = did_you_mean(pattern, names) or f"known: {', '.join(sorted(names))}"
            raise ConfigError(f"--{folder} {pattern}: no config of that name", near)
        files.update({name: names[name] for name in hits})
    return list(files.values())


def _list_in(names: Mapping[str, Any], suffix: str, file: Path) -> list[Any]:
    """Return the list that a library file defines: ``models``, ``datasets`` or ``…_datasets``."""
    found = [v for k, v in names.items() if (k == suffix or k.endswith(f"_{suffix}")) and isinstance(v, list)]
    if not found:
        raise ConfigError(f"{file}: defines no list named '{suffix}' or '…_{suffix}'")
    return [item for group in found for item in group]
