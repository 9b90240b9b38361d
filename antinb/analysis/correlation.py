"""Correlations of images from coupled noise, within a unit (PN) and between units (RR).

One correlation is Pearson's over all `C H W` values of two images. PN pairs are members of one
unit, `z` and `-z`; RR pairs are members of two distinct units, hence independent. An image that is
constant, or constant after centring, has no correlation: it is NaN and counted, never filled.

Centred correlations first subtract a mean image, which removes what all images share. That mean is
cross-fitted: the units fall into four folds, the two images of a pair are centred by the means of
two different folds, and neither of these holds the pair. A mean that shared images with the pair,
or one mean for both images, would bias the result by about 1 / units. With conditions, folds, means
and RR pairs stay within one condition.

Results are headed by the pooled ratio `sum cov / sqrt(sum var sum var)`, which is 0 for independent images. It takes
the variances across the two means too, so that their errors do not enter. Beside it stands the mean of the single
correlations. That is not 0 for independent images but `|E u|^2`, u the centred image divided by its length, and the
error of a fold's mean enters the length: with n units a condition, of M images and within-unit correlation rho, the
mean of a fold has the share `e = 4 (1 + (M - 1) rho) / (M n)` of an image's variance as its error, and a single
correlation is drawn towards 0 by `1 / (1 + e)`, about `1 - 2 (1 + rho) / n` for pairs. This holds if the error is
at right angles to the image; an error along it does not turn the image, so that the factor is nearer to 1 where few
directions hold the variance. The centred mean therefore is the jackknife's, `g T - (g - 1) mean_b T_-b`, which takes
off the term in 1 / n whatever the law. The single correlations themselves are left as they are.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from antinb import checks, dataset
from antinb.analysis import crossfit, diagnostics
from antinb.analysis.intervals import jackknife_interval, row

__all__ = ["along", "histogram", "paired_difference", "pixel_map", "pn", "summary"]

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
STEPPED = ("state", "predicted_noise")
METHOD = "jackknife over units"
REMEDY = "take more units"


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

    Columns: `pairs`, `centred`; `estimate`, the pooled ratio `sum cov / sqrt(sum var sum var)`, with `low, high, level,
    method`; `units`; `evaluations`, network calls in all; `mean`, that of the single correlations, with `mean_low,
    mean_high`; `sd` and quantiles `q05` to `q95` of the single correlations, of which there are `singles`: a value a
    unit (PN), or a pair of images (RR), of a fixed random part of the units where there are more than 250,000 pairs;
    `undefined`, units (PN) or pairs (RR) left out because an image is constant or not finite (in the pooled ratio, a
    constant image stays, with variance 0); `warning`, a sentence
    with the remedy where units are too skewed or too few, otherwise "". The rows `PN-RR` have no single values.

    RR values are U-statistics over pairs of distinct units. All intervals come from a jackknife over at most 50 blocks
    of units, each spread over all conditions, in which centring is done anew: all pairs share the mean images, so
    that their correlations are no independent numbers, and a t interval over them covers too little. Correlations, but
    not their differences, are jackknifed as `atanh r` (Fisher), unless one is beyond -1 or 1. Where independent
    images are uncorrelated the U-statistic is degenerate and its interval too wide: a nominal 95% covers 98% and more.

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
    rows, about = [], {"units": len(units.condition), "evaluations": dataset.cost(data)}
    both = zip((False, True), found, crossfit.between(images, units, found), strict=True)
    for centred, correlations, between in both:
        singles = {"PN": correlations.pn, "RR": between}
        undefined = {"PN": int(np.isnan(correlations.pn).sum()), "RR": correlations.undefined()}
        for kind, estimates in zip(("PN", "RR", "PN-RR"), correlations.estimates(), strict=True):
            if kind != "RR" and images.shape[1] == 1:
                continue
            spread = {}
            if kind in singles:
                defined = singles[kind][np.isfinite(singles[kind])]
                spread = {"undefined": undefined[kind], "singles": defined.size}
                if defined.size > 1:
                    quantiles = {f"q{100 * q:02.0f}": np.quantile(defined, q) for q in QUANTILES}
                    spread |= {"sd": defined.std(ddof=1), **quantiles}
            rows.append(
                {"pairs": kind, **_jackknifed(estimates, centred, level, difference=kind == "PN-RR", **about, **spread)}
            )
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
    the image; `predicted_noise` has no such last row. Columns and intervals as in `summary`, without the single values.

    Raises:
        ValueError: if the run has no trajectories, one member a unit, or fewer than 8 units.

    Source: Jia et al., arXiv 2506.06185, section 3, correlation of predicted noises by step.
    """
    checks.level(level)
    images, units = _checked(data, members=2)
    if "state" not in data:
        raise ValueError(f"a run with trajectories holds a 'state'; got {list(data.data_vars)}")
    parts = [(name, step, data[name].isel(step=step)) for name in STEPPED for step in range(data.sizes["step"])]
    parts.insert(data.sizes["step"], ("state", data.sizes["step"], images))
    rows = []
    for name, step, part in parts:
        estimates, undefined = _pn(part.transpose(*dataset.DIMS), units, centred)
        about: dict[str, Any] = {"units": len(units.condition), "undefined": undefined}
        place = {"variable": name, "step": step, "pairs": "PN"}
        rows.append(place | _jackknifed(estimates, centred, level, **about))
    return pd.DataFrame(rows)


