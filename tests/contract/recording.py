"""Recordings of engines: the file's format, and the proxy between evalswap and an engine that makes one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web

FOLDER = Path(__file__).with_name("recordings")


@dataclass(frozen=True, slots=True)
class Exchange:
    """One request to an engine and its answer. Bodies are JSON where they are JSON, else text."""

    method: str
    path: str  # with the query
    body: Any  # None for a GET
    status: int
    answer: Any

    @property
    def question(self) -> str:
        """What the answer is looked up by: whatever order the fields of the body come in."""
        return f"{self.method} {self.path} {json.dumps(self.body, sort_keys=True)}"


@dataclass(frozen=True, slots=True)
class Recording:
    """``facts`` say who answered: engine, engine_args, version, dtype, device, date, model, …"""

    facts: Mapping[str, Any]
    exchanges: tuple[Exchange, ...]

    @classmethod
    def load(cls, file: Path) -> Recording:
        data = json.loads(file.read_text(encoding="utf-8"))
        fields = ("method", "path", "body", "status", "answer")
        exchanges = tuple(Exchange(*(entry[name] for name in fields)) for entry in data["exchanges"])
        return cls(data["facts"], exchanges)

    def save(self, file: Path, scrub: Mapping[str, str]) -> None:
        """Write the file, an exchange a line. ``scrub`` maps texts of this machine to what is written for them.

        Equal questions stand together, so that those asked at once have the same order each time.
        """
        first_seen = {exchange.question: place for place, exchange in reversed([*enumerate(self.exchanges)])}
        ordered = sorted(self.exchanges, key=lambda exchange: first_seen[exchange.question])
        lines = [json.dumps({name: getattr(e, name) for name in Exchange.__slots__}) for e in ordered]
        facts = json.dumps(dict(self.facts), indent=1)
        text = f'{{"facts": {facts},\n"exchanges": [\n' + ",\n".join(lines) + "\n]}\n"
        for found, written in scrub.items():
            text = text.replace(json.dumps(found)[1:-1], written)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")


class RecordingProxy:
    """A server in front of an engine that passes everything on and remembers it. An async context manager."""

    def __init__(self, engine_url: str) -> None:
        self.exchanges: list[Exchange] = []
        self.url = ""
        self._engine_url = engine_url
        app = web.Application(client_max_size=1 << 26)
        app.router.add_route("*", "/{path:.*}", self._pass_on)
        self._runner = web.AppRunner(app)
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> RecordingProxy:
        self._session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=None))
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        host, port = self._runner.addresses[0][:2]
        self.url = f"http://{host}:{port}"
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._runner.cleanup()
        if self._session is not None:
            await self._session.close()

    async def _pass_on(self, request: web.Request) -> web.Response:
        assert self._session is not None
        sent = await request.read()
        place = len(self.exchanges)  # in the order of asking, not of answering
        self.exchanges.append(Exchange(request.method, request.path_qs, as_data(sent), 0, None))
        headers = {"Content-Type": request.content_type} if sent else {}
        url = self._engine_url + request.path_qs
        async with self._session.request(request.method, url, data=sent or None, headers=headers) as answer:
            content = await answer.read()
        self.exchanges[place] = Exchange(
            request.method, request.path_qs, as_data(sent), answer.status, as_data(content)
        )
        return web.Response(status=answer.status, body=content, content_type=answer.content_type)


def as_data(content: bytes) -> Any:
    """Return a body as JSON if it is JSON, else as text; None for an empty one."""
    try:
        return json.loads(content)
    except ValueError:
        return content.decode(errors="replace") or None
