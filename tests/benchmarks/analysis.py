"""What the analysis of stored runs costs beside reading them once, and that its memory does not grow with the run.

Run `python tests/benchmarks/analysis.py` on an idle machine; it prints a table and exits with 1, naming them, if
bounds are broken.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"

import platform
import subprocess
import sys
import tempfile
from pathlib import Path

import click
import dask
import numpy as np
from timing import Task, ratio, report, seconds

from antinb import correlation, dataset, diversity, statistics

SHAPE, CHUNK = (3, 32, 32), 32
PAIRS = (1000, 4000, 16_000)
SCORED = (500, 2000, 8000)


def store(folder: Path, pairs: int) -> Path:
    """Store pairs of images with a common structure and opposed parts, a chunk for each 32 units."""
    path = folder / f"{pairs}.zarr"
    if not path.exists():
        common = np.linspace(-1, 1, int(np.prod(SHAPE))).reshape(SHAPE)
        with dataset.Store(path, {"evaluations": 1}, pairs, CHUNK) as run:
            for units in run.missing():
                rng = np.random.default_rng(units.start)
                shared, own = rng.normal(size=(len(units), 1, *SHAPE)), rng.normal(size=(len(units), 2, *SHAPE))
                images = (common + np.array([1, -1])[:, None, None, None] * shared + own) / 3
                run.write(units, {"image": images.astype(np.float32)})
    return path


def features(images: np.ndarray) -> np.ndarray:
    """Return every eighth pixel."""
    return images[..., ::8].reshape(*images.shape[:2], -1)


def tasks(path: Path) -> dict[str, Task]:
    """Return what is measured of a stored run, by name."""
    run = dataset.open(path)

    def read() -> list[float]:
        return [float(part.sum(dtype=float)) for _, part in dataset.blocks(run["image"])]

    return {
        "read": read,
        "summary": lambda: correlation.summary(run),
        "measure": lambda: statistics.measure(run, statistics.brightness, statistics.contrast),
        "scores": lambda: diversity.scores(run, features),
    }


def peak_megabytes(path: Path, name: str) -> float:
    """Return the peak memory of a fresh process that does one task (Linux)."""
    command = [sys.executable, __file__, "--only", name, str(path)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def table(folder: Path, repeats: int) -> list[tuple[str, float, float]]:
    """Return the rows: what was measured, its value and its bound."""
    rows = []
    summaries = []
    for pairs in PAIRS:
        found = tasks(store(folder, pairs))
        summaries.append(ratio(found["summary"], found["read"], repeats))
        rows.append((f"`summary` / read and sum, {pairs} pairs", summaries[-1], 8.0))
        measured = ratio(found["measure"], found["read"], repeats)
        rows.append((f"`measure` of brightness and contrast / read and sum, {pairs} pairs", measured, 4.0))
    rows.append(("the ratio of `summary` at most pairs / at fewest", summaries[-1] / summaries[0], 1.5))
    times = [seconds(tasks(store(folder, pairs))["scores"]) / pairs for pairs in SCORED]
    rows.append((f"`scores` a unit, {SCORED[-1]} pairs / {SCORED[0]} pairs", times[-1] / times[0], 1.25))
    for name, (few, many) in {"summary": PAIRS[1:], "measure": PAIRS[1:], "scores": SCORED[1:]}.items():
        more = peak_megabytes(store(folder, many), name) - peak_megabytes(store(folder, few), name)
        rows.append((f"peak memory of `{name}`, {many} less {few} pairs (MB)", more, 50.0))
    return rows


@click.command()
@click.option("--repeats", default=5, show_default=True, help="Pairs of runs behind each ratio.")
@click.option("--only", nargs=2, help="A task and a stored run: do it and print the peak memory in MB.", hidden=True)
def main(repeats: int, only: tuple[str, str] | None) -> None:
    """Measure, print the table, and exit with 1 if a bound is broken."""
    dask.config.set(scheduler="synchronous")
    if only:
        tasks(Path(only[1]))[only[0]]()
        peak = Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]  # ru_maxrss may be the parent's
        return click.echo(int(peak) / 1024)
    with tempfile.TemporaryDirectory() as folder:
        rows = table(Path(folder), repeats)
    click.echo(f"{platform.machine()}, one thread, numpy {np.__version__}, chunks of {CHUNK} units\n")
    for name, value, bound in rows:
        if value > bound:
            click.echo(f"broken: {name} is {value:.3f}, bound {bound:g}", err=True)
    return report(rows)


if __name__ == "__main__":
    main()
