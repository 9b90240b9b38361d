"""Diversity scores of the images of one unit, and a test of whether diversity costs quality.

Scores belong to a unit, a pair or a group, and two designs are compared by the scores of their units
(`antinb.comparison`). Each member alone has the same law in every design, so quality cannot differ: `kid` tests it.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import numpy as np
import pandas as pd
import xarray as xr
from scipy import special

from antinb import checks, dataset
from antinb.analysis.intervals import row
from antinb.analysis.resampling import cluster_bootstrap
from antinb.analysis.statistics import structural_similarity

__all__ = ["SCORES", "kid", "scores", "vendi"]

SCORES = ("ssim", "feature distance", "vendi")
KERNELS = 2**22  # in memory at once, before the mean over members
Features = Callable[[np.ndarray], np.ndarray]


@checks.typed
def scores(run: xr.Dataset, features: Features) -> xr.DataArray:
    """Return three scores of every unit, `(score, unit)`.

    `ssim`: the mean structural similarity of two members, over their pairs; lower is more different.
    `feature distance`: the mean Euclidean distance of their features. `vendi`: the effective number of
    different images among the members, see `vendi`. The run is read once, by blocks of units.

    Args:
        run: images of at least two members a unit; they are scaled to [0, 1] and clipped.
        features: images `(..., C, H, W)` in [0, 1] to `(..., d)`, such as the `features` of a classifier.

    Raises:
        ValueError: if it is no run, a unit has one member, for images too small for SSIM, or for other features.

    Examples:
        >>> from antinb import dataset, noise
        >>> run = dataset.build({"image": noise.antithetic(4).draw((1, 12, 12), seed=0)}, {})
        >>> found = scores(run, lambda images: images.reshape(*images.shape[:2], -1))
        >>> dict(found.sizes), found["score"].values.tolist()
        ({'score': 3, 'unit': 4}, ['ssim', 'feature distance', 'vendi'])
    """
    images = dataset.images(run)
    units, members = images.shape[:2]
    if members < 2:
        raise ValueError(f"a diversity score needs at least two images a unit; got {members}")
    pairs, values = list(itertools.combinations(range(members), 2)), np.empty((len(SCORES), units))
    for part, block, found in seen(run, features):
        alike = np.mean([structural_similarity(block[:, i], block[:, j]) for i, j in pairs], 0)
        apart = np.mean([np.linalg.norm(found[:, i] - found[:, j], axis=-1) for i, j in pairs], 0)
        values[:, part] = alike, apart, vendi(found)
    return xr.DataArray(values, {"score": list(SCORES), "unit": run["unit"]}, ["score", "unit"], attrs=run.attrs)


@checks.typed
def vendi(features: np.ndarray) -> np.ndarray:
    r"""Return the Vendi score of k items, `(..., k, d)` to `(...)` in [1, k].

    `exp(-sum_i l_i log l_i)` with l the eigenvalues of `K / k`, K the cosine similarities: 1 for k copies,
    k for k orthogonal items. NaN where the features of an item are all 0.

    Raises:
        ValueError: for fewer than two items.

    Source: Friedman and Dieng, arXiv 2210.02410, definition 3.1.

    Examples:
        >>> vendi(np.eye(3)).round(6).item(), vendi(np.ones((3, 2))).round(6).item()
        (3.0, 1.0)
    """
    features = np.asarray(features, float)
    if features.ndim < 2 or features.shape[-2] < 2:
        raise ValueError(f"a Vendi score needs at least two items (..., k, d); got {features.shape}")
    length = np.linalg.norm(features, axis=-1, keepdims=True)
    defined = (length > 0).all((-2, -1))
    unit = features / np.where(length > 0, length, 1)
    values = np.linalg.eigvalsh(unit @ unit.swapaxes(-1, -2) / features.shape[-2])
    return np.where(defined, np.exp(special.entr(values.clip(0)).sum(-1)), np.nan)


@checks.typed
def kid(run: xr.Dataset, baseline: xr.Dataset, features: Features, *, level: float = 0.95) -> pd.DataFrame:
    r"""Return the kernel distance of the images of two runs of as many units, with an interval over units.

    `comparison.kid` is the same distance from any reference, and the difference of two models.

    `KID = 1 / (n (n - 1)) sum_{i != j} h(i, j)`, `h = k(x_i, x_j) + k(y_i, y_j) - k(x_i, y_j) - k(y_i, x_j)` with
    `k(a, b) = (a b / d + 1)^3` on d features, averaged over the members of units i and j. No two members of one
    unit meet, so that their coupling does not enter, nor noise that unit i of both runs may share: the estimate
    is unbiased, and 0 on average where single images have one law.

    The interval is a bootstrap over units, a unit of both runs drawn together; no unit meets its own copy. Where
    the laws are equal the statistic is degenerate and the interval too wide: a nominal 95% covers more. The runs
    are read by blocks of units; in memory are their features and h, a number a pair of units.

    Args:
        run: any design.
        baseline: as many units, of the same or another number of members.
        features: images `(..., C, H, W)` in [0, 1] to `(..., d)`, such as the `features` of a classifier.
        level: from 0.01 to 0.9999.

    Returns:
        One row `estimate, low, high, level, method, units, evaluations`.

    Raises:
        ValueError: for no run, fewer than 8 units, runs of different numbers of units, or a level out of its range.

    Source: Bińkowski et al., arXiv 1801.01401, section 4; Gretton et al., JMLR 13 (2012), equation 3.
    """
    first, second = (np.concatenate([part for *_, part in seen(data, features)]) for data in (run, baseline))
    units = len(first)
    if len(second) != units:
        raise ValueError(f"both runs need as many units; got {units} and {len(second)}")
    h, step = np.empty((units, units)), max(1, KERNELS // (units * max(first.shape[1], second.shape[1]) ** 2))
    for start in range(0, units, step):
        rows = slice(start, start + step)
        h[rows] = kernel(first[rows], first) + kernel(second[rows], second)
        h[rows] -= 2 * kernel(first[rows], second)  # its transpose has the same sum over any set of units
    np.fill_diagonal(h, 0)

    def mean(numbers: np.ndarray) -> np.ndarray:
        drawn = numbers.reshape(-1, units)
        places = drawn + units * np.arange(len(drawn))[:, None]
        weights = np.bincount(places.ravel(), minlength=drawn.size).reshape(drawn.shape).astype(float)
        found = ((weights @ h) * weights).sum(1) / (weights.sum(1) ** 2 - (weights**2).sum(1))
        return found.reshape(numbers.shape[:-1])

    about = {"level": level, "method": "bootstrap over units", "units": units}
    about["evaluations"] = sum(map(dataset.cost, (run, baseline)))
    return pd.DataFrame([row(cluster_bootstrap(mean, units, level, values=units), **about)])


def kernel(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return the kernel of two sets of units, `(n, member, d)` and `(m, member, d)`, mean over members, to `(n, m)`."""
    products = np.tensordot(first, second, (-1, -1)) / first.shape[-1]
    return ((products + 1) ** 3).mean((1, 3))


def seen(run: xr.Dataset, features: Features) -> Iterator[tuple[slice, np.ndarray, np.ndarray]]:
    """Yield units, their images in [0, 1], `(unit, member, C, H, W)`, and their features `(unit, member, d)`."""
    for units, block in dataset.blocks(dataset.images(run)):
        images = dataset.scaled(block, *dataset.limits(run))
        found = np.asarray(features(images.copy()), float)
        if found.shape[:2] != images.shape[:2] or found.ndim != 3:
            raise ValueError(f"features are (unit, member, d) of images {images.shape}; got {found.shape}")
        yield units, images, found
