"""What every estimator returns, and what of measured values goes into it: units, conditions, the error of controls."""

from __future__ import annotations

from dataclasses import dataclass
from typing import SupportsFloat

import numpy as np
import xarray as xr

from antinb.analysis.intervals import t_quantile, welch

__all__: list[str] = []


@dataclass(frozen=True)
class Estimate:
    """An estimate with its standard error and degrees of freedom: what every estimator returns."""

    estimate: float
    se: float
    df: float

    def interval(self, level: float) -> tuple[float, float]:
        """Return `estimate -+ t se` with the t quantile of `df` degrees of freedom."""
        half = float(t_quantile(level, self.df)) * self.se
        return self.estimate - half, self.estimate + half


def unit_members(values: xr.DataArray, name: str, drop: bool) -> tuple[np.ndarray, np.ndarray, int]:
    """Return the defined units `(unit, member)`, their conditions and how many were dropped."""
    table = values.transpose("unit", "member").values
    conditions = values["condition"].values if "condition" in values.coords else np.zeros(len(table), int)
    defined = np.isfinite(table).all(1)
    dropped = int((~defined).sum())
    if dropped and not drop:
        raise ValueError(f"{name} is undefined in {dropped} of {len(table)} units; drop=True leaves them out, counted")
    return table[defined], conditions[defined], dropped


def stratified(means: np.ndarray, conditions: np.ndarray, name: str, *, constant: bool = False) -> Estimate:
    """Return the mean within conditions averaged by their shares of the units, with its standard error and df."""
    kinds, counts = np.unique(conditions, return_counts=True)
    if not len(counts) or counts.min() < 2:
        raise ValueError(f"an interval needs at least two units a condition; {name} has {counts.tolist() or 0}")
    parts = [means[conditions == kind] for kind in kinds]
    shares = counts / counts.sum()
    variances = np.array([part.var(ddof=1) / len(part) for part in parts]) * shares**2
    flat = variances.sum() <= (1e-12 * np.abs(means).max()) ** 2
    if flat and not constant:
        remedy = "there is no width to estimate; method='bounded' gives one if the statistic lies in [0, 1]"
        raise ValueError(f"{name} is constant over units ({means[0]:g}): {remedy}")
    mean = float(shares @ [part.mean() for part in parts])
    return Estimate(mean, float(variances.sum() ** 0.5), float(counts.sum() - 1 if flat else welch(variances, counts)))


def expectation_variance(values: xr.DataArray, name: str) -> float:
    """Return the variance of the expectation of a statistic's controls, 0 without `controls.surrogate`."""
    found = values.coords.get("expectation_variance")
    return 0.0 if found is None else float(found.sel(statistic=name))


def with_expectation(found: Estimate, values: xr.DataArray, name: str) -> Estimate:
    """Return an estimate with the error of the expectation of its controls, df by Welch and Satterthwaite."""
    variances = np.array([found.se**2, expectation_variance(values, name)])
    if not variances[1]:
        return found
    df = welch(variances, np.array([found.df, float(values["expectation_df"].sel(statistic=name))]) + 1)
    return Estimate(found.estimate, float(variances.sum() ** 0.5), float(df))


def widened(
    ends: tuple[SupportsFloat, SupportsFloat], found: Estimate, level: float, values: xr.DataArray, name: str
) -> tuple[float, float]:
    """Return an interval of the units alone with the error of the expectation, as roots of sums of squares.

    Source: Zou and Donner, Stat. Med. 27 (2008), 1693-1702.
    """
    extra = t_quantile(level, found.df) * expectation_variance(values, name) ** 0.5
    low, high = map(float, ends)
    if not extra:
        return low, high
    below, above = np.hypot([found.estimate - low, high - found.estimate], extra)
    return float(found.estimate - below), float(found.estimate + above)
