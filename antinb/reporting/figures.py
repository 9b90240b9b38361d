"""Drawings of runs and results: each takes data and an `ax`, returns the `ax`, and computes nothing."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from antinb import checks
from antinb.reporting.axes import PALETTE, blank, check_dims, check_rows, errors, plain_log, references, shifts
from antinb.reporting.pictures import image_grid, pixel_map

__all__ = [
    "bands",
    "by_timestep",
    "densities",
    "facets",
    "forest",
    "image_grid",
    "intervals",
    "pixel_map",
    "slices",
    "trajectory",
]


@checks.typed
def densities(table: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Draw the densities of `correlation.histogram`, columns `pairs` (PN, RR), `left`, `right`, `density`.

    Examples:
        >>> table = pd.DataFrame({"pairs": "PN", "left": [-1.0, 0.0], "right": [0.0, 1.0], "density": [0.8, 0.2]})
        >>> densities(table).get_xlabel()
        'correlation'
    """
    check_rows(table, "pairs", numbers=("left", "right", "density"))
    ax = ax or blank(5, 3)
    for kind, part in table.groupby("pairs"):
        edges = [*part["left"], part["right"].iloc[-1]]
        color = PALETTE[str(kind)]
        ax.stairs(part["density"], edges, color=color, fill=True, alpha=0.35)
        ax.stairs(part["density"], edges, color=color, label=str(kind))
    references(ax.axvline, 0)
    ax.set(xlim=(-1, 1), xlabel="correlation", ylabel="density")
    ax.legend(frameon=False)
    sns.despine(ax=ax)
    return ax


@checks.typed
def intervals(table: pd.DataFrame, *, label: str = "model", ax: Axes | None = None) -> Axes:
    """Draw `estimate` with `low` and `high` for each row, one line a `label`, coloured by `pairs`."""
    check_rows(table, label, "pairs", "centred")
    ax = ax or blank(7, 0.55 * len(table[label].unique()) + 1)
    places = {name: place for place, name in enumerate(table[label].unique())}
    kinds = list(itertools.product(sorted(table["pairs"].unique()), (False, True)))
    for (kind, centred), shift in zip(kinds, shifts(len(kinds)), strict=True):
        part = table.loc[(table["pairs"] == kind) & (table["centred"] == centred)]
        ax.errorbar(
            part["estimate"],
            np.array([places[name] for name in part[label]]) + shift,
            xerr=errors(part),
            fmt="o" if centred else "s",
            color=PALETTE[kind],
            markerfacecolor=PALETTE[kind] if centred else "white",
            label=f"{kind}, {'centred' if centred else 'standard'}",
        )
    references(ax.axvline, 0)
    ax.set_yticks(list(places.values()), list(places))
    ax.set(xlim=(-1.05, 1.05), ylim=(len(places) - 0.5, -0.5), xlabel="correlation")
    ax.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    sns.despine(ax=ax, left=True)
    return ax


@checks.typed
def forest(
    table: pd.DataFrame,
    *,
    label: str,
    hue: str | None = None,
    at: float | Sequence[float] = (),
    log: bool = False,
    ax: Axes | None = None,
) -> Axes:
    """Draw `estimate` with `low` and `high` for each row, one line a `label`, a colour and a place on it a `hue`.

    Args:
        table: rows of results.
        label: the column that names the lines.
        hue: the column that names the colours; the legend says what they mean if there are several.
        at: where dashed reference lines stand.
        log: whether the axis of the estimates is logarithmic.
        ax: where to draw; None makes a figure.

    Examples:
        >>> rows = {"estimate": [9.0, 1.0], "low": [8.0, 0.9], "high": [10.0, 1.2]}
        >>> table = pd.DataFrame({"design": ["pairs", "iid"], **rows})
        >>> forest(table, label="design", at=1, log=True).get_xscale()
        'log'
    """
    check_rows(table, label, hue)
    ax = ax or blank(5 if hue is None else 7, 0.55 * len(table[label].unique()) + 1)  # the legend is beside it
    places = {name: place for place, name in enumerate(table[label].unique())}
    groups = [("", table)] if hue is None else list(table.groupby(hue, sort=False))
    heights = np.broadcast_to(shifts(len(groups) if table[label].duplicated().any() else 1), len(groups))
    for (name, part), shift, color in zip(groups, heights, sns.color_palette("dark", len(groups)), strict=True):
        place = np.array([places[row] for row in part[label]]) + shift
        ax.errorbar(part["estimate"], place, xerr=errors(part), fmt="o", markersize=4, color=color, label=str(name))
    references(ax.axvline, at)
    if log:
        plain_log(ax, "x")
    ax.set_yticks(list(places.values()), list(places))
    ax.set_ylim(len(places) - 0.5, -0.5)
    if len(groups) > 1:
        ax.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    sns.despine(ax=ax, left=True)
    return ax


