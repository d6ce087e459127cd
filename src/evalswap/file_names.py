"""The name of a model or dataset as a file's name."""

from __future__ import annotations

import hashlib

LONGEST = 200  # bytes; file systems take 255, endings included


def file_name(abbr: str) -> str:
    """Return an abbr as a file name: path separators would make folders, or leave the run's.

    One that is too long is cut, and gets a hash of the whole.
    """
    name = abbr.replace("/", "_").replace("\\", "_").lstrip(".") or "_"
    encoded = name.encode("utf-8", "surrogatepass")
    if len(encoded) <= LONGEST:
        return name
    digest = hashlib.sha256(abbr.encode("utf-8", "surrogatepass")).hexdigest()[:12]
    return f"{encoded[: LONGEST - len(digest) - 1].decode('utf-8', 'ignore')}-{digest}"
