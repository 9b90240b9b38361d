"""Paired comparisons: SciPy's tests, Wilson by its formula, and curves whose gap is known."""

import numpy as np
import pytest
from scipy import stats

from antinb import comparison

RNG = np.random.default_rng(0)
FIRST = RNG.gamma(2.0, size=60)
SECOND = 0.5 * FIRST + RNG.normal(2, 0.3, 60)


def test_a_difference_is_the_paired_t_test():
    found, oracle = comparison.difference(FIRST, SECOND, level=0.9).iloc[0], stats.ttest_rel(FIRST, SECOND)
    ends = oracle.confidence_interval(0.9)
    expected = [np.mean(FIRST - SECOND), ends.low, ends.high, oracle.pvalue]
    assert [found[key] for key in ("estimate", "low", "high", "p_value")] == pytest.approx(expected, rel=1e-10)


def test_a_ratio_is_exact_where_one_method_is_a_multiple_of_the_other():
    found = comparison.ratio(0.7 * SECOND, SECOND).iloc[0]
    assert [found[key] for key in ("estimate", "low", "high")] == pytest.approx([0.7] * 3, rel=1e-12)


@pytest.mark.slow
def test_the_interval_of_a_ratio_covers_as_often_as_it_says():
    """Means 3 and 2: over 2000 experiments, five standard errors of a binomial proportion are 2.4%."""
    rng = np.random.default_rng(1)
    second = rng.gamma(4.0, 0.5, (2000, 80))
    first = second + rng.normal(1, 0.5, second.shape)
    found = [comparison.ratio(*rows).iloc[0] for rows in zip(first, second, strict=True)]
    inside = np.mean([row["low"] <= 1.5 <= row["high"] for row in found])
    assert inside == pytest.approx(0.95, abs=0.024)


def test_there_is_no_ratio_to_what_may_be_zero():
    found = comparison.ratio(FIRST, np.tile([-1.0, 1.0], 30)).iloc[0]
    assert np.isnan([found[key] for key in ("estimate", "low", "high")]).all()


def test_a_win_rate_leaves_ties_out_and_has_wilsons_interval():
    first, second = np.array([3, 3, 3, 1, 2.05, 2, np.nan]), np.full(7, 2.0)
    found = comparison.win_rate(first, second, tie=0.1).iloc[0]
    n, p, z = 4, 0.75, stats.norm.ppf(0.975)
    centre, half = (p + z**2 / (2 * n)) / (1 + z**2 / n), z * (p * (1 - p) / n + z**2 / (4 * n**2)) ** 0.5
    half /= 1 + z**2 / n
    expected = [p, centre - half, centre + half]
    assert [found[key] for key in ("estimate", "low", "high")] == pytest.approx(expected)
    assert (found["units"], found["ties"], found["dropped"]) == (6, 2, 1)
    swapped = comparison.win_rate(second, first, tie=0.1).iloc[0]
    assert swapped["estimate"] == pytest.approx(1 - found["estimate"])
    assert np.isnan(comparison.win_rate(second, second).iloc[0]["estimate"])


def lines(slope, offset, settings=5, units=40, seed=0):
    """Return curves `kept = offset + slope * target` unit by unit."""
    rng = np.random.default_rng(seed)
    target = np.linspace(0, 1, settings)[:, None] + rng.normal(0, 0.1, units)
    return target, offset + slope * target


def test_parallel_lines_differ_by_their_offset_at_any_target():
    first, second = lines(-0.5, 0.9), lines(-0.5, 0.8, seed=1)
    target, kept = (np.stack(pair) for pair in zip(first, second, strict=True))
    for at in (0.3, 0.55):
        found = comparison.matched(target, kept, at=at).iloc[0]
        assert [found[key] for key in ("estimate", "low", "high")] == pytest.approx([0.1] * 3, abs=1e-12)


def test_a_matched_gap_is_read_at_the_target_not_at_the_setting():
    """The second method goes further at each setting on the same line: matched, there is no gap."""
    target, kept = lines(-0.5, 0.9)
    noisy = kept + np.random.default_rng(2).normal(0, 0.05, kept.shape[1])
    found = comparison.matched(np.stack([target, target**2]), np.stack([noisy, 0.9 - 0.5 * target**2]), at=0.5).iloc[0]
    plain = comparison.difference(noisy.mean(0), (0.9 - 0.5 * target**2).mean(0)).iloc[0]
    assert found["low"] < 0 < found["high"]
    assert plain["high"] < -0.01


def test_matching_needs_a_target_within_both_curves():
    target, kept = (np.stack([part, part]) for part in lines(-0.5, 0.9))
    target[1] *= 0.5
    with pytest.raises(ValueError, match=r"at must be a target that both methods reach, .* got 0.8"):
        comparison.matched(target, kept, at=0.8)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: comparison.difference(FIRST, SECOND[1:]), r"\(60,\) and \(59,\)"),
        (lambda: comparison.difference([1.0], [2.0]), "at least two units with both values; got 1"),
        (lambda: comparison.ratio([1.0, np.nan], [2.0, 1.0]), "at least two units with both values; got 1"),
        (lambda: comparison.win_rate(FIRST, SECOND, tie=-1), "tie must be .* got -1"),
        (lambda: comparison.difference(FIRST, SECOND, level=1.0), "level must be .* got 1.0"),
        (lambda: comparison.matched(np.zeros((2, 3, 4)), np.zeros((2, 3, 5)), at=0), r"\(2, 3, 4\) and \(2, 3, 5\)"),
    ],
)
def test_bad_input_is_refused_with_the_value(call, words):
    with pytest.raises(ValueError, match=words):
        call()
