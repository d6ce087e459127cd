"""Managed servers, on real processes: whatever happens, it is told why, and nothing of the engine is left."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import aiohttp
import pytest

from evalswap.errors import EngineError
from evalswap.serving import keeper, processes
from evalswap.serving.logs import last_line, meaningful_lines
from evalswap.serving.ports import address, take_port
from evalswap.serving.server import ManagedServer

FAKE_ENGINE = """
import http.server, os, pathlib, signal, subprocess, sys, time

port, mode = int(sys.argv[1]), sys.argv[2]
here = pathlib.Path(__file__).parent
print("loading weights", os.environ.get("WEIGHTS"), flush=True)
if mode == "dies":
    print("\\x1b[31m(EngineCore pid=7) ERROR 11-22 16:00:00 [core.py:9] \\x1b[0msk-secret was here")
    raise MemoryError("no room for the weights")
if mode == "kills itself":
    print("RuntimeError: rmsnorm failed to dispatch data type Float", flush=True)
if mode in ("killed", "kills itself"):
    os.kill(os.getpid(), signal.SIGKILL)
part = 0
while mode == "talks":
    part += 1
    print(f"\\rsk-secret: loading {part}%|██", end="", file=sys.stderr, flush=True)
    time.sleep(0.05)
if mode == "stubborn":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
sleep = [sys.executable, "-S", "-c", "import signal, time; signal.signal(15, 1); time.sleep(600)"]
family = [subprocess.Popen(sleep), subprocess.Popen(sleep, start_new_session=True)]
# One whose parent is gone and that left the session, too: reachable through no tree and no group.
lost = "import subprocess as s, sys; print(s.Popen(sys.argv[1:], start_new_session=True, stdout=2).pid)"
out = subprocess.run([sys.executable, "-S", "-c", lost, *sleep], stdout=subprocess.PIPE, text=True).stdout
pids = [os.getpid(), *(child.pid for child in family), int(out)]
(here / "pids.tmp").write_text(" ".join(map(str, pids)))
(here / "pids.tmp").rename(here / "pids")
if mode == "never":
    time.sleep(600)

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path == "/die":
            print("RuntimeError: CUDA error: an illegal memory access", flush=True)
            os._exit(3)
        self.send_response(200 if self.path == "/health" else 404)
        self.end_headers()

http.server.HTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""


@pytest.fixture
def fake(tmp_path: Path) -> Callable[..., ManagedServer]:
    script = tmp_path / "fake_engine.py"
    script.write_text(FAKE_ENGINE)

    def make(mode: str, **options: object) -> ManagedServer:
        settings: dict[str, object] = {
            "command": lambda port: [sys.executable, "-S", str(script), str(port), mode],
            "log_path": tmp_path / "logs" / "engine.log",
            "start_deadline": 20,
            "stop_grace": 0.5,
        }
        return ManagedServer("toy", **{**settings, **options})  # type: ignore[arg-type]

    return make


def family(tmp_path: Path) -> list[int]:
    """Return the fake engine's process, its two children and its lost grandchild, once they are there."""
    deadline = time.monotonic() + 10
    while not (tmp_path / "pids").exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return [int(pid) for pid in (tmp_path / "pids").read_text().split()]


def left_of(pids: list[int]) -> list[int]:
    running = keeper.processes()
    return [pid for pid in pids if pid in running]


async def get(url: str) -> int:
    async with aiohttp.ClientSession() as session, session.get(url) as response:
        return response.status


def run(scenario: Awaitable[None]) -> None:
    async def bounded() -> None:
        await asyncio.wait_for(scenario, 30)

    asyncio.run(bounded())


def test_serves_and_leaves_nothing(fake: Callable[..., ManagedServer], tmp_path: Path) -> None:
    async def scenario() -> None:
        server = fake("serves", env={"WEIGHTS": "here", "API_TOKEN": "sk-secret"})
        async with server:
            assert server.start_seconds is None
            await server.ready()
            assert server.start_seconds is not None
            assert 0 < server.start_seconds < 20
            assert await get(f"{server.url}/health") == 200
            pids = [server.pid, *family(tmp_path)]
            assert len(left_of(pids)) == 5
        assert not left_of(pids)
        assert not server.alive
        await server.stop()  # again

    run(scenario())
    header, first, *_ = (tmp_path / "logs" / "engine.log").read_text().splitlines()
    assert "WEIGHTS=here API_TOKEN=***" in header
    assert header.endswith(" serves")
    assert first == "loading weights here"


