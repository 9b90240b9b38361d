"""Candidates of a plan: what one pilot says of designs, of surrogates and of a second level."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
import xarray as xr

from antinb import checks, dataset, noise
from antinb.analysis.allocation import best_allocation
from antinb.analysis.intervals import jackknife
from antinb.analysis.levels import two_costs
from antinb.dataset import defined, evaluations
from antinb.noise import Design

__all__ = ["candidates"]

UNSURE = 1.25  # factor from an efficiency to the ends of its interval
FEWEST = 10  # units of a pilot for each surrogate
REMEDY = "take more units in the pilot"


def designs(points: int) -> dict[str, Callable[[int], Design]]:
    """Return the designs that `plan` compares, by name, each a function of the number of units."""
    half = points // 2
    return {
        "iid": noise.iid,
        "antithetic": noise.antithetic,
        f"sobol({half})": functools.partial(noise.sobol, n=half),
        f"sobol({points}, antithetic)": functools.partial(noise.sobol, n=points, antithetic=True),
    }


@checks.typed
def candidates(
    fine: xr.DataArray,
    coarse: xr.DataArray | None = None,
    *,
    surrogates: Sequence[xr.DataArray] = (),
    level: float | None = None,
) -> pd.DataFrame:
    """Return what a pilot of `noise.sobol(units, points, antithetic=True)` says of each of the `designs`.

    With surrogates each design stands twice, without and with them. The unit means of k surrogates are then taken out
    of those of both levels by least squares over n units, and the variance that is left is multiplied by
    `(n - 1) / (n - 1 - k)`.

    Args:
        fine: `(statistic, unit, member)` of the pilot.
        coarse: the same of a coarse twin, same noise; None plans no second level.
        surrogates: the same of surrogates, same noise, such as those of `antinb.surrogates`.
        level: of jackknife intervals `low, high` of the efficiency, over the units; None makes none, and then a unit
            may stand twice, as in a bootstrap.

    Returns:
        Rows `statistic, odd_share, smooth_share, design, surrogates, levels, efficiency, variance, cost, coefficient,
        coarse_units, correlation`: variance and evaluations of one unit, with two levels a fine unit with its
        `coarse_units`; `surrogates` is how many are used. With a level also `low, high, warning`: `warning` says where
        the pilot leaves the efficiency uncertain by more than 25%.

    Raises:
        ValueError: for another design, an undefined or constant statistic, a twin that is not coarser, surrogates of
            other noise, or fewer than 10 units for each of them.

    Examples:
        >>> design = noise.sobol(20, 8, antithetic=True)
        >>> about = {"design": json.dumps(design.describe()), "seed": "0", "evaluations": "1"}
        >>> means = design.draw((1, 4, 4), seed=0).mean((-3, -2, -1))
        >>> fine = xr.DataArray(np.exp(means)[None], {"statistic": ["s"]}, ["statistic", "unit", "member"], attrs=about)
        >>> candidates(fine)["design"].tolist()
        ['iid', 'antithetic', 'sobol(4)', 'sobol(8, antithetic)']
    """
    tables = []
    for table in [fine, *([] if coarse is None else [coarse]), *surrogates]:
        # without intervals units may stand twice, as those that a bootstrap draws
        twice = level is None and isinstance(table, xr.DataArray)
        part = table.drop_vars("unit", errors="ignore") if twice else table
        tables.append(dataset.measured(part, "statistic", "seed"))
        dataset.check_same_noise(fine, table)
    fine, known = tables[0], [0, len(surrogates)] if len(surrogates) else [0]
    name, about, units = dataset.design(fine), json.loads(fine.attrs["design"]), fine.sizes["unit"]
    if name != "sobol" or not about.get("antithetic") or about.get("members") != fine.sizes["member"]:
        raise ValueError(f"a pilot is a run of noise.sobol(..., antithetic=True); got {name!r}")
    if units < FEWEST * len(surrogates):
        raise ValueError(f"a pilot has {FEWEST} units for each surrogate; got {units} for {len(surrogates)}")
    points = about["members"]
    costs = [evaluations(fine) / fine[0].size] if coarse is None else two_costs(*tables[:2])
    half, rows = points // 2, []
    for name in fine["statistic"].values.tolist():
        table = np.stack([defined(part, name) for part in tables], -1)
        plain, parts = table[..., 0].var(ddof=1), np.stack([table[:, :half], table[:, half:]], 1)
        if plain == 0:
            raise ValueError(f"{name} is constant over the pilot: there is nothing to plan")
        pairs = parts.mean(1)
        odd = ((parts[:, 0, :, 0] - parts[:, 1, :, 0]) ** 2).mean() / 4
        shared = {"statistic": name, "odd_share": odd / (odd + pairs[..., 0].var(ddof=1))}
        shared["smooth_share"] = max(0.0, 1 - half * parts[..., 0].mean(2).var(ddof=1) / plain)
        means = [table, pairs, parts.mean(2), table.mean(1, keepdims=True)]
        for label, unit, members in zip(designs(points), means, (1, 2, half, points), strict=True):
            for count in known:
                for row in _levels(_less(unit, len(costs), count), [members * cost for cost in costs]):
                    efficiency = plain * costs[0] / (row["variance"] * row["cost"])
                    rows.append(shared | {"design": label, "surrogates": count, "efficiency": efficiency} | row)
    found = pd.DataFrame(rows)
    if level is None:
        return found

    def logarithms(drawn: np.ndarray) -> np.ndarray:
        part = [table.isel(unit=drawn) for table in tables]
        second = None if coarse is None else part[1]
        return np.log(candidates(part[0], second, surrogates=part[len(costs) :])["efficiency"].to_numpy())

    _, low, high = np.exp(jackknife(logarithms, units, level))
    factor = high / found["efficiency"]
    said = [f"the pilot tells this efficiency within a factor of {part:.2g}: {REMEDY}" for part in factor]
    return found.assign(low=low, high=high, warning=np.where(factor > UNSURE, said, ""))


def _less(means: np.ndarray, levels: int, surrogates: int) -> np.ndarray:
    """Return means `(n, levels)` less their regression on surrogates, from means `(unit, k, levels and surrogates)`."""
    flat = means.reshape(-1, means.shape[2])
    if not surrogates:
        return flat[:, :levels]
    y, x = np.split(flat - flat.mean(0), [levels], axis=1)
    rest = y - x @ np.linalg.lstsq(x, y, rcond=None)[0]
    return rest * ((len(rest) - 1) / (len(rest) - 1 - surrogates)) ** 0.5


def _levels(means: np.ndarray, costs: list[float]) -> list[dict[str, float]]:
    """Return `levels, variance, cost` of one unit from means `(n, level)`: fine alone, then both levels."""
    covariance = np.atleast_2d(np.cov(means.T))
    fine, unset = covariance[0, 0], {"coarse_units": np.nan, "coarse_cost": np.nan}
    rows = [{"levels": 1, "variance": fine, "cost": costs[0], "unit_cost": costs[0], **unset}]
    for cost in costs[1:]:
        best = {"coefficient": 0.0, "coarse_units_per_fine": 1.0}
        if covariance[1, 1] > 0:  # a rare event may not happen in the pilot's coarse images
            best = best_allocation(covariance, *costs)
        b, ratio = best["coefficient"], min(max(best["coarse_units_per_fine"], 1), 1000)
        rest, moved = max(fine - 2 * b * covariance[0, 1] + b**2 * covariance[1, 1], 0), b**2 * covariance[1, 1]
        row = {"levels": 2, "variance": rest + moved / ratio}
        row |= {"cost": costs[0] + (1 + ratio) * cost, "coefficient": b, "coarse_units": ratio}
        row |= {"unit_cost": costs[0] + cost, "coarse_cost": cost}
        spread = (fine * covariance[1, 1]) ** 0.5
        rows.append(row | {"correlation": covariance[0, 1] / spread if spread > 0 else np.nan})
    return rows
