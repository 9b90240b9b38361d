"""Levels: one estimate from the runs of a dear sampler and of cheaper ones, on common and on other noise."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import xarray as xr

from antinb import checks, dataset
from antinb.analysis import diagnostics
from antinb.analysis.allocation import best_weights
from antinb.analysis.bounded import bounded_interval
from antinb.analysis.estimates import Estimate
from antinb.analysis.intervals import row, welch, welch_interval
from antinb.analysis.statistics import unit_means
from antinb.dataset import check_same_generator, design, evaluations

__all__ = ["levels", "two_level"]

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


@checks.typed
def levels(
    groups: Sequence[Sequence[xr.DataArray]], pilot: Sequence[xr.DataArray], *, level: float = 0.95
) -> pd.DataFrame:
    r"""Return the mean of the finest sampler's statistics from runs of several levels, with intervals.

    A level is a sampler or a surrogate. A group g is a run of some levels on common noise, of which it has unit means
    `y_g`; the groups are independent. Any `sum_g a_g' mean(y_g)` is unbiased if the coefficients of the finest level
    sum to 1 and those of each other level to 0. The best ones are
    `a_g = n_g C_g^-1 R_g Psi^-1 e`, `Psi = sum_g n_g R_g' C_g^-1 R_g`, with the covariance C of the levels, which an
    independent pilot gives, R_g the levels of the group, n_g its images and e the finest level. Then
    `se^2 = sum_g Var(a_g' y_g) / units_g`, df by Welch and Satterthwaite.

    Args:
        groups: for each group the tables `(statistic, unit, member)` of its levels, same design and seed; every group
            has a seed of its own.
        pilot: one table a level, the finest first, of one design and another seed.
        level: of the intervals.

    Returns:
        Rows `statistic, design, estimate, low, high, level, method, units, evaluations, se, df, warning`; `units` are
        those of the groups, such as "20+80", `evaluations` those of the groups and the pilot.

    Raises:
        ValueError: if a table is of no level of the pilot, a level is in no group, tables of a group do not share
            their noise, groups or the pilot do, or a group has fewer than two units.

    Source: Schaden and Ullmann, On multilevel best linear unbiased estimators, SIAM/ASA JUQ 8 (2020), 601-635.
    """
    checks.level(level)
    known = [dataset.measured(part, "statistic", "seed", "design") for part in pilot]
    tables = [[dataset.measured(part, "statistic", "seed", "design") for part in group] for group in groups]
    _check_groups(tables, known)
    places = [[_level_of(part, known) for part in group] for group in tables]
    missing = {*range(len(known))} - {place for group in places for place in group}
    if missing:
        raise ValueError(f"every level is in a group; level {min(missing)} is in none")
    images = np.array([float(group[0].sizes["unit"] * group[0].sizes["member"]) for group in tables])
    rows = []
    for name in known[0]["statistic"].values.tolist():
        covariance = np.atleast_2d(np.cov([unit_means(part, name) for part in known]))
        weights = best_weights(covariance, places, images)
        parts = [
            weight @ np.stack([unit_means(part, name) for part in group])
            for weight, group in zip(weights, tables, strict=True)
        ]
        spent = sum(evaluations(part) for part in [*known, *(part for group in tables for part in group)])
        found = {"statistic": name, "design": design(tables[0][0])}
        rows.append(found | _combined(parts, name, level, "levels", evaluations=spent))
    return pd.DataFrame(rows)


def _check_groups(groups: list[list[xr.DataArray]], pilot: list[xr.DataArray]) -> None:
    """Refuse groups or a pilot whose tables do not share their noise, or that share it with each other."""
    if not pilot or not groups or not all(groups):
        raise ValueError(f"levels need a pilot and groups with tables; got {len(pilot)}, {[len(g) for g in groups]}")
    for group in [*groups, pilot]:
        for part in group[1:]:
            dataset.check_same_noise(group[0], part)
    seeds = [group[0].attrs["seed"] for group in [*groups, pilot]]
    if len({*seeds}) < len(seeds):
        raise ValueError(f"each group and the pilot have a seed of their own; got {', '.join(map(str, seeds))}")


def _level_of(values: xr.DataArray, pilot: list[xr.DataArray]) -> int:
    """Return the place of a table's generator in the pilot."""
    found = [k for k, part in enumerate(pilot) if dataset.generator_of(part) == dataset.generator_of(values)]
    if len(found) != 1:
        raise ValueError(
            f"each table is of one level of the pilot; one of seed {values.attrs['seed']} fits {len(found)}"
        )
    return found[0]


def _combined(parts: list[np.ndarray], name: str, level: float, method: str, **about: object) -> dict[str, object]:
    """Return the row of a sum of independent means of units `(units,)` each."""
    counts = [len(part) for part in parts]
    if min(counts) < 2:
        raise ValueError(f"a group needs at least two units; got {counts}")
    variances = np.array([part.var(ddof=1) / len(part) for part in parts])
    if not variances.sum():
        raise ValueError(f"{name} is constant over units: there is no width to estimate")
    found = Estimate(
        sum(part.mean() for part in parts), variances.sum() ** 0.5, float(welch(variances, np.array(counts)))
    )
    said = next(filter(None, (diagnostics.warning(part, REMEDY) for part in parts if part.any())), "")
    ends = (found.estimate, *found.interval(level))
    about |= {"se": found.se, "df": found.df}
    return row(ends, level=level, method=method, units="+".join(map(str, counts)), warning=said, **about)


def two_costs(fine: xr.DataArray, coarse: xr.DataArray) -> tuple[int, int]:
    """Return the evaluations an image of two levels, refusing a twin that is not coarser or of other noise."""
    dataset.check_same_noise(fine, coarse)
    dear, cheap = (evaluations(table) // (table.sizes["unit"] * table.sizes["member"]) for table in (fine, coarse))
    if cheap >= dear:
        raise ValueError(f"a coarse twin needs fewer evaluations an image than the fine one's {dear}; got {cheap}")
    return dear, cheap
