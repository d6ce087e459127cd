"""The statistics: against published examples, against scipy and brute force, and by simulation."""

from __future__ import annotations

import math
from functools import cache
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from evalswap.comparing.records import PairedStatistics, Verdict
from evalswap.comparing.statistics import (
    Pairs,
    bootstrap_interval,
    clustered_error,
    equivalence_interval,
    equivalence_p,
    holm,
    mcnemar_p,
    needed_rows,
    net_distribution,
    paired_statistics,
    statistics_of,
    wilson_interval,
)
from evalswap.comparing.verdict import judge

SIMULATED = 2000
counts = st.integers(0, 60)
some_pairs = st.builds(Pairs, counts, counts, counts, counts).filter(lambda pairs: pairs.rows > 0)


# ---- published examples


@pytest.mark.parametrize(
    ("right", "rows", "low", "high"),
    # Newcombe 1998, Statistics in Medicine 17:857, table I, method 3
    [(81, 263, 25.53, 36.62), (15, 148, 6.24, 16.05), (0, 20, 0.0, 16.11), (1, 29, 0.61, 17.18)],
)
def test_wilson_as_published(right: int, rows: int, low: float, high: float) -> None:
    interval = wilson_interval(right, rows)
    assert (interval.low, interval.high) == pytest.approx((low, high), abs=0.005)


def test_mcnemar_as_published() -> None:
    # Fagerland, Lydersen and Laake 2013, BMC Medical Research Methodology 13:91: 1 and 7 discordant pairs of 21
    assert mcnemar_p(Pairs(1, 1, 7, 12)) == pytest.approx(0.070, abs=0.0005)


def test_holm_as_published() -> None:
    # the help page of R's p.adjust, and Holm's own rule by hand
    assert holm([0.01, 0.02, 0.03, 0.04, 0.05]) == pytest.approx([0.05, 0.08, 0.09, 0.09, 0.09])
    assert holm([0.03, 0.005, 0.04, 0.01]) == pytest.approx([0.06, 0.02, 0.06, 0.03])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


# ---- against scipy and brute force


@given(some_pairs)
def test_intervals_and_mcnemar_are_scipys(pairs: Pairs) -> None:
    expected = stats.binomtest(pairs.right_to_wrong, pairs.flips).pvalue if pairs.flips else 1.0
    assert mcnemar_p(pairs) == pytest.approx(expected)
    right = pairs.both_right + pairs.right_to_wrong
    expected = stats.binomtest(right, pairs.rows).proportion_ci(method="wilson")
    interval = wilson_interval(right, pairs.rows)
    assert (interval.low, interval.high) == pytest.approx((100 * expected.low, 100 * expected.high), abs=1e-9)


def test_the_bootstrap_interval_is_what_resampling_tends_to() -> None:
    a, b = _sequences(Pairs(180, 20, 9, 91))
    drawn = stats.bootstrap(
        (np.array(a, float), np.array(b, float)),
        lambda x, y, axis: np.mean(y - x, axis=axis),
        paired=True,
        n_resamples=20_000,
        method="percentile",
        rng=np.random.default_rng(7),
    ).confidence_interval
    interval = bootstrap_interval(Pairs(180, 20, 9, 91))
    assert (interval.low, interval.high) == pytest.approx((100 * drawn.low, 100 * drawn.high), abs=0.34)  # one row


@given(st.integers(1, 7), st.floats(0, 0.5), st.floats(0, 0.5))
def test_the_net_change_has_its_exact_distribution(rows: int, worse: float, better: float) -> None:
    expected = dict.fromkeys(range(-rows, rows + 1), 0.0)
    for steps in product(((-1, worse), (0, 1 - worse - better), (1, better)), repeat=rows):
        expected[sum(step for step, _ in steps)] += math.prod(share for _, share in steps)
    low, found = net_distribution(rows, worse, better)
    assert sum(found) == pytest.approx(1.0)
    assert {low + place: share for place, share in enumerate(found)} == pytest.approx(
        {net: expected[net] for net in range(low, low + len(found))}, abs=1e-12
    )


@given(some_pairs, st.floats(0.002, 0.3))
def test_equivalence_is_proven_exactly_where_its_interval_is_within_the_margin(pairs: Pairs, margin: float) -> None:
    p_value, interval = equivalence_p(pairs, margin), equivalence_interval(pairs)
    within = -100 * margin < interval.low and interval.high < 100 * margin
    if abs(p_value - 0.05) > 1e-3:
        assert (p_value < 0.05) == within
    assert interval.low <= 100 * pairs.delta <= interval.high


@given(some_pairs)
def test_statistics_do_not_care_which_side_is_the_reference(pairs: Pairs) -> None:
    mirrored = Pairs(pairs.both_right, pairs.wrong_to_right, pairs.right_to_wrong, pairs.both_wrong)
    ours, theirs = statistics_of(pairs, 1.0), statistics_of(mirrored, 1.0)
    assert ours.delta == -theirs.delta
    assert ours.equivalence_p == pytest.approx(theirs.equivalence_p)
    assert ours.equivalence_interval.low == pytest.approx(-theirs.equivalence_interval.high, abs=1e-3)
    assert ours.needed_rows == theirs.needed_rows


