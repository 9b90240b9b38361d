"""Regression on controls: what features of the noise and surrogates on the same noise explain is taken out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr

from antinb import checks, dataset
from antinb.analysis.intervals import welch
from antinb.analysis.learning import conditional
from antinb.dataset import check_same_generator, defined

__all__ = ["coefficients", "regression", "surrogate"]

Tables = xr.DataArray | Sequence[xr.DataArray]


@checks.typed
def coefficients(values: xr.DataArray, *known: xr.DataArray) -> xr.DataArray:
    """Return the least-squares coefficients `(statistic, feature)` of unit means on those of features or surrogates.

    Args:
        values: `(statistic, unit, member)` of `statistics.measure`.
        known: `(feature, unit, member)` of `features`, or a surrogate's `(statistic, unit, member)` of the same
            statistics, of the same design and seed.

    Raises:
        ValueError: if they are of different runs, a value is undefined, or the features are more than a tenth of the
            units.

    Examples:
        >>> from antinb import controls, noise
        >>> known = controls.features(noise.antithetic(40), (1, 4, 4), seed=0, leading=1)
        >>> values = (3 * known).rename(feature="statistic").assign_attrs(known.attrs)
        >>> round(coefficients(values, known).item(), 6)
        3.0
    """
    y, x, names = _columns(values, known, fitted=True)
    coords = {"statistic": values["statistic"].values, "feature": names}
    return xr.DataArray(fit(y, x), coords, ["statistic", "feature"], attrs={"seed": values.attrs["seed"]})


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
        >>> from antinb import controls, noise
        >>> known = controls.features(noise.antithetic(40), (1, 4, 4), seed=0, leading=1)
        >>> values = (3 * known).rename(feature="statistic").assign_attrs(known.attrs)
        >>> bool((abs(regression(values, known)) < 1e-9).all())
        True
    """
    return _less(values, [dataset.measured(known, "feature")], [], folds, fixed).assign_attrs(
        control=json.dumps("regression")
    )


@checks.typed
def surrogate(
    values: xr.DataArray,
    surrogates: Tables,
    expectations: Tables,
    *,
    known: xr.DataArray | None = None,
    learned: bool = False,
    folds: int = 10,
    fixed: xr.DataArray | None = None,
) -> xr.DataArray:
    r"""Return the values less what surrogates explain, `S - sum_j b_j (C_j - E C_j)`, as values of the same run.

    C is the same statistic of a surrogate's image of the *same* noise, such as those of `antinb.surrogates` or a
    `learned` control. `E C` is the mean of a long run of the surrogate on other noise, which costs no evaluation of
    the model. The error of that mean is in the coordinates `expectation_variance` and `expectation_df` of the result;
    `estimation.interval` and `compare` add it to the variance. Evaluations of pilots that surrogates were fitted to
    are counted. The coefficients are fitted as in `regression`.

    With `learned`, one more control is a function of all the surrogates' statistics that are no events, fitted as in
    `learned`: a probit of a quadratic for an event, of which a surrogate's brightness knows more than its event does.

    Args:
        values: `(statistic, unit, member)` of `statistics.measure`.
        surrogates: the same statistics of a surrogate, same design and seed, or several such tables.
        expectations: the same of a run of each surrogate with another seed, such as 64 units of 1,024 points. Those
            of one seed are taken together, and those of several seeds are independent.
        known: `(feature, unit, member)` of `features`, which are taken out too.
        learned: whether a control is learned too, from expectations of one design and seed.
        folds: number of folds, at least 2.
        fixed: `(statistic, feature)` of `coefficients(values, *surrogates, known)` from a run of another seed.

    Raises:
        ValueError: as `regression`, if there is not one expectation a surrogate, of the same surrogate and another
            seed, or the surrogate was fitted to the run itself.

    Source: Lavenberg and Welch, Management Science 27 (1981), 322-335; for an estimated expectation, Schmeiser, Taaffe
        and Wang, IIE Transactions 33 (2001), 363-374.

    Examples:
        >>> import antinb
        >>> from antinb import estimation, noise, statistics, surrogates
        >>> model, designs = antinb.load("fashion-mixture", steps=5), (noise.antithetic(60), noise.sobol(8, 64))
        >>> cheap = surrogates.gaussian(model, antinb.zoo.mixture("fashion-mixture"))
        >>> fine = statistics.measure(antinb.sample(model, designs[0], seed=0, progress=False), statistics.contrast)
        >>> runs = [antinb.sample(cheap, part, seed=k, progress=False) for k, part in enumerate(designs)]
        >>> table = surrogate(fine, *(statistics.measure(run, statistics.contrast) for run in runs))
        >>> rows = [estimation.interval(part).iloc[0] for part in (fine, table)]
        >>> bool(rows[1]["se"] < 0.8 * rows[0]["se"])
        True
    """
    cheap, long = _tables(surrogates), _tables(expectations)
    if len(cheap) != len(long) or not cheap:
        raise ValueError(f"every surrogate needs one expectation; got {len(cheap)} and {len(long)}")
    if learned:
        near, far = conditional(values, cheap, long, checks.integer("folds", folds, 2))
        cheap, long = [*cheap, near], [*long, far]
    tables = [*cheap, *([] if known is None else [dataset.measured(known, "feature")])]
    return _less(values, tables, long, folds, fixed).assign_attrs(control=json.dumps("surrogate"))


def _tables(given: Any) -> list[xr.DataArray]:  # noqa: ANN401
    """Return one or several tables of statistics as a list."""
    parts = given if isinstance(given, (list, tuple)) else [given]
    return [dataset.measured(part, "statistic", "seed", "design") for part in parts]


