"""Whether comparisons of two models keep their promise: coverage, verdicts at their edge, errors and cost.

Run `python tests/benchmarks/comparison.py` (about a quarter of an hour); it prints a table and exits with 1 if a share
lies outside its bounds. Units are drawn again from long runs of an exact mixture at two and at three steps, whose own
means and moments are then the truth.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"

import gc
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import click
import dask
import numpy as np
import pandas as pd
import xarray as xr
from timing import ratio

import antinb
from antinb import classifier, comparison, dataset, noise, statistics

WIDE = 60.0  # a pixel is a feature divided by this
ABOUT = {"design": {"name": "pool"}, "seed": 0, "evaluations": 1}
ASKED = [statistics.brightness, statistics.contrast]
MEGABYTES, CHUNK = 98, 32
REFERENCE = antinb.zoo.DATA / "images" / "fashion" / "moments.npz"
Pool = tuple[np.ndarray, np.ndarray]


def measured(design: noise.Design, seed: int, judge: classifier.Classifier) -> tuple[Pool, Pool]:
    """Return statistics `(unit, member, 2)` and features `(unit, member, 64)` of the mixture at three and two steps."""
    values, seen = [], []
    for steps in (3, 2):
        model = antinb.load("fashion-mixture", steps=steps)
        run = antinb.sample(model, design, seed=seed, batch=256, progress=False)
        values.append(np.moveaxis(statistics.measure(run, *ASKED).values, 0, -1))
        images = dataset.scaled(run["image"].values, -1, 1)
        seen.append(judge.features(images))
    return (values[0], values[1]), (seen[0], seen[1])


def flat(values: np.ndarray) -> xr.Dataset:
    """Return a run whose images have one pixel of these values, `(unit, member)` in [0, 1]."""
    return dataset.build({"image": (2 * values[..., None, None, None] - 1).astype(np.float32)}, ABOUT)


def as_run(features: np.ndarray, seed: int = 0) -> xr.Dataset:
    """Return a run whose features are these, `(unit, member, d)`."""
    return dataset.build({"image": (features[:, :, None, None] / WIDE).astype(np.float32)}, ABOUT | {"seed": seed})


def pixels(images: np.ndarray) -> np.ndarray:
    """Return the features of a run of `as_run`."""
    return WIDE * (2 * images[..., 0, 0, :].astype(float) - 1)


def shares(experiment: Callable[[np.random.Generator], np.ndarray], repetitions: int) -> np.ndarray:
    """Return how often each of the booleans that an experiment returns is true."""
    return np.mean([experiment(np.random.default_rng(seed)) for seed in range(repetitions)], 0)


def covered(pool: Pool, units: int, place: int) -> Callable[[np.random.Generator], np.ndarray]:
    """Return whether the interval of the difference of one statistic covers that of the pool."""
    truth = float((pool[1] - pool[0])[..., place].mean())

    def experiment(rng: np.random.Generator) -> np.ndarray:
        drawn = rng.integers(len(pool[0]), size=units)
        row = comparison.summary(*(flat(part[drawn, :, place]) for part in pool), [statistics.pixel_mean]).iloc[0]
        return np.array([row["low"] <= truth <= row["high"], row["warning"] != ""])

    return experiment


def equal_at_the_edge(pool: Pool, sizes: list[int], place: int) -> Callable[[np.random.Generator], np.ndarray]:
    """Return whether a difference as large as the margin is called equal, or different, at any look."""
    margin = {"pixel_mean": abs(float((pool[1] - pool[0])[..., place].mean()))}

    def experiment(rng: np.random.Generator) -> np.ndarray:
        drawn, said = rng.integers(len(pool[0]), size=sizes[-1]), set()
        for size in sizes:
            runs = [flat(part[drawn[:size], :, place]) for part in pool]
            table = comparison.summary(*runs, [statistics.pixel_mean], margin, looks=len(sizes))
            said.add(table["verdict"].item())
        return np.array(["equal" in said, "different" in said])

    return experiment


def itself(sizes: list[int]) -> Callable[[np.random.Generator], np.ndarray]:
    """Return whether a model is called different from itself under another batch size, without a margin."""
    model = antinb.load("fashion-mixture", steps=1)

    def experiment(rng: np.random.Generator) -> np.ndarray:
        seed, said = int(rng.integers(2**40)), set()
        design = noise.antithetic(sizes[-1])
        runs = [antinb.sample(model, design, seed=seed, batch=batch, progress=False) for batch in (256, 6)]
        for size in sizes:
            parts = [run.isel(unit=slice(size)) for run in runs]
            said |= {*comparison.summary(*parts, ASKED, looks=len(sizes))["verdict"]}
        return np.array(["different" in said])

    return experiment


def known(pool: np.ndarray, axes: int | None) -> float:
    """Return the distance of all of a pool from the test images."""
    return float(comparison.frechet(as_run(pool), REFERENCE, pixels, axes=axes)["plain"].item())


def frechet(pool: Pool, units: int, axes: int | None) -> Callable[[np.random.Generator], np.ndarray]:
    """Return whether the intervals of both distances and of their difference cover those of the pool."""
    truths = [known(part, axes) for part in pool]
    truth = np.array([*truths, truths[1] - truths[0]])

    def experiment(rng: np.random.Generator) -> np.ndarray:
        drawn = rng.integers(len(pool[0]), size=units)
        runs = [as_run(part[drawn]) for part in pool]
        table = comparison.frechet(runs[0], REFERENCE, pixels, against=runs[1], axes=axes)
        return ((table["low"] <= truth) & (truth <= table["high"])).to_numpy()

    return experiment


def errors(pool: np.ndarray, units: int, repetitions: int) -> pd.Series:
    """Return the root mean square errors of the plain estimate and of that without bias."""
    truth, rows = known(pool, None), []
    for seed in range(repetitions):
        drawn = np.random.default_rng(seed).integers(len(pool), size=units)
        rows.append(comparison.frechet(as_run(pool[drawn]), REFERENCE, pixels)[["plain", "estimate"]].iloc[0] - truth)
    return (pd.DataFrame(rows) ** 2).mean() ** 0.5


def store(folder: Path, pairs: int, seed: int) -> Path:
    """Store pairs of random images 3x32x32, a chunk for each 32 units."""
    path = folder / f"{pairs}-{seed}.zarr"
    with dataset.Store(path, ABOUT, pairs, CHUNK) as run:
        for units in run.missing():
            rng = np.random.default_rng([seed, units.start])
            run.write(units, {"image": rng.uniform(-1, 1, (len(units), 2, 3, 32, 32)).astype(np.float32)})
    return path


def peak_megabytes(folder: Path, pairs: int) -> float:
    """Return the peak memory of a fresh process that compares two stores (Linux)."""
    command = [sys.executable, __file__, "--only", str(pairs), "--folder", str(folder)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def costs(folder: Path) -> list[tuple[str, float, float, float]]:
    """Return what the comparison of two stores costs beside reading them."""
    pairs = MEGABYTES * 10**6 // (2 * 2 * 4 * 3 * 32 * 32) // CHUNK * CHUNK
    paths = [store(folder, pairs, seed) for seed in (0, 1)]
    runs = [dataset.open(path) for path in paths]

    def read() -> list[float]:
        return [float(part.sum(dtype=float)) for run in runs for _, part in dataset.blocks(run["image"])]

    spent = ratio(lambda: comparison.summary(runs[0], runs[1], ASKED), read, 7)
    rows = [(f"`summary` of two statistics / read and sum, {MEGABYTES} MB", spent, 0.0, 4.0)]
    if platform.system() == "Linux":
        for seed in (0, 1):
            store(folder, 4 * pairs, seed)
        more = peak_megabytes(folder, 4 * pairs) - peak_megabytes(folder, pairs)
        rows.append((f"peak memory, {4 * MEGABYTES} less {MEGABYTES} MB (MB)", more, -np.inf, 50.0))
    return rows


@click.command()
@click.option("--repetitions", default=1000, show_default=True, help="Repetitions of each setting.")
@click.option("--only", type=int, hidden=True)
@click.option("--folder", type=click.Path(path_type=Path), hidden=True)
def main(repetitions: int, only: int | None, folder: Path | None) -> None:
    """Measure, print the table, and exit with 1 if a share is out of its bounds."""
    dask.config.set(scheduler="synchronous")
    if only and folder:
        import resource

        comparison.summary(*(dataset.open(folder / f"{only}-{seed}.zarr") for seed in (0, 1)), ASKED)
        click.echo(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
        return
    gc.freeze()  # statsmodels' Holm collects garbage at every call
    failed = False
    click.echo("| measured | value | bounds |\n|---|---|---|")
    with tempfile.TemporaryDirectory() as place:
        for name, value, low, high in rows(repetitions, Path(place)):
            click.echo(f"| {name} | {value:.3f} | {low:g} to {high:g} |")
            failed |= not low <= value <= high
    raise SystemExit(int(failed))


def rows(repetitions: int, folder: Path):  # noqa: ANN201
    """Yield what is measured, its value and its bounds; distances, which take longest, half as often."""
    yield from costs(folder)
    judge = classifier.load("fashion-classifier")
    kinds = {"pairs": noise.antithetic(3000), "units of 32 points": noise.sobol(250, 32)}
    pools = {kind: measured(design, place, judge) for place, (kind, design) in enumerate(kinds.items())}
    eights = measured(noise.sobol(700, 8), 7, judge)[1]
    for kind, (values, _) in pools.items():
        for units in (20, 100):
            for place, statistic in enumerate(("brightness", "contrast")):
                name = f"coverage of the difference in {statistic}, {units} {kind}"
                yield name, shares(covered(values, units, place), repetitions)[0], 0.93, 0.97
    values = pools["pairs"][0]
    for sizes, looks in (([100], "one look"), ([64, 128, 256, 512], "four looks")):
        found = shares(equal_at_the_edge(values, sizes, 1), repetitions)
        yield f"called equal at the margin's edge, {looks}", found[0], 0.0, 0.05
        yield f"called different at the margin's edge, {looks}", found[1], 0.0, 0.05
    found = shares(itself([16, 32, 64]), repetitions)
    yield "called different from itself under another batch size, without a margin, three looks", found[0], 0.0, 0.05
    settings = [("pairs", pools["pairs"][1], (32, 128), 256), ("points", pools["units of 32 points"][1], (8, 32), 16)]
    for kind, pool, few, many in settings:
        for axes, units in ((8, few[0]), (8, few[1]), (None, many)):
            part = eights if axes and kind == "points" else pool
            hits, count = shares(frechet(part, units, axes), repetitions // 2), units * part[0].shape[1]
            for place, model in enumerate(("a", "b", "difference")):
                about = f"{axes or 64} features, {count} images in {kind}, {model}{', warned' if count < 256 else ''}"
                yield f"coverage of `frechet`, {about}", hits[place], 0.0 if count < 256 else 0.93, 0.97
    plain = errors(measured(noise.iid(8000), 8, judge)[1][0], 1024, repetitions // 4)["plain"]
    best = errors(measured(noise.sobol(64, 128), 9, judge)[1][0], 8, repetitions // 4)["estimate"]
    yield "RMSE of `frechet` at 1,024 images in points / of the plain estimate, independent", best / plain, 0.0, 0.55


if __name__ == "__main__":
    main()
