"""The report page: one HTML file that shows a comparison, opens offline and asks the network for nothing.

The tables and charts are plain HTML and SVG, made here; the browser of differing outputs is a script of our own that
reads them from compressed data in the same file. Whatever a model wrote is only ever text: Jinja escapes it, the script
inserts it as text, and a content security policy allows the page's own scripts (by hash) and nothing else.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterable
from importlib import resources
from pathlib import Path
from typing import Any

from evalswap.comparing.records import DIFFERENCE_CLASSES, Comparison, Contender, DatasetComparison
from evalswap.reporting.folder import write_text
from evalswap.reporting.page import wording
from evalswap.reporting.page.figures import figures
from evalswap.reporting.page.payload import pack

SCRIPTS = ("frame.js", "texts.js", "differences.js")
CHARTED_DATASETS = 6  # charts take a fifth of a second each; the tables have every number
LONGEST_RECORD = 100_000  # characters of one manifest


def render(comparison: Comparison) -> str:
    """Return the whole page. It holds no lone surrogate, so it can be written as UTF-8."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("evalswap.reporting", "page"),
        autoescape=True,
        finalize=lambda value: wording.visible(value) if type(value) is str else value,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.globals.update({name: getattr(wording, name) for name in wording.__all__})
    environment.filters["json"] = json.dumps
    scripts = {name: _asset(name) for name in SCRIPTS}
    names = _names(comparison)
    charted = comparison.datasets[:CHARTED_DATASETS]
    return environment.get_template("report.html.jinja").render(
        comparison=comparison,
        names=names,
        models=list(dict.fromkeys(dataset.model for dataset in comparison.datasets if dataset.model)),
        uniform=all([o.contender.name for o in dataset.others] == names for dataset in comparison.datasets),
        classes=DIFFERENCE_CLASSES,
        charts=[figures(comparison, dataset) for dataset in charted],
        contenders=_contenders(comparison),
        record=_record,
        packed=pack(comparison),
        style=_asset("report.css"),
        scripts=scripts,
        policy=_policy(scripts.values()),
    )


def write(comparison: Comparison, path: Path) -> Path:
    """Write the page, whole or not at all; returns its path. Raises StoreError."""
    return write_text(path, render(comparison))


def _asset(name: str) -> Any:
    from markupsafe import Markup

    return Markup((resources.files(__package__) / name).read_text(encoding="utf-8"))  # our own files


def _policy(scripts: Iterable[str]) -> str:
    """Return the content security policy: these scripts and inline styles, no request of any kind."""
    digests = (hashlib.sha256(script.encode()).digest() for script in scripts)
    allowed = " ".join(f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests)
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )


def _names(comparison: Comparison) -> list[str]:
    """Return the names of all that was held against a reference, in the order of their appearance."""
    return list(dict.fromkeys(other.contender.name for dataset in comparison.datasets for other in dataset.others))


def _contenders(comparison: Comparison) -> list[Contender]:
    """Return each contender once: its manifest and translation are the same on every dataset."""
    found: dict[str, Contender] = {}
    for dataset in comparison.datasets:
        for contender in _of(dataset):
            found.setdefault(contender.name, contender)
    return list(found.values())


def _of(dataset: DatasetComparison) -> list[Contender]:
    floor = [dataset.noise_floor.contender] if dataset.noise_floor else []
    return [dataset.reference, *(other.contender for other in dataset.others), *floor]


def _record(contender: Contender) -> str:
    text = json.dumps(contender.manifest, ensure_ascii=False, indent=2, default=str)
    left_out = len(text) - LONGEST_RECORD
    return f"{text[:LONGEST_RECORD]}\n… {left_out:,} characters more in run.json" if left_out > 0 else text
