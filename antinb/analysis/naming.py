"""The names of statistics, by which their values are found."""

from __future__ import annotations

import difflib
import functools
from collections.abc import Callable, Sequence

from antinb import checks

__all__: list[str] = []

IMAGES = ("brightness", "centroid_x", "centroid_y", "contrast", "pixel_mean")  # statistics without arguments


def named(statistics: Sequence[Callable]) -> list[str]:
    """Return the names of statistics, of a `functools.partial` with its arguments.

    Raises:
        ValueError: if one is no function, such as the name of one, or two have one name.
    """
    names = []
    for statistic in statistics:
        if not callable(statistic):
            rule = "a statistic is a function of images, such as antinb.statistics.brightness"
            close = difflib.get_close_matches(statistic, IMAGES, n=1) if isinstance(statistic, str) else []
            hint = f"; did you mean antinb.statistics.{close[0]}?" if close else ""
            raise ValueError(f"{rule}; got {checks.quoted(statistic)}{hint}")
        names.append(_name(statistic))
    if len(set(names)) < len(names):
        rule = "statistics need names of their own: set __name__ of a function"
        raise ValueError(f"{rule}; got {checks.quoted(names)}")
    return names


def _name(statistic: Callable) -> str:
    if isinstance(statistic, functools.partial):
        given = [*map(checks.quoted, statistic.args)]
        given += [f"{key}={checks.quoted(value)}" for key, value in statistic.keywords.items()]
        return f"{_name(statistic.func)}({', '.join(given)})"
    return str(getattr(statistic, "__name__", type(statistic).__name__))
