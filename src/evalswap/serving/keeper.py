"""The process between evalswap and an engine: it lets nothing of the engine outlive evalswap.

Run as ``python keeper.py PARENT_PID GRACE LABEL COMMAND...`` in a session of its own. It starts the command, passes
its exit code on (128 + N for signal N, as shells do) and ends every process that the command has left behind.
It does so when the command ends, when it is told to stop (SIGTERM), and when its parent is gone, however that
died: ``kill -9`` runs no cleanup in the victim, so the cleanup has to live in another process. The label is for
others, who read on the command line of the process what it keeps.

It is a script of the standard library alone, so that it starts in milliseconds and runs in any Python.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

# Seconds between SIGTERM and SIGKILL once nobody waits for the engine any more. vLLM takes one to give back its
# shared memory, which would else stay until the next boot.
ORPHAN_GRACE = 2.0
_TICK = 0.1  # seconds between two looks; also the delay with which a dead parent or engine is noticed
_PR_SET_CHILD_SUBREAPER = 36


def family(leader: int) -> list[int]:
    """Return the living processes that belong to a session leader, without itself.

    These are the members of its session and process group and all their descendants, so a process is found
    even if it made a session of its own or its parent has died. Zombies do not count as living.
    """
    table = processes()
    members = {pid for pid, (_, group, session) in table.items() if leader in (group, session)} | {leader}
    grown = True
    while grown:
        children = {pid for pid, (parent, _, _) in table.items() if parent in members}
        grown = not children <= members
        members |= children
    return [pid for pid in members if pid != leader and pid in table]


def send(pids: list[int], signal_number: int) -> None:
    """Send a signal to processes, some of which may be gone already."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal_number)


def processes() -> dict[int, tuple[int, int, int]]:
    """Return {pid: (parent, process group, session)} of all processes but zombies."""
    table = {}
    if sys.platform == "linux":
        for entry in os.scandir("/proc"):
            if not entry.name.isdigit():
                continue
            try:
                stat = Path(entry.path, "stat").read_text(errors="replace")
            except OSError:
                continue  # gone since the listing
            # The name, in parentheses, may hold anything; the fields after the last one are plain.
            state, parent, group, session = stat.rpartition(")")[2].split()[:4]
            if state not in "ZX":
                table[int(entry.name)] = (int(parent), int(group), int(session))
    else:
        listing = subprocess.run(["ps", "-axo", "pid=,ppid=,pgid=,stat="], capture_output=True, text=True)
        for line in listing.stdout.splitlines():
            pid, parent, group, state = line.split()[:4]
            if not state.startswith("Z"):
                table[int(pid)] = (int(parent), int(group), int(group))
    return table


def _adopt_orphans() -> None:
    """Make processes whose parent dies children of this one (Linux), so that none leaves the family tree."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _reap(engine: int) -> int | None:
    """Collect dead children; return the engine's exit code if it is among them."""
    code = None
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return code
        if pid == 0:
            return code
        if pid == engine:
            code = os.waitstatus_to_exitcode(status)


def _end_family(grace: float, parent: int) -> None:
    """SIGTERM to all, SIGKILL to those left after the grace, until none is left."""
    me = os.getpid()
    send(family(me), signal.SIGTERM)
    started = time.monotonic()
    while left := family(me):
        allowed = grace if os.getppid() == parent else min(grace, ORPHAN_GRACE)
        if time.monotonic() - started >= allowed:
            send(left, signal.SIGKILL)
        time.sleep(_TICK / 2)
        _reap(0)


def main(arguments: list[str]) -> int:
    parent, grace, command = int(arguments[0]), float(arguments[1]), arguments[3:]
    stopping = False

    def stop(*_: object) -> None:
        nonlocal stopping
        stopping = True

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, stop)
    _adopt_orphans()
    try:
        # Python ignores these two for itself, and what is ignored would stay so in the engine.
        engine = os.posix_spawnp(command[0], command, os.environ, setsigdef=(signal.SIGPIPE, signal.SIGXFSZ))
    except OSError as error:
        print(f"{command[0]}: {error.strerror}", file=sys.stderr)
        return 127
    code = None
    # The parent's id is compared with the one given, for it may have died before this line is reached.
    while (code := _reap(engine)) is None and not stopping and os.getppid() == parent:
        time.sleep(_TICK)
    _end_family(grace if stopping else ORPHAN_GRACE, parent)
    if code is None:
        return 128 + signal.SIGTERM
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
