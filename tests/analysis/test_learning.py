"""Learned controls against functions that they can learn exactly, statsmodels, and the coverage of their intervals."""

import json

import numpy as np
import pytest
import xarray as xr
from scipy import optimize, special, stats
from statsmodels.discrete.discrete_model import Probit

from antinb import controls, estimation, noise
from antinb.analysis import learning
from antinb.noise import modes

SHAPE = (1, 4, 4)
DESIGNS = [noise.iid(400), noise.antithetic(200), noise.simplex(100, 4), noise.sobol(25, 16)]


def run(design, seed, *functions):
    """Values of statistics of the leading modes, as `statistics.measure` gives them."""
    c = modes.to_modes(design.draw(SHAPE, seed=seed).astype(np.float64), SHAPE)
    about = {"design": design.describe(), "seed": seed, "evaluations": 20}
    return xr.DataArray(
        np.stack([function(c) for function in functions]),
        {"statistic": [f"s{place}" for place in range(len(functions))], "unit": np.arange(design.units)},
        ["statistic", "unit", "member"],
        attrs={key: json.dumps(value) for key, value in about.items()},
    )


def quadratic(c):
    return 3 + c[..., 0] - 2 * c[..., 1] * c[..., 2] + 0.5 * c[..., 1] ** 2


def contrast(c):
    return np.sqrt(1 + (c[..., :3] ** 2).sum(-1))


def event(c):
    return (quadratic(c) + c[..., 9] > 5).astype(float)


@pytest.mark.parametrize("design", DESIGNS, ids=lambda design: design.name)
def test_a_quadratic_and_its_root_are_learned_exactly(design):
    values = run(design, 0, quadratic, contrast)
    control, long = controls.learned(values, design, SHAPE, seed=1, leading=4)
    np.testing.assert_allclose(control, values, atol=1e-4)
    means = long.mean("member")
    for place, truth in enumerate((3.5, MEAN_CONTRAST)):
        assert abs(means[place].mean() - truth) < 4 * means[place].std() / len(means[place]) ** 0.5 + 1e-9
    row = estimation.interval(controls.surrogate(values, control, long))
    np.testing.assert_allclose(row["estimate"], [3.5, MEAN_CONTRAST], atol=2e-3)


MEAN_CONTRAST = stats.chi(3).expect(lambda r: (1 + r**2) ** 0.5)


def test_the_probit_is_that_of_statsmodels():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((20_000, 2))
    terms = learning._terms(x)
    y = (terms @ [-0.5, 1, 0.5, 0.2, -0.4, 0.1] + rng.standard_normal(len(x)) > 0).astype(float)
    known = Probit(y, terms).fit(disp=False).params
    np.testing.assert_allclose(learning._probit(terms, y), known, atol=2e-3)
    np.testing.assert_allclose(terms[:, 3:], np.stack([x[:, 0] ** 2, x[:, 0] * x[:, 1], x[:, 1] ** 2], 1))


@pytest.mark.parametrize("y", [np.zeros(50), np.ones(50), np.linspace(-1, 1, 50) > 0])
def test_events_that_are_separated_have_a_finite_fit(y):
    terms = learning._terms(np.linspace(-1, 1, 50)[:, None])
    found = learning._probit(terms, y.astype(float))
    assert np.isfinite(found).all()
    assert np.abs(special.ndtr(terms @ found) - y).mean() < 0.2


def test_the_probit_is_the_least_of_its_penalised_likelihood():
    rng = np.random.default_rng(3)
    terms = np.hstack([np.ones((60, 1)), rng.standard_normal((60, 4))])
    y = (terms[:, 1] + 0.3 * rng.standard_normal(60) > 0).astype(float)

    def penalised(b):
        return -stats.norm.logcdf((2 * y - 1) * (terms @ b)).sum() + np.square(b[1:]).sum() / 2

    known = optimize.minimize(penalised, np.zeros(5), tol=1e-10).x
    np.testing.assert_allclose(learning._probit(terms, y), known, atol=1e-5)


def test_the_control_of_an_event_is_its_probability():
    """On a probit in truth the control is that probability, whose variance is that of the event less p (1 - p)."""
    design = noise.iid(4000)
    values = run(design, 0, event)
    control, long = controls.learned(values, design, SHAPE, seed=1, leading=3)
    c = modes.to_modes(design.draw(SHAPE, seed=0).astype(np.float64), SHAPE)[:, 0]
    chance = special.ndtr(quadratic(c) - 5)
    assert np.abs(control.values[0, :, 0] - chance).mean() < 0.02
    less = controls.surrogate(values, control, long)
    assert less.var().item() == pytest.approx((chance * (1 - chance)).mean(), rel=0.1)


