"""Estimates of `E S(G(Z))` from any noise design, their intervals, and the efficiency of the design.

The unit is the replicate: an estimate is the mean over units of the member mean, and its standard
error comes from the spread of those unit means. Composite estimators answer to the same three
numbers, `(estimate, se, df)`.
"""

from __future__ import annotations

import functools

import numpy as np
import pandas as pd
import xarray as xr

from antinb import checks, dataset
from antinb.analysis import diagnostics
from antinb.analysis.bounded import bounded_interval
from antinb.analysis.estimates import expectation_variance, stratified, unit_members, widened, with_expectation
from antinb.analysis.intervals import row, skew_interval, t_quantile
from antinb.analysis.pixels import pixelwise
from antinb.analysis.resampling import bootstrap_t
from antinb.dataset import check_same_generator, design, evaluations

__all__ = ["compare", "interval", "odd_share", "pixelwise"]

REMEDIES = {
    "control": "take more units",
    "t": "take method='skew', or 'bounded' if the statistic lies in [0, 1], or more units",
    "skew": "take more units, or method='bounded' if the statistic lies in [0, 1]",
}
METHODS = ("t", "skew", "bounded")
VARIANCES = "the interval of an efficiency may be too short; take several hundred units"


@checks.typed
def interval(values: xr.DataArray, *, level: float = 0.95, method: str = "t", drop: bool = False) -> pd.DataFrame:
    r"""Return the mean of each statistic with its interval, from the unit means of any plain design.

    `"t"`: `m -+ t_{n-1} s / sqrt(n)` over the n unit means. `"skew"`, for few units whose odd part has
    cancelled: the outer ends of that interval and of Hall's, the inverse at the t quantiles of the
    transformation `g(T) = T + c T^2 / 3 + c^2 T^3 / 27 + c / 6` of the t statistic, `c = skewness / sqrt(n)`.
    Hall's alone covers too little where tails are heavy, t alone where they are skewed. `"bounded"`, for a statistic
    that lies in [0, 1], such as an event: the betting interval of `intervals.bounded_p_value`, which covers whatever
    the law and the number of units, and is wider; a constant statistic has one too.
    With several conditions the estimate is the mean within conditions averaged by their shares of
    the units, its variance `sum w_c^2 s_c^2 / n_c` holds no variance between them, and df are
    Satterthwaite's.

    Args:
        values: `(statistic, unit, member)` of `statistics.measure`, with `condition(unit)` if there is one.
        level: from 0.01 to 0.9999.
        method: `"t"`, or for one condition `"skew"` or `"bounded"`.
        drop: whether units with an undefined value are left out, and counted in `dropped`, or refused.

    Returns:
        Rows `statistic, design, estimate, low, high, level, method, units, members, evaluations, se, df, dropped,
        skewness, largest_share, warning`: the last is a sentence that names the remedy where the units cannot carry
        the interval (too skewed, an event seen by too few units, or fewer than 50 units with `"skew"` or after
        `controls.regression` or `surrogate`), otherwise "". `largest_share` is that of the largest deviation in the sum
        of squares.

    Raises:
        ValueError: for fewer than two units in a condition, a constant or undefined statistic, an
            unknown method, a level out of its range or, with `"bounded"`, a value outside [0, 1].

    Source: Hall, On the removal of skewness by transformation, JRSS B 54 (1992), 221-228; Waudby-Smith and Ramdas,
        arXiv 2010.09686.

    Examples:
        >>> from antinb import dataset, noise, statistics
        >>> about = {"design": {"name": "antithetic"}, "seed": 0, "evaluations": 1}
        >>> run = dataset.build({"image": noise.antithetic(50).draw((1, 8, 8), seed=0)}, about)
        >>> table = interval(statistics.measure(run, statistics.contrast))
        >>> table["statistic"].item(), table["units"].item()
        ('contrast', 50)
    """
    checks.level(level)
    checks.choice("method", method, METHODS)
    values = dataset.measured(values)
    rows = []
    for name in values["statistic"].values.tolist():
        table, conditions, dropped = unit_members(values.sel(statistic=name), name, drop)
        if method == "bounded" and "control" in values.attrs:
            raise ValueError(
                f"the method 'bounded' is for a statistic in [0, 1]; {name} less a control has no such range"
            )
        if method == "bounded" and not ((table >= 0) & (table <= 1)).all():
            found = f"{table.min():g} to {table.max():g}"
            raise ValueError(f"the method 'bounded' is for a statistic in [0, 1]; {name} goes from {found}")
        means, constant = table.mean(1), method == "bounded" or expectation_variance(values, name) > 0
        found = with_expectation(stratified(means, conditions, name, constant=constant), values, name)
        ends = found.interval(level)
        if method != "t":
            if len(np.unique(conditions)) > 1:
                raise ValueError(f"the method {method!r} is for one condition; take 't', or one condition at a time")
            ends = (skew_interval if method == "skew" else bounded_interval)(means, level)
            ends = widened(ends, found, level, values, name)
        rest = means - np.array([means[conditions == kind].mean() for kind in conditions])
        bound = diagnostics.SKEWED if method == "t" else diagnostics.VERY_SKEWED
        about = {"members": values.sizes["member"], "evaluations": evaluations(values)}
        about |= {"se": found.se, "df": found.df, "dropped": dropped, **diagnostics.shape(rest)}
        warning, least = "", diagnostics.FEW if method == "skew" else 0
        if method != "bounded":
            remedy = REMEDIES["control" if "control" in values.attrs else method]
            warning = diagnostics.warning(rest, remedy, bound=bound, least=least)
            warning = warning or (diagnostics.few(len(means), remedy) if "control" in values.attrs else "")
        result = row((found.estimate, *ends), level=level, method=method, units=len(means), warning=warning, **about)
        rows.append({"statistic": name, "design": design(values), **result})
    return pd.DataFrame(rows)


