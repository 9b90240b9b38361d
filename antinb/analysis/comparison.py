"""Comparisons of two methods unit by unit: difference, ratio, win rate, and what is kept at an equal target.

`summary`, `images` and `side_by_side` compare two models on the same noise; `frechet` and `kid` compare their images
with a reference. For the other functions a unit is what both methods were given: a source that both edited, a number of
a unit of two designs. Units are independent. Those in which either value is NaN are left out and counted in `dropped`.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy import stats

from antinb import checks
from antinb.analysis import diagnostics
from antinb.analysis.common_noise import summary
from antinb.analysis.distances import frechet, kid
from antinb.analysis.imagewise import images, side_by_side
from antinb.analysis.intervals import row, t_interval
from antinb.analysis.resampling import cluster_bootstrap

__all__ = ["difference", "frechet", "images", "kid", "matched", "ratio", "side_by_side", "summary", "win_rate"]

REMEDY = "take more units, or compare by win_rate"


@checks.typed
def difference(first: np.ndarray, second: np.ndarray, *, level: float = 0.95) -> pd.DataFrame:
    """Return the mean of `first - second`, each `(units,)`, its t interval and the two-sided p-value of 0.

    Returns:
        One row `estimate, low, high, level, method, units, dropped, p_value, skewness, largest_share, warning`.

    Raises:
        ValueError: for arrays of different or other shapes, fewer than two defined units, or a level out of range.

    Examples:
        >>> difference(np.array([3.0, 5.0, 4.0]), np.array([1.0, 2.0, 3.0]))["estimate"].item()
        2.0
    """
    values, dropped = _both(first, second, level)
    gaps = values[0] - values[1]
    spread = gaps.std(ddof=1)
    statistic = np.divide(gaps.mean() * len(gaps) ** 0.5, spread, out=np.array(np.nan), where=spread > 0)
    more = {"dropped": dropped, "p_value": float(2 * stats.t.sf(abs(statistic), len(gaps) - 1))}
    more |= {**diagnostics.shape(gaps), "warning": diagnostics.warning(gaps, REMEDY)}
    numbers = gaps.mean(), *t_interval(gaps, level)
    return pd.DataFrame([row(numbers, level=level, method="t over units", units=len(gaps), **more)])


@checks.typed
def ratio(first: np.ndarray, second: np.ndarray, *, level: float = 0.95) -> pd.DataFrame:
    r"""Return the ratio of the means of `first` and `second`, each `(units,)`, with its interval.

    `r = mean(a) / mean(b)`, the interval that of the mean of `r + (a - r b) / mean(b)` (delta method). Where the
    t interval of `mean(b)` holds 0 there is no ratio: NaN.

    Returns:
        One row `estimate, low, high, level, method, units, dropped, warning`.

    Raises:
        ValueError: as `difference`.

    Examples:
        >>> ratio(np.array([22.0, 24.0, 26.0]), np.array([11.0, 12.0, 13.0]))["estimate"].item()
        2.0
    """
    (a, b), dropped = _both(first, second, level)
    low, high = t_interval(b, level)
    found = np.nan if low <= 0 <= high else a.mean() / b.mean()
    influence = found + (a - found * b) / b.mean()
    ends = t_interval(influence, level)
    about = {"level": level, "method": "delta method, t over units", "units": len(a), "dropped": dropped}
    about["warning"] = "" if np.isnan(found) else diagnostics.warning(influence, "take more units")
    return pd.DataFrame([row((found, *ends), **about)])


@checks.typed
def win_rate(first: np.ndarray, second: np.ndarray, *, tie: float = 0.0, level: float = 0.95) -> pd.DataFrame:
    """Return in which share of the units that are not ties `first` is the larger, with Wilson's interval.

    A unit is a tie if `|first - second| <= tie`; ties are left out and counted.

    Returns:
        One row `estimate, low, high, level, method, units, dropped, ties`; NaN if all units are ties.

    Raises:
        ValueError: as `difference`, or for a tie below 0.

    Examples:
        >>> win_rate(np.array([1.0, 2.0, 3.0]), np.array([0.0, 2.0, 5.0]))[["estimate", "ties"]].values.tolist()
        [[0.5, 1.0]]
    """
    values, dropped = _both(first, second, level)
    gaps = values[0] - values[1]
    wins, ties = int((gaps > checks.number("tie", tie, 0, np.inf)).sum()), int((np.abs(gaps) <= tie).sum())
    decided = len(gaps) - ties
    numbers = [np.nan] * 3
    if decided:
        numbers = [wins / decided, *stats.binomtest(wins, decided).proportion_ci(level, "wilson")]
    about = {"level": level, "method": "Wilson", "units": len(gaps), "dropped": dropped, "ties": ties}
    return pd.DataFrame([row(numbers, **about)])


@checks.typed
def matched(target: np.ndarray, kept: np.ndarray, *, at: float, level: float = 0.95) -> pd.DataFrame:
    """Return how much more the first of two methods keeps than the second where both reach the same target.

    Each setting of a method, a strength say, is a point: its mean target and its mean of what is kept. `kept`
    at a target is read off the straight lines between the points, in order of their targets. The interval is
    a bootstrap over units, both curves made anew each time.

    Args:
        target: `(2, settings, units)`, what an edit should reach.
        kept: `(2, settings, units)`, what it should leave.
        at: the mean target at which the methods are compared.
        level: from 0.01 to 0.9999.

    Returns:
        One row `estimate, low, high, level, method, units, dropped`.

    Raises:
        ValueError: for other shapes, fewer than 8 units, or a target that one of the methods does not reach on
            both sides.

    Examples:
        >>> target = np.tile(np.array([[0.0], [0.5], [1.0]]), (2, 1, 8))
        >>> kept = np.stack([1 - target[0] / 2, 1 - target[1]])
        >>> matched(target, kept, at=0.5)["estimate"].item()
        0.25
    """
    target, kept, at = np.asarray(target, float), np.asarray(kept, float), checks.number("at", at, -1e300, 1e300)
    if target.shape != kept.shape or target.ndim != 3 or len(target) != 2:
        raise ValueError(f"target and kept are (2, settings, units); got {target.shape} and {kept.shape}")
    defined = np.isfinite(target).all((0, 1)) & np.isfinite(kept).all((0, 1))
    target, kept = target[..., defined], kept[..., defined]
    ranges = np.stack([target.mean(-1).min(1), target.mean(-1).max(1)], 1)
    if not (ranges[:, 0] <= at).all() or not (at <= ranges[:, 1]).all():
        raise ValueError(f"at must be a target that both methods reach, within {ranges.round(3).tolist()}; got {at!r}")

    def gap(units: np.ndarray) -> float:
        curves = target[..., units].mean(-1), kept[..., units].mean(-1)
        first, second = (np.interp(at, x[np.argsort(x)], y[np.argsort(x)]) for x, y in zip(*curves, strict=True))
        return first - second

    units = int(defined.sum())
    about = {"level": level, "method": "bootstrap over units", "units": units, "dropped": int((~defined).sum())}
    return pd.DataFrame([row(cluster_bootstrap(gap, units, level), **about)])


def _both(first: np.ndarray, second: np.ndarray, level: float) -> tuple[np.ndarray, int]:
    """Return the defined units of both, `(2, units)`, and how many were dropped."""
    checks.level(level)
    parts = [np.asarray(part, float) for part in (first, second)]
    if parts[0].shape != parts[1].shape or parts[0].ndim != 1:
        raise ValueError(f"paired values are (units,) twice; got {parts[0].shape} and {parts[1].shape}")
    values = np.stack(parts)
    defined = np.isfinite(values).all(0)
    if defined.sum() < 2:
        raise ValueError(f"a comparison needs at least two units with both values; got {defined.sum()}")
    return values[:, defined], int((~defined).sum())
