"""Which process is which: what proves that a server is the one that it is said to be.

Linux tells in /proc; elsewhere ``ps`` and ``lsof`` are asked.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
from pathlib import Path

_LISTEN = "0A"  # the state in /proc/net/tcp: TCP_LISTEN in the kernel's include/net/tcp_states.h
_ASK_SECONDS = 5.0


def started(pid: int) -> str | None:
    """Return when a living process started, in the system's own words; None if there is none (or a zombie).

    A process id is given again after a while; id and start together are not.
    """
    if sys.platform != "linux":
        state, _, start = _ask("ps", "-o", "stat=,lstart=", "-p", str(pid)).partition(" ")
        return None if state[:1] in ("", "Z") else start.strip()
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return None
    # The name, in parentheses, may hold anything. Fields 3 (state) and 22 (start, in ticks since boot): proc(5).
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] in "ZX" else fields[19]


def arguments(pid: int) -> list[str]:
    """Return the words of a process's command line; [] if it cannot be read."""
    if sys.platform != "linux":
        return _ask("ps", "-ww", "-o", "args=", "-p", str(pid)).split()
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return []


def listening_only(port: int, pids: list[int]) -> bool:
    """Tell whether these processes, and no others, listen on a TCP port of this machine."""
    if sys.platform != "linux":
        lines = _ask("lsof", "-nP", f"-iTCP:{port}", "-sTCP:LISTEN", "-t").split()
        return bool(lines) and {int(line) for line in lines} <= set(pids)
    sockets = {f"socket:[{inode}]" for inode in _listening_sockets(port)}
    held: set[str] = set()
    for pid in pids:
        with contextlib.suppress(OSError):  # gone, or another user's
            for entry in Path(f"/proc/{pid}/fd").iterdir():
                with contextlib.suppress(OSError):  # closed since the listing
                    held.add(str(entry.readlink()))
    return bool(sockets) and sockets <= held


def _listening_sockets(port: int) -> list[str]:
    """Return the inodes of the sockets that listen on a port, on whatever address (Linux)."""
    inodes = []
    for table in ("/proc/self/net/tcp", "/proc/self/net/tcp6"):
        with contextlib.suppress(OSError):
            for line in Path(table).read_text().splitlines()[1:]:
                fields = line.split()
                if fields[3] == _LISTEN and int(fields[1].rpartition(":")[2], 16) == port:
                    inodes.append(fields[9])
    return inodes


def _ask(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=_ASK_SECONDS).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""
