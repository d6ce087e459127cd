"""An aiohttp application on a free loopback port, in a thread of its own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from aiohttp import web


@contextmanager
def served(app: web.Application) -> Iterator[str]:
    """Serve an application, and yield its address; requests that are open at the end are dropped."""
    loop, up = asyncio.new_event_loop(), threading.Event()
    done = loop.create_future()
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)

    async def serve() -> None:
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0, backlog=1024).start()
        up.set()
        await done
        await runner.cleanup()
        left = asyncio.all_tasks() - {asyncio.current_task()}  # whom nobody waits for any more
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)

    def run() -> None:
        loop.run_until_complete(serve())
        loop.close()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    if not up.wait(10):
        raise RuntimeError("the server did not start")
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        loop.call_soon_threadsafe(done.set_result, None)
        thread.join(10)
