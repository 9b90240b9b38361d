"""The one Dataset and its store: images by `(unit, member, channel, y, x)`, and what is needed to draw them again."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypedDict, Unpack

import dask.array
import numpy as np
import xarray as xr
import zarr

__all__ = ["open", "build", "config", "limits", "scaled"]

DIMS = ("unit", "member", "channel", "y", "x")
STEPPED = ("unit", "member", "step", "channel", "y", "x")
VARIABLES = ("image", "state", "predicted_noise")
RANGE = (-1.0, 1.0)
NOT_THE_GENERATOR = {"seed", "design", "batch", "threads", "versions", "config_hash", "condition", "control"}


class Labels(TypedDict, total=False):
    """The coordinates of a run: `sign(member)`, `condition(unit)` and `timestep(step)`; None leaves one out."""

    signs: tuple[int, ...] | None
    condition: np.ndarray | None
    timesteps: list[int] | None


def config_hash(config: Mapping[str, object]) -> str:
    """Return the sha256 of a configuration written as JSON with sorted keys."""
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()


def build(
    variables: Mapping[str, np.ndarray | dask.array.Array], config: Mapping[str, object], **labels: Unpack[Labels]
) -> xr.Dataset:
    """Return the Dataset of a run from its arrays, which may be lazy.

    Args:
        variables: `image` by `(unit, member, channel, y, x)`. A run with trajectories has more arrays, with
            `step` after `member`.
        config: what the run was. Each value is stored in the attrs as JSON, and `config_hash` beside them.
        **labels: `signs`, `condition` and `timesteps`, the coordinates `sign(member)`, `condition(unit)` and
            `timestep(step)`.

    Examples:
        >>> images = np.zeros((3, 2, 1, 4, 4), np.float32)
        >>> run = build({"image": images}, {"seed": 0}, signs=(1, -1))
        >>> run["image"].dims, config(run)
        (('unit', 'member', 'channel', 'y', 'x'), {'seed': 0})
    """
    arrays = {name: (DIMS if values.ndim == len(DIMS) else STEPPED, values) for name, values in variables.items()}
    data = xr.Dataset(arrays, coords={"unit": np.arange(variables["image"].shape[0])})
    data["image"].attrs["range"] = json.dumps(RANGE)
    coordinates = ("signs", "sign", "member"), ("condition", "condition", "unit"), ("timesteps", "timestep", "step")
    for label, name, dim in coordinates:
        if labels.get(label) is not None:
            data = data.assign_coords({name: (dim, np.asarray(labels.get(label)))})
    return data.assign_attrs({key: json.dumps(value) for key, value in config.items()}, config_hash=config_hash(config))


def config(data: xr.Dataset | zarr.Group) -> dict[str, object]:
    """Return the configuration that `build` stored in the attrs of a run, or of the group that it is stored in."""
    return {str(key): json.loads(str(value)) for key, value in data.attrs.items() if key != "config_hash"}


def check(data: xr.Dataset) -> xr.Dataset:
    """Return `data` if it keeps the schema, otherwise raise.

    Raises:
        ValueError: naming the rule that is broken and the value found.
    """
    if "image" not in data or data["image"].dims != DIMS:
        found = {name: variable.dims for name, variable in data.data_vars.items()}
        raise ValueError(f"a run holds a variable 'image' by {DIMS}; got {found}")
    if data["image"].dtype != np.float32:
        raise ValueError(f"images are float32; got {data['image'].dtype}")
    if "config_hash" not in data.attrs or data.attrs["config_hash"] != config_hash(config(data)):
        raise ValueError(f"config_hash does not fit the attrs; got {data.attrs.get('config_hash')!r}")
    if "done" in data and not bool(data["done"].all()):
        raise ValueError(f"the run is not complete: {int(data['done'].sum())} of {data.sizes['unit']} units are done")
    return data


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


def limits(data: xr.Dataset) -> tuple[float, float]:
    """Return the values of black and white in the images of a run.

    Examples:
        >>> limits(build({"image": np.zeros((1, 1, 1, 2, 2), np.float32)}, {}))
        (-1.0, 1.0)
    """
    low, high = json.loads(data["image"].attrs["range"])
    return low, high


def scaled(images: np.ndarray, low: float, high: float) -> np.ndarray:
    """Return images scaled from [low, high] to [0, 1] and clipped.

    Examples:
        >>> scaled(np.array([-1.0, 0.0, 3.0]), -1, 1)
        array([0. , 0.5, 1. ])
    """
    return np.clip((images - low) / (high - low), 0, 1)


def versions(*packages: str) -> dict[str, str]:
    """Return the versions of those packages that are installed."""
    installed = {}
    for name in packages:
        with suppress(importlib.metadata.PackageNotFoundError):
            installed[name] = importlib.metadata.version(name)
    return installed


def defined(values: xr.DataArray, name: str) -> np.ndarray:
    """Return one statistic's table `(unit, member)`; ValueError if it is undefined in a unit, with their number."""
    table = values.sel(statistic=name).transpose("unit", "member").values
    bad = ~np.isfinite(table).all(1)
    if bad.any():
        raise ValueError(f"{name} is undefined in {bad.sum()} of {len(table)} units; every unit is needed here")
    return table


def evaluations(values: xr.DataArray) -> int:
    """Return the network evaluations that measured values cost, those of all units and members.

    Raises:
        ValueError: if the values do not come from `measure`, which keeps what the run was.
    """
    return values.sizes["unit"] * values.sizes["member"] * int(json.loads(_attr(values, "evaluations")))


def cost(data: xr.Dataset) -> int:
    """Return the network evaluations of all images of a run; one an image if the run does not say."""
    return data.sizes["unit"] * data.sizes["member"] * config(data).get("evaluations", 1)


def design(values: xr.DataArray) -> str:
    """Return the name of the design that measured values come from; ValueError as `evaluations`."""
    return json.loads(_attr(values, "design"))["name"]


def check_same_generator(first: xr.DataArray, second: xr.DataArray) -> None:
    """Refuse values of two generators, or of one with other settings; ValueError names the first difference."""
    for key in sorted({*first.attrs, *second.attrs} - NOT_THE_GENERATOR):
        if first.attrs.get(key) != second.attrs.get(key):
            found = f"their {key} is {first.attrs.get(key)} and {second.attrs.get(key)}"
            raise ValueError(f"both runs must be of the same generator; {found}")


def _attr(values: xr.DataArray, name: str) -> str:
    if name not in values.attrs:
        raise ValueError(f"values come from statistics.measure, which keeps what the run was; these have no {name!r}")
    return values.attrs[name]


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
