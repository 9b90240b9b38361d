"""Surrogate controls: the mean stays, the known variance goes, and the error of the expectation is in the interval."""

import json

import numpy as np
import pytest
import xarray as xr
from scipy import stats

from antinb import controls, estimation, noise
from antinb.noise import modes

SHAPE = (1, 4, 4)
LONG = noise.sobol(16, 64)


def run(design, seed, *functions, evaluations=20, **attrs):
    """Values of statistics of the leading modes, `(..., d)` to `(...)` each, as `statistics.measure` gives them."""
    c = modes.to_modes(design.draw(SHAPE, seed=seed).astype(np.float64), SHAPE)
    about = {"design": design.describe(), "seed": seed, "evaluations": evaluations, **attrs}
    names = [f"s{place}" for place in range(len(functions))]
    return xr.DataArray(
        np.stack([function(c) for function in functions]),
        {"statistic": names, "unit": np.arange(design.units)},
        ["statistic", "unit", "member"],
        attrs={key: json.dumps(value) for key, value in about.items()},
    )


def dear(c):
    return np.abs(c[..., 0] + 0.5 * c[..., 1]) + 0.3 * c[..., 9] + 0.2 * (c[..., 4] ** 2 - 1)


def cheap(c):
    return np.abs(c[..., 0] + 0.5 * c[..., 1]) * 0.8 + 5


def other(c):
    return c[..., 9] + 0.1 * c[..., 3] ** 2


TRUTH = (2 / np.pi * 1.25) ** 0.5


def pair(design, seed, *functions, long=LONG, long_seed=10**6, **attrs):
    options = {"evaluations": 0, **attrs}
    return run(design, seed, *functions, **options), run(long, long_seed, *functions, **options)


@pytest.mark.parametrize(
    "design", [noise.iid(60), noise.antithetic(60), noise.simplex(60, 4), noise.sobol(60, 8), noise.latin(60, 8)]
)
def test_what_the_surrogate_explains_is_taken_out_and_its_mean_put_in(design):
    """`S = 2 C + 1` leaves no variance of units: the estimate is that of the long run, and so is its error."""
    surrogate, long = pair(design, 0, cheap)
    found = controls.surrogate(run(design, 0, lambda c: 2 * cheap(c) + 1), surrogate, long)
    means = long.values[0].mean(1)
    np.testing.assert_allclose(found, 2 * means.mean() + 1, atol=1e-9)
    np.testing.assert_allclose(found["expectation_variance"], 4 * means.var(ddof=1) / 16)
    np.testing.assert_allclose(found["expectation_df"], 15)
    row = estimation.interval(found).iloc[0]
    assert row["se"] == pytest.approx(2 * means.std(ddof=1) / 4)
    assert row["df"] == pytest.approx(15)


def test_each_statistic_has_the_control_of_its_name_and_features_are_shared():
    design = noise.iid(200)
    surrogate, long = pair(design, 0, other, cheap)
    values = run(design, 0, lambda c: other(c) + (c[..., 1] ** 2 - 1) / 2**0.5, cheap)
    known = controls.features(design, SHAPE, seed=0, leading=2)
    found = controls.surrogate(values, surrogate, long, known=known)
    expected = [part.values.mean(1).mean() for part in long]
    np.testing.assert_allclose(found.mean("member"), np.tile(np.array(expected)[:, None], 200), atol=1e-4)


def test_several_surrogates_have_one_error_if_their_expectations_share_noise():
    """With `S = A - B` the two errors cancel on common noise, and add up on other noise."""
    design = noise.iid(100)
    values = run(design, 0, lambda c: cheap(c) - other(c))
    first, second = pair(design, 0, cheap), pair(design, 0, other)
    apart = run(LONG, 7, other, evaluations=0)
    common = controls.surrogate(values, [first[0], second[0]], [first[1], second[1]])
    independent = controls.surrogate(values, [first[0], second[0]], [first[1], apart])
    difference = (first[1] - second[1]).values[0].mean(1)
    parts = [part.values[0].mean(1).var(ddof=1) / 16 for part in (first[1], apart)]
    np.testing.assert_allclose(common["expectation_variance"], difference.var(ddof=1) / 16, rtol=1e-6)
    np.testing.assert_allclose(independent["expectation_variance"], sum(parts), rtol=1e-6)
    np.testing.assert_allclose(
        independent["expectation_df"], sum(parts) ** 2 / sum(p**2 / 15 for p in parts), rtol=1e-6
    )


