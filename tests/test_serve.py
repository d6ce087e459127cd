"""``evalswap serve``: an engine is kept, found, proven to be the right one, and leaves nothing behind."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import toy_engine
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from evalswap.cli import main
from evalswap.config.specs import parse_model
from evalswap.conversion import EngineOptions, convert
from evalswap.errors import EngineError
from evalswap.serving import keeper, registrations
from evalswap.serving.launching import PreparedEngine, Workload, open_server, prepare_engine
from evalswap.serving.registrations import Registration
from evalswap.serving.server import ManagedServer
from evalswap.serving.warm import WarmServer, doubt, find_warm
from evalswap.store import Store

NAME = "tiny-toy"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A data folder of its own, and a package that brings the engine "toy"; nothing served outlives the test."""
    toy_engine.install(tmp_path / "site", monkeypatch)
    monkeypatch.setenv("EVALSWAP_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("COLUMNS", "200")
    yield tmp_path / "home"
    for entry in registrations.registrations() if (tmp_path / "home").is_dir() else []:
        os.kill(entry.pid, signal.SIGKILL)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model's folder, without a model in it."""
    return make_model(tmp_path / "tiny", seed=1)


def make_model(folder: Path, seed: int) -> Path:
    folder.mkdir()
    config = {"architectures": ["ToyForCausalLM"], "max_position_embeddings": 2048, "torch_dtype": "float32"}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").write_bytes(bytes([seed]) * 64)
    return folder


def prepare(model: Path, *, longest: int = 100, max_seq_len: int | None = None, **args: Any) -> PreparedEngine:
    """Prepare the toy engine as a run would that wants answers of up to ``longest`` tokens."""
    dtype = args.pop("dtype", "auto")
    spec = {
        "type": "HuggingFacewithChatTemplate",
        "abbr": "tiny-hf",
        "path": str(model),
        "model_kwargs": {"torch_dtype": dtype},
    }
    if max_seq_len:
        spec["max_seq_len"] = max_seq_len
    plan = convert(parse_model(spec, "test"), EngineOptions(accelerator="toy", engine_args=args))
    assert plan.launch is not None
    return prepare_engine(plan, plan.launch, Workload(longest, answers=8, answer_tokens=800))


def cli(*words: str | Path, seconds: float = 60) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "evalswap", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=seconds)


