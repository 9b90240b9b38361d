"""Two models on the same noise, image by image: how far apart the two images of one noise are."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from antinb import checks, dataset
from antinb.analysis.common_noise import common
from antinb.analysis.intervals import row, t_quantile
from antinb.analysis.naming import named
from antinb.analysis.statistics import MARGIN, structural_similarity

__all__ = ["images", "side_by_side"]

QUANTILES = (0.05, 0.5, 0.95)
WORST, FEWEST = 5, 8  # units that are named; units of an interval
Metric = Callable[[np.ndarray, np.ndarray], np.ndarray]


@checks.typed
def images(
    run_a: xr.Dataset, run_b: xr.Dataset, metrics: Sequence[Metric] = (), *, level: float = 0.95
) -> pd.DataFrame:
    r"""Return quantiles of the distances between the two images that two models make of one noise.

    `RMSE = sqrt(mean (a - b)^2)` over pixels and channels, `PSNR = -20 log10 RMSE` in decibels, and, from 11 by 11
    pixels on, `SSIM` of `statistics.ssim`. Both runs are read once, by blocks of units. The interval of the quantile q
    goes from the quantile `q - t s` to `q + t s`, s the standard error over units of the share of images up to the
    estimate; NaN for fewer than 8 units.

    Args:
        run_a: any design.
        run_b: of the same design, seed and units, and of images of the same shape.
        metrics: more distances, such as LPIPS: functions of two arrays of images `(..., C, H, W)` in [0, 1] that
            return `(...)`, the larger the more different.
        level: from 0.01 to 0.9999.

    Returns:
        Rows `metric, quantile, estimate, low, high, level, method, units, members, evaluations, worst, dropped,
        warning`, three quantiles a metric: 5%, 50% and 95%. `worst` are the numbers of the units with the most
        different images, the worst first. Images with a value that is NaN are left out; `dropped` counts their units.

    Raises:
        ValueError: if the runs do not share their noise, naming what differs, their images have different shapes, no
            unit is defined, or a metric does not return a number an image.

    Source: for the intervals Woodruff, J. American Statistical Association 47 (1952), 635-646; for SSIM
        `statistics.structural_similarity`.

    Examples:
        >>> from antinb import dataset, noise
        >>> pixels = noise.antithetic(20).draw((1, 8, 8), seed=0) / 5
        >>> runs = [dataset.build({"image": part}, {"design": {}, "seed": 0}) for part in (pixels, pixels + 0.02)]
        >>> table = images(*runs).set_index(["metric", "quantile"])
        >>> table.loc[("RMSE", 0.5), "estimate"].round(3).item(), table.loc[("PSNR", 0.5), "estimate"].round(1).item()
        (0.01, 40.0)
    """
    checks.level(level)
    names, pixels = named(metrics), _checked(run_a, run_b)[0]
    similar = min(pixels.shape[-2:]) > 2 * MARGIN
    columns = ["RMSE", *(["SSIM"] if similar else []), *names]
    values = np.empty((len(columns), *pixels.shape[:2]))
    for units, a, b in _pairs(run_a, run_b):
        found = [np.square(a - b, dtype=np.float64).mean((-3, -2, -1)) ** 0.5]
        found += [-structural_similarity(a, b)] if similar else []
        for name, metric in zip(names, metrics, strict=True):
            one = np.asarray(metric(a.copy(), b.copy()))
            if one.shape != a.shape[:2] or one.dtype.kind not in "fiub":
                rule = f"{name} must return one number a pair of images, {a.shape[:2]}"
                raise ValueError(f"{rule}; got {one.shape} of {one.dtype}")
            found.append(one)
        values[:, units] = found
    about = {"level": level, "members": values.shape[2], "evaluations": sum(map(dataset.cost, (run_a, run_b)))}
    rows = []
    for name, column in zip(columns, values, strict=True):
        kept = np.isfinite(column).all(1)
        if not kept.any():
            raise ValueError(f"{name} is undefined in all {len(kept)} units")
        order = np.flatnonzero(kept)[np.argsort(-column[kept].max(1), kind="stable")[:WORST]]
        about["worst"] = pixels["unit"].values[order].tolist()
        rows += quantiles(name, column[kept], about | {"dropped": int((~kept).sum())})
    return pd.DataFrame(rows)


@checks.typed
def side_by_side(run_a: xr.Dataset, run_b: xr.Dataset, units: Sequence[int], *, gain: float = 1.0) -> xr.DataArray:
    """Return the first images of some units for `figures.image_grid`, `(unit, row, channel, y, x)`: a, b, difference.

    The third row is `1/2 + gain (b - a) / 2` on the scale from 0 to 1: grey where both are equal.

    Args:
        run_a: any design.
        run_b: as for `images`.
        units: their labels, such as `worst` of `images`.
        gain: how much the difference is amplified.

    Raises:
        ValueError: as `images`, for a unit that is not there, or a gain that is not positive.

    Examples:
        >>> from antinb import dataset, noise
        >>> pixels = noise.antithetic(20).draw((1, 8, 8), seed=0) / 5
        >>> runs = [dataset.build({"image": part}, {"design": {}, "seed": 0}) for part in (pixels, pixels)]
        >>> grid = side_by_side(*runs, [3, 5])
        >>> grid.shape, float(grid.sel(row="difference").mean())
        ((2, 3, 1, 8, 8), 0.5)
    """
    gain, labels = checks.number("gain", gain, 1e-300, 1e300), np.asarray(units)
    both = [part.isel(member=0) for part in _checked(run_a, run_b)]
    if labels.ndim != 1 or not np.isin(labels, both[0]["unit"]).all():
        raise ValueError(f"units are labels of the runs; got {checks.quoted(units)}")
    a, b = (
        dataset.scaled(part.sel(unit=labels).values, *dataset.limits(run))
        for part, run in zip(both, (run_a, run_b), strict=True)
    )
    stacked = np.stack([a, b, 0.5 + gain * (b - a) / 2], 1)
    rows = {"unit": labels, "row": ["a", "b", "difference"]}
    return xr.DataArray(stacked, rows, ["unit", "row", "channel", "y", "x"], attrs={"range": "[0.0, 1.0]"})


def _checked(run_a: xr.Dataset, run_b: xr.Dataset) -> list[xr.DataArray]:
    """Return the images of two runs that share their noise and whose images have one shape."""
    shared, parts = common(run_a, run_b), [dataset.images(run) for run in (run_a, run_b)]
    if shared == "nothing" or parts[0].shape != parts[1].shape:
        raise ValueError(
            f"images of one noise are compared that have one shape; got {parts[0].shape[2:]} and {parts[1].shape[2:]}"
        )
    return parts


def _pairs(run_a: xr.Dataset, run_b: xr.Dataset) -> Iterator[tuple[slice, np.ndarray, np.ndarray]]:
    """Yield units and their images of both runs, scaled to [0, 1], by blocks."""
    second = dataset.images(run_b)
    for units, block in dataset.blocks(dataset.images(run_a)):
        other = second[units].values.astype(block.dtype, copy=False)
        yield units, dataset.scaled(block, *dataset.limits(run_a)), dataset.scaled(other, *dataset.limits(run_b))


def quantiles(name: str, values: np.ndarray, about: dict[str, Any]) -> Iterator[dict[str, object]]:
    """Yield the rows of one metric from `(unit, member)`; PSNR is read off the RMSE, SSIM off its negative."""
    units, ordered = len(values), np.sort(values, None)
    told = about | {"method": "Woodruff over units", "units": units}
    told["warning"] = "" if units >= FEWEST else f"an interval needs {FEWEST} units; got {units}"
    for share in QUANTILES:
        found, low, high = np.quantile(ordered, share, method="inverted_cdf"), np.nan, np.nan
        if units >= FEWEST:
            below = (values <= found).mean(1)
            half = t_quantile(about["level"], units - 1) * below.std(ddof=1) / units**0.5
            low, high = np.quantile(ordered, np.clip([share - half, share + half], 0, 1), method="inverted_cdf")
        if name == "SSIM":
            yield {"metric": name, "quantile": round(1 - share, 2)} | row((-found, -high, -low), **told)
        else:
            yield {"metric": name, "quantile": share} | row((found, low, high), **told)
        if name == "RMSE":
            with np.errstate(divide="ignore"):
                decibels = -20 * np.log10([found, high, low])
            yield {"metric": "PSNR", "quantile": round(1 - share, 2)} | row(decibels, **told)
