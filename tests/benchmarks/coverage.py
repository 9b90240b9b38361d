"""How often nominal 95% intervals cover the truth, setting by setting, and how often they warn that they may not.

Run `python tests/benchmarks/coverage.py`; it prints a table, and exits with 1 if intervals that do not warn cover too
little: if more than 5% of the runs of a setting have no warning, and of these less than 92% cover. Settings in which
that is known to happen, because the units do not show what the law holds, say so instead.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"

import json
from collections.abc import Callable
from dataclasses import dataclass

import click
import numpy as np
import pandas as pd
import xarray as xr
from scipy import stats

import antinb
from antinb import (
    controls,
    correlation,
    dataset,
    estimation,
    exact,
    intervals,
    noise,
    planning,
    statistics,
    surrogates,
    symmetry,
    zoo,
)
from antinb.analysis import diagnostics
from antinb.models import diffusion

LEVEL, MARGIN, UNWARNED, STEPS = 0.95, 0.03, 0.05, 3
UNSEEN = "a third of the samples hold no outlier and are samples of the normal law: no rule can tell"

Experiment = Callable[[np.random.Generator], pd.DataFrame]
Units = Callable[[np.random.Generator, int], np.ndarray]


@dataclass(frozen=True)
class Setting:
    """One setting: rows of results by name, their truths, and the names that are known to cover too little.

    Attributes:
        name: what is done.
        experiment: returns a table of results, a row for each of the truths.
        truths: by the name of the row.
        known: the reason why the setting covers too little without a warning; "" if it does not.
    """

    name: str
    experiment: Experiment
    truths: dict[str, float]
    known: str = ""


def values(table: np.ndarray, seed: int = 0, design: str = "antithetic", cost: int = 1) -> xr.DataArray:
    """Return values `(unit, member)` of a statistic as `statistics.measure` does."""
    about = {"design": json.dumps({"name": design}), "seed": str(seed), "evaluations": str(cost)}
    return xr.DataArray(table[None], {"statistic": ["s"]}, ["statistic", "unit", "member"], attrs=about)


def normal(rng: np.random.Generator, size: int) -> np.ndarray:
    """Return units of mean 0."""
    return rng.standard_normal(size)


def chi_squared(rng: np.random.Generator, size: int) -> np.ndarray:
    """Return pair means whose odd part has cancelled, of mean 0."""
    return rng.standard_normal(size) ** 2 - 1


def lognormal(rng: np.random.Generator, size: int) -> np.ndarray:
    """Return units of mean 0 and skewness 6."""
    return np.exp(rng.standard_normal(size)) - np.exp(0.5)


def outliers(rng: np.random.Generator, size: int) -> np.ndarray:
    """Return units of mean 0 of which 1% are outliers by 20 standard deviations, on one side."""
    return rng.standard_normal(size) + 20 * (rng.random(size) < 0.01) - 0.2


def means(name: str, law: Units, units: int, method: str = "t", known: str = "") -> Setting:
    """Return the interval of a mean of units of mean 0."""
    return Setting(
        f"{method}, {name}, {units} units",
        lambda rng: estimation.interval(values(law(rng, units)[:, None]), method=method),
        {"": 0.0},
        known,
    )


def rare_event(method: str) -> Setting:
    """Return the interval of the probability of an event, 0.01, from 400 pairs."""
    limit = stats.norm.isf(0.01)

    def experiment(rng: np.random.Generator) -> pd.DataFrame:
        z = rng.standard_normal((400, 1)) * [1, -1]
        table = values((z > limit).astype(float))
        if table.std() == 0 and method == "t":  # refused: it counts as warned
            return pd.DataFrame({"low": [0.0], "high": [0.0], "warning": ["constant"]})
        return estimation.interval(table, method=method)

    return Setting(f"{method}, event of probability 0.01, 400 pairs", experiment, {"": 0.01})


def bounded_outliers(rng: np.random.Generator) -> pd.DataFrame:
    """Return the betting interval where 1% of the units are 1 and the rest lie about 0.3."""
    table = np.where(rng.random(100) < 0.01, 1.0, rng.beta(30, 70, 100))
    return estimation.interval(values(table[:, None]), method="bounded")


def two_level(coefficient: float, units: int = 50) -> Setting:
    """Return two levels of an event of probability 0.3 that the coarse sampler misses in 2% of the units."""

    def events(rng: np.random.Generator, size: int) -> tuple[np.ndarray, np.ndarray]:
        fine = rng.random((size, 1)) < 0.3
        return fine.astype(float), (fine & (rng.random((size, 1)) >= 0.02 / 0.3)).astype(float)

    def experiment(rng: np.random.Generator) -> pd.DataFrame:
        fine, coarse = events(rng, units)
        arms = values(fine, 0, "iid", 20), values(coarse, 0, "iid", 5), values(events(rng, 500)[1], 1, "iid", 5)
        return controls.two_level(*arms, coefficient=coefficient)

    name = f"two levels, b = {coefficient:g}, event with 2% one-sided disagreement, {units} fine units"
    return Setting(name, experiment, {"": 0.3})


def two_level_normal(rng: np.random.Generator) -> pd.DataFrame:
    """Return two levels of normal values of mean 0."""
    fine, many = rng.standard_normal((50, 1)), rng.standard_normal((500, 1))
    coarse = fine + 0.3 * rng.standard_normal((50, 1))
    arms = values(fine, 0, "iid", 20), values(coarse, 0, "iid", 5), values(1.04**0.5 * many, 1, "iid", 5)
    return controls.two_level(*arms)


def directions(count: int) -> Setting:
    """Return the summary of scores whose directions are skewed, the mean of 4 coordinates being 0.95."""

    def experiment(rng: np.random.Generator) -> pd.DataFrame:
        level = rng.beta(0.95, 0.05, (count, 1, 1))
        scores = 1 - (1 - level) * rng.beta(20, 1, (count, 1, 4)) * 21 / 20
        dims, about = ("direction", "timestep", "coordinate"), {"evaluations": "1"}
        measures = {"affine_antisymmetry": scores.clip(0, 1), "nonlinear_odd_share": np.full_like(scores, np.nan)}
        data = xr.Dataset({name: (dims, part) for name, part in measures.items()}, {"timestep": [500]}, attrs=about)
        return symmetry.summary(data).query("quantity == 'mean' and timestep == 500").head(1)

    rng = np.random.default_rng(0)
    level, inner = rng.beta(0.95, 0.05, (10**6, 1)), rng.beta(20, 1, (10**6, 4))
    return Setting(
        f"symmetry.summary, mean, {count} directions",
        experiment,
        {"": float((1 - (1 - level) * inner * 21 / 20).clip(0, 1).mean())},
    )


def efficiency(name: str, even: Units, variance: float) -> Setting:
    """Return the efficiency of 64 pairs, whose odd part is normal with variance 4 and whose even part is given."""

    def experiment(rng: np.random.Generator) -> pd.DataFrame:
        odd = 2 * rng.standard_normal((64, 1)) * [1, -1]
        plain = even(rng, 128) + 2 * rng.standard_normal(128)
        found = estimation.compare(values(even(rng, 64)[:, None] + odd), values(plain[:, None], 1, "iid"))
        return found[found["quantity"] == "efficiency"]

    return Setting(f"efficiency, {name} even part, 64 pairs", experiment, {"": (variance + 4) / (2 * variance)})


def two_stages(name: str, law: Units, half_width: float) -> Setting:
    """Return the interval of `planning.run_until` from 20 units, without the sampling."""

    def experiment(rng: np.random.Generator) -> pd.DataFrame:
        found, low, high = intervals.two_stages(law(rng, 20), lambda size: law(rng, size), half_width, LEVEL)
        warning = diagnostics.warning(found, planning.REMEDY, bound=diagnostics.VERY_SKEWED)
        return pd.DataFrame({"low": [low], "high": [high], "warning": [warning]})

    return Setting(f"run_until from 20 units, {name}, half-width {half_width:g}", experiment, {"": 0.0})


def regression(name: str, law: Units, method: str = "t") -> Setting:
    """Return the interval of values less their regression on two features, of 20 units."""

    def experiment(rng: np.random.Generator) -> pd.DataFrame:
        features = rng.standard_normal((2, 20, 1))
        table = values((features.sum(0)[:, 0] + law(rng, 20))[:, None])
        known = xr.DataArray(features, {"feature": ["a", "b"]}, ["feature", "unit", "member"], attrs=table.attrs)
        return estimation.interval(controls.regression(table, known), method=method)

    return Setting(f"{method}, regression on 2 features, 20 units, {name} rest", experiment, {"": 0.0})


def surrogate(name: str, law: Units, units: int, method: str = "t") -> Setting:
    """Return the interval of values less a surrogate, whose expectation is that of four times as many units."""

    def experiment(rng: np.random.Generator) -> pd.DataFrame:
        cheap = law(rng, units)
        tables = [values(part[:, None]) for part in (cheap + 0.4 * law(rng, units), cheap)]
        less = controls.surrogate(*tables, values(law(rng, 4 * units)[:, None], seed=1))
        return estimation.interval(less, method=method)

    return Setting(f"{method}, surrogate, {units} units, {name}", experiment, {"": 0.0})


def learned(units: int) -> Setting:
    """Return the interval of pairs of an event less a control that is learned from them."""

    def experiment(rng: np.random.Generator) -> pd.DataFrame:
        design, seed = noise.antithetic(units), int(rng.integers(2**40))
        c = design.draw((1, 2, 2), seed=seed).reshape(units, 2, 4).astype(float)
        table = values((c[..., 0] + 0.3 * c.sum(-1) ** 2 > 1).astype(float), seed)
        table = table.assign_attrs(design=json.dumps(design.describe()))
        return estimation.interval(
            controls.surrogate(table, *controls.learned(table, design, (1, 2, 2), seed=seed + 1))
        )

    grid = np.random.default_rng(0).standard_normal((4 * 10**6, 4))
    truth = float((grid[:, 0] + 0.3 * grid.sum(1) ** 2 > 1).mean())
    return Setting(f"t, learned control of an event, {units} pairs", experiment, {"": truth})


def pooled_truth(pools: list[np.ndarray]) -> tuple[float, float]:
    """Return pooled ratio and mean of single correlations of units that are drawn from pools, each about its mean."""
    sums, single = np.zeros(2), []
    for pool in pools:
        flat = pool.reshape(*pool.shape[:2], -1).astype(float)
        flat = flat - flat.mean((0, 1))
        flat -= flat.mean(-1, keepdims=True)
        first, second = np.triu_indices(flat.shape[1], 1)
        products, lengths = flat @ flat.swapaxes(1, 2), np.linalg.norm(flat, axis=-1)
        crossed = products[:, first, second]
        sums += crossed.mean(), (lengths**2).mean()
        single.append((crossed / lengths[:, first] / lengths[:, second]).mean())
    return float(sums[0] / sums[1]), float(np.mean(single))


def correlations(name: str, pools: list[np.ndarray], units: int) -> Setting:
    """Return the centred correlations of units drawn from one pool or, as many a class, from several."""
    condition = np.repeat(np.arange(len(pools)), units) if len(pools) > 1 else None

    def experiment(rng: np.random.Generator) -> pd.DataFrame:
        images = np.concatenate([pool[rng.integers(len(pool), size=units)] for pool in pools])
        run = dataset.build({"image": images}, {"evaluations": 1}, condition=condition)
        table = correlation.summary(run).query("centred").set_index("pairs")
        mean = table.loc[["PN"]].assign(low=table["mean_low"], high=table["mean_high"])
        return pd.concat([table.loc[["PN"]], mean, table.loc[["RR"]]])

    pooled, single = pooled_truth(pools)
    return Setting(f"centred, {name}", experiment, {"PN": pooled, "PN, mean of singles": single, "RR": 0.0})


def pool(generator: diffusion.Diffusion, design: noise.Design) -> np.ndarray:
    """Return images of a mixture, averaged over squares of 4 by 4 pixels."""
    images = antinb.sample(generator, design, seed=0, batch=512, progress=False)["image"].values
    parts = images.reshape(*images.shape[:3], images.shape[3] // 4, 4, images.shape[4] // 4, 4)
    return parts.mean((-3, -1))


def mixtures() -> list[Setting]:
    """Return the correlations on the exact mixtures; a class of ten is a mixture of two of the components."""
    fashion, cifar = (antinb.load(name, steps=STEPS) for name in ("fashion-mixture", "cifar10-mixture"))
    pairs, known, classes = pool(fashion, noise.antithetic(2000)), zoo.mixture("fashion-mixture"), []
    for k in range(10):
        part = [k, (k + 5) % len(known.weights)]
        tensors = (known.weights, known.means, known.factors, known.variances)
        mixture = exact.Mixture(*(tensor[part].float() for tensor in tensors))
        generator = diffusion.from_mixture(mixture, fashion.shape, fashion.config).with_(steps=STEPS)
        classes.append(pool(generator, noise.antithetic(300)))
    return [
        correlations("10 classes of 24 pairs", classes, 24),
        correlations("64 pairs", [pairs], 64),
        correlations("128 pairs", [pairs], 128),
        correlations("64 pairs, CIFAR-10", [pool(cifar, noise.antithetic(1000))], 64),
        correlations("64 units of simplex(4)", [pool(fashion, noise.simplex(1000, 4))], 64),
        correlations("32 units of sobol(8)", [pool(fashion, noise.sobol(500, 8))], 32),
    ]


def settings() -> list[Setting]:
    """Return the settings of intervals of means, of events, of scores and of efficiencies."""

    def bilinear(rng: np.random.Generator, size: int) -> np.ndarray:
        return rng.standard_normal(size) * rng.standard_normal(size)

    def heavy(rng: np.random.Generator, size: int) -> np.ndarray:
        return np.exp(np.abs(rng.standard_normal(size)))

    def student(rng: np.random.Generator, size: int) -> np.ndarray:
        return rng.standard_t(3, size)

    moments = [2 * np.exp(k**2 / 2) * stats.norm.cdf(k) for k in (1, 2)]
    return [
        means("normal", normal, 20),
        means("normal", normal, 100),
        means("normal", normal, 20, "skew"),
        means("uniform", lambda rng, size: rng.random(size) - 0.5, 20),
        means("chi-squared", chi_squared, 20),
        means("chi-squared", chi_squared, 20, "skew"),
        means("chi-squared", chi_squared, 200),
        means("lognormal", lognormal, 20),
        means("lognormal", lognormal, 20, "skew"),
        means("lognormal", lognormal, 50, "skew"),
        means("1% outliers", outliers, 100, known=UNSEEN),
        means("1% outliers", outliers, 100, "skew", known=UNSEEN),
        Setting("bounded, 1% outliers, 100 units", bounded_outliers, {"": 0.3 * 0.99 + 0.01}),
        rare_event("t"),
        rare_event("bounded"),
        two_level(1.0),
        two_level(0.8),
        Setting("two levels, normal, 50 fine units", two_level_normal, {"": 0.0}),
        directions(8),
        directions(16),
        directions(40),
        efficiency("normal", normal, 1.0),
        efficiency("chi-squared", chi_squared, 2.0),
        efficiency("bilinear", bilinear, 1.0),
        efficiency("heavy", heavy, moments[1] - moments[0] ** 2),
        efficiency("t3", student, 3.0),
        two_stages("normal", normal, 0.25),
        two_stages("chi-squared", chi_squared, 0.4),
        two_stages("lognormal", lognormal, 0.5),
        regression("normal", normal),
        regression("lognormal", lognormal),
        regression("lognormal", lognormal, "skew"),
    ]


def on_mixture(name: str) -> list[Setting]:
    """Return what is left of a mixture's units of 16 points by a surrogate, by what is learned from it, and by levels.

    The pool is the whole law: its mean is the truth, and other draws from it are the long runs of the surrogate.
    """
    model, design = antinb.load(name, steps=STEPS), noise.sobol(1500, 16)
    cheap = surrogates.gaussian(model, zoo.mixture(name))
    asked = [
        statistics.brightness,
        statistics.event(statistics.brightness, above=0.35 if name == "fashion-mixture" else 0.6),
    ]
    fine, coarse, near = (
        statistics.measure(antinb.sample(one, design, seed=0, batch=512, progress=False), *asked)
        for one in (model, model.with_(steps=2), cheap)
    )
    truths = dict(zip(fine["statistic"].values.tolist(), fine.mean(("unit", "member")).values, strict=True))
    pilot = [part.isel(unit=slice(60)).assign_attrs(seed="3") for part in (fine, coarse)]

    def drawn(rng: np.random.Generator, units: int, *tables: xr.DataArray) -> list[xr.DataArray]:
        part = rng.integers(tables[0].sizes["unit"], size=units)
        return [table.isel(unit=part).assign_coords(unit=np.arange(units)) for table in tables]

    def controlled(units: int, *, more: bool) -> Experiment:
        def experiment(rng: np.random.Generator) -> pd.DataFrame:
            long = drawn(rng, 400, near)[0].assign_attrs(seed="1")
            return estimation.interval(controls.surrogate(*drawn(rng, units, fine, near), long, learned=more))

        return experiment

    def levels(units: int) -> Experiment:
        def experiment(rng: np.random.Generator) -> pd.DataFrame:
            many = drawn(rng, 3 * units, coarse)[0].assign_attrs(seed="2")
            return controls.levels([drawn(rng, units, fine, coarse), [many]], pilot)

        return experiment

    found = []
    for units in (20, 100):
        about = f"{units} units of 16 points, {name}"
        found.append(Setting(f"t, surrogate, {about}", controlled(units, more=False), truths))
        found.append(Setting(f"t, surrogate, learned too, {about}", controlled(units, more=True), truths))
        found.append(Setting(f"levels, {about}", levels(units), truths))
    return found


def controlled() -> list[Setting]:
    """Return the settings of surrogates, of learned controls and of levels."""
    return [
        *(surrogate("normal", normal, units) for units in (20, 100)),
        *(surrogate("chi-squared", chi_squared, units, method) for units in (20, 100) for method in ("t", "skew")),
        *(learned(units) for units in (20, 100)),
        *on_mixture("fashion-mixture"),
        *on_mixture("cifar10-mixture"),
    ]


PARTS = {"correlations": mixtures, "intervals": settings, "controls": controlled}


def table(every: list[Setting], repetitions: int) -> pd.DataFrame:
    """Return the rows `setting, nominal, coverage, low, high, warned, unwarned_coverage, verdict`."""
    rows = []
    for number, setting in enumerate(every):
        covered, warned = np.empty((2, repetitions, len(setting.truths)), bool)
        truths = np.array(list(setting.truths.values()))
        for repetition in range(repetitions):
            found = setting.experiment(np.random.default_rng([number, repetition]))
            covered[repetition] = (found["low"] <= truths) & (truths <= found["high"])
            warned[repetition] = found["warning"] != ""
        for place, name in enumerate(setting.truths):
            hits, said = covered[:, place], warned[:, place]
            low, high = stats.binomtest(int(hits.sum()), repetitions).proportion_ci(0.95, "exact")
            unwarned = hits[~said].mean() if (~said).any() else np.nan
            short = (~said).mean() > UNWARNED and unwarned < LEVEL - MARGIN
            verdict = ("known: " + setting.known if setting.known else "FAILS") if short else "holds"
            about = {"setting": ", ".join(filter(None, (setting.name, name))), "nominal": LEVEL}
            shares = {"coverage": hits.mean(), "low": low, "high": high, "warned": said.mean()}
            rows.append(about | shares | {"unwarned_coverage": unwarned, "verdict": verdict})
    return pd.DataFrame(rows)


@click.command()
@click.option("--repetitions", default=2000, show_default=True, help="Repetitions of each setting.")
@click.option(
    "--part", type=click.Choice(list(PARTS)), multiple=True, help="Only these settings; all if none is given."
)
def main(repetitions: int, part: tuple[str, ...]) -> None:
    """Measure, print the table, and exit with 1 if intervals without a warning cover too little."""
    click.echo(
        "| setting | nominal | coverage | warned | coverage if not warned | verdict |\n|---|---|---|---|---|---|"
    )
    failed = False
    for setting in [setting for name in part or PARTS for setting in PARTS[name]()]:
        for row in table([setting], repetitions).itertuples():
            interval = f"{row.coverage:.3f} [{row.low:.3f}, {row.high:.3f}]"
            numbers = f"{row.nominal:g} | {interval} | {row.warned:.3f} | {row.unwarned_coverage:.3f}"
            click.echo(f"| {row.setting} | {numbers} | {row.verdict} |")
            failed |= row.verdict == "FAILS"
    raise SystemExit(int(failed))


if __name__ == "__main__":
    main()
