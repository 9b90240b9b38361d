"""Parts of a drawing that several figures share: reference lines, error bars and logarithmic axes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, LogLocator, NullLocator

__all__: list[str] = []


def references(line: Callable[..., object], at: float | Sequence[float]) -> None:
    """Draw dashed grey lines at some values, by `ax.axhline` or `ax.axvline`."""
    for value in np.atleast_1d(at):
        line(value, color="0.4", linewidth=0.8, linestyle="--", zorder=0)


def errors(part: pd.DataFrame) -> np.ndarray:
    """Return the lengths of the intervals below and above the estimates, `(2, rows)`."""
    return part[["low", "high"]].sub(part["estimate"], axis=0).abs().to_numpy().T


def plain_log(ax: Axes, which: str, ticks: Sequence[float] | None = None) -> None:
    """Make the axis `"x"` or `"y"` logarithmic, with numbers such as 0.3, 1, 3 and 10 at its ticks."""
    ax.set(**{f"{which}scale": "log"})
    axis = getattr(ax, f"{which}axis")
    axis.set_major_locator(_Decades() if ticks is None else FixedLocator(ticks))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_locator(NullLocator())


class _Decades(LogLocator):
    """Ticks at powers of ten, and at three times them where these alone would be few."""

    def tick_values(self, vmin: float, vmax: float) -> np.ndarray:
        self.set_params(subs=(1, 3) if vmax < 300 * vmin else (1,), numticks=7)
        return np.asarray(super().tick_values(vmin, vmax))
