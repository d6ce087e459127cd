"""An engine that dies, hangs or falls ill on demand, as a real process of another package.

It answers each row with the ids that ``$FRAIL/answers.json`` has for it, and writes down what happens in that folder.
``$FRAIL/orders.json`` says how it misbehaves; what it did before it was started again still counts.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

PACKAGE = "frail-engine"
WINDOW = 16
NEVER = 10**9


def install(site: Path) -> None:
    """Make this file an installed package with an entry point, for processes that have ``site`` in PYTHONPATH."""
    info = site / "frail_engine-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {PACKAGE}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[evalswap.engines]\nfrail = frail_engine:frail\n")
    (site / "frail_engine.py").write_bytes(Path(__file__).read_bytes())


def frail() -> Any:
    """Return the engine (its class is made here, so that its server needs nothing of evalswap)."""
    from evalswap.engines.base import EngineLoad, HttpCall, Launch, ManagedEngine, Native
    from evalswap.engines.vllm import Vllm
    from evalswap.records import Completion, Request

    class Frail(ManagedEngine):
        name = "frail"
        distributions = (PACKAGE,)
        load_path = "/load"
        flag_names: ClassVar[Any] = {"dtype": "dtype", "max_seq_len": "length", "num_gpus": "gpus"}
        sampling: ClassVar[Any] = {field: Native(field) for field in Vllm.sampling}

        def command(self, launch: Launch, python: Path, port: int) -> list[str]:
            return [str(python), "-S", __file__, "127.0.0.1", str(port)]

        def environment(self, launch: Launch) -> dict[str, str]:
            return {}

        def call(self, request: Request) -> HttpCall:
            return HttpCall("/generate", {"row": request.row})

        def read(self, answer: Any, request: Request) -> Completion:
            return Completion(tuple(answer["ids"]), None, "stop", 3, len(answer["ids"]))

        def window(self, launch: Launch) -> int:
            return WINDOW

        def read_load(self, content: str) -> EngineLoad | None:
            return EngineLoad(**json.loads(content))

    return Frail()


class Body:
    """What the server remembers, in files that outlive it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.answers = json.loads((folder / "answers.json").read_text())
        self.orders = json.loads((folder / "orders.json").read_text())
        self.lock = threading.Lock()
        self.begun = time.monotonic()
        self.note("starts", os.getpid())
        self.deaths = len(self.notes("deaths"))

    def note(self, name: str, what: object) -> None:
        with (self.folder / name).open("a") as file:
            file.write(f"{what}\n")

    def notes(self, name: str) -> list[str]:
        file = self.folder / name
        return file.read_text().split() if file.is_file() else []

    def generate(self, row: int, reply: Callable[[list[int]], None]) -> None:
        orders = self.orders
        self.note("asked", row)
        if row in orders.get("poison", []):
            self.die(f"row {row} is poison")
        time.sleep(orders.get("latency", 0.0))
        with self.lock:
            done = len(self.notes("answered"))
            may_fail = self.deaths < orders.get("deaths", NEVER)
            if may_fail and done >= orders.get("die_after", NEVER):
                self.die("RuntimeError: the kernel fell over")
            hangs = may_fail and done >= orders.get("hang_after", NEVER)
            if not hangs:
                reply(self.answers[row])
                self.note("answered", row)
            elif len(self.notes("deaths")) == self.deaths:
                self.note("deaths", "hung")
        if hangs:
            time.sleep(3600)

    @property
    def ill(self) -> bool:
        first = not self.deaths and len(self.notes("starts")) == 1
        return first and len(self.notes("answered")) >= self.orders.get("ill_after", NEVER)

    def die(self, cause: str) -> None:
        self.note("deaths", "died")
        print(cause, flush=True)
        os._exit(7)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        if self.path == "/health":
            self.reply({}, 500 if body.ill else 200)
        elif self.path == "/load":
            # Tokens come all the time, unless it hangs: its cache fills.
            filled = time.monotonic() - body.begun if body.orders.get("progress") else 0.0
            self.reply({"running": 1, "waiting": 0, "cache_used": filled}, 200)

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if asked["row"] in body.orders.get("fails", []):
            self.reply({"error": "no kernel for this row"}, 500)
            return
        if body.orders.get("ill_fails") and body.ill:
            self.reply({"error": "EngineCore is dead"}, 500)
            return
        body.generate(asked["row"], lambda ids: self.reply({"ids": ids}, 200))

    def reply(self, answer: Any, status: int) -> None:
        data = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        """No line per request."""


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128


if __name__ == "__main__":
    body = Body(Path(os.environ["FRAIL"]))
    Server((sys.argv[1], int(sys.argv[2])), Handler).serve_forever()
