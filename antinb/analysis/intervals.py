"""Intervals and p-values where the unit is the replicate: t and its corrections, jackknife, two stages, coverage."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import SupportsFloat

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import special, stats

from antinb import checks
from antinb.analysis import diagnostics
from antinb.analysis.bounded import bounded_p_value
from antinb.analysis.resampling import DRAWN_AT_ONCE

__all__ = ["bounded_p_value", "coverage", "jackknife", "t_interval"]

METHODS = ("t", "skew")
BLOCKS = 50
SKEWED, LONGER = 0.15, 5  # skewness / sqrt(units) that lengthens a first stage, at most so many times

Vector = Callable[[np.ndarray], npt.ArrayLike]


def row(
    numbers: Iterable[SupportsFloat], *, level: float, method: str, units: int | str, warning: str = "", **more: object
) -> dict[str, object]:
    """Return a row of results: `estimate, low, high` of the three numbers, what they are, and last the `warning`."""
    ends = dict(zip(("estimate", "low", "high"), map(float, numbers), strict=True))
    return {**ends, "level": level, "method": method, "units": units, **more, "warning": warning}


def t_quantile(level: float, df: npt.ArrayLike) -> np.ndarray:
    """Return the t quantile that an interval of this level extends to, on either side, with `df` degrees of freedom."""
    return special.stdtrit(df, (1 + level) / 2)


def t_interval(means: np.ndarray, level: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the t intervals of unit means, `(..., units)` to two arrays `(...)`.

    Examples:
        >>> low, high = t_interval(np.array([1.0, 2.0, 3.0]), 0.95)
        >>> round(float(low), 3), round(float(high), 3)
        (-0.484, 4.484)
    """
    units = means.shape[-1]
    half = t_quantile(level, units - 1) * means.std(-1, ddof=1) / units**0.5
    return means.mean(-1) - half, means.mean(-1) + half


