"""The one Dataset: images by `(unit, member, channel, y, x)` with everything needed to draw them again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import xarray as xr

DIMS = ("unit", "member", "channel", "y", "x")
RANGE = (-1.0, 1.0)


def config_hash(config: Mapping[str, object]) -> str:
    """Return the sha256 of a configuration written as JSON with sorted keys."""
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()


def build(
    images: object, config: Mapping[str, object], *, signs: tuple[int, ...] | None, condition: object = None
) -> xr.Dataset:
    """Return the Dataset of `images`, an array by `(unit, member, channel, y, x)`, lazy or in memory.

    `config` is stored in the attrs, each value as JSON, with `config_hash` beside it; `signs` and
    `condition` become the coordinates `sign(member)` and `condition(unit)`.
    """
    units, members = images.shape[:2]
    data = xr.Dataset({"image": (DIMS, images, {"range": json.dumps(RANGE)})}, coords={"unit": np.arange(units)})
    if signs is not None:
        data = data.assign_coords(sign=("member", np.asarray(signs)))
    if condition is not None:
        data = data.assign_coords(condition=("unit", np.asarray(condition)))
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
