"""Intervals at every pixel of the mean image, of runs that need not fit in memory."""

from __future__ import annotations

import json
from collections.abc import Iterator

import numpy as np
import xarray as xr
from scipy import stats

from antinb.checks import at_least, number
from antinb.intervals import LEVELS

RESAMPLES = 499


def interval(
    data: xr.Dataset, *, level: float = 0.95, min_sd: float = 1 / 255, seed: int = 0, block: int = 64
) -> xr.Dataset:
    r"""Return the mean image in [0, 1] with its interval at each pixel, and a band for all pixels at once.

    Variables by `(channel, y, x)`: `mean`, `sd` of the unit means, the *pointwise* t interval `low, high`
    (each pixel covered with probability `level`, all of them with less), and the simultaneous band
    `band_low, band_high`, `mean -+ c se` with c the quantile of `max |t|` over pixels under a Gaussian
    multiplier bootstrap of 499 draws. Pixels whose `sd` is below `min_sd` are NaN in all but `mean` and
    `sd`, and counted in the attr `masked`. The run is read twice, `block` units at a time; in memory are
    a block and 500 images in float64, for the band.

    Args:
        data: a run of one condition.
        level: from 0.01 to 0.9999.
        min_sd: least standard deviation of a pixel's unit means, on the scale from 0 to 1.
        seed: of the multipliers.
        block: units in memory at once.

    Raises:
        ValueError: for fewer than two units, several conditions, or an argument out of its range.

    Source: Chernozhukov, Chetverikov and Kato, arXiv 1212.6906 (multiplier bootstrap of maxima).
    """
    number("level", level, *LEVELS)
    number("min_sd", min_sd, 0, 1)
    units, block = data.sizes["unit"], at_least(1, "block", block)
    if units < 2:
        raise ValueError(f"intervals need at least two units; got {units}")
    if "condition" in data.coords and len(np.unique(data["condition"])) > 1:
        raise ValueError("pixel maps are of one condition; select it first")
    total = sum(means.sum(0) for means in _unit_means(data, block))
    mean = total / units
    multipliers = np.random.default_rng(at_least(0, "seed", seed)).standard_normal((RESAMPLES, units))
    squares, moved, start = np.zeros_like(mean), np.zeros((RESAMPLES, *mean.shape)), 0
    for means in _unit_means(data, block):
        deviations = means - mean
        squares += (deviations**2).sum(0)
        moved += np.tensordot(multipliers[:, start : start + len(means)], deviations, 1)
        start += len(means)
    sd = np.sqrt(squares / (units - 1))
    seen = sd >= min_sd
    se = np.where(seen, sd / units**0.5, np.nan)
    largest = np.abs(moved[:, seen] / (sd[seen] * units**0.5)).max(1) if seen.any() else np.full(1, np.nan)
    widths = {"": stats.t.ppf((1 + level) / 2, units - 1), "band_": float(np.quantile(largest, level))}
    maps = {"mean": mean, "sd": sd}
    for name, quantile in widths.items():
        maps |= {f"{name}low": mean - quantile * se, f"{name}high": mean + quantile * se}
    about = {"level": level, "units": units, "masked": int((~seen).sum()), "band_quantile": widths["band_"]}
    dims = ("channel", "y", "x")
    return xr.Dataset({name: (dims, part) for name, part in maps.items()}, attrs=about)


def _unit_means(data: xr.Dataset, block: int) -> Iterator[np.ndarray]:
    """Yield the unit means in [0, 1], `(units of a block, channel, y, x)` in float64."""
    low, high = json.loads(data["image"].attrs["range"])
    for start in range(0, data.sizes["unit"], block):
        images = data["image"].isel(unit=slice(start, start + block)).values.astype(np.float64)
        yield np.clip((images - low) / (high - low), 0, 1).mean(1)
