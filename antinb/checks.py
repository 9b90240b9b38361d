"""What arguments must be: each check takes a name, a value and its range, and returns the value or raises one line."""

from __future__ import annotations

import operator
from collections.abc import Sequence

import numpy as np

__all__: list[str] = []

LARGEST_SEED = 2**63 - 1


def integer(what: str, value: int, low: int, high: int = 2**31 - 1) -> int:
    """Return `value` as an int if it is an integer from `low` to `high`, else raise a ValueError with the rule."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < low:
        raise ValueError(f"{what} must be an integer of at least {low}; got {value!r}")
    if value > high:
        raise ValueError(f"{what} must be an integer of at most {high}; got {value}")
    return int(value)


def number(what: str, value: float, low: float, high: float) -> float:
    """Return `value` as a float if it is a number from `low` to `high`, else raise a ValueError with the rule."""
    if isinstance(value, bool) or not isinstance(value, (int, float, np.number)) or not low <= value <= high:
        raise ValueError(f"{what} must be a number from {low:g} to {high:g}; got {value!r}")
    return float(value)


def level(value: float) -> float:
    """Return the level of an interval, from 0.01 to 0.9999."""
    return number("level", value, 0.01, 0.9999)


def seed(value: int) -> int:
    """Return a seed, an integer from 0 to 2^63 - 1."""
    return integer("seed", value, 0, LARGEST_SEED)


def shape(value: Sequence[int]) -> tuple[int, ...]:
    """Return a shape as a tuple of positive integers."""
    try:
        sizes = tuple(operator.index(size) for size in value)
    except TypeError:
        sizes = ()
    if not sizes or min(sizes) < 1:
        raise ValueError(f"a shape is a non-empty tuple of positive integers such as (3, 32, 32); got {value!r}")
    return sizes
