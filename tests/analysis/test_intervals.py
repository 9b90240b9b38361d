"""Jackknife, bootstrap and bounded means against closed forms, plain loops and simulated nulls."""

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.weightstats import DescrStatsW

from antinb.analysis.bounded import bounded_interval
from antinb.analysis.intervals import (
    bounded_p_value,
    coverage,
    jackknife,
    welch_interval,
)
from antinb.analysis.resampling import cluster_bootstrap

RUNS = 2000
NULLS = {
    "beta": lambda rng, size, mean: rng.beta(20 * mean, 20 * (1 - mean), size),
    "skewed beta": lambda rng, size, mean: rng.beta(mean, 1 - mean, size),
    "coin": lambda rng, size, mean: (rng.random(size) < mean).astype(float),
    "rare failures": lambda rng, size, mean: np.where(rng.random(size) < 5 * (1 - mean), 0.8, 1.0),
}


def skewed_pair_means(rng, size):
    """Means of z + 0.15 z^2 over z and -z: the odd part has cancelled."""
    return 0.15 * rng.standard_normal(size) ** 2


def test_jackknife_of_a_mean_is_its_t_interval():
    values = np.random.default_rng(0).exponential(size=40)
    found = jackknife(lambda units: values[units].mean(), 40, 0.9)
    np.testing.assert_allclose(found, [values.mean(), *DescrStatsW(values).tconfint_mean(0.1)])


def test_jackknife_of_a_ratio_covers_it():
    rng, covered = np.random.default_rng(0), 0
    for _ in range(300):
        pair = rng.gamma(3, size=(60, 2))
        _, low, high = jackknife(lambda units, p=pair: p[units, 0].sum() / p[units].sum(), 60, 0.95)
        covered += low <= 0.5 <= high
    assert stats.binomtest(covered, 300, 0.95).pvalue > 1e-3


def test_values_within_a_cluster_are_no_replicates():
    values = np.random.default_rng(0).standard_normal((30, 1))
    copied = np.repeat(values, 50, 1)
    once, often = (cluster_bootstrap(lambda units, v=v: v[units].mean(), 30, 0.95) for v in (values, copied))
    np.testing.assert_allclose(once, often)
    half = stats.norm.ppf(0.975) * values.std() / 30**0.5
    np.testing.assert_allclose(once, values.mean() + np.array([0, -half, half]), atol=0.1 * half)


def test_resamples_taken_together_give_the_same_interval():
    values = np.random.default_rng(0).exponential(size=30)
    singly = cluster_bootstrap(lambda units: values[units].mean(), 30, 0.95)
    together = cluster_bootstrap(lambda units: values[units].mean(-1), 30, 0.95, values=30_000)
    np.testing.assert_allclose(together, singly, rtol=1e-12)


@pytest.mark.parametrize("alternative", ["greater", "less"])
def test_p_value_is_one_over_the_gamblers_mean_capital(alternative):
    values, mean = np.random.default_rng(1).beta(5, 1, 12), 0.7
    capital = 0.0
    for percent in range(1, 101):
        path = 1.0
        for x in values:
            gain = x / mean if alternative == "greater" else (1 - x) / (1 - mean)
            path *= 1 - percent / 100 + percent / 100 * gain
        capital += path / 100
    assert bounded_p_value(values, mean, alternative) == pytest.approx(min(1, 1 / capital), rel=1e-9)


@pytest.mark.parametrize("size", [20, 200])
@pytest.mark.parametrize("name", NULLS)
@pytest.mark.parametrize(("mean", "alternative"), [(0.9, "greater"), (0.99, "less")])
def test_level_at_the_boundary_of_the_null(mean, alternative, name, size):
    samples = NULLS[name](np.random.default_rng(2), (RUNS, size), mean)
    rejected = sum(bounded_p_value(values, mean, alternative) <= 0.05 for values in samples)
    assert rejected / RUNS <= 0.065


def test_a_plain_t_test_does_not_keep_its_level_on_skewed_shares():
    samples = NULLS["skewed beta"](np.random.default_rng(2), (RUNS, 20), 0.95)
    deviations = samples.mean(1) - 0.95
    p_values = stats.t.sf(deviations / (samples.std(1, ddof=1) / 20**0.5), 19)
    honest = [bounded_p_value(values, 0.95, "greater") for values in samples]
    assert np.mean(p_values <= 0.05) > 0.1
    assert np.mean(np.array(honest) <= 0.05) <= 0.05


