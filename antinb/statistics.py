"""Images to scalars: what intervals are made for.

Statistics take images `(..., channel, y, x)` in [0, 1] and return `(...)`. The luma of a colour
image is `Y = .299 R + .587 G + .114 B`; a grey image is its own.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence

import numpy as np
import xarray as xr

from antinb.dataset import DIMS

Statistic = Callable[[np.ndarray], np.ndarray]
RUN = {"seed", "design", "batch", "threads", "versions", "config_hash", "condition", "control"}  # not the generator's


def luma(images: np.ndarray) -> np.ndarray:
    """Return the luma, `(..., channel, y, x)` to `(..., y, x)`; one or three channels, else ValueError."""
    weights = {1: [1.0], 3: [0.299, 0.587, 0.114]}.get(images.shape[-3])
    if weights is None:
        raise ValueError(f"the luma is defined for 1 or 3 channels; got {images.shape[-3]}")
    return np.tensordot(np.moveaxis(images, -3, -1).astype(np.float64), weights, 1)


def pixel_mean(images: np.ndarray) -> np.ndarray:
    """Return the mean over pixels and channels, in [0, 1]."""
    return images.mean((-3, -2, -1), dtype=np.float64)


def brightness(images: np.ndarray) -> np.ndarray:
    """Return the mean luma, in [0, 1]."""
    return luma(images).mean((-2, -1))


def contrast(images: np.ndarray) -> np.ndarray:
    """Return the standard deviation of the luma over pixels, in [0, 0.5]."""
    return luma(images).std((-2, -1))


def _centroid(images: np.ndarray, axis: int) -> np.ndarray:
    profile = luma(images).sum(-1 if axis == -2 else -2)
    total = profile.sum(-1)
    moment = profile @ np.arange(profile.shape[-1])
    return np.divide(moment, total, out=np.full(total.shape, np.nan), where=total > 0)


def centroid_x(images: np.ndarray) -> np.ndarray:
    """Return the luma-weighted mean column `sum x Y / sum Y`, in pixels from 0; NaN for a black image."""
    return _centroid(images, -1)


def centroid_y(images: np.ndarray) -> np.ndarray:
    """Return the luma-weighted mean row `sum y Y / sum Y`, in pixels from 0; NaN for a black image."""
    return _centroid(images, -2)


def event(statistic: Statistic, *, above: float) -> Statistic:
    """Return the statistic `1[S > above]`, whose mean is a probability; NaN stays NaN.

    Examples:
        >>> import numpy as np
        >>> event(brightness, above=0.6)(np.full((2, 1, 4, 4), 0.7))
        array([1., 1.])
    """

    def indicator(images: np.ndarray) -> np.ndarray:
        values = np.asarray(statistic(images), np.float64)
        return np.where(np.isnan(values), np.nan, values > above)

    indicator.__name__ = f"{statistic.__name__} > {above:g}"
    return indicator


def measure(data: xr.Dataset, *statistics: Statistic) -> xr.DataArray:
    """Return the statistics of every image, `(statistic, unit, member)` in float64.

    The images are scaled from their range to [0, 1] and clipped; the run's attrs go along. NaN is
    kept: an undefined value is for the reader to count. A lazy run is read chunk by chunk.

    Raises:
        ValueError: if no statistic is given, two have one name or one does not return a value an image.
    """
    if not statistics:
        raise ValueError("measure needs at least one statistic, such as antinb.statistics.brightness")
    names = [statistic.__name__ for statistic in statistics]
    if len(set(names)) < len(names):
        raise ValueError(f"statistics need names of their own; got {names}")
    low, high = json.loads(data["image"].attrs["range"])

    def kernel(images: np.ndarray) -> np.ndarray:
        scaled = np.clip((images - low) / (high - low), 0, 1)
        columns = [np.asarray(statistic(scaled), np.float64) for statistic in statistics]
        for statistic, column in zip(statistics, columns, strict=True):
            if column.shape != images.shape[:-3]:
                raise ValueError(
                    f"{statistic.__name__} must return one value an image, {images.shape[:-3]}; got {column.shape}"
                )
        return np.stack(columns, -1)

    values = xr.apply_ufunc(
        kernel,
        data["image"],
        input_core_dims=[DIMS[2:]],
        output_core_dims=[["statistic"]],
        dask="parallelized",
        output_dtypes=[np.float64],
        dask_gufunc_kwargs={"output_sizes": {"statistic": len(statistics)}},
    )
    values = values.assign_coords(statistic=names).transpose("statistic", "unit", "member").compute()
    return values.assign_attrs(data.attrs)


def pooled(tables: Sequence[xr.DataArray]) -> xr.DataArray:
    r"""Return the deviations of several runs from their own means, all units in a row: `(statistic, unit, member)`.

    For a mean over R fixed conditions, such as measurements, whose variance is `sum_r V_r / R^2`: the unit means of
    the deviations, scaled by `sqrt(n (N - 1) / ((n - 1) N))` for n units a run and N in all, have the variance that the
    runs have on average. `estimation.compare` of two such tables is the efficiency of a design for that mean.

    Raises:
        ValueError: if there is no table, or they differ in statistics, members, units or design, or have one unit only.
    """
    kinds = {(table.shape, *table["statistic"].values.tolist(), design(table), evaluations(table)) for table in tables}
    if len(kinds) != 1 or tables[0].sizes["unit"] < 2:
        raise ValueError(f"runs are pooled if they have one form and at least two units; got {sorted(map(str, kinds))}")
    units, count = tables[0].sizes["unit"], tables[0].sizes["unit"] * len(tables)
    scale = (units * (count - 1) / ((units - 1) * count)) ** 0.5
    deviations = [scale * (table - table.mean(("unit", "member"))) for table in tables]
    return xr.concat(deviations, "unit").assign_coords(unit=np.arange(count)).assign_attrs(tables[0].attrs)


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


def design(values: xr.DataArray) -> str:
    """Return the name of the design that measured values come from; ValueError as `evaluations`."""
    return _attr(values, "design")["name"]


def check_same_generator(first: xr.DataArray, second: xr.DataArray) -> None:
    """Refuse values of two generators, or of one with other settings; ValueError names the first difference."""
    for key in sorted({*first.attrs, *second.attrs} - RUN):
        if first.attrs.get(key) != second.attrs.get(key):
            found = f"their {key} is {first.attrs.get(key)} and {second.attrs.get(key)}"
            raise ValueError(f"both runs must be of the same generator; {found}")


def _attr(values: xr.DataArray, name: str) -> object:
    if name not in values.attrs:
        raise ValueError(f"values come from statistics.measure, which keeps what the run was; these have no {name!r}")
    return json.loads(values.attrs[name])
