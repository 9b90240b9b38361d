"""Control variates: they remove from an estimate what is known about the noise or about a cheaper sampler."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import xarray as xr

from antinb import checks, dataset
from antinb.analysis import diagnostics, estimation
from antinb.analysis.bounded import bounded_interval
from antinb.analysis.intervals import row, welch, welch_interval
from antinb.analysis.statistics import unit_means
from antinb.dataset import check_same_generator, defined, design, evaluations
from antinb.noise import Design, modes

__all__ = ["coefficients", "direction", "features", "regression", "two_level"]

REMEDY = "take more units, of the fine sampler first"


@checks.typed
def features(noise: Design, shape: tuple[int, ...], *, seed: int, leading: int = 6) -> xr.DataArray:
    """Return functions of a run's noise whose mean is known to be 0, `(feature, unit, member)`.

    They are `(c_i^2 - 1)/sqrt 2` and `c_i c_j`, i < j, of the coefficients c in the leading modes of
    `antinb.modes`: `leading (leading + 1) / 2` uncorrelated features of variance 1. Linear ones are
    left out, since they vanish in the mean over a pair or a simplex unit.

    Args:
        noise: the design of the run.
        shape: shape of one noise, the generator's `shape`.
        seed: the run's seed.
        leading: number of modes.

    Raises:
        ValueError: if `leading` is below 1 or more than the noise has modes.

    Examples:
        >>> from antinb import noise
        >>> features(noise.antithetic(10), (1, 4, 4), seed=0, leading=2)["feature"].values.tolist()
        ['mode 0^2', 'mode 0 x 1', 'mode 1^2']
    """
    leading = checks.integer("leading", leading, 1, int(np.prod(shape)))
    kept = _modes(noise, shape, seed, leading)
    first, second = np.triu_indices(leading)
    products = kept[..., first] * kept[..., second]
    products[..., first == second] = (products[..., first == second] - 1) / 2**0.5
    names = [f"mode {i}^2" if i == j else f"mode {i} x {j}" for i, j in zip(first, second, strict=True)]
    about = {"design": json.dumps(noise.describe()), "seed": json.dumps(seed)}
    table = xr.DataArray(products, dims=("unit", "member", "feature"), attrs=about)
    return table.assign_coords(feature=names).transpose("feature", "unit", "member")


@checks.typed
def coefficients(values: xr.DataArray, known: xr.DataArray) -> xr.DataArray:
    """Return the least-squares coefficients `(statistic, feature)` of unit means on the features' unit means.

    Raises:
        ValueError: if the two are of different runs, a value is undefined, or the features are more than a
            tenth of the units.

    Examples:
        >>> from antinb import noise
        >>> known = features(noise.antithetic(40), (1, 4, 4), seed=0, leading=1)
        >>> values = (3 * known).rename(feature="statistic").assign_attrs(known.attrs)
        >>> round(coefficients(values, known).item(), 6)
        3.0
    """
    y, x = _shared_means(values, known, fitted=True)
    return _coefficients(values, known, _fit(y, x))


@checks.typed
def direction(values: xr.DataArray, noise: Design, shape: tuple[int, ...], *, leading: int = 64) -> np.ndarray:
    """Return the direction `(leading,)` in the leading modes along which a statistic changes most, of length 1.

    It is that of the least-squares coefficients of the pilot's images on their modes: the statistic's mean
    gradient, if the noise is normal. `noise.sobol(..., basis="learned", direction=)` lays its best coordinate
    along it, in a run of another seed.

    Args:
        values: `(statistic, unit, member)` of a pilot, of one statistic.
        noise: the pilot's design.
        shape: shape of one noise, the generator's `shape`.
        leading: number of modes, at most a tenth of the pilot's images.

    Raises:
        ValueError: for several statistics, an undefined value, a design that is not the pilot's, or too many modes.

    Source: Stein's identity, `E[z S(z)] = E[grad S(z)]`, Ann. Stat. 9 (1981), 1135-1151.

    Examples:
        >>> from antinb import noise
        >>> design = noise.iid(100)
        >>> about = {"design": json.dumps(design.describe()), "seed": "0"}
        >>> means = design.draw((1, 4, 4), seed=0).mean((-3, -2, -1), dtype=float)
        >>> values = xr.DataArray(means[None], {"statistic": ["mean"]}, ["statistic", "unit", "member"], attrs=about)
        >>> direction(values, design, (1, 4, 4), leading=3).round(3) + 0.0
        array([1., 0., 0.])
    """
    values = dataset.measured(values, "statistic", "seed", "design")
    if values.sizes["statistic"] != 1 or json.loads(values.attrs["design"]) != json.loads(json.dumps(noise.describe())):
        raise ValueError(f"a direction is that of one statistic and its own design; got {values.sizes['statistic']}")
    table = defined(values, values["statistic"].item())
    leading = checks.integer("leading", leading, 1, min(int(np.prod(shape)), table.size // 10))
    kept = _modes(noise, shape, json.loads(values.attrs["seed"]), leading)
    slope = _fit(table.reshape(-1, 1), kept.reshape(-1, leading))[0]
    return slope / np.linalg.norm(slope)


@checks.typed
def regression(
    values: xr.DataArray, known: xr.DataArray, *, folds: int = 10, fixed: xr.DataArray | None = None
) -> xr.DataArray:
    r"""Return the values less what features of known mean 0 explain, `S - sum_j beta_j X_j`, as values of the same run.

    The mean stays the same, since beta is independent of the units that it is used on: it is fitted to
    the other folds of units, or `fixed` by an independent pilot, as is better for about 20 units. Intervals,
    efficiencies and coverage are those of `estimation`.

    Args:
        values: `(statistic, unit, member)` of `statistics.measure`.
        known: `(feature, unit, member)` of `features`, of the same design and seed.
        folds: number of folds, at least 2.
        fixed: `(statistic, feature)` of `coefficients` from a run of another seed.

    Raises:
        ValueError: as `coefficients`, or if `fixed` comes from the run itself or the folds are fewer than 2.

    Source: Lavenberg and Welch, Management Science 27 (1981), 322-335; folds as in cross-fitting.

    Examples:
        >>> from antinb import noise
        >>> known = features(noise.antithetic(40), (1, 4, 4), seed=0, leading=1)
        >>> values = (3 * known).rename(feature="statistic").assign_attrs(known.attrs)
        >>> bool((abs(regression(values, known)) < 1e-9).all())
        True
    """
    folds = checks.integer("folds", folds, 2)
    values, known = dataset.measured(values), dataset.measured(known, "feature")
    y, x = _shared_means(values, known, fitted=fixed is None)
    if fixed is not None:
        if fixed.attrs["seed"] == values.attrs["seed"]:
            raise ValueError(
                f"fixed coefficients come from a pilot of another seed; got {fixed.attrs['seed']} for both"
            )
        for dim, table in (("statistic", values), ("feature", known)):
            if fixed[dim].values.tolist() != table[dim].values.tolist():
                raise ValueError(
                    f"fixed coefficients are of the same {dim}s in the same order; got {fixed[dim].values}"
                )
        beta = np.broadcast_to(fixed.values, (len(x), *fixed.shape))
    else:
        fold = np.arange(len(x)) % min(folds, len(x))
        beta = np.empty((len(x), y.shape[1], x.shape[1]))
        for number_ in np.unique(fold):
            beta[fold == number_] = _fit(y[fold != number_], x[fold != number_])
    explained = np.einsum("usf,fum->sum", beta, known.values)
    return (values - explained).assign_attrs(values.attrs, control=json.dumps("regression"))


@checks.typed
def two_level(
    fine: xr.DataArray, coarse: xr.DataArray, many: xr.DataArray, *, coefficient: float = 1.0, level: float = 0.95
) -> pd.DataFrame:
    r"""Return the mean of the fine sampler's statistics from few fine and many coarse images, with intervals.

    `mean(F - b C) + b mean(C')`: F and C are the fine and the coarse sampler on the *same* noise, C' the
    coarse one on other noise. Unbiased for the fine sampler whatever b is, if b is fixed beforehand;
    `se^2 = Var(F - b C)/n + b^2 Var(C')/n'` over units, df by Welch and Satterthwaite.

    If F and C are events that differ in fewer than 15 units, that interval is too short or has no width. The mean of
    `F - C` then gets a betting interval, which has a width even if nothing was seen to differ. Its distances from the
    estimate and those of the t interval of `(1 - b) mean(C) + b mean(C')` are joined as roots of sums of squares.

    Args:
        fine: `(statistic, unit, member)` of the fine sampler.
        coarse: the same statistics of the coarse one, same design and seed.
        many: the same statistics of the coarse one, another seed.
        coefficient: b, 1 or the one of an independent pilot (`best_allocation`).
        level: of the intervals.

    Returns:
        Rows `statistic, design, estimate, low, high, level, method, units, evaluations, se, df, warning`;
        `units` are those of the fine run, `evaluations` those of all three; `method` is "two levels", or
        "two levels, betting".

    Raises:
        ValueError: if fine and coarse do not share their noise, many shares it, a value is undefined, or
            there are fewer than two units.

    Source: Giles, Multilevel Monte Carlo path simulation, Operations Research 56 (2008); for the joined interval,
        Zou and Donner, Construction of confidence limits about effect measures, Stat. Med. 27 (2008), 1693-1702.
    """
    checks.level(level)
    b = checks.number("coefficient", coefficient, -1e9, 1e9)
    fine, coarse, many = (dataset.measured(part, "statistic", "seed", "design") for part in (fine, coarse, many))
    two_costs(fine, coarse)
    check_same_generator(coarse, many)
    if many.attrs.get("condition") != coarse.attrs.get("condition"):
        found = f"{coarse.attrs.get('condition')} and {many.attrs.get('condition')}"
        raise ValueError(f"the many units are of the same condition; got {found}")
    if many.attrs["seed"] == fine.attrs["seed"]:
        raise ValueError(f"the many coarse units need another seed than the fine ones; got {many.attrs['seed']}")
    rows = []
    for name in fine["statistic"].values.tolist():
        pieces = [unit_means(table, name) for table in (fine, coarse, many)]
        parts = (pieces[0] - b * pieces[1], b * pieces[2])
        if min(map(len, parts)) < 2:
            raise ValueError(f"two levels need at least two units each; got {[len(part) for part in parts]}")
        variances = np.array([part.var(ddof=1) / len(part) for part in parts])
        fixed = _rarely_differ(fine, coarse, name)
        if variances.sum() == 0 and not fixed:
            raise ValueError(f"{name} is constant over units: there is no width to estimate")
        df = float(welch(variances, np.array([len(part) for part in parts]))) if variances.all() else len(parts[0]) - 1
        whole = estimation.Estimate(sum(part.mean() for part in parts), variances.sum() ** 0.5, df)
        ends, method = whole.interval(level), "two levels"
        if fixed:
            ends, method = _joined(pieces, b, level), "two levels, betting"
        about = {"evaluations": sum(map(evaluations, (fine, coarse, many))), "se": whole.se, "df": whole.df}
        about["warning"] = (
            "" if fixed else diagnostics.warning(parts[0], REMEDY) or diagnostics.warning(parts[1], REMEDY)
        )
        found = row((whole.estimate, *ends), level=level, method=method, units=len(parts[0]), **about)
        rows.append({"statistic": name, "design": design(fine), **found})
    return pd.DataFrame(rows)


def _rarely_differ(fine: xr.DataArray, coarse: xr.DataArray, name: str) -> bool:
    """Return whether both are events that differ in fewer than 15 units and in less than a quarter of all."""
    tables = [part.sel(statistic=name).transpose("unit", "member").values for part in (fine, coarse)]
    events = all(np.isin(table, (0, 1)).all() for table in tables)
    differ = int((tables[0] != tables[1]).any(1).sum())
    return events and differ < min(diagnostics.RARE, len(tables[0]) / 4)


def _joined(pieces: list[np.ndarray], b: float, level: float) -> tuple[float, float]:
    """Return the interval of two levels from unit means in [0, 1] of fine, coarse and many, see `two_level`."""
    gaps = pieces[0] - pieces[1]
    rest = [(1 - b) * pieces[1], b * pieces[2]]
    low, high = bounded_interval((gaps + 1) / 2, level)
    other = welch_interval(rest, level)
    centre = sum(part.mean() for part in rest)
    below = np.hypot(gaps.mean() - (2 * low - 1), centre - other[0])
    above = np.hypot(2 * high - 1 - gaps.mean(), other[1] - centre)
    estimate = gaps.mean() + centre
    return float(estimate - below), float(estimate + above)


def best_allocation(covariance: np.ndarray, fine: float, coarse: float) -> dict[str, float]:
    r"""Return how two levels are best used: `coefficient, coarse_units_per_fine, predicted_efficiency`.

    With costs `c_1` of a unit on both levels and `c_2` on the coarse one, b minimises
    `sqrt(Var(F - b C) c_1) + |b| sqrt(Var(C) c_2)`: with q^2 = c_2/c_1 and r = Corr(F, C) it is
    `b = sd(F)/sd(C) sign(r) max(|r| - q sqrt((1 - r^2)/(1 - q^2)), 0)`, less than the regression's. Then
    `n'/n = sqrt(b^2 Var(C) c_1 / (Var(F - b C) c_2))`, and the efficiency against the fine sampler alone, of
    the same design, is `Var(F) c_F / (sqrt(Var(F - b C) c_1) + |b| sqrt(Var(C) c_2))^2`.

    Args:
        covariance: (2, 2), of the unit means of the fine and the coarse sampler.
        fine: evaluations of a unit of the fine sampler.
        coarse: evaluations of a unit of the coarse one.
    """
    variance, moved_variance = np.diag(covariance)
    rho, both = covariance[0, 1] / (variance * moved_variance) ** 0.5, fine + coarse
    share = coarse / both
    weight = max(abs(rho) - (share * max(1 - rho**2, 0) / (1 - share)) ** 0.5, 0)
    b = np.sign(rho) * weight * (variance / moved_variance) ** 0.5
    rest, moved = max(1 - 2 * weight * abs(rho) + weight**2, 0), weight**2  # in variances of the fine sampler
    ratio = (moved * both / (rest * coarse)) ** 0.5 if rest > 0 else np.inf
    efficiency = fine / ((rest * both) ** 0.5 + (moved * coarse) ** 0.5) ** 2
    numbers = {"coefficient": b, "coarse_units_per_fine": ratio, "predicted_efficiency": efficiency}
    return {name: float(number_) for name, number_ in numbers.items()}


def two_costs(fine: xr.DataArray, coarse: xr.DataArray) -> tuple[int, int]:
    """Return the evaluations an image of two levels, refusing a twin that is not coarser or of other noise."""
    _same_noise(fine, coarse)
    dear, cheap = (evaluations(table) // (table.sizes["unit"] * table.sizes["member"]) for table in (fine, coarse))
    if cheap >= dear:
        raise ValueError(f"a coarse twin needs fewer evaluations an image than the fine one's {dear}; got {cheap}")
    return dear, cheap


def _modes(noise: Design, shape: tuple[int, ...], seed: int, leading: int) -> np.ndarray:
    """Return the leading coefficients of a run's noise, `(unit, member, leading)`, one unit in memory at a time."""
    drawn = (noise.draw(shape, seed=seed, units=[unit])[0] for unit in range(noise.units))
    return np.stack([modes.to_modes(unit.astype(np.float64), tuple(shape))[:, :leading] for unit in drawn])