def test_an_event_is_learned_in_fewer_modes_unless_they_are_named(monkeypatch):
    """A hundredth of 1,600 images are the terms of 4 modes, a tenth those of all 16."""
    seen, fitted = [], learning._fitted
    monkeypatch.setattr(learning, "_fitted", lambda own, x, y: seen.append(x.shape[1]) or fitted(own, x, y))
    design = noise.iid(2000)
    controls.learned(run(design, 0, event, quadratic), design, SHAPE, seed=1)
    controls.learned(run(design, 0, event), design, SHAPE, seed=1, leading=6)
    assert seen == [4] * 5 + [16] * 5 + [6] * 5


def test_a_unit_does_not_shape_its_own_control():
    design = noise.antithetic(100)
    values = run(design, 0, quadratic)
    other = values.copy(deep=True)
    other[:, ::5] += np.random.default_rng(0).standard_normal(other[:, ::5].shape)
    first, second = (controls.learned(part, design, SHAPE, seed=1, leading=3)[0][0, ::5] for part in (values, other))
    np.testing.assert_allclose(first - first[0], second - second[0])
    assert np.abs(first - second).max() < 0.2


class Nearest:
    """A regressor with the methods of scikit-learn, which counts its fits."""

    fits = 0

    def fit(self, x, y):
        Nearest.fits += 1
        self.x, self.y = x, y
        return self

    def predict(self, x):
        return self.y[((x[:, None] - self.x) ** 2).sum(-1).argmin(1)]


class Classifier(Nearest):
    def predict_proba(self, x):
        chance = 0.9 * self.predict(x)
        return np.stack([1 - chance, chance], 1)


def test_another_regressor_is_fitted_once_a_fold_and_left_as_it_was(monkeypatch):
    monkeypatch.setattr(learning, "LONG", (4, 16))
    design, own = noise.iid(100), Nearest()
    values = run(design, 0, lambda c: np.sign(c[..., 0]))
    control, long = controls.learned(values, design, SHAPE, seed=1, regressor=own, leading=1, folds=4)
    assert Nearest.fits == 4
    assert not hasattr(own, "x")
    assert np.corrcoef(control.values.ravel(), values.values.ravel())[0, 1] > 0.9
    assert long.shape == (1, 4, 16)
    chances = controls.learned(run(design, 0, event), design, SHAPE, seed=1, regressor=Classifier(), leading=1)[1]
    assert chances.max() <= 0.9 + 1e-9


class Mean(Nearest):
    """A regressor that knows no more than the mean of what it is fitted to."""

    def predict(self, x):
        return np.full(len(x), self.y.mean())


def test_the_functions_of_all_folds_have_one_expectation(monkeypatch):
    monkeypatch.setattr(learning, "LONG", (4, 16))
    design = noise.iid(100)
    control, long = controls.learned(run(design, 0, quadratic), design, SHAPE, seed=1, regressor=Mean(), leading=1)
    np.testing.assert_allclose(control, long.mean().item())


@pytest.mark.slow
@pytest.mark.parametrize(("design", "statistic"), [(noise.sobol(20, 16), event), (noise.antithetic(100), contrast)])
def test_intervals_cover_and_nothing_is_added_to_the_mean(design, statistic, monkeypatch):
    monkeypatch.setattr(learning, "LONG", (16, 128))
    truth = run(noise.sobol(64, 4096), 10**7, statistic).mean().item()
    covered, estimates = 0, []
    for seed in range(200):
        values = run(design, seed, statistic)
        less = controls.surrogate(values, *controls.learned(values, design, SHAPE, seed=10**6 + seed, leading=3))
        row = estimation.interval(less).iloc[0]
        covered += row["low"] <= truth <= row["high"]
        estimates.append(row["estimate"])
    assert stats.binomtest(covered, 200, 0.95).pvalue > 1e-3
    assert abs(np.mean(estimates) - truth) < 4 * np.std(estimates) / 200**0.5


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"noise": noise.iid(60)}, "the design is the run's"),
        ({"seed": 0}, "another seed"),
        ({"leading": 17}, "leading must be"),
        ({"regressor": abs}, "fit"),
        ({"folds": 1}, "folds"),
    ],
)
def test_what_does_not_fit_is_refused(changes, rule):
    design = noise.antithetic(60)
    with pytest.raises(ValueError, match=rule):
        controls.learned(run(design, 0, quadratic), **{"noise": design, "shape": SHAPE, "seed": 1} | changes)
