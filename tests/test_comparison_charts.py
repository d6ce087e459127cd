"""The charts of a comparison, by what is drawn in them; and that a file of them is whole or not there."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from comparison_samples import usual

from evalswap.comparing.records import Against, Comparison, Contender, DatasetComparison
from evalswap.errors import StoreError

pytest.importorskip("matplotlib", reason="charts are made by matplotlib")

from evalswap.reporting import comparison_charts as charts
from evalswap.reporting.comparison_files import write_files
from evalswap.reporting.page.figures import figures


def timed(contender: Contender, seconds: float) -> Contender:
    """Return a contender with a throughput curve over so many seconds, as it is made of real answers."""
    return replace(contender, throughput=tuple((seconds * (i + 0.5) / 60, 100.0 + i) for i in range(60)))


def lasting(*seconds: float) -> DatasetComparison:
    """Return a comparison whose contenders took so many seconds each, the reference first."""
    dataset = usual(["vllm", "sglang"], ["gsm8k"]).datasets[0]
    reference, *others = (timed(one, s) for one, s in zip(charts.contenders_of(dataset), seconds, strict=False))
    return replace(
        dataset,
        reference=reference,
        others=tuple(replace(o, contender=c) for o, c in zip(dataset.others, others, strict=False)),
    )


def throughput_axes(dataset: DatasetComparison) -> Any:
    figure = charts.throughput_chart(usual(), dataset)
    charts.png(figure)  # tick labels are made when it is drawn
    return figure.axes[0]


def ticks(axes: Any) -> list[str]:
    """Return the labels of the horizontal axis that are in view."""
    low, high = axes.get_xlim()
    return [tick.label1.get_text() for tick in axes.xaxis.get_major_ticks() if low <= tick.get_loc() <= high]


@pytest.mark.parametrize("durations", [(400.0, 60.0, 50.0), (50.0, 60.0, 400.0), (100.0,)])
def test_durations_of_a_kind_are_on_a_linear_axis(durations: tuple[float, ...]) -> None:
    axes = throughput_axes(lasting(*durations))
    assert axes.get_xscale() == "linear"
    assert axes.get_xlabel() == "seconds since the first request"
    assert axes.get_xlim()[0] == 0


@pytest.mark.parametrize(
    ("durations", "labels"),
    [
        ((4123.0, 141.0, 128.0), ["3", "10", "30", "100", "300", "1,000", "3,000"]),
        ((5.0, 0.5, 5.0), ["0.01", "0.03", "0.1", "0.3", "1", "3"]),
        ((2.0, 90_000.0, 2.0), ["0.1", "1", "10", "100", "1,000", "10,000", "100,000"]),
    ],
)
def test_far_apart_durations_are_on_a_logarithmic_axis_that_says_so(
    durations: tuple[float, ...], labels: list[str]
) -> None:
    axes = throughput_axes(lasting(*durations))
    assert axes.get_xscale() == "log"
    assert axes.get_xlabel() == "seconds since the first request, logarithmic"
    assert ticks(axes) == labels
    assert axes.get_xlim()[1] > max(durations)
    end = axes.transAxes.inverted().transform(axes.transData.transform((min(durations), 0)))[0]
    assert end > 0.25, "the fastest has its part of the width"
    for line in axes.lines:
        assert line.get_xdata()[0] == 0, "no curve begins later than the first request"


@pytest.mark.parametrize("score", [0.5, 50.0, 99.5])
def test_no_score_below_0_or_above_100_is_marked(score: float) -> None:
    comparison = usual(["vllm"], ["gsm8k"])
    dataset = comparison.datasets[0]
    dataset = replace(dataset, reference=replace(dataset.reference, score=score, interval=None))
    figure = charts.accuracy_chart(comparison, replace(dataset, others=()))
    charts.png(figure)
    marked = [float(label) for label in ticks(figure.axes[0]) if label]
    assert marked
    assert all(0 <= mark <= 100 for mark in marked)


def time_axes(**changes: Any) -> tuple[Any, DatasetComparison, Comparison]:
    """Return the time chart of transformers and vLLM, of which the latter's times are changed."""
    comparison = usual(["vllm"], ["gsm8k"])
    dataset = comparison.datasets[0]
    against: Against = dataset.others[0]
    against = replace(
        against,
        contender=replace(against.contender, **changes),
        speedup=None if changes.get("infer_seconds", 1) is None else against.speedup,
    )
    dataset = replace(dataset, others=(against,))
    figure = charts.time_chart(comparison, dataset)
    charts.png(figure)
    return figure.axes[0], dataset, comparison


@pytest.mark.parametrize(
    ("changes", "bars", "said", "words"),
    [
        ({}, [62.5, 141.0], "1:02 + 2:21   29.24×", "vllm: start 1:02, inference 2:21, speed-up 29.24×"),
        ({"start_seconds": 0.0}, [0.0, 141.0], "0.0 s + 2:21   29.24×", "vllm: start 0.0 s, inference 2:21"),
        ({"start_seconds": None}, [141.0], "? + 2:21   29.24×", "vllm: start not known, inference 2:21"),
        ({"infer_seconds": None}, [62.5], "1:02 + ?", "vllm: start 1:02, inference not known"),
        (
            {"start_seconds": None, "infer_seconds": None},
            [],
            "time not known",
            "vllm: start not known, inference not known",
        ),
    ],
)
def test_a_time_that_is_not_known_is_said_and_has_no_bar(
    changes: dict[str, Any], bars: list[float], said: str, words: str
) -> None:
    axes, dataset, comparison = time_axes(**changes)
    drawn = [bar.get_width() for bar in axes.patches if round(bar.get_y() + bar.get_height() / 2) == 1]
    assert drawn == bars
    texts = [text.get_text() for text in axes.texts if text.xy[1] == 1]
    start_unknown = bars == [141.0]
    assert texts == (["?", said] if start_unknown else [said])
    if start_unknown:
        mark = next(text for text in axes.texts if text.get_text() == "?")
        assert mark.get_window_extent().x1 <= axes.get_window_extent().x0, "it takes no room on the axis"
    assert ("?: not known" in axes.get_xlabel()) is (None in changes.values())
    (figure,) = (figure for figure in figures(comparison, dataset) if figure.title.startswith("Time"))
    assert figure.words[1].startswith(words)


def test_a_chart_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    comparison = usual(["vllm"], ["gsm8k"])
    written = write_files(comparison, tmp_path / "out")
    assert (tmp_path / "out" / "time_gsm8k.png").read_bytes().startswith(b"\x89PNG")
    assert {path.stat().st_mode & 0o777 for path in written} == {0o644}
    (tmp_path / "blocked" / "time_gsm8k.png").mkdir(parents=True)
    with pytest.raises(StoreError, match=r"time_gsm8k\.png"):
        write_files(comparison, tmp_path / "blocked")
    assert not list((tmp_path / "blocked").glob("*.part"))