@checks.typed
def paired_difference(
    first: xr.Dataset, second: xr.Dataset, *, centred: bool = False, level: float = 0.95
) -> pd.DataFrame:
    """Return the difference of the PN correlations of two runs of the same units, `first - second`, one row.

    Runs of one seed share the noise that their designs have in common, so that a block of units moves both alike, and
    the difference varies less than either correlation. Columns and intervals as in `summary`, without the
    single values, the same blocks of units left out of both runs.

    Raises:
        ValueError: if the runs differ in seed or number of units.
    """
    checks.level(level)
    dataset.same_units(dataset.images(first), dataset.images(second))
    seeds, sizes = ([kind(run) for run in (first, second)] for kind in (_seed, lambda run: run.sizes["unit"]))
    if len({*seeds}) > 1 or len({*sizes}) > 1:
        raise ValueError(f"paired runs share seed and number of units; got seeds {seeds}, units {sizes}")
    checked = [_checked(run, members=2) for run in (first, second)]
    block = min((units.block for _, units in checked), key=np.max)
    both = [_pn(images, units._replace(block=block), centred) for images, units in checked]
    about: dict[str, Any] = {"units": sizes[0], "undefined": max(undefined for _, undefined in both)}
    about["evaluations"] = dataset.cost(first) + dataset.cost(second)
    return pd.DataFrame([_jackknifed(both[0][0] - both[1][0], centred, level, difference=True, **about)])


def _seed(data: xr.Dataset) -> object:
    return dataset.config(data).get("seed")


def _pn(images: xr.DataArray, units: crossfit.Split, centred: bool) -> tuple[np.ndarray, int]:
    """Return mean and pooled ratio of PN, of all and without each block, `(2, 1 + blocks)`, and the undefined units."""
    (found,) = crossfit.correlate(crossfit.compact(images), units, centred, leave_out=True)
    return found.estimates()[0], int(np.isnan(found.pn).sum())


def _jackknifed(
    estimates: np.ndarray, centred: bool, level: float, *, difference: bool = False, **about: object
) -> dict[str, object]:
    """Return a row from the mean and the pooled ratio, of all units and without each block, `(2, 1 + blocks)`."""
    whole, left_out = estimates[:, 0].copy(), estimates[:, 1:].T
    if centred:
        whole[0] += (len(left_out) - 1) * (whole[0] - left_out[:, 0].mean())
    means, pooled = np.stack(jackknife_interval(whole, left_out, level), -1)
    if np.abs(estimates).max() < 1 and np.abs(whole).max() < 1 and not difference:
        means, pooled = np.tanh(np.stack(jackknife_interval(np.arctanh(whole), np.arctanh(left_out), level), -1))
    beside = dict(zip(("mean", "mean_low", "mean_high"), means, strict=True))
    defined = np.isfinite(left_out[:, 1]).all()
    about["warning"] = diagnostics.warning(left_out[:, 1], REMEDY, bound=diagnostics.VERY_SKEWED) if defined else ""
    return {"centred": centred, **row(pooled, level=level, method=METHOD, **about, **beside)}


def _checked(data: xr.Dataset, members: int = 1) -> tuple[xr.DataArray, crossfit.Split]:
    """Return the images `(unit, member, channel, y, x)` and the split of the units."""
    images = dataset.images(data)
    if images.sizes["member"] < members:
        raise ValueError(f"pairs within a unit need at least {members} members; got {images.sizes['member']}")
    return images, crossfit.split(data)
