"""A run in the making in memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Self, Unpack

import numpy as np
import xarray as xr

from antinb.dataset.run import Labels, build, check

__all__: list[str] = []


class Memory:
    """A run in the making: `missing` says which units to make, `write` keeps them, `finish` returns the run.

    Attributes:
        done: which units there are already, `(units,)`.
    """

    def __init__(self, config: Mapping[str, object], units: int, shard: int, **labels: Unpack[Labels]) -> None:
        self.config, self.units, self.shard, self.labels = config, units, shard, labels
        self.done = np.zeros(units, bool)
        self._parts: dict[str, np.ndarray] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nothing is to be released."""

    def missing(self) -> Iterator[range]:
        """Yield the units to make, at most a shard at a time: shard k holds the units `[k shard, (k + 1) shard)`."""
        for start in range(0, self.units, self.shard):
            wanted = np.flatnonzero(~self.done[start : start + self.shard]) + start
            for part in np.split(wanted, np.flatnonzero(np.diff(wanted) > 1) + 1):
                if part.size:
                    yield range(int(part[0]), int(part[-1]) + 1)

    def first(self) -> tuple[int, np.ndarray] | None:
        """Return the number and the images `(member, C, H, W)` of the first unit that is there, None if none is."""
        return None

    def write(self, units: range, values: Mapping[str, np.ndarray]) -> None:
        """Keep the variables `(len(units), ...)` of some units."""
        if not self._parts:
            self._parts = {name: np.empty((self.units, *part.shape[1:]), np.float32) for name, part in values.items()}
        for name, part in values.items():
            self._parts[name][units.start : units.stop] = part

    def finish(self) -> xr.Dataset:
        """Return the run."""
        return check(build(self._parts, self.config, **self.labels))
