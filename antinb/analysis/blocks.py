"""Sums over the features of images by blocks of whole units, from which those without one block follow."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from antinb.analysis.diversity import kernel

__all__: list[str] = []

KERNELS = 2**22  # in memory at once, before the mean over members
Left = Sequence[int]  # the blocks that are left out
Moments = tuple[np.ndarray, np.ndarray]


class Sums:
    """The sums of features `(unit, member, d)` and of their products, by blocks of units.

    Attributes:
        count: images of each block, `(blocks,)`.
    """

    def __init__(
        self,
        parts: Iterator[np.ndarray],
        blocks: int,
        centre: np.ndarray | float = 0.0,
        directions: np.ndarray | None = None,
    ) -> None:
        self.count, self.total, self.products, units = np.zeros(blocks, int), np.array(0.0), np.array(0.0), 0
        for part in parts:
            place, units = (units + np.arange(len(part))) % blocks, units + len(part)
            part = part - centre if directions is None else (part - centre) @ directions
            if not self.total.ndim:
                width = part.shape[-1]
                self.total, self.products = np.zeros((blocks, width)), np.zeros((blocks, width, width))
            for block in np.unique(place):
                rows = part[place == block].reshape(-1, part.shape[-1])
                self.count[block] += len(rows)
                self.total[block] += rows.sum(0)
                self.products[block] += rows.T @ rows

    def moments(self, left: Left) -> Moments:
        """Return mean and covariance without some blocks."""
        kept = ~np.isin(np.arange(len(self.count)), left)
        count = self.count[kept].sum()
        mean = self.total[kept].sum(0) / count
        return mean, (self.products[kept].sum(0) - count * np.outer(mean, mean)) / (count - 1)


class Kernels:
    """The sums of kernels of two sets of units `(unit, member, d)`, by blocks of both.

    Attributes:
        plain: the mean over all distinct images.
    """

    def __init__(self, first: np.ndarray, second: np.ndarray, rows: int, columns: int, *, apart: bool) -> None:
        places = [np.arange(len(part)) % blocks for part, blocks in ((first, rows), (second, columns))]
        self.counts, self.apart = [np.bincount(place) for place in places], apart
        self.sums, same = np.zeros((rows, columns)), second is first
        step = max(1, KERNELS // (len(second) * first.shape[1] * second.shape[1]))
        for start in range(0, len(first), step):
            found = kernel(first[start : start + step], second)
            by_column = [np.bincount(places[1], line, columns) for line in found]
            np.add.at(self.sums, places[0][start : start + step], by_column)
        count = np.prod([part.shape[0] * part.shape[1] for part in (first, second)])
        equal = ((np.square(first).sum(-1) / first.shape[-1] + 1) ** 3).sum() if same else 0.0
        members = first.shape[1] * second.shape[1]
        self.plain = (members * self.sums.sum() - equal) / (count - (first.shape[0] * first.shape[1] if same else 0))
        if apart:
            products = np.einsum("umd,und->umn", first, second) / first.shape[-1]
            self.sums[np.arange(rows), np.arange(rows)] -= np.bincount(
                places[0], ((products + 1) ** 3).mean((1, 2)), rows
            )

    def mean(self, left: Left) -> float:
        """Return the mean without some blocks of both sets, over units of two numbers if they are kept apart."""
        kept = [~np.isin(np.arange(len(count)), left if len(count) > 1 else ()) for count in self.counts]
        sizes = [int(count[part].sum()) for count, part in zip(self.counts, kept, strict=True)]
        return float(self.sums[np.ix_(*kept)].sum() / (sizes[0] * (sizes[1] - self.apart)))
