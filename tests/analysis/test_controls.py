"""Controls against closed forms: nothing is added to the mean, and what is known is taken out of the variance."""

import json

import numpy as np
import pytest
import xarray as xr
from scipy import stats
from scipy.optimize import minimize_scalar

import antinb
from antinb import controls, estimation, noise, statistics
from antinb.analysis import allocation
from antinb.analysis.bounded import bounded_interval
from antinb.analysis.intervals import welch_interval
from antinb.noise import modes

SHAPE = (1, 4, 4)


def run(design, statistic, seed, evaluations=20):
    """Values of a statistic of the leading modes, `(..., d)` to `(...)`, as `statistics.measure` gives them."""
    coefficients = modes.to_modes(design.draw(SHAPE, seed=seed).astype(np.float64), SHAPE)
    attrs = {"design": json.dumps(design.describe()), "seed": json.dumps(seed), "evaluations": str(evaluations)}
    return xr.DataArray(
        statistic(coefficients)[None], {"statistic": ["s"]}, ["statistic", "unit", "member"], attrs=attrs
    )


def squares(c):
    return c[..., 0] + 2 * c[..., 1] ** 2 - c[..., 0] * c[..., 2] + 0.1 * c[..., 9]


@pytest.mark.parametrize("design", [noise.antithetic(2000), noise.sobol(500, 8), noise.simplex(500, 4)])
def test_features_have_mean_zero_and_variance_one(design):
    table = controls.features(design, SHAPE, seed=0, leading=3)
    assert table["feature"].values.tolist()[:2] == ["mode 0^2", "mode 0 x 1"]
    means = table.mean("member")
    assert (np.abs(means.mean("unit")) < 4.5 * means.std("unit") / design.units**0.5).all()
    assert np.allclose(table.std(["unit", "member"]), 1, atol=0.15)


def test_regression_finds_the_coefficients_and_takes_the_variance_out():
    design = noise.antithetic(400)
    values, known = run(design, squares, 0), controls.features(design, SHAPE, seed=0, leading=3)
    found = controls.coefficients(values, known).sel(statistic="s")
    np.testing.assert_allclose(found.sel(feature="mode 1^2"), 2 * 2**0.5, atol=1e-6)
    np.testing.assert_allclose(found.sel(feature="mode 0 x 2"), -1, atol=1e-6)
    np.testing.assert_allclose(controls.regression(values, known), 2 + 0 * values + odd(design), atol=1e-4)


def odd(design):
    c = modes.to_modes(design.draw(SHAPE, seed=0).astype(np.float64), SHAPE)
    return (c[..., 0] + 0.1 * c[..., 9])[None]


def rough(c):
    return np.abs(c[..., 0] + 0.5 * c[..., 1]) + 0.3 * c[..., 9] ** 2


TRUTH = (2 / np.pi * 1.25) ** 0.5 + 0.3


@pytest.mark.slow
@pytest.mark.parametrize("pilot", [None, 200])
def test_regression_keeps_the_mean_and_its_intervals_cover(pilot):
    units = 40 if pilot is None else 20
    design, covered, estimates = noise.antithetic(units), 0, []
    fixed = None
    if pilot is not None:
        first = noise.antithetic(pilot)
        known = controls.features(first, SHAPE, seed=10**6, leading=2)
        fixed = controls.coefficients(run(first, rough, 10**6), known)
    for seed in range(400):
        known = controls.features(design, SHAPE, seed=seed, leading=2)
        row = estimation.interval(controls.regression(run(design, rough, seed), known, fixed=fixed)).iloc[0]
        covered += row["low"] <= TRUTH <= row["high"]
        estimates.append(row["estimate"])
    assert stats.binomtest(covered, 400, 0.95).pvalue > 1e-3
    assert abs(np.mean(estimates) - TRUTH) < 4 * np.std(estimates) / 20


def test_controlled_values_are_compared_with_the_variance_of_plain_ones():
    """Taking half of the variance out doubles the efficiency."""
    design = noise.iid(4000)

    def half(c):
        return c[..., 0] ** 2 + c[..., 9] ** 2

    known = controls.features(design, SHAPE, seed=0, leading=1)
    table = estimation.compare(
        controls.regression(run(design, half, 0), known), run(noise.iid(4000), half, 1)
    ).set_index("quantity")
    row = table.loc["efficiency"]
    assert row["low"] <= 2 <= row["high"]
    assert row["high"] - row["low"] < 0.6


def test_the_learned_direction_is_the_mean_gradient_and_makes_an_event_smooth():
    """E[grad] of tanh(c0 + 2 c3) lies along (1, 0, 0, 2); an event of one coordinate is what strata are best at."""
    wanted = np.array([1, 0, 0, 2]) / 5**0.5
    pilot = noise.antithetic(2000)
    found = controls.direction(
        run(pilot, lambda c: np.tanh(c @ np.r_[1, 0, 0, 2, np.zeros(12)]), 0), pilot, SHAPE, leading=4
    )
    np.testing.assert_allclose(found, wanted, atol=0.05)

    def event(c):
        return (c[..., :4] @ wanted > 0.3).astype(float)

    learned = noise.sobol(200, 64, basis="learned", direction=wanted)
    spreads = [run(design, event, 1).mean("member").var().item() for design in (learned, noise.sobol(200, 64))]
    assert spreads[0] < 0.2 * spreads[1]


