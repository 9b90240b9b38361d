"""Measures of how odd a learned score is, their tests, and the image correlation that they imply.

A function is affine antisymmetric about `m` if `f(m + x) + f(m - x)` does not depend on `x`. For
`m = 0` the paper conjectures it of the predicted noise `eps_t` at every level `t`, and explains by
it why `z` and `-z` give negatively correlated images. A step of a sampler moves the pair's midpoint
away from 0, so the symmetry that is passed on is antisymmetry about the midpoint. The slices
themselves come from `antinb.probing`.
"""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import xarray as xr
from statsmodels.stats.multitest import multipletests

from antinb import checks
from antinb.analysis import diagnostics
from antinb.analysis.bounded import bounded_interval, bounded_p_value
from antinb.analysis.intervals import jackknife, row
from antinb.analysis.resampling import cluster_bootstrap

__all__ = ["MEASURES", "predict_correlation", "summary", "test"]

MEASURES = ("affine_antisymmetry", "nonlinear_odd_share")
NEGLIGIBLE = 1e-10  # of float32 rounding, in a variance
RESIDUAL, ROUNDING = 1e-3, 1e-5
LEAST, BOOTSTRAP, BETTING = 30, "bootstrap over directions", "bounded mean, betting"
SKEWED = "take more directions, or the interval of symmetry.test"
FEW = f"fewer than {LEAST} directions: take more for the interval of a quantile"


def affine_antisymmetry(values: np.ndarray, *, negligible: float = NEGLIGIBLE) -> np.ndarray:
    r"""Return the affine-antisymmetry score of slices, `(..., points)` to `(...)` in [0, 1].

    `AS = 1 - sum w (e - fbar)^2 / sum w (f - fbar)^2` with `e(s) = (f(s) + f(-s)) / 2`, on a symmetric
    grid of [-1, 1] with trapezoid weights `w`: the odd share of the slice's variance. It is 1 for
    an affine antisymmetric function, 0 for an even one, and `(1 - Corr(f(s), f(-s))) / 2`. A slice
    whose variance is below `negligible` of its mean square is constant: NaN.

    Raises:
        ValueError: if the number of points is even or below 3.

    Source: Jia et al., arXiv 2506.06185, section 3.

    Examples:
        >>> import numpy as np
        >>> s = np.linspace(-1, 1, 65)
        >>> affine_antisymmetry(np.stack([s**3 + 2, s**2])).round(6)
        array([1., 0.])
    """
    odd, even, power, _ = _parity_parts(values)
    return _share(odd, even, negligible * power)


def nonlinear_odd_share(values: np.ndarray, *, negligible: float = NEGLIGIBLE) -> np.ndarray:
    """Return the odd share of what the best affine fit in s leaves, `(..., points)` to `(...)` in [0, 1].

    The fit takes `b s` from the odd part, `b = sum w s f / sum w s^2`, and the mean from the even
    one. Anything nearly affine has AS near 1; this share says how the rest splits. NaN where that
    rest is below `negligible` of the slice's mean square: an affine slice has none.

    Raises:
        ValueError: as `affine_antisymmetry`.
    """
    odd, even, power, slope = _parity_parts(values)
    return _share(odd - slope, even, negligible * power)


def odd_points(points: int) -> int:
    """Return the number of points of a symmetric grid if it is odd and at least 3, otherwise a ValueError."""
    if checks.integer("points", points, 3) % 2 == 0:
        raise ValueError(f"points must be odd, so that the grid has its centre; got {points}")
    return int(points)


def vector_quantities(odd: np.ndarray, even: np.ndarray) -> np.ndarray:
    """Return odd share, displacement cosine and mean squares of odd, even and centre, of `(direction, value)`."""
    count = len(even)
    deviation = even - even.mean(0)
    odd_power, even_power = (odd**2).sum() / count, (deviation**2).sum() / (count - 1)
    plus, minus = (deviation * count / (count - 1) + sign * odd for sign in (1, -1))
    cosine = (plus * minus).sum(1) / np.linalg.norm(plus, axis=1) / np.linalg.norm(minus, axis=1)
    size = odd.shape[1]
    centre = (even.mean(0) ** 2).sum() - even_power / count
    powers = np.array([odd_power, even_power, centre]) / size
    return np.array([odd_power / (odd_power + even_power), cosine.mean(), *powers])


