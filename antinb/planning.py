"""Plans of a budget: a pilot compares the designs, and `run_until` samples until an interval is narrow enough."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from antinb import checks, dataset, noise, workers
from antinb.analysis import diagnostics, estimation
from antinb.analysis.candidates import candidates
from antinb.analysis.candidates import designs as designs
from antinb.analysis.intervals import first_stage, t_quantile, two_stage, two_stage_interval
from antinb.analysis.naming import named
from antinb.analysis.statistics import Statistic, measure, unit_means
from antinb.dataset import evaluations
from antinb.models.generator import Generator
from antinb.noise import Design
from antinb.sampling import sample

__all__ = ["candidates", "plan", "run_until"]

LEAST, MOST = 20, 10**12  # units: for the t quantile to cost little width, and more than a plan can mean
MOST_POINTS = 1024
REMEDY = "begin with more units"


@checks.typed
def plan(
    generator: Generator,
    *asked: Statistic,
    seed: int,
    half_width: float | Sequence[float] | None = None,
    budget: int | None = None,
    coarse: Generator | None = None,
    surrogates: Sequence[Generator] = (),
    condition: int | None = None,
    units: int = 32,
    points: int = 32,
    level: float = 0.95,
    batch: int = 64,
) -> pd.DataFrame:
    r"""Return for each design what it would cost, or how wide its intervals would be, and which one to take.

    The pilot is one run of `noise.sobol(units, points, antithetic=True)`, each part of which is a smaller
    design: its images are independent draws, its `z, -z` pairs, its halves plain Sobol points. From each the
    variance V of a unit mean is taken, pooled over the pilot; with a coarse twin on the same noise, the
    (2, 2) covariance and from it the best use of two levels (`best_allocation`). With surrogates on the same noise,
    each design is planned a second time with what they explain taken out (`candidates`).

    A half-width h needs `N >= 20` units with `t_{N-1} sqrt(V / N) <= h`, as far as the pilot knows V: the width
    to be expected, which `run_until` makes sure of. A budget leaves the evaluations that the pilot has not
    spent. Recommended is the design that needs the fewest evaluations for all half-widths, or whose least
    efficiency over the statistics is highest, among those that the budget gives 20 units.

    Args:
        generator: from `antinb.load`.
        asked: statistics of images, from `antinb.statistics`.
        seed: of the pilot; runs that follow need others.
        half_width: half of the interval's width that is wanted, one number or one for each statistic.
        budget: network evaluations in all, the pilot's included; this or `half_width`.
        coarse: a cheaper twin of the generator, such as `generator.with_(steps=5)`.
        surrogates: of `antinb.surrogates`, one for each 10 units of the pilot at most; what they were fitted to is
            paid from the budget too.
        condition: one class for all units.
        units: units of the pilot, at least 8.
        points: points of a unit of the pilot, a power of 2 from 4 to 1,024.
        level: of the intervals.
        batch: images that the network sees at once.

    Returns:
        Rows `statistic, design, surrogates, levels, efficiency, low, high, warning, odd_share, smooth_share,
        correlation, coefficient, coarse_units, units, half_width, evaluations, pilot_evaluations, recommended`.
        `efficiency` is that of variance against independent draws at equal evaluations, with its jackknife interval
        over the pilot's units, and `warning` says where that is wider than 25%; `smooth_share` the share of an image's
        variance that plain Sobol points remove; `surrogates` how many are used, by `controls.surrogate`;
        `correlation` that of the two levels' unit means; `designs(points)[design](units)` is the design.

    Raises:
        ValueError: unless one of `half_width` and `budget` is given, if the pilot alone spends the budget, no
            design gets 20 units, a statistic is undefined or constant, or the twin is not coarser.
    """
    checks.level(level)
    units, points = checks.integer("the pilot's units", units, 8), checks.integer("points", points, 4, MOST_POINTS)
    named(asked)
    if not asked or (half_width is None) == (budget is None):
        raise ValueError(
            f"a plan needs statistics and either half_width or budget; got {len(asked)}, {half_width}, {budget}"
        )
    run = functools.partial(sample, condition=condition, batch=batch, progress=False)
    pilot = noise.sobol(units, points, antithetic=True)
    levels = [generator] if coarse is None else [generator, coarse]
    tables = [measure(run(model, pilot, seed=seed), *asked) for model in levels]
    cheap = [measure(run(model, pilot, seed=seed), *asked) for model in surrogates]
    spent = sum(map(evaluations, tables)) + dataset.pilots(cheap)
    table = candidates(*tables, surrogates=cheap, level=level)
    left = None if budget is None else checks.integer("budget", budget, 1, 10**15) - spent
    if left is not None and left <= 0:
        raise ValueError(f"the pilot alone costs {spent} evaluations; got a budget of {budget}")
    wanted = None if half_width is None else _aims(half_width, len(asked))
    named_aims = None if wanted is None else dict(zip(tables[0]["statistic"].values, wanted, strict=True))
    table = _size(table, named_aims, left, level).assign(pilot_evaluations=spent)
    return _recommend(table, budget).drop(columns=["variance", "cost", "unit_cost", "coarse_cost"])


@checks.typed
def run_until(
    generator: Generator,
    first: Design,
    *asked: Statistic,
    half_width: float | Sequence[float],
    seed: int,
    most: int | None = None,
    condition: int | None = None,
    store: str | Path | None = None,
    level: float = 0.95,
    batch: int = 64,
    client: workers.Client = None,
) -> pd.DataFrame:
    r"""Sample a design until the interval of every statistic is narrow enough.

    The first stage has n units, with standard deviations `s_n`, and is lengthened, at most fivefold, while they are
    skewed. The run is extended to `N` units until both ends of the interval are within the half-width wanted of the
    mean. The interval is `mean -+ max(t_{n-1} s_n, t_{N-1} s_N) / sqrt(N)`, and reaches out to Hall's where that is
    longer (`intervals.two_stage_interval`). Two stages usually suffice if the units are not skewed.

    Args:
        generator: from `antinb.load`.
        first: the design with the units of the first stage, at least 20.
        asked: statistics of images.
        half_width: half of the width that is wanted, one number or one for each statistic.
        seed: of the run.
        most: network evaluations that it may cost; None is no limit.
        condition: one class for all units.
        store: path of the run, new or one to go on with; None keeps no images.
        level: of the intervals.
        batch: images that the network sees at once.
        client: as for `antinb.sample`.

    Returns:
        Rows of `estimation.interval` without `dropped`.

    Raises:
        ValueError: as `estimation.interval`, for a half-width that is not positive, fewer than 20 units, or if
            more than `most` evaluations are needed: what was sampled stays in the store.
    """
    checks.level(level)
    checks.integer("the units of the first stage", first.units, LEAST)
    named(asked)
    aims = _aims(half_width, len(asked))
    if most is not None:
        checks.integer("most", most, 1, 2**63)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "run.zarr" if store is None else store
        options = {"condition": condition, "store": place, "batch": batch, "progress": False, "client": client}
        units, needed = 0, max(first.units, dataset.stored_units(place))
        while needed > units:
            units = needed
            cost = units * first.members * generator.evaluations
            if most is not None and cost > most:
                raise ValueError(f"the half-width needs {cost} evaluations, {units} units; most is {most}")
            found = measure(sample(generator, replace(first, units=units), seed=seed, **options), *asked)
            rows = estimation.interval(found, level=level)
            means = [unit_means(found, name) for name in rows["statistic"]]
            stages = [first_stage(part, first.units) for part in means]
            needed = max(units, *stages)
            if needed > units:
                continue
            ends = [two_stage_interval(part, stage, level) for part, stage in zip(means, stages, strict=True)]
            low, high = np.transpose(ends)
            reach = np.maximum(rows["estimate"] - low, high - rows["estimate"])
            needed = int(np.ceil(units * min(max(reach / aims), 1e9) ** 2))
    df = np.array(stages) - 1
    halves = [two_stage(part, stage, level) for part, stage in zip(means, stages, strict=True)]
    said = [diagnostics.warning(part, REMEDY, bound=diagnostics.VERY_SKEWED) for part in means]
    more = {"se": np.array(halves) / t_quantile(level, df), "df": df, "warning": said}
    return rows.assign(low=low, high=high, method="two stages", **more).drop(columns="dropped")


def _aims(half_width: float | Sequence[float], count: int) -> list[float]:
    given: Sequence[Any] = half_width if isinstance(half_width, (list, tuple, np.ndarray)) else [half_width]
    try:
        aims = [checks.number("half_width", aim, 1e-300, 1e300) for aim in given]
    except ValueError:
        aims = []
    if len(aims) not in {1, count}:
        found = checks.quoted(half_width)
        raise ValueError(f"half_width must be a positive number, or one for each of {count}; got {found}")
    return aims * (count // len(aims))


def _size(table: pd.DataFrame, aims: dict[str, float] | None, left: int | None, level: float) -> pd.DataFrame:
    """Return the table with `units`, `coarse_units`, `half_width` and `evaluations` of each row."""
    quantile = functools.partial(t_quantile, level)
    variance, cost = table["variance"].to_numpy(float), table["cost"].to_numpy(float)
    if aims is not None:
        aim = np.array([aims[name] for name in table["statistic"]])
        wanted = np.ceil(quantile(np.inf) ** 2 * (variance**0.5 / aim) ** 2)
        if not (wanted <= MOST).all():
            rule = f"half_width must need at most {MOST} units"
            raise ValueError(f"{rule}; got {checks.quoted(list(aims.values()))}, {wanted.max():.3g} units")
        units = np.maximum(LEAST, wanted).astype(int)
        while (short := quantile(units - 1) ** 2 * variance / units > aim**2).any():
            units = units + short
    else:
        units = (left // cost).astype(int)
    half = quantile(np.maximum(units - 1, 1)) * (variance / np.maximum(units, 1)) ** 0.5
    coarse = np.ceil(table["coarse_units"] * units)
    spent = np.ceil(units * cost).astype(int)
    return table.assign(units=units, coarse_units=coarse, half_width=half, evaluations=spent)


def _recommend(table: pd.DataFrame, budget: int | None) -> pd.DataFrame:
    """Return the table with `recommended`, true in the rows of the best design, surrogates and number of levels."""
    choices = list(zip(table["design"], table["surrogates"], table["levels"], strict=True))
    units, efficiency = table["units"].to_numpy(), table["efficiency"].to_numpy(float)
    parts = [table[name].fillna(0).to_numpy(float) for name in ("unit_cost", "coarse_units", "coarse_cost")]
    worst = {}
    for choice in dict.fromkeys(choices):
        rows = np.array([other == choice for other in choices])
        if budget is None:
            unit_cost, coarse_units, coarse_cost = (part[rows].max() for part in parts)
            worst[choice] = units[rows].max() * unit_cost + coarse_units * coarse_cost
        elif units[rows].min() >= LEAST:
            worst[choice] = -efficiency[rows].min()
    if not worst:
        raise ValueError(f"the budget gives no design {LEAST} units beyond the pilot; got {budget}")
    best = min(worst, key=worst.__getitem__)
    return table.assign(recommended=[choice == best for choice in choices])