@pytest.mark.slow
def test_two_levels_are_unbiased_and_their_intervals_cover():
    few, many = noise.iid(30), noise.iid(300)

    def coarse(c):
        return 0.9 * rough(c) + 0.4

    covered, estimates = 0, []
    for seed in range(300):
        arms = run(few, rough, seed), run(few, coarse, seed, 5), run(many, coarse, seed + 10**6, 5)
        row = controls.two_level(*arms, coefficient=1.1).iloc[0]
        covered += row["low"] <= TRUTH <= row["high"]
        estimates.append(row["estimate"])
    assert stats.binomtest(covered, 300, 0.95).pvalue > 1e-3
    assert abs(np.mean(estimates) - TRUTH) < 4 * np.std(estimates) / 300**0.5
    assert row["evaluations"] == 30 * 20 + 30 * 5 + 300 * 5
    assert row["se"] == pytest.approx(np.std(estimates), rel=0.35)


def event_arms(units, differ, many=400):
    rng = np.random.default_rng(3)
    fine, more = (rng.random((size, 1)) < 0.4 for size in (units, many))
    coarse = fine ^ (np.arange(units) < differ)[:, None]
    design = noise.iid(units)
    arms = [run(design, lambda c, v=part: v.astype(float), 0, cost) for part, cost in ((fine, 20), (coarse, 5))]
    return [*arms, run(noise.iid(many), lambda c: more.astype(float), 1, 5)]


@pytest.mark.parametrize("b", [1.0, 0.7])
def test_events_that_hardly_differ_have_a_betting_interval(b):
    """With nothing seen to differ there is a width all the same, and never less than that of the many units."""
    arms = event_arms(50, 0)
    row = controls.two_level(*arms, coefficient=b).iloc[0]
    f, c, many = (arm.values[0, :, 0] for arm in arms)
    assert row["method"] == "two levels, betting"
    assert row["warning"] == ""
    assert row["estimate"] == pytest.approx((f - b * c).mean() + b * many.mean())
    low, high = 2 * np.array(bounded_interval((f - c + 1) / 2, 0.95)) - 1
    rest = welch_interval([(1 - b) * c, b * many], 0.95)
    middle = (1 - b) * c.mean() + b * many.mean()
    assert row["estimate"] - row["low"] == pytest.approx(np.hypot(low, middle - rest[0]))
    assert row["high"] - row["estimate"] == pytest.approx(np.hypot(high, rest[1] - middle))
    assert high > 1 - 0.025 ** (1 / 50)  # no shorter than the rule of three
    assert controls.two_level(*event_arms(50, 12), coefficient=b)["method"].item() == "two levels, betting"
    assert controls.two_level(*event_arms(50, 13), coefficient=b)["method"].item() == "two levels"


def test_skewed_levels_are_warned_of():
    few, many = noise.iid(60), noise.iid(300)
    arms = run(few, lambda c: np.exp(c[..., 0]), 0), run(few, lambda c: c[..., 1], 0, 5)
    third = run(many, lambda c: c[..., 1], 1, 5)
    row = controls.two_level(*arms, third).iloc[0]
    assert row["warning"].endswith("take more units, of the fine sampler first")
    alike = arms[1].copy(data=arms[1].values + 0.5 * (np.arange(60)[:, None] < 2)).assign_attrs(arms[0].attrs)
    row = controls.two_level(alike, arms[1], third).iloc[0]  # no events: nothing bounds what was not seen
    assert row["method"] == "two levels"
    assert row["warning"].startswith("only 2 of 60 units differ from the others")


@pytest.mark.slow
def test_the_allocation_predicts_what_two_levels_save():
    """C = F + independent noise of variance v: the spread of two levels as a function of b, minimised by SciPy."""
    v, design = 0.05, noise.iid(20_000)
    arms = run(design, lambda c: c[..., 0], 0, 50), run(design, lambda c: c[..., 0] + v**0.5 * c[..., 5], 0, 5)
    row = allocation.best_allocation(np.cov(*(arm.values[0].mean(-1) for arm in arms)), 50, 5)

    def parts(b):
        return (1 - b) ** 2 + b**2 * v, b**2 * (1 + v)

    def spread(b):
        rest, moved = parts(b)
        return (rest * 55) ** 0.5 + (moved * 5) ** 0.5

    best = minimize_scalar(spread, bounds=(0, 1), method="bounded", options={"xatol": 1e-9})
    rest, moved = parts(best.x)
    assert row["coefficient"] == pytest.approx(best.x, abs=0.01)
    assert row["coarse_units_per_fine"] == pytest.approx((moved * 55 / (rest * 5)) ** 0.5, rel=0.03)
    assert row["predicted_efficiency"] == pytest.approx(50 / best.fun**2, rel=0.03)


