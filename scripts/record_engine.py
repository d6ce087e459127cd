"""Record what an engine answers to the requests of the contract tests, where the engine can run.

    python scripts/record_engine.py lmdeploy --model FOLDER --out tests/contract/recordings/lmdeploy-turbomind.json
    python scripts/record_engine.py lmdeploy --model FOLDER --out FILE --engine-args backend=pytorch

FOLDER is SmolLM2-135M-Instruct (scripts/make_demo_model.py). The engine is started as evalswap starts it, from the
interpreter that evalswap finds (``--engine-python``, ``EVALSWAP_<ENGINE>_PYTHON``, installed, or this one), unless
``--url`` names a server of it that runs already. tests/contract then replays the file on machines without the engine.
It needs evalswap and nothing of its development tools.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import sys
import tempfile
from collections.abc import AsyncIterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from evalswap.engines.registry import managed_engine_names
from evalswap.errors import EvalswapError
from evalswap.serving.launching import PreparedEngine

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "contract"))

from interview import Interview, interview, prepare
from recording import Recording, RecordingProxy


@contextlib.asynccontextmanager
async def address(prepared: PreparedEngine, url: str | None) -> AsyncIterator[str]:
    """Yield the engine's address: the given one, or that of a server started for this."""
    if url:
        yield url.rstrip("/")
        return
    log = Path(tempfile.mkdtemp(prefix="record-")) / f"{prepared.engine.name}.log"
    print(f"starting {prepared.identity} on {prepared.found.device} (log: {log}) …", flush=True)
    async with prepared.server(log, redact=str, say=print) as server:
        await server.ready()
        print(f"ready after {server.start_seconds:.0f} s", flush=True)
        yield server.url


async def record(prepared: PreparedEngine, url: str | None, out: Path) -> Interview:
    """Interview the engine through the proxy and write the recording."""
    async with address(prepared, url) as engine_url:
        async with RecordingProxy(engine_url) as proxy:
            result = await interview(prepared.engine, proxy.url)
        facts = prepared.facts()
        packages = {name: prepared.found.packages[name] for name in sorted(prepared.found.packages)}
        said: dict[str, Any] = {
            "engine": prepared.engine.name,
            "engine_args": facts["engine_args"],
            "version": facts["engine_version"],
            "packages": packages,
            "dtype": facts["dtype"],
            "device": facts["device"],
            "date": f"{datetime.now(timezone.utc):%Y-%m-%d}",
            "model": prepared.checkpoint.folder.name,
            "model_identity": facts["model"],
        }
        scrub = {str(prepared.checkpoint.folder): "MODEL", engine_url: "URL", str(Path.home()): "HOME"}
        Recording(said, tuple(proxy.exchanges)).save(out, scrub)
    return result


def engine_arguments(words: list[str]) -> dict[str, Any]:
    """Read K=V words; a value that is JSON is what it says, any other is text."""
    arguments: dict[str, Any] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals:
            sys.exit(f"record_engine: --engine-args {word}: write it as KEY=VALUE")
        try:
            arguments[key] = json.loads(value)
        except ValueError:
            arguments[key] = {"True": True, "False": False}.get(value, value)
    return arguments


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("engine", choices=managed_engine_names())
    parser.add_argument("--model", type=Path, required=True, help="the folder of SmolLM2-135M-Instruct")
    parser.add_argument("--out", type=Path, required=True, help="the file to write")
    parser.add_argument("--dtype", default="auto", help="default: the checkpoint's own")
    parser.add_argument("--engine-args", nargs="*", default=[], metavar="K=V", help="as evalswap takes them")
    parser.add_argument("--engine-python", help="the Python that has the engine, or the program that is it")
    parser.add_argument("--url", help="a server of the engine that runs already, started with the same arguments")
    args = parser.parse_args()
    try:
        arguments = engine_arguments(args.engine_args)
        prepared = prepare(args.engine, args.model, args.dtype, arguments, args.engine_python)
        result = asyncio.run(record(prepared, args.url, args.out))
    except EvalswapError as error:
        sys.exit(f"record_engine: {error.message}" + (f"\n  → {error.hint}" if error.hint else ""))
    for name, outcome in result.outcomes.items():
        said = outcome.completion
        ended = f"{len(said.token_ids or ())} tokens, {said.finish_reason}" if said else f"{outcome.error!r:.150}"
        print(f"  {name}: {ended}")
    print(f"wrote {args.out}: {args.out.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
