"""Correlations of images from coupled noise, within a unit (PN) and between units (RR).

One correlation is Pearson's over all `C H W` values of two images. PN pairs are members of one
unit, `z` and `-z`; RR pairs are members of two distinct units, hence independent. An image that is
constant, or constant after centring, has no correlation: it is NaN and counted, never filled.

Centred correlations first subtract a mean image, which removes what all images share. That mean is
cross-fitted: the units fall into four folds, the two images of a pair are centred by the means of
two different folds, and neither of these holds the pair. A mean that shared images with the pair,
or one mean for both images, would bias the result by about 1 / units. Single correlations are still
drawn towards 0 by a factor of about `1 - 2 (1 + rho) / units`, since the mean's error enters their
variances; the pooled ratio takes its variances across the two means and is not. With conditions,
folds, means and RR pairs stay within one condition, and `units` is the number in each.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import xarray as xr

from antinb import checks, dataset
from antinb.analysis import crossfit
from antinb.analysis.intervals import jackknife_interval, row, t_interval

__all__ = ["along", "histogram", "paired_difference", "pixel_map", "pn", "summary"]

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
STEPPED = ("state", "predicted_noise")
OVER_UNITS = "t over units"


@checks.typed
def pn(data: xr.Dataset, *, centred: bool = False) -> xr.DataArray:
    """Return the correlation of each unit, `corr(x_i0, x_i1)`, `(unit)` in [-1, 1].

    Of more than two members it is the mean over their pairs. NaN where one of them is undefined. The run is
    read block by block, twice if centred.

    Raises:
        ValueError: if it is no run, or has one member a unit or too few units to centre.

    Examples:
        >>> from antinb import dataset, noise
        >>> run = dataset.build({"image": noise.antithetic(10).draw((1, 8, 8), seed=0)}, {"evaluations": 1})
        >>> round(pn(run).mean().item(), 6)
        -1.0
    """
    images, units = _checked(data, members=2)
    values = crossfit.correlate(images, units, centred)[0].pn
    return xr.DataArray(values, {"unit": data["unit"]}, ["unit"], "correlation")


def rr(data: xr.Dataset, *, centred: bool = False) -> np.ndarray:
    """Return the correlations of images of distinct units, one value a pair of images, in [-1, 1].

    All pairs if a condition's units have at most 250,000 (of several conditions, all together), else about as many,
    those of a fixed random part of the units. The values share images: their mean is a U-statistic, not a mean of
    independent numbers; its estimate from all pairs and its interval are in `summary`.

    Raises:
        ValueError: if it is no run or has too few units.
    """
    images, units = _checked(data)
    return crossfit.between(images, units, crossfit.correlate(images, units, centred))[0]


@checks.typed
def histogram(data: xr.Dataset, *, centred: bool = False, bins: int = 60) -> pd.DataFrame:
    """Return the density of the single correlations, a row a bin of [-1, 1]: `pairs, left, right, density`.

    Each of PN and RR integrates to one; undefined correlations are left out, and NaN if there are no others. RR
    values are those of `rr`: all pairs, or those of a part of the units.

    Examples:
        >>> from antinb import dataset, noise
        >>> run = dataset.build({"image": noise.antithetic(10).draw((1, 8, 8), seed=0)}, {"evaluations": 1})
        >>> histogram(run, bins=4).query("pairs == 'PN'")["density"].tolist()
        [2.0, 0.0, 0.0, 0.0]
    """
    edges = np.linspace(-1, 1, checks.integer("bins", bins, 1, 10_000) + 1)
    images, units = _checked(data)
    found = crossfit.correlate(images, units, centred)
    values = {"PN": found[0].pn} if images.shape[1] > 1 else {}
    values["RR"] = crossfit.between(images, units, found)[0]
    tables = []
    for kind, single in values.items():
        defined = single[np.isfinite(single)]
        counts = np.histogram(defined.clip(-1, 1), edges)[0]
        density = counts * len(counts) / (2 * defined.size) if defined.size else np.full(len(counts), np.nan)
        tables.append(pd.DataFrame({"pairs": kind, "left": edges[:-1], "right": edges[1:], "density": density}))
    return pd.concat(tables)


@checks.typed
def summary(data: xr.Dataset, *, level: float = 0.95) -> pd.DataFrame:
    """Return PN and RR correlations and their difference, standard and centred, one row each.

    Columns: `pairs`, `centred`, `estimate` (the mean over pairs) with `low, high, level, method`;
    `sd` and quantiles `q05` to `q95` of the single correlations, of which there are `singles`: a value a unit
    (PN), or a pair of images (RR), of a fixed random part of the units where there are more than 250,000 pairs;
    `pooled`, the ratio `sum cov / sqrt(sum var sum var)`, with `pooled_low, pooled_high`; `undefined`, units (PN)
    or pairs (RR) left out because an image is constant or not finite; `units`; `evaluations`, network calls in all.
    The rows `PN-RR` have no single values.

    PN intervals are t intervals over units. RR means are U-statistics over pairs of distinct
    units; their intervals, those of the pooled ratios, and all of them where there are several
    conditions, come from a jackknife over at most 50 blocks, each spread over all conditions, in
    which centring is done anew. Where independent images are uncorrelated the U-statistic is
    degenerate and its interval too wide: a nominal 95% covers 99% and more.

    No pair is formed for the estimates, and the run is read block by block, at most three times; up to 1,024 images
    of at least 64 times as many values are first turned into as many coordinates, and read about once for every 64
    million values. Otherwise a condition takes the memory of about 460 images in double precision.

    Raises:
        ValueError: if it is no run, there are fewer than 8 units a condition, or the level is not from 0.01
            to 0.9999.

    Source: Jia et al., arXiv 2506.06185, section 3; the cross-fitting and the intervals are antinb's.

    Examples:
        >>> from antinb import dataset, noise
        >>> run = dataset.build({"image": noise.antithetic(10).draw((1, 8, 8), seed=0)}, {"evaluations": 1})
        >>> summary(run).set_index(["pairs", "centred"]).loc[("PN", False), "estimate"].round(6).item()
        -1.0
    """
    checks.level(level)
    images, units = _checked(data)
    images = crossfit.compact(images)
    found = crossfit.correlate(images, units, False, True, leave_out=True)
    several, rows = units.condition.max() > 0, []
    about = {"level": level, "units": len(units.condition), "evaluations": dataset.cost(data)}
    both = zip((False, True), found, crossfit.between(images, units, found), strict=True)
    for centred, correlations, between in both:
        estimates = np.moveaxis(correlations.estimates(), -1, 0)
        numbers = np.stack(jackknife_interval(estimates[0], estimates[1:], level), -1)
        singles = {"PN": correlations.pn, "RR": between}
        undefined = {"PN": int(np.isnan(correlations.pn).sum()), "RR": correlations.undefined()}
        for kind, (mean, pooled) in zip(("PN", "RR", "PN-RR"), numbers, strict=True):
            if kind != "RR" and images.shape[1] == 1:
                continue
            spread, method = {}, "jackknife over units"
            if kind in singles:
                defined = singles[kind][np.isfinite(singles[kind])]
                spread = {"undefined": undefined[kind], "singles": defined.size}
                if defined.size > 1:
                    quantiles = {f"q{100 * q:02.0f}": np.quantile(defined, q) for q in QUANTILES}
                    spread |= {"sd": defined.std(ddof=1), **quantiles}
                if kind == "PN" and not several and defined.size > 1:
                    mean, method = _t_numbers(defined, level), OVER_UNITS
            spread |= dict(zip(("pooled", "pooled_low", "pooled_high"), pooled, strict=True))
            rows.append({"pairs": kind, "centred": centred, **row(mean, method=method, **about, **spread)})
    return pd.DataFrame(rows)


@checks.typed
def pixel_map(data: xr.Dataset, *, min_sd: float = 2 / 255) -> xr.DataArray:
    """Return at each pixel the correlation over pairs of the two members' values, `(channel, y, x)`.

    It says where in the image the pairs oppose each other: a different quantity from the
    correlation of two images. Pixels whose standard deviation over units is below `min_sd`, in the
    units of the images, are NaN: there is nothing to see there. The run is read once, block by block.

    Raises:
        ValueError: if it is no run or a unit has not exactly two members.
    """
    images = dataset.images(data)
    if images.sizes["member"] != 2:
        raise ValueError(f"a map over pairs needs two members a unit; got {images.sizes['member']}")
    checks.number("min_sd", min_sd, 0, 2)
    template = images.isel(unit=0, member=0, drop=True)
    near, counts, sums = np.zeros(()), np.zeros(template.shape), np.zeros((2, *template.shape))
    products = np.zeros((2, *sums.shape))
    for units, block in dataset.blocks(images):
        part = block.astype(float)
        seen = np.isfinite(part).all(1, keepdims=True)
        if units.start == 0:
            near = np.where(seen, part, 0).mean(0)  # taken off each value, so that squares lose no digits
        part = np.where(seen, part - near, 0)
        counts += seen.sum((0, 1))
        sums += part.sum(0)
        products += np.einsum("nicyx,njcyx->ijcyx", part, part)
    with np.errstate(divide="ignore", invalid="ignore"):
        means = sums / counts
        covariances = products / counts - means[:, None] * means
        variances = np.stack([covariances[0, 0], covariances[1, 1]])
        found = covariances[0, 1] / np.sqrt(variances.prod(0))
    found[~(variances >= min_sd**2).all(0)] = np.nan
    return xr.DataArray(found, template.coords, template.dims, "correlation")


@checks.typed
def along(data: xr.Dataset, *, centred: bool = False, level: float = 0.95) -> pd.DataFrame:
    """Return the mean PN correlation of states and predicted noises, a row a `variable` and `step`.

    The run is one with trajectories. The `state` of step k is the one before that step, its last row
    the image; `predicted_noise` has no such last row. Columns as in `summary`, the intervals t
    intervals over units.

    Raises:
        ValueError: if the run has no trajectories, one member a unit, or fewer than 8 units.

    Source: Jia et al., arXiv 2506.06185, section 3, correlation of predicted noises by step.
    """
    images, units = _checked(data, members=2)
    if "state" not in data:
        raise ValueError(f"a run with trajectories holds a 'state'; got {list(data.data_vars)}")
    parts = [(name, step, data[name].isel(step=step)) for name in STEPPED for step in range(data.sizes["step"])]
    parts.insert(data.sizes["step"], ("state", data.sizes["step"], images))
    rows = []
    for name, step, part in parts:
        values = crossfit.correlate(part.transpose(*dataset.DIMS), units, centred)[0].pn
        rows.append({"variable": name, "step": step, "pairs": "PN", "centred": centred, **_t_row(values, level)})
    return pd.DataFrame(rows)


@checks.typed
def paired_difference(
    first: xr.Dataset, second: xr.Dataset, *, centred: bool = False, level: float = 0.95
) -> pd.DataFrame:
    """Return the mean over units of `pn(first) - pn(second)`, one row, for runs of the same units.

    Runs of one seed share the noise that their designs have in common, so that the difference of a
    unit varies less than either correlation. The interval is a t interval over units.

    Raises:
        ValueError: if the runs differ in seed or number of units.
    """
    dataset.same_units(dataset.images(first), dataset.images(second))
    seeds, sizes = ([kind(run) for run in (first, second)] for kind in (_seed, lambda run: run.sizes["unit"]))
    if len({*seeds}) > 1 or len({*sizes}) > 1:
        raise ValueError(f"paired runs share seed and number of units; got seeds {seeds}, units {sizes}")
    gaps = (pn(first, centred=centred) - pn(second, centred=centred)).values
    return pd.DataFrame([_t_row(gaps, level) | {"evaluations": dataset.cost(first) + dataset.cost(second)}])


def _seed(data: xr.Dataset) -> object:
    return dataset.config(data).get("seed")


def _t_row(values: np.ndarray, level: float) -> dict[str, object]:
    """Return mean and t interval of the defined values, one a unit."""
    checks.level(level)
    defined = values[np.isfinite(values)]
    numbers = _t_numbers(defined, level) if defined.size > 1 else [np.nan] * 3
    return row(numbers, level=level, method=OVER_UNITS, units=defined.size, undefined=values.size - defined.size)


def _t_numbers(defined: np.ndarray, level: float) -> tuple[float, float, float]:
    low, high = t_interval(defined, level)
    return float(defined.mean()), float(low), float(high)


def _checked(data: xr.Dataset, members: int = 1) -> tuple[xr.DataArray, crossfit.Split]:
    """Return the images `(unit, member, channel, y, x)` and the split of the units."""
    images = dataset.images(data)
    if images.sizes["member"] < members:
        raise ValueError(f"pairs within a unit need at least {members} members; got {images.sizes['member']}")
    return images, crossfit.split(data)