def serve(model: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return cli("serve", "--hf-path", model, "-a", "toy", "--detach", *words)


def start(model: Path, *words: str) -> subprocess.Popen[str]:
    """Begin to serve in the foreground."""
    command = [sys.executable, "-m", "evalswap", "serve", "--hf-path", str(model), "-a", "toy", *words]
    return subprocess.Popen(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def served() -> Registration:
    (entry,) = registrations.registrations()
    return entry


def wait_until(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 15
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def living(pids: list[int]) -> list[int]:
    table = keeper.processes()
    return [pid for pid in pids if pid in table]


def everything_of(entry: Registration) -> list[int]:
    return [entry.pid, entry.keeper, *keeper.family(entry.keeper)]


# -- serving ---------------------------------------------------------------------------------------------------


def test_serves_lists_and_stops(home: Path, model: Path) -> None:
    output = serve(model)
    assert output.returncode == 0, output.stderr
    entry = served()
    assert entry.url in output.stdout
    assert entry.log in output.stdout
    assert f"evalswap serve --stop {NAME}" in output.stdout
    assert "warning" not in output.stdout
    told = json.loads(urllib.request.urlopen(f"{entry.url}/model").read())
    assert told == {"model": str(model), "context": 2048}
    file = home / "servers" / f"{NAME}.json"
    assert file.stat().st_mode & 0o777 == 0o600
    assert (home / "servers").stat().st_mode & 0o777 == 0o700
    pids = everything_of(entry)
    assert len(living(pids)) == 3

    table = cli("serve", "--list").stdout
    for word in (NAME, "toy 1.0", entry.url, str(entry.pid), "2 running, 1 waiting"):
        assert word in table

    assert cli("serve", "--stop", NAME).returncode == 0
    assert not living(pids)
    assert not list((home / "servers").glob("*.json"))
    assert "nothing is served" in cli("serve", "--list").stdout


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_it_and_all_that_it_started(home: Path, model: Path, number: int) -> None:
    process = start(model)
    wait_until(lambda: [entry for entry in registrations.registrations() if entry.ready])
    pids = everything_of(served())
    process.send_signal(number)
    output, _ = process.communicate(timeout=20)
    assert process.returncode == 0, output
    assert f"stopped {NAME}" in output
    assert "Ctrl-C here" in output
    assert not living(pids)
    assert not list((home / "servers").glob("*.json"))


def test_a_signal_while_it_starts_ends_it(home: Path, model: Path) -> None:
    process = start(model, "--engine-args", "seconds=60")
    wait_until(lambda: (home / "servers" / f"{NAME}.log").exists())
    family = keeper.family(process.pid)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=20)
    assert process.returncode == 0, output
    assert not living(family)
    assert not registrations.registrations()


def test_nothing_is_left_of_one_that_was_killed(home: Path, model: Path) -> None:
    assert serve(model).returncode == 0
    pids = everything_of(served())
    os.kill(pids[0], signal.SIGKILL)
    wait_until(lambda: not living(pids))
    assert list((home / "servers").glob("*.json"))  # nobody could remove it …
    assert not registrations.registrations()
    assert not list((home / "servers").glob("*.json"))  # … but the next reader did


def test_an_engine_that_dies_ends_it_and_tells_why(home: Path, model: Path) -> None:
    process = start(model)
    wait_until(lambda: [entry for entry in registrations.registrations() if entry.ready])
    for pid in keeper.family(served().keeper):
        os.kill(pid, signal.SIGKILL)
    output, _ = process.communicate(timeout=20)
    assert process.returncode == 1
    assert "toy died while running" in output
    assert not registrations.registrations()


def test_an_engine_that_does_not_start_says_which_flag_helps(home: Path, model: Path) -> None:
    output = serve(model, "--engine-args", "mode=dies")
    assert output.returncode == 1
    assert "toy died while starting" in output.stderr
    assert "no room for the weights" in output.stderr
    assert "→ lower --engine-args share=0.5; the whole log:" in output.stderr
    assert "Traceback" not in output.stderr
    assert not registrations.registrations()


def test_the_same_is_served_once(home: Path, model: Path) -> None:
    assert serve(model).returncode == 0
    first = served()
    again = cli("serve", "--hf-path", model, "-a", "toy")
    assert again.returncode == 0
    assert f"it is served already: '{NAME}', at {first.url}" in again.stdout
    assert served() == first
    # With other flags it is another server, under another name.
    assert serve(model, "--engine-args", "share=0.5").returncode == 0
    assert [entry.name for entry in registrations.registrations()] == [f"{NAME}-2", NAME]
    assert cli("serve", "--stop", "all").stdout.split() == ["stopped", f"{NAME}-2", "stopped", NAME]


def test_two_at_once_start_one_engine(home: Path, model: Path) -> None:
    first, second = (start(model, "--engine-args", "seconds=1") for _ in range(2))
    wait_until(lambda: first.poll() is not None or second.poll() is not None)
    loser, winner = (first, second) if first.poll() is not None else (second, first)
    assert "it is still starting" in loser.communicate()[0]
    assert loser.returncode == 0
    winner.send_signal(signal.SIGTERM)
    assert winner.wait(20) == 0
    winner.communicate()


def test_listens_where_it_is_told_and_warns(home: Path, model: Path) -> None:
    port = free_port()
    output = serve(model, "--host", "0.0.0.0", "--port", str(port))
    assert output.returncode == 0
    assert f"http://127.0.0.1:{port}" in output.stdout
    assert "warning: it listens on 0.0.0.0 and asks for no key" in output.stdout
    assert isinstance(open_server(prepare(model), home / "log", str, print), WarmServer)


def free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--hf-path", "/no/such/model", "-a", "toy"], 1, "model folder not found: /no/such/model"),
        (["--hf-path", "{model}", "-a", "toi"], 2, "did you mean 'toy'?"),
        (["--hf-path", "{model}", "-a", "OpenAI"], 2, "-a openai: somebody else runs its server"),
        (["--hf-path", "{model}", "-a", "toy", "--engine-python", "/no/python"], 1, "no such interpreter"),
        (["--hf-path", "{model}", "-a", "toy", "--only", "tiny"], 2, "did you mean 'tiny-toy'?"),
        (["--hf-path", "{model}", "-a", "toy", "--host", "192.0.2.1"], 1, "give --host an address of this machine"),
        (["--hf-path", "{model}", "-a", "toy", "--port", "70000"], 2, "from 1 to 65535"),
        (["--stop", "that"], 2, "nothing of that name is served"),
        ([], 2, "no model given"),
    ],
)
def test_what_is_wrong_is_told(
    home: Path, model: Path, capsys: pytest.CaptureFixture[str], words: list[str], code: int, said: str
) -> None:
    try:
        assert main(["serve", *(word.format(model=model) for word in words)]) == code
    except SystemExit as end:  # argparse's own
        assert end.code == code
    assert said in capsys.readouterr().err
    assert not registrations.registrations()


