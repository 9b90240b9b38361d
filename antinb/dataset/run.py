"""What a run is: images by `(unit, member, channel, y, x)`, and what is needed to draw them again."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from collections.abc import Hashable, Iterable, Iterator, Mapping
from contextlib import suppress
from typing import Any, TypedDict, Unpack

import dask.array
import numpy as np
import xarray as xr

from antinb import checks
from antinb.checks import plain, quoted

__all__ = ["build", "config"]

DIMS = ("unit", "member", "channel", "y", "x")
STEPPED = ("unit", "member", "step", "channel", "y", "x")
VARIABLES = ("image", "state", "predicted_noise")
RANGE = (-1.0, 1.0)
BLOCK = 2**20  # values in memory at once, where a unit is smaller
OF_THE_STORE = ("config_hash", "layout_hash", "coordinates")
COORDINATES = ("signs", "sign", "member"), ("condition", "condition", "unit"), ("timesteps", "timestep", "step")
ENVIRONMENT = ("threads", "versions", "history")  # images depend on them up to rounding, and so no hash does


class Labels(TypedDict, total=False):
    """The coordinates of a run: `sign(member)`, `condition(unit)` and `timestep(step)`; None leaves one out."""

    signs: tuple[int, ...] | np.ndarray | None
    condition: np.ndarray | None
    timesteps: list[int] | np.ndarray | None


def config_hash(config: Mapping[str, object]) -> str:
    """Return the sha256 of what the images depend on in a configuration, written as JSON with sorted keys."""
    fixed = {key: value for key, value in config.items() if key not in ENVIRONMENT}
    return hashlib.sha256(json.dumps(fixed, sort_keys=True).encode()).hexdigest()


@checks.typed
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
    shapes = {name: getattr(part, "ndim", None) for name, part in variables.items()}
    if shapes.get("image") != len(DIMS) or not set(shapes.values()) <= {len(DIMS), len(STEPPED)}:
        raise ValueError(f"a run has an array 'image' by {DIMS}, and others with a step; got {quoted(shapes)}")
    try:
        json.dumps(dict(config))
    except (TypeError, ValueError) as error:
        raise ValueError(f"a configuration holds what JSON can; {plain(error)}") from None
    arrays = {name: (DIMS if values.ndim == len(DIMS) else STEPPED, values) for name, values in variables.items()}
    data = xr.Dataset(arrays, coords={"unit": np.arange(variables["image"].shape[0])})
    data["image"].attrs["range"] = json.dumps(RANGE)
    for label, name, dim in COORDINATES:
        if labels.get(label) is not None:
            data = data.assign_coords({name: (dim, np.asarray(labels.get(label)))})
    return data.assign_attrs({key: json.dumps(value) for key, value in config.items()}, config_hash=config_hash(config))


@checks.typed
def config(data: xr.Dataset) -> dict[str, object]:
    """Return the configuration that `build` stored in the attrs of a run."""
    images(data)
    try:
        return parsed(data.attrs)
    except ValueError:
        raise ValueError(f"the attrs of a run are JSON; got {quoted(dict(data.attrs))}") from None


def parsed(attrs: Mapping[Hashable, object]) -> dict[str, object]:
    """Return the configuration that attrs hold."""
    return {str(key): json.loads(str(value)) for key, value in attrs.items() if key not in OF_THE_STORE}


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
    check_hash(data.attrs)
    if data["image"].attrs.get("range") != json.dumps(RANGE):
        raise ValueError(f"images have the range {json.dumps(RANGE)}; got {data['image'].attrs.get('range')!r}")
    return data


def check_hash(attrs: Mapping[Hashable, object]) -> None:
    """Refuse attrs that are no configuration or not the one that was hashed; antinb 0.1 hashed the versions too."""
    try:
        known = parsed(attrs)
    except ValueError:
        raise ValueError(f"the attrs of a run are JSON; got {dict(attrs)}") from None
    older = hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()
    if attrs.get("config_hash") not in (config_hash(known), older):
        raise ValueError(f"config_hash does not fit the attrs; got {attrs.get('config_hash')!r}")


def limits(data: xr.Dataset) -> tuple[float, float]:
    """Return the values of black and white in the images of a run.

    Examples:
        >>> limits(build({"image": np.zeros((1, 1, 1, 2, 2), np.float32)}, {}))
        (-1.0, 1.0)
    """
    return range_of(data["image"])


def range_of(images: xr.DataArray) -> tuple[float, float]:
    """Return the values of black and white that images name in their attrs.

    Raises:
        ValueError: unless they are two numbers, the lower one first.
    """
    found = images.attrs.get("range")
    ends = _json(found)
    numbers = isinstance(ends, list) and len(ends) == 2 and all(type(end) in (int, float) for end in ends)
    if not numbers or not -np.inf < ends[0] < ends[1] < np.inf:
        raise ValueError(f"images name their range, such as '[-1.0, 1.0]', black and white; got {quoted(found)}")
    return ends[0], ends[1]


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
    table = measured(values).sel(statistic=name).values
    bad = ~np.isfinite(table).all(1)
    if bad.any():
        raise ValueError(f"{name} is undefined in {bad.sum()} of {len(table)} units; every unit is needed here")
    return table


def evaluations(values: xr.DataArray) -> int:
    """Return the network evaluations that measured values cost, those of all units and members and of a pilot.

    Raises:
        ValueError: if the values do not come from `measure`, which keeps what the run was.
    """
    pilot = _calls(values.attrs.get("pilot_evaluations", "0"))
    return values.sizes["unit"] * values.sizes["member"] * calls(values) + pilot


def pilots(tables: Iterable[xr.DataArray]) -> int:
    """Return the evaluations of the pilots that the surrogates of some tables were fitted to, each pilot once."""
    pairs = {(table.attrs.get("pilot_seed"), table.attrs.get("pilot_evaluations", "0")) for table in tables}
    return sum(_calls(known) for _, known in pairs)


def calls(values: xr.DataArray) -> int:
    """Return the network evaluations of one image of measured values; ValueError as `evaluations`."""
    return _calls(_attr(values, "evaluations"))


def cost(data: xr.Dataset) -> int:
    """Return the network evaluations of all images of a run; one an image if the run does not say."""
    return data.sizes["unit"] * data.sizes["member"] * _calls(data.attrs.get("evaluations", "1"))


def design(values: xr.DataArray) -> str:
    """Return the name of the design that measured values come from; ValueError as `evaluations`."""
    found = _json(_attr(values, "design"))
    if not isinstance(found, dict) or not isinstance(found.get("name"), str):
        raise ValueError(f"the design of values is JSON with its name; got {quoted(values.attrs['design'])}")
    return found["name"]


def _attr(values: xr.DataArray, name: str) -> str:
    if name not in values.attrs:
        raise ValueError(f"values come from statistics.measure, which keeps what the run was; these have no {name!r}")
    return values.attrs[name]


def _json(text: object) -> Any:  # noqa: ANN401
    """Return what a text says in JSON; None if it is none."""
    try:
        return json.loads(text) if isinstance(text, str) else None
    except (ValueError, RecursionError):
        return None


def _calls(text: object) -> int:
    calls = _json(text)
    if type(calls) is not int or calls < 0:
        raise ValueError(f"the evaluations of an image are an integer of at least 0; got {quoted(text)}")
    return calls


def _check_labels(values: xr.DataArray, what: str, dim: str, why: str) -> None:
    """Refuse labels of a dimension of which one stands twice."""
    labels = values.get_index(dim)
    if not labels.is_unique:
        raise ValueError(
            f"{dim} {plain(labels[labels.duplicated()][0])} stands twice; {what} holds each {dim} once{why}"
        )


def measured(values: xr.DataArray, first: str = "statistic", *needs: str) -> xr.DataArray:
    """Return measured values by `(first, unit, member)`, in whatever order their dimensions are.

    Raises:
        ValueError: if they have other dimensions, are no real numbers, a unit stands twice, such as in values of one
            seed that were joined, or an attr that is needed is not there.
    """
    dims = (first, "unit", "member")
    if not isinstance(values, xr.DataArray) or set(values.dims) != set(dims):
        found = values.dims if isinstance(values, xr.DataArray) else f"a {type(values).__name__}"
        raise ValueError(f"values are a DataArray by {dims}, as of statistics.measure; got {found}")
    if values.dtype.kind not in "fiub" or not values.size:
        raise ValueError(f"values are real numbers, at least one; got {values.dtype} {values.shape}")
    _check_labels(values, "a table", "unit", ", since units are independent")
    _check_labels(values, "a table", first, "")
    for name in needs:
        _attr(values, name)
    return values.transpose(*dims)


def images(data: xr.Dataset) -> xr.DataArray:
    """Return the images of a run by `DIMS`, in whatever order its dimensions are, lazy or not.

    Raises:
        ValueError: if it is no run, it is empty, its images are not floating-point numbers, a unit stands twice, or
            their range is none.
    """
    rule = f"a run is a Dataset with a variable 'image' by {DIMS}"
    if not isinstance(data, xr.Dataset):
        raise ValueError(f"{rule}; got a {type(data).__name__}")
    if "image" not in data.data_vars or set(data["image"].dims) != set(DIMS):
        raise ValueError(f"{rule}; got { ({name: part.dims for name, part in data.data_vars.items()}) }")
    if data["image"].dtype.kind != "f" or not data["image"].size:
        raise ValueError(f"images are floating-point numbers; got {data['image'].dtype} {data['image'].shape}")
    _check_labels(data["image"], "a run", "unit", ", since units are independent")
    if "range" in data["image"].attrs:
        range_of(data["image"])
    return data["image"].transpose(*DIMS)


def blocks(values: xr.DataArray, size: int = BLOCK) -> Iterator[tuple[slice, np.ndarray]]:
    """Yield the numbers and values of consecutive units, as many as hold `size` values, at least one.

    Lazy values are read by whole chunks, each once: one larger than a block is kept until its blocks are yielded.
    Values of half precision are returned in single precision.

    Args:
        values: with `unit` as the first dimension.
        size: number of values of a block.

    Examples:
        >>> values = xr.DataArray(np.arange(10.0).reshape(5, 2), dims=["unit", "x"])
        >>> [(units.start, units.stop, float(part.sum())) for units, part in blocks(values, 4)]
        [(0, 2, 6.0), (2, 4, 22.0), (4, 5, 17.0)]
    """
    count = max(1, size * len(values) // max(1, values.size))
    chunk = max(1, *values.chunksizes.get("unit", (1,)))
    span = max(chunk, count - count % chunk)
    for first in range(0, len(values), span):
        read = values[first : first + span].values
        read = read.astype(np.result_type(read, np.float32), copy=False)
        for start in range(0, len(read), count):
            part = read[start : start + count]
            yield slice(first + start, first + start + len(part)), part
