"""An engine of another package: a real distribution, installed with pip, used through the command line.

Its server is a few lines of Python that need no model: it answers with the ids that it was started with.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from evalswap.store import Store

ENGINE = """
from pathlib import Path

from evalswap.engines.answers import as_ids
from evalswap.engines.base import HttpCall, MalformedAnswer, ManagedEngine, Native, Refused
from evalswap.engines.flags import flags, own_environment
from evalswap.records import Completion

NO = Refused("a parrot draws nothing")


class Parrot(ManagedEngine):
    name = "parrot"
    distributions = ("evalswap-parrot",)
    health_path = "/ready"
    flag_names = {"dtype": "feathers in", "max_seq_len": "--memory", "num_gpus": "perches:"}
    sampling = {
        "max_new_tokens": Native("most"), "min_new_tokens": NO, "temperature": NO, "top_p": NO, "top_k": NO,
        "min_p": NO, "repetition_penalty": NO, "presence_penalty": NO, "frequency_penalty": NO, "seed": NO,
        "stop": Native("stop"), "stop_token_ids": Native("ends"),
    }

    def command(self, launch, python, port):
        own = {"port": port, "memory": launch.context_len}
        return [str(python), str(Path(__file__).with_name("server.py")), *flags(own | dict(launch.engine_args))]

    def environment(self, launch):
        return own_environment(launch)

    def window(self, launch):
        return 3

    def call(self, request):
        return HttpCall("/say", {"ids": list(request.prompt.token_ids), **self.native_sampling(request.sampling)})

    def read(self, answer, request):
        try:
            ids = as_ids(answer["ids"], self.name)
        except (KeyError, TypeError) as error:
            raise MalformedAnswer(f"squawk: {answer}") from error
        return Completion(ids, None, "stop", answer["heard"], len(ids))
"""
SERVER = """
import argparse
import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

parser = argparse.ArgumentParser()
parser.add_argument("--port", type=int)
parser.add_argument("--memory", type=int)
parser.add_argument("--say")
args = parser.parse_args()
words = [int(word) for word in args.say.split("-")]


class Handler(BaseHTTPRequestHandler):
    def reply(self, answer):
        body = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        self.reply({})

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.reply({"ids": [*words, asked["ends"][0]][: asked["most"]], "heard": len(asked["ids"])})

    def log_message(self, *_):
        pass


ThreadingHTTPServer(("127.0.0.1", args.port), Handler).serve_forever()
"""
METADATA = "Metadata-Version: 2.1\nName: evalswap-parrot\nVersion: 3.1\n"
ENTRY_POINTS = "[evalswap.engines]\nparrot = evalswap_parrot.engine:Parrot\n"
WORDS = ("<unk>", "</s>", "the", "answer", "is", "42")
SAYS = "2-3-4-5"  # "the answer is 42"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder into which pip has installed the package."""
    folder = tmp_path_factory.mktemp("parrot")
    wheel = folder / "evalswap_parrot-3.1-py3-none-any.whl"
    info = "evalswap_parrot-3.1.dist-info"
    files = {
        "evalswap_parrot/__init__.py": "",
        "evalswap_parrot/engine.py": ENGINE,
        "evalswap_parrot/server.py": SERVER,
        f"{info}/METADATA": METADATA,
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: a test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/entry_points.txt": ENTRY_POINTS,
    }
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
        archive.writestr(f"{info}/RECORD", "".join(f"{name},,\n" for name in (*files, f"{info}/RECORD")))
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--target"]
    subprocess.run([*pip, str(folder / "site"), str(wheel)], check=True, capture_output=True, timeout=120)
    return folder / "site"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a model's folder: a tokenizer of six words, and no weights."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    folder = tmp_path_factory.mktemp("model") / "tiny"
    folder.mkdir()
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "</s>", "unk_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(names))
    config = {"architectures": ["Tiny"], "model_type": "llama", "eos_token_id": 1, "max_position_embeddings": 512}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def evalswap(site: Path, *arguments: str | Path) -> tuple[int, str]:
    path = os.pathsep.join(filter(None, [str(site), os.environ.get("PYTHONPATH")]))
    env = {**os.environ, "PYTHONPATH": path, "COLUMNS": "200", "EVALSWAP_HOME": str(site.parent / "home")}
    command = [sys.executable, "-m", "evalswap", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=120)
    output = done.stdout + done.stderr
    assert "Traceback" not in output, output
    return done.returncode, output


def test_it_runs_an_evaluation(site: Path, model: Path, tmp_path: Path) -> None:
    code, output = evalswap(
        site, "run", "--hf-path", model, "--hf-type", "base", "--datasets", "demo_gen", "-a", "parrot",
        "--engine-args", f"say={SAYS}", "--limit", "5", "-w", tmp_path,
    )  # fmt: skip
    assert code == 0, output
    store = Store(tmp_path)
    run = sorted(tmp_path.glob("2*"))[-1]
    answers = list(store.answers(run.name, "tiny-parrot/demo"))
    store.close()
    assert len(answers) == 5
    for answer in answers:
        assert answer.response is not None
        assert (answer.response.token_ids, answer.response.text) == ((2, 3, 4, 5, 1), "the answer is 42")
        assert answer.response.engine == "parrot 3.1"
    record = json.loads((run / "run.json").read_text())
    assert "parrot" in json.dumps(record)


def test_its_flags_are_in_the_translation(site: Path, model: Path) -> None:
    code, output = evalswap(
        site, "run", "--hf-path", model, "--hf-type", "base", "--datasets", "demo_gen", "-a", "parrot", "--dry-run"
    )
    assert code == 0, output
    assert "feathers in auto" in output
    assert "parrot 3.1 on cpu" in output or "parrot 3.1 on cuda" in output


def test_what_it_refuses_is_refused(site: Path, model: Path, tmp_path: Path) -> None:
    code, output = evalswap(
        site, "run", "--hf-path", model, "--hf-type", "base", "--datasets", "demo_gen", "-a", "parrot",
        "--generation-kwargs", "do_sample=True", "-w", tmp_path,
    )  # fmt: skip
    assert code == 2
    assert "cannot be asked of parrot: a parrot draws nothing" in output


def test_it_is_listed(site: Path) -> None:
    code, output = evalswap(site, "engines")
    assert code == 0
    assert any("parrot" in line and "3.1" in line for line in output.splitlines())
    code, output = evalswap(site, "run", "--hf-path", "m", "--datasets", "demo_gen", "-a", "parot")
    assert code == 2
    assert "did you mean 'parrot'?" in output