def _less(
    values: xr.DataArray,
    tables: Sequence[xr.DataArray],
    long: Sequence[xr.DataArray],
    folds: int,
    fixed: xr.DataArray | None,
) -> xr.DataArray:
    """Return values less what tables of controls explain, of which the first have means known from long runs."""
    folds = checks.integer("folds", folds, 2)
    y, x, names = _columns(values, tables, fitted=fixed is None)
    values, units = dataset.measured(values), len(y)
    if fixed is not None:
        if fixed.attrs["seed"] == values.attrs["seed"]:
            raise ValueError(
                f"fixed coefficients come from a pilot of another seed; got {fixed.attrs['seed']} for both"
            )
        for dim, wanted in (("statistic", values["statistic"].values.tolist()), ("feature", names)):
            if fixed[dim].values.tolist() != wanted:
                raise ValueError(
                    f"fixed coefficients are of the same {dim}s in the same order; got {fixed[dim].values}"
                )
        beta = np.broadcast_to(fixed.values, (units, *fixed.shape))
    else:
        fold = np.arange(units) % min(folds, units)
        beta = np.empty((units, *x.shape[:2]))
        for number in np.unique(fold):
            beta[fold == number] = fit(y[fold != number], x[:, :, fold != number])
    less = values - np.einsum("usk,skum->sum", beta, x)
    if not long:
        return less.assign_attrs(values.attrs)
    means = [_expectation(values, cheap, part) for cheap, part in zip(tables, long, strict=False)]
    moved = np.einsum("usk,ks->su", beta[..., : len(long)], [part.mean(1) for part in means])
    error = _expectation_error(means, [part.attrs["seed"] for part in long], beta.mean(0))
    attrs = {**values.attrs, "pilot_evaluations": json.dumps(dataset.pilots(tables))}
    return (less + moved[..., None]).assign_coords(error).assign_attrs(attrs)


def _expectation(values: xr.DataArray, cheap: xr.DataArray, long: xr.DataArray) -> np.ndarray:
    """Return the unit means `(statistic, unit)` of a surrogate's long run, refusing another's or one on the same noise.

    Refused too is a surrogate that was fitted to the run itself.
    """
    seeds = [part.attrs.get("seed") for part in (values, long)]
    if seeds[0] == seeds[1] or seeds[0] == cheap.attrs.get("pilot_seed"):
        raise ValueError(f"an expectation, and the pilot of a surrogate, need another seed; got {seeds[0]} for both")
    check_same_generator(cheap, long)
    return _table(dataset.measured(long, "statistic", "seed"), values["statistic"].values.tolist()).mean(2)


def _expectation_error(means: list[np.ndarray], seeds: list[str], beta: np.ndarray) -> dict[str, tuple]:
    """Return the variance and the degrees of freedom of `sum_j b_j E C_j`, each `(statistic,)`, as coordinates."""
    variances, counts = [], []
    for seed in dict.fromkeys(seeds):
        places = [place for place, other in enumerate(seeds) if other == seed]
        if len({means[place].shape[1] for place in places}) > 1:
            raise ValueError(f"expectations of one seed need the same units; those of seed {seed} have others")
        together = np.sum([beta[:, place, None] * means[place] for place in places], 0)
        counts.append(together.shape[1])
        variances.append(together.var(1, ddof=1) / counts[-1])
    found = np.stack(variances)
    df = welch(np.where(found.sum(0) > 0, found, 1), np.array(counts))
    return {"expectation_variance": ("statistic", found.sum(0)), "expectation_df": ("statistic", df)}


def fit(y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Return least-squares coefficients `(statistic, control)` of y `(unit, statistic)` on the unit means of x.

    x is `(statistic, control, unit, member)`.
    """
    return np.array(
        [
            np.linalg.lstsq((c - c.mean(1)[:, None]).T, s - s.mean(), rcond=None)[0]
            for s, c in zip(y.T, x.mean(-1), strict=True)
        ]
    )


def _columns(
    values: xr.DataArray, tables: Sequence[xr.DataArray], *, fitted: bool
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Return unit means `(unit, statistic)`, controls `(statistic, control, unit, member)` and the controls' names.

    A table of statistics gives each statistic the control of its own name, one of features gives all of them to each.
    More controls than can be fitted are refused.
    """
    values, columns, labels = dataset.measured(values, "statistic", "seed", "design"), [], []
    names = values["statistic"].values.tolist()
    for table in tables:
        own = not isinstance(table, xr.DataArray) or "feature" not in table.dims
        found = dataset.measured(table, "statistic" if own else "feature")
        dataset.check_same_noise(values, found)
        if own:
            labels.append(f"surrogate {len(labels)}")
            columns.append(_table(found, names)[:, None])
        else:
            labels += found["feature"].values.tolist()
            columns.append(np.broadcast_to(found.values, (len(names), *found.shape)))
    y, x = _table(values, names).mean(2).T, np.concatenate(columns, 1)
    if fitted and len(labels) > len(y) / 10:
        raise ValueError(f"features are at most a tenth of the units, {len(y) // 10} here; got {len(labels)}")
    return y, x, labels


def _table(values: xr.DataArray, names: list[str]) -> np.ndarray:
    """Return the values of statistics `(statistic, unit, member)`, refusing one that is missing or undefined."""
    missing = [name for name in names if name not in values["statistic"].values]
    if missing:
        raise ValueError(f"a surrogate has the same statistics; {missing[0]!r} is missing")
    return np.stack([defined(values, name) for name in names])
