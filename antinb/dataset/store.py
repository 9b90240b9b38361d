"""A run in the making: in memory, or in a Zarr store that a killed process resumes."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Unpack

import dask.array
import numpy as np
import xarray as xr
import zarr

from antinb.dataset.run import VARIABLES, Labels, build, check, config

__all__ = ["open"]


def open(store: str | Path) -> xr.Dataset:
    """Open a stored run lazily: a unit is read when it is needed.

    Raises:
        FileNotFoundError: if there is no such store.
        ValueError: if it is no run, does not keep the schema, or lacks some of its images.
    """
    if not Path(store).exists():
        raise FileNotFoundError(f"no run is stored at {str(store)!r}")
    done = _chunks_done(_group(store), Path(store))
    if not done.all():
        raise ValueError(f"the run is not complete: {int(done.sum())} of {done.size} units are done")
    return check(xr.open_zarr(store, consolidated=False))


def _group(store: str | Path) -> zarr.Group:
    """Open the group of a stored run, and refuse anything else."""
    refusal = ValueError(f"{str(store)!r} exists and is no run of antinb")
    try:
        group = zarr.open_group(store, mode="r")
        config(group)
        first = {_dims(_array(group, name))[:1] for name in ("unit", "done", "image")}
    except (FileNotFoundError, FileExistsError, KeyError, TypeError, ValueError):
        raise refusal from None
    if first != {("unit",)}:
        raise refusal
    return group


def _array(group: zarr.Group, name: str) -> zarr.Array:
    array = group[name]
    if not isinstance(array, zarr.Array):
        raise KeyError(name)
    return array


def _dims(array: zarr.Array) -> tuple[str | None, ...]:
    return getattr(array.metadata, "dimension_names", None) or ()


def _chunks_done(group: zarr.Group, folder: Path) -> np.ndarray:
    """Return which units are done and have their images. A unit whose chunk was lost is not done."""
    done = np.asarray(_array(group, "done")[: _array(group, "unit").shape[0]], bool)
    for name in VARIABLES:
        if name in group:
            shard, kept = _array(group, name).chunks[0], folder / name / "c"
            for start in range(0, done.size, shard):
                if not (kept / str(start // shard)).exists():
                    done[start : start + shard] = False
    return done


class Memory:
    """A run in the making: `missing` says which units to make, `write` keeps them, `finish` returns the run.

    Attributes:
        done: which units there are already, `(units,)`.
    """

    def __init__(self, config: Mapping[str, object], units: int, shard: int, **labels: Unpack[Labels]) -> None:
        self.config, self.units, self.shard, self.labels = config, units, shard, labels
        self.done = np.zeros(units, bool)
        self._parts: dict[str, np.ndarray] = {}

    def missing(self) -> Iterator[range]:
        """Yield the units to make, at most a shard at a time: shard k holds the units `[k shard, (k + 1) shard)`."""
        for start in range(0, self.units, self.shard):
            stop = min(start + self.shard, self.units)
            first = start + int(self.done[start:stop].sum())
            if first < stop:
                yield range(first, stop)

    def write(self, units: range, values: Mapping[str, np.ndarray]) -> None:
        """Keep the variables `(len(units), ...)` of some units."""
        if not self._parts:
            self._parts = {name: np.empty((self.units, *part.shape[1:]), np.float32) for name, part in values.items()}
        for name, part in values.items():
            self._parts[name][units.start : units.stop] = part

    def finish(self) -> xr.Dataset:
        """Return the run."""
        return check(build(self._parts, self.config, **self.labels))


class Store(Memory):
    """A run in the making on disk, new or resumed; one shard is a chunk and `done(unit)` is written last.

    Raises:
        ValueError: if there is something else than a run at the path, a run of another configuration (the
            difference is named) or of other conditions, or one of more units.
        OSError: if the store cannot be written.
    """

    def __init__(
        self, path: str | Path, config: Mapping[str, object], units: int, shard: int, **labels: Unpack[Labels]
    ) -> None:
        super().__init__(config, units, shard, **labels)
        self.path = Path(path)
        self._created = self.path.exists()
        if self._created:
            self._resume()
            self._extend()

    def write(self, units: range, values: Mapping[str, np.ndarray]) -> None:
        """Write the variables `(len(units), ...)` of some units, then that they are done.

        Raises:
            ValueError: if they have not the shape of those that are there.
            OSError: if the store cannot be written; the units are then not done.
        """
        if not self._created:
            self._create(values)
        group = zarr.open_group(self.path, mode="r+")
        for name, array in values.items():
            shape = _array(group, name).shape[1:]
            if array.shape[1:] != shape:
                raise ValueError(f"{str(self.path)!r} holds {name} {shape} a unit; got {array.shape[1:]}")
        with self._written():
            for name, array in {**values, "done": np.ones(len(units), bool)}.items():
                _array(group, name)[units.start : units.stop] = array

    def finish(self) -> xr.Dataset:
        """Return the stored run, lazily."""
        return open(self.path)

    def _create(self, values: Mapping[str, np.ndarray]) -> None:
        """Make a store with room for all units, none of it done; it appears at once or not at all."""
        sizes = {name: part.shape[1:] for name, part in values.items()}
        room = {
            name: dask.array.empty((self.units, *size), dtype=np.float32, chunks=(self.shard, *size))
            for name, size in sizes.items()
        }
        run = build(room, self.config, **self.labels)
        run = run.assign(done=("unit", dask.array.zeros(self.units, dtype=bool, chunks=self.shard)))
        encoding = {name: {"chunks": (self.shard,)} for name in ("unit", "condition") if name in run.coords}
        partial = self.path.with_name(f"{self.path.name}.partial")
        with self._written():
            shutil.rmtree(partial, ignore_errors=True)
            try:
                run.to_zarr(partial, compute=False, consolidated=False, zarr_format=3, encoding=encoding)
                os.rename(partial, self.path)
            except OSError:
                shutil.rmtree(partial, ignore_errors=True)
                raise
        self._created = True

    def _resume(self) -> None:
        """Find out which units are done; nothing is changed."""
        group, name, condition = _group(self.path), repr(str(self.path)), self.labels.get("condition")
        stored, wanted = config(group), json.loads(json.dumps(self.config))
        differing = sorted(key for key in {*stored, *wanted} if stored.get(key) != wanted.get(key))
        if differing:
            changes = (f"{key} is {stored.get(key)!r} there, {wanted.get(key)!r} here" for key in differing)
            raise ValueError(f"{name} holds a run of another configuration: {'; '.join(changes)}")
        known = _chunks_done(group, self.path)
        if known.size > self.units:
            raise ValueError(f"{name} holds {known.size} units; a run can be extended, not cut to {self.units}")
        self.done[: known.size] = known
        if condition is not None:
            there = np.asarray(_array(group, "condition")[: known.size])
            if not np.array_equal(there[known], condition[self.done]):
                raise ValueError(f"{name} holds units of other conditions")

    def _extend(self) -> None:
        """Make room for all units and remove what an interrupted write left behind."""
        with self._written():
            group = zarr.open_group(self.path, mode="r+")
            for stray in self.path.rglob("*.partial"):
                stray.unlink()
            for _, array in sorted(group.arrays()):
                if "unit" in _dims(array) and array.shape[0] != self.units:
                    array.resize((self.units, *array.shape[1:]))
            _array(group, "unit")[:] = np.arange(self.units)
            condition = self.labels.get("condition")
            if condition is not None:
                _array(group, "condition")[:] = condition

    @contextmanager
    def _written(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            rule = f"{str(self.path)!r} cannot be written: {error.strerror}; what is stored stays, run again to resume"
            raise OSError(error.errno, rule) from None
