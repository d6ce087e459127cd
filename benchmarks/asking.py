"""How close asking comes to the floor: the whole evalswap command beside a bare client, on a server of known speed.

    python benchmarks/asking.py                       # the table: 1319 rows, every server
    python benchmarks/asking.py zero fixed --repeat 3
    python benchmarks/asking.py zero --requests 100000
    python benchmarks/asking.py ids --model FOLDER    # by token ids, with the model's tokenizer

The server (honest_server.py) and the bare client (bare_client.py) are processes of their own. The floor is the bare
client's time from its first request to its last answer; evalswap's is the whole command, from the process's start to
its exit with the scores written. Rows are GSM8K's test set where it is found (EVALSWAP_DATA, see the README), else as
many made-up ones. The server counts what it receives: "once" means that no request was lost or came twice.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from evalswap.benchmarks.files import data_folders, first_existing

HERE = Path(__file__).resolve().parent
ROWS = 1319
IN_FLIGHT = 64
RETRIES = 3
POISONED = 700  # the row that always fails
SETTLED = 0.1  # seconds: what the server answered this long before the kill has reached the client
CONFIG = """
from mmengine.config import read_base
from opencompass.models import OpenAI

with read_base():
    from .datasets.gsm8k.gsm8k_gen import gsm8k_datasets as datasets

models = [dict(
    type=OpenAI, abbr='honest', path='honest', key='EMPTY', openai_api_base='{url}/chat/completions',
    query_per_second=None, max_workers={window}, retry={retries}, max_out_len=512, max_seq_len=16384, temperature=0.0,
    meta_template=dict(round=[dict(role='HUMAN', api_role='HUMAN'),
                              dict(role='BOT', api_role='BOT', generate=True)]),
)]
"""

CONFIG_BY_IDS = """
from mmengine.config import read_base

with read_base():
    from .datasets.gsm8k.gsm8k_gen import gsm8k_datasets as datasets