def test_no_flip_proves_only_what_so_many_rows_can() -> None:
    assert equivalence_p(Pairs(60, 0, 0, 40), 0.01) == pytest.approx(0.99**100)
    assert judge(statistics_of(Pairs(6, 0, 0, 2), 1.0), (), 1.0)[0] == "inconclusive"
    assert statistics_of(Pairs(6, 0, 0, 2), 1.0).needed_rows == 299  # 0.99^299 < 5% is the first
    assert judge(statistics_of(Pairs(200, 0, 0, 99), 1.0), (), 1.0)[0] == "equivalent"
    assert judge(statistics_of(Pairs(200, 0, 0, 98), 1.0), (), 1.0)[0] == "inconclusive"


# ---- simulation


@cache
def _verdict(rows: int, worse: int, better: int, margin: float = 1.0) -> Verdict:
    return judge(statistics_of(Pairs(rows - worse - better, worse, better, 0), margin), (), margin)[0]


def _share(wanted: Verdict, rows: int, flips: float, difference: float) -> float:
    """Return how often a verdict comes up at a true difference and flip rate, both as shares."""
    generator = np.random.default_rng(20261122)
    chances = ((flips - difference) / 2, (flips + difference) / 2, 1 - flips)
    drawn = generator.multinomial(rows, chances, size=SIMULATED)
    return sum(_verdict(rows, int(worse), int(better)) == wanted for worse, better, _ in drawn) / SIMULATED


@pytest.mark.parametrize(("rows", "flips"), [(1319, 0.04), (1319, 0.01), (200, 0.04)])
def test_engines_that_are_equal_are_rarely_called_different(rows: int, flips: float) -> None:
    assert _share("different", rows, flips, 0.0) <= 0.05


@pytest.mark.parametrize(
    ("rows", "flips", "difference"),
    [(1319, 0.04, -0.01), (1319, 0.01, -0.01), pytest.param(5000, 0.02, 0.01, marks=pytest.mark.e2e)],
)
def test_engines_a_margin_apart_are_rarely_called_equivalent(rows: int, flips: float, difference: float) -> None:
    assert _share("equivalent", rows, flips, difference) <= 0.05


def test_the_rows_that_are_asked_for_do_settle_it() -> None:
    generator = np.random.default_rng(1)
    drawn = generator.multinomial(4329, (0.02, 0.02, 0.96), size=SIMULATED)
    proven = sum(equivalence_p(Pairs(same, int(a), int(b), 0), 0.01) < 0.05 for a, b, same in drawn.tolist())
    assert proven / SIMULATED == pytest.approx(0.90, abs=0.03)


@pytest.mark.parametrize(("worse", "better", "expected"), [(13, 13, 2164), (26, 27, 4329), (53, 53, 8658)])
def test_the_rows_needed_are_those_of_the_table(worse: int, better: int, expected: int) -> None:
    pairs = Pairs(1319 - worse - better, worse, better, 0)
    assert needed_rows(pairs, 0.01) == pytest.approx(expected, rel=0.05)


@given(some_pairs, st.floats(0.2, 5.0))
def test_an_inconclusive_verdict_asks_for_more_rows_than_there_are(pairs: Pairs, margin: float) -> None:
    found = statistics_of(pairs, margin)
    if judge(found, (), margin)[0] == "inconclusive":
        assert found.needed_rows is not None
        assert found.needed_rows > pairs.rows


# ---- rows in groups


def test_rows_of_their_own_have_the_plain_standard_error() -> None:
    values = [0.0, 1.0, 0.0, -1.0, 1.0, 0.0, 0.0]
    assert clustered_error(values, range(7)) == pytest.approx(np.std(values, ddof=1) / math.sqrt(7))


@given(st.lists(st.sampled_from([-1.0, 0.0, 1.0]), min_size=2, max_size=30), st.integers(2, 9))
def test_copies_of_rows_add_no_certainty(values: list[float], copies: int) -> None:
    groups = [place for place in range(len(values)) for _ in range(copies)]
    repeated = [value for value in values for _ in range(copies)]
    assert clustered_error(repeated, groups) == pytest.approx(clustered_error(values, range(len(values))))


def test_one_group_alone_proves_nothing() -> None:
    a, b = _sequences(Pairs(50, 9, 0, 41))
    found = paired_statistics(a, b, 1.0, ["all"] * 100)
    assert judge(found, (), 1.0)[0] == "inconclusive"
    assert found.groups == 1


def test_clustered_errors_do_not_take_ten_copies_for_ten_rows() -> None:
    a, b = _sequences(Pairs(12, 6, 1, 11))
    groups = [place for place in range(30) for _ in range(10)]
    copies = [[value for value in side for _ in range(10)] for side in (a, b)]
    plain, clustered = paired_statistics(*copies, 1.0), paired_statistics(*copies, 1.0, groups)
    assert judge(plain, (), 1.0)[0] == "different"
    assert judge(clustered, (), 1.0)[0] == "inconclusive"
    assert "clustered in 30 groups" in judge(clustered, (), 1.0)[1][-1]


