"""The efficiency of a noise design against another, measured or predicted from the odd share of pairs."""

from __future__ import annotations

import functools

import numpy as np
import pandas as pd
import xarray as xr

from antinb import checks, dataset
from antinb.analysis import diagnostics
from antinb.analysis.estimates import expectation_variance, stratified, unit_members
from antinb.analysis.intervals import row, t_quantile
from antinb.analysis.resampling import bootstrap_t
from antinb.checks import quoted
from antinb.dataset import check_same_generator, design, evaluations

__all__ = ["compare", "odd_share"]

VARIANCES = "the interval of an efficiency may be too short; take several hundred units"


@checks.typed
def compare(
    values: xr.DataArray, baseline: xr.DataArray, *, level: float = 0.95, seed: int = 0, drop: bool = False
) -> pd.DataFrame:
    r"""Return the efficiency of a design against another, mostly plain Monte Carlo, at equal network evaluations.

    `efficiency = M' Var'(unit mean) / (M Var(unit mean))`, M the members of a unit and ' the baseline: how many
    times as many images the baseline would need, the evaluations of a surrogate's pilot charged. Against independent
    images, `M' = 1`, the numerator is the variance of one image's statistic, pooled over the images of both runs, whose
    marginals are equal; of values after `controls.regression` or `surrogate` it is the baseline's alone.
    With several conditions, in the same shares of both runs, all variances are those within conditions.
    `width_efficiency` is the same of the squared interval widths, with the t quantiles of each;
    `narrower_percent = 100 (1 - width_efficiency^(-1/2))`; the paper's "90% narrower" is an efficiency
    of 100. Intervals: studentized bootstrap of `log efficiency` over the units of both runs. If the unit means have
    heavy tails, they are too short: with 64 chi-squared pair means, nominal 95% cover about 90%, and with heavier ones
    83%. Then there is a `warning`: where the unit means fail the Shapiro-Wilk test of normality, and always where
    there are fewer than 200, which may pass it for want of power.

    Args:
        values: `(statistic, unit, member)` of the design.
        baseline: the same statistics of the same generator with another design and seed, such as `noise.iid`.
        level: of the intervals.
        seed: of the bootstrap.
        drop: as for `interval`.

    Returns:
        Rows `statistic, design, quantity, estimate, low, high, level, method, units, dropped, evaluations,
        warning`; `dropped` counts units of both runs.

    Raises:
        ValueError: as `interval`, for fewer than 8 units of a condition, other conditions or shares of them in the
            baseline, or a baseline of the same seed or of another generator.

    Examples:
        >>> from antinb import dataset, noise, statistics
        >>> about = {"design": {"name": "antithetic"}, "seed": 0, "evaluations": 1}
        >>> run = dataset.build({"image": noise.antithetic(50).draw((1, 8, 8), seed=0)}, about)
        >>> about |= {"design": {"name": "iid"}, "seed": 1}
        >>> plain = dataset.build({"image": noise.iid(100).draw((1, 8, 8), seed=1)}, about)
        >>> pairs, plain = (statistics.measure(part, statistics.contrast) for part in (run, plain))
        >>> bool(compare(pairs, plain)["estimate"][0] < 1)  # contrast is even: the second image of a pair adds nothing
        True
    """
    checks.level(level)
    values, baseline = (dataset.measured(part, "statistic", "seed", "design") for part in (values, baseline))
    check_same_generator(values, baseline)
    if values.attrs["seed"] == baseline.attrs["seed"]:
        raise ValueError(
            f"runs of one seed share their noise; take another for the baseline; got {values.attrs['seed']}"
        )
    members, rows = baseline.sizes["member"], []
    about = {"level": level, "method": "bootstrap over units", "evaluations": evaluations(values)}
    pooled = "control" not in values.attrs and members == 1
    charge = values[0].size * dataset.calls(values) / max(evaluations(values), 1)  # below 1 with a pilot
    for name in values["statistic"].values.tolist():
        units, classes, left = unit_members(values.sel(statistic=name), name, drop)
        plain, others, more = unit_members(baseline.sel(statistic=name), name, drop)
        about["dropped"] = left + more
        _check_shares(classes, others)
        extra = expectation_variance(values, name) * len(units)
        stratified(units.mean(1), classes, name, constant=extra > 0)
        plain, strata = plain.mean(1, keepdims=True) * members**0.5, (classes, others)
        estimator = functools.partial(_log_efficiency, groups=[*map(_groups, strata)], pooled=pooled, extra=extra)
        found = charge * np.exp(bootstrap_t(estimator, units, plain, level=level, seed=seed, strata=strata))
        about["warning"] = _heavy(units, classes)
        kinds = len(np.unique(classes))
        quantiles = t_quantile(level, [units.size / members - kinds, len(units) - kinds])
        widths = found * (quantiles[0] / quantiles[1]) ** 2
        for quantity, numbers in (
            ("efficiency", found),
            ("width_efficiency", widths),
            ("narrower_percent", 100 * (1 - widths**-0.5)),
        ):
            named = {"statistic": name, "design": design(values), "quantity": quantity}
            rows.append(named | row(numbers, units=len(units), **about))
    return pd.DataFrame(rows)