def summary(data: xr.Dataset, *, level: float = 0.95) -> pd.DataFrame:
    """Return mean and 10% quantile of each measure, a row a `timestep` (and "all"), `measure` and `quantity`.

    The mean is over directions of the mean over coordinates; the quantile is over all slices. `undefined` counts
    the NaN slices that are left out. With fewer than 30 directions, where a bootstrap covers 72% to 90%, the
    mean has the betting interval of `intervals.bounded_p_value`, which covers whatever the law of the scores. The
    other intervals come from a bootstrap over directions, all slices of one together; fewer than 8 have none. A
    `warning` is given for quantiles of fewer than 30 directions, and for means where directions are skewed.

    Raises:
        ValueError: for other dimensions than those of `score` (choose a `centre` first), or a level
            not from 0.01 to 0.9999.
    """
    checks.level(level)
    rows = []
    for measure in MEASURES:
        values = _plain(data[measure], 3).values
        for place, t in [*enumerate(data["timestep"].values.tolist()), (slice(None), "all")]:
            part = values[:, place].reshape(len(values), -1)
            undefined, part = int(np.isnan(part).sum()), part[np.isfinite(part).any(1)]
            means, units = _direction_means(part), len(part)
            about = {"measure": measure, "timestep": t, "undefined": undefined}
            shared = {"level": level, "units": units, "evaluations": json.loads(data.attrs["evaluations"])}
            numbers, method, warning = [np.nan] * 3, BETTING, ""
            if units >= LEAST:
                numbers = cluster_bootstrap(lambda drawn, v=means: v[drawn].mean(-1), units, level, values=units)
                method, warning = BOOTSTRAP, diagnostics.warning(means, SKEWED)
            elif units:
                numbers = means.mean(), *bounded_interval(means, level)
            rows.append(about | {"quantity": "mean"} | row(numbers, method=method, warning=warning, **shared))
            numbers = [np.nan] * 3
            if units >= 8:
                numbers = cluster_bootstrap(lambda drawn, v=part: _tenths(v, drawn), units, level, values=part.size)
            warning = FEW if units < LEAST else ""
            rows.append(about | {"quantity": "q10"} | row(numbers, method=BOOTSTRAP, warning=warning, **shared))
    return pd.DataFrame(rows)


def test(
    shares: xr.DataArray, *, threshold: float = 0.9, alternative: str = "greater", level: float = 0.95
) -> pd.DataFrame:
    """Return tests of the mean odd share by timestep: is it above (below) `threshold`?

    Null: the mean over directions of the share is at most (with `"less"`: at least) `threshold`.
    The units are directions; coordinates of one are averaged first, never counted as replicates.
    Shares are bounded and skewed, so the test is `intervals.bounded_p_value`, valid for any such
    distribution. `p_holm` is adjusted over timesteps, `rejected` at `1 - level`; `effect` is
    the mean less the threshold; `low, high` is the interval of `intervals.bounded_interval`.

    Args:
        shares: by `(timestep, direction)` and perhaps `coordinate`, in [0, 1].
        threshold: strictly between 0 and 1.
        alternative: `"greater"` or `"less"`.
        level: of the intervals; one minus it is the level of the tests, all timesteps together.

    Raises:
        ValueError: if an argument is out of its range, there are other dimensions (choose a
            `centre` first) or a timestep has no defined share.

    Examples:
        >>> shares = xr.DataArray(np.full((1, 50), 0.99), {"timestep": [500]}, ["timestep", "direction"])
        >>> test(shares, threshold=0.9)["rejected"].tolist()
        [True]
    """
    means = _plain(shares, 2)
    means = means.mean("coordinate") if "coordinate" in means.dims else means
    rows = []
    for place, t in enumerate(means["timestep"].values.tolist()):
        values = means.isel(timestep=place).values
        defined = values[np.isfinite(values)]
        p_value = bounded_p_value(defined, threshold, alternative)
        low, high = bounded_interval(defined, level)
        about = {"timestep": t, "alternative": alternative, "threshold": threshold}
        found = {"effect": defined.mean() - threshold, "p_value": p_value, "undefined": values.size - defined.size}
        numbers = defined.mean(), low, high
        rows.append(about | row(numbers, level=level, method=BETTING, units=defined.size, **found))
    table = pd.DataFrame(rows)
    rejected, adjusted, *_ = multipletests(table["p_value"], 1 - level, method="holm")
    return table.assign(p_holm=adjusted, rejected=rejected)


def predict_correlation(data: xr.Dataset, *, level: float = 0.95) -> pd.DataFrame:
    """Return the correlation of a pair that the even parts of the steps imply, a row a `step` and `quantity`.

    A deterministic first-order step is `y' = a y + b eps(y)`; a pair `m +- u` then has
    `m_K = sum_k A_k b_k E_k`, E the even part of `eps` at step k and `A_k` the product of the later a. With
    variances over pairs, summed over pixels after each image's own mean is taken off:

    - `predicted`: `(Var m - Var u) / (Var m + Var u)`, m summed up from the even parts;
    - `independent`: the same if the even parts of different steps were uncorrelated, `Var m = sum_k V_k`;
    - `bound`: the most that those `V_k` allow, `Var m <= (sum_k V_k^(1/2))^2`;
    - `observed`: covariance over variance of the two members of the run itself.

    That `predicted` meets `observed` on the same pairs is algebra, up to 1 / pairs; on other pairs it
    is a prediction. Intervals: jackknife over pairs. `step` counts the steps done. In memory are the
    even parts of all steps, in float64, a few times over.

    Args:
        data: antithetic pairs of a run with trajectories.
        level: of the intervals.

    Raises:
        ValueError: if there are no trajectories, the units are not pairs z and -z, or a step is not of this
            form, as with step noise, clipping or a sampler of higher order.
    """
    if "state" not in data or data.sizes["member"] != 2:
        found = f"{list(data.data_vars)} with {data.sizes['member']} members"
        raise ValueError(f"a prediction needs pairs with trajectories; got {found}")
    starts = data["state"].isel(step=0).values
    if np.abs(starts.sum(1)).max() > ROUNDING * np.abs(starts).max():
        raise ValueError("a prediction needs pairs that start from z and -z; the members of these units do not")
    names = ("predicted", "independent", "bound", "observed")
    contributions = np.empty((0, data.sizes["unit"], data["image"][0, 0].size))
    rows = []
    for step in range(data.sizes["step"]):
        last = step + 1 == data.sizes["step"]
        following = data["image"] if last else data["state"].isel(step=step + 1)
        before, eps, after = (
            part.values.astype(float).reshape(*part.shape[:2], -1)
            for part in (data["state"].isel(step=step), data["predicted_noise"].isel(step=step), following)
        )
        a, b = _step(before, eps, after, step)
        even = _deviations(eps.mean(1))
        contributions = np.concatenate([a * contributions, b * even[None]])
        members = _deviations(after)

        def correlations(
            units: np.ndarray, parts: np.ndarray = contributions, pairs: np.ndarray = members
        ) -> np.ndarray:
            return _correlations(parts[:, units], pairs[units])

        for name, *numbers in zip(names, *jackknife(correlations, len(even), level), strict=True):
            about = {"level": level, "method": "jackknife over pairs", "units": data.sizes["unit"]}
            rows.append({"step": step + 1, "quantity": name, **row(numbers, **about)})
    return pd.DataFrame(rows)