Flips = tuple[int, int]  # right→wrong and wrong→right of one group


@cache
def _in_groups(rows: int, groups: tuple[Flips, ...]) -> PairedStatistics:
    """Return the statistics of groups of so many rows each. Their order decides nothing."""
    a: list[bool] = []
    b: list[bool] = []
    for worse, better in groups:
        a += [True] * (rows - better) + [False] * better
        b += [False] * worse + [True] * (rows - worse)
    return paired_statistics(a, b, 1.0, [place for place in range(len(groups)) for _ in range(rows)])


@pytest.mark.parametrize(
    ("groups", "rows", "worse", "better"),
    [(10, 30, 0.01, 0), (57, 6, 0.01, 0), (10, 40, 0.01, 0), (57, 8, 0.012, 0.002)],
)
def test_groups_a_margin_apart_are_rarely_called_equivalent(
    groups: int, rows: int, worse: float, better: float
) -> None:
    generator = np.random.default_rng(20261122)
    drawn = generator.multinomial(rows, (worse, better, 1 - worse - better), size=(SIMULATED, groups))
    found = [_in_groups(rows, tuple(sorted((w, b) for w, b, _ in each))) for each in drawn.tolist()]
    share = sum(judge(statistics, (), 1.0)[0] == "equivalent" for statistics in found) / SIMULATED
    assert share <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / SIMULATED)


def test_few_flips_in_groups_prove_no_more_than_rows_alone() -> None:
    found = _in_groups(30, ((1, 0), *[(0, 0)] * 9))
    assert found.equivalence_p == pytest.approx(0.198, abs=0.001)
    assert judge(found, (), 1.0)[0] == "inconclusive"


def test_a_difference_that_all_groups_show_alike_is_found() -> None:
    for rows, groups in ((16, 16), (20, 10), (21, 10)):  # the clustered error is 0, or what rounding leaves of it
        found = _in_groups(rows, ((1, 0),) * groups)
        assert found.mcnemar_p == mcnemar_p(Pairs(rows * groups - groups, groups, 0, 0))
        assert judge(found, (), 1.0)[0] == "different"
    found = _in_groups(1000, ((1, 1),) * 10)
    assert found.equivalence_interval == equivalence_interval(Pairs(9980, 10, 10, 0))
    assert judge(found, (), 1.0)[0] == "equivalent"


some_groups = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=2, max_size=12).map(tuple)


@settings(deadline=None)
@given(some_groups, st.integers(12, 60))
def test_groups_claim_nothing_that_rows_alone_would_not(groups: tuple[Flips, ...], rows: int) -> None:
    found = _in_groups(rows, groups)
    worse, better = (sum(flips) for flips in zip(*groups, strict=True))
    alone = statistics_of(Pairs(rows * len(groups) - worse - better, worse, better, 0), 1.0)
    assert found.mcnemar_p >= alone.mcnemar_p
    assert found.equivalence_p >= alone.equivalence_p
    for ours, theirs in (
        (found.delta_interval, alone.delta_interval),
        (found.equivalence_interval, alone.equivalence_interval),
    ):
        assert ours.low <= theirs.low <= theirs.high <= ours.high
    if judge(found, (), 1.0)[0] == "inconclusive":
        assert found.needed_rows is not None
        assert found.needed_rows > found.rows


def test_groups_that_flip_apart_need_more_rows() -> None:
    alike, apart = (
        _in_groups(40, ((2, 2),) * 10),
        _in_groups(40, ((4, 0), (0, 4)) * 5),  # as many flips, in groups of one mind
    )
    assert alike.needed_rows == needed_rows(Pairs(360, 20, 20, 0), 0.01)
    assert alike.needed_rows is not None
    # four flips of one mind are one: 4 times the variance, by 10 / 9 for few groups
    assert apart.needed_rows == pytest.approx(alike.needed_rows * 4 * 10 / 9, rel=0.001)
    for still_right in (0, 8):
        one = paired_statistics([True] * 9, [True] * still_right + [False] * (9 - still_right), 1.0, ["all"] * 9)
        assert one.needed_rows is None  # more rows of the only group settle nothing


@settings(deadline=None)
@given(some_pairs)
def test_sequences_are_counted(pairs: Pairs) -> None:
    a, b = _sequences(pairs)
    assert Pairs.of(a, b) == pairs
    found: PairedStatistics = paired_statistics(a, b, 1.0)
    assert found == statistics_of(pairs, 1.0)


def _sequences(pairs: Pairs) -> tuple[list[bool], list[bool]]:
    cells = [(True, True)] * pairs.both_right + [(True, False)] * pairs.right_to_wrong
    cells += [(False, True)] * pairs.wrong_to_right + [(False, False)] * pairs.both_wrong
    return [a for a, _ in cells], [b for _, b in cells]
