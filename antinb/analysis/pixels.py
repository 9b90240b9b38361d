"""The mean image of a run with its interval at each pixel."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import numpy as np
import xarray as xr

from antinb import checks, dataset
from antinb.analysis.intervals import t_quantile

__all__: list[str] = []

MULTIPLIERS = 499


def pixelwise(data: xr.Dataset, *, level: float = 0.95, min_sd: float = 1 / 255, seed: int = 0) -> xr.Dataset:
    r"""Return the mean image in [0, 1] with its interval at each pixel, and a band for all pixels at once.

    Variables by `(channel, y, x)`: `mean`, `sd` of the unit means, the *pointwise* t interval `low, high`
    (each pixel covered with probability `level`, all of them with less), and the simultaneous band
    `band_low, band_high`, `mean -+ c se` with c the quantile of `max |t|` over pixels under a Gaussian
    multiplier bootstrap of 499 draws. Pixels whose `sd` is below `min_sd` are NaN in all but `mean` and
    `sd`, and counted in the attr `masked`. The run is read twice, by blocks of units; in memory are
    a block and 500 images in float64, for the band.

    Args:
        data: a run of one condition.
        level: from 0.01 to 0.9999.
        min_sd: least standard deviation of a pixel's unit means, on the scale from 0 to 1.
        seed: of the multipliers.

    Raises:
        ValueError: for no run, fewer than two units, several conditions, or an argument out of its range.

    Source: Chernozhukov, Chetverikov and Kato, arXiv 1212.6906 (multiplier bootstrap of maxima).

    Examples:
        >>> from antinb import dataset, noise
        >>> run = dataset.build({"image": noise.iid(20).draw((1, 4, 4), seed=0)}, {})
        >>> maps = pixelwise(run)
        >>> bool((maps["band_low"] < maps["low"]).all()), maps.attrs["masked"]
        (True, 0)
    """
    checks.level(level)
    checks.number("min_sd", min_sd, 0, 1)
    units = dataset.images(data).sizes["unit"]
    if units < 2:
        raise ValueError(f"intervals need at least two units; got {units}")
    if "condition" in data.coords and len(np.unique(data["condition"])) > 1:
        raise ValueError("pixel maps are of one condition; select it first")
    mean = functools.reduce(np.add, (means.sum(0) for _, means in _mean_images(data))) / units
    multipliers = np.random.default_rng(checks.seed(seed)).standard_normal((MULTIPLIERS, units))
    squares, moved = np.zeros_like(mean), np.zeros((MULTIPLIERS, *mean.shape))
    for part, means in _mean_images(data):
        deviations = means - mean
        squares += (deviations**2).sum(0)
        moved += np.tensordot(multipliers[:, part], deviations, 1)
    sd = np.sqrt(squares / (units - 1))
    seen = sd >= min_sd
    se = np.where(seen, sd / units**0.5, np.nan)
    largest = np.abs(moved[:, seen] / (sd[seen] * units**0.5)).max(1) if seen.any() else np.full(1, np.nan)
    widths = {"": float(t_quantile(level, units - 1)), "band_": float(np.quantile(largest, level))}
    maps = {"mean": mean, "sd": sd}
    for name, quantile in widths.items():
        maps |= {f"{name}low": mean - quantile * se, f"{name}high": mean + quantile * se}
    about = {"level": level, "units": units, "masked": int((~seen).sum()), "band_quantile": widths["band_"]}
    dims = ("channel", "y", "x")
    return xr.Dataset({name: (dims, part) for name, part in maps.items()}, attrs=about)


def _mean_images(data: xr.Dataset) -> Iterator[tuple[slice, np.ndarray]]:
    """Yield units and their mean images in [0, 1], `(unit, channel, y, x)` in float64."""
    for units, block in dataset.blocks(dataset.images(data)):
        yield units, dataset.scaled(block.astype(np.float64), *dataset.limits(data)).mean(1)