def test_stops_on_an_error_and_can_start_again(fake: Callable[..., ManagedServer], tmp_path: Path) -> None:
    async def scenario() -> None:
        server = fake("serves")
        with pytest.raises(ZeroDivisionError):
            async with server:
                await server.ready()
                pids = family(tmp_path)
                _ = 1 / 0
        assert not left_of(pids)
        await server.start()
        await server.ready()
        await server.stop()
        assert not server.alive

    run(scenario())


def test_tells_why_it_died_while_starting(fake: Callable[..., ManagedServer]) -> None:
    async def scenario() -> None:
        async with fake("dies", redact=lambda text: text.replace("sk-secret", "***")) as server:
            with pytest.raises(EngineError) as caught:
                await server.ready()
        assert caught.value.message.splitlines() == [
            "toy died while starting (exit code 1)",
            "  *** was here",
            "  MemoryError: no room for the weights",
        ]
        assert str(server.log_path) in (caught.value.hint or "")

    run(scenario())


def test_tells_what_helps(fake: Callable[..., ManagedServer]) -> None:
    def explain(log: str) -> str | None:
        return "give it more memory" if "no room for the weights" in log else None

    async def scenario(mode: str) -> str:
        async with fake(mode, explain=explain) as server:
            with pytest.raises(EngineError) as caught:
                await server.ready()
        return caught.value.hint or ""

    assert asyncio.run(scenario("dies")).startswith("give it more memory; the whole log: ")
    assert "give it" not in asyncio.run(scenario("killed"))


def test_listens_on_the_port_that_it_is_given(fake: Callable[..., ManagedServer], tmp_path: Path) -> None:
    async def scenario() -> None:
        port = take_port("127.0.0.1")
        async with fake("serves", port=port) as server:
            await server.ready()
            assert server.url == f"http://127.0.0.1:{port}"
            with pytest.raises(EngineError, match=f"port {port} is in use"):
                await fake("serves", port=port).start()
            assert left_of(family(tmp_path))
        async with fake("serves", port=port) as again:  # its last connections linger
            await again.ready()

    run(scenario())


def test_a_given_port_that_is_lost_meanwhile_is_an_error(fake: Callable[..., ManagedServer], tmp_path: Path) -> None:
    port = take_port("127.0.0.1")

    async def scenario(thief: socket.socket) -> None:
        def command(port: int) -> list[str]:
            thief.bind(("127.0.0.1", port))
            return [sys.executable, "-S", str(tmp_path / "fake_engine.py"), str(port), "serves"]

        async with fake("", command=command, port=port) as server:
            with pytest.raises(EngineError, match="Address already in use"):
                await server.ready()

    with socket.socket() as thief:
        run(scenario(thief))


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:80"),
        ("0.0.0.0", "http://127.0.0.1:80"),
        ("::", "http://[::1]:80"),
        ("::1", "http://[::1]:80"),
        ("node7", "http://node7:80"),
    ],
)
def test_the_address_that_reaches_a_server_from_here(host: str, url: str) -> None:
    assert address(host, 80) == url


