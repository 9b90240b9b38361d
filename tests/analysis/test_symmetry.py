"""The symmetry measures against correlations and closed forms."""

import numpy as np
import pytest
import xarray as xr
from numpy.polynomial import Legendre
from statsmodels.stats.multitest import multipletests

from antinb import symmetry
from antinb.analysis.bounded import bounded_interval
from antinb.analysis.intervals import jackknife
from antinb.analysis.symmetry import affine_antisymmetry, nonlinear_odd_share, vector_quantities

GRID = np.linspace(-1, 1, 65)
WEIGHTS = np.r_[0.5, np.ones(63), 0.5]


def test_score_is_the_correlation_of_a_function_with_its_mirror_image():
    functions = np.random.default_rng(0).standard_normal((1000, 65)).cumsum(1)
    found = affine_antisymmetry(functions)
    for value, f in zip(found, functions, strict=True):
        covariance = np.cov(f, f[::-1], aweights=WEIGHTS)
        assert value == pytest.approx((1 - covariance[0, 1] / covariance[0, 0]) / 2, abs=1e-6)


@pytest.mark.parametrize("share", [0, 0.1, 0.5, 0.9, 1])
def test_known_odd_shares_are_recovered(share):
    odd, even = np.sqrt(3 * share) * Legendre.basis(1)(GRID), np.sqrt(5 * (1 - share)) * Legendre.basis(2)(GRID)
    assert affine_antisymmetry(odd + even - 7) == pytest.approx(share, abs=1e-3)


@pytest.mark.parametrize("share", [0, 0.1, 0.5, 0.9, 1])
def test_the_affine_fit_takes_the_slope_and_nothing_else(share):
    grid = np.linspace(-1, 1, 1025)
    cubic, square = (np.sqrt(2 * k + 1) * Legendre.basis(k)(grid) for k in (3, 2))
    values = np.sqrt(share) * cubic + np.sqrt(1 - share) * square + 40 * grid - 3
    assert nonlinear_odd_share(values) == pytest.approx(share, abs=1e-3)
    assert affine_antisymmetry(values) > 0.99


def test_constant_and_affine_slices_are_undefined():
    assert np.isnan(affine_antisymmetry(np.full((2, 65), 3.0))).all()
    assert np.isnan(nonlinear_odd_share(2 * GRID + 1))
    assert affine_antisymmetry(2 * GRID + 1) == pytest.approx(1)


def shares(values):
    return xr.DataArray(values, {"timestep": [900, 100]}, ["timestep", "direction", "coordinate"])


def test_coordinates_are_no_replicates_and_holm_is_over_timesteps():
    values = np.random.default_rng(0).beta(60, 2, (2, 50, 3))
    table = symmetry.test(shares(values))
    copied = symmetry.test(shares(np.repeat(values, 4, 2)))
    np.testing.assert_allclose(table["p_value"], copied["p_value"], rtol=1e-9)
    np.testing.assert_allclose(table["p_holm"], multipletests(table["p_value"], method="holm")[1])
    low, high = sorted(table["p_value"])
    assert sorted(table["p_holm"]) == pytest.approx([min(1, 2 * low), min(1, max(2 * low, high))])
    np.testing.assert_allclose(table["effect"], values.mean((1, 2)) - 0.9)


def test_undefined_directions_are_counted():
    values = np.random.default_rng(0).beta(60, 2, (2, 50, 3))
    values[0, 4] = np.nan
    values[1, 5, 0] = np.nan
    table = symmetry.test(shares(values), threshold=0.99, alternative="less")
    assert table["undefined"].tolist() == [1, 0]
    assert table["units"].tolist() == [49, 50]


@pytest.mark.parametrize("count", [1, 8, 29, 30])
def test_few_directions_have_an_interval_that_covers_whatever_their_law(count):
    values = np.random.default_rng(0).beta(6, 3, (count, 2, 5))
    values[0, 0, 0] = np.nan
    measures = dict.fromkeys(symmetry.MEASURES, (("direction", "timestep", "coordinate"), values))
    data = xr.Dataset(measures, {"timestep": [900, 100]}, attrs={"evaluations": "7"})
    table = symmetry.summary(data).set_index(["measure", "timestep", "quantity"])
    mean, tenth = (table.loc[(symmetry.MEASURES[1], "all", quantity)] for quantity in ("mean", "q10"))
    singles = np.nanmean(values.reshape(count, -1), 1)
    assert mean["estimate"] == pytest.approx(singles.mean())
    assert mean[["undefined", "units", "evaluations"]].tolist() == [1, count, 7]
    ends, known = mean[["low", "high"]].tolist(), bounded_interval(singles, 0.95)
    assert (mean["method"] == "bounded mean, betting") == (ends == list(known)) == (count < 30)
    assert (tenth["warning"] != "") == (count < 30)
    assert np.isnan(tenth["estimate"]) == (count < 8)
    if count > 8:
        assert tenth["estimate"] == pytest.approx(np.nanquantile(values, 0.1))
        assert known[0] < ends[0] + 1e-12 < ends[1] - 1e-12 < known[1]
        assert tenth["low"] <= tenth["estimate"] <= tenth["high"]


@pytest.mark.parametrize("threshold", [0, 1, 1.5, float("nan"), "0.9", True])
def test_a_threshold_outside_the_unit_interval_is_refused(threshold):
    with pytest.raises(ValueError, match=r"threshold of a share must lie in \(0, 1\)"):
        symmetry.test(shares(np.full((2, 20, 1), 0.5)), threshold=threshold)


def test_the_interval_of_a_small_centre_covers_it():
    """Even part 0.3 (x^2 - 1) + c, whose mean is c."""
    even = 0.3 * (np.random.default_rng(0).standard_normal((200, 20, 16)) ** 2 - 1) + 0.02
    odd = np.ones((20, 16))
    covered = 0
    for draw in even:
        _, low, high = jackknife(lambda units, e=draw: vector_quantities(odd[units], e[units])[4], 20, 0.95)
        covered += low <= 0.02**2 <= high
    assert covered >= 0.9 * 200
