"""Levels: one estimate from the runs of a dear sampler and of cheaper ones, on common and on other noise."""

from __future__ import annotations

import numpy as np
import pandas as pd
import xarray as xr

from antinb import checks, dataset
from antinb.analysis import diagnostics
from antinb.analysis.bounded import bounded_interval
from antinb.analysis.estimates import Estimate
from antinb.analysis.intervals import row, welch, welch_interval
from antinb.analysis.statistics import unit_means
from antinb.dataset import check_same_generator, design, evaluations

__all__ = ["two_level"]

REMEDY = "take more units, of the fine sampler first"


@checks.typed
def two_level(
    fine: xr.DataArray, coarse: xr.DataArray, many: xr.DataArray, *, coefficient: float = 1.0, level: float = 0.95
) -> pd.DataFrame:
    r"""Return the mean of the fine sampler's statistics from few fine and many coarse images, with intervals.

    `mean(F - b C) + b mean(C')`: F and C are the fine and the coarse sampler on the *same* noise, C' the
    coarse one on other noise. Unbiased for the fine sampler whatever b is, if b is fixed beforehand;
    `se^2 = Var(F - b C)/n + b^2 Var(C')/n'` over units, df by Welch and Satterthwaite.

    If F and C are events that differ in fewer than 15 units, that interval is too short or has no width. The mean of
    `F - C` then gets a betting interval, which has a width even if nothing was seen to differ. Its distances from the
    estimate and those of the t interval of `(1 - b) mean(C) + b mean(C')` are joined as roots of sums of squares.

    Args:
        fine: `(statistic, unit, member)` of the fine sampler.
        coarse: the same statistics of the coarse one, same design and seed.
        many: the same statistics of the coarse one, another seed.
        coefficient: b, 1 or the one of an independent pilot (`best_allocation`).
        level: of the intervals.

    Returns:
        Rows `statistic, design, estimate, low, high, level, method, units, evaluations, se, df, warning`;
        `units` are those of the fine run, `evaluations` those of all three; `method` is "two levels", or
        "two levels, betting".

    Raises:
        ValueError: if fine and coarse do not share their noise, many shares it, a value is undefined, or
            there are fewer than two units.

    Source: Giles, Multilevel Monte Carlo path simulation, Operations Research 56 (2008); for the joined interval,
        Zou and Donner, Construction of confidence limits about effect measures, Stat. Med. 27 (2008), 1693-1702.
    """
    checks.level(level)
    b = checks.number("coefficient", coefficient, -1e9, 1e9)
    fine, coarse, many = (dataset.measured(part, "statistic", "seed", "design") for part in (fine, coarse, many))
    two_costs(fine, coarse)
    check_same_generator(coarse, many)
    if many.attrs.get("condition") != coarse.attrs.get("condition"):
        found = f"{coarse.attrs.get('condition')} and {many.attrs.get('condition')}"
        raise ValueError(f"the many units are of the same condition; got {found}")
    if many.attrs["seed"] == fine.attrs["seed"]:
        raise ValueError(f"the many coarse units need another seed than the fine ones; got {many.attrs['seed']}")
    rows = []
    for name in fine["statistic"].values.tolist():
        pieces = [unit_means(table, name) for table in (fine, coarse, many)]
        parts = (pieces[0] - b * pieces[1], b * pieces[2])
        if min(map(len, parts)) < 2:
            raise ValueError(f"two levels need at least two units each; got {[len(part) for part in parts]}")
        variances = np.array([part.var(ddof=1) / len(part) for part in parts])
        fixed = _rarely_differ(fine, coarse, name)
        if variances.sum() == 0 and not fixed:
            raise ValueError(f"{name} is constant over units: there is no width to estimate")
        df = float(welch(variances, np.array([len(part) for part in parts]))) if variances.all() else len(parts[0]) - 1
        whole = Estimate(sum(part.mean() for part in parts), variances.sum() ** 0.5, df)
        ends, method = whole.interval(level), "two levels"
        if fixed:
            ends, method = _joined(pieces, b, level), "two levels, betting"
        about = {"evaluations": sum(map(evaluations, (fine, coarse, many))), "se": whole.se, "df": whole.df}
        about["warning"] = (
            "" if fixed else diagnostics.warning(parts[0], REMEDY) or diagnostics.warning(parts[1], REMEDY)
        )
        found = row((whole.estimate, *ends), level=level, method=method, units=len(parts[0]), **about)
        rows.append({"statistic": name, "design": design(fine), **found})
    return pd.DataFrame(rows)


def _rarely_differ(fine: xr.DataArray, coarse: xr.DataArray, name: str) -> bool:
    """Return whether both are events that differ in fewer than 15 units and in less than a quarter of all."""
    tables = [part.sel(statistic=name).transpose("unit", "member").values for part in (fine, coarse)]
    events = all(np.isin(table, (0, 1)).all() for table in tables)
    differ = int((tables[0] != tables[1]).any(1).sum())
    return events and differ < min(diagnostics.RARE, len(tables[0]) / 4)


def _joined(pieces: list[np.ndarray], b: float, level: float) -> tuple[float, float]:
    """Return the interval of two levels from unit means in [0, 1] of fine, coarse and many, see `two_level`."""
    gaps = pieces[0] - pieces[1]
    rest = [(1 - b) * pieces[1], b * pieces[2]]
    low, high = bounded_interval((gaps + 1) / 2, level)
    other = welch_interval(rest, level)
    centre = sum(part.mean() for part in rest)
    below = np.hypot(gaps.mean() - (2 * low - 1), centre - other[0])
    above = np.hypot(2 * high - 1 - gaps.mean(), other[1] - centre)
    estimate = gaps.mean() + centre
    return float(estimate - below), float(estimate + above)


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


def two_costs(fine: xr.DataArray, coarse: xr.DataArray) -> tuple[int, int]:
    """Return the evaluations an image of two levels, refusing a twin that is not coarser or of other noise."""
    dataset.check_same_noise(fine, coarse)
    dear, cheap = (evaluations(table) // (table.sizes["unit"] * table.sizes["member"]) for table in (fine, coarse))
    if cheap >= dear:
        raise ValueError(f"a coarse twin needs fewer evaluations an image than the fine one's {dear}; got {cheap}")
    return dear, cheap
