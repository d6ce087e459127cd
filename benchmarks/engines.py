"""Every engine through evalswap against its own raw use and against HuggingFace in batches of 8, on one machine.

    python benchmarks/engines.py MODEL --data gsm8k/test.jsonl --out results/ --engines vllm sglang lmdeploy hf
    python benchmarks/engines.py --report results/

The work is GSM8K's 1319 questions with answers of fixed lengths (see workload.py), greedy, bf16. For each engine:

cold    the whole command `evalswap run -a ENGINE`, from process start to exit: engine start, inference, scores
warm    the same beside an engine that `evalswap serve` keeps: whole command, and its inference
raw     a bare client that posts ready-made requests to that same server, with several numbers in flight

Raw and warm take turns, now the one first and now the other (--repeat), so that a machine that slows down as it grows
hot favours neither; means are shown. No pass repeats another's prompts, so no prefix cache and no store helps. Engines
may be given again later: results are kept in one file each, and the report reads what is there. Flags of an engine:
--engine-args, as for evalswap.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import aiohttp
from workload import Question, longest_first, prompt_ids, read_questions, tagged, write_config

from evalswap.engines.base import ManagedEngine
from evalswap.engines.registry import managed_engine
from evalswap.records import Prompt, Request, Sampling
from evalswap.serving.environments import find_interpreter

HERE = Path(__file__).resolve().parent
EVALSWAP = [sys.executable, "-m", "evalswap"]
SERVE_DEADLINE = 900.0  # seconds
WARM_UP = 256  # questions that an engine is asked before anything is measured: its first kernels take longer
ADDRESS = re.compile(r"http://127\.0\.0\.1:\d+")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", type=Path, help="a model folder")
    parser.add_argument("--data", type=Path, help="GSM8K's test.jsonl")
    parser.add_argument("--out", type=Path, help="where results go")
    parser.add_argument("--engines", nargs="+", default=[], metavar="ENGINE")
    parser.add_argument("--label", help="the name of these results (default: the engine's)")
    parser.add_argument("--engine-args", nargs="+", default=[], metavar="KEY=VALUE")
    parser.add_argument("--limit", type=int, help="questions (default: all)")
    parser.add_argument("--windows", nargs="+", type=int, default=[512, 1400], help="requests in flight, raw")
    parser.add_argument("--repeat", type=int, default=2, help="raw and warm passes with each number in flight")
    parser.add_argument("--passes", nargs="+", default=["cold", "warm"], choices=["cold", "warm"])
    parser.add_argument("--hf-batches", type=int, default=4, help="batches of 8 to measure; the rest is extrapolated")
    parser.add_argument("--report", type=Path, metavar="RESULTS", help="print the tables of a results folder")
    arguments = parser.parse_args()
    if arguments.report:
        print(report(arguments.report))
        return
    arguments.model, arguments.data = arguments.model.resolve(), arguments.data.resolve()
    arguments.out.mkdir(parents=True, exist_ok=True)
    questions = read_questions(arguments.data, arguments.model, arguments.limit)
    for engine in arguments.engines:
        label = arguments.label or engine
        if engine == "hf":
            result = hf(arguments.model, questions, arguments.hf_batches)
        else:
            bench = Bench(engine, arguments.model, questions, arguments.engine_args, arguments.out / "logs" / label)
            result = bench.run(arguments.passes, arguments.windows, arguments.repeat)
        result |= {"label": label, "machine": machine()}
        (arguments.out / f"{label}.json").write_text(json.dumps(result, indent=1))
        print(json.dumps({key: value for key, value in result.items() if key != "machine"}), flush=True)


class Bench:
    """All passes of one engine."""

    def __init__(
        self, name: str, model: Path, questions: Sequence[Question], engine_args: Sequence[str], logs: Path
    ) -> None:
        self.name = name
        self.engine: ManagedEngine = managed_engine(name)
        self.model = model
        self.questions = questions
        self.flags = ["--engine-args", *engine_args] if engine_args else []
        self.logs = logs.resolve()  # of the engine, for who wants to know where its start's time went
        logs.mkdir(parents=True, exist_ok=True)

    def run(self, passes: Sequence[str], windows: Sequence[int], repeat: int) -> dict[str, Any]:
        result: dict[str, Any] = {
            "engine": self.name,
            "version": find_interpreter(self.name, self.engine.distributions).version,
            "flags": self.flags[1:],
            "questions": len(self.questions),
            "output_tokens": sum(question.length for question in self.questions),
            "prompt_tokens": sum(map(len, prompt_ids(self.questions, self.model))),
        }
        if "cold" in passes:
            result["cold"] = self.evalswap("cold", "--no-warm")
        if "warm" in passes:
            with self.served() as (address, seconds):
                result["serve_start"] = seconds
                self.raw(address, "first", windows[-1], limit=WARM_UP)
                result["raw"], result["warm"] = {window: [] for window in windows}, []
                for turn in range(repeat):
                    for window in windows:
                        for kind in ("raw", "warm") if turn % 2 == 0 else ("warm", "raw"):
                            tag = f"{kind}{window}-{turn}"
                            if kind == "raw":
                                result["raw"][window].append(self.raw(address, tag, window))
                            else:
                                result["warm"].append(self.evalswap(tag))
        return result

    def evalswap(self, tag: str, *flags: str) -> dict[str, Any]:
        """Run the whole command; return its wall time, and the parts that run.json tells."""
        with tempfile.TemporaryDirectory() as scratch:
            config = write_config(tagged(self.questions, tag), Path(scratch) / "work", self.model)
            work = Path(scratch) / "out"
            command = [*EVALSWAP, "run", str(config), "-a", self.name, "-w", str(work), *self.flags, *flags]
            began = time.perf_counter()
            done = subprocess.run(command, cwd=scratch, capture_output=True, text=True)
            seconds = time.perf_counter() - began
            for log in work.glob("2*/logs/infer/*.log"):
                shutil.copy(log, self.logs / f"{tag}.log")
            if done.returncode:
                raise SystemExit(f"{' '.join(command)} failed:\n{done.stdout[-3000:]}\n{done.stderr[-2000:]}")
            (manifest,) = work.glob("2*/run.json")
            (record,) = json.loads(manifest.read_text())["models"].values()
            answers = record["answers"]
            wanted = sum(question.length for question in self.questions)
            if answers["failed"] or answers["asked"] != len(self.questions) or answers["completion_tokens"] != wanted:
                raise SystemExit(f"{tag}: not the work that was asked for: {answers}, {wanted} tokens wanted")
            print(f"{self.name} {tag}: {seconds:.1f} s whole, {record['timings']}", file=sys.stderr, flush=True)
            return {"whole": seconds, **record["timings"], "command": record["facts"].get("command")}

    @contextmanager
    def served(self) -> Iterator[tuple[str, float]]:
        """Keep the engine with ``evalswap serve``; yield its address, and how long its start took."""
        with tempfile.TemporaryDirectory() as scratch:
            # Of the passes' configs only the model counts here: a later run finds the server by it.
            config = write_config(self.questions, Path(scratch) / "work", self.model)
            log = Path(scratch) / "serve.log"
            began = time.perf_counter()
            with log.open("w") as stream:
                process = subprocess.Popen(
                    [*EVALSWAP, "serve", str(config), "-a", self.name, *self.flags],
                    stdout=stream,
                    stderr=subprocess.STDOUT,
                    cwd=scratch,
                )
            try:
                address = None
                while address is None:
                    if process.poll() is not None or time.perf_counter() - began > SERVE_DEADLINE:
                        raise SystemExit(f"evalswap serve -a {self.name} failed:\n{log.read_text()[-3000:]}")
                    time.sleep(0.2)
                    found = ADDRESS.search(log.read_text())
                    if found and healthy(found[0] + self.engine.health_path):
                        address = found[0]
                yield address, time.perf_counter() - began
            finally:
                process.send_signal(signal.SIGINT)
                process.wait(timeout=60)

    def raw(self, address: str, tag: str, window: int, limit: int | None = None) -> float:
        """Return the seconds in which a bare client gets all answers."""
        questions = longest_first(tagged(self.questions, tag)[:limit])
        bodies = []
        for question, ids in zip(questions, prompt_ids(questions, self.model), strict=True):
            sampling = Sampling(question.length)
            request = Request("", "", 0, Prompt((), None, tuple(ids)), sampling)
            call = self.engine.call(request)
            bodies.append((address + call.path, json.dumps(call.body).encode(), request))
        seconds, answers = asyncio.run(ask_bare(bodies, window))
        for (_, _, request), answer in zip(bodies, answers, strict=True):
            tokens = self.engine.read(json.loads(answer), request).completion_tokens
            if tokens != request.sampling.max_new_tokens:
                raise SystemExit(f"{tag}: {tokens} tokens for {request.sampling.max_new_tokens}")
        print(f"{self.name} raw, {window} in flight: {seconds:.1f} s", file=sys.stderr, flush=True)
        return seconds


async def ask_bare(bodies: Sequence[tuple[str, bytes, Request]], window: int) -> tuple[float, list[bytes]]:
    """Post all bodies, at most ``window`` in flight; return the seconds and the raw answers."""
    answers: list[bytes] = [b""] * len(bodies)
    todo = iter(enumerate(bodies))
    headers = {"Content-Type": "application/json"}
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(total=None), headers=headers
    ) as session:

        async def work() -> None:
            for place, (url, body, _) in todo:
                async with session.post(url, data=body) as answer:
                    answers[place] = await answer.read()

        began = time.perf_counter()
        await asyncio.gather(*(work() for _ in range(window)))
        return time.perf_counter() - began, answers


def healthy(url: str) -> bool:
    import urllib.request

    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url, timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def hf(model: Path, questions: Sequence[Question], measured: int) -> dict[str, Any]:
    """Measure HuggingFace's generate in batches of 8, in file order."""
    found = find_interpreter("transformers", ("transformers",))
    task = {
        "model": str(model),
        "dtype": "bfloat16",
        "batch_size": 8,
        "measured": measured,
        "prompts": prompt_ids(questions, model),
        "lengths": [question.length for question in questions],
    }
    with tempfile.TemporaryDirectory() as scratch:
        result = Path(scratch) / "hf.json"
        env = {**os.environ, "HF_HUB_OFFLINE": "1"}
        command = [str(found.path), str(HERE / "hf_batches.py"), str(result)]
        subprocess.run(command, input=json.dumps(task), text=True, check=True, env=env)
        data = json.loads(result.read_text())
    tokens = sum(question.length for question in questions)
    version = found.packages.get("transformers")
    return {"engine": "hf", "version": version, "questions": len(questions), "output_tokens": tokens, **data}


