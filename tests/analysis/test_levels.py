"""Several levels against linear algebra, general minimisers, the closed form of two, and the coverage of intervals."""

import json

import numpy as np
import pytest
import xarray as xr
from scipy import stats
from scipy.optimize import minimize

from antinb import controls, noise
from antinb.analysis import allocation
from antinb.noise import modes

SHAPE = (1, 4, 4)
PLACES = [[0, 1, 2], [1, 2], [2]]


def covariance(seed=0, levels=3):
    factor = np.random.default_rng(seed).standard_normal((levels, levels)) + 3 * np.tri(levels)
    return factor @ factor.T


def run(design, seed, *levels):
    """Values of one statistic of the leading modes for each level, a function and its evaluations."""
    c = modes.to_modes(design.draw(SHAPE, seed=seed).astype(np.float64), SHAPE)
    tables = []
    for function, cost in levels:
        about = {"design": design.describe(), "seed": seed, "evaluations": cost, "model": function.__name__}
        coords = {"statistic": ["s"], "unit": np.arange(design.units)}
        attrs = {key: json.dumps(value) for key, value in about.items()}
        tables.append(xr.DataArray(function(c)[None], coords, ["statistic", "unit", "member"], attrs=attrs))
    return tables


def dear(c):
    return np.abs(c[..., 0] + 0.5 * c[..., 1]) + 0.1 * (c[..., 2] ** 2 - 1)


def middle(c):
    return 0.9 * np.abs(c[..., 0] + 0.5 * c[..., 1]) + 0.1 * c[..., 3] ** 2


def free(c):
    return c[..., 0] ** 2 + 0.5 * np.abs(c[..., 1])


ALL = ((dear, 20), (middle, 5), (free, 0))
TRUTH = (2 / np.pi * 1.25) ** 0.5


@pytest.mark.parametrize("images", [[10, 50, 400], [30, 30, 30], [100, 1, 1]])
def test_the_weights_are_the_best_unbiased_ones(images):
    """They solve the equations of Lagrange for the least variance under unbiasedness."""
    known, sizes = covariance(), [len(place) for place in PLACES]
    whole, sums = np.zeros((sum(sizes), sum(sizes))), np.zeros((3, sum(sizes)))
    for place, count, end in zip(PLACES, images, np.cumsum(sizes), strict=True):
        own = slice(end - len(place), end)
        whole[own, own] = known[np.ix_(place, place)] / count
        sums[place, np.arange(end - len(place), end)] = 1
    system = np.block([[2 * whole, sums.T], [sums, np.zeros((3, 3))]])
    expected = np.linalg.solve(system, np.r_[np.zeros(sum(sizes)), 1, 0, 0])[: sum(sizes)]
    found = np.concatenate(allocation.best_weights(known, PLACES, np.array(images, float)))
    np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("rho", [-0.95, 0.6, 0.9, 0.999])
def test_two_levels_are_the_closed_form(rho):
    known = np.array([[4.0, 2 * rho * 3], [2 * rho * 3, 9.0]])
    closed = allocation.best_allocation(known, 20.0, 5.0)
    units, efficiency = allocation.nested(known, np.array([20.0, 5.0]))
    assert efficiency == pytest.approx(closed["predicted_efficiency"], rel=1e-4)
    assert units[1] == pytest.approx(closed["coarse_units_per_fine"], rel=0.02)


def test_levels_that_are_not_worth_their_cost_get_no_units():
    units, efficiency = allocation.nested(np.diag([1.0, 1.0, 1.0]), np.array([20.0, 19.0, 18.0]))
    assert efficiency <= 1.0001
    assert efficiency < 20 / 57 * 3
    known = np.array([[1, 0.99], [0.99, 1]])
    assert allocation.nested(known, np.array([20.0, 0.001]))[1] == pytest.approx(1 / (1 - 0.99**2), rel=0.1)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_no_other_allocation_of_three_levels_is_cheaper(seed):
    known, costs = covariance(seed), np.array([20.0, 5.0, 1.0])
    spent = costs[::-1].cumsum()[::-1]

    def product(logarithms):
        units = np.exp(np.r_[0, logarithms])
        weights = allocation.best_weights(known, PLACES, units)
        parts = [w @ known[first:, first:] @ w for first, w in enumerate(weights)]
        return np.sum(parts / units) * (units @ spent)

    best = min(minimize(product, start, method="Nelder-Mead").fun for start in ([0, 0], [2, 2], [-2, 3]))
    assert known[0, 0] * 20 / allocation.nested(known, costs)[1] <= best * 1.001


