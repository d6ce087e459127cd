"""Where a benchmark's rows are found on disk, and how a JSON Lines file is read."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from evalswap.errors import DataError

BUNDLED = Path(__file__).parent / "data"


def data_folders(path: str | None, name: str) -> list[Path]:
    """Return the folders to look for benchmark ``name`` in, in order of preference."""
    folders = [Path(path).expanduser()] if path else []
    if os.environ.get("EVALSWAP_DATA"):
        folders.append(Path(os.environ["EVALSWAP_DATA"]) / name)
    folders.append(Path("data") / name)
    if os.environ.get("COMPASS_DATA_CACHE"):
        folders.append(Path(os.environ["COMPASS_DATA_CACHE"]) / "data" / name)
    return folders


def first_existing(folders: Sequence[Path], file_name: str) -> Path | None:
    """Return the first ``folder/file_name`` that exists; a folder may also be the file itself."""
    for folder in folders:
        if folder.is_file():
            return folder
        if (folder / file_name).is_file():
            return folder / file_name
    return None


def read_jsonl(file: Path, wanted_keys: Sequence[str]) -> tuple[list[dict[str, Any]], str]:
    """Return a JSON Lines file's objects and the SHA-256 of its bytes.

    Raises DataError naming file and line for a broken line, a missing key or a file without rows.
    """
    try:
        data = file.read_bytes()
        text = data.decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: cannot be read: {error}") from error
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise DataError(
                f"{file}:{number}: not a whole JSON object: {error}",
                "the file may have been cut off while it was downloaded: get it again",
            ) from error
        if not isinstance(row, dict):
            raise DataError(f"{file}:{number}: a JSON object is wanted, not {type(row).__name__}")
        for key in wanted_keys:
            if key not in row:
                raise DataError(f"{file}:{number}: the key '{key}' is missing")
        rows.append(row)
    if not rows:
        raise DataError(f"{file}: no rows in it")
    return rows, hashlib.sha256(data).hexdigest()
