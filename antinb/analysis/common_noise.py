"""Two models on the same noise: the shift of every statistic, what common noise is worth, and a verdict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
import pandas as pd
import xarray as xr

from antinb import checks, dataset
from antinb.analysis import diagnostics, verdicts
from antinb.analysis.bounded import bounded_interval
from antinb.analysis.estimates import Estimate, stratified
from antinb.analysis.intervals import row, welch
from antinb.analysis.resampling import bootstrap_t
from antinb.analysis.statistics import Statistic, measure

__all__ = ["summary"]

SAMPLERS = ("ddim", "dpmsolver++", "euler", "heun")  # that draw no noise of their own, if eta is 0
SIGNS = np.array([-1.0, 1.0])
REMEDY = "take more units"


@checks.typed
def summary(
    run_a: xr.Dataset,
    run_b: xr.Dataset,
    statistics: Sequence[Statistic],
    margins: Mapping[str, float] | None = None,
    *,
    level: float = 0.95,
    looks: int = 1,
) -> pd.DataFrame:
    r"""Return how the statistics of model b differ from those of model a, which started from the same noise.

    The unit is the difference `D_u` of the two unit means, its interval that of `estimation.interval`. The verdict is
    *equal* if `|E D| < margin` is shown by two one-sided tests (TOST), *different* if `|E D| > margin` is, the margin
    being 0 where none is given, and otherwise *undecided*. A test must pass as a t test and as Hall's, which allows for
    skewed units. Over the statistics the p-values are Holm's. An event in whose differences
    fewer than 15 units differ from the others has the interval and the tests of
    `intervals.bounded_p_value`, which hold for any number of units. Models whose noise has another shape cannot share
    it: their runs need seeds of their own, are compared as independent ones (Welch), and `shared` says "nothing".

    `efficiency` is the variance that as many independent images of both models would give, over that of the
    difference: `(Var S_a + Var S_b) / (M Var D_u)` with M members a unit, its interval a studentized bootstrap.

    Args:
        run_a: any design.
        run_b: of the same design, seed, units and conditions, or of another shape of noise and another seed.
        statistics: as for `statistics.measure`.
        margins: by the name of a statistic, how large a difference does not matter; to be fixed beforehand.
        level: of the intervals; the errors of the verdicts are `1 - level`.
        looks: at how many sizes of the runs the verdicts are asked for, as a run grows: each look is given
            `(1 - level) / looks`, so that the errors and the intervals hold over all looks (Bonferroni).

    Returns:
        Rows `statistic, design, a, b, estimate, low, high, level, method, units, members, evaluations, in_sd,
        correlation, efficiency, efficiency_low, efficiency_high, shared, margin, p_equal, p_different, verdict,
        units_needed, dropped, skewness, largest_share, warning`: the two means; the mean of b less that of a; this in
        standard deviations of one image; the correlation of both statistics over images; "all", "start" (the noise of
        the steps differs) or "nothing"; how many units a decision needs with a probability of 80%. Units in which a
        statistic is NaN in one of the models are left out and counted in `dropped`.

    Raises:
        ValueError: as `statistics.measure`; if the runs do not share their noise, naming what differs; for fewer than
            two defined units, a margin that is not positive or of another statistic, or an argument out of its range.

    Source: Schuirmann, J. Pharmacokinetics and Biopharmaceutics 15 (1987), 657-680, for TOST.

    Examples:
        >>> from antinb import dataset, noise, statistics
        >>> about = {"design": {"name": "antithetic"}, "seed": 0, "evaluations": 1}
        >>> images = noise.antithetic(50).draw((1, 8, 8), seed=0) / 3
        >>> runs = [dataset.build({"image": part}, about) for part in (images, images + 0.01)]
        >>> table = summary(*runs, [statistics.brightness], {"brightness": 0.02})
        >>> table["estimate"].round(4).item(), table["verdict"].item()
        (0.005, 'equal')
    """
    checks.level(level)
    looks, shared = checks.integer("looks", looks, 1), common(run_a, run_b)
    asked = list(statistics) if isinstance(statistics, (list, tuple)) else [cast(Statistic, statistics)]
    first, second = (measure(run, *asked) for run in (run_a, run_b))
    names = first["statistic"].values.tolist()
    margins = verdicts.checked(margins, names)
    error, spent, rows = (1 - level) / looks, sum(map(dataset.evaluations, (first, second))), []
    for name in names:
        tables, conditions, dropped = _defined(first.sel(statistic=name), second.sel(statistic=name), shared)
        found, ends, tests = _tested(tables, conditions, name, shared, margins[name], 1 - error)
        needed = verdicts.units_needed(found, min(map(len, tables)), margins[name], error / len(names))
        rest = [part - _means(part, kinds)[:, None] for part, kinds in zip(tables, conditions, strict=True)]
        spread = np.mean([part.var() for part in rest]) ** 0.5
        about: dict[str, Any] = {"members": first.sizes["member"], "evaluations": spent}
        about |= {"in_sd": found.estimate / spread if spread else np.nan, **_gain(rest, shared, level)}
        about |= {"shared": shared, "margin": margins[name] or np.nan, **tests, "verdict": "", "units_needed": needed}
        gaps = (rest[1] - rest[0]).mean(1) if shared != "nothing" else np.r_[rest[0].mean(1), rest[1].mean(1)]
        about |= {"dropped": dropped, **diagnostics.shape(gaps)}
        trusted = about["method"] == "bounded" or not gaps.any()
        about["warning"] = "" if trusted else diagnostics.warning(gaps, REMEDY)
        units = len(tables[0]) if shared != "nothing" else "+".join(str(len(table)) for table in tables)
        means = {"a": tables[0].mean(), "b": tables[1].mean()}
        numbers = row((found.estimate, *ends), level=level, units=units, **about)
        rows.append({"statistic": name, "design": dataset.design(first), **means, **numbers})
    return verdicts.decided(pd.DataFrame(rows), level, looks)


def common(run_a: xr.Dataset, run_b: xr.Dataset) -> str:
    """Return which noise two runs share: "all", only that of the "start", or "nothing", since its shape differs.

    Raises:
        ValueError: if they could share it and do not, naming what differs, or do not say what their noise was.
    """
    images = [dataset.images(run) for run in (run_a, run_b)]
    told = [dataset.config(run) for run in (run_a, run_b)]
    for which, config in zip("ab", told, strict=True):
        for key in ("design", "seed"):
            if key not in config:
                raise ValueError(f"runs are compared that say what their noise was; run {which} has no {key!r}")
    shapes = [config.get("shape", list(part.shape[2:])) for config, part in zip(told, images, strict=True)]
    if shapes[0] != shapes[1]:
        if told[0]["seed"] == told[1]["seed"]:
            found = f"{shapes[0]} and {shapes[1]}, seed {told[0]['seed']}"
            raise ValueError(f"noises of two shapes cannot be shared, and need two seeds; got {found}")
        return "nothing"
    for key in ("design", "seed", "condition"):
        if told[0].get(key) != told[1].get(key):
            found = f"their {key} is {checks.quoted(told[0].get(key))} and {checks.quoted(told[1].get(key))}"
            raise ValueError(f"two models are compared on the same noise; {found}")
    dataset.same_units(*images)
    if "condition" in images[0].coords and not images[0]["condition"].equals(images[1]["condition"]):
        raise ValueError("two models are compared on the same conditions; those of their units differ")
    steps = [tuple(config.get(key) for key in ("scheduler", "eta", "steps")) for config in told]
    drawn = [config.get("scheduler", "ddim") not in SAMPLERS or bool(config.get("eta")) for config in told]
    return "start" if any(drawn) and steps[0] != steps[1] else "all"


def _defined(first: xr.DataArray, second: xr.DataArray, shared: str) -> tuple[list[np.ndarray], list[np.ndarray], int]:
    """Return the values `(unit, member)` of both models, the conditions of each, and how many units were dropped."""
    tables = [part.transpose("unit", "member").values for part in (first, second)]
    labels = [
        part["condition"].values if "condition" in part.coords else np.zeros(len(table), int)
        for part, table in zip((first, second), tables, strict=True)
    ]
    kept = [np.isfinite(table).all(1) for table in tables]
    if shared != "nothing":
        kept = [kept[0] & kept[1]] * 2
    dropped = max(int((~part).sum()) for part in kept)
    if min(part.sum() for part in kept) < 2:
        name, found = first["statistic"].item(), min(int(part.sum()) for part in kept)
        raise ValueError(f"a comparison needs at least two units with both values; {name} has {found}")
    cut = [[part[mask] for part, mask in zip(parts, kept, strict=True)] for parts in (tables, labels)]
    return cut[0], cut[1], dropped


def _tested(
    tables: list[np.ndarray], conditions: list[np.ndarray], name: str, shared: str, margin: float, level: float
) -> tuple[Estimate, tuple[float, float], dict[str, Any]]:
    """Return the estimate, its interval, and method and p-values."""
    if shared == "nothing":
        a, b = (
            stratified(table.mean(1), kinds, name, constant=True)
            for table, kinds in zip(tables, conditions, strict=True)
        )
        variances = np.array([a.se**2, b.se**2])
        freedom = float(welch(variances if variances.any() else np.ones(2), np.array([a.df, b.df]) + 1))
        found = Estimate(b.estimate - a.estimate, float(variances.sum() ** 0.5), freedom)
        return found, found.interval(level), {"method": "Welch over units"} | verdicts.p_values(found, margin)
    gaps = (tables[1] - tables[0]).mean(1)
    found = stratified(gaps, conditions[0], name, constant=True)
    event = all(np.isin(table, (0, 1)).all() for table in tables)
    if event and len(gaps) - np.unique(gaps, return_counts=True)[1].max() < diagnostics.RARE:
        low, high = bounded_interval((gaps + 1) / 2, level)
        return found, (2 * low - 1, 2 * high - 1), {"method": "bounded"} | verdicts.bounded_p_values(gaps, margin)
    skewness = float(diagnostics.skewness(gaps - _means(gaps, conditions[0]))) / len(gaps) ** 0.5
    return found, found.interval(level), {"method": "t over units"} | verdicts.p_values(found, margin, skewness)


def _means(table: np.ndarray, conditions: np.ndarray) -> np.ndarray:
    """Return for each unit the mean of its condition."""
    kinds, place = np.unique(conditions, return_inverse=True)
    return np.array([table[conditions == kind].mean() for kind in kinds])[place]


def _gain(rest: list[np.ndarray], shared: str, level: float) -> dict[str, float]:
    """Return the correlation over images and the efficiency with its interval, NaN where they are undefined.

    A sample of the bootstrap is `(unit, 1 + models)`: the mean square of an image by the number of members, and the
    unit means. Models that share noise make one sample, others two.
    """
    names = "correlation", "efficiency", "efficiency_low", "efficiency_high"
    found: dict[str, float] = dict.fromkeys(names, np.nan)
    if shared != "nothing" and all(part.any() for part in rest):
        found["correlation"] = float((rest[0] * rest[1]).sum() / np.prod([(part**2).sum() ** 0.5 for part in rest]))
    samples = []
    for group in [[part] for part in rest] if shared == "nothing" else [rest]:
        square = sum((part**2).sum(1) * part.size / (part.size - 1) / part.shape[1] ** 2 for part in group)
        samples.append(np.stack([square, *(part.mean(1) for part in group)], 1))
    if min(map(len, samples)) >= 8 and np.isfinite(_log_gain(*samples)[0]):
        numbers = np.exp(bootstrap_t(_log_gain, *samples, level=level))
        found |= dict(zip(names[1:], map(float, numbers), strict=True))
    return found


def _log_gain(*samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the log ratio of the variances with independent images and with these units, and its standard error."""
    plain, own, parts = 0.0, 0.0, []
    for sample in samples:
        squares, means = sample[..., 0], sample[..., 1:]
        units, centre = sample.shape[-2], means.mean(-2, keepdims=True)
        gaps = ((means - centre) @ SIGNS[-means.shape[-1] :]) ** 2
        plain, own = plain + squares.mean(-1) / units, own + gaps.mean(-1) / (units - 1)
        parts.append((squares / units, gaps / units))
    with np.errstate(divide="ignore", invalid="ignore"):
        influence = [(s / np.asarray(plain)[..., None] - d / np.asarray(own)[..., None]) for s, d in parts]
        se = np.sum([part.var(-1) / part.shape[-1] for part in influence], 0) ** 0.5
        return np.log(plain / own), se