def test_the_interval_and_the_efficiency_hold_the_error_of_the_expectation():
    design = noise.iid(400)
    surrogate, long = pair(design, 0, cheap)
    found = controls.surrogate(run(design, 0, dear), surrogate, long)
    row = estimation.interval(found).iloc[0]
    parts = np.array([found.values[0, :, 0].var(ddof=1) / 400, found["expectation_variance"].item()])
    df = parts.sum() ** 2 / (parts[0] ** 2 / 399 + parts[1] ** 2 / 15)
    assert row["se"] == pytest.approx(parts.sum() ** 0.5)
    assert row["df"] == pytest.approx(df)
    assert row["high"] - row["estimate"] == pytest.approx(stats.t.ppf(0.975, df) * row["se"])
    skew = estimation.interval(found, method="skew").iloc[0]
    plain = estimation.interval(found.drop_vars(["expectation_variance", "expectation_df"]), method="skew").iloc[0]
    extra = stats.t.ppf(0.975, df) * parts[1] ** 0.5
    assert skew["high"] - skew["estimate"] == pytest.approx(np.hypot(plain["high"] - plain["estimate"], extra))
    base = run(noise.iid(400), 1, dear)
    efficiency = estimation.compare(found, base).set_index("quantity").loc["efficiency", "estimate"]
    assert efficiency == pytest.approx(base.values[0].var(ddof=1) / (400 * parts.sum()), rel=1e-6)
    with pytest.raises(ValueError, match="no such range"):
        estimation.interval(found, method="bounded")


@pytest.mark.parametrize("units", [49, 50])
def test_few_units_less_a_control_always_warn(units):
    """Also those of an event, which takes few values, so that its skewness is not looked at."""

    def event(c):
        return (c[..., 0] + c[..., 9] > 0).astype(float)

    def near(c):
        return (c[..., 0] > 0).astype(float)

    design, pilot = noise.iid(units), noise.iid(100)
    fixed = controls.coefficients(run(pilot, 5, event), run(pilot, 5, near))
    less = controls.surrogate(run(design, 0, event), *pair(design, 0, near), fixed=fixed)
    assert ("take more units" in estimation.interval(less)["warning"].item()) == (units < 50)
    assert estimation.interval(run(design, 0, event))["warning"].item() == ""


def test_a_quadratic_of_two_surrogates_is_learned():
    """It leaves no variance of units, and the estimate is the quadratic's mean over the long run."""
    design = noise.iid(400)
    first, second = (pair(design, 0, kind) for kind in (lambda c: c[..., 0], lambda c: 3 + c[..., 9]))
    values = run(design, 0, lambda c: 1 + 2 * c[..., 0] ** 2 - c[..., 0] * c[..., 9] + c[..., 9])
    found = controls.surrogate(values, *zip(first, second, strict=True), learned=True)
    a, b = first[1].values[0], second[1].values[0] - 3
    np.testing.assert_allclose(found, (1 + 2 * a**2 - a * b + b).mean(), atol=1e-7)
    assert controls.surrogate(values, *zip(first, second, strict=True)).std() > 1


def test_an_event_is_learned_from_the_surrogates_other_statistics():
    """Given the surrogate's c the event `c + 0.3 e > 0.5` has a probit's probability, whose variance is taken out."""

    def event(c):
        return (c[..., 0] + 0.3 * c[..., 9] > 0.5).astype(float)

    def near(c):
        return (c[..., 0] > 0.5).astype(float)

    design = noise.iid(4000)
    values = run(design, 0, event, lambda c: c[..., 0])
    tables = pair(design, 0, near, lambda c: 2 * c[..., 0])
    x = np.linspace(-8, 8, 4001)
    chance = stats.norm.cdf((x - 0.5) / 0.3)
    left = np.sum(chance * (1 - chance) * stats.norm.pdf(x)) * (x[1] - x[0])
    found = controls.surrogate(values, *tables, learned=True).sel(statistic=["s0"])
    assert found.var(ddof=1).item() == pytest.approx(left, rel=0.1)
    assert controls.surrogate(values, *tables).sel(statistic="s0").var(ddof=1).item() > 1.3 * left
    row = estimation.interval(found).iloc[0]
    assert abs(row["estimate"] - stats.norm.sf(0.5 / 1.09**0.5)) < 4 * row["se"]


