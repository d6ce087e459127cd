"""Comparisons made up for the tests of the report page: a usual one, large ones, and one with hostile texts."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from evalswap.comparing.records import (
    Against,
    Comparison,
    Contender,
    ContractItem,
    DatasetComparison,
    Difference,
    DifferenceClass,
    FirstDifference,
    Interval,
    PairedStatistics,
    Verdict,
    WiringProof,
)

ENGINES = {
    "hf": ("transformers 5.19.0", 41.2, 4123.0, 71.0),
    "vllm": ("vllm 0.32.0", 62.5, 141.0, 2089.0),
    "sglang": ("sglang 0.6.1", 48.0, 128.0, 2301.0),
    "lmdeploy": ("lmdeploy 0.11.0", 33.1, 119.0, 2477.0),
}
VERDICTS: dict[str, Verdict] = {"vllm": "equivalent", "sglang": "inconclusive", "lmdeploy": "different"}
REASONS = {
    "vllm": ("The 90% interval of Δ lies within ±1 point.", "55 of 57 differences are at near-ties of the reference."),
    "sglang": ("The 90% interval of Δ reaches beyond ±1 point: about 4,329 rows would settle it.",),
    "lmdeploy": (
        "The contract is broken: stop ids differ, and with them where an answer ends.",
        "12 more answers turned wrong than right (exact McNemar, p = 0.002).",
    ),
}
MODEL = "meta-llama-3-8b-instruct"
NAMES = ("Janet", "Wei", "Amara", "Tomás", "Priya", "Olu", "Ingrid", "Kofi")
THINGS = ("eggs", "muffins", "tickets", "pencils", "apples", "stamps", "candles", "books")
WORDS = [
    "".join(letters)
    for letters in (
        random.Random(word).choices(["ta", "re", "mi", "no", "su", "li", "ve", "co", "per", "st"], k=1 + word % 4)
        for word in range(4000)
    )
]


def usual(
    contenders: Sequence[str] = ("vllm", "sglang", "lmdeploy"), datasets: Sequence[str] = ("gsm8k", "math")
) -> Comparison:
    """1,319 rows of each dataset, 57 outputs of each contender differ, of each class some."""
    compared = tuple(_dataset(name, contenders, 1319, 57, seed) for seed, name in enumerate(datasets))
    notes = ("sglang asked 1,319 of 1,319 rows; nothing came from the store.",)
    return Comparison("0.2.0", "2026-11-22T17:57:22+00:00", 1.0, compared, notes)


def large(rows: int = 14_042, parts: int = 1) -> Comparison:
    """MMLU-like: every output of one contender differs; prompts and outputs of about 500 characters."""
    datasets = []
    for part in range(parts):
        chance = random.Random(part)
        differences = tuple(_long_difference(chance, row) for row in range(rows // parts))
        name = "mmlu" if parts == 1 else f"mmlu_subject_{part}"
        datasets.append(_dataset(name, ["vllm"], rows // parts, 0, part, differences))
    return Comparison("0.2.0", "2026-11-22T17:57:22+00:00", 1.0, tuple(datasets))


HOSTILE = (
    "<script>document.title='owned';alert(1)</script>",
    "</script><script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">",
    "<!-- <script> --> ]]> {{ 7 * 7 }} {% raw %} ${7*7} &lt;b&gt; &#0; \\u003cscript>",
    "controls \x00\x01\x07\x08\x0b\x0c\r\x1b[31m\x7f\x85 and a tab\t.",
    "a lone surrogate \ud800 and another \udfff, then a pair 😀",
    "bidi \u202eenilno\u202c \u2066isolated\u2069 \u200eleft\u200f \u061c \ufeff \u2028 \ufffe",
    "<svg onload=alert(1)><style>*{display:none}</style></pre></details></section></table></main>",
    "שלום עולם، مرحبا بالعالم",
    "'\" onmouseover=alert(1) x='",
)


def hostile() -> Comparison:
    """Everything that a model or a config can say is an attack, or a megabyte long."""
    whole = usual(["vllm"], ["gsm8k"])
    dataset = whole.datasets[0]
    other = dataset.others[0]
    attacks = (*HOSTILE, "x" * 500_000 + "HERE" + "y" * 500_000, "")
    differences = tuple(
        replace(
            other.differences[0],
            row=row,
            prompt=text,
            reference_text=text + " one",
            other_text=text + " two" + text,
            reference_answer=text,
            other_answer=text[::-1],
            gold=text,
            reference_finish=text[:50],
            first=replace(other.differences[0].first, reference_token=text[:2000], other_token=None),
        )
        for row, text in enumerate(attacks)
    )
    said = "".join(HOSTILE)
    contender = replace(
        other.contender,
        name=HOSTILE[1],
        engine=said,
        manifest={"command": said, said: "x" * 1_000_000},
        translation=({"source": said, "target": said, "note": said},),
    )
    item = ContractItem(said, said, said, False, said)
    other = replace(
        other,
        contender=contender,
        differences=differences,
        contract=(item,),
        reasons=(said,),
        identical=other.compared - len(differences),
        counts={"unexplained": len(differences)},
    )
    dataset = replace(dataset, dataset=HOSTILE[0], metric=HOSTILE[8], others=(other,), model=HOSTILE[2])
    return replace(whole, datasets=(dataset,), notes=(said,), evalswap=HOSTILE[0], created=HOSTILE[8])


def _dataset(
    name: str, names: Sequence[str], rows: int, differing: int, seed: int, given: tuple[Difference, ...] | None = None
) -> DatasetComparison:
    reference = _contender("hf", rows, 74.22 - 7 * seed % 40, seed)
    others = []
    for place, contender in enumerate(names):
        chance = random.Random(f"{seed} {contender}")
        differences = given or tuple(
            _difference(chance, row) for row in sorted(chance.sample(range(rows), differing + 3 * place))
        )
        others.append(_against(reference, contender, rows, differences, seed))
    floor = _against(reference, "hf", rows, (), seed)
    few = tuple(_difference(random.Random(seed), row) for row in (17, 230, 511)) if given is None else ()
    floor = replace(
        floor,
        contender=replace(floor.contender, name="hf, batch size 1"),
        differences=few,
        identical=rows - len(few),
        counts=Counter(difference.kind for difference in few),
    )
    return DatasetComparison(name, "accuracy", reference, tuple(others), floor if seed == 0 and few else None, MODEL)


def _contender(name: str, rows: int, score: float, seed: int) -> Contender:
    engine, start, infer, rate = ENGINES[name]
    chance = random.Random(f"{name} {seed}")
    curve = tuple(
        (second, rate * min(1.0, second / (0.05 * infer) + 0.2) * chance.uniform(0.9, 1.08))
        for second in (infer * step / 60 for step in range(60))
    )
    manifest: dict[str, Any] = {
        "spec_type": "HuggingFacewithChatTemplate",
        "engine": {"name": name, "version": engine.split()[-1], "device": "NVIDIA H100 80GB HBM3"},
        "facts": {"dtype": "bfloat16", "engine_args": {}, "sampling": {"gsm8k": {"temperature": 0.0, "stop": []}}},
        "answers": {"total": rows, "asked": rows, "from_store": 0, "failed": 0},
        "timings": {"start": start, "infer": infer},
    }
    translation = (
        {"source": "path", "target": "--model Meta-Llama-3-8B-Instruct", "note": ""},
        {"source": "max_out_len=512", "target": "max_new_tokens", "note": "the dataset's own value wins"},
        {"source": "batch_size=8", "target": "", "note": "no batches: the engine schedules continuously"},
        {"source": "chat template", "target": "rendered and tokenised once, by evalswap", "note": ""},
    )
    failed = 4 if name == "lmdeploy" else 0
    return Contender(
        name=name, run="20261122_174306", engine=engine, device="NVIDIA H100 80GB HBM3", dtype="bfloat16",
        score=score, interval=Interval(score - 2.43, score + 2.29), right=round(rows * score / 100),
        answered=rows - failed, total=rows, failed=failed, with_ids=True, start_seconds=start, infer_seconds=infer,
        output_tokens=292_733, tokens_per_second=rate, throughput=curve, manifest=manifest, translation=translation,
    )  # fmt: skip


def _against(reference: Contender, name: str, rows: int, differences: tuple[Difference, ...], seed: int) -> Against:
    lost = sum(d.reference_right and not d.other_right for d in differences)
    won = sum(d.other_right and not d.reference_right for d in differences)
    delta = 100 * (won - lost) / rows
    verdict = VERDICTS.get(name, "equivalent")
    statistics = PairedStatistics(
        rows=rows, delta=delta, delta_interval=Interval(delta - 0.71, delta + 0.68),
        equivalence_interval=Interval(delta - 0.58, delta + 0.57), right_to_wrong=lost, wrong_to_right=won,
        mcnemar_p=0.00031 if verdict == "different" else 0.541,
        mcnemar_p_adjusted=0.0021 if verdict == "different" else 1.0,
        equivalence_p=0.0004 if verdict == "equivalent" else 0.087,
        needed_rows=4329 if verdict == "inconclusive" else 900, excess_flips=3.5 if seed == 0 else None,
    )  # fmt: skip
    broken = verdict == "different"
    contract = (
        ContractItem("dataset hash", "cf6350e2e0ae", "cf6350e2e0ae", True),
        ContractItem("rows", f"{rows:,}", f"{rows:,}", True),
        ContractItem("prompt token ids", "b2efd9a25e4a", "b2efd9a25e4a", True),
        ContractItem("stop ids", "128001, 128009", "128001" if broken else "128001, 128009", not broken,
                     "the engine goes on where the reference stops" if broken else ""),
        ContractItem("dtype", "bfloat16", "bfloat16", True),
        ContractItem("prefix cache", "off", "on", None, "the engine does not say whether it was used"),
    )  # fmt: skip
    proof = WiringProof(32, 32, None)
    if name == "sglang":
        proof = WiringProof(0, 0, "the engine has no fp32 kernels for this model")
    if name == "lmdeploy" and differences:
        proof = WiringProof(32, 31, None, differences[0])
    contender = _contender(name, rows, (reference.score or 0) + delta, seed)
    assert contender.infer_seconds
    assert reference.infer_seconds
    return Against(
        contender=contender, contract=contract, compared=rows, identical=rows - len(differences),
        statistics=statistics, verdict=verdict, reasons=REASONS.get(name, ()),
        speedup=reference.infer_seconds / contender.infer_seconds, differences=differences,
        counts=Counter(d.kind for d in differences), proof=proof,
    )  # fmt: skip


def _difference(chance: random.Random, row: int) -> Difference:
    """One GSM8K-like row: the same start, another word, another end; sometimes another answer."""
    who, thing = chance.choice(NAMES), chance.choice(THINGS)
    made, eaten, price = chance.randint(12, 60), chance.randint(2, 9), chance.randint(2, 7)
    left = made - eaten
    gold = left * price
    flip = chance.choices(("both", "lost", "won", "neither"), (12, 2, 2, 3))[0]
    kind: DifferenceClass = chance.choices(
        ("near-tie", "stop", "extraction", "ids", "unexplained"), (50, 3, 2, 0.5, 2)
    )[0]
    wrong = (left + 1) * price
    reference_answer = gold if flip in ("both", "lost") else wrong
    other_answer = gold if flip in ("both", "won") else wrong
    start = f"{who} has {made} {thing} and gives away {eaten}.\n\nThat leaves {made} - {eaten} = {left} {thing}."
    reference_text = (
        f"{start} Each of the {thing} sells for ${price}, so the total is {left} × {price}.\n\n#### {reference_answer}"
    )
    other_text = (
        f"{start} Each one sells for ${price}. Multiplying, we get {left} × {price} = {other_answer}.\n\n"
        f"#### {other_answer}"
    )
    first = FirstDifference(31, "token", " of", " one", -0.6872, -0.7104, 0.0232)
    finish = "stop"
    if kind == "stop":
        other_text = reference_text + "\n\nIs there anything else that you would like to know?"
        first = FirstDifference(64, "token", None, "\n\n", None, None, None)
        finish = "length"
    return Difference(
        row=row, kind=kind, first=first, reference_right=reference_answer == gold, other_right=other_answer == gold,
        reference_answer=str(reference_answer), other_answer=str(other_answer), gold=str(gold),
        prompt=f"user: {who} makes {made} {thing} a day, gives away {eaten} and sells the rest for ${price} each. How "
        f"much does {who} earn each day?\nPlease reason step by step, and put your final answer after ####.",
        reference_text=reference_text, other_text=other_text, reference_finish="stop", other_finish=finish,
    )  # fmt: skip


def _long_difference(chance: random.Random, row: int) -> Difference:
    def prose(words: int) -> str:
        return " ".join(chance.choices(WORDS, k=words))

    start = prose(25)
    right = chance.random() < 0.7
    still = right if chance.random() < 0.96 else not right
    return Difference(
        row=row, kind=chance.choice(("near-tie", "unexplained")),
        first=FirstDifference(25, "token", " the", " a", -0.69, -0.7, 0.01), reference_right=right, other_right=still,
        reference_answer=chance.choice("ABCD"), other_answer=chance.choice("ABCD"), gold=chance.choice("ABCD"),
        prompt=prose(85), reference_text=f"{start} the {prose(55)}", other_text=f"{start} a {prose(55)}",
        reference_finish="stop", other_finish="stop",
    )  # fmt: skip