def _fit(y: np.ndarray, x: np.ndarray) -> np.ndarray:
    centred = x - x.mean(0)
    return np.linalg.lstsq(centred, y - y.mean(0), rcond=None)[0].T


def _coefficients(values: xr.DataArray, known: xr.DataArray, beta: np.ndarray) -> xr.DataArray:
    coords = {"statistic": values["statistic"].values, "feature": known["feature"].values}
    return xr.DataArray(beta, coords, ["statistic", "feature"], attrs={"seed": values.attrs["seed"]})


def _shared_means(values: xr.DataArray, known: xr.DataArray, *, fitted: bool) -> tuple[np.ndarray, np.ndarray]:
    """Return unit means `(unit, statistic)` and `(unit, feature)`, refusing more features than can be fitted."""
    _same_noise(dataset.measured(values, "statistic", "seed", "design"), dataset.measured(known, "feature"))
    names = values["statistic"].values.tolist()
    y = np.stack([unit_means(values, name) for name in names], 1)
    x = known.transpose("unit", "member", "feature").values.mean(1)
    if fitted and x.shape[1] > len(x) / 10:
        raise ValueError(f"features are at most a tenth of the units, {len(x) // 10} here; got {x.shape[1]}")
    return y, x


def _same_noise(first: xr.DataArray, second: xr.DataArray) -> None:
    for key in ("design", "seed"):
        if first.attrs.get(key) is None or first.attrs[key] != second.attrs.get(key):
            found = f"{checks.plain(first.attrs.get(key))} and {checks.plain(second.attrs.get(key))}"
            raise ValueError(f"both must be of the same noise; their {key} is {found}")
    dataset.same_units(first, second)
