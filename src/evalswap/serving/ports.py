"""Addresses and ports of servers on this machine."""

from __future__ import annotations

import errno
import socket

from evalswap.errors import EngineError

_taken: set[int] = set()  # ports that servers of this process have; two could else draw the same one


def address(host: str, port: int) -> str:
    """Return the URL under which this machine reaches a server that listens on ``host``."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def take_port(host: str, wanted: int | None = None) -> int:
    """Return a port that nobody listens on. Raises EngineError if the wanted one is taken, or the host none."""
    while True:
        try:
            family, kind, _, _, place = socket.getaddrinfo(host, wanted or 0, type=socket.SOCK_STREAM)[0]
            with socket.socket(family, kind) as probe:
                if wanted:  # connections of an earlier server may linger on it
                    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(place)
                port = int(probe.getsockname()[1])
        except OSError as error:
            if wanted and error.errno == errno.EADDRINUSE:
                hint = "choose another one, or leave --port out and a free one is taken"
                raise EngineError(f"port {wanted} is in use", hint) from error
            hint = "give --host an address of this machine"
            raise EngineError(f"cannot listen on {host}:{wanted or ''}: {error.strerror or error}", hint) from error
        if wanted or port not in _taken:
            _taken.add(port)
            return port


def give_back_port(port: int) -> None:
    """Say that a port which was taken here is free again."""
    _taken.discard(port)