def test_the_evaluations_of_a_pilot_are_counted_once_and_charged():
    design = noise.iid(400)
    fitted = [pair(design, 0, kind, pilot_seed=8, pilot_evaluations=2000) for kind in (cheap, other)]
    found = controls.surrogate(run(design, 0, dear), *zip(*fitted, strict=True))
    free = controls.surrogate(run(design, 0, dear), *zip(*[pair(design, 0, k) for k in (cheap, other)], strict=True))
    assert estimation.interval(found)["evaluations"].item() == 400 * 20 + 2000
    base = run(noise.iid(400), 1, dear)
    charged, plain = (estimation.compare(part, base)["estimate"][0] for part in (found, free))
    assert charged == pytest.approx(plain * 0.8)


def test_fixed_coefficients_come_from_a_pilot():
    pilot, design = noise.iid(300), noise.iid(20)
    surrogate, long = pair(design, 0, cheap)
    fixed = controls.coefficients(run(pilot, 5, dear), run(pilot, 5, cheap, evaluations=0))
    found = controls.surrogate(run(design, 0, dear), surrogate, long, fixed=fixed)
    b = fixed.item()
    expected = run(design, 0, dear).values - b * (surrogate.values - long.values.mean())
    assert fixed["feature"].values.tolist() == ["surrogate 0"]
    np.testing.assert_allclose(found, expected)


@pytest.mark.slow
@pytest.mark.parametrize(("units", "controls_"), [(20, 2), (100, 1)])
def test_intervals_cover_and_nothing_is_added_to_the_mean(units, controls_):
    """The long run is as short as the run itself, so that its error matters."""
    design, long, covered, estimates = noise.antithetic(units), noise.antithetic(units), 0, []
    for seed in range(300):
        parts = [pair(design, seed, kind, long=long, long_seed=10**6 + seed) for kind in (cheap, other)[:controls_]]
        found = controls.surrogate(run(design, seed, dear), *zip(*parts, strict=True))
        row = estimation.interval(found).iloc[0]
        covered += row["low"] <= TRUTH <= row["high"]
        estimates.append(row["estimate"])
    assert stats.binomtest(covered, 300, 0.95).pvalue > 1e-3
    assert abs(np.mean(estimates) - TRUTH) < 4 * np.std(estimates) / 300**0.5


def refused(**changes):
    design = noise.iid(40)
    surrogate, long = pair(design, 0, cheap)
    given = {"values": run(design, 0, dear), "surrogates": surrogate, "expectations": long} | changes
    return lambda: controls.surrogate(**given)


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"surrogates": run(noise.iid(40), 1, cheap, evaluations=0)}, "same noise"),
        ({"surrogates": run(noise.antithetic(40), 0, cheap, evaluations=0)}, "same noise"),
        ({"expectations": run(LONG, 0, cheap, evaluations=0)}, "another seed"),
        ({"expectations": run(LONG, 1, cheap, evaluations=0, model="b")}, "same generator"),
        ({"expectations": []}, "one expectation"),
        ({"expectations": run(LONG, 1, cheap, evaluations=0).rename(statistic="feature")}, "values are"),
        ({"surrogates": run(noise.iid(40), 0, cheap, evaluations=0).assign_coords(statistic=["t"])}, "'s0' is missing"),
        ({"surrogates": run(noise.iid(40), 0, cheap, evaluations=0, pilot_seed=0)}, "pilot of a surrogate"),
        ({"known": controls.features(noise.iid(40), SHAPE, seed=0, leading=3)}, "a tenth of the units"),
        ({"fixed": controls.coefficients(run(noise.iid(40), 0, dear), run(noise.iid(40), 0, cheap))}, "another seed"),
        (
            {
                "fixed": controls.coefficients(
                    run(noise.iid(40), 1, dear), controls.features(noise.iid(40), SHAPE, seed=1, leading=1)
                )
            },
            "same features",
        ),
        (
            {
                "surrogates": [run(noise.iid(40), 0, cheap, evaluations=0)] * 2,
                "expectations": [run(LONG, seed, cheap, evaluations=0) for seed in (1, 2)],
                "learned": True,
            },
            "same noise; their seed is 1 and 2",
        ),
        (
            {
                "surrogates": run(noise.iid(40), 0, lambda c: 1.0 * (c[..., 0] > 0), evaluations=0),
                "expectations": run(LONG, 1, lambda c: 1.0 * (c[..., 0] > 0), evaluations=0),
                "learned": True,
            },
            "1 statistics that are no events; got 0",
        ),
    ],
)
def test_what_does_not_fit_is_refused(changes, rule):
    with pytest.raises(ValueError, match=rule):
        refused(**changes)()
