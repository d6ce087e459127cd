"""Installing an engine: one run of its recipe, into an environment of its own."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, TextIO

from evalswap.errors import EngineError
from evalswap.serving.recipes import Device, Recipe

Echo = Callable[[str], None]  # takes one line

MARKER = "evalswap-engine.json"  # written last: an environment without it is incomplete
_SHOWN_LINES = 8  # of a step that failed
_PIP_SECONDS = 4 * 3600.0  # a backstop only: the line may be slow
_CHECK_SECONDS = 180.0  # the first import of an engine reads gigabytes from a disk that may be slow


def python_of(folder: Path) -> Path:
    """Return the Python of an environment."""
    return folder / "bin" / "python"


def site_packages(folder: Path) -> list[str]:
    """Return where an environment has its packages."""
    return [str(path) for path in folder.glob("lib/python*/site-packages")]


def is_complete(folder: Path) -> bool:
    """Tell whether an environment was installed to its end and still works."""
    # The venv's python is a link, which dangles once the Python that it was made of is gone.
    return (folder / MARKER).is_file() and python_of(folder).exists()


def installed_for(folder: Path) -> Device | None:
    """Return the device that a complete environment was installed for, or None where it does not say."""
    device = _marker(folder).get("device")
    return device if device in ("cpu", "cuda") else None


def follows(folder: Path, recipe: Recipe) -> bool:
    """Tell whether a complete environment was installed by this recipe, not by that of another evalswap."""
    steps = _marker(folder).get("recipe")
    return steps == [list(step) for step in recipe.steps]


def _marker(folder: Path) -> dict[str, Any]:
    try:
        marker = json.loads((folder / MARKER).read_text())
    except ValueError:
        return {}
    return marker if isinstance(marker, dict) else {}


def remove(folder: Path) -> None:
    """Remove an environment, if there is one."""
    if folder.exists():
        (folder / MARKER).unlink(missing_ok=True)  # first: the removal can be interrupted, too
        shutil.rmtree(folder)


@dataclass(frozen=True, slots=True)
class Installation:
    """One run of a recipe: its steps in order, each with a line for people and all its output in the log.

    The environment is made in its final place, for the scripts in a venv hold its path. A marker, which is
    written last, says that it is complete.
    """

    engine: str
    recipe: Recipe
    device: Device
    folder: Path
    echo: Echo

    @property
    def log_path(self) -> Path:
        return self.folder.with_name(f"{self.engine}.log")

    def make(self, base: Path, pip_args: Sequence[str]) -> None:
        """Make the environment with the Python ``base``.

        Raises:
            EngineError: a step failed; the environment stays without its marker.
        """
        self.echo(f"installing {self.engine} for {self.device} into {self.folder}")
        make_environment = ("an environment", [str(base), "-m", "venv", str(self.folder)])
        self._run([make_environment, *self._steps(pip_args)], pip_args)

    def update(self, pip_args: Sequence[str]) -> None:
        """Follow the recipe once more in an environment that the recipe of another evalswap made.

        pip leaves alone what is there already, and changes nothing of a step for which it cannot get everything.

        Raises:
            EngineError: a step failed; the environment keeps its old marker.
        """
        self.echo(f"{self.engine} was installed by another version of evalswap: bringing {self.folder} up to date")
        self._run(self._steps(pip_args), pip_args)

    def _run(self, steps: Sequence[tuple[str, list[str]]], pip_args: Sequence[str]) -> None:
        started = time.monotonic()
        with self.log_path.open("w") as log:
            for number, (title, command) in enumerate(steps, 1):
                self.echo(f"{number}/{len(steps)} {title} …")
                began = time.monotonic()
                self._step(title, command, log, _CHECK_SECONDS if number == len(steps) else _PIP_SECONDS)
                self.echo(f"    {time.monotonic() - began:.0f} s")
        self._mark(pip_args)
        self.echo(f"{self.engine} is installed ({time.monotonic() - started:.0f} s)")

    def _steps(self, pip_args: Sequence[str]) -> list[tuple[str, list[str]]]:
        python = str(python_of(self.folder))
        pip = [python, "-m", "pip"]
        steps = []
        for action, *names in self.recipe.steps:
            if action == "install":
                options = ["--progress-bar", "off", "--no-input", "--disable-pip-version-check", *pip_args]
                steps.append((", ".join(names).replace("==", " "), [*pip, "install", *options, *names]))
            else:
                steps.append((f"{action} {', '.join(names)}", [*pip, action, "--yes", *names]))
        return [*steps, ("check that it can be imported", [python, "-c", self.recipe.check])]

    def _step(self, title: str, command: list[str], log: TextIO, deadline: float) -> None:
        # pip would take what it sees on a PYTHONPATH for installed, and a PIP_USER that some clusters set for
        # everybody makes it refuse a venv.
        environment = {**os.environ, "PIP_USER": "0"}
        for name in ("PYTHONPATH", "PYTHONHOME"):
            environment.pop(name, None)
        lines: list[str] = []
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env=environment,
        )
        timer = threading.Timer(deadline, process.kill)
        timer.daemon = True
        timer.start()
        try:
            assert process.stdout
            for line in process.stdout:
                log.write(line)
                log.flush()
                lines.append(line.rstrip())
                if progress := _progress(line):
                    self.echo(f"    {progress}")
            code = process.wait()
        finally:
            timed_out = timer.finished.is_set()
            timer.cancel()
            process.kill()
            process.wait()
        if timed_out:
            raise EngineError(f"{self.engine}: {title}: not done after {deadline:.0f} s", self._hint(""))
        if code != 0:
            errors = [line for line in lines if line.startswith("ERROR:")]
            shown = errors or [line for line in lines if line][-_SHOWN_LINES:]
            said = "".join("\n  " + re.sub(r" \(from versions: .*\)", "", line)[:300] for line in shown)
            raise EngineError(f"{self.engine}: {title}: failed{said}", self._hint(said))

    def _hint(self, output: str) -> str:
        whole_log = f"the whole log: {self.log_path}"
        again = f"evalswap engines install {self.engine}"
        if "+cpu" in output and "No matching distribution" in output:
            return (
                "torch's CPU builds are on an index of their own; give the URL that torch's installation "
                f"page names for CPU: {again} -- --extra-index-url URL; {whole_log}"
            )
        if "different python version" in output or "Requires-Python" in output:
            return f"it wants another version of Python: {again} --python PATH; {whole_log}"
        return whole_log

    def _mark(self, pip_args: Sequence[str]) -> None:
        installed = importlib.metadata.distributions(path=site_packages(self.folder))
        marker: dict[str, Any] = {
            "engine": self.engine,
            "device": self.device,
            "recipe": self.recipe.steps,
            "pip_args": list(pip_args),
            "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "versions": dict(sorted((package.name, package.version) for package in installed)),
        }
        partial = self.folder / f".{MARKER}"
        partial.write_text(json.dumps(marker, indent=2) + "\n")
        partial.replace(self.folder / MARKER)


def _progress(line: str) -> str | None:
    """Return what a line of pip's output tells somebody who waits, or None."""
    if large := re.match(r"\s*Downloading (\S+) \(((?:\d{3,}(?:\.\d+)? MB)|(?:[\d.]+ GB))\)", line):
        return f"downloading {large[1].rpartition('/')[2].split('-')[0]}, {large[2]}"
    if line.startswith("Installing collected packages:"):
        return f"unpacking {line.count(',') + 1} packages"
    return None