def skew_interval(means: np.ndarray, level: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the outer ends of the t and Hall's intervals, `(..., units)` to two arrays `(...)`; see `interval`."""
    (low, high), (hall_low, hall_high) = t_interval(means, level), hall_interval(means, level)
    return np.minimum(low, hall_low), np.maximum(high, hall_high)


def hall_interval(means: np.ndarray, level: float) -> tuple[np.ndarray, np.ndarray]:
    """Return Hall's intervals of unit means, `(..., units)` to two arrays `(...)`; see `interval`."""
    units = means.shape[-1]
    centre, skewness = means.mean(-1), diagnostics.skewness(means) / units**0.5
    skewness = np.where(np.abs(skewness) < 1e-6, 1e-6, skewness)
    quantile = t_quantile(level, units - 1)
    se = means.std(-1, ddof=1) / units**0.5
    ends = (3 / skewness * (np.cbrt(1 + skewness * (t - skewness / 6)) - 1) for t in (quantile, -quantile))
    low, high = (centre - end * se for end in ends)
    return low, high


def welch(variances: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Return the degrees of freedom of a sum of independent means, `(part, ...)` variances of the means to `(...)`.

    Source: Satterthwaite, Biometrics Bulletin 2 (1946), 110-114.
    """
    freedom = np.reshape(np.subtract(counts, 1), (-1, *[1] * (variances.ndim - 1)))
    return variances.sum(0) ** 2 / (variances**2 / freedom).sum(0)


def welch_interval(parts: list[np.ndarray], level: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the intervals of a sum of independent means, `(..., units)` each to two arrays `(...)`."""
    counts = [part.shape[-1] for part in parts]
    variances = np.stack([part.var(-1, ddof=1) / count for part, count in zip(parts, counts, strict=True)])
    total = variances.sum(0)
    freedom = welch(np.where(total > 0, variances, 1), np.array(counts))
    centre, half = sum(part.mean(-1) for part in parts), t_quantile(level, freedom) * total**0.5
    return centre - half, centre + half


def two_stage(means: np.ndarray, first: int, level: float) -> float:
    r"""Return the half-width of the interval of all N unit means `(N,)`, of which the `first` n set the sample size.

    `max(t_{n-1} s_n, t_{N-1} s_N) / sqrt(N)`. With `s_n` alone, Stein's interval, it covers exactly if the units
    are normal. For skewed units see `two_stage_interval`.

    Raises:
        ValueError: if `first` is not from 2 to N.

    Source: Stein, A two-sample test for a linear hypothesis whose power is independent of the variance,
        Ann. Math. Stat. 16 (1945), 243-258; the second look is antinb's.
    """
    parts = (means[: checks.integer("first", first, 2, len(means))], means)
    spreads = [t_quantile(level, len(part) - 1) * part.std(ddof=1) for part in parts]
    return float(max(spreads) / len(means) ** 0.5)


def first_stage(means: np.ndarray, first: int) -> int:
    """Return how long the first stage of unit means `(N,)` is, at least `first`; more than N if they do not suffice.

    While `|skewness| > 0.15 sqrt(n)` it is lengthened to the n at which that would hold, at most to five times `first`.
    """
    units = first
    while units <= len(means) and units < LONGER * first:
        skewness = float(abs(diagnostics.skewness(means[:units])))
        if skewness <= SKEWED * units**0.5:
            break
        units = min(LONGER * first, max(units + 1, int(np.ceil((skewness / SKEWED) ** 2))))
    return units


def two_stage_interval(means: np.ndarray, first: int, level: float) -> tuple[float, float]:
    """Return the outer ends of the intervals of `two_stage` and of Hall, for all N unit means `(N,)`.

    A run goes on to `N (reach / h)^2` units until the farther end is within h of the mean. Begun with 20 units and
    lengthened by `first_stage`, nominal 95% cover 96% with chi-squared units and 93% with lognormal ones, where
    the interval of `two_stage` alone covers 90% and 85%.
    """
    low, high = hall_interval(means, level)
    half = two_stage(means, first, level)
    return min(float(low), means.mean() - half), max(float(high), means.mean() + half)


def jackknife(
    estimator: Vector, units: int, level: float, *, strata: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return `estimate, low, high` of `estimator(numbers of units)` by leaving out one of at most 50 blocks of units.

    The interval is `estimate -+ t se`, `se^2 = (g - 1) / g sum_b (T_-b - mean_b T_-b)^2` over g blocks,
    with `g - 1` degrees of freedom. With `strata`, a label for each unit, every block is spread over all strata
    and there are at most as many blocks as the smallest stratum has units.

    Raises:
        ValueError: if there are fewer than 8 units or the level is not from 0.01 to 0.9999.

    Examples:
        >>> values = np.arange(10.0)
        >>> estimate, low, high = jackknife(lambda units: values[units].mean(), 10, 0.95)
        >>> bool(np.allclose([low, high], t_interval(values, 0.95)))
        True
    """
    checks.level(level)
    if units < 8:
        raise ValueError(f"a jackknife needs at least 8 units; got {units}")
    blocks, everything = jackknife_blocks(np.zeros(units) if strata is None else strata), np.arange(units)
    left_out = np.array([estimator(everything[blocks != block]) for block in range(blocks.max() + 1)], float)
    return jackknife_interval(estimator(everything), left_out, level)


def jackknife_blocks(strata: np.ndarray) -> np.ndarray:
    """Return the block of each unit, `(units,)` from 0, given their strata; see `jackknife`."""
    parts = [np.flatnonzero(strata == label) for label in np.unique(strata)]
    count, blocks = min(BLOCKS, *map(len, parts)), np.empty(len(strata), int)
    for part in parts:
        blocks[part] = np.arange(len(part)) % count
    return blocks


def jackknife_interval(
    whole: npt.ArrayLike, left_out: npt.ArrayLike, level: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return `estimate, low, high`, `(...)` each, from estimates `(...)` and those without a block, `(blocks, ...)`."""
    whole, left_out = np.asarray(whole, float), np.asarray(left_out, float)
    freedom = len(left_out) - 1
    half = t_quantile(level, freedom) * np.sqrt(freedom * left_out.var(0))
    return whole, whole - half, whole + half


def coverage(
    pool: np.ndarray | tuple[np.ndarray, ...],
    units: int | tuple[int, ...],
    *,
    truth: float | None = None,
    level: float = 0.95,
    method: str = "t",
    half_width: float | None = None,
    experiments: int = 20_000,
    seed: int = 0,
) -> pd.DataFrame:
    """Return how often intervals from `units` unit means cover the truth, with its 95% binomial interval.

    Each experiment draws its units from the pool with replacement; the truth is then the pool's mean. Of
    several pools the sum of their means is estimated, as by `controls.two_level`, df by Welch and Satterthwaite.
    With `half_width` the units are the first stage of `two_stage_interval`.

    Args:
        pool: `(n,)` unit means of a long run, or a tuple of such pools.
        units: number of units of an experiment, at least 2, from each pool.
        truth: the known sum of the means of the pools' laws, None for the pools' own.
        level: nominal level of the intervals.
        method: `"t"` or, for one pool, `"skew"`.
        half_width: half of the width that is wanted, for one pool and `"t"`.
        experiments: number of experiments.
        seed: of the draws.

    Returns:
        One row `estimate, low, high, level, method, units, width, nominal, experiments`: the share covered, by
        `method` with `units` from each pool, the mean `width`, and the `nominal` level.

    Raises:
        ValueError: for a pool that is constant or holds NaN, or an argument out of its range.

    Examples:
        >>> pool = np.random.default_rng(0).standard_normal(2000)
        >>> bool(coverage(pool, 20, experiments=500)["estimate"].item() > 0.9)
        True
    """
    checks.level(level)
    pools = pool if isinstance(pool, tuple) else (pool,)
    counts = [checks.integer("units", count, 2) for count in (units if isinstance(units, tuple) else (units,))]
    experiments = checks.integer("experiments", experiments, 1)
    if half_width is not None:
        checks.number("half_width", half_width, 1e-300, np.inf)
    composite = len(pools) > 1 or half_width is not None
    if (
        method not in METHODS
        or (composite and method != "t")
        or len(counts) != len(pools)
        or (half_width and counts[1:])
    ):
        rule = f"method must be one of {METHODS}, 't' for several pools or two stages, with units for each pool"
        raise ValueError(f"{rule}; got {method!r}, {len(pools)} pools, units {units!r}")
    means = [np.asarray(part, float) for part in pools]
    for part in means:
        if part.ndim != 1 or not np.isfinite(part).all() or np.ptp(part) == 0:
            raise ValueError(f"a pool is a vector of finite values that differ; got {part}")
    wanted = sum(part.mean() for part in means) if truth is None else checks.number("truth", truth, -np.inf, np.inf)
    rng, covered, width = np.random.default_rng(checks.seed(seed)), 0, 0.0
    block = max(1, DRAWN_AT_ONCE // max(counts))

    def more(size: int) -> np.ndarray:
        return means[0][rng.integers(len(means[0]), size=size)]

    for start in range(0, experiments, block):
        size = min(block, experiments - start)
        drawn = [part[rng.integers(len(part), size=(size, count))] for part, count in zip(means, counts, strict=True)]
        if half_width is not None:
            found = [two_stages(part, more, half_width, level)[1:] for part in drawn[0]]
            low, high = np.transpose(found)
        else:
            low, high = skew_interval(drawn[0], level) if method == "skew" else welch_interval(drawn, level)
        covered += int(((low <= wanted) & (wanted <= high)).sum())
        width += float((high - low).sum())
    shares = covered / experiments, *stats.binomtest(covered, experiments).proportion_ci(0.95, "exact")
    drawn = "+".join(map(str, counts)) if counts[1:] else counts[0]
    about = {"width": width / experiments, "nominal": level, "experiments": experiments}
    return pd.DataFrame([row(shares, level=0.95, method=method, units=drawn, **about)])


def two_stages(
    means: np.ndarray, draw: Callable[[int], np.ndarray], half_width: float, level: float
) -> tuple[np.ndarray, float, float]:
    """Return all unit means of a run that goes on until its interval is narrow enough, and that interval.

    Args:
        means: of the first stage.
        draw: a function that returns the means of so many further units.
        half_width: wanted.
        level: of the interval.
    """
    first = len(means)
    while True:
        wanted = first_stage(means, first)
        if wanted <= len(means):
            low, high = two_stage_interval(means, wanted, level)
            reach = max(means.mean() - low, high - means.mean())
            if reach <= half_width:
                return means, low, high
            wanted = max(len(means) + 1, int(np.ceil(len(means) * (reach / half_width) ** 2)))
        means = np.r_[means, draw(wanted - len(means))]