@checks.typed
def bands(
    table: pd.DataFrame,
    *,
    x: str,
    hue: str | None = None,
    at: float | Sequence[float] = (),
    log: str = "",
    ax: Axes | None = None,
) -> Axes:
    """Draw `estimate` by the column `x` with a band from `low` to `high`, a line a `hue`.

    Args:
        table: rows of results.
        x: the column along the horizontal axis.
        hue: the column that names the lines; the legend says what they mean if there are several.
        at: where dashed reference lines stand, across.
        log: the logarithmic axes, of `"x"` (with its ticks where the points are), `"y"` and `"xy"`.
        ax: where to draw; None makes a figure.

    Examples:
        >>> table = pd.DataFrame({"k": [2, 4], "estimate": [0.3, 0.2], "low": [0.2, 0.1], "high": [0.4, 0.3]})
        >>> bands(table, x="k", log="x").get_xlabel()
        'k'
    """
    check_rows(table, hue, also=x)
    ax = ax or blank(4.5, 3)
    groups = [("", table)] if hue is None else list(table.groupby(hue, sort=False))
    for (name, part), color in zip(groups, sns.color_palette("dark", len(groups)), strict=True):
        place = part[x].astype(float)
        ax.plot(place, part["estimate"], marker=".", color=color, label=str(name).replace("_", " "))
        ax.fill_between(place, part["low"], part["high"], color=color, alpha=0.25, linewidth=0)
    references(ax.axhline, at)
    if "x" in log:
        plain_log(ax, "x", sorted(table[x].astype(float).unique()))
    if "y" in log:
        plain_log(ax, "y")
    ax.set_xlabel(x)
    if len(groups) > 1:
        ax.legend(frameon=False)
    sns.despine(ax=ax)
    return ax


@checks.typed
def facets(
    table: pd.DataFrame,
    draw: Callable[..., Axes],
    *,
    by: str,
    size: tuple[float, float] = (10, 3),
    rows: int = 1,
    sharex: bool = False,
    sharey: bool = False,
    xlabel: str | None = None,
    ylabel: str | None = None,
    **options: object,
) -> Figure:
    """Draw one panel for each value of the column `by`, which is its title; the legend stands by the last one.

    Args:
        table: rows of results.
        draw: `forest`, `bands` or another function of this module.
        by: the column that names the panels, in the order of the rows.
        size: width and height of the figure in inches.
        rows: rows of panels.
        sharex: whether the panels have one horizontal scale.
        sharey: whether the panels have one vertical scale.
        xlabel: under the lowest panels; None keeps what `draw` says.
        ylabel: beside the left ones.
        options: for `draw`.

    Examples:
        >>> table = pd.DataFrame({"model": ["a", "b"], "design": "pairs", "estimate": 0.5, "low": 0.4, "high": 0.6})
        >>> [ax.get_title() for ax in facets(table, forest, by="model", label="design").axes]
        ['a', 'b']
    """
    check_rows(table, by, numbers=())
    rows, size = checks.integer("rows", rows, 1), checks.pair("size", size, 0.1, 200)
    parts = list(table.groupby(by, sort=False))
    grid = {"nrows": rows, "ncols": -(-len(parts) // rows), "squeeze": False, "layout": "constrained"}
    fig, axes = plt.subplots(figsize=size, sharex=sharex, sharey=sharey, **grid)
    for place, ax in enumerate(axes.flat):
        if place >= len(parts):
            ax.set_axis_off()
            continue
        name, part = parts[place]
        draw(part, ax=ax, **options).set_title(str(name).replace("_", " "))
        lowest, leftmost = place + axes.shape[1] >= len(parts), place % axes.shape[1] == 0
        if xlabel is not None or not lowest:
            ax.set_xlabel(xlabel or "" if lowest else "")
        if ylabel is not None and leftmost:
            ax.set_ylabel(ylabel)
        legend = ax.get_legend()
        if legend is not None and place < len(parts) - 1:
            legend.remove()
        elif legend is not None:
            sns.move_legend(ax, "upper left", bbox_to_anchor=(1, 1), frameon=False)
    return fig


@checks.typed
def trajectory(table: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Draw the rows of `correlation.along` by step, a line a variable with its intervals as a band."""
    check_rows(table, "variable", also="step")
    ax = bands(table.sort_values("variable", kind="stable"), x="step", hue="variable", at=0, ax=ax)
    ax.set(xlabel="steps done", ylabel="correlation", ylim=(-1.05, 0.5))
    ax.legend(frameon=False, loc="upper left")
    return ax


@checks.typed
def by_timestep(table: pd.DataFrame, *, hue: str | None = None, ax: Axes | None = None) -> Axes:
    """Draw `estimate` by timestep with a band from `low` to `high`, a line a `hue`: noise left, data right."""
    ax = bands(table, x="timestep", hue=hue, ax=ax)
    ax.xaxis.set_inverted(True)
    return ax


@checks.typed
def slices(values: xr.DataArray, *, ax: Axes | None = None) -> Axes:
    """Draw slices `(direction, coordinate, s)` of `Probe.slices`, each less its value at s = 0."""
    check_dims(values, "direction", "coordinate", "s")
    if "s" not in values.coords:
        raise ValueError("slices have a coordinate s, where the line is cut; got none")
    ax = ax or blank(3, 2.6)
    centred = values - values.sel(s=0, method="nearest")
    for lines, color in zip(centred, sns.color_palette("crest", len(centred)), strict=True):
        ax.plot(values["s"], lines.values.T, color=color, linewidth=0.8, alpha=0.8)
    references(ax.axhline, 0)
    references(ax.axvline, 0)
    ax.set(xlim=(-1, 1), xlabel="s", ylabel="predicted noise")
    sns.despine(ax=ax)
    return ax