@checks.typed
def odd_share(values: xr.DataArray, *, level: float = 0.95, seed: int = 0, drop: bool = False) -> pd.DataFrame:
    r"""Return from pairs which share of each statistic's variance is odd in the noise, and what pairing will do.

    With `S = S_even + S_odd` under `z -> -z`, the half sums of the pairs hold the even part and their
    half differences the odd one: `share = mean(d^2) / (mean(d^2) + Var(h))`, the mean of `S_odd` being
    0 and the variances those within conditions. Then `rho = 1 - 2 share`, and pairs have the efficiency
    `1 / (1 + rho) = 1 / (2 (1 - share))`: from 1/2, where all is even, without bound. Intervals: studentized bootstrap
    over pairs of `log(share / (1 - share))`, with the coverage and the warning of `compare`.

    Args:
        values: `(statistic, unit, member)` of a run of `noise.antithetic`: a pilot, or the run itself.
        level: of the intervals.
        seed: of the bootstrap.
        drop: as for `interval`.

    Returns:
        Rows `statistic, design, quantity, estimate, low, high, level, method, units, dropped, evaluations, warning`
        with `quantity` `odd_share` and `predicted_efficiency`.

    Raises:
        ValueError: as `interval`, for fewer than 8 pairs of a condition or another design.
    """
    values = dataset.measured(values)
    if values.sizes["member"] != 2 or design(values) != "antithetic":
        raise ValueError(f"odd shares come from pairs z, -z of noise.antithetic; got a run of {design(values)!r}")
    rows, about = [], {"level": level, "method": "bootstrap over units", "evaluations": evaluations(values)}
    for name in values["statistic"].values.tolist():
        pairs, classes, about["dropped"] = unit_members(values.sel(statistic=name), name, drop)
        stratified(pairs.mean(1), classes, name)
        about["warning"] = _heavy(pairs, classes)
        estimator = functools.partial(_log_odd_over_even, groups=_groups(classes))
        ratio = np.exp(bootstrap_t(estimator, pairs, level=level, seed=seed, strata=[classes]))
        for quantity, numbers in (("odd_share", ratio / (1 + ratio)), ("predicted_efficiency", (1 + ratio) / 2)):
            named = {"statistic": name, "design": design(values), "quantity": quantity}
            rows.append(named | row(numbers, units=len(pairs), **about))
    return pd.DataFrame(rows)


def _check_shares(classes: np.ndarray, others: np.ndarray) -> None:
    """Refuse conditions of two runs that differ, or have other shares of the units by more than a unit's."""
    kinds, shares = np.unique([*classes, *others]), []
    for part in (classes, others):
        shares.append(np.mean(part[:, None] == kinds, 0))
    if np.abs(shares[0] - shares[1]).max() > 1 / min(len(classes), len(others)):
        found = " and ".join(quoted(dict(zip(kinds.tolist(), part.round(3).tolist(), strict=True))) for part in shares)
        raise ValueError(f"designs are compared at the same shares of the conditions; got {found}")


def _groups(classes: np.ndarray) -> np.ndarray:
    """Return which units are of which condition, 0 or 1, `(unit, condition)`."""
    return (classes[:, None] == np.unique(classes)).astype(float)


def _heavy(units: np.ndarray, classes: np.ndarray) -> str:
    """Return the sentence on the interval of a variance of unit means, from units `(unit, member)`."""
    groups, means = _groups(classes), units.mean(1)
    rest = means - groups @ (means @ groups / groups.sum(0))
    return diagnostics.warning(rest, VARIANCES, tails=True, least=diagnostics.FEW_SQUARES)


def _log_odd_over_even(pairs: np.ndarray, *, groups: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the log ratio of odd and even variance of pairs `(..., unit, 2)`, and its standard error (delta method).

    Both are `(...)`.
    """
    odd, even = (pairs[..., 0] - pairs[..., 1]) ** 2 / 4, _squares(pairs.mean(-1, keepdims=True), groups)[..., 0]
    mean, spread = odd.mean(-1), even.sum(-1) / (even.shape[-1] - groups.shape[1])
    influence = odd / mean[..., None] - even / even.mean(-1, keepdims=True)
    return np.log(mean / spread), _error(influence, groups) ** 0.5


def _log_efficiency(
    units: np.ndarray, plain: np.ndarray, *, groups: list[np.ndarray], pooled: bool, extra: float = 0.0
) -> tuple[np.ndarray, np.ndarray]:
    """Return `log(v / (M (Var(unit mean) + extra)))` and its standard error (delta method), v pooled or the baseline's.

    Both samples are `(..., unit, member)`, their groups `(unit, condition)`, both results `(...)`.
    """
    used = [*zip((units, plain), groups, strict=True)][0 if pooled else 1 :]
    squares = [_squares(part, group) for part, group in used]
    sizes = [square.shape[-2] * square.shape[-1] for square in squares]
    freedom = sum(sizes) - sum(group.shape[1] for _, group in used)
    variance = np.sum([square.sum((-2, -1)) for square in squares], 0) / freedom
    *own, other = [
        square.mean(-1) * size / (freedom * variance[..., None]) for square, size in zip(squares, sizes, strict=True)
    ]
    means = _squares(units.mean(-1, keepdims=True), groups[0])[..., 0]
    spread = means.sum(-1) / (means.shape[-1] - groups[0].shape[1]) + extra
    parts = (sum(own) - means / spread[..., None], other)
    se = sum(_error(part, group) for part, group in zip(parts, groups, strict=True)) ** 0.5
    return np.log(variance / (units.shape[-1] * spread)), se


def _error(influence: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Return the variance of the mean of an influence `(..., unit)` within groups."""
    return _squares(influence[..., None], groups).mean((-2, -1)) / influence.shape[-1]


def _squares(values: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Return the squared deviations of `(..., unit, member)` from the mean of each group of units."""
    means = values.sum(-1) @ groups / (groups.sum(0) * values.shape[-1])
    return (values - (means @ groups.T)[..., None]) ** 2
