"""Distances of two distributions of images, Fréchet's and the kernel's, without bias and with intervals.

A jackknife over blocks of whole units takes out the bias and gives the standard error, whatever the design. The
difference of two models comes from the same blocks, so that common noise makes its interval narrower.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from antinb import checks, dataset
from antinb.analysis import references
from antinb.analysis.blocks import Kernels, Left, Moments, Sums
from antinb.analysis.common_noise import common
from antinb.analysis.intervals import row, t_quantile
from antinb.analysis.references import Features

__all__ = ["frechet", "kid"]

BLOCKS = 20
FEWEST = 8  # units of a jackknife, and images a feature
FEW = 256  # images, below which skewed features make the interval too short


@checks.typed
def frechet(
    run: xr.Dataset,
    reference: xr.Dataset | str | Path,
    features: Features,
    *,
    against: xr.Dataset | None = None,
    axes: int | None = None,
    level: float = 0.95,
) -> pd.DataFrame:
    r"""Return the Fréchet distance of the features of a run from those of a reference, without its bias.

    `FD = |m - m'|^2 + tr(C + C' - 2 (C C')^(1/2))`, with means m and covariances C of the features; with those of an
    Inception network this is the FID. The `plain` estimate of n images is too large by O(1/n), more for one model than
    for another. A jackknife over 20 blocks of whole units takes the terms in 1/n and 1/n^2 out of `estimate` and gives
    the interval. It holds from 8 images a feature on. With fewer it is refused: take more images, `kid`, or `axes`, the
    features projected on the leading principal axes of the reference.

    A folder or stored moments are taken as they are, without an error of their own. Of a run as reference block b is
    left out together with block b of the other runs, so that its bias and its error count too.

    Args:
        run: any design, of 8 units at least.
        reference: a run, a folder of pictures as large as the images, or a file .npz with `mu` and `sigma`.
        features: images `(unit, member, C, H, W)` in [0, 1] to `(unit, member, d)`, such as the `features` of a
            classifier, or a network of others as below.
        against: the run of a second model on the same noise.
        axes: how many leading axes of the reference the features are projected on; None takes the features.
        level: from 0.01 to 0.9999.

    Returns:
        Rows `distance, model, estimate, low, high, level, method, units, images, features, kept, plain, reference,
        evaluations, warning`: `model` is "a", and with `against` also "b" and "difference", that of b less that of a;
        `kept` is the share of the reference's variance that the axes keep.

    Raises:
        ValueError: for fewer than 8 images a feature or 8 units, features that are not finite or of another number than
            the reference's, or a reference that is none or of other images.

    Source: Heusel et al., arXiv 1706.08500; for the bias Chong and Forsyth, arXiv 1911.07023; for blocks of several
        sizes Busing, Meijer and van der Leeden, Statistics and Computing 9 (1999), 3-8.

    Examples:
        >>> from antinb import dataset, noise
        >>> pixels = noise.antithetic(100).draw((1, 2, 2), seed=0) / 9
        >>> runs = [dataset.build({"image": part}, {"design": {}, "seed": 0}) for part in (pixels, pixels + 0.1)]
        >>> table = frechet(runs[0], runs[1], lambda images: 18 * images[..., 0, 0, :])
        >>> table[["estimate", "plain"]].round(2).values.tolist()  # two pixels, each lighter by 0.9
        [[1.62, 1.62]]

        Networks of others, not tried here. `flat` are the images as a tensor, three channels and the size they want:

        >>> flat = lambda images: torch.from_numpy(images.reshape(-1, *images.shape[-3:]))  # doctest: +SKIP
        >>> net = torch_fidelity.create_feature_extractor("inception-v3-compat", ["2048"])  # doctest: +SKIP
        >>> inception = lambda images: net((255 * flat(images)).byte())[0]  # doctest: +SKIP
        >>> net = timm.create_model("resnet50", pretrained=True, num_classes=0).eval()  # doctest: +SKIP
        >>> resnet = lambda images: net((flat(images) - mean) / std).detach()  # doctest: +SKIP
        >>> net, _, _ = open_clip.create_model_and_transforms("ViT-B-32", pretrained="openai")  # doctest: +SKIP
        >>> clip = lambda images: net.encode_image((flat(images) - mean) / std).detach()  # doctest: +SKIP
        >>> features = lambda images: clip(images).numpy().reshape(*images.shape[:2], -1)  # doctest: +SKIP
    """
    checks.level(level)
    runs, blocks = _runs(run, against, reference)
    known = _known(reference, run, features, blocks)
    centre, spread = known(())
    directions, kept = np.eye(len(centre)), 1.0
    if axes is not None:
        axes = checks.integer("axes", axes, 1, len(centre))
        values, vectors = np.linalg.eigh(spread)
        directions, kept = vectors[:, ::-1][:, :axes], float(values[::-1][:axes].sum() / values.sum())
    count, width = dataset.images(run)[..., 0, 0, 0].size, directions.shape[1]
    if count < FEWEST * width:
        remedy = f"take {FEWEST * width} images, comparison.kid, or the leading axes, axes={max(1, count // FEWEST)}"
        rule = f"a Fréchet distance needs at least {FEWEST} images a feature"
        raise ValueError(f"{rule}; got {count} images for {width}: {remedy}")
    sums = [Sums(references.read(part, features, len(centre)), blocks, centre, directions) for part in runs]

    def projected(left: Left) -> Moments:
        mean, covariance = known(left)
        return (mean - centre) @ directions, _root(directions.T @ covariance @ directions)

    fixed = None if isinstance(reference, xr.Dataset) else projected(())

    def distances(left: Left) -> list[float]:
        other = fixed or projected(left)
        return [_frechet(*part.moments(left), *other) for part in sums]

    about = {"features": width, "kept": kept, "plain": distances(())}
    estimate, half = _jackknife(distances, sums[0].count, level, biased=True)
    return _table("frechet", estimate, half, runs, reference, level, about)


@checks.typed
def kid(
    run: xr.Dataset,
    reference: xr.Dataset | str | Path,
    features: Features,
    *,
    against: xr.Dataset | None = None,
    level: float = 0.95,
) -> pd.DataFrame:
    r"""Return the kernel distance of the features of a run from those of a reference, for any number of features.

    `KID = E k(x, x') + E k(y, y') - 2 E k(x, y)` with `k(a, b) = (a b / d + 1)^3` on d features, x of the run and y of
    the reference. No two members of one unit meet, nor, if the reference is a run of as many units, the units of one
    number, which may share noise: the estimate has no bias. Its interval is that of a jackknife over 20 blocks of whole
    units. Where both laws are equal it is wider than it need be, and where both runs share noise it is not of use:
    `diversity.kid` is for that case. `plain` is the mean over all distinct images, as others compute it. The features
    of all images are in memory.

    Args:
        run: as for `frechet`.
        reference: a run or a folder of pictures.
        features: as for `frechet`.
        against: as for `frechet`.
        level: from 0.01 to 0.9999.

    Returns:
        Rows as of `frechet`.

    Raises:
        ValueError: as `frechet`, whatever the number of features, or for stored moments, which do not suffice.

    Source: Bińkowski et al., arXiv 1801.01401, section 4.

    Examples:
        >>> from antinb import dataset, noise
        >>> draw = noise.antithetic(40).draw
        >>> runs = [dataset.build({"image": draw((1, 4, 4), seed=seed) / 9}, {"seed": seed}) for seed in (0, 1)]
        >>> table = kid(*runs, lambda images: images[..., 0, 0, :])
        >>> bool(table["low"].item() < 0 < table["high"].item())
        True
    """
    checks.level(level)
    runs, blocks = _runs(run, against, reference)
    if isinstance(reference, xr.Dataset):
        other = np.concatenate([*references.read(reference, features)])
    else:
        other = np.concatenate([*references.pictured(Path(reference), run, features)])
    width, paired = other.shape[-1], isinstance(reference, xr.Dataset) and len(other) == len(run["unit"])
    parts = [np.concatenate([*references.read(part, features, width)]) for part in runs]
    held = blocks if isinstance(reference, xr.Dataset) else 1
    own = [Kernels(part, part, blocks, blocks, apart=True) for part in parts]
    cross = [Kernels(part, other, blocks, held, apart=paired) for part in parts]
    known = Kernels(other, other, held, held, apart=True)

    def distances(left: Left) -> list[float]:
        return [x.mean(left) + known.mean(left) - 2 * xy.mean(left) for x, xy in zip(own, cross, strict=True)]

    plain = [x.plain + known.plain - 2 * xy.plain for x, xy in zip(own, cross, strict=True)]
    counts = np.bincount(np.arange(len(parts[0])) % blocks) * parts[0].shape[1]
    about = {"features": width, "kept": 1.0, "plain": plain}
    estimate, half = _jackknife(distances, counts, level, biased=False)
    return _table("kid", estimate, half, runs, reference, level, about)


def _runs(
    run: xr.Dataset, against: xr.Dataset | None, reference: xr.Dataset | str | Path
) -> tuple[list[xr.Dataset], int]:
    """Return the runs of the models and the number of blocks."""
    if not isinstance(reference, (xr.Dataset, str, Path)):
        rule = "a reference is a run, a folder of pictures or a file .npz of moments"
        raise ValueError(f"{rule}; got {checks.quoted(reference)}")
    runs = [run] if against is None else [run, against]
    if against is not None and common(run, against) == "nothing":
        raise ValueError("the difference of two distances is that of models on the same noise; theirs has two shapes")
    counts = [dataset.images(part).sizes["unit"] for part in runs]
    if isinstance(reference, xr.Dataset):
        counts.append(dataset.images(reference).sizes["unit"])
    if min(counts) < FEWEST:
        raise ValueError(f"a jackknife over blocks of units needs at least {FEWEST} units; got {min(counts)}")
    return runs, min(BLOCKS, *counts)


def _known(
    reference: xr.Dataset | str | Path, run: xr.Dataset, features: Features, blocks: int
) -> Callable[[Left], Moments]:
    """Return the moments of the reference as a function of the block that is left out of it."""
    if isinstance(reference, xr.Dataset):
        return Sums(references.read(reference, features), blocks).moments
    if Path(reference).suffix == ".npz":
        stored = references.moments(Path(reference))
    else:
        stored = Sums(references.pictured(Path(reference), run, features), 1).moments(())
    return lambda left: stored


def _root(covariance: np.ndarray) -> np.ndarray:
    """Return the symmetric root of a covariance."""
    values, vectors = np.linalg.eigh(covariance)
    return vectors * np.sqrt(values.clip(0)) @ vectors.T


def _frechet(mean: np.ndarray, covariance: np.ndarray, other: np.ndarray, root: np.ndarray) -> float:
    """Return the Fréchet distance of moments from a mean and the root of a covariance.

    `tr (C C')^(1/2)` is the sum of the roots of the eigenvalues of `C'^(1/2) C C'^(1/2)`.
    """
    crossed = np.sqrt(np.linalg.eigvalsh(root @ covariance @ root).clip(0)).sum()
    return float(np.square(mean - other).sum() + np.trace(covariance) + np.square(root).sum() - 2 * crossed)


def _jackknife(
    distances: Callable[[Left], list[float]], counts: np.ndarray, level: float, *, biased: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Return estimate and half-width of the interval, of each model and of the difference of two.

    With T of all n images, T_-b without the n_b of block b and `h = n / n_b`, the variance is the mean over g blocks of
    `(t_b - mean t)^2 / (h - 1)`, `t_b = h T - (h - 1) T_-b`. The bias is `b / n + c / n^2`: the parabola through T, the
    mean of the T_-b and that of the T of g halves of the blocks is extrapolated to `1 / n = 0`.
    """
    blocks, count = len(counts), int(counts.sum())
    halves = [(start + np.arange(blocks - blocks // 2)) % blocks for start in range(blocks)]
    lefts = [(), *((block,) for block in range(blocks)), *(halves if biased else ())]
    values = np.array([distances(left) for left in lefts])
    values = np.c_[values, values[:, 1:] - values[:, :1]]
    whole, without, share = values[0], values[1 : blocks + 1], counts[:, None] / count
    single = whole / share - (1 / share - 1) * without
    se = np.sqrt((np.square(single - single.mean(0)) / (1 / share - 1)).mean(0))
    if biased:
        x = [1 / count, (1 / (count - counts)).mean(), np.mean([1 / (count - counts[half].sum()) for half in halves])]
        weights = [np.prod([b / (b - a) for b in x if b != a]) for a in x]
        whole = weights @ np.stack([whole, without.mean(0), values[blocks + 1 :].mean(0)])
    return whole, t_quantile(level, blocks - 1) * se


def _table(
    distance: str,
    estimate: np.ndarray,
    half: np.ndarray,
    runs: list[xr.Dataset],
    reference: xr.Dataset | str | Path,
    level: float,
    about: dict[str, Any],
) -> pd.DataFrame:
    """Return the rows of the models and of their difference."""
    images, plain = dataset.images(runs[0]), np.array(about.pop("plain"))
    plain = [*plain, *(plain[1:] - plain[0])]
    told = {"level": level, "method": "jackknife over blocks", "units": images.sizes["unit"]}
    told |= {"images": images[..., 0, 0, 0].size, **about}
    told["warning"] = (
        f"of fewer than {FEW} images the interval may be too short: take more" if told["images"] < FEW else ""
    )
    told["reference"] = "a run" if isinstance(reference, xr.Dataset) else "as it is"
    rows = []
    for place, model in enumerate(("a", "b", "difference")[: len(estimate)]):
        spent = sum(map(dataset.cost, runs)) if model == "difference" else dataset.cost(runs[place])
        numbers = estimate[place], estimate[place] - half[place], estimate[place] + half[place]
        more = told | {"plain": float(plain[place]), "evaluations": spent}
        rows.append({"distance": distance, "model": model, **row(numbers, **more)})
    return pd.DataFrame(rows)
