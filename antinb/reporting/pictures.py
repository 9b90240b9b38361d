"""Drawings of images: contact sheets and maps of pixels."""

from __future__ import annotations

import numpy as np
import seaborn as sns
import xarray as xr
from matplotlib.axes import Axes

from antinb import checks, dataset
from antinb.reporting.axes import blank, check_dims, check_texts

__all__ = ["image_grid", "pixel_map"]


@checks.typed
def image_grid(
    images: xr.DataArray, *, rows: list[str], columns: list[str] | None = None, ax: Axes | None = None
) -> Axes:
    """Draw images `(column, row, channel, y, x)` as a contact sheet with one label a row, and below one a column.

    Values are clipped to the range in the attrs, black to white; a run's `image` can be passed as
    it is: its units become columns, its members rows.

    Raises:
        ValueError: if there is not one label a row or column, or there are neither 1 nor 3 channels.

    Examples:
        >>> values = xr.DataArray(np.zeros((3, 2, 1, 4, 4)), dims=["unit", "member", "channel", "y", "x"])
        >>> ax = image_grid(values.assign_attrs(range="[-1, 1]"), rows=["z", "-z"])
        >>> [label.get_text() for label in ax.get_yticklabels()]
        ['z', '-z']
    """
    check_dims(images, None, None, "channel", "y", "x")
    check_texts(*rows, *(columns or []))
    across, count, channels, height, width = images.shape
    if len(rows) != count or channels not in (1, 3):
        found = f"{len(rows)} labels, {channels} channels"
        raise ValueError(f"a grid needs {count} row labels and 1 or 3 channels; got {found}")
    if columns is not None and len(columns) != across:
        raise ValueError(f"a grid needs {across} column labels; got {len(columns)}")
    low, high = dataset.range_of(images)
    sheet = np.ones((count * (height + 1) - 1, across * (width + 1) - 1, channels))
    for column, row in np.ndindex(across, count):
        top, left = row * (height + 1), column * (width + 1)
        pixels = dataset.scaled(images.values[column, row], low, high)
        sheet[top : top + height, left : left + width] = pixels.transpose(1, 2, 0)
    ax = ax or blank(0.8 * across + 1, 0.8 * count * height / width)
    ax.imshow(sheet.squeeze(), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    ax.set_yticks(np.arange(count) * (height + 1) + height / 2, rows)
    ax.set_xticks(np.arange(len(columns or [])) * (width + 1) + width / 2, columns or [], fontsize="small")
    ax.tick_params(length=0)
    sns.despine(ax=ax, left=True, bottom=True)
    return ax


@checks.typed
def pixel_map(values: xr.DataArray, *, limits: tuple[float, float] = (-1, 1), ax: Axes | None = None) -> Axes:
    """Draw a map `(y, x)` on a scale between two limits, diverging if they have 0 between them; NaN is hatched.

    The scale has the name of the values.

    Examples:
        >>> len(pixel_map(xr.DataArray(np.eye(4), dims=["y", "x"])).images)
        1
    """
    check_dims(values, "y", "x")
    low, high = checks.increasing("limits", limits)
    ax = ax or blank(3.6, 3)
    ax.patch.set(hatch="////", edgecolor="0.75")
    colours = "RdBu_r" if low < 0 < high else "mako"
    drawn = ax.imshow(values.values, cmap=colours, vmin=low, vmax=high, interpolation="nearest")
    ax.figure.colorbar(drawn, ax=ax, shrink=0.85, label=str(values.name or ""))
    ax.set(xticks=[], yticks=[])
    return ax
