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

from collections.abc import Callable, Iterator

import numpy as np
import pandas as pd
import xarray as xr

from antinb import checks, dataset
from antinb.analysis.intervals import jackknife, row, t_interval

__all__ = ["along", "histogram", "paired_difference", "pixel_map", "pn", "summary"]

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
STEPPED = ("state", "predicted_noise")
OVER_UNITS = "t over units"

Block = tuple[np.ndarray, np.ndarray, np.ndarray]


def pn(data: xr.Dataset, *, centred: bool = False) -> xr.DataArray:
    """Return the correlation of each unit, `corr(x_i0, x_i1)`, `(unit)` in [-1, 1].

    Of more than two members it is the mean over their pairs. NaN where one of them is undefined.

    Raises:
        ValueError: if the run has one member a unit, or too few units to centre.

    Examples:
        >>> from antinb import dataset, noise
        >>> run = dataset.build({"image": noise.antithetic(10).draw((1, 8, 8), seed=0)}, {"evaluations": 1})
        >>> round(pn(run).mean().item(), 6)
        -1.0
    """
    images, strata = _arrays(data, members=2)
    values = np.full(len(images), np.nan)
    for left, right, units in _blocks(images, strata, centred, _unit_vectors):
        upper = np.triu_indices(images.shape[1], 1)
        pairs = np.einsum("ikd,ijd->ikj", left, right)
        values[units] = ((pairs + pairs.swapaxes(1, 2)) / 2)[:, *upper].mean(1)
    return xr.DataArray(values, {"unit": data["unit"]}, ["unit"], "correlation")


def rr(data: xr.Dataset, *, centred: bool = False) -> np.ndarray:
    """Return the correlations of all images of distinct units, one value a pair of images, in [-1, 1].

    The values share images: their mean is a U-statistic, not a mean of independent numbers; its
    interval is in `summary`. Memory grows as the square of the number of images.

    Raises:
        ValueError: if there are too few units.
    """
    images, strata = _arrays(data)
    values = []
    for left, right, units in _blocks(images, strata, centred, _unit_vectors):
        owner = np.repeat(units, images.shape[1])
        first, second = np.nonzero(owner[:, None] < owner)
        gram = left.reshape(len(owner), -1) @ right.reshape(len(owner), -1).T
        values.append(((gram + gram.T) / 2)[first, second])
    return np.concatenate(values)


def histogram(data: xr.Dataset, *, centred: bool = False, bins: int = 60) -> pd.DataFrame:
    """Return the density of the single correlations, a row a bin of [-1, 1]: `pairs, left, right, density`.

    Each of PN and RR integrates to one; undefined correlations are left out, and NaN if there are no others.

    Examples:
        >>> from antinb import dataset, noise
        >>> run = dataset.build({"image": noise.antithetic(10).draw((1, 8, 8), seed=0)}, {"evaluations": 1})
        >>> histogram(run, bins=4).query("pairs == 'PN'")["density"].tolist()
        [2.0, 0.0, 0.0, 0.0]
    """
    edges = np.linspace(-1, 1, checks.integer("bins", bins, 1, 10_000) + 1)
    values = {"RR": rr(data, centred=centred)}
    if data.sizes["member"] > 1:
        values = {"PN": pn(data, centred=centred).values} | values
    tables = []
    for kind, single in values.items():
        defined = single[np.isfinite(single)]
        counts = np.histogram(defined.clip(-1, 1), edges)[0]
        density = counts * len(counts) / (2 * defined.size) if defined.size else np.full(len(counts), np.nan)
        tables.append(pd.DataFrame({"pairs": kind, "left": edges[:-1], "right": edges[1:], "density": density}))
    return pd.concat(tables)