def test_a_surrogate_that_equals_the_fine_level_leaves_the_mean_of_all_its_images():

    def same(c):
        return 0 + dear(c)

    pilot = run(noise.antithetic(50), 5, (dear, 20), (same, 0))
    groups = [run(noise.antithetic(20), 0, (dear, 20), (same, 0)), run(noise.sobol(16, 64), 1, (same, 0))]
    row = controls.levels(groups, pilot).iloc[0]
    images = np.concatenate([group[-1].values.ravel() for group in groups])
    assert row["estimate"] == pytest.approx(images.mean(), abs=1e-6)
    parts = [group[-1].values[0].mean(1) * group[-1].size / images.size for group in groups]
    assert row["se"] == pytest.approx(sum(part.var(ddof=1) / len(part) for part in parts) ** 0.5, rel=1e-5)
    assert row["evaluations"] == 50 * 2 * 20 + 20 * 2 * 20
    assert row["units"] == "20+16"


def test_two_groups_are_two_levels_with_the_weights_as_coefficient():
    design, more = noise.iid(60), noise.iid(300)
    pilot = run(noise.iid(200), 5, *ALL[:2])
    fine, coarse, [many] = *run(design, 0, *ALL[:2]), run(more, 1, ALL[1])
    known = np.cov([part.values[0, :, 0] for part in pilot])
    weights = allocation.best_weights(known, [[0, 1], [1]], np.array([60.0, 300.0]))
    two = controls.two_level(fine, coarse, many, coefficient=-weights[0][1]).iloc[0]
    row = controls.levels([[fine, coarse], [many]], pilot).iloc[0]
    for key in ("estimate", "se", "df", "low", "high"):
        assert row[key] == pytest.approx(two[key], rel=1e-6)


@pytest.mark.slow
def test_three_levels_are_unbiased_cover_and_are_worth_their_cost():
    pilot = run(noise.antithetic(200), 10**7, *ALL)
    plan = controls.allocation(pilot)
    assert plan["group"].tolist() == ["0+1+2", "1+2", "2"]
    designs = [noise.antithetic(max(2, round(20 * units))) for units in plan["units"]]
    covered, estimates = 0, []
    for seed in range(200):
        groups = [run(part, 3 * seed + k, *ALL[k:]) for k, part in enumerate(designs)]
        row = controls.levels(groups, pilot).iloc[0]
        covered += row["low"] <= TRUTH <= row["high"]
        estimates.append(row["estimate"])
    assert stats.binomtest(covered, 200, 0.95).pvalue > 1e-3
    assert abs(np.mean(estimates) - TRUTH) < 4 * np.std(estimates) / 200**0.5
    alone = pilot[0].mean("member").var().item() * 40
    spent = sum(design.units * cost for design, cost in zip(designs, plan["evaluations"], strict=True))
    assert alone / (np.var(estimates) * spent) == pytest.approx(plan["efficiency"][0], rel=0.3)


PILOT = run(noise.iid(40), 9, *ALL[:2])


@pytest.mark.parametrize(
    ("groups", "pilot", "rule"),
    [
        ([run(noise.iid(20), 0, *ALL[:2])], [], "a pilot and groups"),
        ([[]], PILOT, "a pilot and groups"),
        ([run(noise.iid(20), 0, ALL[0])], PILOT, "level 1 is in none"),
        ([run(noise.iid(20), 9, *ALL[:2])], PILOT, "a seed of their own"),
        ([run(noise.iid(20), 0, *ALL)], PILOT, "fits 0"),
        ([[*run(noise.iid(20), 0, ALL[0]), *run(noise.iid(20), 1, ALL[1])]], PILOT, "same noise"),
        ([run(noise.iid(20), 0, *ALL[:2]), run(noise.iid(1), 1, ALL[1])], PILOT, "at least two units"),
    ],
)
def test_what_does_not_fit_is_refused(groups, pilot, rule):
    with pytest.raises(ValueError, match=rule):
        controls.levels(groups, pilot)


def test_an_allocation_needs_a_level_that_costs():
    with pytest.raises(ValueError, match="costs evaluations"):
        controls.allocation(run(noise.iid(40), 0, ALL[2]))