@pytest.mark.parametrize("system", ["linux", "darwin"])
def test_a_process_is_known_by_its_start_its_words_and_its_port(system: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if system == "darwin" and not (shutil.which("ps") and shutil.which("lsof")):
        pytest.skip("ps and lsof are asked where there is no /proc")
    if sys.platform == "linux":
        monkeypatch.setattr(sys, "platform", system)
    me = os.getpid()
    child = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(60)", "a-word"])
    try:
        began = processes.started(child.pid)
        assert began is not None
        assert processes.started(child.pid) == began
        deadline = time.monotonic() + 10
        while "a-word" not in processes.arguments(child.pid):  # it has none for a moment while it is started
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert processes.started(me)
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            port = listener.getsockname()[1]
            assert not processes.listening_only(port, [me])  # bound, but nobody listens
            listener.listen()
            assert processes.listening_only(port, [child.pid, me])
            assert not processes.listening_only(port, [child.pid])
            assert not processes.listening_only(port, [])
        assert not processes.listening_only(port, [me])
    finally:
        child.kill()
    while processes.started(child.pid) is not None:  # a zombie is no living process
        time.sleep(0.01)
    assert child.wait() == -signal.SIGKILL
    assert processes.started(child.pid) is None
    assert processes.arguments(child.pid) in ([], [""])


def test_names_the_signal_that_killed_it(fake: Callable[..., ManagedServer]) -> None:
    async def scenario() -> None:
        async with fake("killed") as server:
            with pytest.raises(EngineError, match="killed by SIGKILL") as caught:
                await server.ready()
        assert "memory" in (caught.value.hint or "")

    run(scenario())


def test_one_that_names_an_error_and_kills_itself_does_not_want_memory(fake: Callable[..., ManagedServer]) -> None:
    async def scenario() -> None:
        async with fake("kills itself") as server:
            with pytest.raises(EngineError, match="failed to dispatch data type Float") as caught:
                await server.ready()
        assert "memory" not in (caught.value.hint or "")

    run(scenario())


def test_tells_of_a_command_that_is_not_there(fake: Callable[..., ManagedServer]) -> None:
    async def scenario() -> None:
        async with fake("", command=lambda port: ["/no/such/engine"]) as server:
            with pytest.raises(EngineError, match=r"exit code 127\)\n  /no/such/engine: No such file"):
                await server.ready()

    run(scenario())


def test_gives_up_at_the_deadline(fake: Callable[..., ManagedServer], tmp_path: Path) -> None:
    async def scenario() -> None:
        async with fake("never", start_deadline=0.5) as server:
            silent = r"toy was not ready after [\d.]+ s, and wrote nothing for the last 0\.\d+ s\n  loading weights"
            with pytest.raises(EngineError, match=silent):
                await server.ready()
            pids = family(tmp_path)
        assert not left_of(pids)

    run(scenario())


def test_a_long_start_may_go_on_while_it_says_so(fake: Callable[..., ManagedServer]) -> None:
    """A checkpoint of hundreds of GB on a slow disk; but not for ever."""
    told: list[str] = []

    async def scenario() -> None:
        redact = {"redact": lambda text: text.replace("sk-secret", "***")}
        async with fake("talks", start_deadline=1, tell_after=0.4, say=told.append, **redact) as server:
            with pytest.raises(EngineError, match=r"toy was not ready after [4-9]\.?\d* s\n"):
                await server.ready()

    run(scenario())
    assert 3 <= len(told) <= 4  # after 0.4 s, and each time after at least twice as long
    for line in told:
        assert re.fullmatch(r"toy is still starting after [0-5] s: \*\*\*: loading \d+%\|██", line)


def test_a_log_that_was_removed_is_missed_by_nobody(fake: Callable[..., ManagedServer], tmp_path: Path) -> None:
    async def scenario() -> None:
        async with fake("never", start_deadline=0.5) as server:
            family(tmp_path)
            shutil.rmtree(server.log_path.parent)
            with pytest.raises(EngineError, match=r"toy was not ready after [\d.]+ s, and wrote nothing"):
                await server.ready()

    run(scenario())


def test_notices_a_death_while_running(fake: Callable[..., ManagedServer], tmp_path: Path) -> None:
    async def scenario() -> None:
        async with fake("serves") as server:
            await server.ready()
            death = asyncio.create_task(server.wait_dead())
            await asyncio.sleep(0.2)
            assert not death.done()
            with pytest.raises(aiohttp.ClientError):
                await get(f"{server.url}/die")
            assert await asyncio.wait_for(death, 3) == 3
            assert not left_of(family(tmp_path))  # those it left behind are gone, too
            message = server.failure().message
        assert message.startswith("toy died while running (exit code 3)")
        assert message.endswith("RuntimeError: CUDA error: an illegal memory access")

    run(scenario())


def test_kills_one_that_ignores_sigterm(fake: Callable[..., ManagedServer], tmp_path: Path) -> None:
    async def scenario() -> None:
        async with fake("stubborn") as server:
            await server.ready()
            pids = family(tmp_path)
            began = time.monotonic()
        assert 0.4 < time.monotonic() - began < 5
        assert not left_of(pids)

    run(scenario())


def test_cleans_up_after_a_keeper_that_was_killed(fake: Callable[..., ManagedServer], tmp_path: Path) -> None:
    async def scenario() -> None:
        async with fake("serves") as server:
            await server.ready()
            pids = family(tmp_path)[:3]  # the lost one is beyond reach without its keeper
            os.kill(server.pid, signal.SIGKILL)
            await server.wait_dead()
        assert not left_of(pids)
        keeper.send(family(tmp_path), signal.SIGKILL)

    run(scenario())


def test_takes_another_port_if_its_own_is_taken(fake: Callable[..., ManagedServer], tmp_path: Path) -> None:
    ports: list[int] = []
    with socket.socket() as thief:

        def command(port: int) -> list[str]:
            if not ports:
                thief.bind(("127.0.0.1", port))
            ports.append(port)
            return [sys.executable, "-S", str(tmp_path / "fake_engine.py"), str(port), "serves"]

        async def scenario() -> None:
            async with fake("", command=command) as server:
                await server.ready()
                assert server.url.endswith(f":{ports[1]}")

        run(scenario())
    assert len(ports) == 2
    assert ports[0] != ports[1]


@pytest.mark.parametrize("end", ["kill -9", "Ctrl-C", "exit"])
def test_nothing_outlives_evalswap(fake: Callable[..., ManagedServer], tmp_path: Path, end: str) -> None:
    fake("")  # writes the script
    program = textwrap.dedent(f"""
        import asyncio, sys
        from pathlib import Path
        from evalswap.serving.server import ManagedServer

        async def main():
            here = Path({str(tmp_path)!r})
            command = [sys.executable, "-S", str(here / "fake_engine.py")]
            server = ManagedServer(
                "toy",
                lambda port: [*command, str(port), "stubborn"],
                log_path=here / "log",
                start_deadline=20,
                stop_grace=1,
            )
            await server.start()
            await server.ready()
            print(server.pid, flush=True)
            await asyncio.to_thread(sys.stdin.readline)

        asyncio.run(main())
    """)
    parent = subprocess.Popen(
        [sys.executable, "-c", program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert parent.stdin
    assert parent.stdout
    pids = [int(parent.stdout.readline()), *family(tmp_path)]
    assert len(left_of(pids)) == 5
    if end == "kill -9":
        parent.kill()
    elif end == "Ctrl-C":
        parent.send_signal(signal.SIGINT)
        parent.stdin.close()
    else:
        parent.stdin.close()
    parent.wait()
    parent.stdout.close()
    deadline = time.monotonic() + 3
    while left_of(pids) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not left_of(pids)


LOG = """\
# 2026-11-22 16:00:00 python -m engine
INFO 11-22 16:00:00 [api.py:3] Loading\x1b[0m
INFO 11-22 16:00:00 [api.py:3]   █▄█▀ █

Loading weights:  10%|#   | 1/9\rLoading weights: 100%|####| 9/9
/x/y.py:3: FutureWarning: `old` is deprecated
  warnings.warn(
INFO:     Waiting
"""
ERRORS = """\
(EngineCore pid=7) ERROR 11-22 16:00:01 [core.py:9] The engine met an error.
(EngineCore pid=7) ERROR 11-22 16:00:01 [core.py:9] Traceback (most recent call last):
(EngineCore pid=7) ERROR 11-22 16:00:01 [core.py:9]   File "core.py", line 9, in load
(EngineCore pid=7) ERROR 11-22 16:00:01 [core.py:9]     raise ValueError(reason)
(EngineCore pid=7) ERROR 11-22 16:00:01 [core.py:9] ValueError: too long
(EngineCore pid=7) ValueError: too long
(APIServer pid=6) INFO 11-22 16:00:01 [api.py:9] Shutting down
Traceback (most recent call last):
  File "api.py", line 9, in <module>
    wait()
    ^^^^^^
RuntimeError: the engine did not start
INFO:     Finished
"""


def test_meaningful_lines_of_a_log_without_an_error_are_its_last() -> None:
    assert meaningful_lines(LOG, 15) == ["Loading", "Waiting"]
    assert meaningful_lines(LOG, 1) == ["Waiting"]


def test_the_last_line_of_a_log() -> None:
    assert last_line("") == last_line("# 2026-11-23 10:00:00 vllm serve\n\n") == ""
    assert last_line("(EngineCore pid=7) INFO 11-22 16:00:00 [core.py:9] Loading\n\x1b[2K\n") == "Loading"
    assert last_line("Loading\n\rshards:   0%|   | 0/2\rshards:  50%|█  | 1/2") == "shards:  50%|█  | 1/2"


def test_meaningful_lines_keep_causes_and_drop_the_rest() -> None:
    expected = ["The engine met an error.", "ValueError: too long", "RuntimeError: the engine did not start"]
    assert meaningful_lines(LOG + ERRORS, 15) == expected
    many = "".join(f"Error: {number}\n" for number in range(100))
    assert meaningful_lines(many, 5) == ["Error: 0", "Error: 1", "…", "Error: 98", "Error: 99"]