def summary(data: xr.Dataset, *, level: float = 0.95) -> pd.DataFrame:
    """Return PN and RR correlations and their difference, standard and centred, one row each.

    Columns: `pairs`, `centred`, `estimate` (the mean over pairs) with `low, high, level, method`;
    `sd` and quantiles `q05` to `q95` of the single correlations; `pooled`, the ratio
    `sum cov / sqrt(sum var sum var)`, with `pooled_low, pooled_high`; `undefined`, units (PN) or
    pairs (RR) left out because an image is constant; `units`; `evaluations`, network calls in all.
    The rows `PN-RR` have no single values.

    PN intervals are t intervals over units. RR means are U-statistics over pairs of distinct
    units; their intervals, those of the pooled ratios, and all of them where there are several
    conditions, come from a jackknife over at most 50 blocks, each spread over all conditions, in
    which centring is done anew. Where independent images are uncorrelated the U-statistic is
    degenerate and its interval too wide: a nominal 95% covers 99% and more.

    Raises:
        ValueError: if there are fewer than 8 units a condition, or the level is not from 0.01 to 0.9999.

    Source: Jia et al., arXiv 2506.06185, section 3; the cross-fitting and the intervals are antinb's.

    Examples:
        >>> from antinb import dataset, noise
        >>> run = dataset.build({"image": noise.antithetic(10).draw((1, 8, 8), seed=0)}, {"evaluations": 1})
        >>> summary(run).set_index(["pairs", "centred"]).loc[("PN", False), "estimate"].round(6).item()
        -1.0
    """
    checks.level(level)
    images, strata = _arrays(data)
    units, members = images.shape[:2]
    conditions = len(np.unique(strata[:, 0]))
    cost = dataset.cost(data)
    kinds = ["PN", "RR", "PN-RR"] if members > 1 else ["RR"]
    rows = []
    for centred in (False, True):

        def means(kept: np.ndarray, centred: bool = centred) -> list[float]:
            found = _means(images[kept], strata[kept], centred)
            return [found[f"{kind} {name}"] for kind in kinds for name in ("mean", "pooled")]

        estimates = iter(zip(*jackknife(means, units, level, strata=strata[:, 0]), strict=True))
        for kind in kinds:
            mean, pooled, method = next(estimates), next(estimates), "jackknife over units"
            spread: dict[str, float] = {}
            if kind != "PN-RR":
                singles = pn(data, centred=centred).values if kind == "PN" else rr(data, centred=centred)
                defined = singles[np.isfinite(singles)]
                spread["undefined"] = singles.size - defined.size
                if defined.size > 1:
                    quantiles = {f"q{100 * q:02.0f}": np.quantile(defined, q) for q in QUANTILES}
                    spread |= {"sd": defined.std(ddof=1), **quantiles}
            if kind == "PN" and conditions == 1 and defined.size > 1:
                mean, method = _t_numbers(defined, level), OVER_UNITS
            spread |= dict(zip(("pooled", "pooled_low", "pooled_high"), pooled, strict=True))
            result = row(mean, level=level, method=method, units=units, evaluations=cost, **spread)
            rows.append({"pairs": kind, "centred": centred, **result})
    return pd.DataFrame(rows)


def pixel_map(data: xr.Dataset, *, min_sd: float = 2 / 255) -> xr.DataArray:
    """Return at each pixel the correlation over pairs of the two members' values, `(channel, y, x)`.

    It says where in the image the pairs oppose each other: a different quantity from the
    correlation of two images. Pixels whose standard deviation over units is below `min_sd`, in the
    units of the images, are NaN: there is nothing to see there.

    Raises:
        ValueError: if a unit has not exactly two members.
    """
    if data.sizes["member"] != 2:
        raise ValueError(f"a map over pairs needs two members a unit; got {data.sizes['member']}")
    checks.number("min_sd", min_sd, 0, 2)
    first, second = (data["image"].isel(member=member).astype(np.float64) for member in (0, 1))
    seen = np.minimum(first.std("unit"), second.std("unit")) >= min_sd
    return xr.corr(first, second, "unit").where(seen).rename("correlation").compute()


def along(data: xr.Dataset, *, centred: bool = False, level: float = 0.95) -> pd.DataFrame:
    """Return the mean PN correlation of states and predicted noises, a row a `variable` and `step`.

    The run is one with trajectories. The `state` of step k is the one before that step, its last row
    the image; `predicted_noise` has no such last row. Columns as in `summary`, the intervals t
    intervals over units.

    Raises:
        ValueError: if the run has no trajectories, one member a unit, or fewer than 8 units.

    Source: Jia et al., arXiv 2506.06185, section 3, correlation of predicted noises by step.
    """
    if "state" not in data:
        raise ValueError(f"a run with trajectories holds a 'state'; got {list(data.data_vars)}")
    parts = [(name, step, data[name].isel(step=step)) for name in STEPPED for step in range(data.sizes["step"])]
    parts.insert(data.sizes["step"], ("state", data.sizes["step"], data["image"]))
    rows = []
    for name, step, images in parts:
        values = pn(data.drop_vars(["image", *STEPPED]).assign(image=images), centred=centred).values
        rows.append({"variable": name, "step": step, "pairs": "PN", "centred": centred, **_t_row(values, level)})
    return pd.DataFrame(rows)


