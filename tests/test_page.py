"""The report page as text: what is in it, what cannot get into it, and how large it becomes."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from comparison_samples import HOSTILE, hostile, usual

from evalswap.comparing.records import Comparison, ContractItem
from evalswap.errors import StoreError
from evalswap.reporting.page import payload, render, write

pytest.importorskip("matplotlib", reason="the page's charts are made by matplotlib")


class Page(HTMLParser):
    """What a browser would find: elements with their attributes, the text of each, the text that a reader sees."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self._pieces: list[str] = []
        self._inside: str | None = None
        self.feed(html)
        self.text = " ".join(" ".join(self._pieces).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._inside = tag if tag in ("script", "style") else None
        if tag == "script":
            self.scripts.append((dict(attrs), ""))

    def handle_endtag(self, tag: str) -> None:
        self._inside = None

    def handle_data(self, data: str) -> None:
        if self._inside == "script":
            self.scripts[-1] = (self.scripts[-1][0], self.scripts[-1][1] + data)
        elif self._inside is None:
            self._pieces.append(data)

    def data(self) -> dict[str, Any]:
        """Return the embedded differences."""
        (packed,) = (text for attributes, text in self.scripts if attributes.get("id") == "data")
        content: dict[str, Any] = json.loads(gzip.decompress(base64.b64decode(packed)))
        return content


@pytest.fixture(scope="module")
def page() -> Page:
    return Page(render(usual()))


def test_the_table_has_every_column_and_the_verdict_in_words(page: Page) -> None:
    heads = ["Engine", "Verdict", "accuracy", "Δ to the reference", "Flips, right→wrong", "Flips, wrong→right",
             "Identical outputs", "Inference", "Engine start", "Tokens/s", "Speed‑up"]  # fmt: skip
    assert " ".join(heads) in page.text
    for words in ("✓ equivalent", "≠ different", "? inconclusive (needs n≈4,329)", "reference", "noise floor"):
        assert words in page.text
    for number in ("74.22 71.79 to 76.51", "−0.94 to +0.45", "95.7% 1,262 of 1,319", "1:08:43", "2,089", "29.24×"):
        assert number in page.text


def test_the_model_is_named(page: Page) -> None:
    assert "Comparison of engines: meta-llama-3-8b-instruct" in page.text


def test_each_engine_has_its_reasons_its_failures_and_its_proof(page: Page) -> None:
    assert "The contract is broken: stop ids differ, and with them where an answer ends." in page.text
    assert "1,315 of 1,319 answered, 4 failed" in page.text
    assert "57 of 1,319 outputs differ: 49 at near-ties, 3 at stop handling" in page.text
    assert "32 of 32 outputs are identical in float32: prompts, stops and sampling are wired the same" in page.text
    assert "skipped: the engine has no fp32 kernels for this model" in page.text
    assert "31 of 32 outputs are identical in float32; the first that is not is a bug to look at: row" in page.text


def test_contract_translation_manifest_and_notes_are_there(page: Page) -> None:
    assert "stop ids 128001, 128009 128001 ≠ differs the engine goes on where the reference stops" in page.text
    assert "1 of 6 items differ : stop ids" in page.text
    assert "prefix cache off on ? not known" in page.text
    assert "no item of 6 differs; not known on both sides: prefix cache" in page.text
    assert "batch_size=8 no batches: the engine schedules continuously" in page.text
    assert '"spec_type": "HuggingFacewithChatTemplate"' in page.text
    assert "nothing came from the store" in page.text


def test_every_chart_has_a_caption_and_the_same_in_words(page: Page) -> None:
    tags = [tag for tag, _ in page.elements]
    assert tags.count("figure") == tags.count("figcaption") == 6  # three for each of two datasets
    assert "hf: 74.22 (71.79 to 76.51)" in page.text
    assert "vllm: start 1:02, inference 2:21, speed-up 29.24×" in page.text
    assert re.search(r"vllm: 2,089 on average, [\d,]+ at most", page.text)


def test_charts_take_their_colours_from_the_page(page: Page) -> None:
    chart = render(usual(["vllm"], ["gsm8k"])).split("<figure>")[1].split("</figure>")[0]
    assert "var(--series-1)" in chart
    assert not re.search(r"#[0-9a-f]{6}\b", chart), "a fixed colour would not follow the theme"


def test_ids_are_unique_over_all_charts(page: Page) -> None:
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_the_page_loads_nothing(page: Page) -> None:
    for tag, attributes in page.elements:
        assert "src" not in attributes, tag
        for name in ("href", "xlink:href"):
            assert (attributes.get(name) or "#").startswith(("#", "data:,")), (tag, attributes)
    assert not re.search(r"@import|url\((?!#)", render(usual(["vllm"], ["gsm8k"])))


@pytest.mark.parametrize("make", [usual, hostile])
def test_the_policy_allows_exactly_the_page_s_own_scripts(make: Any) -> None:
    page = Page(render(make()))
    (policy,) = (a["content"] for tag, a in page.elements if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert policy.startswith("default-src 'none'; ")
    run = [text for attributes, text in page.scripts if "type" not in attributes]
    hashes = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in run]
    assert re.findall(r"'sha256-([^']+)'", policy) == hashes
    assert "unsafe-inline" not in policy.replace("style-src 'unsafe-inline'", "")


def test_hostile_texts_stay_text() -> None:
    html = render(hostile())
    html.encode("utf-8")  # no lone surrogate is left
    page, plain = Page(html), Page(render(usual(["vllm"], ["gsm8k"])))
    for tag in ("script", "img", "style", "iframe", "object", "main", "table"):
        count = [sum(t == tag for t, _ in p.elements) for p in (page, plain)]
        assert count[0] == count[1], tag
    assert not any(name.startswith("on") for _, attributes in page.elements for name in attributes)
    assert HOSTILE[0] in page.text, "shown as what it is"
    assert "{{ 7 * 7 }}" in page.text, "a template language in a text is not run"
    assert "⟨U+202E⟩" in page.text
    assert "⟨U+0000⟩" in page.text
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", html)


def test_differences_come_through_whole() -> None:
    comparison = usual(["vllm"], ["gsm8k"])
    content = Page(render(comparison)).data()
    assert content["groups"][0] == ["gsm8k", "hf", "vllm"]
    differences = comparison.datasets[0].others[0].differences
    rows = [fields for fields in content["differences"] if fields[0] == 0]
    assert len(rows) == len(differences) == 57
    texts = content["texts"]
    for fields, difference in zip(rows, differences, strict=True):
        assert fields[1:3] == [difference.row, difference.kind]
        assert fields[3:5] == [difference.reference_right, difference.other_right]
        assert [texts[i] for i in fields[5:13]] == [
            difference.reference_answer, difference.other_answer, difference.gold, difference.prompt,
            difference.reference_text, difference.other_text, difference.reference_finish, difference.other_finish,
        ]  # fmt: skip
        assert fields[13][4] == difference.first.reference_logprob


def test_a_wiring_proof_s_difference_and_the_noise_floor_s_are_in_the_list() -> None:
    names = [group[2] for group in Page(render(usual())).data()["groups"]]
    assert "lmdeploy (wiring proof, fp32)" in names
    assert "hf, batch size 1 (noise floor)" in names


def test_a_long_text_is_kept_around_its_first_difference() -> None:
    comparison = _with_texts("a" * 600_000 + "left" + "z" * 400_000, "a" * 600_000 + "right" + "z" * 400_000)
    packed = payload.pack(comparison)
    assert len(packed.data) < 20_000
    assert packed.shortened >= 2
    content = json.loads(gzip.decompress(base64.b64decode(packed.data)))
    before, kept, after = content["texts"][content["differences"][0][9]]
    assert before + len(kept) + after == 1_000_004
    assert len(kept) == packed.longest == 20_000
    assert kept[600_000 - before :].startswith("leftz")


@pytest.mark.parametrize("lengths", [(15_000, 1_000_000), (600_000, 14_100), (14_001, 14_000)])
def test_both_texts_of_a_pair_are_kept_from_the_same_place(lengths: tuple[int, int]) -> None:
    texts = [("same " * 2_800 + letter * 1_000_000)[:length] for letter, length in zip("xy", lengths, strict=True)]
    content = json.loads(gzip.decompress(base64.b64decode(payload.pack(_with_texts(*texts)).data)))
    kept = [content["texts"][i] for i in content["differences"][0][9:11]]
    (before, a, _), (same, b, _) = [(0, text, 0) if isinstance(text, str) else text for text in kept]
    assert before == same
    assert a[: 14_000 - before] == b[: 14_000 - before]
    assert a[14_000 - before :][:1] != b[14_000 - before :][:1]


def test_over_the_budget_texts_are_shortened_and_then_changed_scores_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    comparison = usual(["vllm"], ["gsm8k"])
    whole = payload.pack(comparison)
    assert (whole.kept, whole.total, whole.shortened) == (60, 60, 0)
    flips = sum(d.reference_right != d.other_right for d in comparison.datasets[0].others[0].differences)
    monkeypatch.setattr(payload, "LIMITS", ((20_000, 50_000), (80, 50_000), (80, flips)))
    monkeypatch.setattr(payload, "BUDGET", len(whole.data) - 1)
    shorter = payload.pack(comparison)
    assert (shorter.kept, shorter.longest) == (60, 80)
    assert shorter.shortened > 0
    monkeypatch.setattr(payload, "BUDGET", len(shorter.data) - 1)
    fewer = payload.pack(comparison)
    assert fewer.kept == flips
    rows = json.loads(gzip.decompress(base64.b64decode(fewer.data)))["differences"]
    assert all(fields[3] != fields[4] for fields in rows)
    assert f"{flips} of 60 differences are in this page, changed scores first" in Page(render(comparison)).text


def test_what_is_not_known_is_a_dash_and_not_an_error() -> None:
    comparison = usual(["vllm"], ["gsm8k"])
    dataset = comparison.datasets[0]
    unknown: dict[str, Any] = {
        "score": None, "interval": None, "device": None, "dtype": None, "start_seconds": None, "infer_seconds": None,
        "tokens_per_second": None, "throughput": (), "manifest": {}, "translation": (),
    }  # fmt: skip
    other = replace(
        dataset.others[0],
        contender=replace(dataset.others[0].contender, **unknown),
        statistics=None,
        verdict="inconclusive",
        differences=(),
        contract=(),
        reasons=(),
        counts={},
        proof=None,
        speedup=None,
        compared=0,
        identical=0,
    )
    dataset = replace(dataset, reference=replace(dataset.reference, **unknown), others=(other,), noise_floor=None)
    page = Page(render(replace(comparison, datasets=(dataset,), notes=())))
    assert re.search(r"vllm vllm 0\.32\.0 \? inconclusive( –){9}", page.text)
    assert "no row was answered by both" in page.text
    assert "No output differs." in page.text
    assert "No run says how its config was translated." in page.text


def test_a_run_alone_is_a_page_too() -> None:
    comparison = usual(["vllm"], ["gsm8k"])
    dataset = replace(comparison.datasets[0], others=(), noise_floor=None)
    page = Page(render(replace(comparison, datasets=(dataset,))))
    assert "Nothing was compared with it" in page.text
    assert "74.22 71.79 to 76.51" in page.text
    assert "Is it still the same score?" not in page.text


def test_several_models_on_one_dataset_are_kept_apart() -> None:
    comparison = usual(["vllm"], ["gsm8k"])
    first = replace(comparison.datasets[0], model="llama")
    renamed = replace(first.others[0], contender=replace(first.others[0].contender, name="qwen-vllm"))
    second = replace(first, model="qwen", others=(renamed,), noise_floor=None)
    page = Page(render(replace(comparison, datasets=(first, second))))
    groups = [group[::2] for group in page.data()["groups"]]
    assert ["llama on gsm8k", "vllm"] in groups
    assert ["qwen on gsm8k", "qwen-vllm"] in groups
    assert sum(tag == "figure" for tag, _ in page.elements) == 6
    assert "llama on gsm8k 1,319 rows vllm ✓ equivalent" in page.text


def test_another_set_up_is_said_beside_the_verdict_and_rounding_is_not() -> None:
    comparison = usual(["vllm"], ["gsm8k"])
    dataset = comparison.datasets[0]
    for systematic in (True, False):
        item = ContractItem("dtype", "bfloat16", "float16", False, systematic=systematic)
        against = replace(dataset.others[0], contract=(item,))
        page = Page(render(replace(comparison, datasets=(replace(dataset, others=(against,)),))))
        assert ("not the same set-up" in page.text) is systematic
        assert ("≠ differs, rounding only" in page.text) is not systematic


def test_an_empty_comparison_is_a_page_too() -> None:
    assert "Nothing was compared." in Page(render(Comparison("0.2.0", "2026-11-22", 1.0, ()))).text


def test_many_datasets_are_counted_and_folded() -> None:
    page = Page(render(usual(["vllm", "lmdeploy"], [f"subject_{i}" for i in range(7)])))
    assert "Verdicts on 7 datasets vllm ✓ 7 equivalent lmdeploy ≠ 7 different" in page.text
    assert "Charts are drawn for the first 6 datasets." in page.text
    assert sum(tag == "figure" for tag, _ in page.elements) == 18


def test_a_manifest_of_any_length_is_cut() -> None:
    assert re.search(r"… [\d,]+ characters more in run\.json", Page(render(hostile())).text)


def test_write_is_whole_or_an_error_for_people(tmp_path: Path) -> None:
    path = write(usual(["vllm"], ["gsm8k"]), tmp_path / "reports" / "compare.html")
    assert path == tmp_path / "reports" / "compare.html"
    assert path.read_text(encoding="utf-8").endswith("</html>\n")
    assert path.stat().st_size < 200_000
    (tmp_path / "folder").mkdir()
    with pytest.raises(StoreError):
        write(usual(["vllm"], ["gsm8k"]), tmp_path / "folder")


def _with_texts(reference: str, other: str) -> Comparison:
    comparison = usual(["vllm"], ["gsm8k"])
    dataset = comparison.datasets[0]
    difference = replace(dataset.others[0].differences[0], reference_text=reference, other_text=other)
    against = replace(dataset.others[0], differences=(difference,))
    return replace(comparison, datasets=(replace(dataset, others=(against,), noise_floor=None),))
