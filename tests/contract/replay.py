"""An engine out of a recording: what was recorded is answered again, and nothing else is.

Run as a server by ``python replay.py RECORDING --port PORT``.
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from pathlib import Path

from aiohttp import web

sys.path.insert(0, str(Path(__file__).parent))  # evalswap starts servers with PYTHONSAFEPATH

from recording import Exchange, Recording, as_data

NOT_RECORDED = "is not in the recording"


class Replay:
    """Answers recorded questions, one asked several times in the order of its answers; the last is kept."""

    def __init__(self, file: Path) -> None:
        self.recording = Recording.load(file)
        self._file = file
        self._answers: dict[str, list[Exchange]] = defaultdict(list)
        for exchange in self.recording.exchanges:
            self._answers[exchange.question].append(exchange)

    async def answer(self, request: web.Request) -> web.Response:
        asked = Exchange(request.method, request.path_qs, as_data(await request.read()), 0, None)
        if asked.path.startswith("/health"):
            return web.Response()
        recorded = self._answers.get(asked.question)
        if not recorded:
            return web.json_response({"error": {"message": self._not_recorded(asked)}}, status=404)
        found = recorded.pop(0) if len(recorded) > 1 else recorded[0]
        if isinstance(found.answer, str):
            return web.Response(status=found.status, text=found.answer)
        return web.json_response(found.answer, status=found.status)

    def _not_recorded(self, asked: Exchange) -> str:
        facts = self.recording.facts
        arguments = "".join(f" {key}={value}" for key, value in facts["engine_args"].items())
        again = f"python scripts/record_engine.py {facts['engine']} --model MODEL --out {self._file.name}"
        return (
            f"{asked.method} {asked.path} {NOT_RECORDED} {self._file.name} of {facts['engine']} {facts['version']}; "
            "if requests were changed on purpose, record again where the engine runs: "
            f"{again}{' --engine-args' + arguments if arguments else ''} (asked: {str(asked.body)[-160:]})"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("recording", type=Path)
    parser.add_argument("--port", type=int, required=True)
    args = parser.parse_args()
    app = web.Application(client_max_size=1 << 26)
    app.router.add_route("*", "/{path:.*}", Replay(args.recording).answer)
    web.run_app(app, host="127.0.0.1", port=args.port, print=None)


if __name__ == "__main__":
    main()
