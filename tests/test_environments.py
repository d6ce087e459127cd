"""Finding and installing engines, with a toy engine that is one wheel of a few hundred bytes."""

from __future__ import annotations

import fcntl
import importlib.util
import json
import sys
import threading
import time
import zipfile
from pathlib import Path

import pytest

from evalswap.data_folder import data_folder
from evalswap.engines.registry import managed_engine, managed_engine_names
from evalswap.errors import EngineError
from evalswap.serving import environments
from evalswap.serving.environments import (
    find_engine,
    find_interpreter,
    find_program,
    has_cuda,
    install,
    installed_engines,
    interpreter_variable,
    program_variable,
)
from evalswap.serving.installation import MARKER, _progress
from evalswap.serving.recipes import RECIPES, Recipe


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EVALSWAP_HOME", str(tmp_path / "home"))
    for engine in ("toy", *RECIPES, "llamacpp"):
        monkeypatch.delenv(interpreter_variable(engine), raising=False)
        monkeypatch.delenv(program_variable(engine), raising=False)
    return tmp_path / "home"


@pytest.fixture
def wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Add a recipe "toy" that needs a wheel; return the folder, still empty, where pip looks for it."""
    recipe = Recipe(
        distributions=("toy-cpu", "toy"),
        steps=(("install", "toy==1.2"), ("uninstall", "not-there")),
        check="import toy; assert toy.works",
    )
    monkeypatch.setitem(RECIPES, "toy", {"cpu": recipe})
    monkeypatch.setattr(environments, "has_cuda", lambda: False)
    (tmp_path / "wheels").mkdir()
    return tmp_path / "wheels"


@pytest.fixture
def quick_python(tmp_path: Path) -> str:
    """Return a Python whose environments borrow the pip of these tests: to unpack one each takes 5 s."""
    pip = Path(importlib.util.find_spec("pip").origin).parent  # type: ignore[union-attr,arg-type]
    script = tmp_path / "quick-python"
    script.write_text(
        "#!/bin/sh\nset -e\n"  # called as: quick-python -m venv FOLDER
        f"'{sys.executable}' -m venv --without-pip \"$3\"\n"
        f"cd \"$3\"/lib/python*/site-packages && ln -s '{pip}' pip\n"
    )
    script.chmod(0o755)
    return str(script)


def make_wheel(folder: Path, works: bool = True, name: str = "toy") -> None:
    info = f"{name}-1.2.dist-info"
    with zipfile.ZipFile(folder / f"{name}-1.2-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{name}.py", f"works = {works}\n")
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.2\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", f"{name}.py,,\n{info}/METADATA,,\n{info}/WHEEL,,\n{info}/RECORD,,\n")


def fake_environment(home: Path, complete: bool = True) -> Path:
    """Make what looks like an environment with toy 1.2."""
    folder = home / "engines" / "toy"
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    info = folder / "lib" / version / "site-packages" / "toy-1.2.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: toy\nVersion: 1.2\n")
    (folder / "bin").mkdir()
    (folder / "bin" / "python").symlink_to(sys.executable)
    if complete:
        marker = {"device": "cpu", "recipe": RECIPES["toy"]["cpu"].steps if "toy" in RECIPES else []}
        (folder / MARKER).write_text(json.dumps(marker))
    return folder


def test_home(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert data_folder() == home
    monkeypatch.delenv("EVALSWAP_HOME")
    assert data_folder().name == "evalswap"
    assert interpreter_variable("my-engine") == "EVALSWAP_MY_ENGINE_PYTHON"


def test_hidden_gpus_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert not has_cuda()


def test_finds_in_order(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    current = find_interpreter("toy", ("no-such", "pytest"))
    assert (current.source, current.path, current.version) == ("current", Path(sys.executable), pytest.__version__)

    installed = find_interpreter("toy", ("toy", "pytest")) if fake_environment(home) else None
    assert installed
    assert (installed.source, installed.version) == ("installed", "1.2")
    assert installed.path == home / "engines" / "toy" / "bin" / "python"

    monkeypatch.setenv("EVALSWAP_TOY_PYTHON", sys.executable)
    named = find_interpreter("toy", ("pytest",))
    assert (named.source, named.version) == ("EVALSWAP_TOY_PYTHON", pytest.__version__)

    link = tmp_path / "a-python"
    link.symlink_to(sys.executable)
    with pytest.raises(EngineError, match=r"--engine-python .*a-python: this Python has no toy"):
        find_interpreter("toy", ("toy",), str(link))  # though the installed one has it
    prefix = Path(sys.executable).parent.parent  # of the virtual environment that the tests run in
    explicit = find_interpreter("toy", ("pytest",), str(prefix))
    assert explicit.source == "--engine-python"
    assert explicit.path == prefix / "bin" / "python"
    assert explicit.packages["pytest"] == pytest.__version__


def test_a_named_interpreter_must_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(EngineError, match="--engine-python /no/python: no such interpreter"):
        find_interpreter("toy", ("pytest",), "/no/python")
    broken = tmp_path / "broken"
    broken.write_text("#!/bin/sh\necho out of order >&2\nexit 3\n")
    broken.chmod(0o755)
    monkeypatch.setenv("EVALSWAP_TOY_PYTHON", str(broken))
    with pytest.raises(EngineError, match=r"EVALSWAP_TOY_PYTHON .*: this is no Python that works") as caught:
        find_interpreter("toy", ("pytest",))
    assert caught.value.hint == "out of order"


def test_says_how_to_get_what_is_missing(home: Path) -> None:
    with pytest.raises(EngineError, match=r"^other is not installed$") as caught:
        find_interpreter("other", ("no-such",))
    assert caught.value.hint == ("name an interpreter that has it: --engine-python PATH or EVALSWAP_OTHER_PYTHON=PATH")
    with pytest.raises(EngineError) as caught:
        find_interpreter("vllm", ("no-such",))
    assert (caught.value.hint or "").startswith("run: evalswap engines install vllm (or name ")
    fake_environment(home, complete=False)
    with pytest.raises(EngineError, match=r"^toy is not installed completely"):
        find_interpreter("toy", ("toy",))


@pytest.mark.parametrize("build", ["rocm7.0", "xpu"])
def test_a_build_for_other_gpus_is_not_taken_for_a_cpu_s(build: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environments, "_versions", lambda names, path: {"vllm": "0.32", "torch": f"2.10.0+{build}"})
    with pytest.raises(EngineError, match=rf"vllm of .* is built for {build[:3]}") as caught:
        find_interpreter("vllm", ("vllm",))
    assert "-a openai" in (caught.value.hint or "")


def test_transformers_without_torch_is_no_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environments, "_versions", lambda names, path: {"transformers": "5.1"})
    with pytest.raises(EngineError, match="transformers is not installed"):
        find_interpreter("transformers", ("transformers",))


def test_lists_the_engines(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environments, "has_cuda", lambda: False)
    monkeypatch.setenv("PATH", str(home))
    states = {state.engine: state for state in installed_engines()}
    assert list(states) == managed_engine_names()
    assert {"transformers", "vllm", "sglang", "lmdeploy", "llamacpp"} <= set(states)
    for state in states.values():
        assert (state.interpreter is None) == (state.problem is not None) == (state.hint is not None)
    assert "llama-server, which is not on the PATH" in (states["llamacpp"].problem or "")
    assert "built for NVIDIA GPUs, and this machine has none" in (states["sglang"].hint or "")
    monkeypatch.setattr(environments, "has_cuda", lambda: True)
    hints = {state.engine: state.hint for state in installed_engines()}
    assert (hints["sglang"] or "").startswith("run: evalswap engines install sglang")


# ---- engines that are programs


@pytest.fixture
def llama_server(tmp_path: Path) -> Path:
    """Return a program that says of itself what a llama-server says."""
    program = tmp_path / "bin" / "llama-server"
    program.parent.mkdir()
    program.write_text(
        "#!/bin/sh\n"
        'case "$1" in\n'
        '--version) echo "version: 6123 (79c1160b)" >&2; echo "built with cc for x86_64" >&2 ;;\n'
        '--list-devices) echo "Available devices:"; echo "$DEVICES" ;;\n'
        "*) exit 1 ;;\nesac\n"
    )
    program.chmod(0o755)
    return program


def test_finds_a_program(llama_server: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = managed_engine("llamacpp")
    monkeypatch.setenv("PATH", f"{llama_server.parent}:/usr/bin:/bin")
    found = find_engine(engine)
    assert (found.source, found.path, found.device) == ("PATH", llama_server, "cpu")
    assert found.version == "6123 (79c1160b)"
    monkeypatch.setenv("DEVICES", "  CUDA0: NVIDIA H100 (81079 MiB, 80558 MiB free)")
    assert find_engine(engine).device == "cuda"
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    monkeypatch.setenv("EVALSWAP_LLAMACPP_SERVER", str(llama_server))
    assert find_engine(engine).source == "EVALSWAP_LLAMACPP_SERVER"
    other = tmp_path / "other"
    other.symlink_to(llama_server)
    assert find_engine(engine, str(other)).path == other
    assert find_engine(engine, str(llama_server.parent)).path == llama_server  # its folder will do


def test_says_how_to_get_a_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(EngineError, match="llamacpp needs llama-server, which is not on the PATH") as caught:
        find_program("llamacpp", "llama-server")
    for part in ("github.com/ggml-org/llama.cpp", "--engine-python PATH", "EVALSWAP_LLAMACPP_SERVER=PATH"):
        assert part in (caught.value.hint or "")


def test_a_named_program_must_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(EngineError, match="--engine-python /no/server: no such program"):
        find_program("llamacpp", "llama-server", "/no/server")
    broken = tmp_path / "broken"
    broken.write_text("#!/bin/sh\necho out of order >&2\nexit 3\n")
    broken.chmod(0o755)
    with pytest.raises(EngineError, match="this is no program that works") as caught:
        find_program("llamacpp", "llama-server", str(broken))
    assert caught.value.hint == "out of order"


def test_refuses_what_it_cannot_install(wheels: Path) -> None:
    with pytest.raises(EngineError, match="no recipe to install an engine 'vlm'") as caught:
        install("vlm")
    assert caught.value.hint == "did you mean 'vllm'?"
    with pytest.raises(EngineError, match="no recipe") as caught:
        install("mlc-x")
    assert "EVALSWAP_MLC_X_PYTHON" in (caught.value.hint or "")
    with pytest.raises(EngineError, match="openai needs no installation"):
        install("openai")
    with pytest.raises(EngineError, match="llamacpp needs no installation: it is your own llama-server"):
        install("llamacpp")
    with pytest.raises(EngineError, match="toy cannot be installed here: it runs on cpu only, not on cuda"):
        install("toy", device="cuda")
    for engine in ("sglang", "lmdeploy"):
        with pytest.raises(EngineError, match=f"{engine} cannot be installed here: .*NVIDIA GPU") as caught:
            install(engine)
        assert interpreter_variable(engine) in (caught.value.hint or "")
    with pytest.raises(EngineError, match="--python /no/python: no such interpreter"):
        install("toy", python="/no/python")


def test_a_home_that_cannot_be_written(wheels: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVALSWAP_HOME", "/dev/null/here")
    with pytest.raises(EngineError, match="toy cannot be installed into /dev/null/here"):
        install("toy")


def test_failures_are_told_and_the_next_installation_repairs(home: Path, wheels: Path, quick_python: str) -> None:
    lines: list[str] = []
    offline = ["--no-index", "--find-links", str(wheels)]
    with pytest.raises(EngineError) as caught:
        install("toy", offline, lines.append)
    assert caught.value.message.startswith("toy: toy 1.2: failed\n  ERROR: Could not find a version that")
    log = home / "engines" / "toy.log"
    assert caught.value.hint == f"the whole log: {log}"
    assert "No matching distribution" in log.read_text()
    with pytest.raises(EngineError, match="not installed completely"):
        find_interpreter("toy", ("toy",))

    make_wheel(wheels, works=False)
    with pytest.raises(EngineError, match=r"toy: check that it can be imported: failed(.|\n)*AssertionError"):
        install("toy", offline, lines.append, python=quick_python)

    make_wheel(wheels)
    lines.clear()
    found = install("toy", offline, lines.append, python=quick_python)
    assert (found.version, found.source, found.packages) == ("1.2", "installed", {"toy": "1.2"})
    steps = [line.partition(" ")[2] for line in lines if line[0].isdigit()]
    assert steps == ["an environment …", "toy 1.2 …", "uninstall not-there …", "check that it can be imported …"]
    assert lines[-1].startswith("toy is installed (")
    marker = json.loads((home / "engines" / "toy" / MARKER).read_text())
    assert (marker["engine"], marker["device"], marker["versions"]["toy"]) == ("toy", "cpu", "1.2")
    assert find_interpreter("toy", ("toy",)) == found


def test_installs_once(home: Path, wheels: Path) -> None:
    folder = fake_environment(home)
    lines: list[str] = []
    assert install("toy", echo=lines.append).version == "1.2"
    assert lines == [f"toy is installed already, in {folder}"]
    with pytest.raises(EngineError, match="toy: an environment: failed"):
        install("toy", echo=lines.append, reinstall=True, python="false")
    assert not folder.exists()


def test_an_environment_of_an_older_recipe_is_brought_up_to_date(
    home: Path, wheels: Path, quick_python: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    offline = ["--no-index", "--find-links", str(wheels)]
    make_wheel(wheels)
    folder = home / "engines" / "toy"
    install("toy", offline, print, python=quick_python)
    (folder / "kept").touch()
    old = RECIPES["toy"]["cpu"]
    newer = Recipe(("toy",), (("install", "toy", "more"),), check="import toy, more")
    monkeypatch.setitem(RECIPES, "toy", {"cpu": newer})
    lines: list[str] = []
    with pytest.raises(EngineError, match="toy: toy, more: failed"):  # nobody has it: the engine stays as it was
        install("toy", offline, lines.append)
    assert find_interpreter("toy", ("toy",)).version == "1.2"
    assert json.loads((folder / MARKER).read_text())["recipe"] == [list(step) for step in old.steps]

    make_wheel(wheels, name="more")
    lines.clear()
    install("toy", offline, lines.append)
    assert lines[0] == f"toy was installed by another version of evalswap: bringing {folder} up to date"
    steps = [line.partition(" ")[2] for line in lines if line[0].isdigit()]
    assert steps == ["toy, more …", "check that it can be imported …"]
    assert (folder / "kept").exists()
    assert json.loads((folder / MARKER).read_text())["versions"]["more"] == "1.2"
    lines.clear()
    install("toy", offline, lines.append)
    assert lines == [f"toy is installed already, in {folder}"]


def test_an_environment_for_gpus_stays_one_on_a_machine_without(
    home: Path, wheels: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = fake_environment(home)
    on_gpus = Recipe(("toy",), (("install", "toy[cuda]"),), check="import toy")
    monkeypatch.setitem(RECIPES, "toy", {**RECIPES["toy"], "cuda": on_gpus})
    (folder / MARKER).write_text(json.dumps({"device": "cuda", "recipe": on_gpus.steps}))
    lines: list[str] = []
    install("toy", echo=lines.append)
    assert lines == [f"toy is installed already, in {folder}"]


def test_two_installations_take_turns(home: Path, wheels: Path) -> None:
    fake_environment(home)
    lines: list[str] = []
    with (home / "engines" / ".toy.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        second = threading.Thread(target=install, args=("toy",), kwargs={"echo": lines.append}, daemon=True)
        second.start()
        deadline = time.monotonic() + 10
        while not lines and time.monotonic() < deadline:
            time.sleep(0.01)
        assert lines == ["another installation of toy runs, waiting for it …"]
    second.join(10)
    assert len(lines) == 2
    assert lines[1].startswith("toy is installed already")


def test_progress_is_for_people() -> None:
    tell = _progress
    assert tell("  Downloading https://a.b/c/torch-2.13.0-cp311.whl (190.1 MB)\n") == "downloading torch, 190.1 MB"
    assert tell("  Downloading torch-2.13.0-cp311.whl (1.2 GB)\n") == "downloading torch, 1.2 GB"
    assert tell("  Downloading idna-3.20.whl (71 kB)\n") is None
    assert tell("  Downloading x-1.whl (9.5 MB)\n") is None
    assert tell("Installing collected packages: a, b, c\n") == "unpacking 3 packages"
