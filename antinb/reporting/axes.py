"""Parts of a drawing that several figures share: reference lines, error bars and logarithmic axes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, LogFormatterMathtext, LogLocator, MaxNLocator, NullLocator

from antinb import checks
from antinb.checks import quoted

__all__: list[str] = []

ENDS = ("estimate", "low", "high")
PALETTE = {"PN": "#c8553d", "RR": "#4a6fa5"}


def blank(width: float, height: float) -> Axes:
    """Return the axes of a new figure of this size in inches."""
    return plt.subplots(figsize=(width, height), layout="constrained")[1]


def check_rows(table: pd.DataFrame, *names: str | None, numbers: Sequence[str] = ENDS, also: str = "") -> None:
    """Refuse a table without rows or without the columns of names and numbers, `also` among them, of a drawing.

    Raises:
        ValueError: saying which columns are needed and which there are, which of them holds no numbers, or which kind
            of `pairs` has no colour.
    """
    numbers = [*numbers, also] if also else numbers
    needed = [*numbers, *(name for name in names if name is not None)]
    if not len(table) or not {*needed} <= {*table.columns}:
        found = f"{len(table)} rows with {quoted([*table.columns])}"
        raise ValueError(f"the table to draw has rows with the columns {needed}; got {found}")
    for name in numbers:
        read = pd.Series(pd.to_numeric(table[name], errors="coerce"))
        if read.isna().sum() > table[name].isna().sum():
            raise ValueError(f"the column {name!r} must hold numbers; got {quoted(table[name].tolist())}")
    for kind in table["pairs"].unique() if "pairs" in names else ():
        checks.choice("pairs", kind, PALETTE)


def check_texts(*labels: str) -> None:
    """Refuse labels of a grid that are no texts."""
    for label in labels:
        if not isinstance(label, str):
            raise ValueError(f"the labels of a grid are texts; got {quoted(label)}")


def check_dims(values: xr.DataArray, *names: str | None) -> None:
    """Refuse values whose dimensions are not these, None being any, or that are not real numbers.

    Raises:
        ValueError: saying which dimensions are needed and which there are.
    """
    fitting = len(values.dims) == len(names) and all(a in (b, None) for a, b in zip(names, values.dims, strict=True))
    if not fitting or values.dtype.kind not in "fiub" or not values.size:
        wanted = ", ".join(name or "..." for name in names)
        found = f"{quoted(dict(values.sizes))} of {values.dtype}"
        raise ValueError(f"the values to draw are real numbers by ({wanted}); got {found}")


def references(line: Callable[..., object], at: float | Sequence[float]) -> None:
    """Draw dashed grey lines at some values, by `ax.axhline` or `ax.axvline`.

    Raises:
        ValueError: if they are not finite numbers.
    """
    places: Sequence[Any] = at if isinstance(at, (list, tuple, np.ndarray)) else [at]
    for value in places:
        checks.number("a reference line", value, -1e300, 1e300)
        line(value, color="0.4", linewidth=0.8, linestyle="--", zorder=0)


def errors(part: pd.DataFrame) -> np.ndarray:
    """Return the lengths of the intervals below and above the estimates, `(2, rows)`."""
    return part[["low", "high"]].sub(part["estimate"], axis=0).abs().to_numpy().T


def shifts(groups: int) -> np.ndarray:
    """Return the heights at which groups lie on the line that they share."""
    return np.linspace(-0.3, 0.3, 2 * groups + 1)[1::2]


def plain_log(ax: Axes, which: str, ticks: Sequence[float] | None = None) -> None:
    """Make the axis `"x"` or `"y"` logarithmic, with numbers such as 0.3, 1, 3 and 10, or powers if it is long."""
    ax.set(**{f"{which}scale": "log"})
    axis = getattr(ax, f"{which}axis")
    axis.set_major_locator(_Decades() if ticks is None else FixedLocator(ticks))
    axis.set_major_formatter(_Plain())
    axis.set_minor_locator(NullLocator())


class _Decades(LogLocator):
    """Ticks at powers of ten, and the closer between them the fewer powers there are."""

    def tick_values(self, vmin: float, vmax: float) -> np.ndarray:
        if vmax < 3 * vmin:
            return np.asarray(MaxNLocator(5).tick_values(vmin, vmax))
        spacing = {10: (1, 1.5, 2, 3, 5, 7), 30: (1, 2, 5), 300: (1, 3), np.inf: (1,)}
        self.set_params(subs=next(subs for ratio, subs in spacing.items() if vmax < ratio * vmin), numticks=7)
        return np.asarray(super().tick_values(vmin, vmax))


class _Plain(LogFormatterMathtext):
    """Numbers as they are spoken; powers of ten on an axis of more than four of them."""

    def __call__(self, x: float, pos: int | None = None) -> str:
        low, high = (1.0, 1.0) if self.axis is None else self.axis.get_view_interval()
        return f"{x:g}" if high < 3e4 * low else super().__call__(x, pos)
