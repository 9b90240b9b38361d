"""The one Dataset: images by `(unit, member, channel, y, x)` with everything needed to draw them again."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import dask.array
import numpy as np
import xarray as xr
import zarr

DIMS = ("unit", "member", "channel", "y", "x")
STEPPED = ("unit", "member", "step", "channel", "y", "x")
VARIABLES = ("image", "state", "predicted_noise")
RANGE = (-1.0, 1.0)
NOT_THE_GENERATOR = {"seed", "design", "batch", "threads", "versions", "config_hash", "condition", "control"}


def config_hash(config: Mapping[str, object]) -> str:
    """Return the sha256 of a configuration written as JSON with sorted keys."""
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()


def build(
    variables: Mapping[str, object],
    config: Mapping[str, object],
    *,
    signs: tuple[int, ...] | None = None,
    condition: object = None,
    timesteps: list[int] | None = None,
) -> xr.Dataset:
    """Return the Dataset of a run from its arrays, lazy or in memory.

    `variables` holds `image` by `(unit, member, channel, y, x)` and, of a run with trajectories,
    arrays that have `step` after `member`. `config` is stored in the attrs, each value as JSON, with
    `config_hash` beside it; `signs`, `condition` and `timesteps` become the coordinates
    `sign(member)`, `condition(unit)` and `timestep(step)`.
    """
    units = len(variables["image"])
    arrays = {name: (DIMS if values.ndim == len(DIMS) else STEPPED, values) for name, values in variables.items()}
    data = xr.Dataset(arrays, coords={"unit": np.arange(units)})
    data["image"].attrs["range"] = json.dumps(RANGE)
    for name, dim, values in (("sign", "member", signs), ("condition", "unit", condition)):
        if values is not None:
            data = data.assign_coords({name: (dim, np.asarray(values))})
    if timesteps is not None:
        data = data.assign_coords(timestep=("step", np.asarray(timesteps)))
    return data.assign_attrs({key: json.dumps(value) for key, value in config.items()}, config_hash=config_hash(config))


def config(data: xr.Dataset) -> dict[str, object]:
    """Return the configuration that `build` stored in the attrs."""
    return config_of(data.attrs)


def config_of(attrs: Mapping[str, str]) -> dict[str, object]:
    """Return the configuration in the attrs of a run or of its store."""
    return {key: json.loads(value) for key, value in attrs.items() if key != "config_hash"}


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
    """Return a stored run, lazily: a unit is read when it is needed.

    Raises:
        FileNotFoundError: if there is no such store.
        ValueError: if it is no run, does not keep the schema, or lacks some of its images.
    """
    if not Path(store).exists():
        raise FileNotFoundError(f"no run is stored at {str(store)!r}")
    done = _chunks_done(_group(store, "r"))
    if not done.all():
        raise ValueError(f"the run is not complete: {int(done.sum())} of {done.size} units are done")
    return check(xr.open_zarr(store, consolidated=False))


def _group(store: str | Path, mode: str) -> zarr.Group:
    """Return the group of a stored run; anything else is refused."""
    try:
        group = zarr.open_group(store, mode=mode)
        arrays = [group[name] for name in ("unit", "done", "image")]
        config_of(group.attrs)
    except (FileNotFoundError, FileExistsError, KeyError, TypeError, ValueError):
        raise ValueError(f"{str(store)!r} exists and is no run of antinb") from None
    if not all(array.metadata.dimension_names[0] == "unit" for array in arrays):
        raise ValueError(f"{str(store)!r} exists and is no run of antinb")
    return group


def _chunks_done(group: zarr.Group) -> np.ndarray:
    """Return which units are done and have their images: a chunk that got lost is not done."""
    done = group["done"][: group["unit"].shape[0]].astype(bool)
    for name in VARIABLES:
        if name in group:
            shard, kept = group[name].chunks[0], Path(group.store.root) / name / "c"
            for start in range(0, done.size, shard):
                if not (kept / str(start // shard)).exists():
                    done[start : start + shard] = False
    return done


def limits(data: xr.Dataset) -> tuple[float, float]:
    """Return the values of black and white in the images of a run."""
    low, high = json.loads(data["image"].attrs["range"])
    return low, high


def scaled(images: np.ndarray, low: float, high: float) -> np.ndarray:
    """Return images scaled from [low, high] to [0, 1] and clipped."""
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
    return values.sizes["unit"] * values.sizes["member"] * int(_attr(values, "evaluations"))


def cost(data: xr.Dataset) -> int:
    """Return the network evaluations of all images of a run; one an image if the run does not say."""
    return data.sizes["unit"] * data.sizes["member"] * config(data).get("evaluations", 1)


def design(values: xr.DataArray) -> str:
    """Return the name of the design that measured values come from; ValueError as `evaluations`."""
    return _attr(values, "design")["name"]


def check_same_generator(first: xr.DataArray, second: xr.DataArray) -> None:
    """Refuse values of two generators, or of one with other settings; ValueError names the first difference."""
    for key in sorted({*first.attrs, *second.attrs} - NOT_THE_GENERATOR):
        if first.attrs.get(key) != second.attrs.get(key):
            found = f"their {key} is {first.attrs.get(key)} and {second.attrs.get(key)}"
            raise ValueError(f"both runs must be of the same generator; {found}")


def _attr(values: xr.DataArray, name: str) -> object:
    if name not in values.attrs:
        raise ValueError(f"values come from statistics.measure, which keeps what the run was; these have no {name!r}")
    return json.loads(values.attrs[name])


class Memory:
    """A run in the making: `missing` says which units to make, `write` keeps them, `finish` returns the run.

    Attributes:
        done: which units there are already, `(units,)`.
    """

    def __init__(self, config: Mapping[str, object], units: int, shard: int, **labels: object) -> None:
        self.config, self.units, self.shard, self.labels = config, units, shard, labels
        self.done = np.zeros(units, bool)
        self._run: xr.Dataset | None = None

    def missing(self) -> Iterator[range]:
        """Yield the units to make, at most a shard at a time: shard k holds the units `[k shard, (k + 1) shard)`."""
        for start in range(0, self.units, self.shard):
            stop = min(start + self.shard, self.units)
            first = start + int(self.done[start:stop].sum())
            if first < stop:
                yield range(first, stop)

    def write(self, units: range, values: Mapping[str, np.ndarray]) -> None:
        """Keep the variables `(len(units), ...)` of some units."""
        if self._run is None:
            room = {name: np.empty((self.units, *part.shape[1:]), np.float32) for name, part in values.items()}
            self._run = build(room, self.config, **self.labels)
        for name, part in values.items():
            self._run[name][units.start : units.stop] = part

    def finish(self) -> xr.Dataset:
        """Return the run."""
        return check(self._run)


class Store(Memory):
    """A run in the making on disk, new or resumed; one shard is a chunk and `done(unit)` is written last.

    Raises:
        ValueError: if there is something else than a run at the path, a run of another configuration (the
            difference is named) or of other conditions, or one of more units.
        OSError: if the store cannot be written.
    """

    def __init__(
        self, path: str | Path, config: Mapping[str, object], units: int, shard: int, **labels: object
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
            if array.shape[1:] != group[name].shape[1:]:
                found = f"{str(self.path)!r} holds {name} {group[name].shape[1:]} a unit; got {array.shape[1:]}"
                raise ValueError(found)
        with self._written():
            for name, array in {**values, "done": np.ones(len(units), bool)}.items():
                group[name][units.start : units.stop] = array

    def finish(self) -> xr.Dataset:
        """Return the stored run, lazily."""
        return open(self.path)

    def _create(self, values: Mapping[str, np.ndarray]) -> None:
        """Make a store with room for all units, none of it done; it appears at once or not at all."""
        room = {
            name: dask.array.empty((self.units, *part.shape[1:]), np.float32, chunks=(self.shard, *part.shape[1:]))
            for name, part in values.items()
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
        group, name, condition = _group(self.path, "r"), repr(str(self.path)), self.labels.get("condition")
        stored, wanted = config_of(group.attrs), json.loads(json.dumps(self.config))
        differing = sorted(key for key in {*stored, *wanted} if stored.get(key) != wanted.get(key))
        if differing:
            changes = (f"{key} is {stored.get(key)!r} there, {wanted.get(key)!r} here" for key in differing)
            raise ValueError(f"{name} holds a run of another configuration: {'; '.join(changes)}")
        known = _chunks_done(group)
        if known.size > self.units:
            raise ValueError(f"{name} holds {known.size} units; a run can be extended, not cut to {self.units}")
        self.done[: known.size] = known
        if condition is not None:
            if not np.array_equal(group["condition"][: known.size][known], condition[self.done]):
                raise ValueError(f"{name} holds units of other conditions")

    def _extend(self) -> None:
        """Make room for all units and remove what an interrupted write left behind."""
        with self._written():
            group = zarr.open_group(self.path, mode="r+")
            for stray in self.path.rglob("*.partial"):
                stray.unlink()
            for name in sorted(group.array_keys()):
                if "unit" in group[name].metadata.dimension_names and group[name].shape[0] != self.units:
                    group[name].resize((self.units, *group[name].shape[1:]))
            group["unit"][:] = np.arange(self.units)
            if self.labels.get("condition") is not None:
                group["condition"][:] = self.labels["condition"]

    @contextmanager
    def _written(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            rule = f"{str(self.path)!r} cannot be written: {error.strerror}; what is stored stays, run again to resume"
            raise OSError(error.errno, rule) from None
