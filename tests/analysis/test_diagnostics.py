"""The diagnosis of units: quiet with normal ones, loud where an interval would miss; intervals that take its place."""

import numpy as np
import pytest
from benchmarks import coverage
from scipy import stats

from antinb.analysis import diagnostics

RNG = np.random.default_rng(0)
ESTIMATORS = {setting.name: setting for setting in coverage.settings()}


def share(law, units, runs=400, **options):
    return np.mean([diagnostics.warning(law(units), "help", **options) != "" for _ in range(runs)])


@pytest.mark.parametrize("units", [10, 20, 40])
def test_false_alarms_are_as_rare_as_the_test_of_normality_says(units):
    nominal = 0.15 if units < 30 else 0.05
    for options in ({}, {"tails": True}):
        rate = share(RNG.standard_normal, units, **options)
        assert stats.binomtest(int(rate * 400), 400, nominal, alternative="greater").pvalue > 0.001
    assert share(RNG.random, 2 * units) < nominal


def test_few_units_are_doubted_whatever_they_show():
    means = RNG.standard_normal(50)
    assert diagnostics.warning(means, "take more", least=50) == diagnostics.warning(means, "take more") == ""
    found = diagnostics.warning(means, "take more", least=51)
    assert found == "50 units do not show how heavy their tails are: take more"
    assert diagnostics.warning(np.arange(50) % 2, "take more", least=51) == ""  # an event has no tails


@pytest.mark.slow
@pytest.mark.parametrize(("units", "least"), [(20, 0.92), (64, 0.97)])
def test_skewed_units_are_warned_of(units, least):
    assert share(lambda size: RNG.standard_normal(size) ** 2, units) > least + 0.02
    assert share(lambda size: np.exp(RNG.standard_normal(size)), units) > least
    assert share(lambda size: RNG.standard_t(3, size), 64, tails=True) > 0.6


def test_many_units_carry_a_variance_unless_its_tail_is_heavy():
    """Squared Laplace units have skewness 6.6: 0.07 of the root of 10,000 units, and 0.38 of that of 300."""
    assert share(lambda size: RNG.laplace(size=size), 10_000, runs=40, tails=True) < 0.1
    assert share(lambda size: RNG.laplace(size=size), 300, runs=40, tails=True) > 0.9
    assert share(lambda size: RNG.standard_t(3, size), 10_000, runs=40, tails=True) > 0.9


def test_the_numbers_of_the_diagnosis_are_those_of_scipy():
    means = RNG.exponential(size=(3, 30))
    np.testing.assert_allclose(diagnostics.skewness(means), stats.skew(means, axis=1))
    found = diagnostics.shape(means[0])
    assert found["skewness"] == pytest.approx(stats.skew(means[0]))
    deviations = (means[0] - means[0].mean()) ** 2
    assert found["largest_share"] == pytest.approx(deviations.max() / deviations.sum())
    assert np.isnan(list(diagnostics.shape(np.ones(5)).values())).all()


@pytest.mark.parametrize(("seen", "units", "warned"), [(0, 50, 1), (14, 400, 1), (15, 400, 0), (5, 20, 0), (4, 20, 1)])
def test_an_event_is_judged_by_the_units_that_saw_it(seen, units, warned):
    means = 0.1 + 0.7 * (np.arange(units) < seen)
    found = diagnostics.warning(means, "take more")
    assert found == (f"only {seen} of {units} units differ from the others: take more" if warned else "")
    assert diagnostics.warning(1e-12 * means, "take more") == found


def test_an_outlier_is_named_with_its_share():
    means = np.r_[RNG.standard_normal(99), 40.0]
    found = diagnostics.warning(means, "take more units", bound=diagnostics.VERY_SKEWED)
    assert found.startswith("the units are skewed (skewness ")
    assert found.endswith("100 units): take more units")
    assert diagnostics.warning(np.r_[means, -40.0], "take more units") == ""  # t covers where tails are symmetric
    assert "not normal" in diagnostics.warning(np.r_[means, -40.0], "take more units", tails=True)


def test_every_kind_of_setting_has_its_row():
    """The rows of the benchmark, a few times each: every result has ends and a sentence or none."""
    for name in ("t, normal, 20 units", "two levels, normal, 50 fine units", "symmetry.summary, mean, 8 directions"):
        found = coverage.table([ESTIMATORS[name]], 2).iloc[0]
        assert found[["nominal", "warned"]].tolist() == [0.95, 0]


@pytest.mark.slow
@pytest.mark.parametrize("name", ESTIMATORS)
def test_intervals_cover_or_warn(name):
    _holds(coverage.table([ESTIMATORS[name]], 200))


@pytest.mark.slow
def test_intervals_of_correlations_cover():
    found = coverage.table(coverage.mixtures(), 200)
    _holds(found)
    assert (found["coverage"] > 0.9).all()
    assert (found["warned"] < 0.05).all()


def _holds(found):
    """Assert that no row without a warning covers so little that chance in 200 runs does not explain it."""
    for row in found[~found["verdict"].str.startswith("known")].itertuples():
        runs = round(200 * (1 - row.warned))
        if runs > 200 * coverage.UNWARNED:
            covered = round(runs * row.unwarned_coverage)
            assert stats.binomtest(covered, runs, 0.92, alternative="less").pvalue > 1e-3, row
