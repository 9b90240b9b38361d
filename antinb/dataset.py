"""The one Dataset: images by `(unit, member, channel, y, x)` with everything needed to draw them again."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import dask.array
import numpy as np
import xarray as xr
import zarr

DIMS = ("unit", "member", "channel", "y", "x")
STEPPED = ("unit", "member", "step", "channel", "y", "x")
VARIABLES = ("image", "state", "predicted_noise")
RANGE = (-1.0, 1.0)


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


def create(store: str | Path, run: xr.Dataset, shard: int) -> None:
    """Make a store with room for the run, a chunk a shard and none of it done; it appears at once or not at all."""
    run = run.assign(done=("unit", dask.array.zeros(run.sizes["unit"], dtype=bool, chunks=shard)))
    encoding = {name: {"chunks": (shard,)} for name in ("unit", "condition") if name in run.coords}
    partial = Path(store).with_name(f"{Path(store).name}.partial")
    with _written(store):
        shutil.rmtree(partial, ignore_errors=True)
        try:
            run.to_zarr(partial, compute=False, consolidated=False, zarr_format=3, encoding=encoding)
            os.rename(partial, store)
        except OSError:
            shutil.rmtree(partial, ignore_errors=True)
            raise


def resume(store: str | Path, config: Mapping[str, object], units: int, condition: np.ndarray | None) -> np.ndarray:
    """Return which of `units` units a store holds, `(units,)` boolean; nothing is changed.

    Raises:
        ValueError: if there is something else than a run, a run of another configuration (the
            difference is named) or of other conditions, or one of more units.
    """
    group = _group(store, "r")
    stored, wanted = config_of(group.attrs), json.loads(json.dumps(config))
    differing = sorted(key for key in {*stored, *wanted} if stored.get(key) != wanted.get(key))
    if differing:
        changes = (f"{key} is {stored.get(key)!r} there, {wanted.get(key)!r} here" for key in differing)
        raise ValueError(f"{str(store)!r} holds a run of another configuration: {'; '.join(changes)}")
    known = _chunks_done(group)
    if known.size > units:
        raise ValueError(f"{str(store)!r} holds {known.size} units; a run can be extended, not cut to {units}")
    done = np.zeros(units, bool)
    done[: known.size] = known
    if condition is not None and not np.array_equal(group["condition"][: known.size][known], condition[done]):
        raise ValueError(f"{str(store)!r} holds units of other conditions")
    return done


def extend(store: str | Path, units: int, condition: np.ndarray | None) -> None:
    """Make room for `units` units and remove what an interrupted write left behind.

    Raises:
        OSError: if the store cannot be written.
    """
    with _written(store):
        group = zarr.open_group(store, mode="r+")
        for stray in Path(store).rglob("*.partial"):
            stray.unlink()
        for name in sorted(group.array_keys()):
            if "unit" in group[name].metadata.dimension_names and group[name].shape[0] != units:
                group[name].resize((units, *group[name].shape[1:]))
        group["unit"][:] = np.arange(units)
        if condition is not None:
            group["condition"][:] = condition


def write(store: str | Path, units: range, values: Mapping[str, np.ndarray]) -> None:
    """Write the variables of some units, then that they are done.

    Raises:
        ValueError: if they have not the shape of those that are there.
        OSError: if the store cannot be written; the units are then not done.
    """
    group = zarr.open_group(store, mode="r+")
    for name, array in values.items():
        if array.shape[1:] != group[name].shape[1:]:
            raise ValueError(f"{str(store)!r} holds {name} {group[name].shape[1:]} a unit; got {array.shape[1:]}")
    with _written(store):
        for name, array in {**values, "done": np.ones(len(units), bool)}.items():
            group[name][units.start : units.stop] = array


@contextmanager
def _written(store: str | Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = f"{str(store)!r} cannot be written: {error.strerror}; what is stored stays, run again to go on"
        raise OSError(error.errno, reason) from None
