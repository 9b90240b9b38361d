"""Learned controls: functions of the slow modes of the noise, fitted to other units of a run, their means by points."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import xarray as xr
from scipy import special, stats

from antinb import checks, dataset
from antinb.noise import Design, modes, sobol

__all__ = ["learned"]

MODES = 24  # at most, unless more are asked for
SELDOM = 10  # images of an event that say as much as one of another statistic
LONG = (64, 1024)  # units and points of the run that the expectation is taken of
PENALTY, ROUNDS, SETTLED = 1.0, 50, 1e-8  # of a probit fit
EDGE = 1e-10  # a probability lies so far inside (0, 1)

Function = Callable[[np.ndarray], np.ndarray]


@checks.typed
def learned(
    values: xr.DataArray,
    noise: Design,
    shape: tuple[int, ...],
    *,
    seed: int,
    regressor: Any = None,  # noqa: ANN401
    leading: int | None = None,
    folds: int = 5,
) -> tuple[xr.DataArray, xr.DataArray]:
    r"""Return a control learned from the run itself and its expectation, the two tables that `surrogate` takes.

    With c the leading modes of an image's noise and q a quadratic in them, the control of an event is the probit
    `Phi(q(c))`, and that of another statistic `q(c)`, or `sqrt(max(q(c), 0))` with q fitted to `S^2`, whichever fits
    better. It is fitted to the images of the other folds of units, so that nothing is added to the mean. The
    expectation is the mean of 64 units of 1,024 Sobol points in these modes alone: no network is called.

    Args:
        values: `(statistic, unit, member)` of `statistics.measure`.
        noise: the design of the run.
        shape: shape of one noise, the generator's `shape`.
        seed: of the expectation, another than the run's.
        regressor: another function to fit, an object with `fit(x, y)` and `predict(x)`, such as an estimator of
            scikit-learn; where it has `predict_proba`, that is taken for an event. None takes the quadratic.
        leading: number of modes; None takes 24, or as many that the quadratic has a tenth as many terms as there are
            images, for an event a hundredth.
        folds: number of folds of units, at least 2.

    Returns:
        `(statistic, unit, member)` of the run's units, and of the expectation's.

    Raises:
        ValueError: for another design than the run's, the run's seed, an undefined value, or more modes than the noise
            has or than the images can fit.

    Source: Oates, Girolami and Chopin, JRSS B 79 (2017), 695-718, for functions fitted to other draws.

    Examples:
        >>> import antinb
        >>> from antinb import controls, estimation, statistics
        >>> model, pairs = antinb.load("fashion-mixture", steps=5), antinb.noise.antithetic(100)
        >>> run = antinb.sample(model, pairs, seed=0, progress=False)
        >>> values = statistics.measure(run, statistics.contrast)
        >>> less = controls.surrogate(values, *learned(values, pairs, model.shape, seed=1, leading=4))
        >>> bool(estimation.interval(less)["se"].item() < estimation.interval(values)["se"].item())
        True
    """
    values = dataset.measured(values, "statistic", "seed", "design")
    if json.loads(values.attrs["design"]) != json.loads(json.dumps(noise.describe())):
        raise ValueError(f"the design is the run's; got {noise.name!r} for a run of {dataset.design(values)!r}")
    if checks.seed(seed) == json.loads(values.attrs["seed"]):
        raise ValueError(f"the expectation needs another seed than the run; got {seed} for both")
    if regressor is not None and not (hasattr(regressor, "fit") and hasattr(regressor, "predict")):
        raise ValueError(f"a regressor has fit(x, y) and predict(x); got a {type(regressor).__name__}")
    units, members = values.sizes["unit"], values.sizes["member"]
    folds = min(checks.integer("folds", folds, 2), units)
    images = units * members * (folds - 1) // folds
    most = _most(int(np.prod(shape)), images, quadratic=regressor is None)
    fewer = None if leading is not None or regressor is not None else max(1, _modes_for(images / SELDOM))
    leading = min(MODES, most) if leading is None else checks.integer("leading", leading, 1, most)
    points = leading_modes(noise, shape, json.loads(values.attrs["seed"]), leading, values["unit"].values.tolist())
    long = sobol(*LONG, basis="pixel", leading=leading)
    far = long.draw((leading,), seed=seed).astype(np.float64)
    near, mean = np.empty(values.shape), np.zeros((len(values), *LONG))
    for place, name in enumerate(values["statistic"].values.tolist()):
        table = dataset.defined(values, name)
        kept = fewer if np.isin(table, (0, 1)).all() else None
        near[place], mean[place] = _cross_fitted(regressor, points[..., :kept], table, far[..., :kept], folds)
    about = {"evaluations": "0", "model": json.dumps(f"learned on {leading} modes")}
    control = values.copy(data=near).assign_attrs(about)
    dims, unit = values.dims, np.arange(LONG[0])
    about |= {"design": json.dumps(long.describe()), "seed": json.dumps(seed)}
    return control, xr.DataArray(
        mean, {"statistic": values["statistic"], "unit": unit}, dims, attrs=control.attrs | about
    )


def conditional(
    values: xr.DataArray, surrogates: Sequence[xr.DataArray], expectations: Sequence[xr.DataArray], folds: int
) -> tuple[xr.DataArray, xr.DataArray]:
    """Return a control learned as `learned` does, from the surrogates' statistics in place of modes.

    Events are left out of what it is learned from, and the expectations are of one design and seed.
    """
    x, far = (_columns(tables) for tables in (surrogates, expectations))
    for part in expectations[1:]:
        dataset.check_same_noise(expectations[0], part)
    kept = [place for place in range(x.shape[2]) if not np.isin(x[..., place], (0, 1)).all()]
    events = any(np.isin(dataset.defined(values, name), (0, 1)).all() for name in values["statistic"].values)
    images = values.sizes["unit"] * values.sizes["member"]
    most = _most(x.shape[2], images // SELDOM if events else images, quadratic=True)
    if not 0 < len(kept) <= most:
        raise ValueError(f"a control is learned from 1 to {most} statistics that are no events; got {len(kept)}")
    x, far = x[..., kept], far[..., kept]
    mean, spread = far.mean((0, 1)), far.std((0, 1))
    near, long = np.empty(values.shape), np.empty((len(values), *far.shape[:2]))
    for place, name in enumerate(values["statistic"].values.tolist()):
        table = dataset.defined(values, name)
        near[place], long[place] = _cross_fitted(None, (x - mean) / spread, table, (far - mean) / spread, folds)
    first, about = expectations[0], {"evaluations": "0", "model": json.dumps("learned from surrogates")}
    control = values.copy(data=near).assign_attrs(about)
    attrs = control.attrs | {key: first.attrs[key] for key in ("design", "seed")}
    coords = {"statistic": values["statistic"], "unit": first["unit"]}
    return control, xr.DataArray(long, coords, ("statistic", "unit", "member"), attrs=attrs)


def _columns(tables: Sequence[xr.DataArray]) -> np.ndarray:
    """Return all statistics of some tables, `(unit, member, columns)`."""
    parts = [np.stack([dataset.defined(part, name) for name in part["statistic"].values], -1) for part in tables]
    return np.concatenate(parts, -1)


def leading_modes(
    noise: Design, shape: tuple[int, ...], seed: int, leading: int, units: Sequence[int] | None = None
) -> np.ndarray:
    """Return the leading coefficients of a run's noise, `(unit, member, leading)`, one unit in memory at a time."""
    numbers = range(noise.units) if units is None else units
    drawn = (noise.draw(shape, seed=seed, units=[unit])[0] for unit in numbers)
    return np.stack([modes.to_modes(unit.astype(np.float64), tuple(shape))[:, :leading] for unit in drawn])


