"""The arithmetic of cross-fitted correlations: one or two passes over images by blocks of units, no pair formed.

With deviations `x` of the images from their own mean values, and `m` those of fold means, the product of two
centred images is `(x - m).(x' - m') = x.x' - x.m' - x'.m + m.m'`. So the inner products of each image with the
fold means, of the whole run and without each jackknife block, hold all norms; the members of a unit meet exactly;
and the sum over images of distinct units is `S.S' - sum_i s_i.s'_i`, `s_i` the sum over the members of a unit and
`S` that over all. In memory are a block of images and, a condition, about nine images for each jackknife block.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import xarray as xr
from scipy import linalg

from antinb import dataset
from antinb.analysis.intervals import jackknife_blocks

__all__: list[str] = []

FOLDS = 4
CONSTANT = 1e-12  # squared length of the deviations, as a share of the image's, below which only rounding is left
SINGLES = 250_000  # pairs of images whose single correlations are kept
FEW, WIDE = 1024, 64  # images that are turned into fewer coordinates, and the least number of values for each of them
PANEL = 2**25  # values in memory for a matrix of inner products


class Split(NamedTuple):
    """Number of the condition, fold and jackknife block of each unit, `(units,)` each."""

    condition: np.ndarray
    fold: np.ndarray
    block: np.ndarray

    def cells(self, centred: bool) -> np.ndarray:
        """Return the cell of each unit, whose pairs are formed: its condition, or the half of it that is centred."""
        return 2 * self.condition + self.fold // 2 if centred else self.condition


def split(data: xr.Dataset) -> Split:
    """Return the split of a run's units; ValueError if a condition has fewer than 8 of them."""
    units = data.sizes["unit"]
    labels = data["condition"].values if "condition" in data.coords else np.zeros(units, int)
    kinds, conditions, counts = np.unique(labels, return_inverse=True, return_counts=True)
    if counts.min(initial=units) < 8:
        few = f"{units}" if units < 8 else f"{counts.min()} for {kinds[counts.argmin()]}"
        raise ValueError(f"correlations need at least 8 units a condition; got {few}")
    folds = np.empty(units, int)
    for condition, count in enumerate(counts):
        folds[conditions == condition] = np.arange(count) * FOLDS // count
    return Split(conditions, folds, jackknife_blocks(conditions))


class Part(NamedTuple):
    """Images of consecutive units as vectors.

    Attributes:
        units: their numbers.
        vectors: `(unit, member, values + 1)`: deviations from the image's mean value, and last that value times the
            root of their number, so that the length is the image's. All 0 where a value is not finite.
        finite: whether all values are finite, `(unit, member)`.
    """

    units: slice
    vectors: np.ndarray
    finite: np.ndarray


def parts(images: xr.DataArray, size: int = dataset.BLOCK) -> Iterator[Part]:
    """Yield the images `(unit, member, ...)` by blocks of about `size` values, in double precision."""
    for units, block in dataset.blocks(images, size):
        flat = block.reshape(*block.shape[:2], -1)
        vectors = np.empty((*flat.shape[:2], flat.shape[2] + 1))
        deviations = vectors[..., :-1]
        deviations[...] = flat
        with np.errstate(invalid="ignore"):
            level = deviations.mean(-1)
            deviations -= level[..., None]
        vectors[..., -1] = level * flat.shape[2] ** 0.5
        finite = np.isfinite(level)
        vectors[~finite] = 0
        yield Part(units, vectors, finite)


