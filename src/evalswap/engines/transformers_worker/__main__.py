"""Serve a model with Hugging Face transformers over HTTP: token ids in, token ids out.

Any interpreter that has torch and transformers can run this folder; it needs nothing else of evalswap:

    python path/to/transformers_worker --model PATH --port 8000

This file is the process: command line, HTTP, life and death. ``batching.py`` is the model. The port opens
first, then the model loads in the main thread, and ``GET /health`` answers 503 until it is there.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import socketserver
import sys
import threading
import time
import traceback
from concurrent.futures import wait
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from evalswap.engines.transformers_worker.batching import Batcher, Job


def log(message: str) -> None:
    print(f"transformers worker: {message}", file=sys.stderr, flush=True)


class Server(ThreadingHTTPServer):
    """One thread per connection; ``batcher`` is None while the model loads."""

    request_queue_size = 1024
    batcher: Batcher | None = None

    def server_bind(self) -> None:
        """Bind without HTTPServer's reverse look-up of the host, which can take seconds."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = self.server_address[:2]  # type: ignore[assignment]

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exc_info()[1], ConnectionError):  # a client that left is no news
            traceback.print_exc()


class Handler(BaseHTTPRequestHandler):
    """JSON in and out, over connections that stay open."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1  # headers and body leave in one packet
    server: Server

    def do_GET(self) -> None:
        batcher = self.server.batcher
        if self.path not in ("/health", "/info"):
            self.reply(404, {"error": f"nothing at {self.path}"})
        elif batcher is None:
            self.reply(503, {"status": "loading"})
        elif self.path == "/health":
            self.reply(200, {"status": "ok"})
        else:
            self.reply(200, {**batcher.model.info, "batch_size": batcher.batch_size})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        batcher = self.server.batcher
        if self.path not in ("/generate", "/logprobs"):
            return self.reply(404, {"error": f"nothing at {self.path}"})
        if batcher is None:
            return self.reply(503, {"status": "loading"})
        try:
            job = batcher.model.job(self.path, json.loads(body))
        except ValueError as error:
            return self.reply(400, {"error": str(error)})
        batcher.submit(job)
        return self.follow(job)

    def follow(self, job: Job) -> None:
        """Reply when the job is done; take it back if the client leaves while it is queued."""
        while not wait([job.answer], timeout=1.0).done:
            if self.client_left():
                job.answer.cancel()
        if job.answer.cancelled():
            self.close_connection = True
        elif error := job.answer.exception():
            self.reply(500, {"error": f"{type(error).__name__}: {error}"})
        else:
            self.reply(200, job.answer.result())

    def client_left(self) -> bool:
        try:
            return not self.connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        except OSError:
            return True

    def reply(self, status: int, payload: dict[str, Any]) -> None:
        body = json.dumps(payload).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """No line per request."""


def leave_with_parent() -> None:
    """Never outlive the process that started this one, however it ended."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="transformers_worker", description=__doc__.split("\n", 1)[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--dtype", default="auto", choices=["auto", "float32", "float16", "bfloat16"])
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    parser.add_argument("--trust-remote-code", action="store_true")
    parser.add_argument("--peft-path")
    parser.add_argument("--model-kwargs", type=json.loads, default={}, metavar="JSON")
    parser.add_argument("--pad-token-id", type=int)
    args = parser.parse_args()
    if args.batch_size < 1:
        parser.error("--batch-size must be at least 1")
    if not isinstance(args.model_kwargs, dict):
        parser.error("--model-kwargs must be a JSON object")
    return args


def main() -> None:
    args = arguments()
    for stop in (signal.SIGTERM, signal.SIGINT):
        signal.signal(stop, signal.SIG_DFL)  # nothing to save: die at once, even inside a forward pass
    leave_with_parent()
    try:
        server = Server((args.host, args.port), Handler)
    except OSError as error:
        log(f"cannot listen on {args.host}:{args.port}: {error}")
        sys.exit(1)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    started = time.perf_counter()
    try:
        from batching import Batcher, Model  # type: ignore[import-not-found]  # torch: only now, and it takes time

        chosen = {name: value for name, value in vars(args).items() if name not in ("host", "port", "batch_size")}
        batcher = Batcher(Model(**chosen), args.batch_size)
    except Exception as error:
        log(f"could not load {args.model}: {type(error).__name__}: {' '.join(str(error).split())}")
        traceback.print_exc()
        sys.exit(1)
    server.batcher = batcher
    log(f"loaded {args.model} in {time.perf_counter() - started:.1f} s, serving at {server.server_address}")
    batcher.run()


if __name__ == "__main__":
    main()
