"""What a run is: images by `(unit, member, channel, y, x)`, and what is needed to draw them again."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from collections.abc import Mapping
from contextlib import suppress
from typing import TypedDict, Unpack

import dask.array
import numpy as np
import xarray as xr
import zarr

__all__ = ["build", "config"]

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
    return data.sizes["unit"] * data.sizes["member"] * int(json.loads(data.attrs.get("evaluations", "1")))


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
