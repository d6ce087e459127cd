"""A run's folder: the layout that people and existing scripts know, plus run.json.

``<work>/<timestamp>/`` holds configs/, logs/, predictions/<model>/<dataset>.json,
results/<model>/<dataset>.json, summary/summary_<time>.{txt,csv,md} and run.json. ``answer_files.py`` writes
predictions and results, ``summary.py`` the summary, ``manifest.py`` what is in run.json.
"""

from __future__ import annotations

import errno
import json
import os
import pprint
import re
import tempfile
from collections.abc import Iterable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from evalswap.config.experiment import Experiment
from evalswap.errors import ConfigError, StoreError, did_you_mean
from evalswap.redaction import Redactor, redact_values

TIME_FORMAT = "%Y%m%d_%H%M%S"
_RUN_NAME = re.compile(r"\d{8}_\d{6}(_\d+)?")  # as RunFolder.create() names them
_OTHER_FOLDER = "choose another work folder with -w"


class RunFolder:
    """Where one run's files go."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = path.name
        self.logs = path / "logs"
        self.predictions = path / "predictions"
        self.results = path / "results"
        self.summary = path / "summary"
        self.manifest = path / "run.json"

    @classmethod
    def create(cls, work_dir: Path) -> RunFolder:
        """Make a new folder named by the time. Raises StoreError if that is impossible."""
        stamp = datetime.now().strftime(TIME_FORMAT)
        for suffix in ["", *(f"_{i}" for i in range(2, 100))]:
            path = work_dir / f"{stamp}{suffix}"
            try:
                path.mkdir(parents=True, exist_ok=False)
            except FileExistsError:
                if not work_dir.is_dir():
                    raise StoreError(f"{work_dir} is not a folder", _OTHER_FOLDER) from None
                continue
            except NotADirectoryError as error:
                raise StoreError(f"{path}: a part of this path is a file, no folder", _OTHER_FOLDER) from error
            except OSError as error:
                hint = f"free disk space or make the folder writable, or {_OTHER_FOLDER}"
                raise StoreError(f"{path}: {error.strerror}", hint) from error
            return cls(path)
        raise StoreError(f"{work_dir}: too many runs in this second")

    @classmethod
    def existing(cls, work_dir: Path, name: str) -> RunFolder:
        """Find the folder that ``--reuse`` means. Raises ConfigError if there is none."""
        folders = sorted(p.name for p in work_dir.iterdir() if p.is_dir()) if work_dir.is_dir() else []
        runs = [folder for folder in folders if _RUN_NAME.fullmatch(folder)]  # compare keeps folders beside them
        none = "run once without it, or name the work folder of the earlier run with -w"
        if name == "latest":
            if not runs:
                raise ConfigError(f"--reuse: no earlier run in {work_dir}", none)
            return cls(work_dir / runs[-1])
        if name not in folders:  # a run that somebody gave another name may be named
            hint = did_you_mean(name, folders) or (f"runs: {', '.join(runs[-5:])}" if runs else none)
            raise ConfigError(f"--reuse {name}: no such run in {work_dir}", hint)
        return cls(work_dir / name)

    def write_config(self, experiment: Experiment, redact: Redactor) -> None:
        """Write what was asked for, as a config again, without keys."""
        asked = {
            "models": [model.model_dump(exclude_defaults=True) for model in experiment.models],
            "datasets": [dataset.model_dump(exclude_defaults=True) for dataset in experiment.datasets],
            "summarizer": dict(experiment.summarizer),
        }
        parts = [
            redact(f"# what this run was asked for, read from {experiment.source}"),
            *(f"{name} = {_pretty(value)}" for name, value in redact_values(asked, redact).items()),
        ]
        name = f"{datetime.now().strftime(TIME_FORMAT)}_{os.getpid()}.py"
        write_text(self.path / "configs" / name, "\n\n".join(parts) + "\n")

    def write_manifest(self, manifest: Mapping[str, Any], redact: Redactor) -> None:
        text = json.dumps(redact_values(manifest, redact), ensure_ascii=False, indent=2)
        write_text(self.manifest, text + "\n")

    def read_manifest(self) -> dict[str, Any]:
        """Return run.json, or an empty dict if there is none (a run that was killed before)."""
        try:
            data = json.loads(self.manifest.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            hint = f"give the run's command again with -r {self.name}, without this file: answers are stored beside it"
            raise StoreError(f"{self.manifest}: not readable: {error}", hint) from error
        return data if isinstance(data, dict) else {}


def write_text(path: Path, text: str | Iterable[str]) -> Path:
    """Write a whole file or none, in UTF-8. Raises StoreError."""
    parts = [text] if isinstance(text, str) else text
    return write_bytes(path, (part.encode("utf-8", errors="surrogatepass") for part in parts))


def write_bytes(path: Path, parts: Iterable[bytes]) -> Path:
    """Write a whole file or none: into a temporary one, then renamed. Raises StoreError.

    Where a link stands, what it leads to is written; what is there and no file, a device for one, is not replaced.
    """
    temporary = ""
    try:
        path = path.resolve() if path.is_symlink() else path
        if path.exists() and not path.is_file():
            raise OSError(errno.EINVAL, "there is something that is no file")
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("wb", dir=path.parent, delete=False, suffix=".part") as stream:
            temporary = stream.name
            stream.writelines(parts)
        os.chmod(temporary, 0o644)  # noqa: PTH101  # NamedTemporaryFile makes it private
        Path(temporary).replace(path)
    except OSError as error:
        if temporary:
            Path(temporary).unlink(missing_ok=True)
        raise not_written(path, error) from error
    return path


def not_written(path: Path, error: OSError) -> StoreError:
    """Return what to tell a person about a file that could not be written."""
    return StoreError(
        f"{path}: {error.strerror or error}",
        "free disk space, or choose another folder (-w, or --out); stored answers are kept",
    )


def _pretty(value: Any) -> str:
    return pprint.pformat(value, width=100, sort_dicts=False)
