"""How several levels are best combined, and how many units each should have."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import xarray as xr

from antinb import checks, dataset
from antinb.analysis.statistics import unit_means

__all__ = ["allocation"]

FREE = 1e-3  # cost of a level without network calls, in evaluations of the cheapest one that has some
ROUNDS = 500  # of an allocation
MOST = 1e6  # units for each of the first group, where that leaves hardly any variance
JITTER = 1e-10  # of a variance, since two levels may be equal


@checks.typed
def allocation(pilot: Sequence[xr.DataArray]) -> pd.DataFrame:
    r"""Return how many units several levels should have, with the efficiency to be expected.

    The groups are nested: all levels, all but the finest, and so on to the last one alone. The coefficients are those
    of `levels`, and for given ones `n_g` is in proportion to `sqrt(Var(a_g' y_g) / c_g)`, with c_g the evaluations of
    a unit; the two are taken in turn until they agree, and each turn lowers the variance at equal cost. A level without
    network calls counts as a thousandth of the cheapest other one.

    Args:
        pilot: one table `(statistic, unit, member)` a level, the finest first, of one design and seed.

    Returns:
        Rows `statistic, group, units, evaluations, efficiency`: the group's levels, such as "1+2"; its units for each
        unit of the first group, 0 where it is not worth its cost; the evaluations of a unit; and the efficiency of
        variance against the finest level alone with the same design, at equal evaluations.

    Raises:
        ValueError: if the tables do not share their noise, or a value is undefined.

    Examples:
        >>> import antinb
        >>> from antinb import noise, statistics
        >>> model, pilot = antinb.load("fashion-mixture", steps=20), []
        >>> for generator in (model, model.with_(steps=3)):
        ...     run = antinb.sample(generator, noise.iid(40), seed=0, progress=False)
        ...     pilot.append(statistics.measure(run, statistics.brightness))
        >>> allocation(pilot)["group"].tolist()
        ['0+1', '1']
    """
    known = [dataset.measured(part, "statistic", "seed", "design") for part in pilot]
    for part in known[1:]:
        dataset.check_same_noise(known[0], part)
    calls = np.array([float(dataset.calls(part)) for part in known])
    if not len(known) or not calls.any():
        raise ValueError(f"an allocation needs a level that costs evaluations; got {calls.tolist()}")
    costs = np.where(calls > 0, calls, FREE * calls[calls > 0].min()) * known[0].sizes["member"]
    rows = []
    for name in known[0]["statistic"].values.tolist():
        covariance = np.atleast_2d(np.cov([unit_means(part, name) for part in known]))
        units, efficiency = nested(covariance, costs)
        for first, count in enumerate(units):
            members = range(first, len(known))
            group = {"statistic": name, "group": "+".join(map(str, members)), "units": count}
            rows.append(
                group | {"evaluations": calls[first:].sum() * known[0].sizes["member"], "efficiency": efficiency}
            )
    return pd.DataFrame(rows)


def best_weights(covariance: np.ndarray, places: list[list[int]], images: np.ndarray) -> list[np.ndarray]:
    """Return the best coefficients of each group's levels for the mean of level 0, see `levels`."""
    regular = covariance + JITTER * np.diag(np.diag(covariance) + np.finfo(float).tiny)
    inverses, precision = [], np.zeros_like(covariance)
    for place, count in zip(places, images, strict=True):
        inverses.append(count * np.linalg.inv(regular[np.ix_(place, place)]))
        precision[np.ix_(place, place)] += inverses[-1]
    first = np.linalg.solve(precision, np.eye(len(covariance))[0])
    return [inverse @ first[place] for inverse, place in zip(inverses, places, strict=True)]


def nested(covariance: np.ndarray, costs: np.ndarray) -> tuple[np.ndarray, float]:
    """Return the units of the nested groups for each of the first, and the efficiency, see `allocation`."""
    count = len(costs)
    places, spent = [list(range(first, count)) for first in range(count)], costs[::-1].cumsum()[::-1]
    units, product = 1 / spent, np.inf
    for _ in range(ROUNDS):
        weights = best_weights(covariance, places, units)
        parts = [max(w @ covariance[first:, first:] @ w, 0.0) for first, w in enumerate(weights)]
        spreads = np.sqrt(parts)
        units = np.maximum(spreads / np.sqrt(spent), JITTER * spreads.max() / np.sqrt(spent))
        before, product = product, float((spreads * np.sqrt(spent)).sum() ** 2)
        if before - product <= JITTER * product:
            break
    ratio = units / units[0]
    return np.where(ratio > 1 / MOST**0.5, np.minimum(ratio, MOST), 0.0), float(
        covariance[0, 0] * costs[0] / product
    ) if product else np.inf


def best_allocation(covariance: np.ndarray, fine: float, coarse: float) -> dict[str, float]:
    r"""Return how two levels are best used: `coefficient, coarse_units_per_fine, predicted_efficiency`.

    With costs `c_1` of a unit on both levels and `c_2` on the coarse one, b minimises
    `sqrt(Var(F - b C) c_1) + |b| sqrt(Var(C) c_2)`: with q^2 = c_2/c_1 and r = Corr(F, C) it is
    `b = sd(F)/sd(C) sign(r) max(|r| - q sqrt((1 - r^2)/(1 - q^2)), 0)`, less than the regression's. Then
    `n'/n = sqrt(b^2 Var(C) c_1 / (Var(F - b C) c_2))`, and the efficiency against the fine sampler alone, of
    the same design, is `Var(F) c_F / (sqrt(Var(F - b C) c_1) + |b| sqrt(Var(C) c_2))^2`.

    Args:
        covariance: (2, 2), of the unit means of the fine and the coarse sampler.
        fine: evaluations of a unit of the fine sampler.
        coarse: evaluations of a unit of the coarse one.
    """
    variance, moved_variance = np.diag(covariance)
    rho, both = covariance[0, 1] / (variance * moved_variance) ** 0.5, fine + coarse
    share = coarse / both
    weight = max(abs(rho) - (share * max(1 - rho**2, 0) / (1 - share)) ** 0.5, 0)
    b = np.sign(rho) * weight * (variance / moved_variance) ** 0.5
    rest, moved = max(1 - 2 * weight * abs(rho) + weight**2, 0), weight**2  # in variances of the fine sampler
    ratio = (moved * both / (rest * coarse)) ** 0.5 if rest > 0 else np.inf
    efficiency = fine / ((rest * both) ** 0.5 + (moved * coarse) ** 0.5) ** 2
    numbers = {"coefficient": b, "coarse_units_per_fine": ratio, "predicted_efficiency": efficiency}
    return {name: float(number_) for name, number_ in numbers.items()}
