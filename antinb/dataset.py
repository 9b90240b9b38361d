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
    return {key: json.loads(value) for key, value in data.attrs.items() if key != "config_hash"}


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
        ValueError: if it does not keep the schema or is not complete.
    """
    if not Path(store).exists():
        raise FileNotFoundError(f"no run is stored at {str(store)!r}")
    return check(xr.open_zarr(store, consolidated=False))


def create(store: str | Path, run: xr.Dataset, shard: int) -> None:
    """Make a store with room for the run, a chunk a shard and none of it done; it appears at once or not at all."""
    run = run.assign(done=("unit", dask.array.zeros(run.sizes["unit"], dtype=bool, chunks=shard)))
    encoding = {name: {"chunks": (shard,)} for name in ("unit", "condition") if name in run.coords}
    partial = Path(f"{store}.partial")
    with _written(store):
        shutil.rmtree(partial, ignore_errors=True)
        try:
            run.to_zarr(partial, compute=False, consolidated=False, zarr_format=3, encoding=encoding)
            os.rename(partial, store)
        except OSError:
            shutil.rmtree(partial, ignore_errors=True)
            raise


def resume(
    store: str | Path, config: Mapping[str, object], units: int, condition: np.ndarray | None
) -> np.ndarray | None:
    """Return which of `units` units a store holds, `(units,)` boolean, making room for new ones; None if there is none.

    What an interrupted write left behind is removed.

    Raises:
        ValueError: if there is something else than a run, a run of another configuration (the
            difference is named) or of other conditions, or one of more units.
        OSError: if the store cannot be written.
    """
    if not Path(store).exists():
        return None
    try:
        group = zarr.open_group(store, mode="r+")
        stored = {key: json.loads(value) for key, value in group.attrs.items() if key != "config_hash"}
        count = group["unit"].shape[0]
    except (FileNotFoundError, FileExistsError, KeyError, ValueError):
        raise ValueError(f"{str(store)!r} exists and is no run of antinb: name another store") from None
    differing = sorted(key for key in {*stored, *config} if stored.get(key) != json.loads(json.dumps(config.get(key))))
    if differing:
        changes = (f"{key} is {stored.get(key)!r} there, {config.get(key)!r} here" for key in differing)
        raise ValueError(f"{str(store)!r} holds a run of another configuration: {'; '.join(changes)}")
    if count > units:
        raise ValueError(f"{str(store)!r} holds {count} units; a run can be extended, not cut to {units}")
    if condition is not None:
        known = group["condition"][:]
        if not np.array_equal(known, condition[: len(known)]):
            raise ValueError(f"{str(store)!r} holds units of other conditions")
    with _written(store):
        for stray in Path(store).rglob("*.partial"):
            stray.unlink()
        for name in sorted(group.array_keys()):
            if "unit" in group[name].metadata.dimension_names and group[name].shape[0] < units:
                group[name].resize((units, *group[name].shape[1:]))
        group["unit"][:] = np.arange(units)
        if condition is not None:
            group["condition"][:] = condition
    return group["done"][:]


def write(store: str | Path, units: range, values: Mapping[str, np.ndarray]) -> None:
    """Write the variables of some units, then that they are done.

    Raises:
        OSError: if the store cannot be written; the units are then not done.
    """
    group = zarr.open_group(store, mode="r+")
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