models = [dict(type='HuggingFaceBaseModel', abbr='honest', path='{model}', max_out_len=512)]
"""


@dataclass(frozen=True)
class Case:
    """One line of the table."""

    title: str
    mode: str
    wanted: str
    flags: tuple[str, ...] = ()
    kill: bool = False
    ids: bool = False


CASES = {
    "zero": Case("zero latency", "zero", "≤ 2.0 s in all"),
    "ids": Case("zero latency, by token ids", "zero", "≤ 400 MB", ids=True),
    "fixed": Case("fixed 200 ms, 64 slots", "fixed", "≤ 1.25"),
    "lognormal": Case("lognormal, mean 1 s, 64 slots", "lognormal", "≤ 1.06"),
    "lognormal-prompt": Case("… longest question longest", "lognormal-prompt", "≤ 1.00"),
    "lognormal-answer": Case("… longest solution longest", "lognormal-answer", ""),
    "faults": Case("fixed, 5% faults", "fixed", "≤ 1.25", ("--faults", "0.05")),
    "poison": Case("fixed, one prompt always 500", "fixed", "≤ 15 s more", ("--poison", str(POISONED))),
    "kill": Case("fixed, kill -9 halfway, again", "fixed", "0 asked again", kill=True),
}


@dataclass
class Measured:
    """One case, once."""

    floor: float
    seconds: float
    cpu: float
    peak: float  # MB
    first: float  # seconds from the process's start to the first request
    last: float  # … and from the last answer to the exit
    rate: float  # requests/s between them
    verdicts: list[str] = field(default_factory=list)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("cases", nargs="*", help=f"{', '.join(CASES)} (default: all)")
    parser.add_argument("--requests", type=int, default=ROWS, help="rows; more than 1319 are made up")
    parser.add_argument("--model", type=Path, help="a folder with a tokenizer, for the case by ids")
    parser.add_argument("--repeat", type=int, default=1, help="times each; medians are shown")
    arguments = parser.parse_args()
    unknown = set(arguments.cases) - set(CASES)
    if unknown:
        parser.error(f"there is no {', '.join(sorted(unknown))}; there are {', '.join(CASES)}")
    if "ids" in arguments.cases and not arguments.model:
        parser.error("the case by ids needs --model FOLDER")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        rows = write_rows(folder / "data" / "gsm8k" / "test.jsonl", arguments.requests)
        print(f"{arguments.requests} rows, {IN_FLIGHT} in flight, {os.cpu_count()} cores, {rows}\n")
        print("| server | floor, s | evalswap, s | ratio | wanted | CPU, s | peak, MB | first request after, s "
              "| after the last answer, s | requests/s between | seen |")  # fmt: skip
        print("|---|---|---|---|---|---|---|---|---|---|---|", flush=True)
        model = arguments.model and arguments.model.resolve()
        for name in arguments.cases or [name for name, case in CASES.items() if model or not case.ids]:
            show(CASES[name], [measure(CASES[name], folder, model) for _ in range(arguments.repeat)])


def write_rows(file: Path, count: int) -> str:
    """Write the rows that both clients read, and say what they are."""
    file.parent.mkdir(parents=True)
    known = first_existing(data_folders("opencompass/gsm8k", "gsm8k"), "test.jsonl")
    if known is not None and count <= ROWS:
        lines = known.read_text(encoding="utf-8").splitlines()[:count]
        file.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return "GSM8K"
    chance = random.Random(1)
    with file.open("w", encoding="utf-8") as out:
        for number in range(count):
            a, b = chance.randrange(2, 900), chance.randrange(2, 900)
            words = " ".join(chance.choices(("apples", "pears", "plums", "nuts"), k=int(chance.lognormvariate(3, 0.5))))
            question = f"Row {number}: Ann has {a} {words} and buys {b} more. How many does she have?"
            steps = " ".join(f"Step {step}." for step in range(int(chance.lognormvariate(2, 0.5))))
            out.write(json.dumps({"question": question, "answer": f"{steps}\n#### {a + b}"}) + "\n")
    return "made up"


def show(case: Case, runs: list[Measured]) -> None:
    def middle(name: str) -> float:
        return statistics.median(getattr(run, name) for run in runs)

    floor, seconds = middle("floor"), middle("seconds")
    verdicts = "; ".join(dict.fromkeys(verdict for run in runs for verdict in run.verdicts))
    print(f"| {case.title} | {floor:.2f} | {seconds:.2f} | {seconds / floor:.2f} | {case.wanted} | {middle('cpu'):.2f} "
          f"| {middle('peak'):.0f} | {middle('first'):.2f} | {middle('last'):.2f} | {middle('rate'):.0f} "
          f"| {verdicts} |", flush=True)  # fmt: skip


def measure(case: Case, folder: Path, model: Path | None) -> Measured:
    """Run the bare client and evalswap, each on a fresh server."""
    rows = folder / "data" / "gsm8k" / "test.jsonl"
    tokenizer = model / "tokenizer.json" if case.ids and model else None
    with serving(rows, case) as url:
        done = subprocess.run(
            [sys.executable, str(HERE / "bare_client.py"), str(rows), f"{url}/v1", "--in-flight", str(IN_FLIGHT)],
            check=True, capture_output=True, text=True,
        )  # fmt: skip
    floor = float(done.stdout)
    with serving(rows, case, tokenizer) as url, tempfile.TemporaryDirectory(dir=folder) as work:
        evalswap = Evalswap(Path(work), folder, url, model if case.ids else None)
        return evalswap.killed(floor) if case.kill else evalswap.whole(floor, case)


@contextmanager
def serving(rows: Path, case: Case, tokenizer: Path | None = None) -> Iterator[str]:
    """Start an honest server; it ends when its stdin is closed."""
    command = [sys.executable, str(HERE / "honest_server.py"), str(rows), "--mode", case.mode]
    command += ["--slots", str(IN_FLIGHT), *case.flags]
    command += ["--tokenizer", str(tokenizer)] if tokenizer else []
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin and process.stdout
        try:
            yield f"http://127.0.0.1:{int(process.stdout.readline())}"
        finally:
            process.stdin.close()


def told(url: str, path: str) -> Any:
    with urllib.request.urlopen(f"{url}{path}") as answer:
        return json.load(answer)


class Evalswap:
    """The command, as a user gives it."""

    def __init__(self, work: Path, folder: Path, url: str, by_ids: Path | None) -> None:
        self.work, self.url = work, url
        self.log = work / "screen.txt"
        config = work / "eval_honest.py"
        config.write_text(CONFIG.format(url=f"{url}/v1", window=IN_FLIGHT, retries=RETRIES))
        self.command = [sys.executable, "-m", "evalswap", "run", str(config), "-w", str(work / "out")]
        if by_ids:
            config.write_text(CONFIG_BY_IDS.format(model=by_ids))
            self.command += ["-a", "openai", "--api-base", f"{url}/v1", "--api-model", "honest"]
        self.environment = {**os.environ, "EVALSWAP_DATA": str(folder / "data"), "HF_HUB_OFFLINE": "1"}

    def start(self) -> subprocess.Popen[bytes]:
        with self.log.open("wb") as log:
            return subprocess.Popen(self.command, stdout=log, stderr=subprocess.STDOUT, env=self.environment)

    def whole(self, floor: float, case: Case) -> Measured:
        began = time.time()
        process = self.start()
        _, status, usage = os.wait4(process.pid, 0)
        ended = time.time()
        process.returncode = code = os.waitstatus_to_exitcode(status)
        stats = told(self.url, "/stats")
        if not stats.get("answered"):
            raise SystemExit(f"evalswap asked nothing, exit {code}: {self.log.read_text()}")
        first, last = stats["first"], stats["last"]
        measured = Measured(
            floor, ended - began, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024,
            first - began, ended - last, stats["rows"] / max(last - first, 1e-9),
        )  # fmt: skip
        measured.verdicts = self.verdicts(stats, code, poisoned="--poison" in case.flags)
        return measured

    def verdicts(self, stats: dict[str, Any], code: int, *, poisoned: bool) -> list[str]:
        """Say what is right and what is not: the score, and how often each row was asked."""
        try:
            (result,) = (self.work / "out").glob("2*/results/honest*/gsm8k.json")
            found = json.loads(result.read_text())
        except ValueError:
            return [f"NO SCORE, exit {code}: {self.log.read_text()[-500:]}"]
        rows = stats["rows"]
        faults = sum(stats.get(kind, 0) for kind in ("429", "500", "drop"))
        said = []
        if poisoned:
            wanted = stats["right"] - told(self.url, f"/right?{POISONED}")
            partial = found.get("partial") and found.get("unanswered_rows") == [POISONED]
            said.append(f"the other {rows - 1} stored, row {POISONED} named" if partial else "NOT MARKED AS PARTIAL")
            said.append("exit 1" if code == 1 else f"EXIT {code}")
            received = rows - 1 + RETRIES + 1
        else:
            wanted, received = stats["right"], rows + faults
            if code:
                said.append(f"EXIT {code}: {self.log.read_text()[-500:]}")
        if "accuracy" not in found:
            return [f"NO SCORE, exit {code}: {self.log.read_text()[-500:]}"]
        exact = abs(found["accuracy"] - 100 * wanted / (rows - poisoned)) < 1e-9
        said.append("score exact" if exact else f"SCORE {found['accuracy']}, {wanted} are right")
        once = stats["received"] == received and not stats.get("answered again")
        said.append("once" if once else f"RECEIVED {stats['received']}, wanted {received}")
        return said

    def killed(self, floor: float) -> Measured:
        """Kill the command halfway, give it again, and count what was finished and is asked again."""
        process = self.start()
        while told(self.url, "/stats").get("answered", 0) < told(self.url, "/stats")["rows"] / 2:
            if process.poll() is not None:
                raise SystemExit(f"evalswap ended too early: {self.log.read_text()}")
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        moment = time.time()
        process.wait()
        time.sleep(0.5)
        finished = told(self.url, f"/finished?{moment - SETTLED}")
        sent = told(self.url, f"/finished?{moment}")
        before = told(self.url, "/attempts")
        told(self.url, "/again")
        measured = self.whole(floor, CASES["kill"])
        after = told(self.url, "/attempts")
        again = [question for question in finished if after[question] > before[question]]
        last = sum(after[question] > before[question] for question in sent) - len(again)
        measured.rate *= 1 - len(sent) / len(after)
        measured.verdicts = [verdict for verdict in measured.verdicts if verdict.startswith(("score", "SCORE", "NO"))]
        measured.verdicts += [f"{len(again)} of {len(finished)} finished asked again", f"{last} of the last 0.1 s"]
        return measured


if __name__ == "__main__":
    main()