def paired_difference(
    first: xr.Dataset, second: xr.Dataset, *, centred: bool = False, level: float = 0.95
) -> pd.DataFrame:
    """Return the mean over units of `pn(first) - pn(second)`, one row, for runs of the same units.

    Runs of one seed share the noise that their designs have in common, so that the difference of a
    unit varies less than either correlation. The interval is a t interval over units.

    Raises:
        ValueError: if the runs differ in seed or number of units.
    """
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


def _arrays(data: xr.Dataset, members: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Return the images `(unit, member, value)` and the strata `(unit, 2)`: condition and fold of each unit."""
    if data.sizes["member"] < members:
        raise ValueError(f"pairs within a unit need at least {members} members; got {data.sizes['member']}")
    images = data["image"].values
    conditions = data["condition"].values if "condition" in data.coords else np.zeros(len(images), int)
    folds = np.empty(len(images), int)
    for condition in np.unique(conditions):
        units = np.flatnonzero(conditions == condition)
        if len(units) < 8:
            raise ValueError(f"correlations need at least 8 units a condition; got {len(units)} for {condition}")
        folds[units] = np.arange(len(units)) * 4 // len(units)
    return images.reshape(*images.shape[:2], -1), np.stack([conditions, folds], 1)


def _unit_vectors(images: np.ndarray) -> np.ndarray:
    """Return the images less their own mean, scaled to length one; NaN if constant."""
    deviations = _deviations(images)
    length = np.linalg.norm(deviations, axis=-1, keepdims=True)
    constant = length <= 1e-6 * np.linalg.norm(images, axis=-1, keepdims=True)
    return np.divide(deviations, length, out=np.full_like(deviations, np.nan), where=~constant)


def _deviations(images: np.ndarray) -> np.ndarray:
    return images - images.mean(-1, keepdims=True, dtype=np.float64).astype(images.dtype)


def _blocks(
    images: np.ndarray, strata: np.ndarray, centred: bool, scale: Callable[[np.ndarray], np.ndarray]
) -> Iterator[Block]:
    """Yield `(left, right, units)`: the vectors whose products are the pairs of those units."""
    for condition in np.unique(strata[:, 0]):
        if not centred:
            units = np.flatnonzero(strata[:, 0] == condition)
            vectors = scale(images[units])
            yield vectors, vectors, units
            continue
        folds = [np.flatnonzero((strata == (condition, fold)).all(1)) for fold in range(4)]
        means = [images[fold].mean((0, 1), dtype=np.float64).astype(np.float32) for fold in folds]
        for half, (one, other) in (((0, 1), (2, 3)), ((2, 3), (0, 1))):
            own = np.concatenate([folds[index] for index in half])
            yield scale(images[own] - means[one]), scale(images[own] - means[other]), own


def _means(images: np.ndarray, strata: np.ndarray, centred: bool) -> dict[str, float]:
    """Return the mean correlation and the pooled ratio of PN and RR pairs, and their differences.

    The sum over pairs of distinct units is `S_l . S_r - sum_i s_li . s_ri`, with `s_i` the sum of a
    unit's vectors and `S` that of all; no pair is formed.
    """
    result = {}
    for name, scale in (("mean", _unit_vectors), ("pooled", _deviations)):
        totals = dict.fromkeys(("PN", "RR"), 0.0)
        norms = dict.fromkeys(("PN", "RR"), 0.0)
        for left, right, _ in _blocks(images, strata, centred, scale):
            present = np.isfinite(left[..., 0]) & np.isfinite(right[..., 0])
            left, right = (np.where(present[..., None], side, 0).astype(np.float64) for side in (left, right))
            own = np.einsum("ikd,ikd->i", left, right)
            unit_left, unit_right = left.sum(1), right.sum(1)
            within = np.einsum("id,id->i", unit_left, unit_right)
            totals["PN"] += (within - own).sum()
            totals["RR"] += unit_left.sum(0) @ unit_right.sum(0) - within.sum()
            count = present.sum(1)
            pairs = {"PN": (count * (count - 1)).sum(), "RR": count.sum() ** 2 - (count**2).sum()}
            power = own.sum() / max(count.sum(), 1) if name == "pooled" else 1.0
            for kind in norms:
                norms[kind] += pairs[kind] * power
        result |= {f"{kind} {name}": totals[kind] / norms[kind] if norms[kind] else np.nan for kind in totals}
        result[f"PN-RR {name}"] = result[f"PN {name}"] - result[f"RR {name}"]
    return result