@pytest.mark.parametrize(("truth", "threshold", "alternative"), [(0.98, 0.9, "greater"), (0.96, 0.99, "less")])
def test_power_at_100_directions_after_holm_over_8_timesteps(truth, threshold, alternative):
    """Every timestep at the same effect, each of the 8 to be rejected at 5% together."""
    samples = np.random.default_rng(3).beta(50 * truth, 50 * (1 - truth), (200, 100))
    rejected = [bounded_p_value(values, threshold, alternative) <= 0.05 / 8 for values in samples]
    assert np.mean(rejected) >= 0.8


@pytest.mark.slow
def test_bounded_interval_inverts_the_test_and_covers():
    rng, covered = np.random.default_rng(4), 0
    values = rng.beta(9, 1, 60)
    low, high = bounded_interval(values, 0.95)
    assert bounded_p_value(values, low, "greater") == pytest.approx(0.025, rel=1e-6)
    assert bounded_p_value(values, high, "less") == pytest.approx(0.025, rel=1e-6)
    for _ in range(300):
        low, high = bounded_interval(rng.beta(9, 1, 60), 0.95)
        covered += low <= 0.9 <= high
    assert covered >= 0.95 * 300
    assert bounded_interval(np.ones(5), 0.95)[1] == 1
    assert bounded_interval(np.zeros(5), 0.95)[0] == 0
    assert bounded_interval(np.full(10, 1 - 1e-14), 0.95)[1] == 1
    assert bounded_interval(np.full(10, 1e-300), 0.95)[0] == 0


def test_coverage_of_normal_units_is_nominal():
    rng = np.random.default_rng(0)
    found = coverage(rng.standard_normal(20_000), 100).iloc[0]
    assert found["low"] <= 0.955
    assert found["high"] >= 0.945
    assert found["width"] == pytest.approx(2 * stats.t.ppf(0.975, 99) / 10, rel=0.01)


@pytest.mark.parametrize(("units", "method", "least"), [(10, "skew", 0.92), (100, "skew", 0.94), (400, "t", 0.94)])
def test_coverage_on_skewed_pair_means(units, method, least):
    pool = skewed_pair_means(np.random.default_rng(0), 20_000)
    found = coverage(pool, units, method=method).iloc[0]
    assert found["high"] >= least, found
    if method == "skew" and units == 10:
        assert found["estimate"] > coverage(pool, units)["estimate"].item() + 0.03


@pytest.mark.parametrize("units", [10, 100])
def test_the_correction_for_skewness_costs_no_coverage_where_tails_are_heavy(units):
    pool = np.random.default_rng(0).standard_t(3, 20_000)
    assert coverage(pool, units, method="skew")["estimate"].item() >= 0.95


def test_sums_of_two_pools_cover_with_the_degrees_of_freedom_of_welch():
    """As scipy's Welch interval of a difference, and nominal however unequal the parts."""
    rng = np.random.default_rng(0)
    pools = rng.standard_normal(20_000), 5 * rng.standard_normal(20_000)
    found = coverage(pools, (8, 40)).iloc[0]
    assert found["low"] <= 0.955
    assert found["high"] >= 0.945
    parts = [pools[0][:8], pools[1][:40]]
    known = stats.ttest_ind(parts[0], -parts[1], equal_var=False).confidence_interval(0.9)
    np.testing.assert_allclose(welch_interval(parts, 0.9), [known.low, known.high])


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        (lambda: bounded_p_value([0.5, 1.2], 0.9, "greater"), "shares must be at least one value in"),
        (lambda: bounded_p_value([], 0.9, "greater"), "shares must be at least one value in"),
        (lambda: bounded_p_value([0.5], 0.9, "two-sided"), "alternative must be 'greater' or 'less'; got 'two-sided'"),
        (lambda: bounded_interval([0.5], 1), "level must be a number from 0.01 to 0.9999; got 1"),
        (lambda: jackknife(np.mean, 7, 0.95), "needs at least 8 units; got 7"),
        (lambda: cluster_bootstrap(np.mean, 7, 0.95), "needs at least 8; got 7"),
        (lambda: coverage(np.ones(9), 5), "finite values that differ"),
        (lambda: coverage(np.arange(9.0), 1), "units must be an integer of at least 2; got 1"),
        (lambda: coverage((np.arange(9.0), np.arange(9.0)), 5), "with units for each pool; .* units 5"),
        (
            lambda: coverage((np.arange(9.0), np.arange(9.0)), (5, 5), method="skew"),
            "'t' for several pools or two stages",
        ),
        (lambda: coverage(np.arange(9.0), 5, method="skew", half_width=1.0), "or two stages"),
        (lambda: coverage(np.arange(9.0), 5, half_width=0), "half_width must be a number from .*; got 0"),
    ],
)
def test_bad_arguments_are_one_line(call, reason):
    with pytest.raises(ValueError, match=reason):
        call()
