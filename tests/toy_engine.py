"""An engine of another package, as a real process: it loads nothing, and says which model it was given."""

from __future__ import annotations

import json
import os
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

PACKAGE = "toy-engine"
ENVIRONMENT: dict[str, str] = {}  # of the server


def install(folder: Path, monkeypatch: Any) -> None:
    """Make this file an installed package with an entry point, for this process and those that it starts."""
    info = folder / "toy_engine-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {PACKAGE}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[evalswap.engines]\ntoy = toy_engine:toy_class\n")
    (folder / "toy_engine.py").write_bytes(Path(__file__).read_bytes())
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")]))


def toy_class() -> Any:
    """Return the engine (the class is made here, so that its server needs nothing of evalswap)."""
    from evalswap.engines.base import EngineLoad, HttpCall, Launch, ManagedEngine, Native
    from evalswap.engines.vllm import Vllm
    from evalswap.records import Completion, Request

    class Toy(ManagedEngine):
        name = "toy"
        distributions = (PACKAGE,)
        load_path = "/load"
        start_deadline = 20.0
        hints = (("no room for the weights", "lower --engine-args share=0.5"),)
        sampling: ClassVar[Any] = {field: Native(field) for field in Vllm.sampling}

        def command(self, launch: Launch, python: Path, port: int) -> list[str]:
            options = {"model": str(launch.model), "context": launch.context_len, **launch.engine_args}
            return [str(python), "-S", __file__, json.dumps(options), "127.0.0.1", str(port)]

        def environment(self, launch: Launch) -> dict[str, str]:
            return ENVIRONMENT

        def call(self, request: Request) -> HttpCall:
            return HttpCall("/generate", {})

        def read(self, answer: Any, request: Request) -> Completion:
            return Completion((1,), None, "stop", 1, 1)

        def replicas(self, launch: Launch) -> int:
            return int(launch.engine_args.get("copies", 1))

        def window(self, launch: Launch) -> int:
            return 4

        def read_load(self, content: str) -> EngineLoad | None:
            return EngineLoad(**json.loads(content))

    return Toy()


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        answers = {
            "/health": {},
            "/model": options,
            "/load": {"running": 2, "waiting": 1},
        }
        body = json.dumps(answers.get(self.path)).encode()
        self.send_response(200 if self.path in answers else 404)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """No line per request."""


if __name__ == "__main__":
    options = json.loads(sys.argv[1])
    print("loading", options["model"], flush=True)
    if options.get("mode") == "dies":
        raise MemoryError("no room for the weights")
    time.sleep(options.get("seconds", 0))
    ThreadingHTTPServer((sys.argv[2], int(sys.argv[3])), Handler).serve_forever()
