"""One HTTP client for all engines: POST JSON, get JSON, and say which errors are worth another try."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

import aiohttp

from evalswap.errors import EngineError
from evalswap.inference.faults import FinalError, TransientError, fault_of

__all__ = ["FinalError", "HttpClient", "TransientError"]

LOOPBACK_NAMES = frozenset({"127.0.0.1", "localhost", "::1", "0.0.0.0"})
CONNECTING = 30.0  # seconds


class HttpClient:
    """A pool of connections to one server."""

    def __init__(self, base_url: str, *, key: str | None = None, timeout: float, organization: str | None = None):
        self.base_url = base_url.rstrip("/")
        self.timeout = timeout  # seconds one request may take
        self.on_headers: Callable[[Mapping[str, str]], None] | None = (
            None  # told the headers of answers that carry limits
        )
        self._headers = {"Content-Type": "application/json"}
        if key:
            self._headers["Authorization"] = f"Bearer {key}"
        if organization:
            self._headers["OpenAI-Organization"] = organization
        # A proxy of the environment is for the world outside; it cannot reach this machine's loopback.
        self._loopback = urlsplit(self.base_url).hostname in LOOPBACK_NAMES
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> HttpClient:
        # No limit of connections here: the window bounds what is in flight. No cookies: nobody logs in.
        connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=60)
        self._session = aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=_timeout(self.timeout),
            headers=self._headers,
            trust_env=not self._loopback,
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._session is not None:
            await self._session.close()

    async def post(self, path: str, body: Mapping[str, Any], timeout: float | None = None) -> Any:
        """Return the answer's JSON, within ``timeout`` seconds if given. Raises TransientError or FinalError."""
        return _parsed(await self._send("POST", path, json.dumps(body).encode(), timeout))

    async def get(self, path: str, timeout: float | None = None) -> Any:
        """Return the answer's JSON, within ``timeout`` seconds if given. Raises TransientError or FinalError."""
        return _parsed(await self._send("GET", path, None, timeout))

    async def get_text(self, path: str, timeout: float | None = None) -> str:
        """Return the answer's body, within ``timeout`` seconds if given. Raises TransientError or FinalError."""
        return (await self._send("GET", path, None, timeout)).decode("utf-8", errors="replace")

    async def _send(self, method: str, path: str, data: bytes | None, timeout: float | None = None) -> bytes:
        if self._session is None:
            raise EngineError("the client is not open")
        options: dict[str, Any] = {} if timeout is None else {"timeout": _timeout(timeout)}
        try:
            async with self._session.request(method, self.base_url + path, data=data, **options) as answer:
                content = await answer.read()
        except aiohttp.InvalidURL as error:
            raise FinalError(f"not an address: {error}", refuses=True) from error
        except aiohttp.ClientConnectorCertificateError as error:
            raise FinalError(f"no trusted connection: {error}", refuses=True) from error
        except ValueError as error:  # a key with a line break, a key beside a password in the address
            raise FinalError(f"the request cannot be sent: {error}", refuses=True) from error
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            raise TransientError(f"{type(error).__name__}: {error}", kind="unsent") from error
        except asyncio.TimeoutError as error:
            raise TransientError(f"no answer within {timeout or self.timeout:g} s", kind="broken") from error
        except aiohttp.ClientError as error:
            raise TransientError(f"{type(error).__name__}: {error}", kind="broken") from error
        headers = answer.headers
        if self.on_headers is not None and (
            "x-ratelimit-remaining-requests" in headers or "x-ratelimit-remaining-tokens" in headers
        ):
            self.on_headers(headers)
        if answer.status != 200:
            raise fault_of(answer.status, headers, content)
        if answer.content_type == "text/event-stream":
            raise FinalError("the server streams its answer, though it was not asked to")
        return content


def _parsed(content: bytes) -> Any:
    try:
        return json.loads(content)
    except ValueError as error:
        raise TransientError(f"the answer is not JSON: {error}") from error


def _timeout(seconds: float) -> aiohttp.ClientTimeout:
    return aiohttp.ClientTimeout(total=seconds, sock_connect=min(CONNECTING, seconds))