def test_a_config_of_several_models_needs_a_choice(
    home: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "eval.py"
    config.write_text(
        "from mmengine.config import read_base\n"
        "from opencompass.models import HuggingFacewithChatTemplate as Model\n"
        "with read_base():\n    from .datasets.demo.demo_gen import demo_datasets as datasets\n"
        f"models = [dict(type=Model, abbr=name, path={str(model)!r}) for name in ('one', 'two')]\n"
    )
    assert main(["serve", str(config), "-a", "toy"]) == 2
    assert "--only one-toy | two-toy" in capsys.readouterr().err


def test_a_port_in_use_is_told(home: Path, model: Path) -> None:
    with other_server() as port:
        output = serve(model, "--port", str(port))
    assert output.returncode == 1
    assert f"port {port} is in use" in output.stderr
    assert "leave --port out" in output.stderr
    assert not registrations.registrations()


def test_a_data_folder_that_cannot_be_written_is_told(
    home: Path, model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (model / "file").write_text("")
    monkeypatch.setenv("EVALSWAP_HOME", str(model / "file"))
    for words in (["--detach"], []):
        assert main(["serve", "--hf-path", str(model), "-a", "toy", *words]) == 1
        told = capsys.readouterr().err
        assert "cannot be written" in told
        assert "set EVALSWAP_HOME" in told
    # A run goes on without a warm server.
    prepared = prepare(model)
    assert isinstance(open_server(prepared, model / "log", str, print), ManagedServer)


# -- finding ---------------------------------------------------------------------------------------------------


class other_server:
    """A real server of somebody else's, which says that it is healthy."""

    def __init__(self, port: int | None = None) -> None:
        self.port = port or free_port()

    def __enter__(self) -> int:
        options = json.dumps({"model": "another", "context": 4096})
        command = [sys.executable, "-S", toy_engine.__file__, options, "127.0.0.1", str(self.port)]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        wait_until(self.answers)
        return self.port

    def answers(self) -> bool:
        try:
            return urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health").status == 200
        except OSError:
            return False

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()


def look(prepared: PreparedEngine) -> tuple[WarmServer | None, str]:
    said: list[str] = []
    found = find_warm(prepared, said.append)
    return found, "\n".join(said)


def test_a_run_of_the_same_finds_it(home: Path, model: Path) -> None:
    assert serve(model).returncode == 0
    entry = served()
    found, said = look(prepare(model, longest=50))
    assert said == f"using the warm toy 1.0 at {entry.url} (serving since {entry.since_text})"
    assert found is not None

    async def use() -> None:
        await found.start()
        await found.ready()
        assert found.url == entry.url
        assert found.start_seconds is not None
        assert found.start_seconds < 2
        death = asyncio.create_task(found.wait_dead())
        await found.stop()  # a run's end is not its end
        await asyncio.sleep(0.3)
        assert found.alive
        assert not death.done()
        os.kill(entry.pid, signal.SIGTERM)
        await asyncio.wait_for(death, 15)
        assert not found.alive

    asyncio.run(use())
    assert "ended while it was used" in found.failure().message
    assert entry.log in (found.failure().hint or "")
    assert look(prepare(model)) == (None, "")


def test_a_copied_model_is_the_same_model(home: Path, model: Path, tmp_path: Path) -> None:
    assert serve(model).returncode == 0
    model.rename(tmp_path / "moved")
    assert look(prepare(tmp_path / "moved"))[0] is not None


@pytest.mark.parametrize(
    ("wanted", "why"),
    [
        ({"dtype": "bfloat16"}, "dtype is float32 there, bfloat16 here"),
        ({"share": 0.5}, "engine_args differ"),
        ({"max_seq_len": 1000, "longest": 600}, "it has room for 1100 tokens of prompt and answer, 1600 are wanted"),
    ],
)
def test_one_that_does_not_fit_is_not_used(home: Path, model: Path, wanted: dict[str, Any], why: str) -> None:
    assert serve(model, "--max-seq-len", "1000", "--max-out-len", "100").returncode == 0
    found, said = look(prepare(model, **wanted))
    assert found is None
    assert said == f"the warm toy '{NAME}' is not used: {why}"
    assert look(prepare(model, max_seq_len=900))[0] is not None


def test_another_model_of_the_same_name_is_not_used(home: Path, model: Path) -> None:
    assert serve(model).returncode == 0
    (model / "model.safetensors").write_bytes(b"other weights" * 9)
    assert look(prepare(model)) == (None, "")


def test_one_that_still_starts_is_waited_for(home: Path, model: Path) -> None:
    process = start(model, "--engine-args", "seconds=1.5")
    wait_until(registrations.registrations)
    found, said = look(prepare(model, seconds=1.5))
    assert "waiting for the toy 1.0" in said
    assert found is not None
    asyncio.run(found.ready())
    assert urllib.request.urlopen(f"{found.url}/health").status == 200
    process.terminate()
    process.communicate(timeout=20)


def test_one_that_dies_while_it_is_waited_for_is_told(home: Path, model: Path) -> None:
    process = start(model, "--engine-args", "seconds=60")
    wait_until(registrations.registrations)
    found, _ = look(prepare(model, seconds=60))
    assert found is not None
    process.terminate()
    with pytest.raises(EngineError, match="ended before it was ready"):
        asyncio.run(found.ready())
    process.communicate(timeout=20)


def test_a_server_of_another_model_on_the_warm_port_is_never_used(home: Path, model: Path) -> None:
    assert serve(model).returncode == 0
    entry = served()
    with other_server() as port:
        # All is as it should be, the other answers that it is healthy; but the port is not the keeper's.
        registrations.update(dataclasses.replace(entry, port=port))
        found, said = look(prepare(model))
        assert found is None
        assert f"port {port} is not its own" in said
    # And when the server is gone, another sits on its port, and the registration stayed.
    assert cli("serve", "--stop", NAME).returncode == 0
    with other_server(entry.port):
        registrations.update(entry)
        assert look(prepare(model)) == (None, "")
        assert doubt(entry, "/health") == "it is not running any more"


def test_a_registration_that_claims_anothers_server_is_not_believed(home: Path, model: Path, tmp_path: Path) -> None:
    """The identity must be on the command line of the keeper, whatever the file says."""
    other = make_model(tmp_path / "other", seed=2)
    assert serve(other).returncode == 0
    entry = served()
    mine = prepare(model)
    assert serve(model).returncode == 0
    (own,) = (one for one in registrations.registrations() if one != entry)
    registrations.update(dataclasses.replace(own, keeper=entry.keeper, port=entry.port))
    found, said = look(mine)
    assert found is None
    assert f"process {entry.keeper} is not its keeper" in said


def test_one_that_is_not_healthy_is_not_used(home: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert serve(model).returncode == 0
    monkeypatch.setattr("evalswap.serving.warm.HEALTH_SECONDS", 0.3)
    pids = keeper.family(served().keeper)
    keeper.send(pids, signal.SIGSTOP)
    try:
        found, said = look(prepare(model))
        assert found is None
        assert "does not answer that it is healthy" in said
        assert "no answer within" in cli("serve", "--list").stdout
    finally:
        keeper.send(pids, signal.SIGCONT)


def test_registrations_of_other_machines_are_left_alone(home: Path, model: Path) -> None:
    assert serve(model).returncode == 0
    entry = served()
    node, boot, namespace = entry.machine.split(" ")
    file = home / "servers" / f"{NAME}.json"
    for machine in (f"elsewhere {boot} {namespace}", f"{node} {boot} pid:[1]"):
        registrations.update(dataclasses.replace(entry, machine=machine))
        assert registrations.registrations() == []
        assert file.exists()
    # This machine has started again since: there can be no such process.
    registrations.update(dataclasses.replace(entry, machine=f"{node} another-boot {namespace}"))
    assert registrations.registrations() == []
    assert not file.exists()
    os.kill(entry.pid, signal.SIGTERM)


def test_strange_files_are_no_registrations(home: Path, model: Path, tmp_path: Path) -> None:
    assert serve(model).returncode == 0
    entry = served()
    file = home / "servers" / f"{NAME}.json"
    whole = file.read_text()
    said = json.loads(whole)
    strange = {
        "torn": whole[: len(whole) // 2],
        "list": "[1, 2]",
        "empty": "",
        "deep": "[" * 30000,
        "types": json.dumps(said | {"name": "types", "port": "80"}),
        "boolean": json.dumps(said | {"name": "boolean", "port": True}),
        "escape": json.dumps(said | {"name": "escape", "model": "\x1b[2J"}),
        "port": json.dumps(said | {"name": "port", "port": 99999}),
        "process": json.dumps(said | {"name": "process", "pid": -1}),
        "name": json.dumps(said),  # of another file
        "huge": json.dumps(said | {"name": "huge", "log": "x" * registrations.LARGEST}),
    }
    without = {key: value for key, value in said.items() if key != "tokenizers"}
    older = home / "servers" / "older.json"  # of an earlier evalswap: to be listed and stopped
    older.write_text(json.dumps(without | {"name": "older"}))
    older.chmod(0o600)
    assert {entry.name for entry in registrations.registrations()} == {NAME, "older"}
    older.unlink()
    for name, text in strange.items():
        (home / "servers" / f"{name}.json").write_text(text)
        (home / "servers" / f"{name}.json").chmod(0o600)
    (home / "servers" / "writable.json").write_text(json.dumps(said | {"name": "writable"}))
    (home / "servers" / "writable.json").chmod(0o666)
    (tmp_path / "aside").write_text(json.dumps(said | {"name": "link"}))
    (home / "servers" / "link.json").symlink_to(tmp_path / "aside")
    os.mkfifo(home / "servers" / "fifo.json")
    (home / "servers" / "folder.json").mkdir()
    assert registrations.registrations() == [entry]
    assert look(prepare(model))[0] is not None


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    data=st.binary(max_size=200)
    | st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from([field.name for field in dataclasses.fields(Registration)]), inner, max_size=18
            )
        ),
        max_leaves=20,
    ).map(lambda value: json.dumps(value).encode())
)
def test_no_file_breaks_the_reading(home: Path, data: bytes) -> None:
    folder = home / "servers"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "any.json").write_bytes(data)
    (folder / "any.json").chmod(0o600)
    assert registrations.registrations() == []