@checks.typed
def compare(
    values: xr.DataArray, baseline: xr.DataArray, *, level: float = 0.95, seed: int = 0, drop: bool = False
) -> pd.DataFrame:
    r"""Return the efficiency of a design against another, mostly plain Monte Carlo, at equal network evaluations.

    `efficiency = M' Var'(unit mean) / (M Var(unit mean))`, M the members of a unit and ' the baseline: how many
    times as many images the baseline would need, the evaluations of a surrogate's pilot charged. Against independent
    images, `M' = 1`, the numerator is the variance of one image's statistic, pooled over the images of both runs, whose
    marginals are equal; of values after `controls.regression` or `surrogate` it is the baseline's alone.
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
        ValueError: as `interval`, for fewer than 8 units, several conditions, a baseline of the same seed, or
            another generator.

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
        if len({*classes.tolist(), *others.tolist()}) > 1:
            raise ValueError("designs are compared within one condition; select it in both runs first")
        extra = expectation_variance(values, name) * len(units)
        stratified(units.mean(1), np.zeros(len(units)), name, constant=extra > 0)
        plain = plain.mean(1, keepdims=True) * members**0.5
        estimator = functools.partial(_log_efficiency, pooled=pooled, extra=extra)
        found = charge * np.exp(bootstrap_t(estimator, units, plain, level=level, seed=seed))
        about["warning"] = _heavy(units)
        quantiles = t_quantile(level, [units.size / members - 1, len(units) - 1])
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
    0. Then `rho = 1 - 2 share`, and pairs have the efficiency `1 / (1 + rho) = 1 / (2 (1 - share))`:
    from 1/2, where all is even, without bound. Intervals: studentized bootstrap over pairs of
    `log(share / (1 - share))`, with the coverage and the warning of `compare`.

    Args:
        values: `(statistic, unit, member)` of a run of `noise.antithetic`: a pilot, or the run itself.
        level: of the intervals.
        seed: of the bootstrap.
        drop: as for `interval`.

    Returns:
        Rows `statistic, design, quantity, estimate, low, high, level, method, units, dropped, evaluations, warning`
        with `quantity` `odd_share` and `predicted_efficiency`.

    Raises:
        ValueError: as `interval`, for fewer than 8 pairs, several conditions or another design.
    """
    values = dataset.measured(values)
    if values.sizes["member"] != 2 or design(values) != "antithetic":
        raise ValueError(f"odd shares come from pairs z, -z of noise.antithetic; got a run of {design(values)!r}")
    rows, about = [], {"level": level, "method": "bootstrap over units", "evaluations": evaluations(values)}
    for name in values["statistic"].values.tolist():
        pairs, classes, about["dropped"] = unit_members(values.sel(statistic=name), name, drop)
        if len(np.unique(classes)) > 1:
            raise ValueError("odd shares are those of one condition; select it first")
        stratified(pairs.mean(1), classes, name)
        about["warning"] = _heavy(pairs)
        ratio = np.exp(bootstrap_t(_log_odd_over_even, pairs, level=level, seed=seed))
        for quantity, numbers in (("odd_share", ratio / (1 + ratio)), ("predicted_efficiency", (1 + ratio) / 2)):
            named = {"statistic": name, "design": design(values), "quantity": quantity}
            rows.append(named | row(numbers, units=len(pairs), **about))
    return pd.DataFrame(rows)


def _heavy(units: np.ndarray) -> str:
    """Return the sentence on the interval of a variance of unit means, from units `(unit, member)`."""
    return diagnostics.warning(units.mean(1), VARIANCES, tails=True, least=diagnostics.FEW_SQUARES)


def _log_odd_over_even(pairs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the log ratio of odd and even variance of pairs `(..., unit, 2)`, and its standard error (delta method).

    Both are `(...)`.
    """
    odd, even = (pairs[..., 0] - pairs[..., 1]) ** 2 / 4, _squares(pairs.mean(-1), 1)
    mean, spread = odd.mean(-1), even.sum(-1) / (even.shape[-1] - 1)
    influence = odd / mean[..., None] - even / even.mean(-1, keepdims=True)
    return np.log(mean / spread), influence.std(-1) / even.shape[-1] ** 0.5


def _log_efficiency(
    units: np.ndarray, plain: np.ndarray, *, pooled: bool, extra: float = 0.0
) -> tuple[np.ndarray, np.ndarray]:
    """Return `log(v / (M (Var(unit mean) + extra)))` and its standard error (delta method), v pooled or the baseline's.

    Both samples are `(..., unit, member)`, both results `(...)`.
    """
    squares = [_squares(part, 2) for part in ((units, plain) if pooled else (plain,))]
    sizes = [square.shape[-2] * square.shape[-1] for square in squares]
    freedom = sum(sizes) - len(sizes)
    variance = np.sum([square.sum((-2, -1)) for square in squares], 0) / freedom
    *own, other = [
        square.mean(-1) * size / (freedom * variance[..., None]) for square, size in zip(squares, sizes, strict=True)
    ]
    means = _squares(units.mean(-1), 1)
    spread = means.sum(-1) / (means.shape[-1] - 1) + extra
    parts = (sum(own) - means / spread[..., None], other)
    se = sum(part.var(-1) / part.shape[-1] for part in parts) ** 0.5
    return np.log(variance / (units.shape[-1] * spread)), se


def _squares(values: np.ndarray, axes: int) -> np.ndarray:
    """Return the squared deviations from the mean over the last axes."""
    return (values - values.mean(tuple(range(-axes, 0)), keepdims=True)) ** 2