def gram(images: xr.DataArray) -> tuple[np.ndarray, np.ndarray]:
    """Return the inner products of all images' deviations, `(images, images)`, and their last coordinates `(images,)`.

    The images are read once if they have at most `PANEL` values, else about half as often as they fill panels.
    """
    units, members = images.shape[:2]
    products, levels = np.zeros((units * members, units * members)), np.zeros((units, members))
    for panel in parts(images, PANEL):
        start, stop = panel.units.start * members, panel.units.stop * members
        rows = panel.vectors.reshape(stop - start, -1)[:, :-1]
        levels[panel.units] = np.where(panel.finite, panel.vectors[..., -1], np.nan)
        products[start:stop, start:stop] = rows @ rows.T
        for other in parts(images[panel.units.stop :], PANEL // 4):
            first, last = stop + other.units.start * members, stop + other.units.stop * members
            products[start:stop, first:last] = rows @ other.vectors.reshape(last - first, -1)[:, :-1].T
            products[first:last, start:stop] = products[start:stop, first:last].T
    return products, levels.ravel()


def compact(images: xr.DataArray) -> xr.DataArray:
    """Return few large images turned into as many values as there are images, and one; others as they are.

    Up to `FEW` images of at least `WIDE` times as many values become images `(unit, member, value)` with the same
    mean values, on the scale of their length, and the same inner products, hence the same correlations.
    """
    units, members = images.shape[:2]
    count = units * members
    if count > FEW or images.size < WIDE * count**2:
        return images
    products, levels = gram(images)
    lengths = np.sqrt(products.diagonal())
    scale = np.where(lengths > 0, lengths, 1)
    powers, axes = np.linalg.eigh(products / np.outer(scale, scale))
    deviations = lengths[:, None] * axes * np.sqrt(powers.clip(0))
    turned = np.column_stack([levels, deviations]) @ linalg.helmert(count + 1, full=True)
    return xr.DataArray(turned.reshape(units, members, -1), dims=("unit", "member", "value"))


class FoldMeans(NamedTuple):
    """Mean images of the folds: of the whole run, then without each jackknife block.

    Attributes:
        vectors: `(condition, fold, 1 + blocks, values + 1)`, as the vectors of `Part`.
        counts: number of images behind each, `(condition, fold, 1 + blocks)`.
    """

    vectors: np.ndarray
    counts: np.ndarray


def fold_means(images: xr.DataArray, units: Split, *, leave_out: bool) -> FoldMeans:
    """Return the means of all finite images of each fold; without `leave_out` those of the whole run only."""
    kinds = units.condition.max() + 1, FOLDS, 2 + units.block.max() if leave_out else 1
    places = units.condition, units.fold, 1 + units.block if leave_out else np.zeros_like(units.block)
    vectors, counts = np.zeros((*kinds, int(np.prod(images.shape[2:])) + 1)), np.zeros(kinds)
    for part in parts(images):
        where = zip(*(place[part.units].tolist() for place in places), strict=True)
        for place, own, finite in zip(where, part.vectors, part.finite, strict=True):
            vectors[place] += own.sum(0)
            counts[place] += finite.sum()
    for totals in (vectors, counts):
        whole, left_out = totals[:, :, :1], totals[:, :, 1:]
        whole += left_out.sum(2, keepdims=True)
        np.subtract(whole, left_out, out=left_out)
    vectors /= np.maximum(counts, 1)[..., None]
    return FoldMeans(vectors, counts)


class Correlations:
    """The correlations of a run, centred or not, of which the images are added part by part.

    A cell is a set of units whose images form RR pairs. It has two sides, which are centred by two means.

    Args:
        members: images of a unit.
        units: their split.
        means: those of the folds; they also say which jackknife blocks are left out.
        centred: whether the means are subtracted.

    Attributes:
        pn: the mean correlation of the pairs within each unit, `(unit,)`; NaN where one has none.
    """

    def __init__(self, members: int, units: Split, means: FoldMeans, *, centred: bool) -> None:
        folds, sides, shape = FOLDS // (1 + centred), 1 + centred, means.vectors.shape[2:]
        self._cells, self._block, self._centred = units.cells(centred), units.block, centred
        self._means, self._counts = means.vectors.reshape(-1, folds, *shape), means.counts.reshape(-1, folds, shape[0])
        cells = len(self._means)
        self._sums, self._mass = np.zeros((cells, sides, *shape)), np.zeros((cells, sides, shape[0]))
        self._numbers = np.zeros((4, cells, 2, shape[0]))  # images, squares of units' images, and the sums of `_meet`
        self._along, self._scales = np.full((2, len(self._cells), members, sides), np.nan)
        self.pn = np.full(len(self._cells), np.nan)

    def add(self, part: Part) -> None:
        """Add the pairs of some units."""
        cells = self._cells[part.units]
        for cell in np.unique(cells):
            rows = np.flatnonzero(cells == cell) if (cells != cell).any() else slice(None)
            self._add(cell, np.arange(part.units.start, part.units.stop)[rows], part.vectors[rows], part.finite[rows])

    def _add(self, cell: int, units: np.ndarray, vectors: np.ndarray, finite: np.ndarray) -> None:
        means, known = self._centre(cell)
        members, flat = finite.shape[1], vectors.reshape(-1, vectors.shape[-1])
        along = flat[:, :-1] @ means.reshape(-1, means.shape[-1])[:, :-1].T
        along = along.reshape(*finite.shape, *means.shape[:2])
        gram = vectors[..., :-1] @ vectors[..., :-1].swapaxes(1, 2)
        own, size = gram.diagonal(axis1=1, axis2=2)[..., None, None], _dot(means, means)
        power = own - 2 * along + size
        least = CONSTANT * np.maximum(power + (vectors[..., -1:, None] - means[..., -1]) ** 2, own + size)
        kept = self._block[units][:, None] + 1 != np.arange(self._mass.shape[-1])
        usable = finite[..., None] & known & kept[:, None]
        present = usable & (power > least).all(2)
        scales = 1 / np.sqrt(np.where(present[:, :, None], power, np.inf))
        cross = _dot(means[0], means[-1])
        for place, (there, weights) in enumerate(((present, scales), (usable, usable[:, :, None].astype(float)))):
            count, meeting = there.sum(1), _meet(weights, gram, along, cross)
            self._numbers[:, cell, place] += np.stack([count, count**2, *meeting]).sum(1)
            if there is present and members > 1:
                whole = count[:, 0] == members
                self.pn[units[whole]] = (meeting[0] - meeting[1])[whole, 0] / (members * (members - 1))
        self._sums[cell] += (scales.reshape(len(flat), -1).T @ flat).reshape(self._sums[cell].shape)
        self._mass[cell] += scales.sum((0, 1))
        self._along[units] = along[..., 0]
        self._scales[units] = np.where(present[:, :, :1], scales[..., 0], np.nan)

    def _centre(self, cell: int) -> tuple[np.ndarray, np.ndarray]:
        """Return what is subtracted on each side, `(side, 1 + blocks, values + 1)`, and whether it is known."""
        if self._centred:
            return self._means[cell ^ 1], (self._counts[cell ^ 1] > 0).all(0)
        return np.zeros((1, 1, self._means.shape[-1])), np.ones(1, bool)

    def estimates(self) -> np.ndarray:
        """Return mean and pooled ratio of PN, RR and PN-RR, `(3, 2, 1 + blocks)`: of all, then without a block."""
        between = np.zeros(self._numbers.shape[1:])
        for cell, (means, counts) in enumerate(zip(self._means, self._counts, strict=True)):
            centre, _ = self._centre(cell)
            pooled = (counts[..., None] * means).sum(0) - counts.sum(0)[:, None] * centre
            for place, sums in enumerate((self._sums[cell] - self._mass[cell][..., None] * centre, pooled)):
                between[cell, place] = _dot(sums[0], sums[-1])
        images, squares, within, same = self._numbers
        power = np.ones_like(images)
        power[:, 1] = same[:, 1] / np.maximum(images[:, 1], 1)
        with np.errstate(divide="ignore", invalid="ignore"):
            pn = (within - same).sum(0) / ((squares - images) * power).sum(0)
            rr = np.where(images > 0, between - within, 0).sum(0) / ((images**2 - squares) * power).sum(0)
        pn[1], rr[1] = np.where(images[:, 0].sum(0) > 0, [pn[1], rr[1]], np.nan)  # else only rounding is left
        return np.stack([pn, rr, pn - rr])

    def undefined(self) -> int:
        """Return the number of RR pairs without a correlation, counted from the images that have none."""
        members, (images, squares) = self._along.shape[1], self._numbers[:2, :, 0, 0]
        counts = members * np.bincount(self._cells, minlength=len(images))
        return round(((counts - members) * counts - images**2 + squares).sum() / 2)

    def singles(self, units: np.ndarray, products: np.ndarray) -> list[np.ndarray]:
        """Return the single RR correlations of some units from the inner products of their images, an array a cell."""
        members, values = self._along.shape[1], []
        for cell in np.unique(self._cells[units]):
            places = np.flatnonzero(self._cells[units] == cell)
            rows, owner = (places[:, None] * members + np.arange(members)).ravel(), np.repeat(places, members)
            along, scales = (table[units[places]].reshape(len(rows), -1) for table in (self._along, self._scales))
            means, _ = self._centre(cell)
            table = products[np.ix_(rows, rows)] - along[:, -1:] - along[:, 0] + _dot(means[0, 0], means[-1, 0])
            table *= scales[:, :1] * scales[:, -1]
            values.append(((table + table.T) / 2)[owner[:, None] < owner])
        return values


def correlate(images: xr.DataArray, units: Split, *centred: bool, leave_out: bool = False) -> list[Correlations]:
    """Return the correlations of images `(unit, member, ...)`, centred or not, in two passes over them.

    If no means are needed there is one pass. With `leave_out` there are estimates without each jackknife block.
    """
    needed = leave_out or any(centred)
    means = fold_means(images if needed else images[:0], units, leave_out=leave_out)
    found = [Correlations(images.shape[1], units, means, centred=kind) for kind in centred]
    for part in parts(images):
        for correlations in found:
            correlations.add(part)
    return found


def between(images: xr.DataArray, units: Split, found: list[Correlations]) -> list[np.ndarray]:
    """Return the single RR correlations of each: of all pairs, or of those of a fixed random part of the units.

    All if a condition's units have, summed over conditions, at most `SINGLES` pairs of images, else about as many.
    """
    members, counts = images.shape[1], np.bincount(units.condition) * images.shape[1]
    pairs, chosen = (counts * (counts - members)).sum() / 2, np.arange(len(units.condition))
    if pairs > SINGLES:
        chosen = np.sort(np.random.default_rng(0).permutation(chosen)[: int(len(chosen) * (SINGLES / pairs) ** 0.5)])
    values: list[list[np.ndarray]] = [[] for _ in found]
    for condition in np.unique(units.condition[chosen]):
        numbers = chosen[units.condition[chosen] == condition]
        products, _ = gram(images[numbers])
        for single, correlations in zip(values, found, strict=True):
            single += correlations.singles(numbers, products)
    return [np.concatenate(single) for single in values]


def _dot(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return the inner products of deviations, which are all coordinates but the last."""
    return np.einsum("...v,...v->...", first[..., :-1], second[..., :-1])


def _meet(weights: np.ndarray, gram: np.ndarray, along: np.ndarray, cross: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the products of a unit's left and right sums, and the part of equal members, `(unit, column)` each.

    Args:
        weights: of each member, `(unit, member, side, column)`.
        gram: inner products of the members, `(unit, member, member)`.
        along: those with what is subtracted, `(unit, member, side, column)`.
        cross: those of what is subtracted on the left and on the right, `(column,)`.
    """
    left, right, first, last = weights[:, :, 0], weights[:, :, -1], along[:, :, 0], along[:, :, -1]
    own = gram.diagonal(axis1=1, axis2=2)[..., None]
    same = (left * right * (own - first - last + cross)).sum(1)
    meeting = (left * (gram @ right)).sum(1) + left.sum(1) * right.sum(1) * cross
    return meeting - (left * last).sum(1) * right.sum(1) - left.sum(1) * (right * first).sum(1), same
