"""How many files this process may have open: each request in flight needs a connection, and each connection a file."""

from __future__ import annotations

import contextlib
import resource

WANTED = 65_536
SPARE = 256  # for all that is no connection


def allow_many() -> None:
    """Raise this process's own limit, often 1,024, as far as the system lets it; engines inherit it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = WANTED if hard == resource.RLIM_INFINITY else min(hard, WANTED)
    if soft != resource.RLIM_INFINITY and soft < most:
        with contextlib.suppress(ValueError, OSError):  # systems have limits of their own beside it
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def room_for_connections() -> int | None:
    """Return how many connections may be open; None if there is no limit."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return None if soft == resource.RLIM_INFINITY else max(16, soft - SPARE)