def _most(dimension: int, images: int, *, quadratic: bool) -> int:
    """Return how many modes a function may take: a quadratic has at most a tenth as many terms as there are images."""
    fitted = _modes_for(images) if quadratic else images // 10
    if fitted < 1:
        raise ValueError(f"a control is learned from more images; got {images} in the other folds")
    return min(dimension, fitted)


def _modes_for(images: float) -> int:
    """Return in how many modes a quadratic has a tenth as many terms as there are images."""
    return int(((1 + 8 * images / 10) ** 0.5 - 3) / 2)


def _cross_fitted(
    regressor: Any,  # noqa: ANN401
    points: np.ndarray,
    table: np.ndarray,
    far: np.ndarray,
    folds: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Return a statistic's control `(unit, member)` and what has its expectation, by the points far `(..., leading)`.

    The function of each fold is moved to a common expectation, that of the functions' mean over units.
    """
    fold = np.arange(len(table)) % folds
    near, means = np.empty(table.shape), np.empty((folds, *far.shape[:2]))
    for number in range(folds):
        mine = fold == number
        function = _fitted(regressor, points[~mine].reshape(-1, points.shape[2]), table[~mine].ravel())
        near[mine] = function(points[mine].reshape(-1, points.shape[2])).reshape(near[mine].shape)
        means[number] = [function(unit) for unit in far]
    shares = np.bincount(fold, minlength=folds) / len(table)
    mean = np.einsum("k,kum->um", shares, means)
    return near + (mean.mean() - means.mean((1, 2)))[fold][:, None], mean


def _fitted(regressor: Any, x: np.ndarray, y: np.ndarray) -> Function:  # noqa: ANN401
    """Return the function fitted to points `(n, d)` and values `(n,)`; see `learned`."""
    event = bool(np.isin(y, (0, 1)).all())
    if regressor is not None:
        own = copy.deepcopy(regressor)
        own.fit(x, y)
        return (lambda at: own.predict_proba(at)[:, -1]) if event and hasattr(own, "predict_proba") else own.predict
    terms = _terms(x)
    if event:
        probit = _quadratic(_probit(terms, y), x.shape[1])
        return lambda at: special.ndtr(probit(at))
    gram = terms.T @ terms
    plain, square = (_quadratic(np.linalg.solve(gram, terms.T @ part), x.shape[1]) for part in (y, y**2))

    def root(at: np.ndarray) -> np.ndarray:
        return np.sqrt(np.maximum(square(at), 0))

    errors = [np.square(y - function(x)).sum() for function in (plain, root)]
    return root if y.min() >= 0 and errors[1] < errors[0] else plain


def _terms(x: np.ndarray) -> np.ndarray:
    """Return `1, x_i, x_i x_j` with i <= j of points `(n, d)`, a column each."""
    first, second = np.triu_indices(x.shape[1])
    return np.hstack([np.ones((len(x), 1)), x, x[:, first] * x[:, second]])


def _quadratic(coefficients: np.ndarray, dimension: int) -> Function:
    """Return the quadratic with these coefficients of `_terms`, `(n, d)` to `(n,)`."""
    form = np.zeros((dimension, dimension))
    form[np.triu_indices(dimension)] = coefficients[1 + dimension :]
    return lambda at: coefficients[0] + at @ coefficients[1 : 1 + dimension] + (at @ form * at).sum(1)


def _probit(terms: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return coefficients b of `P(y = 1) = Phi(terms b)` by Fisher scoring.

    The penalty `|b|^2 / 2` on all but the first keeps them finite where the terms separate the events.
    """
    penalty = PENALTY * np.r_[0, np.ones(terms.shape[1] - 1)]
    found = np.zeros(terms.shape[1])
    found[0] = special.ndtri((y.sum() + 1) / (len(y) + 2))
    for _ in range(ROUNDS):
        index = terms @ found
        density, chance = stats.norm.pdf(index), np.clip(special.ndtr(index), EDGE, 1 - EDGE)
        weight = density / (chance * (1 - chance))
        curvature = (terms.T * (weight * density)) @ terms + np.diag(penalty + EDGE)
        step = np.linalg.solve(curvature, terms.T @ (weight * (y - chance)) - penalty * found)
        found += step
        if np.abs(step).max() < SETTLED:
            break
    return found