def test_no_secret_is_registered(home: Path, model: Path) -> None:
    output = serve(model, "--engine-args", "hf_token=hf_verysecret", "note=plain")
    assert output.returncode == 0, output.stderr
    for file in (home / "servers").iterdir():
        assert "hf_verysecret" not in file.read_text()
    assert "plain" in (home / "servers" / f"{NAME}.json").read_text()
    assert look(prepare(model, hf_token="hf_verysecret", note="plain"))[0] is not None
    assert look(prepare(model, hf_token="hf_another", note="plain"))[0] is None


# -- with the real model on real engines -------------------------------------------------------------------------

CONFIG = """
from mmengine.config import read_base
from opencompass.models import HuggingFacewithChatTemplate

with read_base():
    from .datasets.demo.demo_gen import demo_datasets as datasets

datasets[0]['infer_cfg']['inferencer']['max_out_len'] = 16
models = [dict(type=HuggingFacewithChatTemplate, abbr='smol-hf', path={path!r}, max_seq_len={length}, batch_size=4,
               model_kwargs=dict(torch_dtype='float32'))]
"""


@pytest.mark.e2e
@pytest.mark.parametrize("engine", ["transformers", "vllm"])
def test_runs_on_a_warm_server(
    engine: str, tmp_path: Path, demo_model: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    python = request.getfixturevalue(f"{engine}_python")
    monkeypatch.setenv("EVALSWAP_HOME", str(tmp_path / "home"))
    monkeypatch.setenv(f"EVALSWAP_{engine.upper()}_PYTHON", python)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    for length in (512, 1024):
        (tmp_path / f"eval_{length}.py").write_text(CONFIG.format(path=str(demo_model), length=length))
    model = "smol-hf" if engine == "transformers" else "smol-vllm"

    def evaluate(work: str, *words: str, length: int = 512) -> tuple[str, float, dict[str, Any]]:
        began = time.monotonic()
        command = ["run", tmp_path / f"eval_{length}.py", "-a", engine, "-w", tmp_path / work, "--limit", "8", *words]
        done = cli(*command, seconds=250)
        assert done.returncode == 0, done.stdout + done.stderr
        (*_, folder) = sorted((tmp_path / work).glob("2*"))
        record = json.loads((folder / "run.json").read_text())["models"][model]
        return done.stdout, time.monotonic() - began, record

    begun = cli("serve", tmp_path / "eval_512.py", "-a", engine, "--detach", seconds=250)
    assert begun.returncode == 0, begun.stderr
    try:
        entry = served()
        output, _seconds, warm = evaluate("warm")
        assert f"using the warm {engine} {entry.version} at {entry.url}" in output
        assert warm["answers"]["asked"] == 8
        assert not list((tmp_path / "warm").rglob("*.log"))  # no engine of its own
        # Warm or cold, the same question has the same key: nothing is asked again.
        output, _, again = evaluate("warm")
        assert again["answers"]["from_store"] == 8
        # A longer prompt would not fit into vLLM's server; transformers' worker knows no limit.
        output, _, _ = evaluate("longer", length=1024) if engine == "transformers" else ("", 0, {})
        assert ("using the warm" in output) == (engine == "transformers")
        assert served() == entry
    finally:
        assert cli("serve", "--stop", "all").returncode == 0
    output, _, cold = evaluate("cold")
    assert "using the warm" not in output
    hashes = [record["datasets"]["demo"]["prompt_ids_sha256"] for record in (warm, cold)]
    assert hashes[0] == hashes[1]
    assert answers(tmp_path / "warm", model) == answers(tmp_path / "cold", model)


def answers(work: Path, model: str) -> list[Any]:
    """Return the token ids of a work folder's last run."""
    store = Store(work)
    try:
        (*_, folder) = sorted(work.glob("2*"))
        found = list(store.answers(folder.name, f"{model}/demo"))
    finally:
        store.close()
    assert len(found) == 8
    return [(answer.response.key, answer.response.token_ids) for answer in found if answer.response]