def machine() -> str:
    """Return the GPU's name, or the number of cores."""
    try:
        asked = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
        return subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip().split("\n")[0]
    except (OSError, subprocess.CalledProcessError):
        return f"{os.cpu_count()} CPU cores"


def report(folder: Path) -> str:
    """Return the tables of a results folder as Markdown."""
    results = {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}
    base = results.pop("hf", None)
    engines = [result for result in results.values() if "warm" in result]
    some = next(iter([*engines, *results.values()]))
    lines = [
        f"{some['machine']}; {some['questions']} questions, {some.get('prompt_tokens', 0):,} prompt tokens, "
        f"{some['output_tokens']:,} output tokens.",
        "",
        "| engine | raw, s (in flight) | evalswap, s | evalswap / raw | tokens/s | against HF batch 8 |",
        "|---|---|---|---|---|---|",
    ]
    for result in engines:
        window, raw = best_raw(result)
        mine = statistics.mean(run["infer"] for run in result["warm"])
        speedup = f"{base['infer'] / mine:.0f}x" if base else "-"
        lines.append(
            f"| {name(result)} | {raw:.1f} ({window}) | {mine:.1f} | {mine / raw:.3f} "
            f"| {result['output_tokens'] / mine:,.0f} | {speedup} |"
        )
    if base:
        lines.append(
            f"| transformers {base['version']}, batches of 8 | {base['infer']:.0f} (first {base['batches']} batches "
            f"measured, {1000 * base['seconds_per_step']:.1f} ms a step) | - | - "
            f"| {base['output_tokens'] / base['infer']:,.0f} | 1x |"
        )
    lines += [
        "",
        "| engine | cold, whole command, s | start | inference | warm, whole command, s | inference |",
        "|---|---|---|---|---|---|",
    ]
    for result in results.values():
        cold, warm = result.get("cold", {}), result.get("warm", [])
        cells = [cold.get("whole"), cold.get("start"), cold.get("infer"), mean(warm, "whole"), mean(warm, "infer")]
        lines.append(f"| {name(result)} | " + " | ".join("-" if c is None else f"{c:.1f}" for c in cells) + " |")
    return "\n".join(lines)


def best_raw(result: Mapping[str, Any]) -> tuple[str, float]:
    """Return the number in flight that was fastest without evalswap, and its seconds."""
    means = {window: statistics.mean(seconds) for window, seconds in result["raw"].items()}
    window = min(means, key=means.__getitem__)
    return window, means[window]


def mean(runs: Sequence[Mapping[str, Any]], name: str) -> float | None:
    return statistics.mean(run[name] for run in runs) if runs else None


def name(result: Mapping[str, Any]) -> str:
    flags = f" `{' '.join(result['flags'])}`" if result.get("flags") else ""
    return f"{result['engine']} {result['version']}{flags}"


if __name__ == "__main__":
    main()