def _plain(values: xr.DataArray, least: int) -> xr.DataArray:
    """Return the values `(direction, timestep[, coordinate])`, refusing any other dimension."""
    wanted = ("direction", "timestep", "coordinate")
    dims = tuple(dim for dim in wanted if dim in values.dims)
    if set(dims) != set(values.dims) or dims[:least] != wanted[:least]:
        raise ValueError(f"shares have the dimensions {wanted}; got {values.dims}")
    return values.transpose(*dims)


def _direction_means(values: np.ndarray) -> np.ndarray:
    return np.nanmean(values, 1)


def _tenths(values: np.ndarray, drawn: np.ndarray) -> np.ndarray:
    """Return the 10% quantiles of all values of the drawn directions, `(..., direction)` to `(...)`."""
    table = values[drawn].reshape(*drawn.shape[:-1], -1)
    return (np.nanquantile if np.isnan(table.sum()) else np.quantile)(table, 0.1, axis=-1)


def _parity_parts(values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return odd part, even part less its mean, mean square and fit b s of slices.

    All but the mean square are times the root of the trapezoid weights.
    """
    values = np.asarray(values, float)
    count = values.shape[-1] if values.ndim else 0
    grid = np.linspace(-1, 1, odd_points(count))
    weights = np.ones(count)
    weights[[0, -1]] = 0.5
    weights /= weights.sum()
    odd, even = (values - values[..., ::-1]) / 2, (values + values[..., ::-1]) / 2
    even = even - (even @ weights)[..., None]
    slope = (odd @ (weights * grid))[..., None] / (weights @ grid**2) * grid
    root = np.sqrt(weights)
    return odd * root, even * root, values**2 @ weights, slope * root


def _share(odd: np.ndarray, even: np.ndarray, negligible: np.ndarray) -> np.ndarray:
    above, below = (odd**2).sum(-1), (even**2).sum(-1)
    total = above + below
    return np.divide(above, total, out=np.full(total.shape, np.nan), where=total > negligible)


def _step(before: np.ndarray, eps: np.ndarray, after: np.ndarray, step: int) -> tuple[float, float]:
    """Return a and b of `after = a before + b eps`, refusing a step that is not of this form."""
    known = np.stack([before.ravel(), eps.ravel()], 1)
    solution, *_ = np.linalg.lstsq(known, after.ravel(), rcond=None)
    residual = np.linalg.norm(known @ solution - after.ravel()) / np.linalg.norm(after)
    if residual > RESIDUAL:
        rule = "every step must be affine in the predicted noise (no step noise, no clipping, first order)"
        raise ValueError(f"{rule}; step {step} leaves {residual:.2g} of its state")
    return float(solution[0]), float(solution[1])


def _deviations(images: np.ndarray) -> np.ndarray:
    return images - images.mean(-1, keepdims=True)


def _correlations(parts: np.ndarray, members: np.ndarray) -> np.ndarray:
    """Return predicted, independent, bound and observed of `(step, pair, value)` and `(pair, member, value)`."""
    pairs = members.shape[0]
    moving = (parts - parts.mean(1, keepdims=True)).reshape(len(parts), -1)
    gram = moving @ moving.T / (pairs - 1)
    own = np.diag(gram)
    half = (members[:, 0] - members[:, 1]) / 2
    spread = (half**2).sum() / pairs
    middles = np.array([gram.sum(), own.sum(), np.sqrt(own).sum() ** 2])
    first, second = (members - members.mean(0)).swapaxes(0, 1)
    observed = 2 * (first * second).sum() / ((first**2).sum() + (second**2).sum())
    return np.array([*((middles - spread) / (middles + spread)), observed])
