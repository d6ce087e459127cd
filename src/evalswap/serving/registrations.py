"""What is being served: one small file for each ``evalswap serve``, in evalswap's data folder.

A file is only a claim. Readers drop what is torn, strange or another user's, forget what is no longer there,
and leave it to :mod:`evalswap.serving.warm` to prove that a claim is true before anything is asked.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
import platform
import re
import stat
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from evalswap.data_folder import data_folder
from evalswap.errors import EngineError
from evalswap.serving import processes
from evalswap.serving.ports import address

LARGEST = 64 * 1024  # bytes of a file that is worth reading
_KINDS: Mapping[str, type | tuple[type, ...]] = {
    "str": str,
    "int": int,
    "float": (int, float),
    "bool": bool,
    "Mapping[str, Any]": dict,
}


@dataclass(frozen=True, slots=True)
class Registration:
    """One ``evalswap serve``. Until it is ``ready``, keeper and port are 0."""

    name: str  # what ``--stop`` takes
    engine: str
    version: str
    model: str  # as the config named it
    device: str
    identity: str  # hash of all that must be equal, see warm.fingerprint
    facts: Mapping[str, Any]  # what decides the answers, without secrets
    context_len: int  # tokens of the longest prompt and answer together
    machine: str
    pid: int  # of evalswap serve
    started: str  # when that process started, in the system's words
    since: float  # seconds since the epoch
    evalswap: str  # its version
    log: str
    host: str
    port: int = 0
    keeper: int = 0  # the process above the engine
    ready: bool = False
    tokenizers: str = ""  # the socket of the process that keeps tokenizers, if there is one

    @property
    def url(self) -> str:
        return address(self.host, self.port)

    @property
    def running(self) -> bool:
        """Whether the process that registered is still there."""
        return processes.started(self.pid) == self.started

    @property
    def since_text(self) -> str:
        moment = datetime.fromtimestamp(self.since)
        return f"{moment:%H:%M}" if moment.date() == datetime.now().date() else f"{moment:%Y-%m-%d %H:%M}"


def servers_folder() -> Path:
    """Return where the files are, and the logs of what is served."""
    return data_folder() / "servers"


def this_machine() -> str:
    """Name this machine and what its process ids count for: a data folder may be shared by several.

    "NODE BOOT NAMESPACE": a container has process ids of its own, and a reboot begins them anew.
    """
    boot, namespace = "-", "-"
    with contextlib.suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        namespace = str(Path("/proc/self/ns/pid").readlink())
    return f"{platform.node() or '-'} {boot} {namespace}"


def registrations() -> list[Registration]:
    """Return what is served on this machine, and remove the files of what is not any more.

    Raises EngineError if the folder cannot be read.
    """
    here = this_machine()
    try:
        files = sorted(servers_folder().glob("*.json"))
    except OSError as error:
        raise EngineError(f"{servers_folder()}: cannot be read: {error.strerror}", _WHERE) from error
    living = []
    for file in files:
        entry = _read(file)
        if entry is None or _elsewhere(entry.machine, here):
            continue
        if entry.machine == here and entry.running:
            living.append(entry)
        else:
            with contextlib.suppress(OSError):
                file.unlink()
    return living


def register(new: Registration, same: Callable[[Registration], bool]) -> Registration:
    """Enter what is about to be served, and return its registration with its final name and log.

    If what is served already is the ``same``, nothing is entered and that registration is returned: its
    ``pid`` is not the caller's. Raises EngineError if the folder cannot be written.
    """
    with _locked():
        for entry in registrations():
            if same(entry):
                return entry
        name, number = _plain(new.name), 1
        while (servers_folder() / f"{name}.json").exists():
            number += 1
            name = f"{_plain(new.name)}-{number}"
        entered = dataclasses.replace(new, name=name, log=str(servers_folder() / f"{name}.log"))
        update(entered)
        return entered


def update(entry: Registration) -> None:
    """Write a registration, whole or not at all, for its owner's eyes only. Raises EngineError."""
    file = servers_folder() / f"{entry.name}.json"
    partial = file.with_name(f".{entry.name}.{os.getpid()}")
    try:
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
            json.dump(dataclasses.asdict(entry), stream, indent=1, default=str)
        partial.replace(file)
    except OSError as error:
        raise EngineError(f"{file}: cannot be written: {error.strerror}", _WHERE) from error


def unregister(entry: Registration) -> None:
    """Remove a registration; one that is gone already, or somebody else's by now, is left."""
    file = servers_folder() / f"{entry.name}.json"
    known = _read(file)
    if known is not None and (known.pid, known.started) == (entry.pid, entry.started):
        with contextlib.suppress(OSError):
            file.unlink()


def reread(entry: Registration) -> Registration | None:
    """Return a registration as it is now; None if it is gone."""
    known = _read(servers_folder() / f"{entry.name}.json")
    same = known is not None and (known.pid, known.started) == (entry.pid, entry.started)
    return known if same else None


_WHERE = "set EVALSWAP_HOME to a folder of yours that can be written"


def _read(file: Path) -> Registration | None:
    """Return what a file says; None for one that evalswap of this user did not write, whole."""
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        with os.fdopen(descriptor, "rb") as stream:
            state = os.fstat(stream.fileno())
            foreign = state.st_uid != os.geteuid() or state.st_mode & 0o022
            if not stat.S_ISREG(state.st_mode) or foreign or state.st_size > LARGEST:
                return None
            said = json.loads(stream.read(LARGEST))
        values: dict[str, Any] = {}
        for field in dataclasses.fields(Registration):
            # A server of an earlier evalswap may lack what has a default.
            lacks = field.name not in said and field.default is not dataclasses.MISSING
            values[field.name] = field.default if lacks else said[field.name]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    for field in dataclasses.fields(Registration):
        value = values[field.name]
        if not isinstance(value, _KINDS[str(field.type)]) or (isinstance(value, bool) and field.type != "bool"):
            return None
        if isinstance(value, str) and not value.isprintable():
            return None
    entry = Registration(**values)
    return entry if entry.name == file.stem and 0 <= entry.port < 65536 and 0 < entry.pid < 2**31 else None


def _elsewhere(machine: str, here: str) -> bool:
    """Tell whether a registration is another machine's or container's: not to be judged from here."""
    its, ours = machine.split(" "), here.split(" ")
    return len(its) != 3 or (its[0], its[2]) != (ours[0], ours[2])


def _plain(name: str) -> str:
    return re.sub(r"[^\w.+-]", "_", name).lstrip(".") or "server"


@contextlib.contextmanager
def _locked() -> Iterator[None]:
    """Let one process at a time look whether something is served and enter itself."""
    folder = servers_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with (folder / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
    except OSError as error:
        raise EngineError(f"{folder}: cannot be written: {error.strerror}", _WHERE) from error
