"""What arguments must be: each check returns the value or raises one line with the rule and the value."""

from __future__ import annotations

import operator
from collections.abc import Sequence

import numpy as np

SEEDS = 2**63 - 1


def check_shape(shape: Sequence[int]) -> tuple[int, ...]:
    """Return `shape` as a tuple of positive integers; any other shape is a ValueError."""
    try:
        sizes = tuple(operator.index(size) for size in shape)
    except TypeError:
        sizes = ()
    if not sizes or min(sizes) < 1:
        raise ValueError(f"a shape is a non-empty tuple of positive integers such as (3, 32, 32); got {shape!r}")
    return sizes


def at_least(least: int, what: str, value: int, most: int = 2**31 - 1) -> int:
    """Return `value` as an int if it is an integer from `least` to `most`; otherwise a ValueError says what must be."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
        raise ValueError(f"{what} must be an integer of at least {least}; got {value!r}")
    if value > most:
        raise ValueError(f"{what} must be an integer of at most {most}; got {value}")
    return int(value)


def number(what: str, value: float, low: float, high: float) -> float:
    """Return `value` if it is a number from `low` to `high`; otherwise a ValueError says what must be."""
    if isinstance(value, bool) or not isinstance(value, (int, float, np.number)) or not low <= value <= high:
        raise ValueError(f"{what} must be a number from {low:g} to {high:g}; got {value!r}")
    return float(value)
