"""Whether measured values of two runs are of the same generator, noise and units."""

from __future__ import annotations

from collections.abc import Hashable

import xarray as xr

from antinb.checks import plain
from antinb.dataset.run import ENVIRONMENT

__all__: list[str] = []

NOT_THE_GENERATOR = {
    "seed",
    "design",
    "batch",
    "config_hash",
    "condition",
    "control",
    "pilot_evaluations",
    *ENVIRONMENT,
}


def generator_of(values: xr.DataArray) -> dict[Hashable, object]:
    """Return the attrs of measured values that say what the generator and its settings were."""
    return {key: value for key, value in values.attrs.items() if key not in NOT_THE_GENERATOR}


def check_same_generator(first: xr.DataArray, second: xr.DataArray) -> None:
    """Refuse values of two generators, or of one with other settings; ValueError names the first difference."""
    ours, others = generator_of(first), generator_of(second)
    for key in sorted({*ours, *others}, key=str):
        if ours.get(key) != others.get(key):
            found = f"their {key} is {plain(ours.get(key))} and {plain(others.get(key))}"
            raise ValueError(f"both runs must be of the same generator; {found}")


def check_same_noise(first: xr.DataArray, second: xr.DataArray) -> None:
    """Refuse values of two runs unless they have the same design, seed and units; ValueError names the difference."""
    for key in ("design", "seed"):
        if first.attrs.get(key) is None or first.attrs[key] != second.attrs.get(key):
            found = f"{plain(first.attrs.get(key))} and {plain(second.attrs.get(key))}"
            raise ValueError(f"both must be of the same noise; their {key} is {found}")
    same_units(first, second)


def same_units(first: xr.DataArray, second: xr.DataArray) -> None:
    """Refuse values of two runs unless both have the same units in the same order; ValueError says how many are common.

    Values of runs of other lengths are cut by `xr.align(first, second)`.
    """
    labels, others = first.get_index("unit"), second.get_index("unit")
    if not labels.equals(others):
        common = len(labels.intersection(others))
        found = f"{len(labels)} and {len(others)}, of which {common} are common"
        raise ValueError(f"both must have the same units in the same order, as after xr.align; got {found}")
