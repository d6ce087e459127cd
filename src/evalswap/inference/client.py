"""One HTTP client for all engines: POST JSON, get JSON, and say which errors are worth another try."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

import aiohttp

from evalswap.errors import EngineError, EvalswapError

LOOPBACK_NAMES = frozenset({"127.0.0.1", "localhost", "::1", "0.0.0.0"})
TRANSIENT_STATUS = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 520, 522, 524, 529})


class TransientError(EvalswapError):
    """The same request may succeed later. ``retry_after`` is the server's wish, in seconds."""

    def __init__(self, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class FinalError(EvalswapError):
    """The same request will never succeed."""

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


class HttpClient:
    """A pool of connections to one server."""

    def __init__(self, base_url: str, *, key: str | None = None, timeout: float, organization: str | None = None):
        self.base_url = base_url.rstrip("/")
        self._headers = {"Content-Type": "application/json"}
        if key:
            self._headers["Authorization"] = f"Bearer {key}"
        if organization:
            self._headers["OpenAI-Organization"] = organization
        self._timeout = aiohttp.ClientTimeout(total=timeout, sock_connect=min(30.0, timeout))
        # A proxy of the environment is for the world outside; it cannot reach this machine's loopback.
        self._loopback = urlsplit(self.base_url).hostname in LOOPBACK_NAMES
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> HttpClient:
        # No limit here: the window bounds what is in flight.
        connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=60)
        self._session = aiohttp.ClientSession(
            connector=connector, timeout=self._timeout, headers=self._headers, trust_env=not self._loopback
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._session is not None:
            await self._session.close()

    async def post(self, path: str, body: Mapping[str, Any]) -> Any:
        """Return the answer's JSON. Raises TransientError or FinalError."""
        return await self._send("POST", path, json.dumps(body).encode())

    async def get(self, path: str) -> Any:
        """Return the answer's JSON. Raises TransientError or FinalError."""
        return await self._send("GET", path, None)

    async def _send(self, method: str, path: str, data: bytes | None) -> Any:
        if self._session is None:
            raise EngineError("the client is not open")
        try:
            async with self._session.request(method, self.base_url + path, data=data) as answer:
                content = await answer.read()
                if answer.status == 200:
                    return json.loads(content)
                message = f"HTTP {answer.status}: {_reason(content)}"
                if answer.status in TRANSIENT_STATUS:
                    raise TransientError(message, _retry_after(answer.headers.get("Retry-After")))
                raise FinalError(message, answer.status)
        except asyncio.TimeoutError as error:
            raise TransientError(f"no answer within {self._timeout.total:g} s") from error
        except aiohttp.InvalidURL as error:
            raise FinalError(f"not an address: {error}") from error
        except aiohttp.ClientError as error:
            raise TransientError(f"{type(error).__name__}: {error}") from error
        except ValueError as error:
            raise TransientError(f"the answer is not JSON: {error}") from error


def _reason(content: bytes) -> str:
    text = content.decode("utf-8", errors="replace").strip()
    try:
        data = json.loads(text)
        inner = data.get("error", data) if isinstance(data, dict) else data
        text = str(inner.get("message") or inner) if isinstance(inner, dict) else str(inner)
    except ValueError:
        pass
    return " ".join(text.split())[:500] or "(no text)"


def _retry_after(value: str | None) -> float | None:
    try:
        return max(0.0, float(value)) if value else None
    except ValueError:
        return None  # an HTTP date; the backoff's own delay serves
