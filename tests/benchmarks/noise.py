"""What low-discrepancy noise costs beside the bare points of SciPy, and how its memory grows.

Run `python tests/benchmarks/noise.py`; it prints a table and exits with 1 if a bound is broken.
"""

from __future__ import annotations

import tracemalloc

import click
import numpy as np
from scipy.stats import qmc
from timing import Task, ratio, report, seconds

from antinb import noise

POINTS, SMALL, LARGE = 64, (3, 32, 32), (3, 256, 256)


def spectral(points: int, shape: tuple[int, ...]) -> Task:
    """Return the task of drawing one unit of spectral Sobol points."""
    return lambda: noise.sobol(1, points).draw(shape, seed=0)


def bare() -> object:
    """Draw as many scrambled Sobol points with SciPy, as many coordinates, and nothing else."""
    return qmc.Sobol(int(np.prod(SMALL)), rng=np.random.default_rng(0)).random(POINTS)


def peak_megabytes(points: int) -> float:
    """Return the peak memory of drawing one unit of large noise, as traced."""
    tracemalloc.start()
    spectral(points, LARGE)()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak / 2**20


@click.command()
@click.option("--repeats", default=15, show_default=True, help="Pairs of runs behind each ratio.")
def main(repeats: int) -> None:
    """Measure, print the table, and exit with 1 if a bound is broken."""
    large = spectral(POINTS, LARGE)
    large()
    report(
        [
            (
                "64 spectral points / bare Sobol points of SciPy, 3x32x32",
                ratio(spectral(POINTS, SMALL), bare, repeats),
                2.0,
            ),
            ("64 spectral points, 3x256x256 (seconds)", min(seconds(large) for _ in range(3)), 3.0),
            ("peak memory of 256 points / 64 points, 3x256x256", peak_megabytes(256) / peak_megabytes(64), 4.1),
        ]
    )


if __name__ == "__main__":
    main()