@pytest.mark.parametrize("rho", [-0.999, -0.8, -0.1, 0.0, 0.3, 0.98])
def test_no_other_coefficient_is_cheaper(rho):
    sd, costs = np.array([2.0, 3.0]), (20, 5)
    covariance = np.array([[1, rho], [rho, 1]]) * sd[:, None] * sd
    found = allocation.best_allocation(covariance, *costs)
    b = np.linspace(-1, 1, 20_001)
    rest, moved = sd[0] ** 2 - 2 * b * covariance[0, 1] + b**2 * sd[1] ** 2, b**2 * sd[1] ** 2
    spread = ((rest * sum(costs)) ** 0.5 + (moved * costs[1]) ** 0.5) ** 2
    assert found["coefficient"] == pytest.approx(b[spread.argmin()], abs=1e-4)
    assert found["predicted_efficiency"] == pytest.approx(sd[0] ** 2 * costs[0] / spread.min(), rel=1e-6)


def test_two_levels_of_a_sampler_agree_with_the_fine_one(mixture_generator):
    options = {"progress": False}
    twin, pairs = mixture_generator.with_(steps=1), noise.antithetic(40)
    arms = [
        statistics.measure(antinb.sample(model, design, seed=seed, **options), statistics.brightness)
        for model, design, seed in (
            (mixture_generator, pairs, 1),
            (twin, pairs, 1),
            (twin, noise.antithetic(400), 2),
            (mixture_generator, noise.antithetic(2000), 3),
        )
    ]
    two, long = controls.two_level(*arms[:3]).iloc[0], estimation.interval(arms[3]).iloc[0]
    assert abs(two["estimate"] - long["estimate"]) < 4 * np.hypot(two["se"], long["se"])
    biased = estimation.interval(arms[2]).iloc[0]["estimate"]
    assert abs(biased - long["estimate"]) > 8 * np.hypot(two["se"], long["se"])


DESIGN = noise.iid(30)
VALUES = run(DESIGN, squares, 0)
COARSE = run(DESIGN, squares, 0, 5)
FIXED = controls.coefficients(
    run(noise.iid(30), squares, 9), controls.features(noise.iid(30), SHAPE, seed=9, leading=1)
)
KNOWN = controls.features(DESIGN, SHAPE, seed=0, leading=1)


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        (
            lambda: controls.features(DESIGN, SHAPE, seed=0, leading=17),
            "leading must be an integer of at most 16; got 17",
        ),
        (
            lambda: controls.regression(VALUES, controls.features(DESIGN, SHAPE, seed=0, leading=3)),
            "at most a tenth of the units, 3 here; got 6",
        ),
        (
            lambda: controls.regression(VALUES, controls.features(DESIGN, SHAPE, seed=1, leading=1)),
            "their seed is 0 and 1",
        ),
        (lambda: controls.regression(VALUES, KNOWN, folds=1), "folds must be an integer of at least 2; got 1"),
        (
            lambda: controls.regression(VALUES, KNOWN, fixed=controls.coefficients(VALUES, KNOWN)),
            "a pilot of another seed; got 0 for both",
        ),
        (lambda: controls.regression(VALUES.where(VALUES > 0), KNOWN), "s is undefined in .* of 30 units"),
        (lambda: controls.two_level(VALUES, COARSE, COARSE), "another seed than the fine ones; got 0"),
        (lambda: controls.two_level(VALUES, run(DESIGN, squares, 1, 5), COARSE), "their seed is 0 and 1"),
        (
            lambda: controls.two_level(VALUES, VALUES, COARSE),
            "fewer evaluations an image than the fine one's 20; got 20",
        ),
        (
            lambda: controls.two_level(VALUES, COARSE, run(DESIGN, squares, 1)),
            "of the same generator; their evaluations is 5 and 20",
        ),
        (
            lambda: controls.two_level(VALUES, COARSE, run(DESIGN, squares, 1, 5).assign_attrs(condition="3")),
            "the many units are of the same condition; got None and 3",
        ),
        (
            lambda: controls.regression(VALUES, KNOWN, fixed=FIXED.assign_coords(feature=["mode 3^2"])),
            "of the same features in the same order",
        ),
        (lambda: controls.two_level(VALUES, COARSE, COARSE, coefficient=np.inf), "coefficient must be a number"),
        (lambda: controls.direction(VALUES, noise.iid(30), SHAPE, leading=4), "leading must be .* at most 3; got 4"),
        (lambda: controls.direction(VALUES, noise.antithetic(30), SHAPE), "one statistic and its own design"),
    ],
)
def test_bad_arguments_are_one_line(call, reason):
    with pytest.raises(ValueError, match=reason) as error:
        call()
    assert "\n" not in str(error.value)
